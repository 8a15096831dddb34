"""Pages that are one file each: no request leaves them, so they open from a disk, a bucket or an attachment alike."""

from __future__ import annotations

import base64
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from markupsafe import Markup, escape

from p2p.errors import redact
from p2p.storage.filesystems import write_bytes
from p2p.storage.images import encode
from p2p.storage.pixels import Array

_NO_VALUE = "–"
_THIN_SPACE = "\u202f"
_MAX_PLAIN, _MIN_PLAIN = 1e9, 1e-5

# Size of a chart in its own units, which the page scales to 320..560 px: text of 12 units stays readable on a phone.
_WIDTH, _HEIGHT = 410.0, 238.0
_TOP, _RIGHT, _BOTTOM = 28.0, 14.0, 40.0
_LETTER = 6.8
_X_TICKS, _Y_TICKS = 6, 5
_MAX_DOTS, _MAX_LABELLED_POINTS = 40, 300
_MIN_SPAN = 1e-12
_MIN_RELATIVE_SPAN = 0.2
"""Least share of the largest value that a y axis spans."""


# Words for values


def number(value: Any, digits: int = 3) -> str:
    """A value for a person: `digits` significant digits, thousands apart, a dash for None and what is not finite."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return _NO_VALUE
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}".replace(",", _THIN_SPACE)
    if not isinstance(value, float):
        return str(value)
    if value == 0:
        return "0"
    scientific = f"{value:.{digits - 1}e}"
    if not _MIN_PLAIN <= abs(value) < _MAX_PLAIN:
        return scientific
    decimals = max(0, digits - 1 - int(scientific.partition("e")[2]))
    return f"{value:,.{decimals}f}".replace(",", _THIN_SPACE)


def percent(share: float | None, digits: int = 1) -> str:
    """0.123 -> `12.3 %`; a dash for None and what is not finite."""
    if share is None or not math.isfinite(share):
        return _NO_VALUE
    return f"{100 * share:.{digits}f}{_THIN_SPACE}%"


def duration(seconds: float | None) -> str:
    """Seconds -> `2.4 s`, `3 min 20 s`, `47 min`, `1 h 12 min`, `2 d 3 h`; a dash for None and what is not finite."""
    if seconds is None or not math.isfinite(seconds):
        return _NO_VALUE
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    minutes = round(whole / 60)
    if whole < 600:
        return f"{whole // 60} min {whole % 60} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 1440:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def data_uri(image: Array, quality: int = 85) -> Markup:
    """(H, W, 3) uint8 RGB -> an address that holds the image itself, as a JPEG of that quality, 1..100."""
    return Markup(f"data:image/jpeg;base64,{base64.b64encode(encode(image, 'jpeg', quality)).decode()}")


# The page


def _without_secrets(value: Any) -> Any:
    # Before escaping, and not in the finished page: there a secret would end only where the markup around it does.
    return value if hasattr(value, "__html__") else redact(str(value))


def _text(value: str) -> Markup:
    """What a template does with a value, for markup that is made here."""
    return escape(redact(value))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("p2p", "reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_without_secrets,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, percent=percent, duration=duration)
    return environment


def render(template: str, uri: str, **values: Any) -> str:
    """Fill a template of this package and publish it at `uri`, which is returned. Secrets in any value are removed.

    Raises StorageError if it cannot be written, jinja2.UndefinedError for a value that the template lacks.
    """
    page = _environment().get_template(template).render(**values)
    write_bytes(uri, page.encode("utf-8", "replace"))  # file names may hold bytes that are no text
    return uri


# Charts


@dataclass(frozen=True)
class Series:
    """One line of a chart. None and numbers that are not finite leave a gap."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]


