"""Names -> pairs: the one matcher of the layouts, which finds their words in the paths of images."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from p2p.data.joining import (
    COMBINED,
    MAX_SHOWN,
    TWO_FOLDERS,
    FoundLayout,
    Marked,
    Match,
    NamedPaths,
    advised_patterns,
    common_start,
    join_sides,
    leave_out_companions,
    match_two,
)
from p2p.data.layouts import (
    FOLDER_FORMS,
    LAYOUTS,
    NAME_FORMS,
    NOT_PAIRS,
    Form,
    Layout,
    Mark,
    ParsedName,
    at_end,
    at_start,
    in_folder,
    parse_names,
    path_of,
    plain_word,
    stored_split,
    whole_path,
    words_of,
)

LayoutChoice = Literal["auto", "combined", "folders", "rasters"]
_MIN_SHARE_PAIRED = 0.5
"""Of the side with fewer images."""
_MIN_SHARE_COVERED = 0.25
"""Of all images, those that are A or B: of one photo and its four label maps 0.4, of the folders a/ to z/ less."""
_MIN_SHARE_OF_TWO_KINDS = 0.9
_MIN_SHARE_OF_UNKNOWN = 0.6
"""Of all images, those that are paired by words that no layout has."""
_MAX_SEARCHED = 20_000  # names in which words are looked for; how many pair up is counted in all
_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
_LOSSLESS = (".png", ".bmp", ".tif", ".tiff", ".gif")
_OTHERS = "the others"
_CMP = re.compile(r"cmp_[bx]\d", re.IGNORECASE)

Named = TypeVar("Named", ParsedName, str)


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
        if 2 * sum(pattern.fullmatch(path) is not None for path in _some(paths)) > len(_some(paths)):
            return Unclear(f"its images are {what}", are_pairs=False)
    words = _Words(names, layout)
    rows = [row for row in LAYOUTS if not label_kind or row.name != "Cityscapes" or label_kind in row.a]
    published = []
    for match in (match for row in rows if row.is_published for match in words.matches(row)):
        if match.layout.is_certain:
            return [match]
        published.append(match)
    for one_sided in (False, True):
        found = _distinct(
            match for row in rows if not row.is_published for match in words.matches(row, one_sided=one_sided)
        )
        if len(found) > 1:
            sides = " or ".join(match.layout.names_of_sides for match in found[:MAX_SHOWN])
            choices = tuple(_patterns_of(match, paths) for match in found[:MAX_SHOWN])
            return Unclear(f"the names fit several layouts: {sides}", choices)
        if found:
            return found
    found = _distinct([*published, *_unknown_words(names, layout)])
    if certain := [match for match in found if match.layout.is_certain]:
        return certain[:1]
    for match in found:
        match.layout = dataclasses.replace(match.layout, patterns=_patterns_of(match, paths))
    seen = words.near or _describe_folders(names)
    choices = () if found else advised_patterns(_some(paths))
    return Unclear(seen, choices) if layout == "folders" else [_combined(names, unwrap, seen, *choices), *found]


def match_two_sources(
    paths: tuple[Sequence[str], Sequence[str]],
    names: tuple[str, str],
    patterns: tuple[str, str] | None = None,
    *,
    label_kind: str = "",
) -> Match:
    """As `match_two`. Where few names agree, a layout may say how: each side in an archive of its own, as published."""
    match = match_two(paths, names, patterns)
    if patterns or len(match.pairs) >= _MIN_SHARE_PAIRED * min(map(len, paths)):
        return match
    found = match_names([*paths[0], *paths[1]], label_kind=label_kind)
    if isinstance(found, Unclear) or found[0].layout.is_combined or not found[0].layout.is_certain:
        return match
    first, layout, pairs = len(paths[0]), found[0].layout, found[0].pairs
    if all(pair.a < first <= (pair.b or 0) for pair in pairs):
        return found[0]
    if not all((pair.b or 0) < first <= pair.a for pair in pairs):
        return match
    # The user has said which source is A, whatever the layout says.
    turned = Match(dataclasses.replace(layout, sides=layout.sides[::-1]), repeated=found[0].repeated)
    turned.pairs = [NamedPaths(pair.split, pair.pair_id, pair.b or 0, pair.a) for pair in pairs]
    turned.unmatched = [(number, name, "a" if missing == "b" else "b") for number, name, missing in found[0].unmatched]
    turned.left_out = found[0].left_out
    return turned


def _distinct(matches: Iterable[Match]) -> list[Match]:
    """Those that pair other images than the ones before."""
    found: list[Match] = []
    for match in matches:
        if all(match.pairs != other.pairs for other in found):
            found.append(match)
    return found


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


def _some(names: Sequence[Named]) -> Sequence[Named]:
    return names[:: max(1, len(names) // _MAX_SEARCHED)]


def _describe_folders(names: Sequence[ParsedName]) -> str:
    counts = Counter(f"{name.folders[0]}/" if name.folders else "" for name in names)
    loose = counts.pop("", 0)
    shown = [f"{folder} ({count})" for folder, count in sorted(counts.items())[:MAX_SHOWN]]
    shown += ["…"] if len(counts) > MAX_SHOWN else []
    return ", ".join(shown + ([f"{loose} in no sub-folder"] if loose or not shown else []))


def _patterns_of(match: Match, paths: Sequence[str]) -> tuple[str, str]:
    """Patterns that would name the two sides, after the paths of the first pair."""
    pair = match.pairs[0]
    found = []
    for number in (pair.a, pair.b):
        folder, _, name = paths[number or 0].rpartition("/")
        stem, dot, ending = name.rpartition(".")
        for part in (pair.pair_id, pair.pair_id.rpartition("/")[2]):
            before, held, after = f"{folder}/{stem}".lstrip("/").rpartition(part)
            if held:
                found.append(f"{before}{{id}}{after}{dot}{ending}")
                break
    return (found[0], found[1]) if len(found) == 2 else ("", "")


class _Words:
    """The words of some names, by the places where they may be. `near`: of which two sides do not pair up."""

    def __init__(self, names: Sequence[ParsedName], layout: LayoutChoice) -> None:
        self._names, self._all_folders = names, layout == "folders"
        some = _some(names)
        forms = FOLDER_FORMS if layout == "folders" else (*FOLDER_FORMS, *NAME_FORMS)
        self._found = {
            form: Counter(word for name in some for word in {word for word, _ in form(name)}) for form in forms
        }
        # Of all images, those of which a word is looked for in all names: half of what two sides must cover.
        self._few = 0.0 if self._all_folders else _MIN_SHARE_COVERED / 2 * len(some)
        self.near = ""

    def matches(self, row: Layout, *, one_sided: bool = False) -> Iterator[Match]:
        """Yield how the names pair up by words of the layout; `one_sided`: images without a word are its other side."""
        tried = set()
        for form, found in self._found.items():
            if row.where and (row.where == "folder") != (form in FOLDER_FORMS):
                continue
            a, b = (
                [word for word in words_of(text) if word in found] or [""] * (one_sided and row.other == side)
                for side, text in (("a", row.a), ("b", row.b))
            )
            for words in itertools.product(a, b):
                if words in tried or ("" in words) != one_sided or words[0] == words[1]:
                    continue
                if found[words[0]] + found[words[1]] < self._few:
                    continue
                if match := self._pair_up(row, form, words):
                    tried.add(words)
                    yield match

    def _are_clear(self, form: Form, words: tuple[str, str]) -> bool:
        """Whether the words can mean nothing else: single letters also number images, unless nearly all have one."""
        if max(map(len, words)) > 1:
            return True
        clear = {*words, "".join(words)}  # AB/ holds both
        covered = sum(any(word in clear for word, _ in form(name)) for name in self._names)
        return covered >= _MIN_SHARE_OF_TWO_KINDS * len(self._names)

    def _pair_up(self, row: Layout, form: Form, words: tuple[str, str]) -> Match | None:
        sides: tuple[Marked, Marked] = ([], [])
        unmarked = words.index("") if "" in words else None
        for number, name in enumerate(self._names):
            for word, mark in form(name):
                if word in words:
                    sides[words.index(word)].append((number, name.split, mark))
                    break
            else:
                if unmarked is not None:
                    sides[unmarked].append((number, name.split, whole_path(name, _OTHERS)))
        match = _join(row.name, sides, len(self._names), is_certain=self._all_folders or self._are_clear(form, words))
        if match is not None and unmarked is not None:
            leave_out_companions(match, "b" if unmarked == 0 else "a")
        if match is None or (_is_enough(match, sides, len(self._names)) or (self._all_folders and match.pairs)):
            return match
        if form is in_folder and unmarked is None and len(match.pairs) < min(map(len, sides)):
            self.near = self.near or _not_paired(match, sides)
        return None


def _join(layout: str, sides: tuple[Marked, Marked], total: int, *, is_certain: bool = True) -> Match | None:
    if not all(sides):
        return None
    match = Match(FoundLayout(layout, (sides[0][0][2].spelled, sides[1][0][2].spelled), is_certain))
    join_sides(sides, match, total)
    return match


def _is_enough(match: Match, sides: tuple[Marked, Marked], total: int) -> bool:
    paired, covered = len(match.pairs), sum(map(len, sides))
    if _OTHERS in match.layout.sides:
        covered = 2 * paired
    return paired >= max(1, _MIN_SHARE_PAIRED * min(map(len, sides))) and covered >= _MIN_SHARE_COVERED * total


def _not_paired(match: Match, sides: tuple[Marked, Marked]) -> str:
    first = [f"first {letter}: {side[0][2].below}" for letter, side in zip("AB", sides, strict=True)]
    a, b = match.layout.sides
    return (
        f"{len(match.pairs)} of {len(sides[0])} names in {a} have a partner in {b}; names are compared by relative "
        f"path without extension; {', '.join(first)}"
    )


def _unknown_words(names: Sequence[ParsedName], layout: LayoutChoice) -> Iterator[Match]:
    """Yield what pairs up by words that no layout has: two sub-folders, two endings, two words in names."""
    kinds: list[tuple[str, Callable[[ParsedName], Mark | None]]] = [
        (TWO_FOLDERS, lambda name: next((mark for _, mark in in_folder(name)), None)),
        (TWO_FOLDERS, lambda name: next((mark for _, mark in reversed([*in_folder(name)])), None)),
    ]
    if layout != "folders":
        kinds += [
            ("two-ending", lambda name: whole_path(name, _kind_of_file(name))),
            ("two-word", lambda name: _last_word(name, at_end)),
            ("two-word", lambda name: _last_word(name, at_start)),
        ]
    for title, mark_of in kinds:
        few = {mark.spelled for name in _some(names) if (mark := mark_of(name))}
        if len(few) < 2 or (len(few) > 2 and title != "two-ending"):
            continue
        found: dict[str, Marked] = defaultdict(list)
        for number, name in enumerate(names):
            if mark := mark_of(name):
                found[mark.spelled].append((number, name.split, mark))
        two = sorted(sorted(found, key=lambda kind: -len(found[kind]))[:2], key=_side_first)
        sides = found[two[0]], found[two[1]]
        are_photos = two[0] == ".jpg" and two[1] in _LOSSLESS
        is_cmp = are_photos and _CMP.match(names[sides[0][0][0]].stem)
        match = _join(
            "CMP facades" if is_cmp else title, sides, len(names), is_certain=are_photos or layout == "folders"
        )
        of_all = _MIN_SHARE_OF_TWO_KINDS * len(names) <= sum(map(len, sides))
        if match and of_all and 2 * len(match.pairs) >= _MIN_SHARE_OF_UNKNOWN * len(names):
            yield match


_WORDS_OF_A = frozenset(word for row in LAYOUTS for word in words_of(row.a))
_WORDS_OF_B = frozenset(word for row in LAYOUTS for word in words_of(row.b))


def _side_first(kind: str) -> tuple[int, str]:
    """Sorts A before B: by words that layouts have, photos before labels of the same names, else by the alphabet."""
    word = plain_word(kind.strip("/"))
    is_a = kind in (".jpg", _OTHERS) or (word in _WORDS_OF_A and word not in _WORDS_OF_B)
    return (0 if is_a else 2 if word in _WORDS_OF_B else 1), kind


def _kind_of_file(name: ParsedName) -> str:
    return ".jpg" if f".{name.ending}" in _JPEG else f".{name.ending}"


def _last_word(name: ParsedName, form: Form) -> Mark:
    """By the shortest word at one end of the name that is no number."""
    words = [mark for word, mark in form(name) if not word.isdecimal()]
    return words[-1] if words else whole_path(name, _OTHERS)
