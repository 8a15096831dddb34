"""What the doctor says: a finding names pairs, and each check tells how many pairs it looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["fault", "look"]
MOST_NAMED = 1000
"""Pairs of one finding that `doctor.json` names; it counts all."""


@dataclass(frozen=True)
class Named:
    """One pair of a finding, by its row: what is the matter with it, and the rows it belongs together with."""

    row: int
    detail: str
    others: tuple[int, ...] = ()


@dataclass(frozen=True)
class Finding:
    """One kind of fault: `fault` spoils what is trained or measured, `look` may be meant that way."""

    name: str
    severity: Severity
    title: str
    advice: str
    pairs: Sequence[Named] = ()
    files: Sequence[tuple[str, str]] = ()
    """Files that became no pair: (address, what is wrong)."""
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many pairs, or files, it is about."""
        return len(self.pairs) + len(self.files)


@dataclass(frozen=True)
class Check:
    """One examination: what it looked for, in how many pairs, what it measured, and what it found."""

    name: str
    examined: int
    findings: Sequence[Finding] = ()
    note: str = ""
    unclear: bool = False
    """Whether this data set gives no way to tell."""
    numbers: dict[str, Any] = field(default_factory=dict)
