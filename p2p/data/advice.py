"""What a message says of names that do not pair up: the folders that were seen, and patterns that would pair them."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence

from p2p.data.joining import MAX_SHOWN, Match, common_start, match_patterns
from p2p.data.layouts import LAYOUTS, ParsedName, mark_repeated_split, mark_split, plain_word, words_of

_MIN_SHARE_PAIRED = 0.15
"""Of all images, those that two patterns must pair up: of five kinds of each a fifth."""
_MIN_PAIRED = 2
_MAX_ELSEWHERE = 0.1
"""Of all images, those in folders without the two kinds of names: there may be what they belong to."""
_MAX_TRIED = 24  # patterns, of either kind
_MAX_ENDS = 4  # of a name
_MAX_NUMBERS = 2
"""Numbers at the ends of names that may be sides: `_0`, `_1`."""
_VAGUE = frozenset({"a", "b"})
"""Words that are also parts of names."""
_UNKNOWN = 1
_WORDS_OF_A = frozenset(word for row in LAYOUTS for word in words_of(row.a)) - _VAGUE
_WORDS_OF_B = frozenset(word for row in LAYOUTS for word in words_of(row.b)) - _VAGUE
_DIGITS = re.compile(r"\d+")
_SEPARATOR = re.compile(r"[_\-. ]")
_LETTERS = re.compile(r"[A-Za-z]+")
_LETTER = re.compile(r"[^\W\d_]")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[A-Za-z]+\d+|\d+[A-Za-z]+")


def advised_patterns(paths: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The patterns for two folders, or for two kinds of names, that pair most images up; none if none pair many.

    Of those that do as much, the ones with words that layouts have; these also say which is A.
    """
    best, most = None, (0.0, 0)
    ways = (itertools.islice(way(paths), _MAX_TRIED) for way in (_of_folders, _of_names))
    for patterns in itertools.chain(*ways):
        match = match_patterns(paths, patterns)
        count = len(match.pairs)
        if count < max(_MIN_PAIRED, _MIN_SHARE_PAIRED * len(paths)) or match.repeated:
            continue
        sides = _sides_of(*patterns)
        known = sum(place != _UNKNOWN for place, _ in sides)
        if (rank := (count * (1 + known / 2), -len(match.unmatched))) > most:
            best, most = tuple(name for _, name in sorted(sides, key=lambda side: side[0])), rank
    return ((best[0], best[1]),) if best else ()


