"""Which checkpoint is the best, and whether training has improved lately, by a metric of validation."""

from __future__ import annotations

from collections.abc import Sequence

from p2p.model.metrics import find_metric
from p2p.training.run_folder import MetricsRow


def is_best(row: MetricsRow, best: MetricsRow | None, metric: str) -> bool:
    """Whether a checkpoint with `row`'s metrics is better than the `best` so far; without validation, the newest is."""
    if metric not in row:
        return True
    return find_metric(metric, "best_metric").improves(row[metric], best.get(metric) if best else None)


def epochs_without_improvement(rows: Sequence[MetricsRow], metric: str) -> int:
    """Epochs since the best value of `metric`, among those in which it was measured."""
    measured = [row for row in rows if metric in row]
    best, since = None, 0
    for row in measured:
        best, since = (row, 0) if is_best(row, best, metric) else (best, since + 1)
    return since


def is_out_of_patience(rows: Sequence[MetricsRow], patience: int, metric: str) -> bool:
    """Whether `patience` epochs (0: no limit) have passed without a better `metric`."""
    return bool(patience) and epochs_without_improvement(rows, metric) >= patience
