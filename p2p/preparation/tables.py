"""Pairs of Parquet files: which rows, which columns, which split."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

import pyarrow as pa
import pyarrow.parquet as pq

from p2p.data.joining import COMBINED, FoundLayout
from p2p.data.layouts import split_name
from p2p.data.matching import LayoutChoice, match_names
from p2p.doctor.files import BadRow
from p2p.errors import BadInputError, ConfigError, DamagedFileError, LongTextError, StorageError
from p2p.preparation.locations import Cell, image_columns
from p2p.preparation.pairing import Pairing, PairRef, choose_split
from p2p.preparation.sources import splits_of
from p2p.storage.bounded import DEFAULT_MAX_BYTES
from p2p.storage.filesystems import FileInfo, list_files
from p2p.storage.formats import format_of
from p2p.storage.names import printable
from p2p.storage.parquet import MIN_IMAGE_BYTES, check_row_count, damage_reported, open_parquet, read_cells, read_text
from p2p.storage.parquet_columns import find_bytes, find_empty, find_images, is_text, path_of_bytes, why_no_images

_ID_COLUMNS = ("pair_id", "id", "image_id")
_SPLIT_COLUMN = "split"
_MAX_LOOKED_AT = 8  # rows of a column that may hold something else than images
_MAX_CANDIDATES = 16  # columns that are looked at
_MAX_REASONS = 4
_MAX_FILES_SHOWN = 3
_MAX_FILES_ASKED = 8  # whether any of their columns holds images
_WORDS_OF_COLUMNS = {"pixel_values": "image", "condition": "conditioning"}
"""What columns are called and folders are not, by words of the layouts."""


@dataclass(frozen=True)
class _Columns:
    """The columns of A and of B in a file, or the one of combined images."""

    names: tuple[str, ...]
    are_certain: bool
    """Whether the names, or the user, say that they are two sides."""
    without_images: frozenset[str]
    """Those that could hold images, and hold none in any row."""
    others: str
    """What further columns hold instead of images, for a message; empty if that is plain."""
    rest: tuple[str, ...] = ()
    """Further columns that may hold images, and are neither side."""


@dataclass(frozen=True)
class _Table:
    """A file and its rows; `split`: what its name says, or its folder's."""

    uri: str
    split: str
    stem: str
    """Its path without ending."""
    columns: _Columns
    pairs: list[PairRef]


_Chosen = dict[tuple[str, ...], list[str]]
"""Of columns that may hold images, those that do: a file is taken to be as one before it that had the same."""


def _find_columns(file: pq.ParquetFile, layout: LayoutChoice, uri: str, chosen: _Chosen) -> _Columns:
    """The columns of A and of B, by the words of the layouts if they have any; or the one of combined images.

    Raises ConfigError where there are neither two nor one.
    """
    schema = file.schema_arrow
    every, empty = image_columns(file), find_empty(file)
    columns = [column for column in every if column not in empty] or every
    are_certain = layout == "folders" or columns == ["a", "b"]
    by_words = None if columns == ["a", "b"] or layout == COMBINED else _by_words(columns)
    other_bytes: set[str] = set()
    if by_words:
        columns, are_certain = by_words, True
    elif columns != ["a", "b"] and 1 < len(columns) <= _MAX_CANDIDATES:
        images = _without_other_bytes(file, columns, uri, chosen)
        other_bytes, columns = {*columns} - {*images}, images
    others = _describe_others(file, uri, {*every} - other_bytes - empty, other_bytes, empty)
    if len(columns) > 2 or not columns or (layout == "folders" and len(columns) != 2):
        several = f"{len(columns)} of them may hold images ({', '.join(columns[:_MAX_CANDIDATES])})"
        what = f"; {several}, so call two of these a and b, or leave the others out" if columns[2:] else ""
        raise ConfigError(
            "source",
            f"{uri}: needs columns a and b, or two columns of encoded image bytes, or one of combined images; "
            f"its columns are {', '.join(schema.names)}{what}" + (f"; {others}" if others else ""),
        )
    without_images = {field.name for field in schema if find_bytes(field)} - set(every) | empty
    names = columns[:1] if layout == COMBINED else columns
    rest = [column for column in find_images(file) if column not in {*names} | other_bytes | empty]
    return _Columns(tuple(names), are_certain, frozenset(without_images), others, tuple(rest[:_MAX_CANDIDATES]))


