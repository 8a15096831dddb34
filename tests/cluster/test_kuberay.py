"""The manifests for Kubernetes: accepted by the operator's schema, right about the jobs they run, and closed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from subprocess import list2cmdline
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubernetes import pod_templates, selects, validate
from kustomize import containers, load, render
from manifests import (
    COMPONENTS,
    KIND,
    KUBERAY,
    OVERLAYS,
    RENDERINGS,
    RICHEST,
    ROOT,
    SPOT,
    cluster_of,
    combinations,
    container_of,
    in_cpus,
    in_gib,
    main,
    name_of,
    rendered,
    rendering_id,
    workers_of,
)

from p2p.cli import parse
from p2p.preparation import PrepareConfig
from p2p.training import TrainConfig
from p2p.translation import TranslateConfig
from p2p.translation.pool import ACTORS_PER_GPU

CONFIGS: dict[str, type] = {"prepare": PrepareConfig, "train": TrainConfig, "translate": TranslateConfig}


@pytest.mark.parametrize(("overlay", "names"), RENDERINGS, ids=rendering_id)
def test_every_rendering_is_what_kubernetes_and_the_operator_accept(overlay: Path, names: tuple[str, ...]) -> None:
    manifests = rendered(overlay, names)
    for manifest in manifests:
        validate(manifest)
    manifest = main(manifests)
    assert overlay.name == "cluster" or [one["kind"] for one in manifests].count("RayCluster") == 0
    # What the operator refuses although its schema has it: utils/validation.go of KubeRay 1.7.0.
    assert re.fullmatch(r"[a-z][-a-z0-9]{0,46}", manifest["metadata"]["name"])
    spec, group = cluster_of(manifest), workers_of(manifest)
    assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert "idleTimeoutSeconds" not in group and ("autoscalerOptions" in spec) == spec["enableInTreeAutoscaling"]
    # Tokens need to know the version, and the image has that of the pins.
    assert f"\nray=={spec['rayVersion']} " in (ROOT / "constraints.txt").read_text()
    for template in pod_templates(spec):
        assert "restartPolicy" not in template["spec"]
    if manifest["kind"] == "RayJob":
        job = manifest["spec"]
        assert "upgradeStrategy" not in spec
        rules = job.get("deletionStrategy", {}).get("deletionRules")
        assert (rules is None) == job.get("shutdownAfterJobFinishes", False) == ("ttlSecondsAfterFinished" in job)
        keys = [(rule["policy"], *sorted(rule["condition"].items())[:1]) for rule in rules or []]
        assert len(set(keys)) == len(keys)
    if "kueue" in names:  # what Kueue's webhooks refuse
        assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
        assert not spec["enableInTreeAutoscaling"]
        assert manifest["kind"] == "RayCluster" or manifest["spec"]["shutdownAfterJobFinishes"]


def test_what_is_applied_once_is_what_kubernetes_accepts() -> None:
    files = ("secrets.example.yaml", "shared/egress.yaml", "shared/volume.yaml")
    others = [document for name in files for document in load(KUBERAY / name)]
    for manifest in (*render(KUBERAY / "shared"), *others):
        validate(manifest)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")
@pytest.mark.parametrize(("overlay", "names"), [*RICHEST, (KIND, ())], ids=rendering_id)
def test_kubectl_renders_the_same(overlay: Path, names: tuple[str, ...], tmp_path: Path) -> None:
    shutil.copytree(KUBERAY, tmp_path / "kuberay")
    folder = tmp_path / "kuberay" / overlay.relative_to(KUBERAY)
    (settings,) = load(folder / "kustomization.yaml")
    settings["components"] = [*settings.get("components", []), *(f"../../../components/{name}" for name in names)]
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(settings))
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True, timeout=60)

    def key(manifest: dict[str, Any]) -> tuple[str, str]:
        return manifest["kind"], manifest["metadata"]["name"]

    assert sorted(yaml.safe_load_all(done.stdout), key=key) == sorted(rendered(overlay, names), key=key)


def test_every_component_is_tried_and_offered_where_it_may_stand() -> None:
    used = {"gpu", "small"} | {name for _, names in RENDERINGS for name in names}
    assert used == {path.name for path in COMPONENTS.iterdir()}
    for overlay in OVERLAYS:
        text = (overlay / "kustomization.yaml").read_text()
        offered = set(re.findall(r"components/([\w-]+)", text)) - {"gpu"}
        assert offered == {name for names in combinations(overlay) for name in names} - set(SPOT[1:]), overlay
        assert all(name in text for name in SPOT)


def _misspell(manifest: dict[str, Any]) -> None:
    group = workers_of(manifest)
    group["maxReplica"] = group.pop("maxReplicas")


def _misspell_in_a_pod(manifest: dict[str, Any]) -> None:
    container_of(workers_of(manifest))["securityContext"]["allowPrivilegeEscalations"] = False


def _wrong_type(manifest: dict[str, Any]) -> None:
    cluster_of(manifest)["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def _wrong_choice(manifest: dict[str, Any]) -> None:
    cluster_of(manifest)["authOptions"]["mode"] = "tokens"


def _wrong_quantity(manifest: dict[str, Any]) -> None:
    container_of(workers_of(manifest))["resources"]["limits"]["memory"] = "32 GB"


def _missing(manifest: dict[str, Any]) -> None:
    del workers_of(manifest)["template"]


def _wrong_version(manifest: dict[str, Any]) -> None:
    manifest["apiVersion"] = "ray.io/v2"


@pytest.mark.parametrize("overlay", OVERLAYS[:2], ids=name_of)
@pytest.mark.parametrize(
    "spoil", [_misspell, _misspell_in_a_pod, _wrong_type, _wrong_choice, _wrong_quantity, _missing, _wrong_version]
)
def test_a_spoiled_manifest_is_refused(overlay: Path, spoil: Any) -> None:
    manifest = main(render(overlay))
    validate(manifest)
    spoil(manifest)
    with pytest.raises(jsonschema.ValidationError):
        validate(manifest)


@pytest.mark.parametrize("index", range(4))
def test_a_spoiled_network_policy_is_refused(index: int) -> None:
    policy = load(KUBERAY / "shared" / "networkpolicies.yaml")[index]
    validate(policy)
    policy["spec"]["podSelectors"] = policy["spec"].pop("podSelector")
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(policy)


def commands_of(entrypoint: str, tmp_path: Path) -> list[list[str]]:
    """The commands that an entrypoint comes to on its way: the operator puts it into a line of shell unquoted, and
    `ray job submit` has another shell on the head run what it was given.
    """
    log = tmp_path / "commands"
    (tmp_path / "python").write_text(
        f'#!/bin/sh\nfor word in "$@"; do printf "%s\\0" "$word"; done >>{log}; echo >>{log}\n'
    )
    (tmp_path / "ray").write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    for name in ("python", "ray"):
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    line = f"ray job submit --no-wait -- {entrypoint} ;"
    submitted = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, check=True)
    words = submitted.stdout.split("\0")[:-1]
    assert words[:4] == ["job", "submit", "--no-wait", "--"]
    subprocess.run(list2cmdline(words[4:]), shell=True, env=environment, check=True)
    return [line.split("\0")[:-1] for line in log.read_text().splitlines()]


@pytest.mark.parametrize("overlay", [path for path in (*OVERLAYS, KIND) if path.name != "cluster"], ids=name_of)
def test_the_entrypoint_is_a_command_of_p2p_that_the_workers_have_room_for(overlay: Path, tmp_path: Path) -> None:
    job = main(render(overlay))
    *earlier, (script, *words) = commands_of(job["spec"]["entrypoint"], tmp_path)
    assert [command[0] for command in earlier] == ["/opt/p2p/jobs/prepare.py"] * (overlay == KIND)
    for command in earlier:
        parse(PrepareConfig, command[1:])
    part = {"kind": "train"}.get(overlay.name, overlay.name)
    assert script == f"/opt/p2p/jobs/{part}.py" and (ROOT / script.removeprefix("/opt/p2p/")).is_file()
    config = parse(CONFIGS[part], words)
    group = workers_of(job)
    params = group["rayStartParams"]
    has_gpus = "num-gpus" in params
    assert config.gpu == ("true" if has_gpus else "false")
    cpus, gpus = int(params["num-cpus"]), int(params.get("num-gpus", 0))
    if isinstance(config, TrainConfig):  # all workers start together, and no second set ever comes
        assert group["minReplicas"] == group["maxReplicas"]
        assert not cluster_of(job)["enableInTreeAutoscaling"]
        assert config.workers == (gpus or 1) * group["minReplicas"]
        assert config.workers <= cpus * group["minReplicas"] / 2  # the other half is for the readers
    elif has_gpus:  # begins with the GPUs that are up
        assert config.workers == 0 and group["minReplicas"] == 1
        assert ACTORS_PER_GPU * gpus < cpus
    else:
        assert config.workers == cpus * group["maxReplicas"]


@pytest.mark.parametrize("overlay", [*OVERLAYS, KIND], ids=name_of)
def test_ray_counts_what_the_pods_have(overlay: Path) -> None:
    manifest = main(render(overlay))
    head, workers = cluster_of(manifest)["headGroupSpec"], workers_of(manifest)
    assert head["rayStartParams"]["num-cpus"] == "0" and "num-gpus" not in head["rayStartParams"]
    resources, params = container_of(workers)["resources"], workers["rayStartParams"]
    limits = resources["limits"]
    assert params["num-cpus"] == limits["cpu"]
    assert params.get("num-gpus") == limits.get("nvidia.com/gpu") == resources["requests"].get("nvidia.com/gpu")
    for group in (head, workers):
        resources = container_of(group)["resources"]
        if overlay != KIND:
            assert all(resources["limits"][name] == resources["requests"][name] for name in ("cpu", "memory"))
        store = int(group["rayStartParams"]["object-store-memory"]) / 2**30
        assert store <= 0.3 * in_gib(resources["requests"]["memory"])


# CPUs, GiB and GPUs of the machines in the page's table, as their makers list them.
MACHINES = {
    "m7i.xlarge": (4, 16, 0),
    "m7i.2xlarge": (8, 32, 0),
    "g4dn.4xlarge": (16, 64, 1),
    "g5.4xlarge": (16, 64, 1),
    "g6.4xlarge": (16, 64, 1),
    "n2-standard-4": (4, 16, 0),
    "n2-standard-8": (8, 32, 0),
    "g2-standard-16": (16, 64, 1),
    "Standard_D4s_v5": (4, 16, 0),
    "Standard_D8s_v5": (8, 32, 0),
    "Standard_NC16as_T4_v3": (16, 110, 1),
}
PODS_OF_EKS = {4: 58, 8: 58, 16: 234}
"""The most pods of a node, by CPUs, for the kinds above."""
DAEMONS = 0.3, 0.5
"""CPUs and GiB for what runs on every node."""


def allocatable(name: str) -> tuple[float, float]:
    """CPUs and GiB that a cloud's Kubernetes leaves to pods, by the rules that it documents."""
    cpus, memory, _ = MACHINES[name]
    steps = sum(min(max(0, cpus - start), size) * share for start, size, share in CPU_STEPS)
    if name[0] == "S":  # AKS
        return cpus - AKS_CPUS[cpus], memory - min((20 * 250 + 50) / 1024, 0.25 * memory) - 0.1
    if name.startswith(("n2", "g2")):  # GKE
        return cpus - steps, memory - sum(
            min(max(0, memory - start), size) * share for start, size, share in GKE_MEMORY_STEPS
        ) - 0.1
    # EKS, with what Karpenter counts off for the hypervisor
    return cpus - steps, memory * (1 - 0.075) - (255 + 11 * PODS_OF_EKS[cpus]) / 1024 - 0.1


