"""The files of the plan: `OUTPUT/manifest/part-*.parquet` holds the inputs, one row group per shard."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from p2p.storage.filesystems import join, list_names, write_bytes
from p2p.storage.lease import Fence
from p2p.storage.parquet import open_parquet
from p2p.translation.corpus.inputs import Input
from p2p.translation.sinks.records import OutputNames

FOLDER = "manifest"
_NAME = re.compile(r"part-(\d+)\.parquet")
MANIFEST_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("image_id", pa.string()),
        ("source_uri", pa.string()),
        ("size", pa.int64()),
        ("offset", pa.int64()),
        ("row_group", pa.int32()),
        ("row", pa.int64()),
        ("reason", pa.string()),
        ("version", pa.uint64()),
        ("id_hash", pa.uint64()),
        ("name_hash", pa.uint64()),
    ]
)
INPUT_COLUMNS = list(Input._fields)

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Shard:
    """Up to 256 inputs, or about 64 MB of them, that are done together; or a section of the scene that is one by
    itself. Picklable and small.
    """

    index: int
    manifest_uri: str
    row_group: int
    rows: int
    section: int = -1
    """Of a scene; -1: all of the shard."""

    @property
    def scene(self) -> Shard:
        """The whole that a section belongs to."""
        return dataclasses.replace(self, section=-1)


@dataclass(frozen=True)
class PlanFile:
    """What is kept in memory of a file of the plan: 24 bytes for each input."""

    shards: list[Shard]
    ids: Hashes
    names: Hashes
    versions: Hashes
    """As `Input.version`."""


def hash_id(text: str) -> int:
    """64 bits of `text`. Two of ten million ids agree with a probability below 1 in 100,000."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def plan_uri(output: str, number: int) -> str:
    """The address of one file of the plan."""
    return join(output, FOLDER, f"part-{number:05d}.parquet")


def next_number(uris: Sequence[str]) -> int:
    """Of the file that comes after these of a plan, though some may be lost."""
    names = [_NAME.fullmatch(uri.rpartition("/")[2]) for uri in uris]
    return 1 + max((int(name[1]) for name in names if name), default=-1)


def plan_uris(output: str) -> list[str]:
    """The files of the plan in `output`, in their order."""
    folder = join(output, FOLDER)
    return [join(folder, name) for name in list_names(folder) if name.endswith(".parquet")]


def _inputs(table: pa.Table) -> list[Input]:
    rows = table.select([name for name in INPUT_COLUMNS if name in table.column_names]).to_pylist()
    return [Input(**row) for row in rows]  # plans of earlier versions have neither `reason` nor `version`


def read_inputs(shard: Shard) -> list[Input]:
    """The inputs of one shard, in their order."""
    with open_parquet(shard.manifest_uri) as file:
        return _inputs(file.read_row_group(shard.row_group, columns=INPUT_COLUMNS))


def read_plan_file(uri: str) -> PlanFile:
    """Read what `PlanFile` keeps."""
    with open_parquet(uri) as file:
        table = file.read(columns=["shard", "id_hash", "name_hash", "version"])
        rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    firsts = table["shard"].take(pa.array(np.cumsum([0, *rows])[:-1])).to_pylist()
    shards = [Shard(index, uri, group, rows[group]) for group, index in enumerate(firsts)]
    versions = table["version"].to_numpy() if "version" in table.column_names else np.zeros(len(table), np.uint64)
    return PlanFile(shards, table["id_hash"].to_numpy(), table["name_hash"].to_numpy(), versions)


def write_plan_file(
    uri: str,
    groups: Mapping[int, Sequence[Input]],
    sink: OutputNames,
    *,
    only_new: bool = True,
    fence: Fence | None = None,
) -> bool:
    """Publish a file with the inputs of each shard. Returns whether it was written, as `write_bytes` does."""
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(buffer, MANIFEST_SCHEMA, compression="zstd") as writer:
        for shard, inputs in groups.items():
            columns: dict[str, list[Any]] = dict(zip(INPUT_COLUMNS, map(list, zip(*inputs, strict=True)), strict=True))
            ids = columns["image_id"]
            columns["shard"] = [shard] * len(inputs)
            columns["id_hash"] = [hash_id(image_id) for image_id in ids]
            columns["name_hash"] = [hash_id(sink.name_of(image_id)) for image_id in ids]
            writer.write_table(pa.table(columns, MANIFEST_SCHEMA), row_group_size=len(inputs))
    return write_bytes(uri, buffer.getvalue().to_pybytes(), only_new=only_new, fence=fence)
