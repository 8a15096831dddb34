"""The options of `jobs/compare.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from p2p.errors import UsageError
from p2p.storage.filesystems import absolute


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Say how evaluations of the same pairs differ, and how sure that is; with --gate, whether it is good enough.

    Needs neither Ray nor a GPU. The first evaluation is the baseline, unless the gate names one. The addresses of
    several evaluations joined by commas are one side: trainings that differ in their seed.
    """

    evaluations: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="EVALUATION")]
    """The --output of jobs/evaluate.py, one for each side, with its metrics on the same pairs. Paths or URIs."""
    output: str
    """Folder or prefix for report.html, comparison.json, comparison.md, summary.json and the gate's gate.json and
    gate.xml. Path or URI."""
    gate: str | None = None
    """YAML file of what is good enough, as jobs/README.md describes it. Exit status 3 where it is not passed."""

    def __post_init__(self) -> None:
        if not self.evaluations or not all(side for sides in self.sides for side in sides):
            raise UsageError("EVALUATION: name the --output of jobs/evaluate.py; an address must not be empty")
        if len(self.evaluations) == 1 and self.gate is None:
            raise UsageError(
                f"EVALUATION {self.evaluations[0]}: is compared with nothing; name a second evaluation, or a --gate"
            )

    @property
    def sides(self) -> list[list[str]]:
        """The addresses of each side's evaluations."""
        return [[absolute(uri) for uri in side.split(",") if uri or side] for side in self.evaluations]
