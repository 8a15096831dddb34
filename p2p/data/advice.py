"""What a message says of names that do not pair up: the folders that were seen, and patterns that would pair them."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence

from p2p.data.joining import ENOUGH, MAX_SHOWN, Match, common_start, match_patterns
from p2p.data.layouts import ParsedName, mark_split

_DIGITS = re.compile(r"\d+")


def advised_patterns(paths: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Patterns for two folders, the first that pair their images up; none if no two folders do."""
    folders: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        folder, slash, name = path.rpartition("/")
        if slash:
            folders[folder].append(name)
    largest = sorted(sorted(folders, key=lambda folder: -len(folders[folder]))[:MAX_SHOWN])
    for two in itertools.combinations(largest, 2):
        if _differ_by_split(*two):
            continue
        few = [f"{folder}/{name}" for folder in two for name in folders[folder]]
        opened = (_open_split(two[0], folders), _open_split(two[1], folders))
        for patterns in _patterns_for(opened, (folders[two[0]], folders[two[1]])):
            match = match_patterns(few, patterns)
            if len(match.pairs) < ENOUGH * min(len(folders[folder]) for folder in two):
                continue
            if not match_patterns(paths, patterns).repeated:
                return (patterns,)
    return ()


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


def patterns_of(match: Match, paths: Sequence[str]) -> tuple[str, str]:
    """Patterns that would name the two sides, after the paths of the first pair."""
    pair = match.pairs[0]
    found, folders = [], {path.rpartition("/")[0] for path in paths}
    for number in (pair.a, pair.b):
        folder, _, name = paths[number or 0].rpartition("/")
        stem, dot, ending = name.rpartition(".")
        for part in (pair.pair_id, pair.pair_id.rpartition("/")[2]):
            before, held, after = f"{folder}/{stem}".lstrip("/").rpartition(part)
            if held:
                above, slash, name = f"{before}{{id}}{after}{dot}{ending}".rpartition("/")
                found.append(f"{_open_split(above, folders)}{slash}{name}")
                break
    return (found[0], found[1]) if len(found) == 2 else ("", "")


def describe_folders(paths: Sequence[str], names: Sequence[ParsedName]) -> str:
    """`real/ (5), fake/ (5), 2 in no sub-folder`; of a split only where it has no folders."""
    counts = Counter(_top_folder(path, name) for path, name in zip(paths, names, strict=True))
    loose = counts.pop("", 0)
    shown = [f"{folder} ({count})" for folder, count in sorted(counts.items())[:MAX_SHOWN]]
    shown += ["…"] if len(counts) > MAX_SHOWN else []
    return ", ".join(shown + ([f"{loose} in no sub-folder"] if loose or not shown else []))


def _top_folder(path: str, name: ParsedName) -> str:
    folder = name.folders[0] if name.folders else path.rpartition("/")[0].partition("/")[0]
    return f"{folder}/" if folder else ""
