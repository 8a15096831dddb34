"""Whether images are pairs at all: where names do not say it, the pixels of some must."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from p2p.data.joining import FoundLayout
from p2p.data.local import session
from p2p.data.matching import Unclear
from p2p.data.pairs import Pairs, open_candidates, read_rows
from p2p.data.tasks import run_as_task
from p2p.doctor.features import compute_features
from p2p.errors import BadInputError, ConfigError, UsageError
from p2p.reports.sheets import as_rgb

MAX_EXAMINED = 24
"""Pairs, of all parts of a data set, that are looked at."""
_MIN_OUTLINES = 0.5
_MIN_BORDERS = 0.67
_MIN_OUTLINES_ALONE, _MIN_ALONE = 0.9, 3
"""Of combined images without a border, such as edges and a photo on white: halves of a pattern fit each other, too."""
_MIN_BORDER = 2.5
"""Step between the halves, as a multiple of the median step from one column to the next. Of combined images of aerial
views and maps, streets and labels, day and night it is 3 and more, in the middle of photographs around 1."""
_MAX_LARGER = (0.03, 0.15)
"""Share of the columns of one half, and of the other, that may have a larger step: a label map has many edges."""
_MAX_SHIFT = 2.0
_MIN_PEAK = 6.0  # as where the doctor measures shifts
_MIN_CONTRAST = 1.5
_FEW = 4.0  # of few pairs chance makes a contrast of this, divided by their number
_STYLE_NOISE = 0.01
_SECONDS = 600.0
NO_PAIR = ("OddWidth", "MismatchedSizes")
"""Kinds of errors of images that can be decoded and are no pairs."""

Image = npt.NDArray[Any]


@dataclass(frozen=True)
class Evidence:
    """What some possible pairs show. `examined`: how many have two sides at all."""

    examined: int
    borders: int = 0
    """In how many the picture breaks off in the middle, as where two are joined."""
    outlines: int = 0
    """In how many both sides have their outlines in the same places."""
    differ: bool = False
    """Whether A looks unlike B in all of them in the same way, as photographs and drawings do."""
    size: str = ""
    """Width and height of the first side A."""

    def shows_pairs(self, is_combined: bool) -> bool:
        """Whether it says that these are pairs. Halves of one photograph may differ too, so there that is no sign."""
        if is_combined:
            alone = self.outlines >= _MIN_ALONE and self._are_most(self.outlines, _MIN_OUTLINES_ALONE)
            return alone or self._are_most(self.borders, _MIN_BORDERS)
        return self._are_most(self.outlines, _MIN_OUTLINES) or self.differ

    def _are_most(self, count: int, share: float) -> bool:
        return count >= max(1.0, share * self.examined)


def examine(pairs: Iterable[tuple[Image, Image]]) -> Evidence:
    """Measure sides A and B, (H, W, C) each, of some possible pairs; of combined images they are the halves."""
    borders = outlines = 0
    styles: list[npt.NDArray[np.float32]] = []
    size = ""
    for a, b in pairs:
        size = size or f"{a.shape[1]}x{a.shape[0]}"
        features, details = compute_features(a, b, ("", ""), detailed=True)
        assert details is not None
        x, y, height = details["peaks"][0]
        outlines += int(max(abs(x), abs(y)) <= _MAX_SHIFT and height >= _MIN_PEAK)
        borders += int(_has_border(a, b))
        styles.append(features["style"][0] - features["style"][1])
    return Evidence(len(styles), borders, outlines, _differ(styles), size)


def _has_border(a: Image, b: Image) -> bool:
    """Whether the step from the last column of A to the first of B is larger than from one column to the next."""
    if a.shape[0] != b.shape[0]:
        return False
    whole = np.concatenate([as_rgb(a), as_rgb(b)], axis=1).astype(np.int16)
    steps = np.abs(np.diff(whole, axis=1)).mean((0, 2))
    middle, halves = steps[a.shape[1] - 1], (steps[: a.shape[1] - 1], steps[a.shape[1] :])
    if not all(map(len, halves)) or middle < max(1.0, _MIN_BORDER * max(map(np.median, halves))):
        return False
    larger = sorted(float((half >= middle).mean()) for half in halves)
    return all(share <= most for share, most in zip(larger, _MAX_LARGER, strict=True))


def _differ(styles: Sequence[npt.NDArray[np.float32]]) -> bool:
    """Whether the mean difference of any of `STYLE` is large beside its spread from pair to pair."""
    if len(styles) < 3:
        return False
    values = np.array(styles, np.float64)
    contrast = np.abs(values.mean(0)) / (values.std(0) + _STYLE_NOISE)
    return bool(contrast.max() >= _MIN_CONTRAST + _FEW / len(styles))


def open_examined_pairs(uri: str, split: str, raw_load_size: int, layout: FoundLayout | None = None) -> Pairs:
    """As `p2p.data.pairs.open_pairs`; raw images whose names are not certain must look like pairs.

    `layout`: what another split has shown already. Raises ConfigError about `data` for images that are no pairs.
    """
    candidates = open_candidates(uri, split, raw_load_size=raw_load_size)
    if isinstance(candidates, Unclear):
        raise no_pairs("data", uri, 0, candidates)
    first: Evidence | None = None
    for pairs in candidates:
        found = pairs.layout
        if found is None or found.is_certain or (layout and found.name == layout.name):
            return pairs
        some = dataclasses.replace(pairs, groups=pairs.groups[:: -(-len(pairs.groups) // MAX_EXAMINED)])
        with session(small=True):
            evidence = run_as_task(_examine_raw, some, seconds=_SECONDS)
        first = first or evidence
        if evidence.shows_pairs(found.is_combined):
            return pairs
    layouts = [pairs.layout for pairs in candidates if pairs.layout]
    choices = tuple(found.patterns for found in layouts if found.patterns)
    raise no_pairs("data", uri, len(candidates[0]), Unclear(layouts[0].seen, choices), first)


def _examine_raw(pairs: Pairs) -> Evidence:
    """Raises UsageError if not one image can be read."""
    found, no_pair, first = [], 0, None
    for row in pairs.rows():
        try:
            (pair,) = read_rows(pairs, [row])
        except BadInputError as error:
            no_pair += error.kind in NO_PAIR
            first = first or error
        else:
            found.append((pair["a"], pair["b"]))
    if not found and not no_pair:
        raise UsageError(f"{first}; jobs/prepare.py leaves bad images out and lists them")
    evidence = examine(found)
    return dataclasses.replace(evidence, examined=evidence.examined + no_pair, size="")  # it is that of crops


def no_pairs(field: str, uri: str, count: int, seen: Unclear, evidence: Evidence | None = None) -> ConfigError:
    """The refusal of a source: what was seen in `count` images, and the options of jobs/prepare.py that would do."""
    if not seen.are_pairs:
        return ConfigError(field, f"{uri}: {seen.seen}")
    problem = f"{uri}: no pairs: {seen.seen}"
    ways = [f"--pattern-a '{a}' --pattern-b '{b}'" for a, b in seen.choices]
    if evidence is not None:
        problem = (
            f"{uri}: {count} images and no pairs: {seen.seen}; nor are they combined pairs, with A in the left half "
        )
        problem += "and B in the right, which break off in the middle or have the same outlines in both halves: "
        problem += f"{evidence.borders} and {evidence.outlines} of {evidence.examined} looked at do"
        problem += f", the first of two halves of {evidence.size}" if evidence.size else ""
        ways.append("--layout combined if they are such pairs")
    if not seen.have_names:
        ways.append("a table with two columns of images, for A and for B")
    elif evidence is not None:
        ways.append("--source-b FOLDER if side B lies there")
    if seen.have_names and not seen.choices:
        ways.append("--pattern-a 'images/{id}.jpg' --pattern-b 'labels/{id}.png' if names tell A from B")
    command = "Pass" if field == "source" else f"Make a data set of it: jobs/prepare.py --source {uri}, with"
    return ConfigError(field, f"{problem}. {command} {', or '.join(ways)}")
