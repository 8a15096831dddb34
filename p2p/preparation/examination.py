"""The doctor's findings, told three times: a table in the log, `doctor.json`, and a page with pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from p2p.doctor import Doctor
from p2p.doctor.files import BadRow, check_files
from p2p.doctor.finding import MOST_NAMED, Check, Finding, Named
from p2p.reports.doctor import Exhibit, write_doctor_report
from p2p.storage.filesystems import join, write_json
from p2p.storage.images import Array, resize

log = logging.getLogger("p2p")

DOCUMENT, PAGE = "doctor.json", "doctor.html"
_EXHIBITS = 4  # of each finding
_EXAMPLES = 6  # of the whole data set
_LOOKED_THROUGH = 100
_IN_A_LINE = 3

Key = tuple[str, str]
"""Split and pair id."""
Sides = dict[Key, tuple[Array, Array]]
Show = Callable[[Iterable[Key]], Sides]
"""Fetches both sides of some pairs, (H, W, 3) uint8 and small; those that cannot be had any more are left out."""


def conclude(doctor: Doctor, bad: Sequence[BadRow], show: Show, output: str, about: dict[str, Any]) -> dict[str, int]:
    """Examine what `doctor` has collected and publish it; return how many pairs or files each finding has.

    Args:
        doctor: has the portraits of all pairs.
        bad: the inputs that became no pair.
        show: fetches the pairs that the page shows.
        output: the folder that receives `doctor.json` and `doctor.html`.
        about: what was looked at, for the head of both.

    """
    keys, checks = doctor.examine()
    checks = check_files(bad, len(keys)) + checks
    document = {**about, "checks": [_told(check) for check in checks], "findings": []}
    findings = sorted(
        (finding for check in checks for finding in check.findings), key=lambda finding: finding.severity != "fault"
    )
    document["findings"] = [_named(finding, keys) for finding in findings]
    write_json(join(output, DOCUMENT), document)
    examples = [keys[row] for row in np.unique(np.linspace(0, len(keys) - 1, min(len(keys), _EXAMPLES)).astype(int))]
    wanted = {key for finding in findings for key in _shown(finding, keys)} | set(examples)
    sides = show(wanted)
    exhibits = {finding.name: _exhibits(finding, keys, sides) for finding in findings}
    whole = [Exhibit(_name(key), "", [("a", sides[key][0]), ("b", sides[key][1])]) for key in examples if key in sides]
    write_doctor_report(join(output, PAGE), document, exhibits, whole)
    _log(checks, keys, join(output, PAGE))
    return {finding.name: finding.count for finding in findings}


def _name(key: Key) -> str:
    return "/".join(key)


def _result(check: Check) -> str:
    return "found" if check.findings else "unclear" if check.unclear else "ok"


def _told(check: Check) -> dict[str, Any]:
    return {
        "check": check.name,
        "result": _result(check),
        "examined": check.examined,
        "findings": [finding.name for finding in check.findings],
        "note": check.note,
        "numbers": check.numbers,
    }


def _named(finding: Finding, keys: Sequence[Key]) -> dict[str, Any]:
    pairs = [
        {
            "split": keys[named.row][0],
            "pair_id": keys[named.row][1],
            "detail": named.detail,
            "others": [_name(keys[other]) for other in named.others[:MOST_NAMED]],
        }
        for named in finding.pairs[:MOST_NAMED]
    ]
    return {
        "finding": finding.name,
        "severity": finding.severity,
        "title": finding.title,
        "count": finding.count,
        "advice": finding.advice,
        "numbers": finding.numbers,
        "pairs": pairs,
        "files": [{"source_uri": uri, "message": message} for uri, message in finding.files[:MOST_NAMED]],
    }


def _first(finding: Finding) -> list[Named]:
    """The pairs of a finding that the page shows: one of each group that belongs together."""
    groups: dict[frozenset[int], Named] = {}
    for named in finding.pairs[:_LOOKED_THROUGH]:
        alone = finding.name == "exchanged_partners"
        groups.setdefault(frozenset({named.row} if alone else {named.row, *named.others}), named)
    return list(groups.values())[:_EXHIBITS]


def _shown(finding: Finding, keys: Sequence[Key]) -> list[Key]:
    return [keys[row] for named in _first(finding) for row in (named.row, *named.others[:1])]


def _exhibits(finding: Finding, keys: Sequence[Key], sides: Sides) -> list[Exhibit]:
    """The first pairs of a finding with what it compares them with."""
    exhibits = []
    for named in _first(finding):
        key = keys[named.row]
        if key not in sides:
            continue
        a, b = sides[key]
        pictures = [("a", a), ("b", b)]
        if finding.name.startswith("shifted"):
            pictures.append(("b, with the edges of a in red", _overlaid(a, b)))
        for other in (keys[row] for row in named.others[:1] if keys[row] in sides):
            if finding.name == "exchanged_partners":
                pictures.append((f"fits better: b of {_name(other)}", sides[other][1]))
            else:
                pictures += [
                    (f"{letter} of {_name(other)}", side) for letter, side in zip("ab", sides[other], strict=True)
                ]
        exhibits.append(Exhibit(_name(key), named.detail, pictures))
    return exhibits


def _overlaid(a: Array, b: Array) -> Array:
    """(H, W, 3) and (h, w, 3) uint8 -> (h, w, 3): B in pale gray with the strong edges of A in red."""
    gray = resize(a, *b.shape[:2]).astype(np.float32).mean(2)
    steps = np.hypot(*np.gradient(gray))
    pale = (160 + b.astype(np.float32).mean(2, keepdims=True) * 0.37).repeat(3, 2)
    strength = np.clip(steps / max(float(np.percentile(steps, 97)), 1.0), 0, 1)[..., None]
    return np.asarray(pale * (1 - strength) + np.array([200, 30, 40]) * strength).astype(np.uint8)


def _log(checks: Sequence[Check], keys: Sequence[Key], page: str) -> None:
    """The table, one line for each check, in the log."""
    log.info("the doctor looked at %d pairs:", len(keys))
    width = max(len(check.name) for check in checks)
    for check in checks:
        start = f"  {check.name:<{width}}  {check.examined:>7}  "
        if not check.findings:
            result = "cannot tell" if check.unclear else "ok"
            log.info("%s", start + (f"{result}: {check.note}" if check.note else result))
        for finding in check.findings:
            names = [_name(keys[named.row]) for named in finding.pairs[:_IN_A_LINE]]
            names += [uri for uri, _ in finding.files[:_IN_A_LINE]]
            more = ", …" if finding.count > len(names) else ""
            log.warning("%s%d %s: %s%s", start, finding.count, finding.name.replace("_", " "), ", ".join(names), more)
    if any(check.findings for check in checks):
        log.info("what to do about it, with pictures: %s", page)
