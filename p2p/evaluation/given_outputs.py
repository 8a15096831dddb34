"""Outputs that something else made, found by the ids of the pairs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from p2p.data.pairs import Pairs
from p2p.errors import BadInputError, ConfigError
from p2p.storage import images
from p2p.storage.bounded import DEFAULT_MAX_BYTES
from p2p.storage.deadline import decode_deadline
from p2p.storage.filesystems import FileInfo, join, list_files, list_names, read_bytes
from p2p.storage.formats import ENDINGS, SUFFIXES
from p2p.storage.names import printable
from p2p.storage.parquet import open_parquet, read_cells, read_text
from p2p.storage.parquet_columns import find_bytes
from p2p.storage.pixels import PixelFormat, Pixels

_ID_COLUMNS = ("image_id", "pair_id", "id")
_IMAGE_COLUMNS = ("image", "output")
_FOLDERS = ("data", "images")
"""Where a translation's output holds its images."""
_PARQUET = ".parquet"
LOSSY = ("jpeg", "webp")


@dataclass(frozen=True)
class Place:
    """An encoded image: a file, or with a `column` a cell of a Parquet file."""

    uri: str
    column: str = ""
    row_group: int = 0
    row: int = 0


@dataclass(frozen=True)
class GivenOutputs:
    """Where the output of each pair is. Small and picklable: it holds no image."""

    uri: str
    places: Mapping[str, Place]
    wanted: PixelFormat
    format: str
    """`png`, `jpeg`, …, by the first of them."""

    @property
    def is_lossy(self) -> bool:
        """Whether the files have lost some of what was made."""
        return self.format in LOSSY

    def read(self, ids: Sequence[str]) -> list[Pixels]:
        """The outputs of these pairs, (H, W, C) each. Raises BadInputError that names the pair."""
        return [self._decode(pair_id, data) for pair_id, data in zip(ids, self._encoded(ids), strict=True)]

    def _encoded(self, ids: Sequence[str]) -> list[bytes | BadInputError]:
        found: dict[Place, bytes | BadInputError] = {}
        by_group: dict[tuple[str, str, int], list[Place]] = {}
        for place in (self.places[pair_id] for pair_id in ids):
            if place.column:
                by_group.setdefault((place.uri, place.column, place.row_group), []).append(place)
            else:
                found[place] = read_bytes(place.uri, DEFAULT_MAX_BYTES)
        for (uri, column, group), places in by_group.items():
            with open_parquet(uri, coalesce=True) as file:
                cells = dict(read_cells(file, group, column, [place.row for place in places], DEFAULT_MAX_BYTES))
            found |= {place: cells[place.row] for place in places}
        return [found[self.places[pair_id]] for pair_id in ids]

    def _decode(self, pair_id: str, data: bytes | BadInputError) -> Pixels:
        try:
            if isinstance(data, BadInputError):
                raise data
            with decode_deadline():
                return images.decode(data, self.wanted)
        except BadInputError as error:
            raise BadInputError(error.kind, f"output {pair_id!r} in {self.uri}: {error}") from None


def find_outputs(uri: str, pairs: Pairs, rows: Sequence[tuple[int, int]], wanted: PixelFormat) -> GivenOutputs:
    """Join what is at `uri` with the pairs of `rows`. Raises ConfigError, with both counts, unless all have one."""
    folder = next((join(uri, name) for name in _FOLDERS if name in list_names(uri)), uri)
    files = list(list_files(folder, (*SUFFIXES, _PARQUET)))
    found: dict[str, Place] = {}
    for info in files:
        found |= _rows_of(info) if info.path.endswith(_PARQUET) else {_stem(printable(info.path)): Place(info.uri)}
    ids = pair_ids(pairs, rows)
    places = {pair_id: found.get(pair_id, found.get(_stem(pair_id))) for pair_id in ids}
    missing = [pair_id for pair_id, place in places.items() if place is None]
    if missing:
        raise ConfigError(
            "outputs",
            f"{uri}: {len(missing)} of {len(ids)} pairs have no output among the {len(found)} there, the first is "
            f"{missing[0]!r}; outputs are joined by the ids of the pairs in {join(pairs.uri, pairs.split)}",
        )
    known = {pair_id: place for pair_id, place in places.items() if place is not None}
    first = GivenOutputs(uri, known, wanted, "")._encoded(ids[:1])[0]
    return GivenOutputs(uri, known, wanted, image_kind(first) if isinstance(first, bytes) else "damaged")


def _stem(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return stem if dot and f".{ending.lower()}" in ENDINGS else name


def _rows_of(info: FileInfo) -> dict[str, Place]:
    with open_parquet(info.uri) as file:
        names = file.schema_arrow.names
        id_column = next((name for name in _ID_COLUMNS if name in names), None)
        column = next((find_bytes(file.schema_arrow.field(name)) for name in _IMAGE_COLUMNS if name in names), None)
        groups = file.metadata.num_row_groups
    if id_column is None or column is None:
        raise ConfigError(
            "outputs",
            f"{info.uri}: needs a column {' or '.join(_ID_COLUMNS)} and one with images, "
            f"{' or '.join(_IMAGE_COLUMNS)}; it has {', '.join(names)}",
        )
    found: dict[str, Place] = {}
    for group in range(groups):
        texts = itertools.chain.from_iterable(ids for (ids,) in read_text(info.uri, [id_column], row_groups=[group]))
        found |= {_stem(text or ""): Place(info.uri, column, group, row) for row, text in enumerate(texts)}
    return found


def pair_ids(pairs: Pairs, rows: Sequence[tuple[int, int]]) -> list[str]:
    """The ids of some rows, without reading an image."""
    stored: dict[int, list[str]] = {}
    for number in dict.fromkeys(number for number, _ in rows):
        group = pairs.groups[number]
        if group.number < 0:
            stored[number] = [group.pair_id]
        else:
            texts = read_text(group.uri, ["pair_id"], row_groups=[group.number])
            stored[number] = [text or "" for (ids,) in texts for text in ids]
    return [stored[number][row] for number, row in rows]


def first_encoded(pairs: Pairs, side: str) -> bytes:
    """The stored bytes of side `a` or `b` of the first pair; of a raw pair those of both."""
    group = pairs.groups[0]
    if group.number < 0:
        return read_bytes(group.uri, DEFAULT_MAX_BYTES)
    with open_parquet(group.uri, coalesce=True) as file:
        ((_, data),) = read_cells(file, group.number, side, [0], DEFAULT_MAX_BYTES)
    return data if isinstance(data, bytes) else b""


def image_kind(data: bytes) -> str:
    """The format of an encoded image by its first bytes: jpeg, webp (if it is a lossy one), png, or `other`."""
    if data.startswith(b"\xff\xd8"):
        return "jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp-lossless" if data[12:16] == b"VP8L" else "webp"
    return "png" if data.startswith(b"\x89PNG") else "other"
