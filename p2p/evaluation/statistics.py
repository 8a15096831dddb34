"""How sure the figures of a set are, by the bootstrap over its pairs, and the figures of each class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from p2p.model.pixel_metrics import CONFUSION_METRICS, Palette

_RESAMPLES = 2000
_BLOCK_VALUES = 2**22
_LEVELS = (0.025, 0.975)
Floats = npt.NDArray[np.float64]


def _resamples(count: int) -> Iterator[Floats]:
    """Blocks of (resamples, count): how often each pair is in a resample. The same for every metric."""
    rng = np.random.default_rng(0)
    rows = max(1, _BLOCK_VALUES // count)
    for start in range(0, _RESAMPLES, rows):
        size = min(rows, _RESAMPLES - start)
        yield rng.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)


def bootstrap_intervals(
    sums: Mapping[str, npt.NDArray[Any]], metrics: Mapping[str, tuple[str, Callable[[Floats], Floats]]]
) -> dict[str, list[float]]:
    """Metric name -> interval of 95 % (percentiles over resamples of pairs: Efron, Tibshirani, 1993, chapter 13).

    sums: name -> (n, ...) statistics of each pair that add up over a set.
    metrics: metric name -> the name of its statistics, and what makes (R, ...) sums of them the metric, (R,).

    Example:
        >>> bootstrap_intervals({"l1": np.ones(5)}, {"l1": ("l1", lambda sums: sums / 5)})
        {'l1': [1.0, 1.0]}

    """
    count = len(next(iter(sums.values())))
    flat = {name: np.asarray(values, np.float64).reshape(count, -1) for name, values in sums.items()}
    found: dict[str, list[Floats]] = {name: [] for name in metrics}
    for weights in _resamples(count):
        resampled = {
            name: (weights @ values).reshape(len(weights), *np.shape(sums[name])[1:]) for name, values in flat.items()
        }
        for name, (statistic, metric) in metrics.items():
            found[name].append(metric(resampled[statistic]))
    return {name: np.quantile(np.concatenate(values), _LEVELS).tolist() for name, values in found.items()}


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
    return bootstrap_intervals(sums, metrics) if sums else {}


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
