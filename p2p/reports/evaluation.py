"""The report of an evaluation: how good, against what, and what good and bad look like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from p2p.model.metrics import METRICS, Metric
from p2p.reports.page import number, percent, render
from p2p.reports.sheets import as_rgb
from p2p.reports.thumbnails import Picture, show
from p2p.storage.filesystems import join
from p2p.storage.images import Pixels

_UNTRAINED = "untrained."
_NO_VALUE = "n/a"
_DIFFERENCE_GAIN = 2
_QUALITY = 92  # the page is for judging pixels, so the encoder should leave few marks of its own
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
    untrained: str | None
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
) -> str:
    """Publish `report.html` below `output_uri`; returns its address.

    metrics: metric name -> value over the whole set, `untrained.`+name -> the same of an untrained generator, and `n`,
    the number of images. Values may be None or NaN.
    groups: name of a group, such as `best` -> its examples, in the order of the page.
    per_image: metric name -> one value per image.
    details: what was evaluated, by name: checkpoint, data, split, direction...

    Raises ValueError if an output and its target differ in size.
    """
    names = [name for name in metrics if name != "n" and not name.startswith(_UNTRAINED)]
    rows = [_row(name, metrics) for name in names]
    return render(
        "evaluation.html",
        join(output_uri, "report.html"),
        n=metrics.get("n"),
        headline=_headline(metrics),
        rows=rows,
        compares=any(row.untrained is not None for row in rows),
        worse=[row.name for row in rows if row.improved is False],
        histograms=[one for one in (_histogram(name, values) for name, values in per_image.items()) if one],
        groups={name: [_card(judged) for judged in group] for name, group in groups.items() if group},
        gain=_DIFFERENCE_GAIN,
        details=details,
    )


def _metric(name: str) -> Metric | None:
    """The metric of a figure, which may be that of a baseline or a round trip: `input.l1`."""
    return METRICS.get(name.rpartition(".")[2])


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _shown(name: str, value: Any) -> str:
    """A metric's value with its unit, `n/a` where there is none."""
    if not _is_number(value):
        return _NO_VALUE
    metric = _metric(name)
    unit = metric.unit if metric else ""
    if unit == "share":
        # 99.98 % must not read 100.0 %: nothing but a perfect score does.
        return percent(value, 2 if value != round(value) and not 0.0005 <= value < 0.9995 else 1)
    return f"{number(float(value))} {unit}".rstrip()


def _headline(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """The best known metric, in words; `shares` are the lengths of bars in percent."""
    for name, words in _HEADLINES.items():
        value, untrained = metrics.get(name), metrics.get(_UNTRAINED + name)
        if _is_number(value):
            known = [one for one in (value, untrained) if _is_number(one)]
            return {
                "value": _shown(name, value),
                "words": words,
                "untrained": _shown(name, untrained) if known[1:] else None,
                "shares": [100 * one for one in known],
            }
    return None


def _row(name: str, metrics: Mapping[str, Any]) -> _Row:
    metric = _metric(name)
    value, untrained = metrics[name], metrics.get(_UNTRAINED + name)
    comparable = metric is not None and _is_number(value) and _is_number(untrained)
    return _Row(
        name=name,
        value=_shown(name, value),
        untrained=_shown(name, untrained) if _UNTRAINED + name in metrics else None,
        better={"higher": "↑ higher", "lower": "↓ lower"}.get(metric.better, metric.better) if metric else "",
        meaning=metric.meaning if metric else "",
        improved=metric.improves(value, untrained) if metric and comparable else None,
    )


def _histogram(name: str, values: Sequence[float | None]) -> _Histogram | None:
    """How the images spread over the values; None if there is no image with a value."""
    finite = np.array([value for value in values if _is_number(value)], np.float64)
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
            f"{count} image{'' if count == 1 else 's'} from {_shown(name, edges[i])} to {_shown(name, edges[i + 1])}",
        )
        for i, count in enumerate(counts.tolist())
    ]
    return _Histogram(
        name, bars, _shown(name, low), _shown(name, high), _shown(name, median), median_at, len(values) - len(finite)
    )


def _card(judged: Judged) -> _Card:
    output, target = as_rgb(judged.output), as_rgb(judged.target)
    if output.shape != target.shape:
        raise ValueError(f"{judged.pair_id}: output {output.shape} and target {target.shape} must have one size")
    apart = np.abs(output.astype(np.int16) - target.astype(np.int16))
    difference = np.minimum(apart * _DIFFERENCE_GAIN, 255).astype(np.uint8)
    images = {"input": judged.input, "output": output, "target": target, "difference": difference}
    return _Card(
        judged.pair_id,
        [show(name, image, _QUALITY) for name, image in images.items()],
        [(name, _shown(name, value)) for name, value in judged.values.items()],
    )
