"""What a source holds, listed without reading an image and without keeping the list in memory."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from p2p.errors import UsageError
from p2p.storage.filesystems import is_file, list_files
from p2p.storage.images import SUFFIXES
from p2p.storage.names import printable
from p2p.translation.corpus.addresses import AddressRules
from p2p.translation.corpus.formats import Kind, find_kind, has_kind, kind_of, list_kind
from p2p.translation.corpus.inputs import Input
from p2p.translation.corpus.manifest import ManifestCorpus, choose_address_column
from p2p.translation.corpus.packed import ParquetCorpus, TarCorpus, holds_images, read_schema, unreadable_parquet

_MANIFESTS = (".txt", ".csv")


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


def _open_file(uri: str, columns: Mapping[str, str], local_root: str, allow_signed: bool) -> Corpus:
    rules = AddressRules(posixpath.dirname(uri), local_root, allow_signed)
    kind = kind_of(uri)
    if kind is Kind.PARQUET:
        if not holds_images(uri) and columns["image_column"] == "auto":
            choose_address_column(read_schema(uri).names, uri)
            return ManifestCorpus(uri, rules)
        return ParquetCorpus.open(uri, [uri], **columns)
    if uri.lower().endswith(_MANIFESTS):
        return ManifestCorpus(uri, rules)
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


def open_corpus(
    uri: str,
    image_column: str = "auto",
    id_column: str = "auto",
    input_side: str = "a",
    *,
    local_root: str = "",
    allow_signed: bool = False,
) -> Corpus:
    """Find out what kind of source lies at `uri`; `input_side` ("a", "b") is the model's side of prepared pairs.

    `local_root` and `allow_signed` are for the lines of a manifest, as `AddressRules` has them. Raises UsageError where
    there is nothing to translate, where nobody could tell what of a folder is meant, and for columns of a source that
    has none.
    """
    columns = {"image_column": image_column, "id_column": id_column, "input_side": input_side}
    is_alone = is_file(uri)
    corpus = _open_file(uri, columns, local_root, allow_signed) if is_alone else _open_folder(uri, columns)
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
