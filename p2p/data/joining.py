"""Two sides of names -> pairs: by what is left of each name, or by patterns that the user gives."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from p2p.data.layouts import Mark, parse_names, path_of, split_name, stored_split, whole_path

COMBINED = "combined"
TWO_FOLDERS = "two-folder"
OTHERS = "the others"
"""The side of images without a word."""
MAX_SHOWN = 6
"""Kinds of names, folders or layouts that a message tells."""
ENOUGH = 0.5
"""Share of the side with fewer images that has a partner, at which no other way to compare names is tried."""
_NEARLY_ALL = 0.9
"""Share of the side with fewer images that must have a partner where names are shortened by numbers."""
_SCALE = re.compile(r"(?:^|(?<=/))x\d/|_?x\d$", re.IGNORECASE)
_ZEROS = re.compile(r"(?<!\d)0+(?=\d)")
_NUMBERS = re.compile(r"(?<=\d)(?:[_\-]\d+(?:\.\d+)?)+$")
"""What names of one side may have more than those of the other: `x2` of `X2/7x2`, zeros, `_1_0.9` of a fog."""
_COMMON_END = re.compile(r"(?:[_\-. ]+[A-Za-z][A-Za-z0-9]*)+$")
_COMMON_START = re.compile(r"(?:[A-Za-z][A-Za-z0-9]*[_\-. ]+)+")
_LAST_WORD = re.compile(r"[_\-. ]([A-Za-z][^/_\-. ]*)\.[^./]*$")
_SEPARATOR = re.compile(r"[/_\-. ]")
_LETTER = re.compile(r"[^\W\d_]")
_ENDING = r"(?:\.[^./]+)?"

SideName = Literal["a", "b"]
Sequences = TypeVar("Sequences", str, tuple[str, ...])


@dataclass(frozen=True)
class NamedPaths:
    """A pair by the numbers of its paths in the list that was matched; `b` None: one image holds both sides."""

    split: str
    pair_id: str
    a: int
    b: int | None


@dataclass(frozen=True)
class FoundLayout:
    """What was recognised: its name, and for people what A and B are."""

    name: str
    sides: tuple[str, str]
    is_certain: bool = True
    """Whether the names, or the user, say that these are pairs; otherwise the images must show it."""
    seen: str = ""
    """What the names say where they are not certain."""
    patterns: tuple[str, str] | None = None
    """By which a user could say it."""

    def summary(self, counts: Mapping[str, int]) -> str:
        """`Cityscapes layout: 2975 train, 500 val; A = gtFine color, B = leftImg8bit`, of the pairs of each split."""
        found = ", ".join(f"{count} {split}" for split, count in counts.items() if count)
        return f"{self.name} layout: {found or 'no pairs'}; {self.names_of_sides}"

    @property
    def names_of_sides(self) -> str:
        """`A = gtFine color, B = leftImg8bit`."""
        return f"A = {self.sides[0]}, B = {self.sides[1]}"

    @property
    def is_combined(self) -> bool:
        """Whether one image holds both sides."""
        return self.name == COMBINED


@dataclass
class Match:
    """How names pair up. Numbers mean paths of the list that was matched."""

    layout: FoundLayout
    pairs: list[NamedPaths] = field(default_factory=list)
    unmatched: list[tuple[int, str, SideName]] = field(default_factory=list)
    """(path, name of its pair, the side that is missing)."""
    repeated: list[tuple[int, str]] = field(default_factory=list)
    """(path, the name of its pair, which another path has already)."""
    left_out: list[int] = field(default_factory=list)
    """Neither A nor B, or of a split that has one side only."""


Marked = list[tuple[int, str, Mark]]
"""(path, split, mark) of each image of one side."""


def join_sides(sides: tuple[Marked, Marked], match: Match, total: int) -> None:
    """Add to `match` what the two sides have in common, what only one has, and which of `total` paths are neither."""
    keys, names = _best_keys(sides)
    places = [_first_places(side) for side in keys]
    seen: tuple[set[tuple[str, str]], ...] = (set(), set())
    paired_splits = {split for split, _ in places[0].keys() & places[1].keys()}
    paired: set[tuple[str, str]] = set()
    for k, missing in ((0, "b"), (1, "a")):
        for place, (number, split, _) in enumerate(sides[k]):
            key, pair_id = keys[k][place], names[k][place]
            if key in seen[k]:
                match.repeated.append((number, pair_id))
                continue
            seen[k].add(key)
            partner = places[1 - k].get(key)
            if partner is None and key[0] and key[0] not in paired_splits:
                match.left_out.append(number)
            elif partner is None:
                match.unmatched.append((number, pair_id, missing))  # type: ignore[arg-type]
            elif k == 0:
                other, other_split, _ = sides[1][partner]
                stored = stored_split(split or other_split)
                if (stored, key[1]) in paired:  # by a split that is stored in the same one
                    match.repeated += [(number, pair_id), (other, pair_id)]
                    continue
                paired.add((stored, key[1]))
                match.pairs.append(NamedPaths(stored, pair_id, number, other))
    sides_paths = {number for side in sides for number, _, _ in side}
    match.left_out += [number for number in range(total) if number not in sides_paths]


Keys = list[tuple[str, str]]
"""(split, name) of each image of one side, as they are compared; no split where a side has none at all."""


def _best_keys(sides: tuple[Marked, Marked]) -> tuple[list[Keys], list[list[str]]]:
    """The keys of both sides by which the most images have a partner, and the names that these are made of."""
    has_splits = all(any(split for _, split, _ in side) for side in sides)
    splits = [[split if has_splits else "" for _, split, _ in side] for side in sides]
    most, best = -1, None
    for names in _ways_to_compare(sides):
        compared = _as_compared(names)
        keys = [list(zip(splits[k], compared[k], strict=True)) for k in (0, 1)]
        common = len({*keys[0]} & {*keys[1]})
        if common > most:
            most, best = common, (keys, names)
        if common >= ENOUGH * min(map(len, sides)):
            break
    assert best is not None
    return best


def _as_compared(names: list[list[str]]) -> list[list[str]]:
    """Names in one form of Unicode, as systems store one name in two. Separators at their ends count only where they
    tell two names apart: `7_` beside `7__mask`.
    """
    composed = [[unicodedata.normalize("NFC", name) for name in side] for side in names]
    ended = [[name.rstrip("_-. ") for name in side] for side in composed]
    are_distinct = all(len({*one}) == len({*other}) for one, other in zip(composed, ended, strict=True))
    return ended if are_distinct else composed


def join_as(layout: str, sides: tuple[Marked, Marked], total: int, *, is_certain: bool) -> Match | None:
    """Join two sides as a layout of that name; None if one is empty."""
    if not all(sides):
        return None
    match = Match(FoundLayout(layout, (_spelled(sides[0]), _spelled(sides[1])), is_certain))
    join_sides(sides, match, total)
    return match


def _spelled(side: Marked) -> str:
    """What people call a side: its folder, of several the first and how many more."""
    first = side[0][2].spelled
    more = len({mark.spelled for _, _, mark in side}) - 1 if first.endswith("/") else 0
    return f"{first} and {more} more" if more else first


def leave_out_companions(match: Match, missing: SideName) -> None:
    """Images without a `missing` side, whose names are that of a pair and words, are neither A nor B: `7_parts_1`
    beside `7`, and `7/instance_000`. Numbers alone make the name of another image: `7_2`, `7 3`.
    """
    pair_ids = {pair.pair_id for pair in match.pairs}
    alone = match.unmatched
    match.unmatched = [found for found in alone if found[2] != missing or pair_ids.isdisjoint(_starts(found[1]))]
    kept = {number for number, _, _ in match.unmatched}
    match.left_out = sorted([*match.left_out, *(number for number, _, _ in alone if number not in kept)])


def why_splits_clash(match: Match, sides: tuple[Marked, Marked]) -> str:
    """Why names that agree tell no pairs: one side alone has splits, and many of its names in several; else empty."""
    has_splits = [any(split for _, split, _ in side) for side in sides]
    if has_splits[0] == has_splits[1] or not match.repeated:
        return ""
    which = has_splits.index(True)
    splits = {number: split for number, split, _ in sides[which]}
    firsts = {pair.pair_id: splits[(pair.a, pair.b or 0)[which]] for pair in match.pairs}
    count = sum(splits.get(number, firsts.get(name)) != firsts.get(name) for number, name in match.repeated)
    if 2 * count < len(match.pairs):
        return ""
    names = match.layout.sides
    return f"{count} names are in more than one split of {names[which]}, and {names[1 - which]} has none"


def leave_out_rest(match: Match, missing: SideName) -> None:
    """Where one side covers a part of the other, as published, leave the rest of that out."""
    if match.pairs and all(found[2] == missing for found in match.unmatched):
        match.left_out = sorted([*match.left_out, *(number for number, _, _ in match.unmatched)])
        match.unmatched = []


def several_for_one(match: Match, sides: tuple[Marked, Marked]) -> str:
    """What to say where several names of one side begin with one name of the other; empty if they do not."""
    names = [[_ZEROS.sub("", mark.below.rpartition("/")[2]) for _, _, mark in side] for side in sides]
    for many, one in ((0, 1), (1, 0)):
        known = {*names[one]}
        found = [next((start for start in _parts(name) if start in known), None) for name in names[many]]
        count = Counter(start for start in found if start)
        if 2 * count.total() > len(found) and count.total() >= 2 * len(count):
            a, b = (
                f"{count.total()} images of {match.layout.sides[many]}",
                f"{len(count)} of {match.layout.sides[one]}",
            )
            return f"{a} belong to {b}, several to one, and a pair has one of each"
    return ""


def _parts(name: str) -> Iterator[str]:
    return (name[: found.start()] for found in _SEPARATOR.finditer(name))


def _starts(name: str) -> Iterator[str]:
    """Where a name may end earlier: before each separator after which a letter comes."""
    return (name[: found.start()] for found in _SEPARATOR.finditer(name) if _LETTER.search(name, found.end()))


def _first_places(keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Where each key comes first: of images of one name, the first counts."""
    places: dict[tuple[str, str], int] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, place)
    return places