CPU_STEPS = ((0, 1, 0.06), (1, 1, 0.01), (2, 2, 0.005), (4, 1000, 0.0025))
GKE_MEMORY_STEPS = ((0, 4, 0.25), (4, 4, 0.2), (8, 8, 0.1), (16, 112, 0.06), (128, 10000, 0.02))
AKS_CPUS = {4: 0.14, 8: 0.18, 16: 0.26}


def test_pods_fit_the_machines_that_the_page_names() -> None:
    text = (ROOT / "cluster" / "README.md").read_text()
    rows = {
        kind: re.findall(r"[\w.-]+\.\d*xlarge|[a-z]\d-standard-\d+|Standard_\w+", line)
        for kind in ("head", "CPU worker", "GPU worker")
        for line in re.findall(rf"(?m)^\| {kind}.*$", text)
    }
    assert {name for names in rows.values() for name in names} == set(MACHINES) and len(rows) == 3
    for overlay in OVERLAYS:
        manifest = main(render(overlay))
        spec, is_gpu = cluster_of(manifest), overlay.parent.name == "gpu"
        head = [container_of(spec["headGroupSpec"])["resources"], spec.get("autoscalerOptions", {}).get("resources")]
        worker = [container_of(workers_of(manifest))["resources"]]
        for kind, asked in (("head", head), ("GPU worker" if is_gpu else "CPU worker", worker)):
            requests = [resources["requests"] for resources in asked if resources]
            cpus = sum(in_cpus(request["cpu"]) for request in requests)
            memory = sum(in_gib(request["memory"]) for request in requests)
            for machine in rows[kind]:
                room = allocatable(machine)
                assert cpus + DAEMONS[0] <= room[0] and memory + DAEMONS[1] <= room[1], (overlay, machine, room)
                assert MACHINES[machine][2] == (kind == "GPU worker")
    (component,) = load(COMPONENTS / "gpu-types" / "kustomization.yaml")
    assert all(machine in component["patches"][0]["patch"] for machine in rows["GPU worker"])


