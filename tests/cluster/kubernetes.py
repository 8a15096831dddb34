"""What Kubernetes accepts, and whom its network policies let through."""

from __future__ import annotations

import gzip
import ipaddress
import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

SCHEMAS = Path(__file__).parent / "kuberay-1.7.0.json.gz"
KUBERNETES = "1.33"
_TEXT_MAP = {"type": "object", "additionalProperties": {"type": "string"}}
_METADATA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {"name": {"type": "string"}, "labels": _TEXT_MAP, "annotations": _TEXT_MAP},
}


def _strict(schema: Any) -> Any:
    """As the API server judges with `--validate=strict`: a field that the schema does not name is an error."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    is_object = schema.get("type") == "object" and isinstance(schema.get("properties"), dict)
    if is_object and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    return strict


@cache
def _validator(kind: str) -> jsonschema.Draft4Validator:
    """Of a manifest of KubeRay's, unknown fields refused."""
    spec = _strict(json.loads(gzip.decompress(SCHEMAS.read_bytes()))[kind])
    properties = {"apiVersion": {"enum": ["ray.io/v1"]}, "kind": {}, "metadata": _METADATA, "spec": spec}
    return jsonschema.Draft4Validator(
        {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    )


def validate(manifest: dict[str, Any]) -> None:
    """Raises jsonschema.ValidationError unless the API server would accept `manifest`, of Kubernetes or KubeRay."""
    if manifest["kind"] not in ("RayCluster", "RayJob"):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        return
    _validator(manifest["kind"]).validate(manifest)
    for template in pod_templates(manifest["spec"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p2p", **template["metadata"]}}
        kubernetes_validate.validate({**pod, "spec": template["spec"]}, KUBERNETES, strict=True)


def pod_templates(spec: Any) -> list[dict[str, Any]]:
    """Every template of a pod anywhere in `spec`."""
    if isinstance(spec, list):
        return [found for item in spec for found in pod_templates(item)]
    if not isinstance(spec, dict):
        return []
    own = [spec] if "containers" in spec.get("spec", {}) else []
    return own + [found for item in spec.values() for found in pod_templates(item)]


def selects(selector: dict[str, Any] | None, labels: dict[str, str]) -> bool:
    if selector is None:
        return False
    for rule in selector.get("matchExpressions", []):
        assert rule["operator"] == "In", rule
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def lets_through(
    policies: list[dict[str, Any]],
    to: dict[str, str],
    port: int,
    sender: dict[str, str],
    namespace: dict[str, str] | None = None,
) -> bool:
    """Whether a pod with the labels `sender`, in a namespace with the labels `namespace` (None: the policies' own),
    reaches `port` of a pod with the labels `to`. A pod that no policy selects is open to everyone.
    """
    return _is_allowed(policies, "Ingress", to, port, sender, namespace)


def lets_out(
    policies: list[dict[str, Any]],
    sender: dict[str, str],
    port: int,
    to: dict[str, str] | str,
    namespace: dict[str, str] | None = None,
) -> bool:
    """Whether a pod with the labels `sender` may connect to `port` of a pod with the labels `to`, in a namespace as
    above, or of an address outside of the cluster.
    """
    return _is_allowed(policies, "Egress", sender, port, to, namespace)


def _is_allowed(
    policies: list[dict[str, Any]],
    direction: str,
    own: dict[str, str],
    port: int,
    other: dict[str, str] | str,
    namespace: dict[str, str] | None,
) -> bool:
    specs = [policy["spec"] for policy in policies if direction in policy["spec"]["policyTypes"]]
    applying = [spec for spec in specs if selects(spec["podSelector"], own)]
    rules = [rule for spec in applying for rule in spec.get(direction.lower(), [])]
    return not applying or any(_matches(rule, port, other, namespace) for rule in rules)


def _matches(rule: dict[str, Any], port: int, other: dict[str, str] | str, namespace: dict[str, str] | None) -> bool:
    if "ports" in rule and port not in [allowed["port"] for allowed in rule["ports"]]:
        return False
    peers = rule.get("from", rule.get("to"))
    return peers is None or any(_is_peer(peer, other, namespace) for peer in peers)


def _is_peer(peer: dict[str, Any], other: dict[str, str] | str, namespace: dict[str, str] | None) -> bool:
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        return (
            isinstance(other, str)
            and _lies_in(other, block["cidr"])
            and not any(_lies_in(other, hole) for hole in block.get("except", []))
        )
    if isinstance(other, str):
        return False
    place = selects(peer["namespaceSelector"], namespace or {}) if "namespaceSelector" in peer else namespace is None
    return place and selects(peer.get("podSelector", {}), other)


def _lies_in(address: str, block: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(block)
