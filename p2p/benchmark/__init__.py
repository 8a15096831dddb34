"""How close to the limit: the jobs against the bare network, side by side in one run."""

from __future__ import annotations

from typing import Any

from p2p.benchmark.config import BenchmarkConfig


def benchmark(config: BenchmarkConfig) -> dict[str, Any]:
    """Measure, print a table to stderr, write `benchmark.json`; returns the summary."""
    from p2p.benchmark.job import run

    return run(config)


__all__ = ["BenchmarkConfig", "benchmark"]
