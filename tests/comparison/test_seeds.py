"""Simulated studies of several trainings a side: the interval also holds what another seed would have changed."""

from __future__ import annotations

import numpy as np
import pytest

from p2p.comparison.differences import draw_seeds
from p2p.model.bootstrap import bootstrap

TRIALS, PAIRS, GAIN = 150, 100, 0.02


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_hold_the_truth_where_trainings_differ(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    difficulty = rng.normal(0, 0.1, (PAIRS, 1, TRIALS))
    training = rng.normal(0, 0.02, (1, 2 * seeds, TRIALS))
    values = difficulty + training + rng.normal(0, 0.03, (PAIRS, 2 * seeds, TRIALS))
    values[:, seeds:] += GAIN
    resampled = bootstrap({"l1": values}, {"l1": ("l1", lambda sums: sums / PAIRS)})["l1"]
    before, after = draw_seeds([seeds, seeds])
    ends = np.einsum("rst,rs->rt", resampled[:, :seeds], before), np.einsum("rst,rs->rt", resampled[:, seeds:], after)
    low, high = np.quantile(ends[1] - ends[0], (0.025, 0.975), axis=0)
    assert 0.91 <= np.mean((low <= GAIN) & (high >= GAIN)) <= 0.99
    # One resampling of the pairs alone, as if each mean were of the only trainings there could be, does not.
    alone = resampled[:, seeds:].mean(axis=1) - resampled[:, :seeds].mean(axis=1)
    low, high = np.quantile(alone, (0.025, 0.975), axis=0)
    assert np.mean((low <= GAIN) & (high >= GAIN)) < 0.7