def _by_words(columns: Sequence[str]) -> list[str] | None:
    """The columns of A and of B as the words of a layout in their names say; None without."""
    words = [_WORDS_OF_COLUMNS.get(column.lower(), column) for column in columns]
    words = words if len({*words}) == len(words) else [*columns]
    found = match_names([f"{word}/image" for word in words]) if len(words) > 1 else []
    if not isinstance(found, list) or not found or not found[0].layout.is_certain or len(found[0].pairs) != 1:
        return None
    (pair,) = found[0].pairs
    return [columns[number] for number in (pair.a, pair.b) if number is not None]


def _describe_others(file: pq.ParquetFile, uri: str, images: set[str], other_bytes: set[str], empty: set[str]) -> str:
    """Why columns that do not hold `images` do not. `empty`: those without a value in any row."""
    schema = file.schema_arrow
    reasons = [f"column {name!r} holds bytes that are no images" for name in schema.names if name in other_bytes]
    reasons += [f"column {name!r} holds nothing in any row" for name in schema.names if name in empty]
    known = images | other_bytes | empty
    rest = [field for field in schema if field.name not in known and not (images and is_text(field.type))]
    looked_at = {field.name for field in rest[:_MAX_CANDIDATES]}

    def look(name: str) -> bytes:
        return next(_first_values(file, name, uri), b"") if name in looked_at else b""

    return "; ".join(filter(None, [*reasons[:_MAX_REASONS], why_no_images(pa.schema(rest), look)]))


def _without_other_bytes(file: pq.ParquetFile, columns: list[str], uri: str, chosen: _Chosen) -> list[str]:
    """The columns whose first rows hold images, or nothing that could tell; all of them if none does."""
    candidates = tuple(columns)
    if candidates in chosen:
        return chosen[candidates]
    found = {name: _holds_images(file, name, uri) for name in columns}
    images = [name for name in columns if found[name] is not False] or columns
    if None not in found.values():
        chosen[candidates] = images
    return images


def _holds_images(file: pq.ParquetFile, column: str, uri: str) -> bool | None:
    """Whether one of the first rows of a column holds an image; None where they hold no bytes, or cannot be read."""
    path = path_of_bytes(file, column)
    found = None
    for data in _first_values(file, path, uri) if path else ():
        found = False
        with contextlib.suppress(BadInputError):
            format_of(data)
            return True
    return found


def _first_values(file: pq.ParquetFile, path: str, uri: str) -> Iterator[bytes]:
    """The values of a column of bytes or text in the first rows, without those that are null; none if it is damaged."""
    if not file.num_row_groups:
        return
    with contextlib.suppress(DamagedFileError), damage_reported(uri):  # its rows will be found bad one by one
        for _, data in read_cells(file, 0, path, range(_MAX_LOOKED_AT), DEFAULT_MAX_BYTES):
            if isinstance(data, bytes):
                yield data


def _names_and_splits(file: pq.ParquetFile, uri: str) -> Iterator[tuple[str | None, str | None]]:
    """The id and the split of each row, as far as there are columns of them. Raises DamagedFileError."""
    schema = file.schema_arrow
    id_column = next((name for name in _ID_COLUMNS if name in schema.names), None)
    has_splits = schema.names.count(_SPLIT_COLUMN) == 1 and is_text(schema.field(_SPLIT_COLUMN).type)
    ids = _values(uri, id_column) if id_column else repeat(None)
    splits: Iterable[str | None] = repeat(None)
    if has_splits:
        with contextlib.suppress(LongTextError):  # what is so long names no splits
            splits = [*_values(uri, _SPLIT_COLUMN)]
    return zip(ids, splits, strict=False)


