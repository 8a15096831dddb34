"""The manifests for Kubernetes: accepted by the operator's schema, right about the jobs they run, and closed."""

from __future__ import annotations

import copy
import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kubernetes import VERSIONS, lets_out, lets_through, validate
from kustomize import containers, load, render

from p2p.cli import parse
from p2p.training import TrainConfig
from p2p.translation import TranslateConfig
from p2p.translation.pool import ACTORS_PER_GPU

ROOT = Path(__file__).parent.parent.parent
KUBERAY = ROOT / "cluster" / "kuberay"
COMPONENTS = KUBERAY / "components"
EGRESS = KUBERAY / "shared" / "egress.yaml"
OVERLAYS = [KUBERAY / "overlays" / kind / part for kind in ("cpu", "gpu") for part in ("cluster", "train", "translate")]
CONFIGS: dict[str, type] = {"train": TrainConfig, "translate": TranslateConfig}
OPERATOR_LABEL = {"app.kubernetes.io/name": "kuberay-operator"}


def name_of(path: Path) -> str:
    return "-".join(path.parts[-2:])


def only(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    (manifest,) = manifests
    return manifest


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]
    return spec if manifest["kind"] == "RayCluster" else spec["rayClusterSpec"]


def workers_of(manifest: dict[str, Any]) -> dict[str, Any]:
    (group,) = cluster_of(manifest)["workerGroupSpecs"]
    return group


def container_of(group: dict[str, Any]) -> dict[str, Any]:
    (container,) = group["template"]["spec"]["containers"]
    return container


def in_bytes(quantity: str) -> int:
    return int(quantity.removesuffix("Gi")) * 2**30


@pytest.mark.parametrize("overlay", OVERLAYS, ids=name_of)
@pytest.mark.parametrize("extra", [(), ("spot",), ("redis",)], ids=lambda names: "+".join(names) or "plain")
def test_every_overlay_is_what_the_operator_accepts(overlay: Path, extra: tuple[str, ...]) -> None:
    for manifest in render(overlay, [COMPONENTS / name for name in extra]):
        validate(manifest)
    for manifest in (*render(KUBERAY / "shared"), *load(EGRESS)):
        if manifest["kind"] in VERSIONS:
            validate(manifest)


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
    manifest = only(render(overlay))
    validate(manifest)
    spoil(manifest)
    with pytest.raises(jsonschema.ValidationError):
        validate(manifest)


@pytest.mark.parametrize("index", range(4))
def test_a_spoiled_network_policy_is_refused(index: int) -> None:
    policy = load(KUBERAY / "shared" / "networkpolicies.yaml")[index]
    validate(policy)
    policy["spec"]["podSelectors"] = policy["spec"].pop("podSelector")
    with pytest.raises(jsonschema.ValidationError):
        validate(policy)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=name_of)
def test_what_the_operator_checks_beyond_its_schema(overlay: Path) -> None:
    manifest = only(render(overlay))
    assert re.fullmatch(r"[a-z][-a-z0-9]{0,46}", manifest["metadata"]["name"])
    spec = cluster_of(manifest)
    assert spec["autoscalerOptions"]["version"] == "v2"  # or a group may not have its own idleTimeoutSeconds
    group = workers_of(manifest)
    assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    # Tokens need to know the version, and the image has that of the pins.
    assert f"\nray=={spec['rayVersion']} " in (ROOT / "constraints.txt").read_text()


@pytest.mark.parametrize("overlay", [path for path in OVERLAYS if path.name in CONFIGS], ids=name_of)
def test_the_entrypoint_is_a_command_of_p2p_that_the_workers_have_room_for(overlay: Path) -> None:
    job = only(render(overlay))
    python, script, *words = shlex.split(job["spec"]["entrypoint"])
    assert (python, script) == ("python", f"/opt/p2p/jobs/{overlay.name}.py")
    config = parse(CONFIGS[overlay.name], words)
    group = workers_of(job)
    params = group["rayStartParams"]
    has_gpus = "num-gpus" in params
    assert config.gpu == ("true" if has_gpus else "false")
    cpus, gpus = int(params["num-cpus"]), int(params.get("num-gpus", 0))
    if isinstance(config, TrainConfig):  # all workers start together, and no second set ever comes
        assert group["minReplicas"] == group["maxReplicas"]
        assert config.workers == (gpus or 1) * group["minReplicas"]
        assert config.workers <= cpus * group["minReplicas"] / 2  # the other half is for the readers
    elif has_gpus:  # processes are counted by the GPUs that are up when the job begins
        assert config.workers == 0 and group["minReplicas"] == group["maxReplicas"]
        assert ACTORS_PER_GPU * gpus < cpus
    else:
        assert config.workers == cpus * group["maxReplicas"]


