"""The doctor's page: what may be wrong with a data set, in pictures, and all checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p2p.reports.page import render
from p2p.reports.thumbnails import Picture, show
from p2p.storage.pixels import Array

_MAX_ROWS = 100


@dataclass(frozen=True, eq=False)
class Figure:
    """One pair to show: its id, what is wrong with it, and its labelled pictures, (H, W, 3) uint8 RGB."""

    name: str
    detail: str
    pictures: Sequence[tuple[str, Array]]

    def shown(self) -> list[Picture]:
        """The pictures for the page."""
        return [show(label, picture) for label, picture in self.pictures]


def write_doctor_report(
    uri: str,
    document: Mapping[str, Any],
    figures: Mapping[str, Sequence[Figure]],
    examples: Sequence[Figure],
) -> str:
    """Publish the page at `uri`, which is returned.

    document: what `doctor.json` holds: `source`, `pairs` (split -> number), `bad`, `checks`, `findings` and `palette`.
    figures: name of a finding -> some of its pairs.
    examples: some pairs of the whole data set.
    """
    findings = document["findings"]
    return render(
        "doctor.html",
        uri,
        document=document,
        total=sum(document["pairs"].values()),
        splits={split: count for split, count in document["pairs"].items() if count},
        findings=findings,
        errors=sum(finding["severity"] == "error" for finding in findings),
        by_name={finding["finding"]: finding for finding in findings},
        figures=figures,
        examples=examples,
        max_rows=_MAX_ROWS,
    )