def test_the_small_one_fits_two_cpus() -> None:
    manifest = main(render(KIND))
    groups = [cluster_of(manifest)["headGroupSpec"], workers_of(manifest)]
    asked = [container_of(group)["resources"] for group in groups]
    asked += [manifest["spec"]["submitterPodTemplate"]["spec"]["containers"][0]["resources"]]
    # kind's own pods ask for 0.95 CPUs, the operator for 0.1.
    assert sum(in_cpus(resources["requests"]["cpu"]) for resources in asked) + 0.95 + 0.1 <= 2
    assert sum(in_gib(resources["limits"]["memory"]) for resources in asked) <= 8
    assert workers_of(manifest)["replicas"] == 1
    assert containers(manifest)[0]["image"] == "p2p:cpu"  # a tag other than latest, or the kubelet would try to pull it


def scheduling(manifest: dict[str, Any]) -> dict[str, Any]:
    """By pod, the selector and the keys of the taints that it tolerates."""
    found = {}
    pods = {"head": cluster_of(manifest)["headGroupSpec"]["template"], "worker": workers_of(manifest)["template"]}
    if manifest["kind"] == "RayJob":
        pods["submitter"] = manifest["spec"]["submitterPodTemplate"]
    for name, template in pods.items():
        pod = template["spec"]
        found[name] = pod.get("nodeSelector", {}), {rule["key"] for rule in pod.get("tolerations", [])}
    return found


