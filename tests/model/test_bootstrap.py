"""Simulated studies: whether the intervals hold the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from p2p.model.bootstrap import RESAMPLES, bootstrap, interval

TRIALS, PAIRS = 400, 300


def test_intervals_of_paired_differences_hold_the_truth_as_often_as_they_say() -> None:
    # Two generators on the same pairs: what is hard for one is hard for the other, and the gain is skewed.
    rng = np.random.default_rng(3)
    difficulty = rng.gamma(2.0, 0.1, (PAIRS, TRIALS))
    one = difficulty + rng.normal(0, 0.05, (PAIRS, TRIALS))
    gain = 0.02
    other = difficulty + rng.normal(0, 0.05, (PAIRS, TRIALS)) - rng.exponential(gain, (PAIRS, TRIALS))
    values = bootstrap({"l1": other - one}, {"difference": ("l1", _mean)})["difference"]
    assert values.shape == (RESAMPLES, TRIALS)
    ends = np.array([interval(column) for column in values.T])
    held = np.mean((ends[:, 0] <= -gain) & (-gain <= ends[:, 1]))
    assert 0.93 <= held <= 0.97
    # That is what pairing is for: the pairs' difficulty, which both share, does not widen them.
    alone = bootstrap({"l1": one[:, :1]}, {"l1": ("l1", _mean)})["l1"]
    assert np.diff(interval(alone[:, 0])) > 1.5 * np.mean(ends[:, 1] - ends[:, 0])


def test_a_figure_of_the_whole_set_is_made_of_resampled_statistics() -> None:
    # A ratio of sums, as intersection over union is; each pair's own ratio would weigh small ones too much.
    rng = np.random.default_rng(7)
    trials = 400
    total = rng.integers(10, 1000, (PAIRS, trials)).astype(np.float64)
    hits = total * rng.beta(5, 5, (PAIRS, trials))
    values = bootstrap({"counts": np.stack([hits, total], axis=2)}, {"share": ("counts", _share)})["share"]
    ends = np.quantile(values, (0.025, 0.975), axis=0)
    assert 0.93 <= np.mean((ends[0] <= 0.5) & (ends[1] >= 0.5)) <= 0.97


def _share(sums: np.ndarray) -> np.ndarray:
    return sums[:, :, 0] / sums[:, :, 1]


def _mean(sums: np.ndarray) -> np.ndarray:
    return sums / PAIRS


def test_a_class_that_no_resampled_pair_has_stays_without_a_pixel() -> None:
    counts = np.zeros((PAIRS, 2), np.int64)
    counts[:, 0], counts[0, 1] = 65536, 3
    sums = bootstrap({"counts": counts}, {"sums": ("counts", lambda sums: sums)})["sums"]
    assert set(np.unique(sums[:, 1])) <= {3.0 * times for times in range(10)}
    assert 0.3 < np.mean(sums[:, 1] == 0) < 0.45  # (1 - 1/n)^n


def test_equal_pairs_leave_no_doubt_and_a_missing_value_no_interval() -> None:
    values = bootstrap({"a": np.ones(7), "b": np.array([1.0, np.nan])[[0, 1, 0, 0, 0, 0, 0]]}, _sums("a", "b"))
    assert interval(values["a"]) == (7.0, 7.0)
    assert np.isnan(interval(values["b"])).all()


def test_the_same_resamples_whatever_else_is_measured() -> None:
    pairs = np.random.default_rng(0).normal(size=(5000, 1))  # of more than one block
    alone = bootstrap({"a": pairs}, _sums("a"))["a"]
    beside = bootstrap({"b": pairs[::-1], "a": pairs}, _sums("b", "a"))["a"]
    assert (alone == beside).all()
    assert alone.std() == pytest.approx(pairs.std() * 5000**0.5, rel=0.05)


def _sums(*names: str) -> dict:
    return {name: (name, lambda sums: sums) for name in names}
