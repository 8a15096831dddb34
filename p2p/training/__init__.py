"""Prepared data set (or a raw folder of pairs) -> a run: checkpoints, metrics, samples, a report."""

from __future__ import annotations

from typing import Any

from p2p.training.config import TrainConfig


def train(config: TrainConfig) -> dict[str, Any]:
    """Train until the run is finished, continuing what lies in `config.output`; returns the summary.

    Raises:
        UsageError: options, data or an earlier run do not fit; found before any work starts.
        TrainingStoppedError: the numbers are no longer finite, or workers died too often; the last checkpoint is
        intact.

    """
    from p2p.training.job import run

    return run(config)


__all__ = ["TrainConfig", "train"]
