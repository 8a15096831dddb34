"""FID, KID and IS against independent computations, and torch-fidelity's where it is installed."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from p2p.model.set_metrics import fid, inception_score, kid

RNG = np.random.default_rng(0)


def features(count: int, size: int, shift: float) -> np.ndarray:
    return np.random.default_rng([count, size]).gamma(2.0, 0.3, (count, size)) + shift


@pytest.mark.parametrize("count, size", [(30, 64), (200, 16)])
def test_fid_is_the_distance_with_the_root_of_the_covariances(
    monkeypatch: pytest.MonkeyPatch, count: int, size: int
) -> None:
    monkeypatch.setattr("p2p.model.set_metrics._ROWS", 24)
    x, y = features(count, size, 0.0), np.random.default_rng(1).normal(size=(count, size))
    covariances = [np.cov(values, rowvar=False) for values in (x, y)]
    roots = np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(min=0)
    wanted = np.square(x.mean(0) - y.mean(0)).sum() + sum(map(np.trace, covariances)) - 2 * np.sqrt(roots).sum()
    assert fid(x, y) == pytest.approx(wanted, rel=1e-6)


def test_fid_of_a_set_and_itself_is_nothing() -> None:
    x = features(40, 64, 0.0).astype(np.float32)
    assert all(0 <= fid(same, same) < 1e-10 for same in (x, 10 * x, x[::2]))


def slow_kid(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    n = len(x)
    within = sum(kernel(one, one).sum() - np.trace(kernel(one, one)) for one in (x, y)) / (n * (n - 1))
    return float(within - 2 * kernel(x, y).mean())


def test_kid_and_its_jackknife_follow_their_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2p.model.set_metrics._ROWS", 7)
    x, y = features(25, 12, 0.0), features(25, 12, 0.1) * 1.2
    value, error = kid(x, y)
    assert value == pytest.approx(slow_kid(x, y), rel=1e-10)
    left_out = np.array([slow_kid(np.delete(x, i, 0), np.delete(y, i, 0)) for i in range(25)])
    assert error == pytest.approx(np.sqrt(24 / 25 * np.square(left_out - left_out.mean()).sum()), rel=1e-8)
    assert np.isnan(kid(x[:2], y[:2])[1])


@pytest.mark.parametrize("distance", [fid, kid])
def test_memory_does_not_grow_with_the_number_of_pairs(monkeypatch: pytest.MonkeyPatch, distance: Any) -> None:
    monkeypatch.setattr("p2p.model.set_metrics._ROWS", 128)
    peaks = []
    for count in (500, 2000):
        x, y = (np.random.default_rng(seed).random((count, 64), np.float32) for seed in (0, 1))
        tracemalloc.start()
        distance(x, y)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 1500 * 64 * 4  # less than one copy of what was added to one side


def test_the_inception_score_counts_classes() -> None:
    """Every image of a class of its own, and sure: as many as a split has."""
    logits = np.full((40, 40), -1000.0)
    np.fill_diagonal(logits, 0.0)
    assert inception_score(logits) == pytest.approx((4.0, 0.0))


def test_they_equal_those_of_torch_fidelity() -> None:
    pytest.importorskip("torch_fidelity")
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kernel_mmd

    x, y = features(60, 48, 0.0), features(60, 48, 0.1) * 1.1
    statistics = [fid_features_to_statistics(torch.from_numpy(one)) for one in (x, y)]
    (theirs,) = fid_statistics_to_metric(*statistics, False).values()
    assert fid(x, y) == pytest.approx(theirs, rel=1e-6)
    options = {"kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1}
    assert kid(x, y)[0] == pytest.approx(kernel_mmd(x, y, kid_kernel="poly", **options), rel=1e-9)
    logits = np.random.default_rng(3).normal(size=(53, 20)).astype(np.float32)
    assert inception_score(logits) == pytest.approx(tuple(isc_features_to_metric(torch.from_numpy(logits)).values()))
