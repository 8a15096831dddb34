"""The layouts in which pairs of images are published, as a table of words; and what a path says without them.

A layout is told by words, which stand for side A or B wherever people write them: as a folder (`labels/…`), beside the
name of a split (`train_label/…`, `trainA/…`), or at the end or beginning of a file's name (`1_pre_disaster.png`,
`0.input.png`, `label_7.png`). What is left of a path without its words and its split is the name of the pair.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

LABEL_KINDS = ("color", "labelIds", "labelTrainIds", "instanceIds")
"""The label images that Cityscapes has of each photo; the first that is there counts."""


@dataclass(frozen=True)
class Layout:
    """Words for side A and for side B, the likelier first."""

    name: str
    a: str
    b: str
    is_published: bool = False
    """Of one data set or tool: where it pairs images, no other row is asked."""
    where: Literal["folder", "name", ""] = ""
    """Whether only folders, or only names of files, are looked at."""
    other: Literal["a", "b", ""] = ""
    """The side that images without any of the words are, where only words of the opposite side are found."""
    are_classes_too: bool = False
    """Whether the words also name classes or views, whose images are no pairs: the images must show it."""
    is_partial: bool = False
    """Whether side A is published for a part of side B only: the rest of B is left out."""


_PHOTOS = "image images img imgs photo photos picture pictures pic pics jpegimages rgb frame frames"
UNPAIRED_TOO = frozenset({"A/B", "night and day"})
"""Layouts whose words also stand for two sets of images without partners."""
LAYOUTS = (
    *(
        Layout("Cityscapes", f"gtFine_{kind} gtCoarse_{kind}", "leftImg8bit", is_published=True, where="name")
        for kind in LABEL_KINDS
    ),
    Layout("pix2pixHD", "label", "img", is_published=True, where="folder"),
    Layout("ADE20K", "annotations", "images", is_published=True, where="folder"),
    Layout("CamVid", "LabeledApproved_full", "701_StillsRaw_full", is_published=True, where="folder"),
    Layout(
        "Pascal VOC",
        "SegmentationClass SegmentationClassPNG",
        "JPEGImages",
        is_published=True,
        where="folder",
        is_partial=True,
    ),
    Layout("DRIVE", "1st_manual manual1", "images", is_published=True, where="folder"),
    Layout("KITTI", "semantic_rgb", "image_2", is_published=True, where="folder"),
    Layout("xView", "pre_disaster", "post_disaster", is_published=True, where="name"),
    Layout("pix2pix results", "real_A", "real_B", is_published=True, where="name"),
    Layout("A/B", "a", "b", is_published=True),
    Layout(
        "labels and photos",
        "label labels labelmap labelmaps stuffthingmaps mask masks annotation annotations annot annots anno ann anns "
        "1stho seg segs segmentation segmentations segmentationclass semantic semantics edge edges hed canny sketch "
        "sketches lineart contour "
        "conditioning conditioning_image control",
        f"{_PHOTOS} sat satellite",
        other="b",
    ),
    Layout(
        "input and target",
        f"input inputs in src source cond original before pre {_PHOTOS} noisy noise hazy haze rainy rain blur blurry "
        "blurred lq lr low degraded damaged shadow raw",
        "target targets output outputs out tgt dst gt groundtruth edited after post clean clear sharp hq hr high "
        "norain restored free retouched",
        other="a",
    ),
    Layout(
        "color and other sensors",
        f"{_PHOTOS} color colour visible vis",
        "depth depths normal normals disparity thermal infrared ir nir lwir",
        other="a",
    ),
    Layout("radar and optical", "sar s1 radar", "optical s2 opt eo psrgb"),
    Layout(
        "street and aerial views",
        "street ground streetview streets panorama panoramas panos",
        "aerial aerials satellite overhead sat bing bingmap",
    ),
    Layout("aerial views and maps", "sat satellite aerial ortho", "map maps"),
    Layout("two dates", "im1 img1 image1 time1 t1", "im2 img2 image2 time2 t2", where="folder"),
    Layout("left and right views", "left", "right", are_classes_too=True),
    Layout("real and fake", "real", "fake", are_classes_too=True),
    Layout("night and day", "night", "day"),
    Layout("gray and color", "gray grayscale grey bw", "color colour"),
)
"""The first published row that pairs images counts, but for single letters that few of them have, which also number
images; of the others, the only one that does."""

NOT_PAIRS = (
    (
        re.compile(r"(?:.*/)?samples/epoch_\d+[^/]*\.png"),
        "the sample sheets of a training run, each with inputs, outputs and targets side by side; give the data set "
        "that the run was trained on",
    ),
)
"""Paths of images that are no pairs, and what they are."""

BETWEEN = (frozenset({"low", "high"}), frozenset({"medium", "mid", "middle", "med"}))
"""Two words that name classes, too, where a folder of one of the others lies beside them."""
KINDS_OF_SCANS = (frozenset({"t1", "t2"}), frozenset({"flair", "t1ce", "t1c", "t1gd", "t1n", "pd", "dwi", "adc"}))
"""Two words that are no dates but kinds of scans, where a folder of one of the others lies beside them."""

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trainval", "train_extra", "trainset", "tier1", "tier3"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "eval", "evaluation", "dev", "valset", "hold", "holdout"), "val"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
}
"""What folders of these names hold, in lower case."""
TRAIN_EXTRA = "train_extra"
"""A part of train that may have one side only, while the others have both: of Cityscapes, without its coarse labels."""
_SPLIT_WORD = r"(training|trainval|train|validation|valid|val|evaluation|eval|dev|testing|test)(?:set)?"
_SPLIT = rf"{_SPLIT_WORD}(?:20\d\d)?"
_SPLIT_BEFORE = re.compile(rf"{_SPLIT}([_\-. ]*)(.+)", re.IGNORECASE)
_SPLIT_AFTER = re.compile(rf"(.+?)([_\-. ]*){_SPLIT}", re.IGNORECASE)
_SPLIT_ALONE = re.compile(_SPLIT, re.IGNORECASE)
_SPLIT_INSIDE = re.compile(rf"(?<![a-z]){_SPLIT_WORD}(?![a-z])", re.IGNORECASE)
_SPLIT_OF_NAME = re.compile(
    r"(training|train|validation|valid|val|eval|testing|test)(?=[A-Z]?[_\-. ()]|\d)", re.IGNORECASE
)
_SPLIT_AT_END = re.compile(r".*[_\-. ](training|train|validation|valid|val|eval|testing|test)", re.IGNORECASE)
_TEST_PART = re.compile(r"test(?:ing|set)?[_\-. ]?(\d+|dev|std|challenge|(?<=[_\-. ]).+)", re.IGNORECASE)
_SEPARATORS = "_-. ()"
_SEPARATED = re.compile(r"[_\-. ()]+")
_TOKEN = re.compile(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+(?![a-z])|\d+")
_GLUED = re.compile(r"(train|val|test)(?=[a-z]{3})", re.IGNORECASE)
_NUMBER = re.compile(r"\d+k?(?![^\W\d_])", re.IGNORECASE)
_SPLITS_INSIDE = {"tr": "train", "our": "train", "te": "test", "ts": "test"}
"""What these say in a part of a folder's name, where the same name is there with another split."""
_WORD = re.compile(r"[^_\-. ()]+")
_MAX_TOKENS = 6  # of a word
_MAX_MIDDLE = 12  # words of a name