def _ways_to_compare(sides: Sequence[Marked]) -> Iterator[list[list[str]]]:
    """Yield names of both sides: in full, without the folders above the sides, without words all (of a split) share."""
    wrappers = {mark.above for side in sides for _, _, mark in side}
    ways = [
        [[mark.below for _, _, mark in side] for side in sides],
        [_without_common_words([mark.below for _, _, mark in side]) for side in sides],
    ]
    if not any(mark.spelled == OTHERS for side in sides for _, _, mark in side[:1]):
        ways.append([_without_words_of_splits(side) for side in sides])
    for belows in ways:
        if len(wrappers) > 1:
            yield [
                [f"{mark.above}/{below}".lstrip("/") for (_, _, mark), below in zip(side, names, strict=True)]
                for side, names in zip(sides, belows, strict=True)
            ]
        yield belows
    for pattern in (_SCALE, _ZEROS, _NUMBERS):
        shorter = [[pattern.sub("", name) for name in names] for names in ways[0]]
        if pattern is _NUMBERS:  # of one side, that those of the other do not have
            shorter = [
                [name if name in other else short for name, short in zip(names, shorts, strict=True)]
                for names, shorts, other in zip(ways[0], shorter, ({*names} for names in ways[0][::-1]), strict=True)
            ]
        are_distinct = all(len({*one}) == len({*other}) for one, other in zip(ways[0], shorter, strict=True))
        if are_distinct and len({*shorter[0]} & {*shorter[1]}) >= _NEARLY_ALL * min(map(len, sides)):
            yield shorter


