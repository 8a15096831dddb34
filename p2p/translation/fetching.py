"""Reading the encoded bytes of inputs: whole files, rows of Parquet, byte ranges of tars."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from p2p.errors import BadInput, Damaged, KeysRefused, NotFound, Refused, StorageError, UsageError
from p2p.storage.filesystems import open_filesystem, storage_errors
from p2p.storage.names import printable
from p2p.storage.parquet import open_parquet
from p2p.translation.hosts import is_web
from p2p.translation.inputs import DAMAGED, WHOLE_FILE, Input, on_disk

_RANGE_BYTES = 8 * 2**20  # neighbours in a tar are read together up to this
_ROWS_AT_ONCE = 32
_WEB_PAUSES = (0.5, 2.0)
"""Seconds before a web server that did not answer, or asked for patience, is asked again."""

Fetched = bytes | BadInput
FETCH_FAILED = "FetchFailed"
"""Kind of a BadInput whose storage did not answer, after the retries of its file system."""
_REFUSED = "Refused"


class Fetcher:
    """Reads inputs in units: one file, or neighbours in a container that one read serves. Safe to use from threads."""

    def __init__(self, image_column: str) -> None:
        self._image_column = image_column
        self._filesystems: dict[str, Any] = {}
        self._lock = threading.Lock()

    def units(self, inputs: Sequence[Input]) -> Iterator[list[Input]]:
        """Group consecutive inputs by the read that serves them. Keeps the order."""
        for (uri, row_group), same in itertools.groupby(inputs, key=lambda item: (item.source_uri, item.row_group)):
            del uri
            if row_group != WHOLE_FILE:
                yield list(same)
                continue
            unit: list[Input] = []
            for item in same:
                alone = item.offset == WHOLE_FILE or DAMAGED in (item.row, unit[-1].row if unit else 0)
                if unit and (alone or _span([*unit, item]) > _RANGE_BYTES):
                    yield unit
                    unit = []
                unit.append(item)
            if unit:
                yield unit

    def fetch(self, unit: Sequence[Input]) -> list[Fetched]:
        """The bytes of each input of a unit, or why there are none. Raises KeysRefused: no input is bad for that."""
        for pause in _WEB_PAUSES if is_web(unit[0].source_uri) else ():  # other storage has retries of its own
            fetched = self._fetch(unit)
            if not all(isinstance(data, BadInput) and data.kind == FETCH_FAILED for data in fetched):
                return fetched
            time.sleep(pause)
        return self._fetch(unit)

    def _fetch(self, unit: Sequence[Input]) -> list[Fetched]:
        first = unit[0]
        if first.row == DAMAGED:
            return [_damaged(first)]
        try:
            with storage_errors(first.source_uri):
                if first.row_group != WHOLE_FILE:
                    return self._fetch_rows(unit)
                filesystem, path = self._locate(first.source_uri)
                if "\\x" in path and not os.path.lexists(path) and os.path.lexists(on_disk(path)):
                    path = on_disk(path)
                if first.offset == WHOLE_FILE:
                    return [bytes(filesystem.cat_file(path))] * len(unit)
                start, end = first.offset, max(item.offset + item.size for item in unit)
                data = bytes(filesystem.cat_file(path, start=start, end=end))
                return [_cut(data, item.offset - start, item.size) for item in unit]
        except NotFound:
            return [BadInput("NotFound", "no file lies at this address, or no longer")] * len(unit)
        except KeysRefused:
            raise
        except (UsageError, ValueError) as error:
            return [BadInput("BadAddress", f"this address cannot be opened: {error}")] * len(unit)
        except Damaged as error:
            return [BadInput(error.kind, printable(str(error)))] * len(unit)
        except Refused as error:
            return [BadInput(_REFUSED, printable(str(error)))] * len(unit)
        except StorageError as error:
            return [BadInput(FETCH_FAILED, printable(str(error)))] * len(unit)

    def _locate(self, uri: str) -> tuple[Any, str]:
        """File system and path. Addresses are not parsed again for each file: `::` or `#` in a name mean nothing."""
        scheme, separator, path = uri.partition("://")
        if not separator:
            scheme, path = "file", uri
        with self._lock:
            if scheme not in self._filesystems:
                self._filesystems[scheme] = open_filesystem(
                    f"{scheme}://{path.partition('/')[0]}" if separator else "/"
                )[0]
        return self._filesystems[scheme], uri if scheme.startswith("http") else path

    def _fetch_rows(self, unit: Sequence[Input]) -> list[Fetched]:
        """Decode the row group's column a few rows at a time: it may be larger than the rows that are wanted."""
        wanted = {item.row for item in unit}
        found: dict[int, Fetched] = {}
        column, _, member = self._image_column.partition(".")
        missing = BadInput("NotFound", "the row was listed but is no longer there")
        try:
            with open_parquet(unit[0].source_uri) as file:
                start = 0
                for batch in file.iter_batches(
                    batch_size=_ROWS_AT_ONCE, row_groups=[unit[0].row_group], columns=[self._image_column]
                ):
                    values = batch.column(column)
                    for row in wanted.intersection(range(start, start + len(values))):
                        value = values[row - start].as_py()
                        value = value.get(member) if member and value is not None else value
                        found[row] = BadInput("EmptyFile", "the row holds no bytes") if value is None else value
                    start += len(values)
                    if len(found) == len(wanted):
                        break
        except Damaged as error:  # what came before the damage is good
            missing = BadInput(error.kind, printable(str(error)))
        return [found.get(item.row, missing) for item in unit]


def _damaged(item: Input) -> BadInput:
    kind, _, message = item.reason.partition(": ")
    return BadInput(kind, message)


def _span(unit: Sequence[Input]) -> int:
    return unit[-1].offset + unit[-1].size - unit[0].offset


def _cut(data: bytes, start: int, size: int) -> Fetched:
    if len(data) < start + size:
        return BadInput("DamagedImage", "its archive ends before the image does")
    return data[start : start + size]
