"""Pairs that are there twice, images that are in more than one split, and pairs of one picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from p2p.doctor.features import STYLE, Records
from p2p.doctor.findings import Check, Finding, NamedPair

_MAX_BITS = 6  # of 64, per side
_BANDS = 4  # of 16 bits each; copies that differ by fewer bits than there are bands agree in one
_MAX_BUCKET = 256  # a larger bucket holds images that have nothing in common but being plain
_MIN_SLOPES = 8
_MIN_RANGE = 24.0
_MAX_DIFFERENCE = 12.0
"""Brightness levels in any of 16x16 cells. Saved again as a small JPEG, a picture moves up to 12; the next frame
of a film at rest is 14 and more away."""
_MAX_FLAT_SHARE = 0.7
"""Share of flat steps of a photograph; drawn pictures have more, and repeat by accident."""

Rows = npt.NDArray[np.int64]


def check_duplicates(features: Records, splits: npt.NDArray[np.int64]) -> list[Check]:
    """Exact and near copies within each split, and whatever is in several splits.

    Args:
        features: (n,) records of `FEATURES`.
        splits: (n,) number of each pair's split.

    """
    exact = _groups(len(features), _same(features["content"]))
    near = [group for group in _groups(len(features), _alike(features)) if len(_distinct(group, features)) > 1]
    # Of exact copies, near ones list the first only.
    distinct = [part[_distinct(part, features)] for group in near for part in _by_split(group, splits)]
    exact_copies = Finding(
        "exact_duplicates",
        "warning",
        "Pairs that are there more than once, pixel for pixel",
        "Keep one of each group: copies weigh more in training and make a validation look better than it is.",
        **_copies([part for group in exact for part in _by_split(group, splits)], "the same pixels"),
    )
    near_copies = Finding(
        "near_duplicates",
        "warning",
        "Pairs that show almost the same picture on both sides",
        "Keep one of each group unless they are meant: the same picture saved again, or frames of a film at rest.",
        **_copies(distinct, "almost the same"),
    )
    leakage = Finding(
        "leakage",
        "error",
        "Pictures that are in more than one split",
        "Take them out of all splits but one: what was trained on cannot judge the result.",
        _leaks([group for group in near + exact if np.ptp(splits[group])], features, splits),
    )
    return [
        Check("exact duplicates", len(features), [exact_copies]),
        Check("near duplicates", len(features), [near_copies]),
        Check("leakage between splits", len(features), [leakage], "" if np.ptp(splits) else "there is one split only"),
    ]


def check_equal_sides(features: Records) -> Check:
    """Find pairs that are one picture twice: a file and its copy, found under two names. features: as above."""
    contents, sizes = features["content"], features["size"]
    is_equal = (contents[:, 0] == contents[:, 1]) & (sizes[:, 0] == sizes[:, 1]).all(1)
    finding = Finding(
        "equal_sides",
        "warning",
        "Pairs whose sides are the same picture, pixel for pixel",
        "Leave them out unless they are meant: there is nothing to translate.",
        [
            NamedPair(int(row), "a and b are the same")
            for row in np.flatnonzero(is_equal & (features["range"][:, 0] > 0))
        ],
    )
    return Check("equal sides", len(features), [finding])


def _by_split(group: Rows, splits: npt.NDArray[np.int64]) -> list[Rows]:
    return [group[splits[group] == split] for split in np.unique(splits[group])]


def _distinct(group: Rows, features: Records) -> Rows:
    """Places in the group of the first of each of its different pairs."""
    return np.sort(np.unique(features["content"][group], axis=0, return_index=True)[1])


def _copies(groups: Sequence[Rows], detail: str) -> dict[str, Any]:
    """The pairs of a finding and its numbers, for groups of two and more."""
    groups = [group for group in groups if len(group) > 1]
    pairs = [NamedPair(int(row), detail, _others(group, row)) for group in groups for row in group]
    return {"pairs": pairs, "numbers": {"groups": len(groups)}}


def _leaks(groups: Sequence[Rows], features: Records, splits: npt.NDArray[np.int64]) -> list[NamedPair]:
    named: dict[int, NamedPair] = {}

    def add(group: Rows, detail: str) -> None:
        for row in group:
            others = tuple(int(other) for other in group if splits[other] != splits[row])
            if others:
                named.setdefault(int(row), NamedPair(int(row), detail, others))

    for group in groups:
        almost = "" if len(_distinct(group, features)) == 1 else "almost "
        add(group, f"{almost}the same pair is in another split")
    for side, name in enumerate("ab"):
        is_photograph = (features["range"][:, side] >= _MIN_RANGE) & (
            features["style"][:, side, STYLE.index("flatness")] < _MAX_FLAT_SHARE
        )
        for group in _groups(len(features), _same(features["content"][:, side], np.flatnonzero(is_photograph))):
            add(group, f"its {name} is in another split")
    return [named[row] for row in sorted(named)]


def _others(group: Rows, row: np.int64) -> tuple[int, ...]:
    return tuple(int(other) for other in group if other != row)


def _same(content: npt.NDArray[np.uint64], rows: Rows | None = None) -> Iterator[tuple[int, int]]:
    """Yield (first row, other row) of equal digests, among `rows` or all. content: (n,) or (n, 2)."""
    rows = np.arange(len(content)) if rows is None else rows
    first: dict[bytes, int] = {}
    for row in rows.tolist():
        known = first.setdefault(content[row].tobytes(), row)
        if known != row:
            yield known, row


def _groups(count: int, links: Iterator[tuple[int, int]]) -> list[Rows]:
    """The connected groups of two and more among `count` rows, each sorted, in order of their first rows."""
    root: dict[int, int] = {}

    def find(row: int) -> int:
        while root.get(row, row) != row:
            row = root[row]
        return row

    for one, other in links:
        low, high = sorted((find(one), find(other)))
        root[high] = low
        root.setdefault(low, low)
    members: dict[int, list[int]] = {}
    for row in sorted(root):
        members.setdefault(find(row), []).append(row)
    return [np.array(group) for group in members.values() if len(group) > 1]


def _alike(features: Records) -> Iterator[tuple[int, int]]:
    """Yield pairs of rows that look almost the same on both sides; at least one side must have something to compare.

    A bucket holds the rows that agree in one band of a side's hash, so nothing is compared with everything.
    """
    has_content = np.stack([np.bitwise_count(features["hash"][:, side]) >= _MIN_SLOPES for side in (0, 1)], 1)
    has_content &= features["range"] >= _MIN_RANGE
    for side in (0, 1):
        rows = np.flatnonzero(has_content[:, side])
        bands = features["hash"][rows, side].copy().view(np.uint16).reshape(-1, _BANDS)
        for band in range(_BANDS):
            order = np.argsort(bands[:, band], kind="stable")
            cuts = np.flatnonzero(np.diff(bands[order, band])) + 1
            for bucket in np.split(rows[order], cuts):
                if 1 < len(bucket) <= _MAX_BUCKET:
                    yield from _alike_in(bucket, features["hash"], features["small"])


def _alike_in(bucket: Rows, hashes: npt.NDArray[np.uint64], small: npt.NDArray[np.uint8]) -> Iterator[tuple[int, int]]:
    for place, row in enumerate(bucket[:-1]):
        others = bucket[place + 1 :]
        for side in (0, 1):
            others = others[np.bitwise_count(hashes[others, side] ^ hashes[row, side]) <= _MAX_BITS]
        apart = small[others].astype(np.float32) - small[row]
        apart -= apart.mean(2, keepdims=True)  # a copy may be brighter
        apart = np.abs(apart).max((1, 2), initial=0)
        for other in others[apart <= _MAX_DIFFERENCE]:
            yield int(row), int(other)
