"""Checkpoint and prepared pairs in, metrics and a report out."""

from __future__ import annotations

from typing import Any

from p2p.evaluation.config import EvaluateConfig


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Run the job; returns the summary. Raises UsageError before any work starts, StorageError while it runs."""
    from p2p.evaluation.job import run

    return run(config)


__all__ = ["EvaluateConfig", "evaluate"]