def common_start(texts: Sequence[Sequences]) -> Sequences:
    """With what all of them begin. Of all in order, the first and the last have the least in common."""
    low, high = min(texts), max(texts)
    return next((low[:place] for place, (one, other) in enumerate(zip(low, high, strict=False)) if one != other), low)


def _without_common_words(names: list[str]) -> list[str]:
    """`x/1_A`, `x/2_A` -> `x/1`, `x/2`: without the words at the ends or beginnings of all files' names."""
    if not names:
        return names
    parts = [name.rpartition("/") for name in names]
    end = _COMMON_END.search(common_start([stem[::-1] for _, _, stem in parts])[::-1])
    cut = len(end[0]) if end else 0
    stems = [stem[: len(stem) - cut] for _, _, stem in parts]
    start = _COMMON_START.match(common_start(stems))
    first = len(start[0]) if start and all(len(stem) > len(start[0]) for stem in stems) else 0
    return [folder + slash + stem[first:] for (folder, slash, _), stem in zip(parts, stems, strict=True)]


def _without_words_of_splits(side: Marked) -> list[str]:
    """`1_training` of train/ and `2_test` of test/ -> 1, 2."""
    names = [mark.below for _, _, mark in side]
    for wanted in {split for _, split, _ in side}:
        places = [place for place, (_, split, _) in enumerate(side) if split == wanted]
        for place, name in zip(places, _without_common_words([names[place] for place in places]), strict=True):
            names[place] = name
    return names


