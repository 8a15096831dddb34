"""Manifests: addresses of images in a text, CSV or Parquet file."""

from __future__ import annotations

import csv
import io
import posixpath
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, NamedTuple

from p2p.errors import BadInputError, ConfigError, DamagedFileError, redact
from p2p.storage.error_mapping import storage_errors
from p2p.storage.filesystems import open_filesystem
from p2p.storage.formats import SUFFIXES
from p2p.storage.names import printable
from p2p.storage.parquet import MIN_ADDRESS_BYTES, check_row_count, open_parquet, read_text
from p2p.translation.corpus.addresses import AddressRules, carries_secret, quote_gaps
from p2p.translation.corpus.inputs import DAMAGED, SIGNED, Input
from p2p.translation.corpus.parquet_corpus import address_columns

ADDRESS_COLUMNS = (
    *("source_uri", "uri", "url", "path", "image", "file"),
    *("file_name", "filename", "file_path", "filepath", "image_path", "image_url"),
)
MAX_LINE_BYTES = 64 * 2**10
_MAX_LINES_KEPT = 4096
_MAX_SKIPPED = 2**20  # positions, which are bytes of text and rows of Parquet; farther ahead, the file is opened again
_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
_MAX_CHARACTER = 2  # bytes of a carriage return
# A carriage return that is the last that has been read may be half of an end.
_LINE_ENDS = {
    "utf-8": re.compile(rb"\n|\r(?:\n|(?=[^\n]))"),
    "utf-16-le": re.compile(rb"\n\0|\r\0(?:\n\0|(?=..))", re.DOTALL),
    "utf-16-be": re.compile(rb"\0\n|\0\r(?:\0\n|(?=..))", re.DOTALL),
}
_DELIMITERS = ",;\t|"
_SEPARATOR_LINE = re.compile(r"sep=([^\"\r\n])\s*", re.IGNORECASE)  # by which Excel opens a table, whatever the country
_BASE64_IMAGE = re.compile(r"data:image/|/9j/|iVBORw0KGgo|UklGR|R0lGOD")
_NOT_ADDRESSES = {
    re.compile(r"[\[{]\s*([\"\[{]|$)"): "JSON",
    re.compile(r"<(\?xml|!doctype|html)", re.I): "HTML or XML",
}
_QUOTES = "\"'"
_COMMENT = re.compile(r"#|(//|;)(\s|$)")  # //server/a.png may be an address


class _Entry(NamedTuple):
    """A line of a manifest; `position` is where to find it again: a byte, or a row of Parquet."""

    position: int
    address: str
    image_id: str = ""
    problem: str = ""
    line: int = 0
    """Its number for people, from 1, where all of the manifest is read."""


