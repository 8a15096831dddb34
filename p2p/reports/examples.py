"""Some pairs of an evaluation, small enough to keep: for its own page, and to be set beside another evaluation's."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
from markupsafe import Markup

from p2p.errors import BadInputError
from p2p.reports.page import data_uri
from p2p.reports.sheets import as_rgb
from p2p.reports.thumbnails import shrink
from p2p.storage.filesystems import join, write_table
from p2p.storage.images import decode, encode
from p2p.storage.parquet import read_parquet
from p2p.storage.pixels import Array, Pixels

MAX_EXAMPLES = 200
_FILE = "examples.parquet"
_NAMES = ("input", "output", "target")
_SIDE, _QUALITY = 320, 90
_SIZES_AND_QUALITIES = ((256, 88), (256, 75), (192, 75), (160, 65), (128, 60), (96, 50))
"""Largest side and JPEG quality on a page; the first that keeps all of its examples small enough is taken."""
_MAX_CHARACTERS = 5_500_000


class ExamplePictures(NamedTuple):
    """One pair and what a generator made of it, as encoded images."""

    input: bytes
    output: bytes
    target: bytes


class BrowsablePair(NamedTuple):
    """One pair, ready for a page."""

    pair_id: str
    pictures: tuple[Markup, ...]
    """Addresses of input, output and target, that hold the images themselves."""
    values: Mapping[str, float | None]
    """Metric -> its value."""


def is_example(pair_id: str, pairs: int) -> bool:
    """Whether the pair is among about `MAX_EXAMPLES` of so many `pairs` that are kept: the same in every evaluation."""
    return zlib.crc32(pair_id.encode("utf-8", "surrogateescape")) < 2**32 * min(1.0, MAX_EXAMPLES / max(1, pairs))


def encode_example(images: Sequence[Pixels]) -> ExamplePictures:
    """Input, output and target, (H, W, C) uint8 or uint16 each, no side of the result above 320 pixels."""
    return ExamplePictures(*(encode(shrink(as_rgb(image), _SIDE), "jpeg", _QUALITY) for image in images))


def write_examples(output_uri: str, examples: Mapping[str, ExamplePictures]) -> None:
    """Publish `examples.parquet`: pair_id, input, output, target."""
    schema = pa.schema([("pair_id", pa.string()), *((name, pa.binary()) for name in _NAMES)])
    rows = [{"pair_id": pair_id, **one._asdict()} for pair_id, one in examples.items()]
    write_table(join(output_uri, _FILE), pa.Table.from_pylist(rows, schema=schema))


def read_examples(uri: str) -> dict[str, ExamplePictures]:
    """Pair id -> example, of the evaluation at `uri`. Raises StorageError, NotFoundError where it keeps none."""
    rows = read_parquet(join(uri, _FILE), ("pair_id", *_NAMES)).to_pylist()
    return {
        row["pair_id"]: ExamplePictures(*(row[name] for name in _NAMES))
        for row in rows
        if all(isinstance(row[name], bytes) for name in _NAMES)
    }


def browsable(
    examples: Mapping[str, ExamplePictures],
    values: Mapping[str, Mapping[str, float | None]],
    max_characters: int = _MAX_CHARACTERS,
) -> list[BrowsablePair]:
    """At most `MAX_EXAMPLES` of the examples, so large that all fit into a page of 8 MB.

    values: pair id -> metric -> value.
    """
    decoded: dict[str, list[Array]] = {}
    for pair_id, example in list(examples.items())[:MAX_EXAMPLES]:
        try:
            decoded[pair_id] = [decode(data) for data in example]
        except BadInputError:
            continue
    pictures: dict[str, tuple[Markup, ...]] = {}
    for side, quality in _SIZES_AND_QUALITIES:
        pictures = {
            pair_id: tuple(data_uri(shrink(image, side), quality) for image in images)
            for pair_id, images in decoded.items()
        }
        if sum(len(uri) for uris in pictures.values() for uri in uris) <= max_characters:
            break
    return [BrowsablePair(pair_id, uris, values.get(pair_id, {})) for pair_id, uris in pictures.items()]
