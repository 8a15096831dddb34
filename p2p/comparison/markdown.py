"""A comparison as a table in Markdown, for the summary of a CI job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from p2p.comparison.differences import Difference
from p2p.comparison.gate import RuleResult, hex_of
from p2p.errors import quote_controls
from p2p.reports.figures import format_difference, format_interval, format_value
from p2p.reports.page import percent


def write_markdown(
    names: Sequence[str], compared: Mapping[str, Sequence[Difference]], results: Sequence[RuleResult]
) -> str:
    """The text of comparison.md.

    names: of all sides; `compared` lacks the baseline, which is the first, unless nothing is compared.
    """
    lines = []
    failed = sum(not one.passed for one in results)
    if results:
        outcome = f"FAILED: {failed} of {len(results)} rules" if failed else f"passed: {len(results)} rules"
        lines += [f"## Gate {outcome}", "", *_table(("side", "rule", "result", "measured"))]
        words = ("FAILED", "passed")
        lines += [_row(one.side, str(one.rule), words[one.passed], one.reason) for one in results] + [""]
    for side, differences in compared.items():
        title = f"{side} against {names[0]}" if side != names[0] else side
        lines += [f"## {_cell(title)}", ""]
        lines += _table(("metric", "baseline", "value", "difference", "95 % interval", "pairs better", "shown"))
        for one in differences:
            name = one.metric + (f" {hex_of(one.colour)}" if one.colour else "")
            lines.append(
                _row(
                    name,
                    format_value(one.metric, one.baseline),
                    format_value(one.metric, one.value),
                    format_difference(one.metric, one.difference, one.interval),
                    format_interval(one.metric, one.interval),
                    percent(one.improved),
                    one.verdict if one.interval else "",
                )
            )
        lines.append("")
    return "\n".join(lines)


def _table(columns: Sequence[str]) -> list[str]:
    return [_row(*columns), _row(*("---" for _ in columns))]


def _row(*cells: str) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    """Text that neither ends a cell nor is taken for markup."""
    for character in "\\|<>`*_[]":
        text = text.replace(character, f"\\{character}")
    return quote_controls(text)
