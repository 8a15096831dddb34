"""What the doctor reports: checks of all pairs, and their findings, which name pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning"]
MAX_NAMED = 1000
"""Pairs of one finding that `doctor.json` names; it counts all."""


@dataclass(frozen=True)
class NamedPair:
    """One pair of a finding, by its row: what is wrong with it, and the rows of the pairs that it resembles."""

    row: int
    detail: str
    others: tuple[int, ...] = ()


@dataclass(frozen=True)
class Finding:
    """One kind of problem: an `error` spoils what is trained or measured, a `warning` may be meant that way."""

    name: str
    severity: Severity
    title: str
    advice: str
    pairs: Sequence[NamedPair] = ()
    files: Sequence[tuple[str, str]] = ()
    """Files that became no pair: (address, what is wrong)."""
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many pairs, or files, it is about."""
        return len(self.pairs) + len(self.files)


@dataclass
class Check:
    """What was looked for, in how many pairs, what was measured, and the findings that name a pair or file."""

    name: str
    examined: int
    findings: Sequence[Finding] = ()
    note: str = ""
    unclear: bool = False
    """Whether this data set gives no way to decide."""
    numbers: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Leave out findings of nothing."""
        self.findings = [finding for finding in self.findings if finding.count]
