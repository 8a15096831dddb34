"""The comparison job: read the evaluations, hold them to each other and to the gate, write tables and page."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from p2p.comparison.config import CompareConfig
from p2p.comparison.differences import Difference, Side, compare_sides
from p2p.comparison.evaluations import StoredEvaluation, read_evaluation, require_alike
from p2p.comparison.examples import choose_examples
from p2p.comparison.gate import Gate, RuleResult, check_rules, gate_to_json, gate_to_junit, hex_of, judge, read_gate
from p2p.comparison.markdown import write_markdown
from p2p.errors import NotGoodEnoughError
from p2p.model.metrics import METRICS
from p2p.reports.comparison import write_comparison_report
from p2p.reports.figures import format_difference, format_interval, format_value
from p2p.storage.filesystems import absolute, join, remove_file, write_bytes, write_json
from p2p.storage.lease import Fence, hold_lease
from p2p.storage.outputs import require_output

log = logging.getLogger("p2p")

_GATE_FILES = ("gate.json", "gate.xml")
_OF_AN_EARLIER_ONE = ("summary.json", *_GATE_FILES, "comparison.md", "report.html")
"""What an earlier comparison left in the folder and would say of this one, were it stopped, such as that the gate is
passed: removed before anything is compared."""


def run(config: CompareConfig) -> dict[str, Any]:
    """Do the whole job; returns the summary."""
    started = time.monotonic()
    gate = read_gate(config.gate) if config.gate is not None else None
    addresses = config.sides
    if gate and gate.baseline is not None:
        addresses = [[absolute(gate.baseline)], *addresses]
    sides = _read_sides(addresses)
    names = name_sides(addresses)
    if gate:
        check_rules(gate, sides[0][0].colours, has_baseline=len(sides) > 1)
    output = absolute(config.output)
    require_output(output, "output", "a comparison")
    with hold_lease(output, "output", "compare") as fence:
        for name in _OF_AN_EARLIER_ONE:
            fence.check()
            remove_file(join(output, name))
        baseline, others = (sides[0], sides[1:]) if sides[1:] else ((), sides)
        compared = dict(zip(names[-len(others) :], (compare_sides(baseline, side) for side in others), strict=True))
        results = [result for name, side in compared.items() for result in judge(gate, name, side)] if gate else []
        _log_table(names, compared)
        document = _document(sides, names, compared)
        fence.check()
        write_json(join(output, "comparison.json"), document)
        text = write_markdown(names, compared, results)
        fence.check()
        # Names of folders may hold bytes that are no text.
        write_bytes(join(output, "comparison.md"), text.encode("utf-8", "replace"))
        judged = _publish_gate(fence, gate, results)
        examples = choose_examples(sides, names)
        fence.check()
        report = write_comparison_report(output, document, judged, examples)
        broken = [str(one.rule) for one in results if not one.passed]
        summary = {
            "pairs": document["pairs"],
            "sides": names,
            "gate": judged and {"passed": judged["passed"], "failed": broken},
            "report": report,
            "seconds": round(time.monotonic() - started, 3),
        }
        fence.check()
        write_json(join(output, "summary.json"), summary)
    if broken:
        failed = f"the gate is not passed: {len(broken)} of {len(results)} rules are broken"
        raise NotGoodEnoughError(f"{failed}; see {join(output, _GATE_FILES[0])}", summary)
    return summary


def _read_sides(addresses: Sequence[Sequence[str]]) -> list[Side]:
    """All evaluations, with their pairs in one order."""
    first = read_evaluation(addresses[0][0])
    sides: list[Side] = []
    for group in addresses:
        side = []
        for uri in group:
            evaluation = read_evaluation(uri)
            require_alike(first, evaluation)
            side.append(evaluation.in_order_of(first.pair_ids))
        sides.append(side)
    return sides


def name_sides(addresses: Sequence[Sequence[str]]) -> list[str]:
    """What tells the sides apart in their addresses, as short as it can be.

    >>> name_sides([["/runs/a/evaluation"], ["/runs/b/evaluation"]])
    ['a', 'b']
    >>> name_sides([["s3://m/a1", "s3://m/a2"], ["s3://m/b1"]])
    ['a1, a2', 'b1']
    """
    parts = {uri: uri.rstrip("/").split("/") for group in addresses for uri in group}
    if len(parts) > 1:
        start = _count_equal(list(parts.values()))
        end = _count_equal([words[start:][::-1] for words in parts.values()])
        parts = {uri: words[start : len(words) - end] or words[-1:] for uri, words in parts.items()}
    else:
        parts = {uri: words[-1:] for uri, words in parts.items()}
    return [", ".join("/".join(parts[uri]) for uri in group) for group in addresses]


def _count_equal(words: Sequence[Sequence[str]]) -> int:
    """How many of the first words are the same in all."""
    return len(list(itertools.takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False))))


def _log_table(names: Sequence[str], compared: Mapping[str, Sequence[Difference]]) -> None:
    """One line for each metric."""
    for side, differences in compared.items():
        if side != names[0]:
            log.info("%s against %s, on the same pairs (95 %% intervals):", side, names[0])
        for one in differences:
            if one.colour is not None:
                continue
            values = [format_value(one.metric, value) for value in (one.baseline, one.value)]
            change = format_difference(one.metric, one.difference, one.interval) if side != names[0] else ""
            ends = f"{format_interval(one.metric, one.interval)}: {one.verdict}" if one.interval else ""
            log.info("  %-17s %10s %10s %16s  %s", one.metric, *values, change, ends)


def _document(
    sides: Sequence[Side], names: Sequence[str], compared: Mapping[str, Sequence[Difference]]
) -> dict[str, Any]:
    """What comparison.json holds."""
    return {
        "sides": [
            {
                "name": name,
                "evaluations": [one.uri for one in side],
                "signatures": [one.signature for one in side],
                "metrics": [one.metrics for one in side],
            }
            for name, side in zip(names, sides, strict=True)
        ],
        "pairs": len(sides[0][0].pair_ids),
        "protocol": sides[0][0].protocol,
        "classes": _classes(sides[0][0]),
        "differences": {name: [to_json(one) for one in side] for name, side in compared.items()},
    }


def _publish_gate(fence: Fence, gate: Gate | None, results: Sequence[RuleResult]) -> dict[str, Any] | None:
    """Write gate.json and gate.xml, and the results to the log; returns what gate.json holds, None without a gate."""
    if gate is None:
        return None
    judged = gate_to_json(gate, results)
    fence.check()
    write_json(join(fence.output, _GATE_FILES[0]), judged)
    fence.check()
    write_bytes(join(fence.output, _GATE_FILES[1]), gate_to_junit(results))
    for one in results:
        level = logging.INFO if one.passed else logging.ERROR
        log.log(level, "%s: %s: %s (%s)", one.side, one.rule, "passed" if one.passed else "FAILED", one.reason)
    return judged


def _classes(evaluation: StoredEvaluation) -> list[dict[str, Any]]:
    """Each palette colour and its share of the targets' pixels."""
    if evaluation.confusion is None:
        return []
    counts = evaluation.confusion.sum(axis=(0, 2))
    shares = counts / counts.sum()
    return [{"class": hex_of(one), "share": share} for one, share in zip(evaluation.colours, shares, strict=True)]


def to_json(one: Difference) -> dict[str, Any]:
    """What comparison.json says of a figure."""
    return {
        "metric": one.metric,
        "class": hex_of(one.colour) if one.colour else None,
        "baseline": one.baseline,
        "value": one.value,
        "difference": one.difference,
        "interval": one.interval,
        "interval_by": one.interval_by,
        "worsening": one.worsening,
        "worsening_interval": one.worsening_interval,
        "better": METRICS[one.metric].better,
        "verdict": one.verdict,
        "improved": one.improved,
        "worsened": one.worsened,
        "seeds": one.seeds,
    }
