"""Pairs of Parquet files: which rows, which columns, which split."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from itertools import repeat

import pyarrow.parquet as pq

from p2p.data.joining import COMBINED, FoundLayout
from p2p.data.layouts import split_name
from p2p.data.matching import LayoutChoice, match_names
from p2p.doctor.files import BadRow
from p2p.errors import BadInputError, ConfigError, DamagedFileError, LongTextError, StorageError
from p2p.preparation.locations import Cell, image_columns
from p2p.preparation.pairing import Pairing, PairRef, choose_split
from p2p.storage.bounded import DEFAULT_MAX_BYTES
from p2p.storage.filesystems import FileInfo, list_files
from p2p.storage.formats import format_of
from p2p.storage.names import printable
from p2p.storage.parquet import MIN_IMAGE_BYTES, check_row_count, open_parquet, read_cells, read_text
from p2p.storage.parquet_columns import is_text, path_of_bytes, why_no_images

_ID_COLUMNS = ("pair_id", "id", "image_id")
_SPLIT_COLUMN = "split"
_MAX_LOOKED_AT = 8  # rows of a column that may hold something else than images
_MAX_CANDIDATES = 16  # columns that are looked at
_SPLIT_PREFIX = re.compile(r"(train|validation|valid|val|test)-", re.IGNORECASE)


def _split_of(path: str) -> str:
    """By folder (`train/part-0.parquet`) or by the file's name (`train-00000-of-00002.parquet`), else none."""
    *folders, name = path.split("/")
    named = _SPLIT_PREFIX.match(name)
    return (split_name(folders[0]) if folders else None) or (split_name(named[1]) if named else None) or ""


def _columns(file: pq.ParquetFile, layout: LayoutChoice, uri: str) -> list[str]:
    """The columns of A and of B, by the words of the layouts if they have any; or the one of combined images."""
    schema = file.schema_arrow
    columns = image_columns(file)
    if len(columns) > 1 and layout != COMBINED:
        found = match_names([f"{column}/image" for column in columns])
        if isinstance(found, list) and found[0].layout.is_certain and len(found[0].pairs) == 1:
            (pair,) = found[0].pairs
            columns = [columns[number] for number in (pair.a, pair.b) if number is not None]
        elif ("a" not in columns or "b" not in columns) and 2 < len(columns) <= _MAX_CANDIDATES:
            columns = [column for column in columns if not _holds_other_bytes(file, column)] or columns
    if len(columns) > 2 or not columns or (layout == "folders" and len(columns) != 2):
        raise ConfigError(
            "source",
            f"{uri}: needs columns a and b, or two columns of encoded image bytes, or one of combined images; "
            f"its columns are {', '.join(schema.names)}" + (f"; {why}" if (why := why_no_images(schema)) else ""),
        )
    return columns[:1] if layout == "combined" else columns


def _holds_other_bytes(file: pq.ParquetFile, column: str) -> bool:
    """Whether the first rows of a column hold bytes, and no image. Of one without any nothing can be told."""
    path = path_of_bytes(file, column)
    if path is None or not file.num_row_groups:
        return False
    are_others = False
    for _, data in read_cells(file, 0, path, range(_MAX_LOOKED_AT), DEFAULT_MAX_BYTES):
        if isinstance(data, bytes):
            are_others = True
            with contextlib.suppress(BadInputError):
                format_of(data)
                return False
    return are_others


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


def _rows_of(
    file: FileInfo, layout: LayoutChoice, pairing: Pairing, val_fraction: float, expected: list[str]
) -> list[str]:
    """Add the pairs of one file, and return the columns of its sides.

    expected: those of the files before; none if this is the first.

    Raises DamagedFileError where its pairs cannot all be listed, ConfigError for other columns, and then adds none.
    """
    with open_parquet(file.uri) as parquet:
        columns = _columns(parquet, layout, file.uri)
        # Of a single column the name decides nothing; of two it decides which is A.
        if expected and columns != expected and max(len(columns), len(expected)) > 1:
            found, others = ", ".join(columns), ", ".join(expected)
            raise ConfigError("source", f"{file.uri}: its images are in {found}; those of the files before in {others}")
        check_row_count(parquet, file.uri, MIN_IMAGE_BYTES)
        split, stem = _split_of(file.path), file.path.rpartition(".")[0]
        pairs: list[PairRef] = []
        first = 0
        rows = _names_and_splits(parquet, file.uri)
        for group in range(parquet.num_row_groups):
            facts = parquet.metadata.row_group(group)
            weight = facts.total_byte_size // max(1, facts.num_rows)
            for row, (name, named_split) in zip(range(facts.num_rows), rows, strict=False):
                pair_id = name or f"{stem}/{first + row}"
                cells = [Cell(file.uri, group, row, column) for column in columns]
                chosen = choose_split(split_name(named_split or "") or split, pair_id, val_fraction)
                pairs.append(PairRef(pair_id, chosen, cells[0], cells[1] if cells[1:] else None, weight))
            first += facts.num_rows
    for pair in pairs:
        pairing.add(pair)
    if columns[1:]:
        pairing.layout = FoundLayout("two-column", (f"column {columns[0]}", f"column {columns[1]}"))
    else:
        halves = f"left half of column {columns[0]}", f"right half of column {columns[0]}"
        seen = f"one column of images, {columns[0]}, in {printable(file.uri)}"
        pairing.layout = FoundLayout(COMBINED, halves, layout == COMBINED, seen)
    return columns


def pair_tables(uri: str, layout: LayoutChoice, val_fraction: float) -> Pairing:
    """List the pairs of a Parquet file or folder. Raises ConfigError if its columns hold none."""
    files = list(list_files(uri, (".parquet",)))
    # A prepared data set keeps its bad rows beside its splits.
    files = [file for file in files if not file.path.startswith("errors/")]
    pairing = Pairing(FoundLayout(COMBINED, ("left half", "right half")))
    refused: ConfigError | None = None
    columns: list[str] = []
    for file in files:
        try:
            columns = _rows_of(file, layout, pairing, val_fraction, columns)
        except ConfigError as error:  # one among others that has other columns
            refused = refused or error
            pairing.bad.append(BadRow(printable(file.uri), "WrongColumns", printable(str(error))))
        except DamagedFileError as error:
            pairing.bad.append(BadRow(printable(file.uri), error.kind, printable(str(error))))
        except StorageError as error:
            raise ConfigError("source", str(error)) from None
    if not pairing.pairs:
        if refused:
            raise refused
        if pairing.bad:
            raise ConfigError("source", f"{uri}: no Parquet file can be used; the first: {pairing.bad[0].message}")
        raise ConfigError("source", f"{uri}: its {len(files)} Parquet files hold no rows")
    return pairing
