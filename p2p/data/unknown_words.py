"""Names -> pairs by words that no layout has: what a source without known words may mean."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence

from p2p.data.joining import OTHERS, TWO_FOLDERS, Marked, Match, join_as, why_splits_clash
from p2p.data.layouts import (
    LAYOUTS,
    Form,
    Mark,
    ParsedName,
    as_whole_name,
    at_end,
    at_start,
    in_folder,
    plain_word,
    whole_path,
    words_of,
)

_MIN_SHARE_OF_TWO_KINDS = 0.9
_MIN_SHARE_PAIRED = 0.6
"""Of all images."""
_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".mpo")
_LOSSLESS = (".png", ".bmp", ".tif", ".tiff", ".gif")
_CMP = re.compile(r"cmp_[bx]\d", re.IGNORECASE)


def match_unknown_words(names: Sequence[ParsedName], some: Sequence[ParsedName], only_folders: bool) -> Iterator[Match]:
    """Yield what pairs up by words that no layout has: two sub-folders, two endings, two words in names.

    Args:
        names: of all images.
        some: those in which words are looked for.
        only_folders: whether the user says that two folders are the sides.

    """
    kinds: list[tuple[str, Callable[[ParsedName], Mark | None]]] = [
        (TWO_FOLDERS, lambda name: next((mark for _, mark in in_folder(name)), None)),
        (TWO_FOLDERS, lambda name: next((mark for _, mark in reversed([*in_folder(name)])), None)),
    ]
    if not only_folders:
        kinds += [
            ("two-ending", lambda name: whole_path(name, _kind_of_file(name))),
            ("two-word", lambda name: _last_word(name, at_end)),
            ("two-word", lambda name: _last_word(name, at_start)),
            ("two-word", lambda name: _last_word(name, as_whole_name)),
        ]
    for title, mark_of in kinds:
        few = {mark.spelled for name in some if (mark := mark_of(name))}
        if (
            len(few) < 2
            or (len(few) > 2 and title != "two-ending")
            or (title == TWO_FOLDERS and _are_samples(few, some))
        ):
            continue
        found: dict[str, Marked] = defaultdict(list)
        for number, name in enumerate(names):
            if mark := mark_of(name):
                found[mark.spelled].append((number, name.split, mark))
        two = sorted(sorted(found, key=lambda kind: -len(found[kind]))[:2], key=_side_first)
        sides = found[two[0]], found[two[1]]
        are_photos = two[0] == ".jpg" and two[1] in _LOSSLESS
        is_cmp = are_photos and _CMP.match(names[sides[0][0][0]].stem)
        match = join_as("CMP facades" if is_cmp else title, sides, len(names), is_certain=are_photos or only_folders)
        if match is None or why_splits_clash(match, sides):
            continue
        of_all = _MIN_SHARE_OF_TWO_KINDS * len(names) <= sum(map(len, sides))
        if of_all and 2 * len(match.pairs) >= _MIN_SHARE_PAIRED * len(names):
            yield match


_WORDS_OF_A = frozenset(word for row in LAYOUTS for word in words_of(row.a))
_WORDS_OF_B = frozenset(word for row in LAYOUTS for word in words_of(row.b))


def _side_first(kind: str) -> tuple[int, str]:
    """Sorts A before B: by words that layouts have, photos before labels of the same names, else by the alphabet."""
    word = plain_word(kind.strip("/"))
    is_a = kind in (".jpg", OTHERS) or (word in _WORDS_OF_A and word not in _WORDS_OF_B)
    return (0 if is_a else 2 if word in _WORDS_OF_B else 1), kind


def _are_samples(folders: Collection[str], names: Sequence[ParsedName]) -> bool:
    """Whether numbered folders hold the images of one pair each, whose names then have no numbers: `000/image.png`."""
    return all(folder.strip("/").isdecimal() for folder in folders) and not any(
        letter.isdecimal() for name in names for letter in name.stem
    )


def _kind_of_file(name: ParsedName) -> str:
    return ".jpg" if f".{name.ending}" in _JPEG else f".{name.ending}"


def _last_word(name: ParsedName, form: Form) -> Mark:
    """By the shortest word at one end of the name that is no number."""
    words = [mark for word, mark in form(name) if not word.isdecimal()]
    return words[-1] if words else whole_path(name, OTHERS)
