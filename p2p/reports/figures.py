"""Figures of metrics in words, with their units."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

from p2p.model.metrics import METRICS, Metric
from p2p.reports.page import number, percent

_NO_VALUE = "n/a"
_MAX_DECIMALS = 9


def find_figure(name: str) -> Metric | None:
    """The metric of a figure, which may be that of a baseline or a round trip: `input.l1`."""
    return METRICS.get(name.rpartition(".")[2])


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a number at all, and finite."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def format_value(metric: str, value: Any) -> str:
    """A metric's value with its unit, `n/a` where there is none."""
    if not is_number(value):
        return _NO_VALUE
    unit = _unit(metric)
    if unit == "share":
        # 99.98 % must not read 100.0 %: nothing but a perfect score does.
        return percent(value, 2 if value != round(value) and not 0.0005 <= value < 0.9995 else 1)
    return f"{number(float(value))} {unit}".rstrip()


def format_difference(metric: str, difference: float | None, interval: tuple[float, float] | None = None) -> str:
    """A signed difference with its unit, to as many digits as its 95 % interval bears.

    >>> format_difference("psnr", 0.31415, (0.2, 0.4))
    '+0.31 dB'
    """
    if not is_number(difference):
        return _NO_VALUE
    return f"{_signed(metric, difference, difference, interval)} {_points(metric)}".rstrip()


def format_interval(metric: str, interval: tuple[float, float] | None) -> str:
    """Both ends, signed; empty without an interval."""
    if interval is None:
        return ""
    low, high = (_signed(metric, end, end, interval) for end in interval)
    return f"{low} to {high}"


def _unit(name: str) -> str:
    metric = find_figure(name)
    return metric.unit if metric else ""


def _points(metric: str) -> str:
    return "points" if _unit(metric) == "share" else _unit(metric)


def _signed(metric: str, value: float, of: float, interval: tuple[float, float] | None) -> str:
    if value == 0:
        return "0"
    scale = 100 if _unit(metric) == "share" else 1
    width = (interval[1] - interval[0]) / 2 if interval else abs(of)
    decimals = 0 if width <= 0 else max(0, 1 - math.floor(math.log10(width * scale)))
    return f"{scale * value:+.{min(decimals, _MAX_DECIMALS)}f}".replace("-", "−")
