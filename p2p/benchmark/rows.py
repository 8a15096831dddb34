"""Lines of a benchmark's table, and how their figures are compared."""

from __future__ import annotations

import itertools
import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from p2p.model.config import Precision

log = logging.getLogger("p2p")
Row = dict[str, Any]
Result = TypeVar("Result")


def row(what: str, value: float, unit: str, against: Row | None = None, ratio: float | None = None) -> Row:
    """A line of the table; `against` is the row that it is compared with, `ratio` how, where not as it stands there."""
    log.info("%s: %.4g %s", what, value, unit)
    line = {"what": what, "value": value, "unit": unit}
    if against is None:
        return line
    return {**line, "ratio": value / against["value"] if ratio is None else ratio, "against": against["what"]}


def print_rows(rows: Sequence[Row]) -> None:
    """Print the table to stderr."""
    table = Table("what", "value", "unit", "ratio", "of")
    for line in rows:
        ratio = f"{line['ratio']:.2f}" if "ratio" in line else ""
        table.add_row(line["what"], f"{line['value']:.4g}", line["unit"], ratio, line.get("against", ""))
    Console(stderr=True, width=140).print(table)


@dataclass(frozen=True)
class Setting:
    """Where, on what and for how long everything is measured."""

    device: str
    precision: Precision
    seconds: float
    """Of a measurement; a job measured gets as much work."""
    batch: int
    """Pairs of an update."""
    rounds: int
    images: Path
    """A folder of them."""
    folder: Path
    """For what is made meanwhile."""

    @property
    def textbook(self) -> str:
        """What the networks are compared with; on a GPU torch rounds its convolutions."""
        return "textbook TF32" if self.device == "cuda" else "textbook float32"


def alternate(limit: Callable[[], float], job: Callable[[], Result], rounds: int) -> tuple[list[float], list[Result]]:
    """Measure `limit`, then a few times `job` and `limit` again: no machine is as quick now as a minute ago."""
    limits, jobs = [limit()], []
    for _ in range(rounds):
        jobs.append(job())
        limits.append(limit())
    log.info("the limit, before, between and after the jobs: %s", ", ".join(f"{value:.4g}" for value in limits))
    return limits, jobs


def median_ratio(jobs: Sequence[float], limits: Sequence[float]) -> float:
    """Median of the rounds' ratios: each job against the mean of what was measured just before and just after it."""
    return statistics.median(
        2 * job / sum(around) for job, around in zip(jobs, itertools.pairwise(limits), strict=True)
    )
