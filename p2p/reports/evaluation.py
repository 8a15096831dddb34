"""The report of an evaluation: how good, against what, and what good and bad look like."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from p2p.errors import redact
from p2p.model.metrics import METRICS
from p2p.reports.examples import BrowsablePair
from p2p.reports.figures import find_figure, format_value, is_number
from p2p.reports.page import Series, line_chart, render
from p2p.reports.sheets import as_rgb
from p2p.reports.thumbnails import Picture, show
from p2p.storage.filesystems import join
from p2p.storage.pixels import Pixels

_UNTRAINED = "untrained."
_BASELINES = (_UNTRAINED, "input.")
"""What begins the names of figures that stand beside those of the outputs."""
_BETTER = {"higher": "↑ higher", "lower": "↓ lower", "close to 1": "→ close to 1"}
_MEANINGS = {
    "kid_se": "standard error of kid, by the jackknife over pairs",
    "is_std": "standard deviation of is over its 10 splits",
}
_WARNING = "warning "
_DIFFERENCE_GAIN = 2
_QUALITIES = (92, 75, 50)  # the page is for judging pixels, so the encoder should leave few marks of its own
_MAX_CHARACTERS = 2_200_000
"""Of the best, median and worst pairs; the first quality with which they are no more is taken."""
_BINS = 24
_NARROW = 1e-9  # a range that small against its values is one value and rounding

_HEADLINES = {
    "palette_accuracy": "of pixels get the right map class",
    "pixel_accuracy": "of pixels have the right colour",
}
"""The metrics that a person understands at once, the best known first, and how to say them."""


@dataclass(frozen=True, eq=False)
class Judged:
    """One pair with what the generator made of it: (H, W, C) uint8 or uint16 each, of one size."""

    pair_id: str
    input: Pixels
    output: Pixels
    target: Pixels
    values: dict[str, float]
    """Metric name -> value of this image."""


class _Row(NamedTuple):
    name: str
    value: str
    baselines: list[str]
    better: str
    meaning: str
    improved: bool | None
    """Whether it beats the untrained generator; None where that is not known."""


class _Histogram(NamedTuple):
    name: str
    bars: list[tuple[float, str]]
    """Height, 0..1, and title."""
    low: str
    high: str
    median: str
    median_at: float
    """Place of the median between low, 0, and high, 1."""
    unmeasured: int


class _Card(NamedTuple):
    pair_id: str
    pictures: list[Picture]
    values: list[tuple[str, str]]


def write_evaluation_report(
    output_uri: str,
    metrics: Mapping[str, Any],
    groups: Mapping[str, Sequence[Judged]],
    per_image: Mapping[str, Sequence[float | None]],
    details: Mapping[str, Any],
    *,
    classes: Sequence[Mapping[str, Any]] = (),
    confusion: Sequence[Sequence[int]] | None = None,
    examples: Sequence[BrowsablePair] = (),
    curve: Sequence[tuple[int, Mapping[str, float]]] = (),
) -> str:
    """Publish `report.html` below `output_uri`; returns its address.

    metrics: metric name -> value over the whole set; `untrained.`+name and `input.`+name: the same of an untrained
    generator and of the unchanged inputs; `n`: the number of images. Values may be None or NaN.
    groups: name of a group, such as `best` -> its examples, in the order of the page.
    per_image: metric name -> one value per image.
    details: what was evaluated, by name: checkpoint, data, split, direction, and all that the figures depend on as
        `signature`. What begins with `warning` is shown as one.
    classes: `colour`, `share`, `accuracy` and `iou` of each palette colour.
    confusion: pixels of the whole set, for each class of the targets (rows) those of each class of the outputs.
    examples: pairs to browse through.
    curve: epoch and metrics of each checkpoint of a run, oldest first; the page itself is of the best one.

    Raises ValueError if an output and its target differ in size.
    """
    names = [name for name in metrics if name != "n" and not name.startswith(_BASELINES)]
    baselines = [prefix for prefix in _BASELINES if any(prefix + name in metrics for name in names)]
    rows = [_row(name, metrics, baselines) for name in names]
    special = {"signature", *(name for name in details if name.startswith(_WARNING))}
    return render(
        "evaluation.html",
        join(output_uri, "report.html"),
        n=metrics.get("n"),
        headline=_headline(metrics),
        rows=rows,
        baselines=[prefix.rstrip(".") for prefix in baselines],
        worse=[row.name for row in rows if row.improved is False],
        histograms=[one for one in (_histogram(name, values) for name, values in per_image.items()) if one],
        groups=_cards(groups),
        gain=_DIFFERENCE_GAIN,
        details={name: value for name, value in details.items() if name not in special},
        signature=details.get("signature"),
        warnings=[value for name, value in details.items() if name.startswith(_WARNING)],
        classes=_class_rows(classes, confusion),
        browsable=_browsable(examples),
        charts=_charts(curve),
    )


def _headline(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """The best known metric, in words; `shares` are the lengths of bars in percent."""
    for name, words in _HEADLINES.items():
        value, untrained = metrics.get(name), metrics.get(_UNTRAINED + name)
        if is_number(value):
            known = [one for one in (value, untrained) if is_number(one)]
            return {
                "value": format_value(name, value),
                "words": words,
                "untrained": format_value(name, untrained) if known[1:] else None,
                "shares": [100 * one for one in known],
            }
    return None


def _class_rows(
    classes: Sequence[Mapping[str, Any]], confusion: Sequence[Sequence[int]] | None
) -> list[dict[str, Any]]:
    """The commonest first: colour, figures, and where the class's pixels went (share of them, in the same order)."""
    order = sorted(range(len(classes)), key=lambda place: -float(classes[place]["share"] or 0))
    rows = []
    for place in order:
        one, counts = classes[place], confusion[place] if confusion is not None else []
        total = sum(counts)
        rows.append(
            {
                "colour": "#{:02x}{:02x}{:02x}".format(*one["colour"]),
                **{name: format_value("palette_iou", one[name]) for name in ("share", "accuracy", "iou")},
                "bar": 100 * one["iou"] if is_number(one["iou"]) else 0.0,
                "went": [counts[other] / total if total else None for other in order] if len(counts) else [],
            }
        )
    return rows


