"""Publishing what the doctor finds: a table in the log, `doctor.json`, and a page with pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from p2p.doctor import Doctor
from p2p.doctor.files import BadRow, check_files
from p2p.doctor.findings import MAX_NAMED, Check, Finding, NamedPair
from p2p.preparation.palettes import FoundPalette, in_palette
from p2p.reports.doctor import Figure, write_doctor_report
from p2p.storage.filesystems import join, write_json
from p2p.storage.images import resize
from p2p.storage.pixels import Array

log = logging.getLogger("p2p")

DOCUMENT, PAGE = "doctor.json", "doctor.html"
_FIGURES = 4  # of each finding
_EXAMPLES = 6  # of the whole data set
_MAX_SEARCHED = 100
_MAX_IN_LOG = 3

Key = tuple[str, str]
"""Split and pair id."""
Sides = dict[Key, tuple[Array, Array]]
Show = Callable[[Iterable[Key]], Sides]
"""Fetches both sides of some pairs, (H, W, 3) uint8 and small; those that cannot be had any more are left out."""


def publish_findings(
    doctor: Doctor,
    bad: Sequence[BadRow],
    show: Show,
    *,
    output: str,
    about: dict[str, Any],
    palette: FoundPalette | None = None,
) -> dict[str, int]:
    """Examine the pairs that `doctor` has collected; return how many pairs or files each finding has.

    Args:
        doctor: has the features of all pairs.
        bad: the inputs that became no pair.
        show: fetches the pairs that the page shows.
        output: the folder that receives `doctor.json` and `doctor.html`.
        about: which data set it is, for the head of both.
        palette: the colours of one side, if they were looked for.

    """
    keys, checks = doctor.examine()
    checks = check_files(bad, len(keys)) + checks
    findings = [finding for check in checks for finding in check.findings]
    findings.sort(key=lambda finding: finding.severity != "error")
    document = {
        **about,
        "checks": [_check_to_json(check) for check in checks],
        "findings": [_finding_to_json(finding, keys) for finding in findings],
        "palette": palette.to_json() if palette else None,
    }
    write_json(join(output, DOCUMENT), document)
    examples = [keys[row] for row in np.unique(np.linspace(0, len(keys) - 1, min(len(keys), _EXAMPLES)).astype(int))]
    shown = (row for finding in findings for pair in _pairs_to_show(finding) for row in (pair.row, *pair.others[:1]))
    sides = show({*examples, *(keys[row] for row in shown)})
    figures = {finding.name: _figures(finding, keys, sides) for finding in findings}
    whole = [_example(key, sides[key], palette) for key in examples if key in sides]
    write_doctor_report(join(output, PAGE), document, figures, whole)
    _log(checks, keys, join(output, PAGE))
    return {finding.name: finding.count for finding in findings}


def _name(key: Key) -> str:
    return "/".join(key)


def _check_to_json(check: Check) -> dict[str, Any]:
    return {
        "check": check.name,
        "result": "found" if check.findings else "unclear" if check.unclear else "ok",
        "examined": check.examined,
        "findings": [finding.name for finding in check.findings],
        "note": check.note,
        "numbers": check.numbers,
    }


def _finding_to_json(finding: Finding, keys: Sequence[Key]) -> dict[str, Any]:
    pairs = [
        {
            "split": keys[pair.row][0],
            "pair_id": keys[pair.row][1],
            "detail": pair.detail,
            "others": [_name(keys[other]) for other in pair.others[:MAX_NAMED]],
        }
        for pair in finding.pairs[:MAX_NAMED]
    ]
    return {
        "finding": finding.name,
        "severity": finding.severity,
        "title": finding.title,
        "count": finding.count,
        "advice": finding.advice,
        "numbers": finding.numbers,
        "pairs": pairs,
        "files": [{"source_uri": uri, "message": message} for uri, message in finding.files[:MAX_NAMED]],
    }


def _pairs_to_show(finding: Finding) -> list[NamedPair]:
    """The pairs of a finding that the page shows: one of each group that belongs together."""
    groups: dict[frozenset[int], NamedPair] = {}
    for pair in finding.pairs[:_MAX_SEARCHED]:
        others = () if finding.name == "exchanged_partners" else pair.others
        groups.setdefault(frozenset({pair.row, *others}), pair)
    return list(groups.values())[:_FIGURES]


def _figures(finding: Finding, keys: Sequence[Key], sides: Sides) -> list[Figure]:
    """The first pairs of a finding beside those that they resemble."""
    figures = []
    for pair in _pairs_to_show(finding):
        key = keys[pair.row]
        if key not in sides:
            continue
        pictures = list(zip(("a", "b"), sides[key], strict=True))
        if finding.name.startswith("shifted"):
            pictures.append(("b, with the edges of a in red", _overlaid(*sides[key])))
        for other in (keys[row] for row in pair.others[:1] if keys[row] in sides):
            if finding.name == "exchanged_partners":
                pictures.append((f"fits better: b of {_name(other)}", sides[other][1]))
            else:
                pictures += zip((f"a of {_name(other)}", f"b of {_name(other)}"), sides[other], strict=True)
        figures.append(Figure(_name(key), pair.detail, pictures))
    return figures


def _example(key: Key, sides: tuple[Array, Array], palette: FoundPalette | None) -> Figure:
    """A pair as it is, and its map in the colours that were found."""
    pictures = list(zip(("a", "b"), sides, strict=True))
    if palette:
        image = sides["ab".index(palette.side)]
        pictures.append((f"{palette.side} in {len(palette.colours)} colours", in_palette(image, palette.colours)))
    return Figure(_name(key), "", pictures)


def _overlaid(a: Array, b: Array) -> Array:
    """(H, W, 3) and (h, w, 3) uint8 -> (h, w, 3): B in pale gray with the strong edges of A in red."""
    gray = resize(a, *b.shape[:2]).astype(np.float32).mean(2)
    steps = np.hypot(*np.gradient(gray))
    pale = (160 + b.astype(np.float32).mean(2, keepdims=True) * 0.37).repeat(3, 2)
    strength = np.clip(steps / max(float(np.percentile(steps, 97)), 1.0), 0, 1)[..., None]
    return np.asarray(pale * (1 - strength) + np.array([200, 30, 40]) * strength).astype(np.uint8)


def _log(checks: Sequence[Check], keys: Sequence[Key], page: str) -> None:
    """The table, one line for each check, in the log."""
    log.info("the doctor examined %d pairs:", len(keys))
    width = max(len(check.name) for check in checks)
    for check in checks:
        start = f"  {check.name:<{width}}  {check.examined:>7}  "
        if not check.findings:
            result = "unclear" if check.unclear else "ok"
            log.info("%s", start + (f"{result}: {check.note}" if check.note else result))
        for finding in check.findings:
            names = [_name(keys[pair.row]) for pair in finding.pairs[:_MAX_IN_LOG]]
            names += [uri for uri, _ in finding.files[:_MAX_IN_LOG]]
            more = ", …" if finding.count > len(names) else ""
            log.warning("%s%d %s: %s%s", start, finding.count, finding.name.replace("_", " "), ", ".join(names), more)
    if any(check.findings for check in checks):
        log.info("advice, with pictures: %s", page)
