"""Reading the encoded bytes of inputs: whole files, rows of Parquet, byte ranges of tars."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow.parquet as pq

from p2p.errors import (
    BadInputError,
    CredentialsError,
    DamagedFileError,
    NotFoundError,
    RefusedError,
    StorageError,
    UsageError,
    redact,
)
from p2p.storage.bounded import DEFAULT_MAX_BYTES, check_bytes, read_limited, require_regular_file
from p2p.storage.error_mapping import storage_errors
from p2p.storage.filesystems import is_remote, open_filesystem
from p2p.storage.formats import SUFFIXES
from p2p.storage.names import printable
from p2p.storage.parquet import open_parquet, read_cells
from p2p.storage.parquet_columns import path_of_bytes
from p2p.storage.web import WebReader
from p2p.translation.corpus.addresses import is_web
from p2p.translation.corpus.inputs import DAMAGED, SIGNED, WHOLE_FILE, Input, on_disk
from p2p.translation.corpus.manifest import ManifestCorpus, SignedAddresses

_MAX_RANGE_BYTES = 8 * 2**20  # neighbours in a tar are read together up to this
_WEB_PAUSES = (0.5, 2.0)
"""Seconds before a web server that did not answer, or asked for patience, is asked again."""
_SLOW_SECONDS = 10.0
"""A web server that took longer to fail is not asked again: one that never answers would delay the work for minutes."""

Fetched = bytes | BadInputError
StartRow = Callable[[int], None]
"""Called with an input's place in its unit before it is read by itself. May raise BadInputError to forbid it."""
_HINTS = {
    "\\": "; on this system folders are separated by /",
    "%": "; in a path, unlike in a file:// address, %20 and the like are taken as they stand",
    **dict.fromkeys(("*", "?", "{"), "; patterns are not followed"),
    "$": "; names of the environment are not replaced",
    ":/": "; addresses of the web and of object storage begin like https:// and s3://",
    **dict.fromkeys(
        (", ", ";", "|", *(f"{ending} " for ending in SUFFIXES)),
        "; what follows an address in a line stands behind a tab, or the list is a .csv",
    ),
}
"""For a file that is not there, by what its path holds."""
FETCH_FAILED = "FetchFailed"
"""Kind of a BadInputError whose storage did not answer, after the retries of its file system."""


