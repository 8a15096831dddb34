"""Names -> pairs: the one matcher of the layouts, which finds their words in the paths of images."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from p2p.data.advice import advised_patterns, describe_folders, patterns_of
from p2p.data.joining import (
    COMBINED,
    MAX_SHOWN,
    FoundLayout,
    Match,
    NamedPaths,
    common_start,
    match_two,
)
from p2p.data.layouts import (
    LAYOUTS,
    NOT_PAIRS,
    ParsedName,
    parse_names,
    path_of,
    stored_split,
)
from p2p.data.unknown_words import match_unknown_words
from p2p.data.words import MIN_SHARE_PAIRED, Words, distinct, some_of

LayoutChoice = Literal["auto", "combined", "folders", "rasters"]


@dataclass(frozen=True)
class Unclear:
    """Why names do not pair up: what was seen, and pairs of patterns that could be meant."""

    seen: str
    choices: tuple[tuple[str, str], ...] = ()
    are_pairs: bool = True
    """Whether the images can be pairs at all."""
    have_names: bool = True
    """Whether they are files, not cells of a table."""


def match_names(
    paths: Sequence[str], layout: LayoutChoice = "auto", *, label_kind: str = "", unwrap: bool = False
) -> list[Match] | Unclear:
    """Pair the images of one source by their paths.

    Args:
        paths: relative to the source.
        layout: combined takes every image for both sides; folders looks at the names of folders only.
        label_kind: which of LABEL_KINDS is wanted; the first that is there if empty.
        unwrap: whether a folder that all paths begin with is no part of the names of pairs.

    Returns:
        What was recognised. Where names alone are not certain, what they may mean, the likeliest first: the images must
        show it. Where several layouts fit, or folders were asked for and two are not there, why.

    >>> [match] = match_names(["train_label/1.png", "train_img/1.jpg", "train_inst/1.png"])
    >>> match.layout.summary({"train": 1})
    'pix2pixHD layout: 1 train; A = label/, B = img/'
    >>> match.pairs, match.left_out
    ([NamedPaths(split='train', pair_id='1', a=0, b=1)], [2])

    """
    names = parse_names(paths)
    if layout == "combined":
        return [_combined(names, unwrap)]
    for pattern, what in NOT_PAIRS:
        if 2 * sum(pattern.fullmatch(path) is not None for path in some_of(paths)) > len(some_of(paths)):
            return Unclear(f"its images are {what}", are_pairs=False)
    words = Words(names, all_folders=layout == "folders")
    rows = [row for row in LAYOUTS if not label_kind or row.name != "Cityscapes" or label_kind in row.a]
    plain = [row for row in rows if not row.is_published]
    doubtful = []
    for row in (row for row in rows if row.is_published):
        for match in words.matches(row):
            if match.layout.is_certain:
                by_folders = words.also_by_folders(match, plain) if row.name == "xView" else []
                return _several([match, *by_folders], paths) if by_folders else [match]
            doubtful.append(match)
        if words.rivals:
            return _several(words.rivals, paths)
    near = ""
    for these, one_sided in _to_be_asked(words):
        found = distinct(match for row in plain for match in these.matches(row, one_sided=one_sided))
        certain = distinct([*(match for match in found if match.layout.is_certain), *these.rivals])
        if certain:
            return _several(certain, paths) if len(certain) > 1 else certain
        doubtful += found
        near = near or these.near
    if words.letters:
        return _several(words.letters, paths)
    found = distinct([*doubtful, *match_unknown_words(names, some_of(names), layout == "folders")])
    if certain := [match for match in found if match.layout.is_certain]:
        return certain[:1]
    for match in found:
        match.layout = dataclasses.replace(match.layout, patterns=next(iter(patterns_of(match, paths)), None))
    seen = near or describe_folders(paths, names)
    choices = () if found else advised_patterns(some_of(paths))
    return Unclear(seen, choices) if layout == "folders" else [_combined(names, unwrap, seen, *choices), *found]


def _to_be_asked(words: Words) -> Iterator[tuple[Words, bool]]:
    """Words at the places where most people write them, of both sides, then of one; then among other words."""
    yield words, False
    yield words, True
    yield words.in_middle(), False


def _several(found: Sequence[Match], paths: Sequence[str]) -> Unclear:
    sides = " or ".join(match.layout.names_of_sides for match in found[:MAX_SHOWN])
    choices = tuple(itertools.chain(*(patterns_of(match, paths, are_checked=True) for match in found[:MAX_SHOWN])))
    return Unclear(f"the names fit several layouts: {sides}", choices)


def match_two_sources(
    paths: tuple[Sequence[str], Sequence[str]],
    names: tuple[str, str],
    patterns: tuple[str, str] | None = None,
    *,
    label_kind: str = "",
) -> Match:
    """As `match_two`. Where few names agree, a layout may say how: each side in an archive of its own, as published.

    Else the folder that wraps each archive is no part of the names.
    """
    match = match_two(paths, names, patterns)
    if patterns or len(match.pairs) >= MIN_SHARE_PAIRED * min(map(len, paths)):
        return match
    return _match_layout_of_two(paths, label_kind) or match_two(paths, names, unwrap=not label_kind)


def _match_layout_of_two(paths: tuple[Sequence[str], Sequence[str]], label_kind: str) -> Match | None:
    found = match_names([*paths[0], *paths[1]], label_kind=label_kind)
    if isinstance(found, Unclear) or found[0].layout.is_combined or not found[0].layout.is_certain:
        return None
    first, layout, pairs = len(paths[0]), found[0].layout, found[0].pairs
    if all(pair.a < first <= (pair.b or 0) for pair in pairs):
        return found[0]
    if not all((pair.b or 0) < first <= pair.a for pair in pairs):
        return None
    # The user has said which source is A, whatever the layout says.
    turned = Match(dataclasses.replace(layout, sides=layout.sides[::-1]), repeated=found[0].repeated)
    turned.pairs = [NamedPaths(pair.split, pair.pair_id, pair.b or 0, pair.a) for pair in pairs]
    turned.unmatched = [(number, name, "a" if missing == "b" else "b") for number, name, missing in found[0].unmatched]
    turned.left_out = found[0].left_out
    return turned


def _combined(
    names: Sequence[ParsedName], unwrap: bool, seen: str = "", patterns: tuple[str, str] | None = None
) -> Match:
    match = Match(FoundLayout(COMBINED, ("left half", "right half"), not seen, seen, patterns))
    found = set()
    common = common_start([name.folders for name in names]) if unwrap else ()
    for number, name in enumerate(names):
        pair_id = path_of(name.folders[len(common) :], name.stem)
        split = stored_split(name.split)
        if (split, pair_id) in found:
            match.repeated.append((number, pair_id))
            continue
        found.add((split, pair_id))
        match.pairs.append(NamedPaths(split, pair_id, number, None))
    return match
