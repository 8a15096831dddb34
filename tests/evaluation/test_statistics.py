"""Intervals and tables against independent computations."""

from __future__ import annotations

import numpy as np
import pytest

from p2p.evaluation.statistics import class_table, metric_intervals


def test_an_interval_of_a_palette_metric_is_that_of_the_summed_counts() -> None:
    rng = np.random.default_rng(2)
    counts = rng.integers(0, 50, (60, 3, 3))
    counts[:, 2] = counts[:, :, 2] = 0
    counts[7, 2, 2] = 1  # a class with less than one pixel a pair
    found = metric_intervals({"palette_accuracy": [0.0] * 60, "palette_iou": [0.0] * 60}, counts)
    samples = {"palette_accuracy": [], "palette_iou": []}
    for _ in range(3000):
        total = counts[rng.integers(0, 60, 60)].sum(axis=0)
        hits, union = total.diagonal(), total.sum(axis=0) + total.sum(axis=1) - total.diagonal()
        samples["palette_accuracy"].append(hits.sum() / total.sum())
        samples["palette_iou"].append(np.mean(hits[union > 0] / union[union > 0]))
    for name, values in samples.items():
        assert found[name] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.02), name


def test_each_class_has_its_share_accuracy_and_iou() -> None:
    counts = np.array([[[6, 2, 0], [1, 1, 0], [0, 0, 0]]])
    first, second, absent = class_table([(0, 0, 0), (9, 9, 9), (1, 2, 3)], counts)
    assert first == {"colour": [0, 0, 0], "share": 0.8, "accuracy": 0.75, "iou": pytest.approx(6 / 9)}
    assert second == {"colour": [9, 9, 9], "share": 0.2, "accuracy": 0.5, "iou": pytest.approx(1 / 4)}
    assert absent["share"] == 0 and np.isnan(absent["accuracy"]) and np.isnan(absent["iou"])