@pytest.mark.parametrize("overlay", OVERLAYS, ids=name_of)
def test_pods_go_where_they_should(overlay: Path) -> None:
    gpu = {"nvidia.com/gpu"} if overlay.parent.name == "gpu" else set()
    found = scheduling(main(rendered(overlay)))
    assert found.pop("worker") == ({}, gpu)  # on demand, of any provider
    assert all(place == ({}, set()) for place in found.values())
    expected: dict[str, tuple[dict[str, str], dict[str, str], set[str]]] = {
        "spot-karpenter": ({"karpenter.sh/capacity-type": "on-demand"}, {"karpenter.sh/capacity-type": "spot"}, set()),
        "spot-eks": (
            {"eks.amazonaws.com/capacityType": "ON_DEMAND"},
            {"eks.amazonaws.com/capacityType": "SPOT"},
            set(),
        ),
        "spot-gke": (
            {"cloud.google.com/gke-provisioning": "standard"},
            {"cloud.google.com/gke-spot": "true"},
            {"cloud.google.com/gke-spot"},
        ),
        "spot-aks": (
            {},
            {"kubernetes.azure.com/scalesetpriority": "spot"},
            {"kubernetes.azure.com/scalesetpriority"},
        ),
    }
    assert set(expected) == set(SPOT)
    for name, (stays, spot, taints) in expected.items():
        found = scheduling(main(rendered(overlay, (name,))))
        assert found.pop("worker") == (spot, gpu | taints)
        assert all(place == (stays, set()) for place in found.values())