def match_two(
    paths: tuple[Sequence[str], Sequence[str]],
    names: tuple[str, str],
    patterns: tuple[str, str] | None = None,
    *,
    unwrap: bool = False,
) -> Match:
    """Pair the images of two sources called `names`. Those of the second are numbered on from those of the first.

    `unwrap`: the folders that all images of a source lie in are no part of their names.
    """
    match = Match(FoundLayout(TWO_FOLDERS, names))
    sides: list[Marked] = []
    first = 0
    for side in (0, 1):
        if patterns:
            sides.append([*_by_pattern(enumerate(paths[side], first), patterns[side])])
        else:
            parsed = parse_names(paths[side])
            above = common_start([name.folders for name in parsed]) if unwrap else ()
            marks = [Mark("/".join(above), path_of(name.folders[len(above) :], name.stem)) for name in parsed]
            sides.append([*zip(itertools.count(first), (name.split for name in parsed), marks)])
        first += len(paths[side])
    join_sides((sides[0], sides[1]), match, first)
    return match


def match_patterns(paths: Sequence[str], patterns: tuple[str, str]) -> Match:
    """Pair the images of one source by two patterns of paths.

    >>> match = match_patterns(["day/1.jpg", "night/1.png"], ("night/{id}", "day/{id}"))
    >>> match.pairs
    [NamedPaths(split='', pair_id='1', a=1, b=0)]
    """
    # The one that says more is asked first: {id}_mask.png before {id}.png.
    first, second = sorted((0, 1), key=lambda side: -len(patterns[side]))
    sides: dict[int, Marked] = {first: [*_by_pattern(enumerate(paths), patterns[first])]}
    taken = {number for number, _, _ in sides[first]}
    rest = ((number, path) for number, path in enumerate(paths) if number not in taken)
    sides[second] = [*_by_pattern(rest, patterns[second])]
    match = Match(FoundLayout("named", patterns))
    join_sides((sides[0], sides[1]), match, len(paths))
    return match


def _by_pattern(paths: Iterable[tuple[int, str]], pattern: str) -> Iterator[tuple[int, str, Mark]]:
    expression = compile_pattern(pattern)
    found = [(number, hit.groupdict()) for number, path in paths if (hit := expression.fullmatch(path))]
    names = parse_names([f"{groups.get('above') or ''}{groups['id']}." for _, groups in found])
    for (number, groups), name in zip(found, names, strict=True):
        yield number, split_name(groups.get("split") or "") or name.split, whole_path(name)


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A pattern of paths, such as `images/{split}/{id}.jpg` -> an expression with the groups `id` and `split`.

    It is the end of a path, and the ending may be left out. Raises ValueError if it is no pattern.
    """
    if pattern.count("{id}") != 1 or pattern.count("{split}") > 1:
        raise ValueError("must hold {id} once, which stands for what both sides have in common, as in images/{id}.jpg")
    text = re.escape(pattern.strip("/")).replace(r"\{id\}", "(?P<id>.+)").replace(r"\{split\}", "(?P<split>[^/]+)")
    if "/" not in pattern.strip("/"):
        text = text.replace(".+", "[^/]+")
    text = f"(?P<above>(?:.*/)?){text}"
    if not re.search(r"\.\w+$", pattern):
        text += _ENDING
    return re.compile(text, re.IGNORECASE)


def describe_left_out(paths: Sequence[str]) -> str:
    """Images that are neither A nor B, by the words at the ends of their names or by folder: `train_inst/ (6)`."""
    last = [_LAST_WORD.search(path) for path in paths]
    words = [found[1] if found else "" for found in last]
    shared = Counter(words)
    counts = Counter(
        f"…{word}" if word and shared[word] > 1 else f"{path.rpartition('/')[0]}/" if "/" in path else path
        for word, path in zip(words, paths, strict=True)
    )
    shown = [f"{name} ({count})" for name, count in counts.most_common(MAX_SHOWN)]
    return ", ".join(shown + ["…"] * (len(counts) > MAX_SHOWN))


def describe_rest(match: Match, paths: Sequence[str], split: str) -> str:
    """Images that became no pair of `split` (empty: of any): `4 without a partner: A/ (4)`."""
    kinds = {
        "without a partner": [number for number, _, _ in match.unmatched],
        "of a name that another has": [number for number, _ in match.repeated],
        "neither A nor B of a pair": match.left_out,
    }
    found, names = [], parse_names(paths)
    for kind, numbers in kinds.items():
        these = [paths[number] for number in numbers if split in ("", stored_split(names[number].split) or "train")]
        if these:
            found.append(f"{len(these)} {kind}: {describe_left_out(these)}")
    return "; ".join(found)
