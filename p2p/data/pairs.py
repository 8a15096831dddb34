"""The index of a prepared data set (or of a raw folder of pairs), and reading rows of it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from p2p.data.joining import FoundLayout, describe_rest
from p2p.data.matching import Unclear, match_names
from p2p.data.order import Row
from p2p.data.sizes import check_sizes
from p2p.data.tasks import is_repeat
from p2p.errors import BadInputError, ConfigError, DamagedFileError, NotFoundError, UsageError
from p2p.storage import images
from p2p.storage.bounded import DEFAULT_MAX_BYTES
from p2p.storage.deadline import decode_deadline
from p2p.storage.filesystems import join, list_files, list_names, read_bytes
from p2p.storage.formats import SUFFIXES, LeftOut
from p2p.storage.names import printable
from p2p.storage.parquet import open_parquet, read_cells, short_text
from p2p.storage.parquet_columns import find_bytes
from p2p.storage.pixels import RGB, PixelFormat, Pixels
from p2p.storage.trial import find_fatal_item, process_ended

log = logging.getLogger("p2p")

SPLITS = ("train", "val", "test")
FEATURES_FOLDER = ".features"
"""Within a data set: what a network found in the targets, a file for each split and network. Its name begins with a
dot, so that no listing takes these files for images or pairs.
"""
ROW_GROUP_PAIRS = 32
"""Pairs in a row group: what is fetched at a time."""
PAIR_SCHEMA = pa.schema(
    [
        ("pair_id", pa.string()),
        ("a", pa.binary()),
        ("b", pa.binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("source_uri", pa.string()),
    ]
)
_SIDES = ("a", "b")
_COLUMNS = ("pair_id", *_SIDES)
Formats = tuple[PixelFormat, PixelFormat]
"""How A and B are to be read."""
_FOOTER_READERS = 16


def raw_load_size(crop_size: int) -> int:
    """Side in pixels to which raw images are resized for crops of `crop_size`: the paper's proportion, 286 to 256."""
    return round(crop_size * 286 / 256)


def part_name(number: int) -> str:
    """The file name of the part with this number, from 0."""
    return f"part-{number:05d}.parquet"


@dataclass(frozen=True)
class RowGroup:
    """One row group of a Parquet part; or, with number -1, the file of a raw pair: of A and B side by side, or of A."""

    uri: str
    number: int
    rows: int
    pair_id: str = ""
    uri_b: str = ""
    """Of a raw pair whose B has a file of its own."""


class Pair(TypedDict):
    """One decoded pair: `a` and `b` are (H, W, C) uint8 or uint16."""

    pair_id: str
    a: Pixels
    b: Pixels


