"""The report of a comparison: what differs, how surely, whether that is good enough, and how it looks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from p2p.model.metrics import METRICS
from p2p.reports.figures import format_difference, format_interval, format_value, is_number
from p2p.reports.page import render
from p2p.reports.thumbnails import Picture, show
from p2p.storage.filesystems import join
from p2p.storage.pixels import Array

_QUALITY = 88
_MARGIN = 1.15  # of a plot, beside the longest interval
_ARROWS = {"higher": "↑", "lower": "↓", "close to 1": "→ 1"}


@dataclass(frozen=True, eq=False)
class ComparedPair:
    """One pair as each side's generator made it."""

    pair_id: str
    pictures: Sequence[tuple[str, Array]]
    """Label -> (H, W, 3) uint8 RGB: the input, an output of each side, the target."""
    values: Mapping[str, Sequence[float]]
    """Metric -> the value of each side."""
    gains: Mapping[str, float]
    """Metric -> how much better the last side is than the first."""


class _DifferenceRow(NamedTuple):
    name: str
    arrow: str
    meaning: str
    baseline: str
    value: str
    difference: str
    interval: str
    verdict: str
    plot: tuple[float, float, float] | None
    """Low end, figure and high end, 0..100, where 50 is no difference and above it is better."""
    improved: float | None
    worsened: float | None
    note: str


class _ComparedCard(NamedTuple):
    pair_id: str
    pictures: list[Picture]
    values: list[tuple[str, str]]
    gains: str


def write_comparison_report(
    output_uri: str, document: Mapping[str, Any], gate: Mapping[str, Any] | None, examples: Sequence[ComparedPair]
) -> str:
    """Publish `report.html` below `output_uri`; returns its address.

    document: what comparison.json holds.
    gate: what gate.json holds, if there is a gate.
    examples: pairs to look at.
    """
    names = [side["name"] for side in document["sides"]]
    tables = {name: [_difference_row(one) for one in rows if not one["class"]] for name, rows in _sides(document)}
    shown = [name for name in METRICS if examples and name in examples[0].values]
    return render(
        "comparison.html",
        join(output_uri, "report.html"),
        document=document,
        names=names,
        compares=len(names) > 1,
        gate=gate,
        tables=tables,
        verdicts={name: _verdicts(rows) for name, rows in tables.items()},
        classes={name: _class_rows(document, rows) for name, rows in _sides(document)},
        examples=[_card(one) for one in sorted(examples, key=lambda one: -one.gains[shown[0]])] if shown else [],
        metrics=shown,
    )


def _sides(document: Mapping[str, Any]) -> list[tuple[str, Sequence[Mapping[str, Any]]]]:
    return list(document["differences"].items())


def _difference_row(one: Mapping[str, Any]) -> _DifferenceRow:
    metric, difference, interval = one["metric"], one["difference"], one["interval"]
    notes = ["± a jackknife's error"] if one["interval_by"] == "jackknife" else []
    if difference is not None and interval is None:
        notes.append("no interval: too rare" if one["class"] else "no interval: a figure of the set as a whole")
    spread = [format_value(metric, value) for value in one["seeds"] if value is not None]
    if spread:
        notes.append(f"standard deviation over seeds {', '.join(spread)}")
    return _DifferenceRow(
        name=metric,
        arrow=_ARROWS[one["better"]],
        meaning=METRICS[metric].meaning if metric in METRICS else "",
        baseline=format_value(metric, one["baseline"]),
        value=format_value(metric, one["value"]),
        difference=format_difference(metric, difference, interval),
        interval=format_interval(metric, interval),
        verdict=one["verdict"] if interval is not None else "",
        plot=_plot(one),
        improved=one["improved"],
        worsened=one["worsened"],
        note="; ".join(notes),
    )


def _plot(one: Mapping[str, Any]) -> tuple[float, float, float] | None:
    if one["worsening_interval"] is None or not is_number(one["worsening"]):
        return None
    low, high = one["worsening_interval"]
    reach = max(abs(low), abs(high), abs(one["worsening"])) * _MARGIN or 1.0
    low, middle, high = (50 - 50 * end / reach for end in (high, one["worsening"], low))
    return low, middle, high


def _verdicts(rows: Sequence[_DifferenceRow]) -> dict[str, list[str]]:
    return {word: [row.name for row in rows if row.verdict == word] for word in ("better", "worse", "unclear")}


def _class_rows(document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each class its colour, its share of the pixels, and its intersection over union (or accuracy)."""
    metrics = [row["metric"] for row in rows if row["class"]]
    metric = next((name for name in ("palette_iou", *metrics) if name in metrics), None)
    found = {row["class"]: _difference_row(row) for row in rows if row["class"] and row["metric"] == metric}
    return [
        {**one, "metric": metric, "row": found[one["class"]]} for one in document["classes"] if one["class"] in found
    ]


def _card(one: ComparedPair) -> _ComparedCard:
    values = [
        (metric, " → ".join(format_value(metric, value) for value in values)) for metric, values in one.values.items()
    ]
    pictures = [show(label, picture, _QUALITY) for label, picture in one.pictures]
    return _ComparedCard(one.pair_id, pictures, values, json.dumps(one.gains))