def plain_word(word: str) -> str:
    """As words are compared: `Pre-Disaster` is `predisaster`."""
    return _SEPARATED.sub("", word).lower()


def words_of(text: str) -> tuple[str, ...]:
    """The words of one side of a layout, as they are compared."""
    return tuple(dict.fromkeys(map(plain_word, text.split())))


_ALL_WORDS = frozenset(words_of(" ".join(f"{row.a} {row.b}" for row in LAYOUTS) + " ab inst instance instances"))


class ParsedName(NamedTuple):
    """A path: its split, or TRAIN_EXTRA; the folders that remain, the name without its ending, and that."""

    split: str
    folders: tuple[str, ...]
    stem: str
    ending: str


def parse_names(paths: Sequence[str]) -> list[ParsedName]:
    """Take splits and endings off paths; the first folder that names a split counts.

    Where none does, and all names of images begin with that of one, these count: `A/train_1.png`, `A/val_1.png`.
    """
    folders = {path.rpartition("/")[0] for path in paths}
    reader = _FolderReader({part for folder in folders for part in folder.split("/") if part})
    parsed = {folder: reader.read(folder) for folder in folders}
    names = []
    for path in paths:
        folder, _, name = path.rpartition("/")
        stem, dot, ending = name.rpartition(".")
        names.append(ParsedName(*parsed[folder], stem if dot else name, ending.lower()))
    return names if any(name.split for name in names) else _read_stems(names)


