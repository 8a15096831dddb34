"""What a source holds, listed without reading an image and without keeping the list in memory."""

from __future__ import annotations

import csv
import io
import itertools
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from p2p.errors import UsageError, redact
from p2p.storage.filesystems import (
    arrow_filesystem,
    is_file,
    join,
    list_files,
    open_filesystem,
    storage_errors,
)
from p2p.storage.images import SUFFIXES
from p2p.storage.names import printable
from p2p.translation.inputs import Input
from p2p.translation.packed import ParquetCorpus, TarCorpus, find_image_column, read_schema

_MANIFESTS = (".txt", ".csv")
_COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_ADDRESS_COLUMNS = ("source_uri", "uri", "url", "path", "image", "file")
_FILES_LOOKED_AT = 1000


class Corpus(Protocol):
    """A source of inputs. `items` streams: ten million inputs take no more memory than ten."""

    @property
    def smallest_shard(self) -> int:
        """A shard with fewer inputs would read the same bytes of the source again and again."""

    @property
    def image_column(self) -> str:
        """The Parquet column the bytes come from; empty elsewhere."""

    def items(self) -> Iterator[Input]:
        """Yield every input, always in the same order while the source stays the same."""


@dataclass(frozen=True)
class FolderCorpus:
    """Image files below a folder or prefix, or one image file."""

    uri: str
    smallest_shard: int = 1
    image_column: str = ""

    def items(self) -> Iterator[Input]:
        """One input per file with an image's ending; its id is its path below the folder."""
        for file in list_files(self.uri, SUFFIXES):
            yield Input(file.path, file.uri, file.size)


@dataclass(frozen=True)
class ManifestCorpus:
    """Addresses in a text, CSV or Parquet file. Relative ones start at the manifest's folder."""

    uri: str
    smallest_shard: int = 1
    image_column: str = ""

    def items(self) -> Iterator[Input]:
        """One input per address; its id is the column `image_id` if there is one, else the address without scheme."""
        base = posixpath.dirname(self.uri)
        for address, image_id in self._entries():
            if redact(address) != address:
                raise UsageError(
                    f"--source {self.uri}: the address {address} carries credentials, which would end up in the "
                    f"output; give them in the environment (AWS_ACCESS_KEY_ID, …) and plain addresses in the manifest"
                )
            _, has_scheme, below = address.partition("://")
            relative = not (has_scheme or os.path.isabs(address))
            path = below or address
            yield Input(image_id or posixpath.normpath(path).lstrip("/"), join(base, address) if relative else address)

    def _entries(self) -> Iterator[tuple[str, str]]:
        """Yield (address, image id or an empty string)."""
        if self.uri.lower().endswith(".parquet"):
            yield from self._parquet_entries()
            return
        with storage_errors(self.uri):
            filesystem, path = open_filesystem(self.uri)
            with filesystem.open(path, "rb") as raw, io.TextIOWrapper(raw, encoding="utf-8-sig") as text:
                try:
                    if self.uri.lower().endswith(".csv"):
                        yield from self._csv_entries(text)
                    else:
                        yield from ((line.strip(), "") for line in text if line.strip())
                except UnicodeDecodeError:
                    raise UsageError(f"--source {self.uri}: not a text file in UTF-8") from None

    def _csv_entries(self, text: Iterable[str]) -> Iterator[tuple[str, str]]:
        rows = csv.DictReader(text)
        column = _address_column(rows.fieldnames or [], self.uri)
        for row in rows:
            if (row.get(column) or "").strip():
                yield row[column].strip(), (row.get("image_id") or "").strip()

    def _parquet_entries(self) -> Iterator[tuple[str, str]]:
        filesystem, path = arrow_filesystem(self.uri)
        with storage_errors(self.uri), pq.ParquetFile(path, filesystem=filesystem) as file:
            column = _address_column(file.schema_arrow.names, self.uri)
            ids = ["image_id"] if "image_id" in file.schema_arrow.names else []
            for batch in file.iter_batches(columns=[column, *ids]):
                addresses = batch.column(column).to_pylist()
                names = batch.column("image_id").to_pylist() if ids else [""] * len(addresses)
                yield from ((str(address), str(name or "")) for address, name in zip(addresses, names, strict=True))


def _address_column(columns: Iterable[str], uri: str) -> str:
    names = list(columns)
    for name in _ADDRESS_COLUMNS:
        if name in names:
            return name
    raise UsageError(
        f"--source {uri}: none of its columns ({', '.join(names) or 'none'}) holds addresses; "
        f"name one of them {' or '.join(_ADDRESS_COLUMNS[:3])}"
    )


def _has_images(schema: pa.Schema) -> bool:
    return any(find_image_column(schema, name) for name in schema.names)


def _open_file(uri: str, image_column: str, input_side: str) -> Corpus:
    name = uri.lower()
    if name.endswith(".parquet"):
        schema = read_schema(uri)
        if not _has_images(schema) and image_column == "auto":
            _address_column(schema.names, uri)
            return ManifestCorpus(uri)
        return ParquetCorpus.open(uri, [uri], image_column, input_side)
    if name.endswith(_MANIFESTS):
        return ManifestCorpus(uri)
    if name.endswith(_COMPRESSED_TARS):
        raise UsageError(f"--source {uri}: a compressed tar cannot be read in pieces; unpack it to a plain .tar first")
    if name.endswith(".tar"):
        return TarCorpus(uri)
    if name.endswith(SUFFIXES):
        return FolderCorpus(uri)
    raise UsageError(
        f"--source {uri}: expected a folder, an image ({', '.join(SUFFIXES)}), a .parquet, .tar, .txt or .csv file"
    )


def open_corpus(uri: str, image_column: str = "auto", input_side: str = "a") -> Corpus:
    """Find out what kind of source lies at `uri`; `input_side` ("a", "b") is the model's side of prepared pairs.

    A folder is what most of its first files are. Raises UsageError where there is nothing to translate.
    """
    if is_file(uri):
        return _open_file(uri, image_column, input_side)
    kinds: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for file in itertools.islice(list_files(uri), _FILES_LOOKED_AT):
        suffix = os.path.splitext(file.path)[1].lower()
        kind = "image" if suffix in SUFFIXES else suffix
        (kinds if kind in ("image", ".parquet", ".tar") else others)[kind] += 1
    if not kinds:
        found = ", ".join(f"{count} {suffix or 'without ending'}" for suffix, count in others.most_common(3))
        raise UsageError(
            f"--source {uri}: no images ({', '.join(SUFFIXES)}), .parquet or .tar files are there"
            + (f"; found {found}" if found else "; it is empty")
        )
    kind = kinds.most_common(1)[0][0]
    if kind == ".parquet":
        files = [file.uri for file in list_files(uri, (".parquet",))]
        return ParquetCorpus.open(uri, files, image_column, input_side)
    return TarCorpus(uri) if kind == ".tar" else FolderCorpus(uri)


@dataclass(frozen=True)
class Selection:
    """The inputs of another corpus that have certain ids."""

    corpus: Corpus
    ids: frozenset[str]

    @property
    def smallest_shard(self) -> int:
        """As in the whole corpus."""
        return self.corpus.smallest_shard

    @property
    def image_column(self) -> str:
        """As in the whole corpus."""
        return self.corpus.image_column

    def items(self) -> Iterator[Input]:
        """The chosen inputs, in the order of the whole corpus."""
        return (item for item in self.corpus.items() if printable(item.image_id) in self.ids)
