"""Pairs that are there twice, and pictures that stand in more than one split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from p2p.doctor.features import Facts
from p2p.doctor.finding import Check, Finding, Named

_MOST_BITS = 6  # of 64, per side
_BANDS = 4  # of 16 bits each; copies that differ by fewer bits than there are bands agree in one
_LARGEST_BUCKET = 256  # more alike than that are alike in nothing but being plain
_LEAST_SLOPES = 8
_LEAST_RANGE = 24.0
_MOST_APART = 12.0
"""Brightness levels in any of 16x16 cells. Saved again as a small JPEG, a picture moves up to 12; the next frame
of a film at rest is 14 and more away."""
_PHOTOGRAPH = 0.7  # share of flat steps below which a picture repeats by no accident
_FLATNESS = 5  # its place in the style

Rows = npt.NDArray[np.int64]


def check_duplicates(facts: Facts, splits: npt.NDArray[np.int64]) -> list[Check]:
    """Exact and near copies within each split, and whatever stands in several splits.

    Args:
        facts: (n,) records of `FACTS`.
        splits: (n,) number of each pair's split.

    """
    exact = _groups(len(facts), _same(facts["content"]))
    near = [group for group in _groups(len(facts), _alike(facts)) if len(_distinct(group, facts)) > 1]
    inside = [part for group in exact for part in _parts(group, splits) if len(part) > 1]
    copies = [_one_of_each(part, facts) for group in near for part in _parts(group, splits)]
    copies = [part for part in copies if len(part) > 1]
    across = [group for group in near + exact if np.ptp(splits[group])]
    leaks = _leaks(across, facts, splits)
    return [
        Check("exact duplicates", len(facts), _exact(inside)),
        Check("near duplicates", len(facts), _near(copies)),
        Check("leakage between splits", len(facts), leaks, note="" if np.ptp(splits) else "there is one split only"),
    ]


def _parts(group: Rows, splits: npt.NDArray[np.int64]) -> list[Rows]:
    """The rows of the group by split."""
    return [group[splits[group] == split] for split in np.unique(splits[group])]


def _distinct(group: Rows, facts: Facts) -> Facts:
    return np.unique(facts["content"][group], axis=0)


def _one_of_each(group: Rows, facts: Facts) -> Rows:
    """The first of every exact copy in the group: the others are told of as such."""
    return group[np.sort(np.unique(facts["content"][group], axis=0, return_index=True)[1])]


def _exact(groups: Sequence[Rows]) -> list[Finding]:
    if not groups:
        return []
    return [
        Finding(
            "exact_duplicates",
            "look",
            "Pairs that are there more than once, pixel for pixel",
            "Keep one of each group: copies weigh more in training and make a validation look better than it is.",
            [Named(int(row), "the same pixels", _others(group, row)) for group in groups for row in group],
            numbers={"groups": len(groups)},
        )
    ]


def _near(groups: Sequence[Rows]) -> list[Finding]:
    if not groups:
        return []
    return [
        Finding(
            "near_duplicates",
            "look",
            "Pairs that show almost the same picture on both sides",
            "Keep one of each group unless they are meant: the same picture saved again, or frames of a film at rest.",
            [Named(int(row), "almost the same", _others(group, row)) for group in groups for row in group],
            numbers={"groups": len(groups)},
        )
    ]


def _leaks(groups: Sequence[Rows], facts: Facts, splits: npt.NDArray[np.int64]) -> list[Finding]:
    named: dict[int, Named] = {}
    for group in groups:
        exact = len(_distinct(group, facts)) == 1
        for row in group:
            others = tuple(int(other) for other in group if splits[other] != splits[row])
            detail = f"{'' if exact else 'almost '}the same pair stands in another split"
            named.setdefault(int(row), Named(int(row), detail, others))
    for side, name in enumerate("ab"):
        photographs = np.flatnonzero(
            (facts["range"][:, side] >= _LEAST_RANGE) & (facts["style"][:, side, _FLATNESS] < _PHOTOGRAPH)
        )
        for group in _groups(len(facts), _same(facts["content"][:, side], photographs)):
            for row in group:
                others = tuple(int(other) for other in group if splits[other] != splits[row])
                if others:
                    named.setdefault(int(row), Named(int(row), f"its {name} stands in another split", others))
    if not named:
        return []
    return [
        Finding(
            "leakage",
            "fault",
            "Pictures that stand in more than one split",
            "Take them out of all splits but one: what was trained on cannot judge the result.",
            [named[row] for row in sorted(named)],
        )
    ]


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


def _bits(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """(n,) uint64 -> (n,) how many bits of each are set."""
    octets = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), 8)
    return np.asarray(np.unpackbits(octets, axis=1).sum(1), np.int64)


def _alike(facts: Facts) -> Iterator[tuple[int, int]]:
    """Yield pairs of rows that look almost the same on both sides; at least one side must have something to compare.

    A bucket holds the rows that agree in one band of a side's hash, so nothing is compared with everything.
    """
    telling = np.stack([_bits(facts["hash"][:, side]) >= _LEAST_SLOPES for side in (0, 1)], 1)
    telling &= facts["range"] >= _LEAST_RANGE
    for side in (0, 1):
        rows = np.flatnonzero(telling[:, side])
        bands = facts["hash"][rows, side].copy().view(np.uint16).reshape(-1, _BANDS)
        for band in range(_BANDS):
            order = np.argsort(bands[:, band], kind="stable")
            cuts = np.flatnonzero(np.diff(bands[order, band])) + 1
            for bucket in np.split(rows[order], cuts):
                if 1 < len(bucket) <= _LARGEST_BUCKET:
                    yield from _alike_in(bucket, facts["hash"], facts["small"])


def _alike_in(bucket: Rows, hashes: npt.NDArray[np.uint64], small: npt.NDArray[np.uint8]) -> Iterator[tuple[int, int]]:
    for place, row in enumerate(bucket[:-1]):
        others = bucket[place + 1 :]
        for side in (0, 1):
            others = others[_bits(hashes[others, side] ^ hashes[row, side]) <= _MOST_BITS]
        apart = small[others].astype(np.float32) - small[row]
        apart -= apart.mean(2, keepdims=True)  # a copy may be brighter
        apart = np.abs(apart).max((1, 2), initial=0)
        for other in others[apart <= _MOST_APART]:
            yield int(row), int(other)
