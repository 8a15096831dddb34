"""What is good enough: the rules of a gate, and whether a comparison keeps them."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from p2p.cli import read_plain_yaml
from p2p.comparison.differences import CLASS_FIGURES, Difference
from p2p.comparison.evaluations import Colour
from p2p.errors import ConfigError, quote_controls
from p2p.model.metrics import METRICS

Bound = Literal["at_least", "at_most", "worse_by_at_most"]
_BOUNDS: tuple[Bound, ...] = ("at_least", "at_most", "worse_by_at_most")
_FIELDS = {"baseline": str, "metrics": dict, "sure": bool}
_HEX = re.compile(r"#?[0-9a-fA-F]{6}")


@dataclass(frozen=True)
class Rule:
    """One bound of one figure."""

    metric: str
    colour: Colour | None
    """The class, for a figure of one class."""
    bound: Bound
    limit: float
    is_relative: bool = False
    """Whether `limit` is a share of the baseline's figure."""

    def __str__(self) -> str:
        of_class = f" of class {hex_of(self.colour)}" if self.colour else ""
        limit = f"{100 * self.limit:g}%" if self.is_relative else f"{self.limit:g}"
        return f"{self.metric}{of_class} {self.bound.replace('_', ' ')} {limit}"


@dataclass(frozen=True)
class Gate:
    """The rules of a file."""

    uri: str
    baseline: str | None
    rules: Sequence[Rule]
    sure: bool
    """Whether a change fails only where its whole interval lies beyond what is allowed."""


@dataclass(frozen=True)
class RuleResult:
    """Whether one side keeps one rule, and why."""

    side: str
    rule: Rule
    passed: bool
    reason: str


