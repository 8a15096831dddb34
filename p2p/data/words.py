"""The words of the layouts in some names: where they are, and which images pair up by two of them."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TypeVar

from p2p.data.joining import (
    MAX_SHOWN,
    OTHERS,
    Marked,
    Match,
    join_as,
    leave_out_companions,
    leave_out_rest,
    several_for_one,
    why_splits_clash,
)
from p2p.data.layouts import (
    BETWEEN,
    FOLDER_FORMS,
    KINDS_OF_SCANS,
    LAYOUTS,
    MIDDLE_FORMS,
    NAME_FORMS,
    Form,
    Layout,
    Mark,
    ParsedName,
    in_any_folder,
    in_folder,
    in_middle_of_folder,
    in_part_of_folder,
    plain_word,
    whole_path,
    words_of,
)

MIN_SHARE_PAIRED = 0.5
"""Of the side with fewer images."""
_MIN_SHARE_COVERED = 0.25
"""Of all images, those that are A or B: of one photo and its four label maps 0.4, of the folders a/ to z/ less."""
_MIN_SHARE_OF_TWO_KINDS = 0.9
_MAX_SEARCHED = 20_000  # names in which words are looked for; how many pair up is counted in all

_OF_FOLDERS: tuple[Form, ...] = (*FOLDER_FORMS, in_middle_of_folder)

_LABELS = words_of(next(row.a for row in LAYOUTS if row.name == "labels and photos"))
_MAX_LETTERS = 3
"""Folders of single letters that may be sides; more are parts of something."""

Named = TypeVar("Named", ParsedName, str)


def some_of(names: Sequence[Named]) -> Sequence[Named]:
    """Those in which words are looked for, of all parts of the source."""
    return names[:: max(1, len(names) // _MAX_SEARCHED)]


def distinct(matches: Iterable[Match]) -> list[Match]:
    """Those that pair other images than the ones before."""
    found: dict[frozenset[tuple[int, int | None]], Match] = {}
    for match in matches:
        found.setdefault(frozenset((pair.a, pair.b) for pair in match.pairs), match)
    return [*found.values()]


class Words:
    """The words of some names, by the places where they may be. `near`: which two sides do not pair up, and why.

    `rivals`: what pairs up by one word that several folders have. `letters`: by two of three folders of single letters,
    which may be parts of something that other words pair up.
    """

    def __init__(self, names: Sequence[ParsedName], *, all_folders: bool, in_middle: bool = False) -> None:
        self._names, self._all_folders, self._in_middle = names, all_folders, in_middle
        some = some_of(names)
        folder_forms, name_forms = (MIDDLE_FORMS[:1], MIDDLE_FORMS[1:]) if in_middle else (FOLDER_FORMS, NAME_FORMS)
        forms = folder_forms if all_folders else (*folder_forms, *name_forms)
        self._found = {
            form: Counter(word for name in some for word in {word for word, _ in form(name)}) for form in forms
        }
        # Of all images, those of which a word is looked for in all names: half of what two sides must cover.
        self._few = 0.0 if self._all_folders else _MIN_SHARE_COVERED / 2 * len(some)
        self.near = ""
        self.rivals: list[Match] = []
        self.letters: list[Match] = []

    def in_middle(self) -> Words:
        """The words that stand anywhere in the same names."""
        return Words(self._names, all_folders=self._all_folders, in_middle=True)

    def matches(self, row: Layout, *, one_sided: bool = False) -> Iterator[Match]:
        """Yield how the names pair up by words of the layout; `one_sided`: images without a word are its other side."""
        tried = set()
        for form, found in self._found.items():
            if row.where and (row.where == "folder") != (form in _OF_FOLDERS):
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
                matches = self._pair_up(row, form, words)
                if len(matches) > 1:
                    self.rivals += matches
                if matches:
                    tried.add(words)
                if len(matches) == 1:
                    yield matches[0]

    def _pair_up(self, row: Layout, form: Form, words: tuple[str, str]) -> list[Match]:
        """What the words pair up; more than one where they stand in several folders, of which it may be any."""
        whole = [word for word in words if form is in_part_of_folder and word and word in self._found[in_folder]]
        if len(whole) == 1:  # shadow/ and shadow_free/, beside shadow_mask/
            part = words[1 - words.index(whole[0])]
            sides = self._sides(form, words, whole[0])
            rests = {plain_word(mark.above.rpartition("/")[2]) for _, _, mark in sides[words.index(part)]}
            rivals = [sides]
            for rest in sorted(rests & self._found[in_folder].keys() - {*words}):  # cloth_mask/ may be of cloth/
                rivals.append(self._sides(form, (part, rest) if words[0] == part else (rest, part), rest))
            if matches := [match for two in rivals if (match := self._join(row, form, words, two))]:
                return matches
            if found := self._rivals(row, form, words, sides, None):
                return found
        if found := self._of_kinds(row, self._kinds_beside(form, words)):
            if max(map(len, words)) > 1:
                return found
            self.letters = self.letters or found
            return []
        sides = self._sides(form, words)
        match = self._join(row, form, words, sides)
        return self._rivals(row, form, words, sides, match) or ([match] if match else [])

    def _kinds_beside(self, form: Form, words: tuple[str, str]) -> list[str]:
        """The folders any two of which may be meant where the words are two of more: A/ B/ C/, t1/ t2/ flair/ seg/."""
        if form not in FOLDER_FORMS:
            return []
        count = sum((self._found[kind] for kind in FOLDER_FORMS), Counter[str]())
        fewer = min(count[word] for word in words)
        if KINDS_OF_SCANS[0] == {*words} and KINDS_OF_SCANS[1] & count.keys():
            kinds = KINDS_OF_SCANS[0] | KINDS_OF_SCANS[1] | {*_LABELS}
            return sorted(kinds & self._found[in_folder].keys(), key=lambda kind: (kind not in _LABELS, kind))
        letters = [word for word in count if len(word) == 1 and word.isalpha() and 2 * count[word] >= fewer]
        is_more = max(map(len, words)) == 1 and 2 < len(letters) <= _MAX_LETTERS
        return sorted(letters) if is_more else []

    def _of_kinds(self, row: Layout, kinds: Sequence[str]) -> list[Match]:
        """What each two of several kinds of folders pair up, if several do."""
        found = []
        for two in itertools.combinations(kinds, 2):
            are_whole = all(kind in self._found[in_folder] for kind in two)
            sides = self._sides(in_folder if are_whole else in_any_folder, two)
            match = join_as(row.name, sides, len(self._names), is_certain=True)
            if match and len(match.pairs) >= MIN_SHARE_PAIRED * min(map(len, sides)):
                found.append(match)
        return found if len(found) > 1 else []

    def also_by_folders(self, match: Match, rows: Iterable[Layout]) -> list[Match]:
        """What pairs up the images of a match, which words in names tell, by their folders: masks/1_pre."""
        paired = {number for pair in match.pairs for number in (pair.a, pair.b)}
        others = (other for row in rows for other in self.matches(dataclasses.replace(row, where="folder")))
        return [other for other in others if paired.issuperset(n for pair in other.pairs for n in (pair.a, pair.b))]

    def _rivals(
        self, row: Layout, form: Form, words: tuple[str, str], sides: tuple[Marked, Marked], match: Match | None
    ) -> list[Match]:
        """Where several folders have a word, and not all of them pair up at once: what each two of them pair up."""
        if form not in _OF_FOLDERS:
            return []
        folders: tuple[dict[str, Marked], ...] = ({}, {})
        for side, by_folder in zip(sides, folders, strict=True):
            for number, split, mark in side:
                # labels/ of v1/ and of v2/ have all names twice
                above = f"{mark.above}/" if form is in_folder and mark.above else ""
                by_folder.setdefault(f"{above}{mark.spelled}", []).append((number, split, mark))
        if not 2 < sum(map(len, folders)) <= MAX_SHOWN:
            return []
        if form is in_folder and (match is None or not _are_most_repeated(match)):
            return []
        paired = {number for pair in match.pairs for number in (pair.a, pair.b)} if match else set()
        are_all_paired = all(
            any(number in paired for number, _, _ in side) for by_folder in folders for side in by_folder.values()
        )
        if are_all_paired and match and not match.repeated:
            return []
        found = distinct(
            other
            for two in itertools.product(folders[0].items(), folders[1].items())
            if (other := self._join(row, form, words, (two[0][1], two[1][1]), (two[0][0], two[1][0])))
        )
        return found if len(found) > 1 else []

    def _is_certain(self, row: Layout, form: Form, words: tuple[str, str]) -> bool:
        """Whether the words can mean nothing else than sides.

        Single letters also number images, unless nearly all have one; folders are numbered, too, or classes.
        """
        if self._all_folders:
            return True
        others = self._found[form].keys() - {*words}
        if form in _OF_FOLDERS and any(map(_is_one_of_many, words, itertools.repeat(others))):
            return False
        if BETWEEN[0] == {*words} and BETWEEN[1] & others:
            return False
        if max(map(len, words)) > 1 and not self._in_middle:
            return not row.are_classes_too
        clear = {*words, "".join(words)}  # AB/ holds both
        covered = sum(any(word in clear for word, _ in form(name)) for name in self._names)
        return covered >= _MIN_SHARE_OF_TWO_KINDS * len(self._names) and not row.are_classes_too

    def _sides(self, form: Form, words: tuple[str, str], whole: str | None = None) -> tuple[Marked, Marked]:
        """The images with each of the words; of `whole` in folders that are called just that."""
        sides: tuple[Marked, Marked] = ([], [])
        unmarked = words.index("") if "" in words else None
        for number, name in enumerate(self._names):
            places: Iterable[tuple[str, Mark]] = form(name)
            if whole is not None:
                parts = (place for place in places if place[0] != whole)
                places = [*parts, *(place for place in in_folder(name) if place[0] == whole)]
            for word, mark in places:
                if word in words:
                    sides[words.index(word)].append((number, name.split, mark))
                    break
            else:
                if unmarked is not None:
                    sides[unmarked].append((number, name.split, whole_path(name, OTHERS)))
        return sides

    def _join(
        self,
        row: Layout,
        form: Form,
        words: tuple[str, str],
        sides: tuple[Marked, Marked],
        called: tuple[str, str] | None = None,
    ) -> Match | None:
        match = join_as(row.name, sides, len(self._names), is_certain=True)
        if match is None:
            return None
        match.layout = dataclasses.replace(match.layout, sides=called or match.layout.sides)
        # One image a side is not a class.
        is_certain = self._is_certain(row, form, words) or (row.are_classes_too and len(match.pairs) == 1)
        match.layout = dataclasses.replace(match.layout, is_certain=is_certain)
        if "" in words:
            leave_out_companions(match, "b" if words[0] == "" else "a")
        if row.is_partial:
            leave_out_rest(match, "a")
        if why := self._why_not(form, words, match, sides):
            self.near = self.near or why
            return None
        if _is_enough(match, sides, len(self._names)) or (self._all_folders and match.pairs):
            return match
        if form in _OF_FOLDERS and "" not in words and len(match.pairs) < min(map(len, sides)):
            self.near = self.near or several_for_one(match, sides)
            if form is in_folder:
                self.near = self.near or _not_paired(match, sides)
        return None

    def _why_not(self, form: Form, words: tuple[str, str], match: Match, sides: tuple[Marked, Marked]) -> str:
        """Why names that agree tell no pairs, if so."""
        found = self._found[form]
        if not match.layout.is_certain and max(map(len, words)) == 1:
            fewer = min(found[word] for word in words)
            letters = [word for word in found if len(word) == 1 and word.isalpha() and 2 * found[word] >= fewer]
            if len(letters) > 2:
                return (
                    f"the names fit several layouts: {match.layout.names_of_sides}, or two others of "
                    f"{', '.join(sorted(letters))}"
                )
        return why_splits_clash(match, sides)


def _is_one_of_many(word: str, others: Collection[str]) -> bool:
    """Whether the word has a number, and some others are it with another number: `s1`, beside `s3`."""
    start = word.rstrip("0123456789")
    return start != word and any(
        other.startswith(start) and other[len(start) :].isdecimal() and len(other) == len(word) for other in others
    )


def _is_enough(match: Match, sides: tuple[Marked, Marked], total: int) -> bool:
    paired, covered = len(match.pairs), sum(map(len, sides))
    if OTHERS in match.layout.sides:
        covered = 2 * paired
    return paired >= max(1, MIN_SHARE_PAIRED * min(map(len, sides))) and covered >= _MIN_SHARE_COVERED * total


def _not_paired(match: Match, sides: tuple[Marked, Marked]) -> str:
    first = [f"first {letter}: {side[0][2].below}" for letter, side in zip("AB", sides, strict=True)]
    a, b = match.layout.sides
    return (
        f"{len(match.pairs)} of {len(sides[0])} names in {a} have a partner in {b}; names are compared by relative "
        f"path without extension; {', '.join(first)}"
    )


def _are_most_repeated(match: Match) -> bool:
    """Whether most names of pairs are there more than once on a side."""
    return 2 * len(match.repeated) > len(match.pairs)
