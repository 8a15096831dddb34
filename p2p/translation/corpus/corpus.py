"""What a source holds, listed without reading an image and without keeping the list in memory."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from p2p.errors import ConfigError
from p2p.storage.filesystems import FileInfo, is_file, list_files
from p2p.storage.formats import SUFFIXES
from p2p.storage.names import printable
from p2p.translation.corpus.addresses import AddressRules
from p2p.translation.corpus.formats import FileFormat, contains_format, detect_format, format_of, list_format
from p2p.translation.corpus.inputs import Input
from p2p.translation.corpus.manifest import ManifestCorpus, choose_address_column
from p2p.translation.corpus.parquet_corpus import ParquetCorpus, holds_images, text_columns
from p2p.translation.corpus.tar_corpus import TarCorpus

log = logging.getLogger("p2p")

_MANIFESTS = (".txt", ".csv", ".tsv")
_ARCHIVES = (".zip", ".7z", ".rar", ".gz", ".bz2", ".xz", ".zst")
_SIDECARS = (".tfw", ".tifw", ".wld", ".aux.xml", ".msk", ".ovr")
SCENE_SUFFIXES = (".tif", ".tiff", ".jp2")
"""Endings of rasters; one in another format than GeoTIFF fails with the reason."""


class Corpus(Protocol):
    """A source of inputs. `items` streams: ten million inputs take no more memory than ten."""

    @property
    def min_shard_rows(self) -> int:
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
    min_shard_rows: int = 1
    image_column: str = ""
    are_scenes: bool = False
    """Whether only rasters count: GeoTIFFs, and JPEG 2000, which is told apart when it is read."""

    _reported: set[str] = field(default_factory=set, compare=False)

    def items(self) -> Iterator[Input]:
        """One input per file with an image's ending; its id is its path below the folder."""
        if self.are_scenes:
            yield from (
                Input(file.path, file.uri, file.size, version=file.version)
                for file in list_files(self.uri, SCENE_SUFFIXES)
            )
            return
        for file in list_format(self.uri, FileFormat.IMAGE, self._reported):
            yield file if isinstance(file, Input) else Input(file.path, file.uri, file.size, version=file.version)


def open_corpus(
    uri: str,
    image_column: str = "auto",
    id_column: str = "auto",
    input_side: str = "a",
    *,
    local_root: str = "",
    allow_signed: bool = False,
    member: str = "",
) -> Corpus:
    """Find out what kind of source is at `uri`; `input_side` ("a", "b") is the model's side of prepared pairs.

    `local_root` and `allow_signed` are for the lines of a manifest, as `AddressRules` has them, `member` is for tars.
    Raises ConfigError where there is nothing to translate, where a folder holds several formats, and for columns of a
    source that has none.
    """
    is_alone = is_file(uri)
    means_parquet = (image_column, id_column) != ("auto", "auto")
    corpus: Corpus
    if is_alone and _is_manifest(uri, image_column):
        corpus = ManifestCorpus(uri, AddressRules(posixpath.dirname(uri), local_root, allow_signed))
        corpus.require_addresses()
    else:
        format = _format_of_source(uri, is_alone, means_parquet)
        if format is FileFormat.PARQUET:
            found = list_files(uri, (".parquet",)) if means_parquet else list_format(uri, format, set())
            files = [file for file in found if isinstance(file, FileInfo)]
            corpus = ParquetCorpus.open(uri, files, image_column, id_column, input_side)
        else:
            corpus = TarCorpus(uri, member) if format is FileFormat.TAR else FolderCorpus(uri)
    if member and not isinstance(corpus, TarCorpus):
        raise ConfigError("member", f"{member}: --source {uri} is no tar; leave the option out")
    for option, column in (("image_column", image_column), ("id_column", id_column)):
        if column != "auto" and not isinstance(corpus, ParquetCorpus):
            raise ConfigError(option, f"{column}: --source {uri} is not Parquet with images; leave the option out")
    return corpus


def _is_manifest(uri: str, image_column: str) -> bool:
    """Whether a file lists addresses. Raises ConfigError for Parquet that holds neither these nor images."""
    if format_of(uri) is not FileFormat.PARQUET:
        return uri.lower().endswith(_MANIFESTS)
    if image_column != "auto" or holds_images(uri):
        return False
    columns, why = text_columns(uri)
    choose_address_column(columns, uri, why)
    return True


def _format_of_source(uri: str, is_alone: bool, means_parquet: bool) -> FileFormat:
    if means_parquet and not is_alone and contains_format(uri, FileFormat.PARQUET):
        return FileFormat.PARQUET
    format = format_of(uri) if is_alone else detect_format(uri)
    if format is FileFormat.COMPRESSED_TAR:
        raise ConfigError("source", f"{uri}: compressed tars cannot be read in pieces; unpack them to plain .tar first")
    if format is None:
        if uri.lower().endswith(_ARCHIVES):
            raise ConfigError(
                "source", f"{uri}: of archives only plain .tar is read here; unpack it, and give the folder"
            )
        endings = ", ".join(SUFFIXES)
        raise ConfigError(
            "source", f"{uri}: expected a folder, an image ({endings}), a .parquet, .tar, .txt, .csv or .tsv file"
        )
    return format


def open_scenes(uri: str, *, local_root: str = "") -> Corpus:
    """The GeoTIFFs at `uri`: a folder or prefix, one file, or a manifest (.txt, .csv, .parquet) of them.

    Raises ConfigError for a file of another kind.
    """
    if not is_file(uri):
        beside = [file.path for file in list_files(uri, _SIDECARS)]
        if beside:
            log.warning(
                "%s: %d files beside scenes are not looked at (the first: %s); gdal_translate puts what they say into "
                "the scene itself",
                uri,
                len(beside),
                beside[0],
            )
        return FolderCorpus(uri, are_scenes=True)
    if uri.lower().endswith((*_MANIFESTS, ".parquet")):
        # Signed addresses are refused like all of web servers, when they are read: nothing allows those of scenes.
        return ManifestCorpus(uri, AddressRules(posixpath.dirname(uri), local_root, allow_signed=True))
    if uri.lower().endswith(SCENE_SUFFIXES):
        return FolderCorpus(uri, are_scenes=True)
    raise ConfigError(
        "source",
        f"{uri}: geotiff takes a folder, a GeoTIFF (.tif, .tiff) or a manifest (.txt, .csv, .parquet); other rasters "
        f"are converted first: gdal_translate -of COG IN OUT.tif",
    )


@dataclass(frozen=True)
class Selection:
    """The inputs of another corpus that have certain ids."""

    corpus: Corpus
    ids: frozenset[str]

    @property
    def min_shard_rows(self) -> int:
        """As in the whole corpus."""
        return self.corpus.min_shard_rows

    @property
    def image_column(self) -> str:
        """As in the whole corpus."""
        return self.corpus.image_column

    def items(self) -> Iterator[Input]:
        """The chosen inputs, in the order of the whole corpus."""
        return (item for item in self.corpus.items() if printable(item.image_id) in self.ids)
