"""What a source holds, listed without reading an image and without keeping the list in memory."""

from __future__ import annotations

import csv
import io
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from p2p.errors import UsageError, redact
from p2p.storage.filesystems import (
    is_file,
    join,
    list_files,
    open_filesystem,
    storage_errors,
)
from p2p.storage.images import SUFFIXES
from p2p.storage.names import printable
from p2p.storage.parquet import open_parquet
from p2p.translation.inputs import Input
from p2p.translation.kinds import Kind, find_kind, has_kind, kind_of, list_kind
from p2p.translation.packed import ParquetCorpus, TarCorpus, holds_images, read_schema, unreadable_parquet

_MANIFESTS = (".txt", ".csv")
_ADDRESS_COLUMNS = ("source_uri", "uri", "url", "path", "image", "file")


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
        for file in list_kind(self.uri, Kind.IMAGE, holds_images):
            if kind_of(file.path) is Kind.PARQUET:
                yield unreadable_parquet(file.uri, self.uri)
            else:
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
        with open_parquet(self.uri) as file:
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


def _open_file(uri: str, columns: Mapping[str, str]) -> Corpus:
    kind = kind_of(uri)
    if kind is Kind.PARQUET:
        if not holds_images(uri) and columns["image_column"] == "auto":
            _address_column(read_schema(uri).names, uri)
            return ManifestCorpus(uri)
        return ParquetCorpus.open(uri, [uri], **columns)
    if uri.lower().endswith(_MANIFESTS):
        return ManifestCorpus(uri)
    if kind is Kind.COMPRESSED_TAR:
        raise UsageError(f"--source {uri}: a compressed tar cannot be read in pieces; unpack it to a plain .tar first")
    if kind is None:
        raise UsageError(
            f"--source {uri}: expected a folder, an image ({', '.join(SUFFIXES)}), a .parquet, .tar, .txt or .csv file"
        )
    return TarCorpus(uri) if kind is Kind.TAR else FolderCorpus(uri)


def _open_folder(uri: str, columns: Mapping[str, str]) -> Corpus:
    means_parquet = (columns["image_column"], columns["id_column"]) != ("auto", "auto")
    if means_parquet and has_kind(uri, Kind.PARQUET):
        return ParquetCorpus.open(uri, [file.uri for file in list_files(uri, (".parquet",))], **columns)
    kind = find_kind(uri, holds_images)
    if kind is Kind.COMPRESSED_TAR:
        raise UsageError(f"--source {uri}: compressed tars cannot be read in pieces; unpack them to plain .tar first")
    if kind is Kind.PARQUET:
        return ParquetCorpus.open(uri, [file.uri for file in list_kind(uri, kind, holds_images)], **columns)
    return TarCorpus(uri) if kind is Kind.TAR else FolderCorpus(uri)


def open_corpus(uri: str, image_column: str = "auto", id_column: str = "auto", input_side: str = "a") -> Corpus:
    """Find out what kind of source lies at `uri`; `input_side` ("a", "b") is the model's side of prepared pairs.

    Raises UsageError where there is nothing to translate, where nobody could tell what of a folder is meant, and for
    columns of a source that has none.
    """
    columns = {"image_column": image_column, "id_column": id_column, "input_side": input_side}
    corpus = _open_file(uri, columns) if is_file(uri) else _open_folder(uri, columns)
    for option, column in (("--image-column", image_column), ("--id-column", id_column)):
        if column != "auto" and not isinstance(corpus, ParquetCorpus):
            raise UsageError(f"{option} {column}: --source {uri} is no Parquet with images; leave the option out")
    return corpus


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
