"""How sure the figures of a set are: the bootstrap over its pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]

RESAMPLES = 10_000
_BLOCK_VALUES = 2**22
_LEVELS = (0.025, 0.975)


def _counts(pairs: int) -> Iterator[npt.NDArray[np.float32]]:
    """Blocks of (resamples, pairs): how often each pair is in a resample. The same whatever is measured."""
    rng = np.random.default_rng(0)
    rows = max(1, _BLOCK_VALUES // pairs)
    for start in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - start)
        cells = rng.integers(pairs, size=(size, pairs), dtype=np.int32)
        cells += np.arange(size, dtype=np.int32)[:, None] * np.int32(pairs)
        yield np.bincount(cells.ravel(), minlength=size * pairs).reshape(size, pairs).astype(np.float32)


def _centre(values: npt.NDArray[Any]) -> Floats:
    """What is taken off before float32, which keeps enough digits of what is left. Nothing of counts, so that sums of
    zeros are zero.
    """
    is_count = np.issubdtype(values.dtype, np.integer)
    return np.zeros(values.shape[1:]) if is_count else np.asarray(values.mean(axis=0, dtype=np.float64))


def bootstrap(
    statistics: Mapping[str, npt.NDArray[Any]], figures: Mapping[str, tuple[str, Callable[[Floats], Floats]]]
) -> dict[str, Floats]:
    """Figure name -> its values, (`RESAMPLES`, ...), over sets of pairs that are drawn with replacement (Efron,
    Tibshirani, "An introduction to the bootstrap", 1993).

    The statistics are resampled, all in one product of matrices, so a figure over summed confusion matrices can be
    had as well as a mean. Not for figures that depend on the number of different images, as FID and KID do: an image
    that is drawn twice counts as one.

    Args:
        statistics: name -> (n, ...) statistics of each pair that add up over a set.
        figures: figure name -> the name of its statistics, and what makes (R, ...) figures of (R, ...) sums of them.

    """
    pairs = len(next(iter(statistics.values())))
    centres = {name: _centre(values) for name, values in statistics.items()}
    centred = {
        name: (values - centres[name]).reshape(pairs, -1).astype(np.float32) for name, values in statistics.items()
    }
    found: dict[str, list[Floats]] = {name: [] for name in figures}
    for counts in _counts(pairs):
        sums = {
            name: pairs * centres[name] + (counts @ values).reshape(len(counts), *centres[name].shape)
            for name, values in centred.items()
        }
        for name, (statistic, figure) in figures.items():
            found[name].append(figure(sums[statistic]))
    return {name: np.concatenate(values) for name, values in found.items()}


def interval(values: Floats) -> tuple[float, float]:
    """(R,) values of a figure over resamples -> its interval of 95 %, by percentiles."""
    low, high = np.quantile(values, _LEVELS)
    return float(low), float(high)