def _read_stems(names: list[ParsedName]) -> list[ParsedName]:
    """The same with the splits with which all names begin, or end. Of one split alone it may be just a word."""
    for pattern, is_end in ((_SPLIT_OF_NAME, False), (_SPLIT_AT_END, True)):
        splits = []
        for name in names:
            if not (found := pattern.fullmatch(name.stem) if is_end else pattern.match(name.stem)):
                break
            splits.append(split_name(found[1]))
        if len(splits) == len(names) and len({*splits}) > 1 and "train" in splits:
            return [name._replace(split=split) for name, split in zip(names, splits, strict=True)]
    return names


class _FolderReader:
    """Takes splits off folders. `parts`: the names of all folders, of which each may tell what another means."""

    def __init__(self, parts: Collection[str]) -> None:
        self._several = _several_splits(parts)
        self._has_train = any(split_name(part) == "train" for part in parts)
        inside: dict[str, set[tuple[str, str]]] = defaultdict(set)
        for part in parts:
            for start, end, split in _splits_inside(part):
                inside[_gap(part, start, end)].add((split, part[start:end]))
        self._gaps = {gap for gap, found in inside.items() if {"train"} < {split for split, _ in found}}
        # Of labels of train alone, beside photos of train and of test.
        self._spelled = {spelled for gap in self._gaps for _, spelled in inside[gap]}

    def read(self, path: str) -> tuple[str, tuple[str, ...]]:
        """The split of the first folder that names one, and the folders without it, wherever they repeat it.

        A folder of train and val, above one of either, says nothing: `trainval_images/val_images`.
        """
        folders = [part for part in path.split("/") if part]
        found = [self._read_folder(folder) for folder in folders]
        places = [place for place, (split, _) in enumerate(found) if split]
        while len(places) > 1 and "trainval" in folders[places[0]].lower():
            del places[0]
        if not places:
            return "", tuple(folders)
        first, split = places[0], found[places[0]][0]
        inner = [self._without(split, folder) for folder in folders[first + 1 :]]
        return split, tuple(filter(None, (*folders[:first], found[first][1], *inner)))

    def _without(self, split: str, folder: str) -> str:
        """A folder in that of a split without the name of the same split: `train_A` of `train/train_A`."""
        same, rest = self._read_folder(folder)
        for start, end, word in _splits_inside(folder):
            if not start and not same and folder[end:].strip(_SEPARATORS):
                same, rest = word, folder[end:].lstrip(_SEPARATORS)
        return rest if same == split and rest else folder

    def _read_folder(self, folder: str) -> tuple[str, str]:
        """The split that a folder's name holds, if any, and the rest of it: `trainA`, `test_label`, `CUHK_test_photo`.

        Where a folder `train` is among all, any `test…` is part of the test split: `test1`, `test-dev`.
        """
        if split := split_name(folder):
            return (TRAIN_EXTRA if folder.lower() == TRAIN_EXTRA else split), ""
        for pattern, split_group, rest_group in ((_SPLIT_BEFORE, 1, 3), (_SPLIT_AFTER, 3, 1)):
            found = pattern.fullmatch(folder)
            if found and (
                plain_word(found[rest_group]) in _ALL_WORDS
                or (found[2] and plain_word(found[rest_group]) in self._several)
            ):
                return SPLIT_NAMES[found[split_group].lower()], found[rest_group]
        if self._has_train and (found := _TEST_PART.fullmatch(folder)):
            return "test", found[1]
        for start, end, split in _splits_inside(folder):
            if folder[start:end] in self._spelled or _gap(folder, start, end) in self._gaps:
                before, after = folder[:start], folder[end:]
                return split, (before + after.lstrip(_SEPARATORS)).strip(_SEPARATORS)
        return "", folder


