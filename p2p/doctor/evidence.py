"""Whether images are pairs at all: where names do not say it, the pixels of some must."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from p2p.data.joining import FoundLayout
from p2p.data.local import session
from p2p.data.matching import Unclear
from p2p.data.order import Row
from p2p.data.pairs import Pairs, open_candidates, read_rows
from p2p.data.tasks import run_as_task
from p2p.doctor.features import STYLE, compute_features
from p2p.errors import BadInputError, ConfigError, TaskFailedError, UsageError
from p2p.reports.sheets import as_rgb

log = logging.getLogger("p2p")

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
_MIN_CONTRAST_OF_STRANGERS = 4.0
"""Of what drawings have less of than photographs, 10 and more; of sunny days and storms, which differ too, up to 3."""
_MIN_STYLES = 3
_MIN_STRANGERS = 8
"""Pairs without common outlines that are remarkable: of aerial views and maps, half have them."""
_MIN_SIDE = 64  # pixels, below which outlines tell little
_MAX_OTHER_SHAPE = 0.1  # relative
_OF_DRAWINGS = [STYLE.index(name) for name in ("edges", "flatness", "colours")]
_FEW = 4.0  # of few pairs chance makes a contrast of this, divided by their number
_STYLE_NOISE = 0.01
_SECONDS = 600.0
NO_PAIR = ("OddWidth", "MismatchedSizes")
"""Kinds of errors of images that can be decoded and are no pairs."""

Image = npt.NDArray[Any]


@dataclass(frozen=True)
class Evidence:
    """What some possible pairs show. `examined`: how many have two sides at all."""

    examined: int = 0
    borders: int = 0
    """In how many the picture breaks off in the middle, as where two are joined."""
    outlines: int = 0
    """In how many both sides have their outlines in the same places."""
    large: int = 0
    """How many are large enough for that."""
    styles: tuple[npt.NDArray[np.float32], ...] = ()
    """What of `STYLE` A has more of than B, in each."""
    shapes: tuple[float, ...] = ()
    """Width over height of side A of each."""
    size: str = ""
    """Width and height of the first side A."""
    problem: str = ""
    """Why the first that cannot be decoded cannot."""

    def __add__(self, other: Evidence) -> Evidence:
        return Evidence(
            self.examined + other.examined,
            self.borders + other.borders,
            self.outlines + other.outlines,
            self.large + other.large,
            self.styles + other.styles,
            self.shapes + other.shapes,
            self.size or other.size,
            self.problem or other.problem,
        )

    @property
    def differ(self) -> bool:
        """Whether A looks unlike B in all of them in the same way, as photographs and drawings do."""
        if len(self.styles) < _MIN_STYLES:
            return False
        values = np.array(self.styles, np.float64)
        contrast = np.abs(values.mean(0)) / (values.std(0) + _STYLE_NOISE)
        if self.are_strangers:
            return bool(contrast[_OF_DRAWINGS].max() >= _MIN_CONTRAST_OF_STRANGERS)
        return bool(contrast.max() >= _MIN_CONTRAST + _FEW / len(values))

    @property
    def are_strangers(self) -> bool:
        """Whether no two sides have outlines in common, of enough that are large enough to tell."""
        return self.large >= _MIN_STRANGERS and not self.outlines

    @property
    def usual_shape(self) -> float:
        """Width over height that most sides A have; 0 if they vary."""
        usual = float(np.median(self.shapes)) if self.shapes else 0.0
        return usual if 2 * sum(have_one_shape(shape, usual) for shape in self.shapes) > len(self.shapes) else 0.0

    def shows_pairs(self, is_combined: bool) -> bool:
        """Whether it says that these are pairs. Halves of one photograph may differ too, so there that is no sign."""
        if is_combined:
            alone = self.outlines >= _MIN_ALONE and self._are_most(self.outlines, _MIN_OUTLINES_ALONE)
            return alone or self._are_most(self.borders, _MIN_BORDERS)
        return self._are_most(self.outlines, _MIN_OUTLINES) or self.differ

    def _are_most(self, count: int, share: float) -> bool:
        return count >= max(1.0, share * self.examined)


def have_one_shape(one: float, other: float) -> bool:
    """Whether combined pairs of one data set may have these two shapes, width over height of a side each."""
    return abs(one / other - 1) <= _MAX_OTHER_SHAPE


def warn_of_strangers(uri: str, layout: FoundLayout, evidence: Evidence) -> None:
    """Report sides of which no two have outlines in common: photographs of horses and of zebras, for example."""
    if not layout.is_combined and evidence.are_strangers:
        log.warning(
            "%s: in none of the %d pairs looked at have %s and %s their outlines in the same places; either they "
            "are no pairs, as those of CycleGAN's trainA/ and trainB/, or too dark, blurred or small to tell",
            *(uri, evidence.examined, *layout.sides),
        )


def examine(pairs: Iterable[tuple[Image, Image]]) -> Evidence:
    """Measure sides A and B, (H, W, C) each, of some possible pairs; of combined images they are the halves."""
    evidence = Evidence()
    for a, b in pairs:
        features, details = compute_features(a, b, ("", ""), detailed=True)
        assert details is not None
        x, y, peak = details["peaks"][0]
        outlines = max(abs(x), abs(y)) <= _MAX_SHIFT and peak >= _MIN_PEAK
        style = features["style"][0] - features["style"][1]
        large = int(min(*a.shape[:2], *b.shape[:2]) >= _MIN_SIDE)
        height, width = a.shape[:2]
        evidence += Evidence(
            1, _has_border(a, b), int(outlines), large, (style,), (width / height,), f"{width}x{height}"
        )
    return evidence


def examine_in_task(call: Callable[..., Evidence], items: Sequence[Any], *args: Any) -> Evidence:
    """`call(items, *args)` in another process; where that ends, item by item, without those at which it ends again."""
    try:
        return run_as_task(call, items, *args, retries=0, seconds=_SECONDS)
    except TaskFailedError as error:
        log.info("%s; looking at images one by one", error)
    evidence = Evidence()
    for item in items:
        with contextlib.suppress(TaskFailedError):
            evidence += run_as_task(call, [item], *args, retries=0, seconds=_SECONDS)
    return evidence


def _has_border(a: Image, b: Image) -> int:
    """Whether the step from the last column of A to the first of B is larger than from one column to the next."""
    if a.shape[0] != b.shape[0]:
        return 0
    whole = np.concatenate([as_rgb(a), as_rgb(b)], axis=1).astype(np.int16)
    steps = np.abs(np.diff(whole, axis=1)).mean((0, 2))
    middle, halves = steps[a.shape[1] - 1], (steps[: a.shape[1] - 1], steps[a.shape[1] :])
    if not all(map(len, halves)) or middle < max(1.0, _MIN_BORDER * max(map(np.median, halves))):
        return 0
    larger = sorted(float((half >= middle).mean()) for half in halves)
    return int(all(share <= most for share, most in zip(larger, _MAX_LARGER, strict=True)))


def open_examined_pairs(uri: str, split: str, raw_load_size: int, layout: FoundLayout | None = None) -> Pairs:
    """As `p2p.data.pairs.open_pairs`; raw images whose names are not certain must look like pairs.

    `layout`: what another split has shown already. Raises ConfigError about `data` for images that are no pairs.
    """
    candidates = open_candidates(uri, split, raw_load_size=raw_load_size)
    if isinstance(candidates, Unclear):
        raise no_pairs("data", uri, 0, candidates)
    layouts = [pairs.layout for pairs in candidates if pairs.layout]
    for pairs in candidates:
        if not pairs.layout or pairs.layout.is_certain or (layout and pairs.layout.name == layout.name):
            return pairs.log_left_out()
    with session(small=True):
        first: Evidence | None = None
        for pairs, found in zip(candidates, layouts, strict=True):
            rows = pairs.rows()
            evidence = examine_in_task(_examine_raw, rows[:: -(-len(rows) // MAX_EXAMINED)], pairs)
            if evidence.problem and not evidence.examined:
                raise UsageError(f"{evidence.problem}; jobs/prepare.py leaves bad images out and lists them")
            first = first or evidence
            if not evidence.examined or evidence.shows_pairs(found.is_combined):
                warn_of_strangers(uri, found, evidence)
                return pairs.log_left_out()
    choices = tuple(found.patterns for found in layouts if found.patterns)
    raise no_pairs("data", uri, len(candidates[0]), Unclear(layouts[0].seen, choices), first)


def _examine_raw(rows: Sequence[Row], pairs: Pairs) -> Evidence:
    evidence = Evidence()
    for row in rows:
        try:
            (pair,) = read_rows(pairs, [row])
        except BadInputError as error:
            evidence += Evidence(int(error.kind in NO_PAIR), problem=str(error))
        else:
            evidence += dataclasses.replace(examine([(pair["a"], pair["b"])]), size="")  # it is scaled
    return evidence


def no_pairs(field: str, uri: str, count: int, seen: Unclear, evidence: Evidence | None = None) -> ConfigError:
    """The refusal of a source: what was seen in `count` images, and the options of jobs/prepare.py that would do."""
    if not seen.are_pairs:
        return ConfigError(field, f"{uri}: {seen.seen}")
    problem = f"{uri}: no pairs: {seen.seen}"
    ways = [f"--pattern-a '{a}' --pattern-b '{b}' if these are A and B" for a, b in seen.choices]
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
        ways.append(
            "--pattern-a PATTERN --pattern-b PATTERN if names tell A from B: the ends of their paths, with {id} for "
            "what those of a pair have in common, as in '{id}_mask.png' and '{id}.jpg'"
        )
    command = "Pass" if field == "source" else f"Make a data set of it: jobs/prepare.py --source {uri}, with"
    return ConfigError(field, f"{problem}. {command} {', or '.join(ways)}")
