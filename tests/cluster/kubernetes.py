"""What Kubernetes accepts, and whom its network policies let through."""

from __future__ import annotations

import copy
import gzip
import ipaddress
import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

SCHEMAS = Path(__file__).parent / "kuberay-1.7.0.json.gz"
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
def specs() -> dict[str, Any]:
    """By kind, the JSON schema of a manifest's `spec`, unknown fields refused."""
    found: dict[str, Any] = _strict(json.loads(gzip.decompress(SCHEMAS.read_bytes())))
    found["NetworkPolicy"] = _network_policy(found["RayCluster"])
    found["StatefulSet"] = _stateful_set(found["RayCluster"])
    found["Service"] = _closed(
        type={"enum": ["ClusterIP"]},
        selector=_TEXT_MAP,
        ports={"type": "array", "items": _closed(name={"type": "string"}, port={"type": "integer"})},
    )
    return found


def _closed(**properties: Any) -> dict[str, Any]:
    """An object that has these properties, all of them, and no other."""
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def _network_policy(cluster: Any) -> Any:
    """KubeRay's own field of that name has Kubernetes' rules in it, and those Kubernetes' selectors."""
    rules = cluster["properties"]["networkPolicy"]["properties"]["head"]["properties"]
    policy = _closed(
        podSelector=rules["ingressRules"]["items"]["properties"]["from"]["items"]["properties"]["podSelector"],
        policyTypes={"type": "array", "items": {"enum": ["Ingress", "Egress"]}},
        ingress=rules["ingressRules"],
        egress=rules["egressRules"],
    )
    return policy | {"required": ["podSelector", "policyTypes"]}


def _stateful_set(cluster: Any) -> Any:
    template = cluster["properties"]["headGroupSpec"]["properties"]["template"]
    claim = template["properties"]["spec"]["properties"]["volumes"]["items"]["properties"]["ephemeral"]["properties"]
    claims = copy.deepcopy(claim["volumeClaimTemplate"])
    claims["properties"]["metadata"] = _METADATA
    return _closed(
        serviceName={"type": "string"},
        replicas={"type": "integer"},
        selector=_closed(matchLabels=_TEXT_MAP),
        template=template,
        volumeClaimTemplates={"type": "array", "items": claims},
    )


VERSIONS = {
    "RayCluster": "ray.io/v1",
    "RayJob": "ray.io/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "StatefulSet": "apps/v1",
    "Service": "v1",
}


def validate(manifest: dict[str, Any]) -> None:
    """Raises jsonschema.ValidationError unless the API server would accept `manifest`, a kind of VERSIONS."""
    kind = manifest["kind"]
    schema = _closed(apiVersion={"enum": [VERSIONS[kind]]}, kind={}, metadata=_METADATA, spec=specs()[kind])
    jsonschema.Draft4Validator(schema).validate(manifest)


def _selects(selector: dict[str, Any] | None, labels: dict[str, str]) -> bool:
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
    applying = [spec for spec in specs if _selects(spec["podSelector"], own)]
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
    place = _selects(peer["namespaceSelector"], namespace or {}) if "namespaceSelector" in peer else namespace is None
    return place and _selects(peer.get("podSelector", {}), other)


def _lies_in(address: str, block: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(block)