def _of_folders(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield patterns for each two of the largest folders, those that differ by their split alone being one."""
    folders: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        folder, slash, name = path.rpartition("/")
        if slash:
            folders[folder].append(name)
    largest = sorted(sorted(folders, key=lambda folder: -len(folders[folder]))[: 2 * MAX_SHOWN])
    opened: dict[str, str] = {}
    for folder in largest:
        opened.setdefault(_open_split(folder, folders), folder)
    for (one, first), (other, second) in itertools.combinations(opened.items(), 2):
        if not _differ_by_split(first, second):
            yield from _patterns_for((one, other), (folders[first], folders[second]))


def _of_names(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield patterns for each two ends of names that go on from the same start: `{id}_mask.png`, `{id}.jpg`."""
    starts: dict[str, set[str]] = defaultdict(set)
    sizes = Counter(path.rpartition("/")[0] for path in paths)
    for path in paths:
        folder, slash, name = path.rpartition("/")
        stem, dot, ending = name.rpartition(".")
        places = [len(stem), *(found.start() for found in reversed([*_SEPARATOR.finditer(stem)]))]
        for place in places[:_MAX_ENDS]:
            if place:
                starts[f"{stem[place:]}{dot}{ending}"].add(folder + slash + stem[:place])
    few = _MIN_SHARE_PAIRED * len(paths)
    ends = [end for end in starts if len(starts[end]) >= few]
    numbers = {end for end in ends if end[:1] != "." and not _LETTER.search(end.rpartition(".")[0])}
    if len(numbers) > _MAX_NUMBERS:  # they count the images
        ends = [end for end in ends if end not in numbers]
    shared = {two: len(starts[two[0]] & starts[two[1]]) for two in itertools.combinations(ends, 2)}
    for one, other in sorted(shared, key=lambda two: -shared[two]):
        if shared[one, other] < few:
            break
        # Of a folder that numbers its images, v_1 and v_2 have the ends of two labels, too.
        pairs = Counter(start.rpartition("/")[0] for start in starts[one] & starts[other])
        here = sum(sizes[folder] for folder in pairs if pairs[folder] >= _MIN_SHARE_PAIRED * sizes[folder])
        if len(paths) - here <= _MAX_ELSEWHERE * len(paths):
            yield f"{{id}}{one}", f"{{id}}{other}"


def _sides_of(one: str, other: str) -> list[tuple[int, str]]:
    """Two patterns, each with its place: 0 for A, 2 for B, 1 where no layout has a word of it."""
    words = [
        {plain_word(word) for word in (*_WORD.findall(pattern), *_LETTERS.findall(pattern), *pattern.split("/"))}
        for pattern in (one, other)
    ]
    for row in LAYOUTS:
        a, b = ({*words_of(text)} - _VAGUE for text in (row.a, row.b))
        for first, second in ((0, 1), (1, 0)):
            own = [words[first] - words[second], words[second] - words[first]]
            if own[0] & a and own[1] & b:
                return [(0 if first == 0 else 2, one), (0 if first == 1 else 2, other)]
    places = [_UNKNOWN if own & _WORDS_OF_B or not own & _WORDS_OF_A else 0 for own in words]
    return [*zip(places if any(places) else (_UNKNOWN, _UNKNOWN), (one, other), strict=True)]


def _differ_by_split(one: str, other: str) -> bool:
    """Whether two folders are of different splits, or are one but for that and numbers."""
    marked = [mark_split(f"{folder}/") for folder in (one, other)]
    if len({_DIGITS.sub("", folder) for folder in marked}) < 2:
        return True
    splits = [_split_in(f"{folder}/", mark) for folder, mark in zip((one, other), marked, strict=True)]
    return all(splits) and splits[0] != splits[1]


def _split_in(folder: str, marked: str) -> str:
    """What stands in a folder where `{split}` stands in the marked one."""
    before, found, after = marked.partition("{split}")
    return folder[len(before) : len(folder) - len(after)].lower() if found else ""


def _open_split(folder: str, folders: Collection[str]) -> str:
    """A folder with `{split}` for the name of its split: a whole folder's, or one that varies among the folders."""
    repeated = mark_repeated_split(f"{folder}/")[:-1]
    if repeated and any(mark_repeated_split(f"{one}/")[:-1] == repeated for one in folders if one != folder):
        return repeated
    marked = mark_split(f"{folder}/")[:-1]
    is_whole = "{split}" in marked.split("/")
    return (
        marked if is_whole or any(mark_split(f"{one}/")[:-1] == marked for one in folders if one != folder) else folder
    )


def _patterns_for(folders: tuple[str, str], names: tuple[list[str], list[str]]) -> Iterator[tuple[str, str]]:
    """Yield patterns for the names in two folders."""
    for parts in (("{id}", "{id}"), (_varying_part(names[0]), _varying_part(names[1]))):
        if all(part.count("{id}") == 1 for part in parts):
            yield f"{folders[0]}/{parts[0]}", f"{folders[1]}/{parts[1]}"


def _varying_part(names: Sequence[str]) -> str:
    """Names with {id} in place of what they do not have in common: of `a_1.png` and `a_2.png` it is `a_{id}.png`."""
    start = common_start(names).rstrip("0123456789")
    end = common_start([name[len(start) :][::-1] for name in names])[::-1].lstrip("0123456789")
    return f"{start}{{id}}{end}"


def patterns_of(match: Match, paths: Sequence[str], *, are_checked: bool = False) -> tuple[tuple[str, str], ...]:
    """Patterns that would name the two sides, after the paths of the first pair; none if there are none.

    `are_checked`: of those with the whole name of the pair and with its end, the ones that take fewer for one.
    """
    pair = match.pairs[0]
    folders = {path.rpartition("/")[0] for path in paths}
    found = []
    for pair_id in dict.fromkeys((pair.pair_id, pair.pair_id.rpartition("/")[2])):
        sides = [_pattern_of(paths[number or 0], pair_id, folders) for number in (pair.a, pair.b)]
        if all(sides):
            found.append((sides[0], sides[1]))
    if are_checked and len(found) > 1:
        found.sort(key=lambda patterns: len(match_patterns(paths, patterns).repeated))
    return tuple(found[:1])


def _pattern_of(path: str, pair_id: str, folders: Collection[str]) -> str:
    """A path with {id} in place of the name of its pair, or of the end of that; empty if it has neither."""
    folder, _, name = path.rpartition("/")
    stem, dot, ending = name.rpartition(".")
    for part in (pair_id, pair_id.rpartition("/")[2]):
        before, held, after = f"{folder}/{stem}".lstrip("/").rpartition(part)
        if held:
            above, slash, name = f"{before}{{id}}{after}{dot}{ending}".rpartition("/")
            return f"{_open_split(above, folders)}{slash}{name}"
    return ""


def describe_folders(paths: Sequence[str], names: Sequence[ParsedName]) -> str:
    """`real/ (5), fake/ (5), 2 in no sub-folder`; of a split only where it has no folders.

    Without the folders that all are in, which tell nothing.
    """
    wrapper = common_start([name.folders for name in names]) if names else ()
    if wrapper and all(name.folders == wrapper for name in names):
        wrapper = wrapper[:-1]
    counts = Counter(_top_folder(path, name, len(wrapper)) for path, name in zip(paths, names, strict=True))
    loose = counts.pop("", 0)
    shown = [f"{folder} ({count})" for folder, count in sorted(counts.items())[:MAX_SHOWN]]
    shown += ["…"] if len(counts) > MAX_SHOWN else []
    return ", ".join(shown + ([f"{loose} in no sub-folder"] if loose or not shown else []))


def _top_folder(path: str, name: ParsedName, skipped: int) -> str:
    if len(name.folders) <= skipped and skipped:
        return f"{path.rpartition('/')[0].rpartition('/')[2]}/"
    folder = name.folders[skipped] if name.folders else path.rpartition("/")[0].partition("/")[0]
    return f"{folder}/" if folder else ""