def _values(uri: str, column: str) -> Iterator[str | None]:
    return (value for (values,) in read_text(uri, [column]) for value in values)


def _read_table(file: FileInfo, split: str, layout: LayoutChoice, val_fraction: float, chosen: _Chosen) -> _Table:
    """The rows of one file as pairs; `split`: of those that do not say theirs in a column.

    Raises DamagedFileError where they cannot all be listed, ConfigError where its columns hold no pairs.
    """
    with open_parquet(file.uri) as parquet:
        columns = _find_columns(parquet, layout, file.uri, chosen)
        check_row_count(parquet, file.uri, MIN_IMAGE_BYTES)
        stem = file.path.rpartition(".")[0]
        pairs: list[PairRef] = []
        first = 0
        rows = _names_and_splits(parquet, file.uri)
        for group in range(parquet.num_row_groups):
            facts = parquet.metadata.row_group(group)
            weight = facts.total_byte_size // max(1, facts.num_rows)
            for row, (name, named_split) in zip(range(facts.num_rows), rows, strict=False):
                pair_id = name or f"{stem}/{first + row}"
                cells = [Cell(file.uri, group, row, column) for column in columns.names]
                stored = choose_split(split_name(named_split or "") or split, pair_id, val_fraction)
                pairs.append(PairRef(pair_id, stored, cells[0], cells[1] if cells[1:] else None, weight))
            first += facts.num_rows
    return _Table(file.uri, split, stem, columns, pairs)


def _most_common(tables: Sequence[_Table]) -> _Table:
    """The first file whose columns are the sides: those of most rows, of names that say so where there are any.

    Which files there are beside it, such as a test split whose labels are not public, decides nothing.
    """
    whole = [table for table in tables if not table.columns.without_images] or tables
    likely = [table for table in whole if table.columns.are_certain] or whole
    rows: Counter[tuple[str, ...]] = Counter()
    for table in likely:
        rows[table.columns.names] += len(table.pairs)
    ((names, _),) = rows.most_common(1)  # of equals the first
    return next(table for table in likely if table.columns.names == names)


def _layout_of(table: _Table, layout: LayoutChoice) -> FoundLayout:
    names, others = table.columns.names, f"; {table.columns.others}" if table.columns.others else ""
    if names[1:]:
        sides = f"column {names[0]}", f"column {names[1]}"
        seen = (
            f"neither the names of the columns {names[0]} and {names[1]} in {printable(table.uri)} say that they are "
            f"two sides, nor do the images show it; if they are, call them a and b, or pass --layout folders{others}"
        )
        return FoundLayout("two-column", sides, table.columns.are_certain, "" if table.columns.are_certain else seen)
    halves = f"left half of column {names[0]}", f"right half of column {names[0]}"
    seen = f"one column of images, {names[0]}, in {printable(table.uri)}{others}"
    return FoundLayout(COMBINED, halves, layout == COMBINED, seen)


def _share_ids(tables: Sequence[_Table]) -> bool:
    """Whether a split has an id in more than one file: in each of them they may be numbers that begin anew."""
    seen: dict[tuple[str, str], int] = {}
    return any(
        seen.setdefault((pair.split, pair.pair_id), number) != number
        for number, table in enumerate(tables)
        for pair in table.pairs
        if not pair.pair_id.startswith(f"{table.stem}/")
    )


def _below(stem: str, pair: PairRef) -> PairRef:
    """The pair by its file's path and its id there; a row without an id has such a name already."""
    is_below = pair.pair_id.startswith(f"{stem}/")
    return pair if is_below else dataclasses.replace(pair, pair_id=f"{stem}/{pair.pair_id}")


