"""The manifests for Kubernetes, closed: who may do what, who reaches whom, and what is kept secret."""

from __future__ import annotations

import itertools
import re
from typing import Any

import yaml
from kubernetes import lets_out, lets_through
from kustomize import containers, load, render
from manifests import (
    COMPONENTS,
    EGRESS,
    KUBERAY,
    OVERLAYS,
    RENDERINGS,
    ROOT,
    cluster_of,
    container_of,
    main,
    rendered,
    workers_of,
)
from ray.dashboard.consts import DASHBOARD_METRIC_PORT

OPERATOR_LABEL = {"app.kubernetes.io/name": "kuberay-operator"}


def everything() -> list[dict[str, Any]]:
    found = [manifest for overlay, names in RENDERINGS for manifest in rendered(overlay, names)]
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
    assert len(found) > 2 * len(RENDERINGS)
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] >= 999
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert pod["automountServiceAccountToken"] is False
    for manifest in everything():
        contexts = [container["securityContext"] for container in containers(manifest)]
        if manifest["kind"] in ("RayCluster", "RayJob"):
            contexts += [cluster_of(manifest).get("autoscalerOptions", {}).get("securityContext", contexts[0])]
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
            own = {"redis": {"/data"}, "ray-job-submitter": {"/tmp"}, "logs": {"/tmp"}}.get(
                container["name"], {"/tmp", "/home/p2p"}
            )
            assert own <= set(mounts) <= {*own, "/data"}  # and the operator adds /dev/shm
            assert container["name"] == "redis" or set(mounts.values()) <= volumes


def test_the_autoscaler_alone_has_credentials_of_kubernetes() -> None:
    """Drivers run on the head, beside the container that the operator adds, and what they read may be hostile."""
    for overlay in OVERLAYS:
        spec = cluster_of(main(rendered(overlay, ("shared-volume",))))
        volumes = {volume["name"]: volume for volume in spec["headGroupSpec"]["template"]["spec"]["volumes"]}
        assert volumes.pop("data").keys() == {"name", "persistentVolumeClaim"}
        if not spec["enableInTreeAutoscaling"]:
            assert all(set(volume) == {"name", "emptyDir"} for volume in volumes.values())
            continue
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
    named, whole = set(), set()
    for manifest in everything():
        assert manifest["kind"] != "Secret"
        if manifest["kind"] in ("RayCluster", "RayJob"):
            auth = cluster_of(manifest)["authOptions"]
            assert auth["mode"] == "token"
            named.add((auth["secretName"], "auth_token"))  # the key that the operator reads
        text = yaml.safe_dump(manifest, default_flow_style=None)
        references = [yaml.safe_load(found) for found in re.findall(r"secretKeyRef: (\{.*?\})", text)]
        named |= {(found["name"], found["key"]) for found in references}
        whole |= set(re.findall(r"(?:secretRef: |imagePullSecrets:\n *- )\{name: ([\w-]+)\}", text))
    assert named == {("p2p-ray-token", "auth_token"), ("p2p-redis", "password")}
    assert whole == {"p2p-s3", "p2p-registry"}
    for name, key in named:
        assert list(examples[name]["stringData"]) == [key]
    assert set(examples) == {name for name, _ in named} | whole
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"} < set(examples["p2p-s3"]["stringData"])


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
    manifest = main(render(KUBERAY / "overlays" / "gpu" / "train"))
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
    ports = {"gcs": 6379, "dashboard": 8265, "metrics": 8080, "autoscaler's": 44217, "dashboard's": 44227, "any": 31234}
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
    expected |= {("prometheus", node, port) for node in nodes for port in ("metrics", "autoscaler's", "dashboard's")}
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
    monitor, rules = load(KUBERAY / "monitoring.yaml")
    for manifest in (monitor, rules):  # what the chart's Prometheus looks at
        assert manifest["metadata"]["namespace"] == "monitoring" and manifest["metadata"]["labels"]["release"]
    assert monitor["spec"]["namespaceSelector"] == {"any": True}
    scraped = [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]]
    for overlay in OVERLAYS:
        manifest = main(render(overlay))
        head, workers = cluster_of(manifest)["headGroupSpec"], workers_of(manifest)
        for group, expected in ((head, [8080, 44217, DASHBOARD_METRIC_PORT]), (workers, [8080])):
            ports = {port["name"]: port["containerPort"] for port in container_of(group)["ports"]}
            assert [ports[name] for name in scraped if name in ports] == expected
            assert monitor["spec"]["selector"]["matchLabels"].items() <= group["template"]["metadata"]["labels"].items()
