"""The doctor's page: what may be wrong with a data set, in pictures, and what was looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from p2p.reports.page import data_uri, render
from p2p.reports.thumbnails import thumbnail
from p2p.storage.images import Array

_MOST_ROWS = 100


@dataclass(frozen=True, eq=False)
class Exhibit:
    """One pair to look at: its id, what is the matter with it, and its labelled pictures, (H, W, 3) uint8 RGB."""

    name: str
    detail: str
    pictures: Sequence[tuple[str, Array]]


@dataclass(frozen=True)
class _Card:
    name: str
    detail: str
    pictures: list[tuple[str, Markup, bool]]
    """Label, address, and whether it is so small that its pixels should show."""


def write_doctor_report(
    uri: str,
    document: Mapping[str, Any],
    exhibits: Mapping[str, Sequence[Exhibit]],
    examples: Sequence[Exhibit],
) -> str:
    """Publish the page at `uri`, which is returned.

    document: what `doctor.json` holds: `source`, `pairs` (split -> number), `bad`, `checks` and `findings`.
    exhibits: name of a finding -> some of its pairs.
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
        faults=sum(finding["severity"] == "fault" for finding in findings),
        titles={finding["finding"]: finding for finding in findings},
        unclear=sum(check["result"] == "unclear" for check in document["checks"]),
        cards={name: [_card(exhibit) for exhibit in group] for name, group in exhibits.items()},
        examples=[_card(exhibit) for exhibit in examples],
        most_rows=_MOST_ROWS,
    )


def _card(exhibit: Exhibit) -> _Card:
    pictures = [(label, data_uri(thumbnail(picture)), max(picture.shape) < 128) for label, picture in exhibit.pictures]
    return _Card(exhibit.name, exhibit.detail, pictures)
