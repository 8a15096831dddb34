"""A few translated images beside their inputs, read back from where they were published."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from p2p.errors import P2PError
from p2p.reports.thumbnails import thumbnail
from p2p.reports.translation import Example
from p2p.storage.filesystems import absolute, list_files, read_bytes
from p2p.storage.images import decode
from p2p.storage.parquet import read_parquet
from p2p.translation.config import OutputFormat, Settings
from p2p.translation.corpus.parquet_corpus import ParquetCorpus
from p2p.translation.pipeline.codec import Codec
from p2p.translation.pipeline.fetching import InputFetcher
from p2p.translation.plan.files import Shard, read_inputs
from p2p.translation.plan.ledger import ledger_uri
from p2p.translation.scenes.store import read_preview
from p2p.translation.seams import Seams, measure_seams
from p2p.translation.sinks.webdataset import read_records
from p2p.translation.work import Work, open_fetcher

_MAX_OUTPUT_BYTES = 2**31  # more than the largest image has without any compression


def spread(shards: Sequence[Shard], count: int) -> Sequence[Shard]:
    """Up to `count` of them, spread evenly."""
    return shards[:: max(1, len(shards) // count)][:count]


def read_examples(work: Work, shards: Sequence[Shard], count: int) -> tuple[list[Example], dict[str, Seams]]:
    """Up to `count` thumbnails of inputs and outputs, as many from each shard, and by id the seams of those outputs (of
    all scenes).

    Those that cannot be read back are left out. The same every time.
    """
    if work.settings.format == "geotiff":
        return _read_scenes(work.settings.output, shards, count)
    reader = _ExampleReader(work.settings, open_fetcher(work))
    per_shard = math.ceil(count / max(1, len(shards)))  # a small corpus has fewer shards than examples are wanted
    found: list[tuple[Example, Seams]] = []
    for shard in shards:
        with contextlib.suppress(P2PError, MemoryError):
            found += reader.read(shard, min(per_shard, count - len(found)))
    return [example for example, _ in found], {example.image_id: seams for example, seams in found}


def _read_scenes(output: str, shards: Sequence[Shard], count: int) -> tuple[list[Example], dict[str, Seams]]:
    """The overviews of some scenes, which were kept as they were translated."""
    examples: list[Example] = []
    seams: dict[str, Seams] = {}
    for shard in shards:
        with contextlib.suppress(P2PError):
            (item,) = read_inputs(shard)
            facts = read_preview(output, shard.index)
            seams[item.image_id] = facts.seams
            if len(examples) < count:
                score = "" if facts.seams.score is None else f" (seam score {facts.seams.score:.3f})"
                before, after = (np.concatenate(rows) for rows in (facts.before, facts.after))
                examples.append(Example(f"{item.image_id}{score}", before, after))
    return examples, seams


@dataclass(frozen=True)
class _ExampleReader:
    settings: Settings
    fetcher: InputFetcher

    def read(self, shard: Shard, count: int) -> Iterator[tuple[Example, Seams]]:
        settings, codec = self.settings, Codec(self.settings)
        table = read_parquet(ledger_uri(settings.output, shard.index), ["image_id", "status", "output_uri"])
        rows = table.filter(pc.equal(table["status"], "translated")).slice(0, count).to_pylist()
        items = {item.image_id: item for item in read_inputs(shard)} if rows else {}
        for row in rows:
            image_id = row["image_id"]
            if image_id not in items or not self._is_output(row["output_uri"]):
                continue  # who wrote to the ledger may not choose what is read
            image = _read_output(row["output_uri"], image_id, settings.format)
            (data,) = self.fetcher.fetch([items[image_id]])
            if image is not None and isinstance(data, bytes):
                output = decode(image, max_pixels=settings.max_pixels)
                tiling = (settings.tile_size, settings.overlap)
                seams = measure_seams(output, tiling) if settings.size_mode == "tile" else Seams()
                yield Example(image_id, thumbnail(codec.decode(data)), thumbnail(output)), seams

    def _is_output(self, uri: str | None) -> bool:
        """Whether an address is below the output, whatever file system that is on."""
        below = f"{self.settings.output.rstrip('/')}/"
        return uri is not None and absolute(uri).startswith(below) and "::" not in uri[len(below) :]


def _read_output(uri: str, image_id: str, format: OutputFormat) -> bytes | None:
    if format == "webdataset":
        return next((record.image for record in read_records(uri) if record.image_id == image_id), None)
    if format != "parquet":
        return read_bytes(uri, _MAX_OUTPUT_BYTES)
    rows = ParquetCorpus.open(uri, list(list_files(uri)), "image", "image_id").items()
    row = next((item for item in rows if item.image_id == image_id), None)
    (found,) = InputFetcher("image", max_bytes=_MAX_OUTPUT_BYTES).fetch([row]) if row else (None,)
    return found if isinstance(found, bytes) else None
