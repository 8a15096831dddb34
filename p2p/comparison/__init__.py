"""Two evaluations or more in; what differs, how surely, and whether that is good enough out."""

from __future__ import annotations

from typing import Any

from p2p.comparison.config import CompareConfig


def compare(config: CompareConfig) -> dict[str, Any]:
    """Run the job; returns the summary.

    Raises UsageError for evaluations that cannot be compared, NotGoodEnoughError where a gate is not passed.
    """
    from p2p.comparison.job import run

    return run(config)


__all__ = ["CompareConfig", "compare"]