STAY = {"karpenter.sh/do-not-disrupt": "true", "cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}


@pytest.mark.parametrize(("overlay", "names"), [*((path, ()) for path in OVERLAYS), *RICHEST], ids=rendering_id)
def test_what_must_not_be_moved_is_marked_and_budgeted(overlay: Path, names: tuple[str, ...]) -> None:
    manifest = main(rendered(overlay, names))
    budgets = [one["spec"] for one in render(KUBERAY / "shared") if one["kind"] == "PodDisruptionBudget"]
    head, worker = cluster_of(manifest)["headGroupSpec"]["template"], workers_of(manifest)["template"]
    stays = [head | {"type": "head"}]
    if manifest["kind"] == "RayJob":
        stays.append(manifest["spec"]["submitterPodTemplate"] | {"type": "none"})
    if overlay.name == "train":
        stays.append(worker | {"type": "worker"})
    else:  # work goes on elsewhere
        assert not set(STAY) & set(worker["metadata"]["annotations"])
        assert not any(_is_selected(budget, worker | {"type": "worker"}) for budget in budgets)
    for template in stays:
        assert template["metadata"]["annotations"].items() >= STAY.items()
        (budget,) = [budget for budget in budgets if _is_selected(budget, template)]
        # An integer: Kubernetes cannot count what a RayCluster should have.
        assert budget["minAvailable"] >= 10**6 and budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def _is_selected(budget: dict[str, Any], template: dict[str, Any]) -> bool:
    labels = template["metadata"]["labels"] | {"ray.io/node-type": template["type"]}  # the latter is the operator's
    return selects(budget["selector"], labels)


@pytest.mark.parametrize("overlay", [path for path in OVERLAYS if path.name != "cluster"], ids=name_of)
def test_retries_and_deletions_are_as_stated(overlay: Path) -> None:
    job = main(render(overlay))["spec"]
    assert job["backoffLimit"] == {"train": 4, "translate": 1}[overlay.name]
    assert job["submitterConfig"] == {"backoffLimit": 20} and job["submissionMode"] == "K8sJobMode"
    rules = {json.dumps(rule["condition"]): rule["policy"] for rule in job["deletionStrategy"]["deletionRules"]}
    assert rules == {
        json.dumps(condition | {"ttlSeconds": seconds}): "DeleteCluster"
        for condition, seconds in (
            ({"jobStatus": "SUCCEEDED"}, 60),
            ({"jobStatus": "FAILED"}, 3600),
            ({"jobDeploymentStatus": "Failed"}, 3600),
        )
    }
    # The driver, on the head, ends 0 where a retry would not help; see tests/test_cli.py.
    assert {"name": "P2P_FINAL_IS_SUCCESS", "value": "1"} in container_of(job["rayClusterSpec"]["headGroupSpec"])["env"]
    text = (ROOT / "cluster" / "README.md").read_text()
    assert "RAYJOB_STATUS_CHECK_TIMEOUT_SECONDS" in text


def test_a_worker_that_is_to_go_lets_its_training_save_first(tmp_path: Path) -> None:
    """Where there is one: a pod of anything else goes at once."""
    worker = workers_of(main(render(OVERLAYS[0])))["template"]["spec"]
    (container,) = worker["containers"]
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    assert int(re.findall(r"remaining-seconds (\d+)", command[-1])[0]) + 20 < worker["terminationGracePeriodSeconds"]
    log = tmp_path / "log"
    for name, script in (
        ("ray", f'echo "$@" >>{log}'),
        ("grep", "exit ${TRAINS:-1}"),
        ("sleep", f"echo slept >>{log}"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(command, env=environment, check=True, timeout=30)
    assert not log.exists()
    subprocess.run(command, env=environment | {"TRAINS": "0"}, check=True, timeout=30)
    drained, *slept = log.read_text().splitlines()
    assert drained.startswith("drain-node --reason DRAIN_NODE_REASON_PREEMPTION") and len(slept) == 50
