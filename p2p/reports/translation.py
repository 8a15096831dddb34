"""The report of a translation: how much, how fast, what it looks like, and what failed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from p2p.reports.page import data_uri, render
from p2p.reports.thumbnails import thumbnail
from p2p.storage.filesystems import join
from p2p.storage.pixels import Array

_MAX_EXAMPLES = 12
_MAX_FAILURES = 50

_STAGES = {
    "fetch": "reading inputs from storage",
    "decode": "bytes to pixels, cut into tiles",
    "network": "the generator itself",
    "encode": "tiles joined, pixels to bytes",
    "publish": "writing outputs and the ledger",
    "wait": "idle until inputs arrived",
    "assemble": "putting the sections of a scene together, and its ledger",
}
"""What a translation spends time on, in the order of its flow."""


@dataclass(frozen=True, eq=False)
class Example:
    """One translated image: (H, W, 3) uint8 RGB each. Thumbnails will do, the page shows no more."""

    image_id: str
    input: Array
    output: Array


class _Stage(NamedTuple):
    name: str
    meaning: str
    share: float
    style: str


def write_translation_report(
    output_uri: str,
    summary: Mapping[str, Any],
    examples: Sequence[Example],
    failures: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Publish `report.html` below `output_uri`; returns its address.

    summary: what goes into `summary.json`; `stage_share` (stage -> share of the time, 0..1) may be missing.
    failures: `image_id`, `error` (a stable name) and `message` of each; may be the first of more than are given.
    settings: what decided the outputs, by option.
    """
    failed = int(summary.get("failed") or 0)
    kinds = Counter(str(failure.get("error") or "unknown") for failure in failures).most_common()
    return render(
        "translation.html",
        join(output_uri, "report.html"),
        summary=summary,
        # A rate over no images is no rate.
        rates=[summary.get(name) if summary.get("translated") else None for name in _RATES],
        stages=_stages(summary.get("stage_share") or {}),
        pictures=[
            (example.image_id, data_uri(thumbnail(example.input)), data_uri(thumbnail(example.output)))
            for example in examples[:_MAX_EXAMPLES]
        ],
        failed=failed,
        counted=len(failures),
        kinds=kinds,
        failures=_spread(failures, [kind for kind, _ in kinds]),
        settings={name: value for name, value in (settings or {}).items() if name != "checkpoint_id"},
    )


_RATES = ("images_per_second", "megapixels_per_second")


def _stages(shares: Mapping[str, Any]) -> list[_Stage]:
    known = {name: float(share) for name, share in shares.items() if share is not None and math.isfinite(share)}
    order = [name for name in _STAGES if name in known] + sorted(known.keys() - _STAGES.keys())
    styles = {name: f"stage{index}" for index, name in enumerate(_STAGES)}
    total = sum(known.values())
    if total <= 0:
        return []
    return [_Stage(name, _STAGES.get(name, ""), known[name] / total, styles.get(name, "stage5")) for name in order]


def _spread(failures: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> list[dict[str, str]]:
    """At most `_MAX_FAILURES` rows, some of every kind however rare, sorted by kind, the common ones first."""
    queues: dict[str, list[dict[str, str]]] = {kind: [] for kind in kinds}
    for failure in failures:
        kind = str(failure.get("error") or "unknown")
        row = {"kind": kind, "image_id": str(failure.get("image_id")), "message": str(failure.get("message") or "")}
        queues[kind].append(row)
    quota, left = dict.fromkeys(kinds, 0), min(_MAX_FAILURES, len(failures))
    while left:
        for kind in kinds:
            if left and quota[kind] < len(queues[kind]):
                quota[kind] += 1
                left -= 1
    return [row for kind in kinds for row in queues[kind][: quota[kind]]]