def test_jobs_run_on_the_cluster_that_is_shown_alone() -> None:
    for kind in ("cpu", "gpu"):
        found = []
        for part in ("cluster", "train", "translate"):
            spec = copy.deepcopy(cluster_of(only(render(KUBERAY / "overlays" / kind / part))))
            for name in ("replicas", "minReplicas", "maxReplicas"):
                del spec["workerGroupSpecs"][0][name]
            found.append(spec)
        assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("overlay", OVERLAYS, ids=name_of)
def test_ray_counts_what_the_pods_have(overlay: Path) -> None:
    manifest = only(render(overlay))
    head, workers = cluster_of(manifest)["headGroupSpec"], workers_of(manifest)
    assert head["rayStartParams"]["num-cpus"] == "0" and "num-gpus" not in head["rayStartParams"]
    resources, params = container_of(workers)["resources"], workers["rayStartParams"]
    limits = resources["limits"]
    assert params["num-cpus"] == limits["cpu"] == resources["requests"]["cpu"]
    assert params.get("num-gpus") == limits.get("nvidia.com/gpu") == resources["requests"].get("nvidia.com/gpu")
    for group in (head, workers):
        resources = container_of(group)["resources"]
        assert resources["limits"]["memory"] == resources["requests"]["memory"]
        store = int(group["rayStartParams"]["object-store-memory"])
        assert store <= 0.3 * in_bytes(resources["limits"]["memory"])


def test_gpus_are_on_spot_and_the_head_is_not() -> None:
    for overlay in OVERLAYS[3:]:
        manifest = only(render(overlay))
        head, workers = cluster_of(manifest)["headGroupSpec"]["template"]["spec"], workers_of(manifest)
        assert head["nodeSelector"] == {"karpenter.sh/capacity-type": "on-demand"}
        assert "tolerations" not in head
        pod = workers["template"]["spec"]
        assert pod["nodeSelector"] == {"karpenter.sh/capacity-type": "spot"}
        assert {rule["key"] for rule in pod["tolerations"]} == {"karpenter.sh/capacity-type", "nvidia.com/gpu"}
        assert workers["rayStartParams"]["num-gpus"] == "1"


def everything() -> list[dict[str, Any]]:
    found = [manifest for overlay in OVERLAYS for manifest in render(overlay, [COMPONENTS / "redis"])]
    return found + render(KUBERAY / "shared")


def pod_specs(value: Any) -> list[dict[str, Any]]:
    """Every pod's spec anywhere in `value`."""
    if isinstance(value, list):
        return [found for item in value for found in pod_specs(item)]
    if not isinstance(value, dict):
        return []
    own = [value] if "containers" in value else []
    return own + [found for item in value.values() for found in pod_specs(item)]


def test_no_container_may_become_root() -> None:
    found = pod_specs(everything())
    assert len(found) == 22
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] >= 999
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert pod["automountServiceAccountToken"] is False
    for manifest in everything():
        contexts = [container["securityContext"] for container in containers(manifest)]
        if manifest["kind"] in ("RayCluster", "RayJob"):
            contexts.append(cluster_of(manifest)["autoscalerOptions"]["securityContext"])
        for context in contexts:
            assert context["allowPrivilegeEscalation"] is False and context["capabilities"] == {"drop": ["ALL"]}
            assert context["readOnlyRootFilesystem"] is True