@dataclass(frozen=True)
class ManifestCorpus:
    """Addresses in a text, CSV or Parquet file; `rules` say which of them are followed."""

    uri: str
    rules: AddressRules
    min_shard_rows: int = 1
    image_column: str = ""

    def items(self) -> Iterator[Input]:
        """One input per address; its id is the column `image_id` if there is one, else the address without scheme.

        An address that is refused is an input too, which fails. Of one that carries a signature, only its position
        goes into the plan (`SignedAddresses` finds it again), and its query is masked.
        """
        refused: set[str] = set()
        for entry in self.entries():
            address = quote_gaps(entry.address)
            try:
                if entry.problem:
                    raise BadInputError("BadAddress", entry.problem)
                whole = self.rules.resolve(address)
            except BadInputError as error:
                shown = redact(address) or f"line {entry.line}"
                image_id = entry.image_id or _id_of(shown)
                if image_id in refused:  # the same line once more, which must not end the job either
                    image_id = f"{image_id} (line {entry.line})"
                refused.add(image_id)
                yield Input(image_id, shown, row=DAMAGED, reason=printable(f"{error.kind}: {error}"))
                continue
            image_id = entry.image_id or _id_of(address)
            if carries_secret(whole):
                yield Input(redact(image_id), redact(whole), offset=entry.position, row=SIGNED)
            else:
                yield Input(image_id, whole)

    def require_addresses(self) -> None:
        """Raise ConfigError where the first line is no address but an image itself, or something else."""
        first = next(self.entries(), None)
        if first and _BASE64_IMAGE.match(first.address):
            raise ConfigError("source", f"{self.uri}: holds images in base64, no addresses; write them as bytes")
        for start, what in _NOT_ADDRESSES.items() if first else ():
            if first and start.match(first.address):
                raise ConfigError("source", f"{self.uri}: holds {what}; write one address in a line, or a table (.csv)")

    def entries(self, start: int = 0) -> Iterator[_Entry]:
        """The lines as they are now, from position `start` on. Raises ConfigError, StorageError."""
        ending = posixpath.splitext(self.uri.lower())[1]
        readers = {".parquet": self._parquet_entries, ".csv": self._csv_entries, ".tsv": self._csv_entries}
        return readers.get(ending, self._text_entries)(start)

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        with storage_errors(self.uri):
            filesystem, path = open_filesystem(self.uri)
            with filesystem.open(path, "rb") as file:
                yield io.BufferedReader(file)

    def _text_entries(self, start: int) -> Iterator[_Entry]:
        with self._open() as file:
            lines = _Lines(file, self.uri, start)
            while (line := lines.read()) is not None:
                position, text, problem = line
                address = _address_in(text)
                if problem or address:
                    yield _Entry(position, address, problem=problem, line=lines.number)

    def _csv_entries(self, start: int) -> Iterator[_Entry]:
        with self._open() as file:
            lines = _Lines(file, self.uri)
            try:
                header, delimiter = _read_header(lines)
                address, image_id = choose_address_column(header, self.uri), _find(header, "image_id")
                if start:
                    lines = _Lines(file, self.uri, start)
                rows = csv.reader(lines, delimiter=delimiter)
                while True:
                    position, line = lines.position, lines.number + 1
                    row = next(rows, None)
                    if row is None:
                        return
                    if row:
                        named = dict(zip(header, row, strict=False))
                        yield _entry(
                            position,
                            _unquoted(named.get(address, "").strip()),
                            named.get(image_id, "").strip() if image_id else "",
                            line,
                        )
            except csv.Error as error:
                raise ConfigError("source", f"{self.uri}: line {lines.number} is not CSV: {error}") from None

    def _parquet_entries(self, start: int) -> Iterator[_Entry]:
        try:
            with open_parquet(self.uri) as file:
                check_row_count(file, self.uri, MIN_ADDRESS_BYTES)
                names = address_columns(file.schema_arrow)
                rows = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
                id_column = _find(file.schema_arrow.names, "image_id")
            columns = [choose_address_column(names, self.uri), *([id_column] if id_column else [])]
            number, groups = 0, list(range(len(rows)))
            while groups and number + rows[groups[0]] <= start:
                number += rows[groups.pop(0)]
            for batch in read_text(self.uri, columns, MAX_LINE_BYTES, groups):
                for address, image_id in zip(batch[0], batch[-1], strict=True):
                    if number >= start:
                        yield _entry(number, address, image_id if columns[1:] else "", number + 1)
                    number += 1
        except DamagedFileError as error:
            hint = "; if they are images in base64, write them as bytes" if "have more than" in str(error) else ""
            raise ConfigError("source", f"{error}{hint}") from None


class SignedAddresses:
    """Finds the addresses of a manifest again by their positions; quickly, if asked in about its order. Thread-safe."""

    def __init__(self, manifest: ManifestCorpus) -> None:
        self._manifest = manifest
        self._entries: Iterator[_Entry] = iter(())
        self._read: OrderedDict[int, _Entry] = OrderedDict()  # the last ones
        self._lock = threading.Lock()

    def find(self, position: int) -> str:
        """The whole address at `position`, as it is now. Raises BadInputError, StorageError."""
        with self._lock:
            entry = self._read.get(position) or self._read_on(position)
        if entry is None or entry.problem:
            raise BadInputError("AddressChanged", "the manifest has changed since it was listed; choose a new --output")
        return self._manifest.rules.resolve(quote_gaps(entry.address))

    def _read_on(self, position: int) -> _Entry | None:
        last = next(reversed(self._read), None)
        if last is None or not last < position <= last + _MAX_SKIPPED:
            self._entries = self._manifest.entries(position)
            self._read.clear()
        for entry in self._entries:
            self._read[entry.position] = entry
            if len(self._read) > _MAX_LINES_KEPT:
                self._read.popitem(last=False)
            if entry.position >= position:
                return entry if entry.position == position else None
        return None


def _entry(position: int, address: str | None, image_id: str | None, line: int) -> _Entry:
    problem = "" if address else "there is no address in this line"
    return _Entry(position, address or "", image_id or "", problem, line)


def _id_of(address: str) -> str:
    _, _, below = address.partition("://")
    return posixpath.normpath(below or address).lstrip("/")


def choose_address_column(columns: Iterable[str], uri: str, why: str = "") -> str:
    """Which column of a table holds addresses. Raises ConfigError, which ends in `why`, where none does."""
    names = list(columns)
    for name in ADDRESS_COLUMNS:
        if found := _find(names, name):
            return found
    if any(name.strip().lower().endswith(SUFFIXES) for name in names):
        problem = f"its first line ({', '.join(names)}) names no columns; begin it with a line that does, such as url"
        raise ConfigError("source", f"{uri}: {problem}")
    paths = [name for name in names if name.endswith(".path")]
    if len(paths) == 1:
        return paths[0]
    raise ConfigError(
        "source",
        f"{uri}: none of its columns ({', '.join(names) or 'none'}) holds addresses; "
        f"name one of them {' or '.join(ADDRESS_COLUMNS[:3])}" + (f"; {why}" if why else ""),
    )