class InputFetcher:
    """Reads inputs in units: one file, or neighbours in a container that one read serves. Safe to use from threads.

    Args:
        image_column: the column of images in Parquet files.
        max_bytes: larger encoded images are refused; their bytes are counted as they come.
        allow_private: whether web addresses may lead into private networks, and to this machine.
        manifest: what holds the addresses with a signature.

    """

    def __init__(
        self,
        image_column: str,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        allow_private: bool = True,
        manifest: ManifestCorpus | None = None,
    ) -> None:
        self._image_column, self._max_bytes = image_column, max_bytes
        self._signed = SignedAddresses(manifest) if manifest else None
        self._web = WebReader(allow_private=allow_private)
        self._filesystems: dict[str, Any] = {}
        self._footer: tuple[str, pq.FileMetaData | None] = "", None  # one with 100,000 row groups takes long to read
        self._lock = threading.Lock()

    def units(self, inputs: Sequence[Input]) -> Iterator[list[Input]]:
        """Group consecutive inputs by the read that serves them. Keeps the order."""
        for (_, row_group), same in itertools.groupby(inputs, key=lambda item: (item.source_uri, item.row_group)):
            if row_group != WHOLE_FILE:
                yield list(same)
                continue
            unit: list[Input] = []
            for item in same:
                before = unit[-1] if unit else item
                alone = item.offset == WHOLE_FILE or {item.row, before.row} & {DAMAGED, SIGNED}
                if unit and (alone or _span([*unit, item]) > _MAX_RANGE_BYTES):
                    yield unit
                    unit = []
                unit.append(item)
            if unit:
                yield unit

    def fetch(self, unit: Sequence[Input], start_row: StartRow | None = None) -> list[Fetched]:
        """The bytes of each input of a unit, or why there are none. Raises CredentialsError: no input is bad for that.

        With `start_row` the inputs are read one after the other, and it is called before each. Rows of Parquet that
        follow one which it forbids are not read either, since that read would go through the forbidden one.
        """
        if start_row is not None:
            return self._fetch_singly(unit, start_row)
        for pause in _WEB_PAUSES if is_web(unit[0].source_uri) else ():  # other storage has retries of its own
            started = time.monotonic()
            fetched = self._fetch(unit)
            failed = all(isinstance(data, BadInputError) and data.kind == FETCH_FAILED for data in fetched)
            if not failed or time.monotonic() - started > _SLOW_SECONDS:
                return fetched
            time.sleep(pause)
        return self._fetch(unit)

    def _fetch_singly(self, unit: Sequence[Input], start_row: StartRow) -> list[Fetched]:
        if unit[0].row_group != WHOLE_FILE:
            return self._fetch(unit, start_row)
        fetched: list[Fetched] = []
        for index, item in enumerate(unit):
            try:
                start_row(index)
                fetched += self.fetch([item])
            except BadInputError as error:
                fetched.append(error)
        return fetched

    def _fetch(self, unit: Sequence[Input], start_row: StartRow | None = None) -> list[Fetched]:
        first = unit[0]
        try:
            if first.row == DAMAGED:
                kind, _, message = first.reason.partition(": ")
                raise BadInputError(kind, message)
            with storage_errors(first.source_uri):
                if first.row_group != WHOLE_FILE:
                    return self._fetch_rows(unit, start_row)
                if first.offset == WHOLE_FILE or first.row == SIGNED:
                    return [self._fetch_file(first)] * len(unit)
                return self._fetch_range(unit)
        except CredentialsError:
            raise
        except (BadInputError, StorageError, UsageError, ValueError) as error:
            return [_as_bad_input(error, first.source_uri)] * len(unit)

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
        if "\\x" in path and not os.path.lexists(path) and os.path.lexists(on_disk(path)):
            path = on_disk(path)
        return self._filesystems[scheme], path

    def _fetch_file(self, item: Input) -> bytes:
        """The whole content of a file or web address."""
        uri = item.source_uri
        if item.row == SIGNED:
            assert self._signed is not None, "an address was masked, and no manifest holds it"
            whole = self._signed.find(item.offset)
            if printable(redact(whole)) != uri:
                raise BadInputError("AddressChanged", "the manifest has another address there than when it was listed")
            uri = whole
        if is_web(uri):
            return self._web.read(uri, self._max_bytes)
        return read_limited(*self._locate(uri), self._max_bytes, uri)

    def _fetch_range(self, unit: Sequence[Input]) -> list[Fetched]:
        """Neighbours in a tar."""
        check_bytes(unit[0].size, self._max_bytes)  # a larger one is alone
        filesystem, path = self._locate(unit[0].source_uri)
        require_regular_file(filesystem, path)
        start, end = unit[0].offset, max(item.offset + item.size for item in unit)
        # An empty range would be the whole object to S3.
        data = bytes(filesystem.cat_file(path, start=start, end=end)) if start < end else b""
        return [_cut(data, item.offset - start, item.size) for item in unit]

    def _fetch_rows(self, unit: Sequence[Input], start_row: StartRow | None) -> list[Fetched]:
        """Rows of a row group, which may be larger than the rows that are wanted."""
        places = {item.row: place for place, item in enumerate(unit)}
        before_row = (lambda row: start_row(places[row])) if start_row else None
        found: dict[int, Fetched] = {}
        missing = BadInputError("NotFound", "the row was listed but is no longer there")
        uri = unit[0].source_uri
        before, metadata = self._footer
        try:
            with open_parquet(uri, metadata=metadata if before == uri else None) as file:
                self._footer = uri, file.metadata
                path, limit = path_of_bytes(file, self._image_column), self._max_bytes
                if path is not None:
                    found.update(read_cells(file, unit[0].row_group, path, places, limit, before_row=before_row))
        except DamagedFileError as error:  # what came before the damage is good
            missing = BadInputError(error.kind, printable(str(error)))
        except BadInputError as error:  # the first row that was not found must not be read, nor can any behind it be
            found[min(places.keys() - found.keys())] = error
            missing = BadInputError(error.kind, "not read: the process ended at a row before it in the same row group")
        return [found.get(item.row, missing) for item in unit]


def _as_bad_input(error: Exception, uri: str) -> BadInputError:
    if isinstance(error, BadInputError):
        return error
    if isinstance(error, NotFoundError):
        hint = next((hint for mark, hint in _HINTS.items() if mark in uri and not is_remote(uri)), "")
        return BadInputError("NotFound", f"no file lies at {printable(uri)}, or no longer{hint}")
    if not isinstance(error, StorageError):
        return BadInputError("BadAddress", f"this address cannot be opened: {error}")
    if isinstance(error, DamagedFileError):
        return BadInputError(error.kind, printable(str(error)))
    return BadInputError("Refused" if isinstance(error, RefusedError) else FETCH_FAILED, printable(str(error)))


def _span(unit: Sequence[Input]) -> int:
    return unit[-1].offset + unit[-1].size - unit[0].offset


def _cut(data: bytes, start: int, size: int) -> Fetched:
    if len(data) < start + size:
        return BadInputError("DamagedImage", "its archive ends before the image does")
    return data[start : start + size]