def mounts_of(container: dict[str, Any]) -> dict[str, str]:
    """By path, the volume."""
    return {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", [])}


def test_what_must_be_written_is_a_volume_that_exists() -> None:
    for pod in pod_specs(everything()):
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            mounts = mounts_of(container)
            writable = {"redis": {"/data"}, "ray-job-submitter": {"/tmp"}}.get(container["name"], {"/tmp", "/home/p2p"})
            assert set(mounts) == writable  # and the operator adds /dev/shm
            assert container["name"] == "redis" or set(mounts.values()) <= volumes


def test_the_autoscaler_alone_has_credentials_of_kubernetes() -> None:
    """Drivers run on the head, beside the container that the operator adds, and what they read may be hostile."""
    for overlay in OVERLAYS:
        spec = cluster_of(only(render(overlay)))
        volumes = {volume["name"]: volume for volume in spec["headGroupSpec"]["template"]["spec"]["volumes"]}
        autoscaler = mounts_of(spec["autoscalerOptions"])
        # Where Ray's autoscaler looks for both; the operator adds /tmp/ray, which it shares with the head.
        assert set(autoscaler) == {"/tmp", "/var/run/secrets/kubernetes.io/serviceaccount"}
        name = autoscaler["/var/run/secrets/kubernetes.io/serviceaccount"]
        assert "emptyDir" in volumes[autoscaler["/tmp"]]
        token, authority = volumes[name]["projected"]["sources"]
        assert token["serviceAccountToken"]["path"] == "token"
        assert authority["configMap"] == {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
        others = [
            mounts_of(container)
            for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])
            for container in group["template"]["spec"]["containers"]
        ]
        for mounts in others:
            assert not {name, autoscaler["/tmp"]} & set(mounts.values())
        for volume in volumes.values():  # nor is there another with credentials
            assert set(volume) == {"name", "projected" if volume["name"] == name else "emptyDir"}


def test_no_image_is_whatever_is_newest() -> None:
    for container in containers(everything()):
        assert re.search(r":(?!latest$)[\w.-]+$|@sha256:[0-9a-f]{64}$", container["image"]), container["image"]


def test_nothing_is_published() -> None:
    text = yaml.safe_dump_all(everything())
    assert not re.findall(r"LoadBalancer|NodePort|hostPort|externalIPs|kind: Ingress", text)
    for manifest in everything():
        if manifest["kind"] in ("RayCluster", "RayJob"):
            head = cluster_of(manifest)["headGroupSpec"]
            assert (head["serviceType"], head["enableIngress"]) == ("ClusterIP", False)


def test_secrets_are_named_and_never_written() -> None:
    examples = {document["metadata"]["name"]: document for document in load(KUBERAY / "secrets.example.yaml")}
    named = set()
    for manifest in everything():
        assert manifest["kind"] != "Secret"
        if manifest["kind"] in ("RayCluster", "RayJob"):
            auth = cluster_of(manifest)["authOptions"]
            assert auth["mode"] == "token"
            named.add((auth["secretName"], "auth_token"))  # the key that the operator reads
        references = re.findall(r"secretKeyRef: (\{.*?\})", yaml.safe_dump(manifest, default_flow_style=None))
        named |= {(found["name"], found["key"]) for found in map(yaml.safe_load, references)}
    assert named == {("p2p-ray-token", "auth_token"), ("p2p-redis", "password")}
    for name, key in named:
        example = examples[name]
        assert (example["apiVersion"], example["kind"], list(example["stringData"])) == ("v1", "Secret", [key])
    assert set(examples) == {name for name, _ in named}


def test_pods_reach_buckets_by_accounts_that_exist() -> None:
    accounts = {
        item["metadata"]["name"]: item for item in render(KUBERAY / "shared") if item["kind"] == "ServiceAccount"
    }
    used = {pod["serviceAccountName"] for pod in pod_specs(everything()) if "serviceAccountName" in pod}
    assert set(accounts) == used == {"p2p-head", "p2p-worker"}
    for account in accounts.values():
        assert set(account) <= {"apiVersion", "kind", "metadata", "automountServiceAccountToken"}
        assert "eks.amazonaws.com/role-arn" in account["metadata"]["annotations"]
    assert "AWS_SECRET_ACCESS_KEY" not in yaml.safe_dump_all(everything())