def hex_of(colour: Colour) -> str:
    """As in a style sheet: `#ff8000`."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def read_gate(uri: str) -> Gate:
    """The gate in a local YAML file. Raises ConfigError, which names what is wrong in it."""
    document = read_plain_yaml("--gate", uri)
    for name, value in document.items():
        if name not in _FIELDS:
            raise ConfigError("gate", f"{uri}: unknown field {name!r}; there are {', '.join(_FIELDS)}")
        if not isinstance(value, _FIELDS[name]):
            raise ConfigError("gate", f"{uri}: {name} is {value!r}, not a {_FIELDS[name].__name__}")
    rules = [
        rule
        for metric, bounds in document.get("metrics", {}).items()
        for rule in _rules_of(uri, str(metric), None, bounds)
    ]
    if not rules:
        raise ConfigError("gate", f"{uri}: names no metric, so everything would pass it")
    return Gate(uri, document.get("baseline"), rules, document.get("sure", True))


def _rules_of(uri: str, metric: str, colour: Colour | None, bounds: Any) -> Iterator[Rule]:
    where = f"{uri}: {metric}" + (f", class {hex_of(colour)}" if colour else "")
    if not isinstance(bounds, dict) or not bounds:
        raise ConfigError("gate", f"{where}: give it bounds, such as {{at_least: 0.5}}")
    for name, value in bounds.items():
        if name == "classes" and colour is None:
            if metric not in CLASS_FIGURES:
                raise ConfigError("gate", f"{where}: has no figure of one class; {', '.join(CLASS_FIGURES)} have")
            if not isinstance(value, dict):
                raise ConfigError("gate", f'{where}: classes is no mapping such as {{"#ffaa00": {{at_least: 0.5}}}}')
            for written, inner in value.items():
                yield from _rules_of(uri, metric, _colour(where, written), inner)
        elif name in _BOUNDS:
            yield Rule(metric, colour, name, *_limit(f"{where}: {name}", name, value))
        else:
            raise ConfigError("gate", f"{where}: unknown bound {name!r}; there are {', '.join(_BOUNDS)}, classes")


def _colour(where: str, written: Any) -> Colour:
    if not isinstance(written, str) or not _HEX.fullmatch(written):
        raise ConfigError("gate", f'{where}: class {written!r}: name it by its colour, in quotes: "#ffaa00"')
    red, green, blue = bytes.fromhex(written.removeprefix("#"))
    return red, green, blue


def _limit(where: str, bound: Bound, value: Any) -> tuple[float, bool]:
    is_relative = isinstance(value, str) and value.endswith("%") and bound == "worse_by_at_most"
    try:
        limit = float(value[:-1]) / 100 if is_relative else value
    except ValueError:
        limit = None
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not math.isfinite(limit):
        more = " or a share such as 2%" if bound == "worse_by_at_most" else ""
        raise ConfigError("gate", f"{where}: {value!r} is not a number{more}")
    if bound == "worse_by_at_most" and limit < 0:
        raise ConfigError("gate", f"{where}: {value!r}: must be 0 or more")
    return float(limit), is_relative


def check_rules(gate: Gate, palette: Collection[Colour], has_baseline: bool) -> None:
    """Raise ConfigError for a rule that can never be kept: of a metric that is not known at all, of a colour that is
    no class, or of a change where nothing is compared.
    """
    for rule in gate.rules:
        if rule.metric not in METRICS:
            known = ", ".join(METRICS)
            raise ConfigError("gate", f"{gate.uri}: {rule.metric}: no such metric; available are {known}")
        if rule.colour is not None and palette and rule.colour not in palette:
            known = ", ".join(map(hex_of, palette))
            raise ConfigError("gate", f"{gate.uri}: {rule}: no class has that colour; there are {known}")
        if rule.bound == "worse_by_at_most" and not has_baseline:
            raise ConfigError("gate", f"{gate.uri}: {rule}: needs a baseline; name one there, or two evaluations")


def judge(gate: Gate, side: str, differences: Sequence[Difference]) -> list[RuleResult]:
    """Hold the figures of one side to every rule. What is missing or no number keeps none."""
    found = {(one.metric, one.colour): one for one in differences}
    results = []
    for rule in gate.rules:
        passed, reason = _judge(rule, found.get((rule.metric, rule.colour)), gate.sure)
        results.append(RuleResult(side, rule, passed, reason))
    return results


def _judge(rule: Rule, figure: Difference | None, sure: bool) -> tuple[bool, str]:
    if figure is None or figure.value is None:
        return False, "not measured, or no number"
    value = f"{figure.value:.6g}"
    if rule.bound == "at_least":
        return figure.value >= rule.limit, value
    if rule.bound == "at_most":
        return figure.value <= rule.limit, value
    if figure.baseline is None or figure.worsening is None:
        return False, f"{value}; the baseline has no number to compare it with"
    allowed = rule.limit * (abs(figure.baseline) if rule.is_relative else 1.0)
    reason = f"{value}, baseline {figure.baseline:.6g}: {_in_words(figure.worsening)}"
    if not sure:
        return figure.worsening <= allowed, reason
    if figure.worsening_interval is None:
        return figure.worsening <= allowed, f"{reason}; it has no interval, so the figure itself decides"
    low, high = figure.worsening_interval
    ends = (low, high) if figure.worsening > 0 else (-high, -low)
    return low <= allowed, f"{reason} (95 %: {ends[0]:.4g} to {ends[1]:.4g})"


def _in_words(worsening: float) -> str:
    return f"{'worse' if worsening > 0 else 'better'} by {abs(worsening):.4g}" if worsening else "equal"


def gate_to_json(gate: Gate, results: Sequence[RuleResult]) -> dict[str, Any]:
    """What gate.json holds."""
    rules: list[Mapping[str, Any]] = [
        {
            "side": one.side,
            "metric": one.rule.metric,
            "class": hex_of(one.rule.colour) if one.rule.colour else None,
            "bound": one.rule.bound,
            "limit": one.rule.limit,
            "relative": one.rule.is_relative,
            "passed": one.passed,
            "reason": one.reason,
        }
        for one in results
    ]
    return {"gate": gate.uri, "passed": all(one.passed for one in results), "sure": gate.sure, "rules": rules}


def gate_to_junit(results: Sequence[RuleResult]) -> bytes:
    """The results in the XML of JUnit, which CI systems show: a test case for each rule."""
    failed = [one for one in results if not one.passed]
    counts = {"tests": str(len(results)), "failures": str(len(failed)), "errors": "0"}
    root = ET.Element("testsuites", counts)
    suite = ET.SubElement(root, "testsuite", {"name": "gate", **counts})
    for one in results:
        names = {"classname": quote_controls(one.side), "name": quote_controls(str(one.rule)), "time": "0"}
        case = ET.SubElement(suite, "testcase", names)
        if not one.passed:
            ET.SubElement(case, "failure", {"message": quote_controls(f"{one.rule}: {one.reason}")})
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"