def _find(names: Iterable[str], wanted: str) -> str:
    """The column of that name in small or large letters; empty without."""
    return next((name for name in names if name.strip().lower() == wanted), "")


def _address_in(line: str) -> str:
    """The address in a line of text: up to a tab, without quotes around it; empty in a comment."""
    text = line.strip().partition("\t")[0].strip()
    return "" if _COMMENT.match(text) else _unquoted(text)


def _unquoted(text: str) -> str:
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in _QUOTES
    return text[1:-1] if is_quoted else text


def _read_header(lines: _Lines) -> tuple[list[str], str]:
    """The names of a table's columns, and what separates them. Raises csv.Error."""
    line, delimiters = next(lines, ""), _DELIMITERS
    if asked := _SEPARATOR_LINE.fullmatch(line):
        line, delimiters = next(lines, ""), asked[1]
    tables = [(next(csv.reader([line], delimiter=delimiter), []), delimiter) for delimiter in delimiters]
    known = (table for table in tables if any(_find(table[0], name) for name in ADDRESS_COLUMNS))
    return next(known, tables[0])


class _Lines:
    """The lines of a text file, none of them longer than 64 KiB, and where each begins. They end as those of any system
    do, with a line feed, a carriage return, or both. The text is UTF-8, or UTF-16 as spreadsheets write it, with a byte
    order mark or without.
    """

    def __init__(self, file: IO[bytes], uri: str, start: int = 0) -> None:
        self._file, self._uri = file, uri
        file.seek(0)
        self._encoding, mark = _encoding_of(file.read(4))
        self.position = max(start, mark)
        """Of the next line, in bytes."""
        self._file.seek(self.position)
        self._data, self._at = b"", 0  # what has been read of the file, and where in it the next line begins
        self.number = 0
        """Of the last line."""

    def read(self) -> tuple[int, str, str] | None:
        """Position, text, and what is wrong with the line; None at the end. Raises ConfigError if this is not text."""
        position, (data, is_whole) = self.position, self._read_line()
        if not data:
            return None
        self.position += len(data)
        self.number += 1
        if len(data) > MAX_LINE_BYTES:
            while not is_whole:
                data, is_whole = self._read_line()
                self.position += len(data)
            return position, "", f"the line has more than {MAX_LINE_BYTES} bytes"
        try:
            return position, data.decode(self._encoding), ""
        except UnicodeDecodeError:
            if self.number == 1:
                raise ConfigError("source", f"{self._uri}: not a text file in UTF-8") from None
            return position, "", f"the line is not text in {self._encoding.upper()}, in which a list must be saved"

    def _read_line(self) -> tuple[bytes, bool]:
        """The bytes of the next line, and whether that is all of it: of a longer one more than 64 KiB."""
        is_whole = True
        while not (end := self._end_of_line()):
            has_room = len(self._data) - self._at <= MAX_LINE_BYTES + _MAX_CHARACTER
            more = self._file.read(MAX_LINE_BYTES) if has_room else b""
            if not more:
                # The last of many characters may be the first half of an end.
                end, is_whole = len(self._data) - (0 if has_room else _MAX_CHARACTER), has_room
                break
            self._data, self._at = self._data[self._at :] + more, 0
        line, self._at = self._data[self._at : end], end
        return line, is_whole

    def _end_of_line(self) -> int:
        """Where the line that begins at `_at` ends; 0 if that is not read yet."""
        ends, start = _LINE_ENDS[self._encoding], self._at
        while found := ends.search(self._data, start):
            # Of two bytes each, characters begin at even places: those of others may look like an end, one half each.
            if self._encoding == "utf-8" or (found.start() - self._at) % 2 == 0:
                return found.end()
            start = found.start() + 1
        return 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        """For a CSV reader, which has no way to leave out a line. Raises csv.Error for a bad one."""
        line = self.read()
        if line is None:
            raise StopIteration
        if line[2]:
            raise csv.Error(line[2])
        return line[1]


def _encoding_of(start: bytes) -> tuple[str, int]:
    """The encoding of text by its first four bytes, and the bytes of its byte order mark."""
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if start.startswith(mark):
            return encoding, len(mark)
    is_wide = start[1:2] == b"\0" or start[:1] == b"\0"
    return ("utf-16-be" if start[:1] == b"\0" else "utf-16-le") if is_wide else "utf-8", 0