def test_the_network_lets_through_what_is_needed_and_nothing_else() -> None:
    manifest = only(render(KUBERAY / "overlays" / "gpu" / "train"))
    spec = cluster_of(manifest)
    # The operator adds the label with the kind of node.
    head = spec["headGroupSpec"]["template"]["metadata"]["labels"] | {"ray.io/node-type": "head"}
    worker = workers_of(manifest)["template"]["metadata"]["labels"] | {"ray.io/node-type": "worker"}
    submitter = manifest["spec"]["submitterPodTemplate"]["metadata"]["labels"]
    (stateful,) = [item for item in render(OVERLAYS[0], [COMPONENTS / "redis"]) if item["kind"] == "StatefulSet"]
    redis = stateful["spec"]["template"]["metadata"]["labels"]
    policies = [
        item
        for item in (*render(KUBERAY / "shared"), *load(COMPONENTS / "redis" / "redis.yaml"))
        if item["kind"] == "NetworkPolicy"
    ]
    monitoring = {"kubernetes.io/metadata.name": "monitoring"}
    elsewhere = {"kubernetes.io/metadata.name": "default"}
    kuberay = {"kubernetes.io/metadata.name": "kuberay-system"}
    senders: dict[str, tuple[dict[str, str], dict[str, str] | None]] = {
        "head": (head, None),
        "worker": (worker, None),
        "submitter": (submitter, None),
        "redis": (redis, None),
        "stranger": ({"app": "web"}, None),
        "operator": (OPERATOR_LABEL, kuberay),
        "impostor of the operator": (OPERATOR_LABEL, elsewhere),
        "near impostor of the operator": (OPERATOR_LABEL, None),
        "operator's neighbour": ({"app": "web"}, kuberay),
        "prometheus": ({"app": "prometheus"}, monitoring),
        "far stranger": ({"app": "web"}, elsewhere),
        "far impostor": (head, elsewhere),
    }
    receivers = {"head": head, "worker": worker, "submitter": submitter, "redis": redis}
    ports = {"gcs": 6379, "dashboard": 8265, "metrics": 8080, "any": 31234}
    open_ways = {
        (sender, receiver, port)
        for (sender, (labels, namespace)), (receiver, to), (port, number) in itertools.product(
            senders.items(), receivers.items(), ports.items()
        )
        if lets_through(policies, to, number, labels, namespace)
    }
    nodes = ("head", "worker")
    expected = {(a, b, port) for a in nodes for b in nodes for port in ports}
    expected |= {("submitter", "head", "dashboard"), ("operator", "head", "dashboard")}
    expected |= {("prometheus", node, "metrics") for node in nodes}
    expected |= {("head", "redis", "gcs")}  # the same number
    assert open_ways == expected


def test_the_operator_is_installed_where_it_is_let_through() -> None:
    text = (ROOT / "cluster" / "README.md").read_text()
    (namespace,) = re.findall(r"helm install kuberay-operator .* --namespace (\S+)", text)
    assert f"kubernetes.io/metadata.name: {namespace}" in (KUBERAY / "shared" / "networkpolicies.yaml").read_text()


def test_egress_where_it_is_wanted_leads_to_what_is_needed_and_what_is_public() -> None:
    assert all("Egress" not in item["spec"]["policyTypes"] for item in network_policies(render(KUBERAY / "shared")))
    text = EGRESS.read_text(encoding="utf-8").replace("API-SERVER", "10.0.0.1")
    policies = [*network_policies(render(KUBERAY / "shared")), *yaml.safe_load_all(text)]
    labels = {"app.kubernetes.io/part-of": "p2p"}
    head, worker = ({**labels, "ray.io/node-type": kind} for kind in ("head", "worker"))
    redis, dns = {"app.kubernetes.io/name": "p2p-redis"}, {"k8s-app": "kube-dns"}
    system = {"kubernetes.io/metadata.name": "kube-system"}
    for node in (head, worker):
        assert lets_out(policies, node, 31234, head) and lets_out(policies, node, 31234, worker)
        assert lets_out(policies, node, 6379, redis) and not lets_out(policies, node, 80, redis)
        assert lets_out(policies, node, 53, dns, system) and not lets_out(policies, node, 80, dns, system)
        assert not lets_out(policies, node, 53, dns, {"kubernetes.io/metadata.name": "default"})
        assert not any(lets_out(policies, node, 80, {"app": "web"}, place) for place in (None, system))
        assert lets_out(policies, node, 443, "52.216.0.1")
        for private in ("10.1.2.3", "172.31.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"):
            assert not lets_out(policies, node, 80, private)
    assert lets_out(policies, head, 443, "10.0.0.1") and not lets_out(policies, worker, 443, "10.0.0.1")


def network_policies(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [manifest for manifest in manifests if manifest["kind"] == "NetworkPolicy"]


def test_prometheus_finds_the_ports() -> None:
    (monitor,) = load(KUBERAY / "podmonitor.yaml")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    for overlay in OVERLAYS:
        manifest = only(render(overlay))
        for group in (cluster_of(manifest)["headGroupSpec"], workers_of(manifest)):
            assert {endpoint["port"]: 8080}.items() <= {
                port["name"]: port["containerPort"] for port in container_of(group)["ports"]
            }.items()
            assert monitor["spec"]["selector"]["matchLabels"].items() <= group["template"]["metadata"]["labels"].items()