def _charts(curve: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, tuple[Markup, str]]:
    """Metric -> its course over the checkpoints, and which is the best by it."""
    epochs = [epoch for epoch, _ in curve]
    # Several checkpoints may be of one epoch.
    x, label = (epochs, "epoch") if len(set(epochs)) == len(epochs) else (range(1, len(epochs) + 1), "checkpoint")
    charts = {}
    for name, metric in METRICS.items():
        values = [metrics[name] if is_number(metrics.get(name)) else None for _, metrics in curve]
        known = [
            (metric.loss(value), place, value) for place, value in zip(x, values, strict=True) if value is not None
        ]
        if len(known) > 1:
            _, place, value = min(known)
            drawing = line_chart([Series(name, x, values)], x_label=label, y_label=name)
            charts[name] = (drawing, f"best {format_value(name, value)} at {label} {place}")
    return charts


def _browsable(examples: Sequence[BrowsablePair]) -> dict[str, Any] | None:
    """What the script of the page reads."""
    if not examples:
        return None
    names = [name for name in METRICS if any(is_number(one.values.get(name)) for one in examples)]
    return {
        "metrics": [{"name": name, "better": METRICS[name].better, "unit": METRICS[name].unit} for name in names],
        "pairs": [
            {
                "id": redact(one.pair_id),
                "values": [value if is_number(value := one.values.get(name)) else None for name in names],
                "pictures": one.pictures,
            }
            for one in examples
        ],
        "gain": _DIFFERENCE_GAIN,
    }


def _row(name: str, metrics: Mapping[str, Any], baselines: Sequence[str]) -> _Row:
    metric = find_figure(name)
    value, untrained = metrics[name], metrics.get(_UNTRAINED + name)
    comparable = metric is not None and is_number(value) and is_number(untrained)
    return _Row(
        name=name,
        value=format_value(name, value),
        baselines=[
            format_value(name, metrics[key]) if (key := prefix + name) in metrics else "" for prefix in baselines
        ],
        better=_BETTER[metric.better] if metric else "",
        meaning=metric.meaning if metric else _MEANINGS.get(name, ""),
        improved=metric.improves(value, untrained) if metric and comparable else None,
    )


def _histogram(name: str, values: Sequence[float | None]) -> _Histogram | None:
    """How the images spread over the values; None if there is no image with a value."""
    finite = np.array([value for value in values if is_number(value)], np.float64)
    if not len(finite):
        return None
    low, high, median = float(finite.min()), float(finite.max()), float(np.median(finite))
    if high - low <= _NARROW * max(abs(low), abs(high)):
        counts, edges, median_at = np.zeros(_BINS + 1, np.int64), np.full(_BINS + 2, low), 0.5
        counts[_BINS // 2] = len(finite)
    else:
        counts, edges = np.histogram(finite, bins=_BINS, range=(low, high))
        median_at = (median - low) / (high - low)
    bars = [
        (
            count / int(counts.max()),
            f"{count} image{'' if count == 1 else 's'} from {format_value(name, edges[i])} "
            f"to {format_value(name, edges[i + 1])}",
        )
        for i, count in enumerate(counts.tolist())
    ]
    return _Histogram(
        name=name,
        bars=bars,
        low=format_value(name, low),
        high=format_value(name, high),
        median=format_value(name, median),
        median_at=median_at,
        unmeasured=len(values) - len(finite),
    )


def _cards(groups: Mapping[str, Sequence[Judged]]) -> dict[str, list[_Card]]:
    """The groups that have any, all small enough that the page stays below 8 MB."""
    found: dict[str, list[_Card]] = {}
    for quality in _QUALITIES:
        found = {name: [_card(judged, quality) for judged in group] for name, group in groups.items() if group}
        cards = itertools.chain.from_iterable(found.values())
        if sum(len(picture.uri) for card in cards for picture in card.pictures) <= _MAX_CHARACTERS:
            break
    return found


def _card(judged: Judged, quality: int) -> _Card:
    output, target = as_rgb(judged.output), as_rgb(judged.target)
    if output.shape != target.shape:
        raise ValueError(f"{judged.pair_id}: output {output.shape} and target {target.shape} must have one size")
    apart = np.abs(output.astype(np.int16) - target.astype(np.int16))
    difference = np.minimum(apart * _DIFFERENCE_GAIN, 255).astype(np.uint8)
    images = {"input": judged.input, "output": output, "target": target, "difference": difference}
    return _Card(
        judged.pair_id,
        [show(name, image, quality) for name, image in images.items()],
        [(name, format_value(name, value)) for name, value in judged.values.items()],
    )
