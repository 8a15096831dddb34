"""Translated images as rows of Parquet: `data/part-XXXXX.parquet`, one file per shard."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from p2p.storage.error_mapping import storage_errors
from p2p.storage.lease import Fence
from p2p.storage.parquet import open_parquet
from p2p.storage.staging import StagedFile
from p2p.translation.config import Settings
from p2p.translation.sinks.records import Record
from p2p.translation.sinks.shard_files import PackedShardWriter, PackedSink

DATA_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("image", pa.binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("source_uri", pa.string()),
        ("checkpoint_id", pa.string()),
        ("milliseconds", pa.float32()),
    ]
)
_ROWS_AT_ONCE = 16
_ROW_GROUP_BYTES = 16 * 2**20  # one request for a reader, and all that is buffered in memory


class _ParquetWriter(PackedShardWriter):
    """Writes row groups; buffers one."""

    def __init__(self, uri: str, settings: Settings, fence: Fence | None) -> None:
        super().__init__(uri, settings, fence)
        metadata = {"p2p.checkpoint_id": settings.checkpoint_id, "p2p.settings": json.dumps(settings.to_dict())}
        self._schema = DATA_SCHEMA.with_metadata(metadata)
        self._rows: list[dict[str, Any]] = []
        self._buffered = 0
        self._writer: pq.ParquetWriter | None = None

    def add(self, record: Record) -> str:
        self._rows.append({**record._asdict(), "checkpoint_id": self._checkpoint_id})
        self._buffered += len(record.image)
        if self._buffered >= _ROW_GROUP_BYTES:
            self._flush()
        return self._uri

    def _read(self) -> Iterator[Record]:
        with open_parquet(self._uri) as file:
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=list(Record._fields)):
                for row in batch.to_pylist():
                    yield Record(**row)

    def _end(self) -> None:
        self._flush()
        if self._writer is not None:
            with storage_errors(self._uri):
                self._writer.close()

    def discard(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(Exception):  # it writes a footer, which is not needed
                self._writer.close()
        super().discard()

    def _flush(self) -> None:
        if not self._rows:
            return
        if self._writer is None:
            self._file = StagedFile(self._uri, self._fence)
            # Encoded images neither compress nor repeat.
            self._writer = pq.ParquetWriter(
                self._file.file, self._schema, compression="NONE", use_dictionary=False, write_statistics=False
            )
        with storage_errors(self._uri):
            self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema), row_group_size=len(self._rows))
        self._rows, self._buffered = [], 0


class ParquetSink(PackedSink):
    """Writes encoded images into Parquet whose metadata names checkpoint and settings."""

    extension = "parquet"
    writer = _ParquetWriter

    def name_of(self, image_id: str) -> str:
        """Rows have whole ids, so only equal ids collide."""
        return image_id
