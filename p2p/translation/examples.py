"""A few translated images beside their inputs, read back from where they were published."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from p2p.errors import P2PError
from p2p.storage.filesystems import absolute, read_bytes
from p2p.storage.images import decode, resize
from p2p.storage.parquet import find_bytes, open_parquet, read_cells, read_parquet, read_text
from p2p.translation.config import OutputFormat
from p2p.translation.pipeline.codec import Codec
from p2p.translation.pipeline.fetching import InputFetcher
from p2p.translation.plan.ledger import ledger_uri
from p2p.translation.plan.plan import Shard, read_inputs
from p2p.translation.seams import Seams, measure_seams
from p2p.translation.sinks.webdataset import read_records

Array = npt.NDArray[np.uint8]

_LONGEST_SIDE = 384
_MAX_ID_BYTES = 2**16  # paths and addresses are ids too
_MAX_OUTPUT_BYTES = 2**31  # more than the largest image has without any compression


def spread(shards: Sequence[Shard], count: int) -> Sequence[Shard]:
    """Up to `count` of them, spread evenly."""
    return shards[:: max(1, len(shards) // count)][:count]


class Pair(NamedTuple):
    """Thumbnails, (h, w, 3) uint8, of one input and its output, and what the whole output says of its seams."""

    image_id: str
    input: Array
    output: Array
    seams: Seams


@dataclass(frozen=True)
class Reader:
    """Reads inputs and outputs of a translation back."""

    output: str
    format: OutputFormat
    fetcher: InputFetcher
    codec: Codec
    tiling: tuple[int, int] | None
    """Tile size and overlap in pixels, where outputs are put together from tiles."""

    def examples(self, shards: Sequence[Shard], count: int) -> list[Pair]:
        """Up to `count` pairs, as many from each shard, without those that cannot be read back; the same every time."""
        each = math.ceil(count / max(1, len(shards)))  # a small corpus has fewer shards than examples are wanted
        pairs: list[Pair] = []
        for shard in shards:
            with contextlib.suppress(P2PError, MemoryError):
                pairs += self._pairs(shard, min(each, count - len(pairs)))
        return pairs

    def _pairs(self, shard: Shard, count: int) -> Iterator[Pair]:
        uri = ledger_uri(self.output, shard.index)
        table = read_parquet(uri, ["image_id", "status", "output_uri"])
        rows = table.filter(pc.equal(table["status"], "translated")).slice(0, count).to_pylist()
        items = {item.image_id: item for item in read_inputs(shard)} if rows else {}
        for row in rows:
            if row["image_id"] not in items or not self._is_output(row["output_uri"]):
                continue  # who wrote to the ledger may not choose what is read
            image = _output(row["output_uri"], row["image_id"], self.format)
            (data,) = self.fetcher.fetch([items[row["image_id"]]])
            if image is not None and isinstance(data, bytes):
                output = decode(image, self.codec.max_pixels)
                seams = measure_seams(output, self.tiling) if self.tiling else Seams()
                yield Pair(row["image_id"], _thumbnail(self.codec.decode(data)), _thumbnail(output), seams)

    def _is_output(self, uri: str | None) -> bool:
        """Whether an address lies below the output, whatever file system that is on."""
        below = f"{self.output.rstrip('/')}/"
        return uri is not None and absolute(uri).startswith(below) and "::" not in uri[len(below) :]


def _output(uri: str, image_id: str, format: OutputFormat) -> bytes | None:
    if format == "webdataset":
        return next((record.image for record in read_records(uri) if record.image_id == image_id), None)
    if format != "parquet":
        return read_bytes(uri, _MAX_OUTPUT_BYTES)
    ids = [value for (values,) in read_text(uri, ["image_id"], _MAX_ID_BYTES) for value in values]
    row = ids.index(image_id) if image_id in ids else -1
    with open_parquet(uri) as file:
        schema = file.schema_arrow
        if row < 0 or schema.names.count("image") != 1 or find_bytes(schema.field("image")) != "image":
            return None
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row < rows:
                found = next(read_cells(file, group, "image", [row], _MAX_OUTPUT_BYTES), (row, None))[1]
                return found if isinstance(found, bytes) else None
            row -= rows
    return None


def _thumbnail(image: Array) -> Array:
    height, width = image.shape[:2]
    scale = min(1.0, _LONGEST_SIDE / max(height, width))
    return resize(image, max(1, round(height * scale)), max(1, round(width * scale)))