@dataclass(frozen=True)
class _Axis:
    """Values `low`..`high` on pixels `start`..`end`."""

    low: float
    high: float
    start: float
    end: float
    ticks: list[float]
    labels: list[str]

    def place(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _ticks(low: float, high: float, count: int, whole: bool) -> tuple[list[float], list[str]]:
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    if whole:
        step = max(1.0, step)
    ticks = [index * step for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    if step < _MIN_PLAIN or max(abs(low), abs(high)) >= _MAX_PLAIN:
        labels = [f"{tick:.1e}" if tick else "0" for tick in ticks]
    else:
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        labels = [f"{tick:,.{decimals}f}".replace(",", _THIN_SPACE).replace("-", "−") for tick in ticks]
    return ticks, labels


def _y_range(values: Sequence[float]) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (1.0, 2.0)
    if high - low < _MIN_RELATIVE_SPAN * abs(high):  # a line that hardly moves should look like one
        middle, half = (low + high) / 2, _MIN_RELATIVE_SPAN * abs(high) / 2
        low, high = max(0.0, middle - half) if low >= 0 else middle - half, middle + half
    if high - low < _MIN_SPAN:
        high += 1.0
    margin = 0.06 * (high - low)
    near_zero = 0 <= low < 0.4 * high
    return (0.0 if near_zero else low - margin), high + margin


def _axes(lines: Sequence[Sequence[tuple[float, float | None]]], marked: Sequence[float]) -> tuple[_Axis, _Axis]:
    values = [y for line in lines for _, y in line if y is not None] + list(marked)
    low, high = _y_range(values)
    ticks, labels = _ticks(low, high, _Y_TICKS, whole=False)
    vertical = _Axis(low, high, _HEIGHT - _BOTTOM, _TOP, ticks, labels)
    left = 12 + _LETTER * max((len(label) for label in labels), default=1)
    xs = [x for line in lines for x, _ in line] or [0.0]
    low, high = (min(xs), max(xs)) if min(xs) < max(xs) else (xs[0] - 0.5, xs[0] + 0.5)
    ticks, labels = _ticks(low, high, _X_TICKS, whole=all(float(x).is_integer() for x in xs))
    return _Axis(low, high, left, _WIDTH - _RIGHT, ticks, labels), vertical


def _frame(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str) -> list[str]:
    parts = []
    for value, label in zip(y_axis.ticks, y_axis.labels, strict=True):
        y = y_axis.place(value)
        parts.append(f'<line class="grid" x1="{x_axis.start:.1f}" x2="{x_axis.end:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{x_axis.start - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    base = y_axis.start
    parts.append(f'<line class="axis" x1="{x_axis.start:.1f}" x2="{x_axis.end:.1f}" y1="{base:.1f}" y2="{base:.1f}"/>')
    for value, label in zip(x_axis.ticks, x_axis.labels, strict=True):
        x = x_axis.place(value)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base:.1f}" y2="{base + 4:.1f}"/>')
        parts.append(f'<text x="{x:.1f}" y="{base + 17:.1f}" text-anchor="middle">{label}</text>')
    middle = (x_axis.start + x_axis.end) / 2
    parts.append(f'<text x="{middle:.1f}" y="{_HEIGHT - 6:.1f}" text-anchor="middle">{_text(x_label)}</text>')
    parts.append(f'<text x="2" y="13">{_text(y_label)}</text>')
    return parts


def _draw_line(
    line: Sequence[tuple[float, float | None]], label: str, style: str, x_axis: _Axis, y_axis: _Axis
) -> list[str]:
    runs: list[list[str]] = [[]]
    dots = []
    visible, dot = len(line) <= _MAX_DOTS, 4.0 if len(line) == 1 else 2.6
    for x, y in line:
        if y is None:
            runs.append([])
            continue
        left, top = x_axis.place(x), y_axis.place(y)
        runs[-1].append(f"{left:.1f},{top:.1f}")
        if visible or len(line) <= _MAX_LABELLED_POINTS:
            name, radius = ("dot", dot) if visible else ("spot", 5.0)
            title = _text(f"{label}: {number(y, 4)} at {number(x)}")
            place = f'cx="{left:.1f}" cy="{top:.1f}" r="{radius}"'
            dots.append(f'<circle class="{name} {style}" {place}><title>{title}</title></circle>')
    lines = [f'<polyline class="line {style}" points="{" ".join(run)}"/>' for run in runs if len(run) > 1]
    return lines + dots


def line_chart(
    series: Sequence[Series], *, x_label: str, y_label: str, marks: Sequence[tuple[float, str]] = ()
) -> Markup:
    """Lines over a common x axis as SVG in the page's own colours, with a legend where there are several.

    `marks` are horizontal lines (value, label). A series of one point is a dot.
    """
    lines = [
        [(x, None if y is None or not math.isfinite(y) else y) for x, y in zip(one.x, one.y, strict=True)]
        for one in series
    ]
    x_axis, y_axis = _axes(lines, [value for value, _ in marks])
    parts = _frame(x_axis, y_axis, x_label, y_label)
    for value, label in marks:
        y = y_axis.place(value)
        parts.append(f'<line class="mark" x1="{x_axis.start:.1f}" x2="{x_axis.end:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="mark" x="{x_axis.end:.1f}" y="{y - 5:.1f}" text-anchor="end">{_text(label)}</text>')
    styles = [f"s{index % 4}" for index in range(len(series))]
    for line, one, style in zip(lines, series, styles, strict=True):
        parts += _draw_line(line, one.label, style, x_axis, y_axis)
    legend = ""
    if len(series) > 1:
        keys = (
            f'<circle class="dot {style}" cx="11" cy="4" r="4"/>'
            if len(one.x) == 1
            else f'<line class="line {style}" x1="1" x2="21" y1="4" y2="4"/>'
            for one, style in zip(series, styles, strict=True)
        )
        named = (
            f'<span><svg class="key" viewBox="0 0 22 8" aria-hidden="true">{key}</svg>{_text(one.label)}</span>'
            for key, one in zip(keys, series, strict=True)
        )
        legend = f'<div class="legend">{"".join(named)}</div>'
    name = _text(f"{y_label} over {x_label}")
    drawing = f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{name}">{"".join(parts)}</svg>'
    return Markup(f'<div class="chart">{legend}{drawing}</div>')
