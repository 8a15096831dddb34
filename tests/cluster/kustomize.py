"""What `kubectl kustomize` makes of a folder, for the few features that cluster/kuberay uses; any other is an error."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

Manifest = dict[str, Any]

_KINDS = {"Kustomization": "kustomize.config.k8s.io/v1beta1", "Component": "kustomize.config.k8s.io/v1alpha1"}
_KNOWN = {"apiVersion", "kind", "resources", "components", "patches", "images", "nameSuffix", "replacements"}
_LOCAL = "config.kubernetes.io/local-config"


def load(path: Path) -> list[Manifest]:
    """Every document of a YAML file."""
    return [json.loads(document) for document in _documents(path.read_text(encoding="utf-8"))]


@functools.cache
def _documents(text: str) -> list[str]:
    # As text, so that what an anchor stands for several times is no longer one object, nor what two tests load.
    return [json.dumps(document) for document in yaml.safe_load_all(text)]


def render(folder: Path, components: Sequence[Path] = ()) -> list[Manifest]:
    """The manifests of a folder, with `components` as if its kustomization.yaml named them last."""
    found = _apply(folder, [], components)
    return [manifest for manifest in found if _LOCAL not in manifest["metadata"].get("annotations", {})]


def _apply(folder: Path, manifests: list[Manifest], components: Sequence[Path] = ()) -> list[Manifest]:
    (settings,) = load(folder / "kustomization.yaml")
    assert set(settings) <= _KNOWN, f"{folder}: {set(settings) - _KNOWN}"
    assert settings["apiVersion"] == _KINDS[settings["kind"]], folder
    for name in settings.get("resources", []):
        path = folder / name
        manifests = [*manifests, *(_apply(path, []) if path.is_dir() else load(path))]
    for component in (*(folder / name for name in settings.get("components") or ()), *components):
        manifests = _apply(component, manifests)
    for patch in settings.get("patches", []):
        assert set(patch) == {"target", "patch"} and set(patch["target"]) == {"kind"}, patch
        (operations,) = map(json.loads, _documents(patch["patch"]))
        manifests = [
            jsonpatch.apply_patch(manifest, operations) if manifest["kind"] == patch["target"]["kind"] else manifest
            for manifest in manifests
        ]
    for manifest in manifests:
        manifest["metadata"]["name"] += settings.get("nameSuffix", "")
    for image in settings.get("images", []):
        assert {"name", "newTag"} <= set(image) <= {"name", "newName", "newTag"}, image
        for container in containers(manifests):
            if container["image"] == image["name"]:
                container["image"] = f"{image.get('newName', image['name'])}:{image['newTag']}"
    for replacement in settings.get("replacements", []):
        _copy_spec(replacement, manifests)
    return manifests


def _copy_spec(replacement: Manifest, manifests: list[Manifest]) -> None:
    assert replacement == {
        "source": {"kind": "RayCluster", "fieldPath": "spec"},
        "targets": [{"select": {"kind": "RayJob"}, "fieldPaths": ["spec.rayClusterSpec"], "options": {"create": True}}],
    }
    (cluster,) = [manifest for manifest in manifests if manifest["kind"] == "RayCluster"]
    (job,) = [manifest for manifest in manifests if manifest["kind"] == "RayJob"]
    job["spec"]["rayClusterSpec"] = copy.deepcopy(cluster["spec"])


def containers(value: Any) -> list[dict[str, Any]]:
    """Every container anywhere in `value`."""
    if isinstance(value, list):
        return [found for item in value for found in containers(item)]
    if not isinstance(value, dict):
        return []
    own = [*value.get("containers", []), *value.get("initContainers", [])]
    return own + [found for item in value.values() for found in containers(item)]