def _splits_inside(folder: str) -> Iterator[tuple[int, int, str]]:
    """Where words of splits are in a folder's name, among others or beside a number: `SBUTrain4K`, `DUTS-TE`."""
    for token in _TOKEN.finditer(folder):
        word = token[0].lower()
        if split := split_name(word) or _SPLITS_INSIDE.get(word, ""):
            yield token.start(), token.end(), split
        elif glued := _GLUED.match(token[0]):  # traincrop/
            yield token.start(), token.start() + glued.end(), split_name(glued[1])


def _gap(folder: str, start: int, end: int) -> str:
    """A folder's name with gaps in place of a split and of numbers, as such names are compared."""
    return f"{_NUMBER.sub('#', folder[:start])}{{}}{_NUMBER.sub('#', folder[end:])}".lower()


def _several_splits(parts: Collection[str]) -> frozenset[str]:
    """The words that stand beside more than one split: `foo` of `train_foo` and `test_foo`."""
    seen: dict[str, set[str]] = defaultdict(set)
    for part in parts:
        if found := _SPLIT_BEFORE.fullmatch(part):
            seen[plain_word(found[3])].add(found[1].lower())
        if found := _SPLIT_AFTER.fullmatch(part):
            seen[plain_word(found[1])].add(found[3].lower())
    return frozenset(word for word, splits in seen.items() if len(splits) > 1)


def split_name(folder: str) -> str:
    """The split that a folder of that name is; empty if it is none."""
    found = _SPLIT_ALONE.fullmatch(folder)
    return SPLIT_NAMES.get(found[1].lower() if found else folder.lower(), "")


def mark_split(path: str) -> str:
    """A path with `{split}` in place of the first name of a split that stands in a folder: `{split}2017/7.png`."""
    folder, slash, name = path.rpartition("/")
    return _SPLIT_INSIDE.sub("{split}", folder, count=1) + slash + name


def mark_repeated_split(path: str) -> str:
    """Where folders repeat their split, the end of a path from the last that does: `{split}_A/7.png`; else empty."""
    folder, slash, name = path.rpartition("/")
    found = [*_SPLIT_INSIDE.finditer(folder)]
    if not found or "/" not in folder[found[0].end() : found[-1].start()]:
        return ""
    last = found[-1]
    if found[0][0].lower() not in (last[0].lower(), "trainval"):
        return ""
    start = folder.rfind("/", 0, last.start()) + 1
    return f"{folder[start : last.start()]}{{split}}{folder[last.end() :]}{slash}{name}"


def stored_split(split: str) -> str:
    """The split of a data set to which that of a path belongs."""
    return "train" if split == TRAIN_EXTRA else split


class Mark(NamedTuple):
    """A path without the word of its side: the folders above that, and what is below or beside it."""

    above: str
    below: str
    spelled: str = ""
    """The word as it is written, for people."""


def whole_path(name: ParsedName, spelled: str = "") -> Mark:
    """The mark of an image that has no word."""
    return Mark("", "/".join((*name.folders, name.stem)), spelled)


def path_of(folders: Sequence[str], stem: str) -> str:
    """Folders and the name of a file, put together."""
    return "/".join((*folders, stem))


def in_folder(name: ParsedName) -> Iterator[tuple[str, Mark]]:
    """`labels/7`."""
    for place, folder in enumerate(name.folders):
        above, below = "/".join(name.folders[:place]), path_of(name.folders[place + 1 :], name.stem)
        yield plain_word(folder), Mark(above, below, f"{folder}/")


def as_whole_name(name: ParsedName) -> Iterator[tuple[str, Mark]]:
    """`7/labels`, where the folders are the name of the pair."""
    if name.folders:
        yield plain_word(name.stem), Mark("", "/".join(name.folders), name.stem)


def in_part_of_folder(name: ParsedName) -> Iterator[tuple[str, Mark]]:
    """`facades_A/7`."""
    for place, folder in enumerate(name.folders):
        for word, rest, _ in (*_cut_end(folder), *_cut_start(folder)):
            above, below = path_of(name.folders[:place], rest), path_of(name.folders[place + 1 :], name.stem)
            yield word, Mark(above, below, f"{folder}/")


