"""Metrics of a set of outputs against a set of targets, of the features that a network finds in each: FID, KID and IS.

Everything is float64. Features are (N, D) arrays, outputs and targets of the same N pairs in one order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]
MIN_PAIRS = 2
FID_MIN_TRUSTED = 2048
"""Fewer images than features has each: FID is then far above that of many."""
_ROWS = 2048  # at a time in float64, so that memory does not grow with the number of features
_SPLITS, _SHUFFLE_SEED = 10, 2020
"""Of the Inception score, as torch-fidelity has them."""
_TINY = np.finfo(np.float64).tiny


def fid(outputs: Features, targets: Features) -> float:
    """Fréchet distance of normal distributions with the means and covariances of two sets of features.

    Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash equilibrium", NeurIPS 2017:
    |m - m'|² + tr(C + C' - 2 (C C')^1/2). With C = XᵀX / (N - 1) of centred features X, the trace of the root is the
    sum of the singular values of X X'ᵀ / (N - 1), so no root of a matrix is taken, and nothing is imaginary.

    Example:
        >>> features = np.random.default_rng(0).normal(size=(50, 8))
        >>> 0 <= fid(features, features) < 1e-9, round(fid(features, features + 1), 6)
        (True, 8.0)

    """
    means, factors, traces = zip(*(_moments(features) for features in (outputs, targets)), strict=True)
    root = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum() / (len(outputs) - 1)
    # Of equal sets rounding may leave less than nothing; NaN stays NaN.
    return float(np.maximum(np.square(means[0] - means[1]).sum() + sum(traces) - 2 * root, 0.0))


def _moments(features: Features) -> tuple[Doubles, Doubles, float]:
    """Mean, a matrix whose product with itself is that of the centred features, and the trace of their covariance."""
    mean = features.mean(axis=0, dtype=np.float64)
    factor, squares = np.empty((0, len(mean))), 0.0
    for rows in _blocks(len(features)):
        centred = features[rows] - mean
        squares += float(np.square(centred).sum())
        factor = np.concatenate([factor, centred])
        if len(factor) > len(mean):  # a triangle has the same products, and is smaller
            factor = np.asarray(np.linalg.qr(factor, mode="r"), np.float64)
    return mean, factor, squares / (len(features) - 1)


def kid(outputs: Features, targets: Features) -> tuple[float, float]:
    """Squared maximum mean discrepancy with the kernel (x·y / D + 1)³, unbiased, and its standard error.

    Bińkowski et al., "Demystifying MMD GANs", ICLR 2018, over all pairs of images instead of random subsets. The error
    is the jackknife's over pairs of output and target (NaN for two of them).
    """
    count = len(outputs)
    within_x, within_y = _sums_within(outputs), _sums_within(targets)
    from_x, from_y, own = _sums_across(outputs, targets)
    same, cross = within_x.sum() + within_y.sum(), from_x.sum()
    value = same / (count * (count - 1)) - 2 * cross / count**2
    if count <= MIN_PAIRS:
        return float(value), math.nan
    fewer = count - 1
    left_out = (same - 2 * (within_x + within_y)) / (fewer * (fewer - 1))
    left_out -= 2 * (cross - from_x - from_y + own) / fewer**2
    return float(value), float(np.sqrt(fewer / count * np.square(left_out - left_out.mean()).sum()))


def _sums_within(x: Features) -> Doubles:
    """For each row, the sum of its kernel with every other row."""
    sums = np.zeros(len(x))
    for rows in _blocks(len(x)):
        for columns in _blocks(rows.stop):  # the rest is a mirror image
            kernel = _kernel(x[rows], x[columns])
            if columns == rows:
                np.fill_diagonal(kernel, 0.0)
            else:
                sums[columns] += kernel.sum(axis=0)
            sums[rows] += kernel.sum(axis=1)
    return sums


def _sums_across(x: Features, y: Features) -> tuple[Doubles, Doubles, Doubles]:
    """Sums of the kernels of each row of x with all of y and of each of y with all of x; that of each pair."""
    from_x, from_y, own = (np.zeros(len(x)) for _ in range(3))
    for rows in _blocks(len(x)):
        for columns in _blocks(len(y)):
            kernel = _kernel(x[rows], y[columns])
            from_x[rows] += kernel.sum(axis=1)
            from_y[columns] += kernel.sum(axis=0)
            if columns == rows:
                own[rows] = kernel.diagonal()
    return from_x, from_y, own


def _kernel(x: Features, y: Features) -> Doubles:
    kernel: Doubles = np.asarray(x, np.float64) @ np.asarray(y, np.float64).T
    kernel /= x.shape[1]
    kernel += 1.0
    kernel *= kernel * kernel
    return kernel


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _ROWS, count)) for start in range(0, count, _ROWS))


def inception_score(logits: Features) -> tuple[float, float]:
    """Exp of the mean divergence of each output's classes from those of all, and its deviation over 10 splits.

    Salimans et al., "Improved techniques for training GANs", NeurIPS 2016; shuffled as torch-fidelity does.

    logits: (N, classes), without the last layer's bias.
    """
    shuffled = np.asarray(logits, np.float64)[np.random.RandomState(_SHUFFLE_SEED).permutation(len(logits))]
    shuffled -= shuffled.max(axis=1, keepdims=True)
    log_p = shuffled - np.log(np.exp(shuffled).sum(axis=1, keepdims=True))
    scores = []
    for split in np.array_split(log_p, np.arange(1, _SPLITS) * len(log_p) // _SPLITS):
        if len(split):
            p = np.exp(split)
            scores.append(math.exp(float((p * (split - np.log(p.mean(axis=0).clip(min=_TINY)))).sum(axis=1).mean())))
    return float(np.mean(scores)), float(np.std(scores))