def _add_tables(tables: Sequence[_Table], layout: LayoutChoice, pairing: Pairing) -> None:
    """Add the pairs of the files that have the sides; the others are bad, or left out where theirs is a split of its
    own without a side.
    """
    chosen = _most_common(tables)
    sides = chosen.columns.names
    pairing.layout = _layout_of(chosen, layout)
    # Of a single column the name decides nothing; of two it decides which is A.
    have_sides = [table.columns.names == sides or len(table.columns.names) == len(sides) == 1 for table in tables]
    paired_splits = {table.split for table, has_sides in zip(tables, have_sides, strict=True) if has_sides}
    are_unique = not _share_ids([table for table, has_sides in zip(tables, have_sides, strict=True) if has_sides])
    left_out = [f"column {name}" for name in _unused_images(chosen)]
    for table, has_sides in zip(tables, have_sides, strict=True):
        names = table.columns.names
        if has_sides:
            for pair in table.pairs:
                pairing.add(pair if are_unique else _below(table.stem, pair))
        elif {*names} < {*sides} and table.split and table.split not in paired_splits:
            (missing,) = {*sides} - {*names}
            left_out.append(f"{printable(table.uri)} ({len(table.pairs)} rows without images in column {missing})")
        else:
            why = f"; {table.columns.others}" if table.columns.others else ""
            problem = f"its images are in {', '.join(names)}; those of the other files in {', '.join(sides)}{why}"
            pairing.bad.append(BadRow(printable(table.uri), "WrongColumns", printable(f"{table.uri}: {problem}")))
    rest = [f"and {len(left_out) - _MAX_FILES_SHOWN} more"] if len(left_out) > _MAX_FILES_SHOWN else []
    pairing.left_out = ", ".join([*left_out[:_MAX_FILES_SHOWN], *rest])


def _unused_images(table: _Table) -> list[str]:
    """The columns of a file that are neither side, and hold images."""
    if not table.columns.rest:
        return []
    with open_parquet(table.uri) as file:
        return [name for name in table.columns.rest if _holds_images(file, name, table.uri)]


def _files(uri: str) -> list[FileInfo]:
    """The files of a Parquet data set. One that is prepared keeps its bad rows beside its splits."""
    return [file for file in list_files(uri, (".parquet",)) if not file.path.startswith("errors/")]


def rows_with_images(uri: str, enough: int) -> int:
    """How many rows the files below have that hold images; counted until `enough`. Damaged files have none."""
    rows = 0
    for number, file in enumerate(_files(uri)):
        if rows >= enough or (number == _MAX_FILES_ASKED and not rows):
            break
        with contextlib.suppress(DamagedFileError), open_parquet(file.uri) as parquet:
            columns = [*find_images(parquet)][:_MAX_CANDIDATES]
            if any(_holds_images(parquet, column, file.uri) for column in columns):
                rows += parquet.metadata.num_rows
    return rows


def pair_tables(uri: str, layout: LayoutChoice, val_fraction: float) -> Pairing:
    """List the pairs of a Parquet file or folder. Raises ConfigError if its columns hold none."""
    files = _files(uri)
    pairing = Pairing(FoundLayout(COMBINED, ("left half", "right half")))
    refused: ConfigError | None = None
    tables: list[_Table] = []
    chosen: _Chosen = {}
    for file, split in zip(files, splits_of([file.path for file in files]), strict=True):
        try:
            tables.append(_read_table(file, split, layout, val_fraction, chosen))
        except ConfigError as error:  # one among others that has other columns
            refused = refused or error
            pairing.bad.append(BadRow(printable(file.uri), "WrongColumns", printable(str(error))))
        except DamagedFileError as error:
            pairing.bad.append(BadRow(printable(file.uri), error.kind, printable(str(error))))
        except StorageError as error:
            raise ConfigError("source", str(error)) from None
    if tables:
        _add_tables(tables, layout, pairing)
    if not pairing.pairs:
        if refused:
            raise refused
        if pairing.bad:
            raise ConfigError("source", f"{uri}: no Parquet file can be used; the first: {pairing.bad[0].message}")
        raise ConfigError("source", f"{uri}: its {len(files)} Parquet files hold no rows")
    return pairing
