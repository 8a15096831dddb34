"""The manifests of cluster/kuberay, rendered, and how to find things in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from kustomize import render

ROOT = Path(__file__).parent.parent.parent
KUBERAY = ROOT / "cluster" / "kuberay"
COMPONENTS = KUBERAY / "components"
EGRESS = KUBERAY / "shared" / "egress.yaml"
OVERLAYS = [KUBERAY / "overlays" / kind / part for kind in ("cpu", "gpu") for part in ("cluster", "train", "translate")]
KIND = KUBERAY / "overlays" / "kind"
SPOT = ("spot-karpenter", "spot-eks", "spot-gke", "spot-aks")


def combinations(overlay: Path) -> list[tuple[str, ...]]:
    """The components that may be added to an overlay: none, each by itself, and all that go together."""
    if overlay == KIND:
        return [()]
    others = ["s3-secret", "pull-secret", "shared-volume", "logs"]
    others += ["gpu-types"] * (overlay.parent.name == "gpu") + ["redis"] * (overlay.name == "cluster")
    kueue = ("kueue",) if overlay.name == "train" else ("fixed-size", "kueue")
    return [
        (),
        *((name,) for name in (*SPOT, *others)),
        kueue,
        *((name, *others) for name in SPOT),
        (*others, *kueue, SPOT[0]),
    ]


RENDERINGS = [(overlay, names) for overlay in (*OVERLAYS, KIND) for names in combinations(overlay)]
RICHEST = [(overlay, combinations(overlay)[-1]) for overlay in OVERLAYS]


def rendering_id(value: Any) -> str:
    return name_of(value) if isinstance(value, Path) else "+".join(value) or "plain"


def rendered(overlay: Path, names: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    return render(overlay, [COMPONENTS / name for name in names])


def name_of(path: Path) -> str:
    return "-".join(path.parts[-2:])


def main(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    """The RayJob or RayCluster among manifests."""
    (manifest,) = [manifest for manifest in manifests if manifest["kind"] in ("RayCluster", "RayJob")]
    return manifest


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]
    return spec if manifest["kind"] == "RayCluster" else spec["rayClusterSpec"]


def workers_of(manifest: dict[str, Any]) -> dict[str, Any]:
    (group,) = cluster_of(manifest)["workerGroupSpecs"]
    return group


def container_of(group: dict[str, Any]) -> dict[str, Any]:
    """Ray's, which is the first; the component `logs` adds another."""
    container: dict[str, Any] = group["template"]["spec"]["containers"][0]
    return container


def in_gib(quantity: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(Gi|Mi)", quantity).groups()  # type: ignore[union-attr]
    return float(number) / (1024 if unit == "Mi" else 1)


def in_cpus(quantity: str) -> float:
    return float(quantity.removesuffix("m")) / 1000 if quantity.endswith("m") else float(quantity)
