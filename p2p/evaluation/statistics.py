"""How sure the figures of a set are, by the bootstrap over its pairs, and the figures of each class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from p2p.model.bootstrap import Floats, bootstrap, interval
from p2p.model.pixel_metrics import CONFUSION_METRICS, Palette


def metric_intervals(
    per_image: Mapping[str, Sequence[float]], confusion: npt.NDArray[np.int64] | None
) -> dict[str, list[float]]:
    """Interval of each metric of one number per pair, and of those over `confusion`, (n, K, K) pixel counts."""
    count = len(next(iter(per_image.values()), ()))

    def over_pairs(total: Floats) -> Floats:
        return total / count

    def over_confusions(name: str) -> Callable[[Floats], Floats]:
        return lambda counts: CONFUSION_METRICS[name](torch.from_numpy(counts)).numpy()

    sums: dict[str, npt.NDArray[Any]] = {}
    metrics: dict[str, tuple[str, Callable[[Floats], Floats]]] = {}
    for name, values in per_image.items():
        if name in CONFUSION_METRICS and confusion is not None:
            sums["confusion"], metrics[name] = confusion, ("confusion", over_confusions(name))
        else:
            sums[name], metrics[name] = np.array(values), (name, over_pairs)
    resampled = bootstrap(sums, metrics) if sums else {}
    return {name: list(interval(values)) for name, values in resampled.items()}


def class_table(palette: Palette, confusion: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    """How well each palette colour is met: its `share` of the targets' pixels, the share of these that have it in the
    outputs (`accuracy`) and `iou`; NaN where the targets, or both, have none of it.

    confusion: (n, K, K), as `metrics.confusion` counts.
    """
    counts = confusion.sum(axis=0).astype(np.float64)
    hits, wanted, made = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    with np.errstate(invalid="ignore"):
        accuracy, iou = hits / wanted, hits / (wanted + made - hits)
    return [
        {"colour": list(colour), "share": share, "accuracy": right, "iou": overlap}
        for colour, share, right, overlap in zip(palette, wanted / counts.sum(), accuracy, iou, strict=True)
    ]
