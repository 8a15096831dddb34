"""Two sides of names -> pairs: by what is left of each name, or by patterns that the user gives."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from p2p.data.layouts import Mark, parse_names, split_name, stored_split, whole_path

COMBINED = "combined"
TWO_FOLDERS = "two-folder"
MAX_SHOWN = 6
"""Kinds of names, folders or layouts that a message tells."""
_ENOUGH = 0.5
"""Share of the side with fewer images that has a partner, at which no other way to compare names is tried."""
_COMMON_END = re.compile(r"(?:[_\-. ]+[A-Za-z][A-Za-z0-9]*)+$")
_COMMON_START = re.compile(r"(?:[A-Za-z][A-Za-z0-9]*[_\-. ]+)+")
_LAST_WORD = re.compile(r"[_\-. ]([A-Za-z][^/_\-. ]*)\.[^./]*$")
_SEPARATOR = re.compile(r"[/_\-. ]")
_DIGITS = re.compile(r"\d+")
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
    has_splits = all(any(split for _, split, _ in side) for side in sides)
    splits = [[split if has_splits else "" for _, split, _ in side] for side in sides]
    keys: tuple[dict[tuple[str, str], int], ...] = ({}, {})
    most = -1
    for names in _ways_to_compare([[mark for _, _, mark in side] for side in sides]):
        found = [_first_places(zip(splits[k], names[k], strict=True)) for k in (0, 1)]
        common = len(found[0].keys() & found[1].keys())
        if common > most:
            most, keys, best = common, (found[0], found[1]), names
        if common >= _ENOUGH * min(map(len, sides)):
            break
    seen: tuple[set[tuple[str, str]], ...] = (set(), set())
    paired_splits = {split for split, _ in keys[0].keys() & keys[1].keys()}
    paired: set[tuple[str, str]] = set()
    for k, missing in ((0, "b"), (1, "a")):
        for place, (number, split, _) in enumerate(sides[k]):
            key = splits[k][place], best[k][place]
            if key in seen[k]:
                match.repeated.append((number, key[1]))
                continue
            seen[k].add(key)
            partner = keys[1 - k].get(key)
            if partner is None and key[0] and key[0] not in paired_splits:
                match.left_out.append(number)
            elif partner is None:
                match.unmatched.append((number, key[1], missing))  # type: ignore[arg-type]
            elif k == 0:
                other, other_split, _ = sides[1][partner]
                stored = stored_split(split or other_split)
                if (stored, key[1]) in paired:  # by a split that is stored in the same one
                    match.repeated += [(number, key[1]), (other, key[1])]
                    continue
                paired.add((stored, key[1]))
                match.pairs.append(NamedPaths(stored, key[1], number, other))
    sides_paths = {number for side in sides for number, _, _ in side}
    match.left_out += [number for number in range(total) if number not in sides_paths]


def leave_out_companions(match: Match, missing: SideName) -> None:
    """Images without a `missing` side, whose names are that of a pair and words, are neither A nor B: `7_parts_1`
    beside `7`, and `7/instance_000`. Numbers alone make the name of another image: `7_2`, `7 3`.
    """
    pair_ids = {pair.pair_id for pair in match.pairs}
    alone = match.unmatched
    match.unmatched = [found for found in alone if found[2] != missing or pair_ids.isdisjoint(_starts(found[1]))]
    kept = {number for number, _, _ in match.unmatched}
    match.left_out = sorted([*match.left_out, *(number for number, _, _ in alone if number not in kept)])


def _starts(name: str) -> Iterator[str]:
    """Where a name may end earlier: before each separator after which a letter comes."""
    return (name[: found.start()] for found in _SEPARATOR.finditer(name) if _LETTER.search(name, found.end()))


def _first_places(keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Where each key comes first: of images of one name, the first counts."""
    places: dict[tuple[str, str], int] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, place)
    return places


def _ways_to_compare(sides: Sequence[Sequence[Mark]]) -> Iterator[list[list[str]]]:
    """Yield names of both sides: in full, without the folders above the sides, without words all share."""
    wrappers = {mark.above for side in sides for mark in side}
    stripped = [_without_common_words([mark.below for mark in side]) for side in sides]
    for belows in ([[mark.below for mark in side] for side in sides], stripped):
        if len(wrappers) > 1:
            yield [
                [f"{mark.above}/{below}".lstrip("/") for mark, below in zip(side, names, strict=True)]
                for side, names in zip(sides, belows, strict=True)
            ]
        yield belows


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


def match_two(
    paths: tuple[Sequence[str], Sequence[str]], names: tuple[str, str], patterns: tuple[str, str] | None = None
) -> Match:
    """Pair the images of two sources called `names`. Those of the second are numbered on from those of the first."""
    match = Match(FoundLayout(TWO_FOLDERS, names))
    sides: list[Marked] = []
    first = 0
    for side in (0, 1):
        if patterns:
            sides.append([*_by_pattern(enumerate(paths[side], first), patterns[side])])
        else:
            parsed = parse_names(paths[side])
            sides.append([(number, name.split, whole_path(name)) for number, name in enumerate(parsed, first)])
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
    for number, path in paths:
        if found := expression.fullmatch(path):
            groups = found.groupdict()
            (name,) = parse_names([f"{groups.get('above') or ''}{groups['id']}."])
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


def advised_patterns(paths: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Patterns for two folders, the first that pair their images up; none if no two folders do."""
    folders: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        folder, slash, name = path.rpartition("/")
        if slash:
            folders[folder].append(name)
    largest = sorted(sorted(folders, key=lambda folder: -len(folders[folder]))[:MAX_SHOWN])
    for two in itertools.combinations(largest, 2):
        if len({_DIGITS.sub("", "/".join(names.folders)) for names in parse_names([f"{one}/" for one in two])}) < 2:
            continue  # of two splits, or numbered
        few = [f"{folder}/{name}" for folder in two for name in folders[folder]]
        for varying in (lambda names: "{id}", _varying_part):
            patterns = (f"{two[0]}/{varying(folders[two[0]])}", f"{two[1]}/{varying(folders[two[1]])}")
            if patterns[0].count("{id}") == patterns[1].count("{id}") == 1:
                match = match_patterns(few, patterns)
                if len(match.pairs) >= _ENOUGH * min(len(folders[folder]) for folder in two):
                    return (patterns,)
    return ()


def _varying_part(names: Sequence[str]) -> str:
    """Names with {id} in place of what they do not have in common: of `a_1.png` and `a_2.png` it is `a_{id}.png`."""
    start = common_start(names).rstrip("0123456789")
    end = common_start([name[len(start) :][::-1] for name in names])[::-1].lstrip("0123456789")
    return f"{start}{{id}}{end}"


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
    found = []
    for kind, numbers in kinds.items():
        names = parse_names([paths[number] for number in numbers])
        these = [
            paths[number]
            for number, name in zip(numbers, names, strict=True)
            if split in ("", stored_split(name.split) or "train")
        ]
        if these:
            found.append(f"{len(these)} {kind}: {describe_left_out(these)}")
    return "; ".join(found)