def _in_stem(name: ParsedName, cuts: Iterable[tuple[str, str, str]]) -> Iterator[tuple[str, Mark]]:
    for word, rest, spelled in cuts:
        for place, folder in enumerate(map(plain_word, name.folders)):
            if folder == word or (len(folder) > 2 and word.startswith(folder)):  # gtFine/…_gtFine_color
                above, below = "/".join(name.folders[:place]), path_of(name.folders[place + 1 :], rest)
                yield word, Mark(above, below, spelled)
                break
        else:
            yield word, Mark("", path_of(name.folders, rest), spelled)


def at_end(name: ParsedName) -> Iterator[tuple[str, Mark]]:
    """`7_pre_disaster`, `0.input`."""
    return _in_stem(name, _cut_end(name.stem))


def at_start(name: ParsedName) -> Iterator[tuple[str, Mark]]:
    """`label_7`."""
    return _in_stem(name, _cut_start(name.stem))


def in_any_folder(name: ParsedName) -> Iterator[tuple[str, Mark]]:
    """A whole folder's name, or a part of it."""
    yield from in_folder(name)
    yield from in_part_of_folder(name)


def in_middle_of_folder(name: ParsedName) -> Iterator[tuple[str, Mark]]:
    """`DIV2K_LR_bicubic/7`, at any place among other words; the innermost folder first."""
    for place in range(len(name.folders) - 1, -1, -1):
        folder = name.folders[place]
        for word, rest, _ in _cut_middle(folder):
            yield (
                word,
                Mark(path_of(name.folders[:place], rest), path_of(name.folders[place + 1 :], name.stem), f"{folder}/"),
            )


def in_middle(name: ParsedName) -> Iterator[tuple[str, Mark]]:
    """`7_depth_cam0`; of words that layouts have, as names have many."""
    return _in_stem(name, _cut_middle(name.stem, _ALL_WORDS))


def _cut_middle(text: str, known: Collection[str] | None = None) -> Iterator[tuple[str, str, str]]:
    """`7_depth_cam0` -> (depth, 7_cam0, depth), of whole words and of two or three in a row, the longest first."""
    found = [*_WORD.finditer(text)][:_MAX_MIDDLE]
    words = [part[0].lower() for part in found]
    for length in (3, 2, 1):
        for first in range(len(found) - length + 1):
            word = "".join(words[first : first + length])
            if known is not None and word not in known:
                continue
            start, end = found[first].start(), found[first + length - 1].end()
            rest = "_".join(filter(None, (text[:start].rstrip(_SEPARATORS), text[end:].lstrip(_SEPARATORS))))
            yield word, rest, text[start:end].replace("_", " ")


def _cut_end(text: str) -> Iterator[tuple[str, str, str]]:
    """`7_pre_disaster` -> (predisaster, 7, pre disaster), (disaster, 7_pre, disaster): word, rest, as it is written."""
    for token in list(_TOKEN.finditer(text))[-_MAX_TOKENS:]:
        before = text[: token.start()]
        rest = before.rstrip(_SEPARATORS)
        if rest.count("(") > rest.count(")") and before[len(rest) :].startswith(")"):
            rest += ")"  # of the number that Windows gives to copies: `7 (1)_mask`
        if rest:
            yield _cut(text[token.start() :], rest)


def _cut_start(text: str) -> Iterator[tuple[str, str, str]]:
    """`label_7` -> (label, 7, label)."""
    for token in reversed(list(_TOKEN.finditer(text))[:_MAX_TOKENS]):
        if rest := text[token.end() :].lstrip(_SEPARATORS):
            yield _cut(text[: token.end()], rest)


def _cut(written: str, rest: str) -> tuple[str, str, str]:
    return plain_word(written), rest, written.strip(_SEPARATORS).replace("_", " ")


Form = Callable[[ParsedName], Iterator[tuple[str, Mark]]]
"""Yields each word that a name has in one place, longest first, with its mark."""
FOLDER_FORMS: tuple[Form, ...] = (in_folder, in_part_of_folder)
NAME_FORMS: tuple[Form, ...] = (at_end, at_start, as_whole_name)
"""The places where words are looked for, the likelier first."""
MIDDLE_FORMS: tuple[Form, ...] = (in_middle_of_folder, in_middle)
"""Where else they may be, if those places tell nothing."""