@dataclass(frozen=True)
class Pairs:
    """Where the pairs of one split lie. Small and picklable: it holds no image."""

    uri: str
    split: str
    groups: tuple[RowGroup, ...]
    load_size: int
    """Side in pixels to which both sides of a raw pair are resized on reading; 0 leaves pairs as they are stored."""
    smallest_side: int
    """The shortest side of any pair, in pixels."""
    largest_area: int
    """Pixels that no image of a side exceeds; 0 where that is not known."""
    layout: FoundLayout | None = None
    """What was recognised in the names of a raw folder."""
    left_out: str = ""
    """Which images of the raw folder became no pair of the split, for people."""

    def __len__(self) -> int:
        return sum(group.rows for group in self.groups)

    @property
    def is_raw(self) -> bool:
        """Whether they are images in a folder, not parts that jobs/prepare.py wrote."""
        return self.layout is not None

    def log_left_out(self) -> Pairs:
        """The same. What is left out is told once it is known that these pairs are meant."""
        if self.left_out:
            log.warning("%s: %s: left out: %s; jobs/prepare.py lists them", self.uri, self.split, self.left_out)
        return self

    @functools.cached_property  # each block needs it, and there may be a million
    def group_rows(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Pairs in each row group."""
        return np.array([group.rows for group in self.groups], np.int64)

    def rows(self, limit: int | None = None) -> list[Row]:
        """All rows, or the first `limit`, in stored order."""
        every = ((number, row) for number, group in enumerate(self.groups) for row in range(group.rows))
        return list(itertools.islice(every, limit))


@contextlib.contextmanager
def _open_part(uri: str, *, has_ids: bool = False) -> Iterator[pq.ParquetFile]:
    """Raises UsageError for a file that is no part of a data set that p2p could have written."""
    try:
        with open_parquet(uri, coalesce=True, dictionaries=["pair_id"] if has_ids else ()) as parquet:
            yield parquet
    except DamagedFileError as error:
        raise UsageError(str(error)) from None


def _range(metadata: pq.FileMetaData, number: int, column: str) -> tuple[int, int] | None:
    group = metadata.row_group(number)
    for index in range(group.num_columns):
        chunk = group.column(index)
        if chunk.path_in_schema == column:
            statistics = chunk.statistics
            known = statistics is not None and statistics.has_min_max and isinstance(statistics.min, int)
            return (int(statistics.min), int(statistics.max)) if known else None
    return None


def _require_pairs(parquet: pq.ParquetFile, uri: str) -> None:
    """Raise UsageError for a file that jobs/prepare.py cannot have written."""
    schema = parquet.schema_arrow
    missing = [name for name in _COLUMNS if schema.names.count(name) != 1]
    if missing:
        raise UsageError(f"{uri}: has no column {missing[0]!r}; make the data set with jobs/prepare.py")
    for name in _SIDES:
        if find_bytes(schema.field(name)) != name:
            raise UsageError(f"{uri}: column {name!r} holds no bytes; make the data set with jobs/prepare.py")
    if schema.field("pair_id").type.num_fields:
        raise UsageError(f"{uri}: column 'pair_id' holds no names; make the data set with jobs/prepare.py")


def _groups_of_part(uri: str) -> tuple[list[RowGroup], list[int], list[int]]:
    """One part's row groups, the shortest sides that their statistics know, and the largest areas; 0 is unknown."""
    with _open_part(uri) as parquet:
        metadata = parquet.metadata
        _require_pairs(parquet, uri)
    groups = [
        RowGroup(uri, number, metadata.row_group(number).num_rows)
        for number in range(metadata.num_row_groups)
        if metadata.row_group(number).num_rows
    ]
    sizes = [[_range(metadata, group.number, column) for column in ("width", "height")] for group in groups]
    areas = [width[1] * height[1] if width and height else 0 for width, height in sizes]
    return groups, [side[0] for size in sizes for side in size if side], areas


def open_pairs(uri: str, split: str, *, raw_load_size: int = 286) -> Pairs:
    """Index one split of a prepared data set, or of a raw folder of pairs as its names are most likely meant.

    Args:
        uri: the data set's folder.
        split: its sub-folder, such as `train`.
        raw_load_size: side in pixels to which both sides of raw pairs are resized; prepared pairs keep their size.

    Raises:
        NotFoundError: the split holds neither parts nor images, with what was found instead.
        UsageError: a file there is no prepared data set, or raw images fit several layouts.

    """
    found = open_candidates(uri, split, raw_load_size=raw_load_size)
    if isinstance(found, Unclear):
        raise ConfigError("data", f"{uri}: {found.seen}; make a data set of it with jobs/prepare.py")
    return found[0].log_left_out()


def open_candidates(uri: str, split: str, *, raw_load_size: int = 286) -> list[Pairs] | Unclear:
    """As `open_pairs`; of a raw folder whose layout is not certain, all that it may be, the likeliest first."""
    names = list_names(join(uri, split))
    parts = [join(uri, split, name) for name in names if name.startswith("part-") and name.endswith(".parquet")]
    if not parts:
        return _open_raw(uri, split, raw_load_size)
    with ThreadPoolExecutor(_FOOTER_READERS) as readers:
        read = list(readers.map(_groups_of_part, parts))
    found = tuple(group for groups, _, _ in read for group in groups)
    if not found:
        raise NotFoundError(f"{join(uri, split)}: its parts hold no pairs")
    sides = [side for _, known, _ in read for side in known] or [min(_first_size(found[0]))]
    areas = [area for _, _, known in read for area in known]
    return [Pairs(uri, split, found, 0, min(sides), max(areas) if all(areas) else 0)]


def _open_raw(uri: str, split: str, load_size: int) -> list[Pairs] | Unclear:
    """The pairs of `split`; those of no split train. Another split is a folder of its own."""
    folder = uri if split in SPLITS else join(uri, split)
    files, left_out = [], LeftOut()
    for file in list_files(folder):
        if file.path.lower().endswith(SUFFIXES):
            files.append(file)
        else:
            left_out.add(file.path)
    if files:
        left_out.log(folder)
    paths = [file.path for file in files]
    matches = match_names(paths) if files else []
    if isinstance(matches, Unclear):
        return matches
    candidates = []
    for match in matches:
        groups = [
            RowGroup(files[pair.a].uri, -1, 1, printable(pair.pair_id), "" if pair.b is None else files[pair.b].uri)
            for pair in match.pairs
            if folder != uri or (pair.split or "train") == split
        ]
        if groups:
            text = describe_rest(match, paths, "" if folder != uri else split)
            area = load_size * load_size
            candidates.append(Pairs(uri, split, tuple(groups), load_size, load_size, area, match.layout, text))
    if not candidates:
        raise NotFoundError(_nothing_there(uri, split))
    return candidates


def _nothing_there(uri: str, split: str) -> str:
    present = [name for name in SPLITS if name in list_names(uri)]
    found = f"there are {', '.join(present)}" if present else f"found {', '.join(list_names(uri)[:5]) or 'nothing'}"
    return (
        f"{join(uri, split)}: no pairs there, neither part-*.parquet nor pairs of images "
        f"({', '.join(SUFFIXES)}); {found}. Make a data set with jobs/prepare.py"
    )


def _first_size(group: RowGroup) -> tuple[int, int]:
    with _open_part(group.uri) as parquet:
        ((_, data),) = read_cells(parquet, group.number, "a", [0], DEFAULT_MAX_BYTES)
    if isinstance(data, BadInputError):
        raise UsageError(f"{group.uri}: its first image: {data}")
    return images.image_size(data)


def read_rows(pairs: Pairs, rows: Sequence[Row], formats: Formats = (RGB, RGB)) -> Iterator[Pair]:
    """Decode the wanted `rows`, in their order, with A and B in `formats`.

    Each row group among them is fetched once; what is encoded is dropped once it is not needed any more.

    Raises BadInputError that names the pair, for an image that cannot be decoded and raw sides that differ in shape.
    """
    times = Counter(rows)
    wanted: dict[int, set[int]] = {}
    for number, row in rows:
        wanted.setdefault(number, set()).add(row)
    tables: dict[int, _Stored] = {}
    for number, row in rows:
        group = pairs.groups[number]
        if group.number < 0:
            yield _read_raw(group, pairs.load_size, formats)
            continue
        if number not in tables:
            tables[number] = _read_stored(group, wanted[number])
        pair_id, *sides = tables[number][row]
        times[number, row] -= 1
        if not times[number, row]:
            del tables[number][row]
        a, b = (_decode(pair_id, group.uri, data, wanted) for data, wanted in zip(sides, formats, strict=True))
        yield Pair(pair_id=pair_id, a=a, b=b)


def read_rows_in_task(pairs: Pairs, rows: Sequence[Row], formats: Formats) -> Iterator[Pair]:
    """As `read_rows`, in a Ray task that may be a repeat of one whose process ended.

    Then another process tries first, and BadInputError names the pair at which that one ends.
    """
    if is_repeat(f"pairs of {pairs.groups[rows[0][0]].uri}"):
        _try_rows(pairs, rows, formats)
    yield from read_rows(pairs, rows, formats)


def _try_rows(pairs: Pairs, rows: Sequence[Row], formats: Formats) -> None:
    places = {number: place for place, number in enumerate(dict.fromkeys(number for number, _ in rows))}
    few = dataclasses.replace(pairs, groups=tuple(pairs.groups[number] for number in places))
    position = find_fatal_item(read_rows, few, [(places[number], row) for number, row in rows], formats)
    if position is None:
        return
    number, row = rows[position]
    group = pairs.groups[number]
    pair_id = group.pair_id
    if group.number >= 0:
        with _open_part(group.uri, has_ids=True) as parquet:
            pair_id = _read_ids(parquet, group)[row] or ""
    raise process_ended(f"pair {pair_id!r} in {group.uri}: ")


_Stored = dict[int, tuple[str, bytes | BadInputError, bytes | BadInputError]]
"""Pair id and both sides, encoded, by row."""


def _read_stored(group: RowGroup, rows: Collection[int]) -> _Stored:
    with _open_part(group.uri, has_ids=True) as parquet:
        ids = _read_ids(parquet, group)
        a, b = (dict(read_cells(parquet, group.number, side, rows, DEFAULT_MAX_BYTES)) for side in _SIDES)
    gone = BadInputError("Missing", "its row group has fewer rows than when it was listed")
    return {row: (ids[row] or "", a.get(row, gone), b.get(row, gone)) for row in rows}


def _read_ids(parquet: pq.ParquetFile, group: RowGroup) -> list[str | None]:
    table = parquet.read_row_group(group.number, columns=["pair_id"])
    return short_text(table["pair_id"].combine_chunks(), f"{group.uri}: column 'pair_id'")


def _decode(pair_id: str, uri: str, data: bytes | BadInputError, wanted: PixelFormat) -> Pixels:
    try:
        if isinstance(data, BadInputError):
            raise data
        with decode_deadline():
            return images.decode(data, wanted)
    except BadInputError as error:
        raise BadInputError(error.kind, f"pair {pair_id!r} in {uri}: {error}") from None


def _read_raw(group: RowGroup, load_size: int, formats: Formats) -> Pair:
    """A pair of one file or of two, either side resized."""
    uris = (group.uri, group.uri_b or group.uri)
    data = {uri: read_bytes(uri, DEFAULT_MAX_BYTES) for uri in uris}
    decoded = {
        (uri, wanted): _decode(group.pair_id, uri, data[uri], wanted) for uri, wanted in zip(uris, formats, strict=True)
    }
    sides = [decoded[place] for place in zip(uris, formats, strict=True)]
    if not group.uri_b:
        try:
            sides = [images.split_halves(whole)[half] for half, whole in enumerate(sides)]
        except BadInputError as error:
            raise BadInputError(error.kind, f"pair {group.pair_id!r} in {group.uri}: {error}") from None
    way_out = ", or take jobs/prepare.py, which leaves such pairs out and lists them"
    check_sizes(group.pair_id, sides[0], sides[1], load_size, also=way_out)
    side_a, side_b = (images.resize(side, load_size, load_size) for side in sides)
    return Pair(pair_id=group.pair_id, a=side_a, b=side_b)
