"""What is wrong with files that became no pair at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2p.doctor.findings import Check, Finding


@dataclass(frozen=True)
class BadRow:
    """A row of `errors/`."""

    source_uri: str
    error: str
    message: str


_CHECKS = {
    "Unmatched": (
        "missing partners",
        "missing_partners",
        "Files without a partner of the same name on the other side",
        "Add the partner, or rename it: names are compared by relative path without extension.",
    ),
    "MismatchedSizes": (
        "sides that fit",
        "mismatched_sizes",
        "Pairs whose sides differ in size",
        "Crop or scale one side so that both show the same place; --load-size scales sides of one shape.",
    ),
    "": (
        "readable files",
        "unusable_files",
        "Files that cannot be used",
        "Repair or remove them; the message says what is wrong with each.",
    ),
}
"""By the kind of error: the check, and the name, title and advice of its finding. The last takes all other kinds."""


def check_files(bad: Sequence[BadRow], pairs: int) -> list[Check]:
    """Sort the inputs that were refused: no partner, sides that do not fit each other, and the rest."""
    checks = []
    for kind, (check, name, title, advice) in _CHECKS.items():
        rows = [row for row in bad if (row.error if row.error in _CHECKS else "") == kind]
        files = sorted((row.source_uri, row.message) for row in rows)
        checks.append(Check(check, pairs + len(rows), [Finding(name, "error", title, advice, files=files)]))
    return checks
