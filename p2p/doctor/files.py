"""What is wrong with files that became no pair at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2p.doctor.finding import Check, Finding

_ALONE, _MISFIT = "Unmatched", "MismatchedSizes"


@dataclass(frozen=True)
class BadRow:
    """A row of `errors/`."""

    source_uri: str
    error: str
    message: str


def check_files(bad: Sequence[BadRow], pairs: int) -> list[Check]:
    """Sort the inputs that were refused: no partner, sides that do not fit each other, and the rest."""
    alone = [row for row in bad if row.error == _ALONE]
    misfit = [row for row in bad if row.error == _MISFIT]
    rest = [row for row in bad if row.error not in (_ALONE, _MISFIT)]
    return [
        _check(
            "missing partners",
            pairs,
            alone,
            name="missing_partners",
            title="Files without a partner of the same name on the other side",
            advice="Add the partner, or rename it: names are compared by relative path without extension.",
        ),
        _check(
            "sides that fit",
            pairs,
            misfit,
            name="mismatched_sizes",
            title="Pairs whose sides differ in size",
            advice="Crop or scale one side so that both show the same place; --load-size scales sides of one shape.",
        ),
        _check(
            "readable files",
            pairs,
            rest,
            name="unusable_files",
            title="Files that cannot be used",
            advice="Mend or remove them; the message says what is wrong with each.",
        ),
    ]


def _check(what: str, pairs: int, rows: Sequence[BadRow], *, name: str, title: str, advice: str) -> Check:
    files = sorted((row.source_uri, row.message) for row in rows)
    findings = [Finding(name, "fault", title, advice, files=files)] if files else []
    return Check(what, pairs + len(rows), findings)
