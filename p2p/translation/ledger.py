"""The ledger: one row per input, one file per shard. A shard is done exactly when its ledger file exists."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from p2p.storage.filesystems import arrow_filesystem, join, list_names, storage_errors, write_table

FOLDER = "ledger"
LEDGER_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("image_id", "status", "error", "message", "output_uri")],
)
_NAME = re.compile(r"shard-(\d+)\.parquet")
_READERS = 16
MAX_FAILURES_KEPT = 1000
"""Failures that the totals list one by one; the ledger itself has all."""


class LedgerRow(NamedTuple):
    """What became of one input. `error` is a stable name, `message` for a person; both empty if it was translated."""

    image_id: str
    status: str
    error: str = ""
    message: str = ""
    output_uri: str = ""


@dataclass
class Totals:
    """What a set of shards came to."""

    translated: int = 0
    failed: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)

    def add(self, other: Totals) -> None:
        """Take `other` in."""
        self.translated += other.translated
        self.failed += other.failed
        self.failures += other.failures[: MAX_FAILURES_KEPT - len(self.failures)]


def ledger_uri(output: str, shard: int) -> str:
    """Where the ledger of one shard lies."""
    return join(output, FOLDER, f"shard-{shard:05d}.parquet")


def done_shards(output: str) -> set[int]:
    """Shards that an attempt has finished."""
    names = (_NAME.fullmatch(name) for name in list_names(join(output, FOLDER)))
    return {int(name[1]) for name in names if name}


def write_ledger(output: str, shard: int, rows: Sequence[LedgerRow]) -> None:
    """Declare a shard done. The last thing that is written of it."""
    columns = list(zip(*rows, strict=True))
    write_table(ledger_uri(output, shard), pa.table([list(values) for values in columns], schema=LEDGER_SCHEMA))


def _read_totals(uri: str) -> Totals:
    filesystem, path = arrow_filesystem(uri)
    with storage_errors(uri):
        table = pq.read_table(path, filesystem=filesystem)
    failed = table.filter(pc.equal(table["status"], "failed"))
    failures = failed.select(["image_id", "error", "message"]).slice(0, MAX_FAILURES_KEPT).to_pylist()
    return Totals(len(table) - len(failed), len(failed), failures)


def read_totals(output: str, shards: Iterable[int]) -> Totals:
    """Count what the ledgers of `shards` say."""
    totals = Totals()
    with ThreadPoolExecutor(_READERS) as pool:
        for part in pool.map(_read_totals, (ledger_uri(output, shard) for shard in sorted(shards))):
            totals.add(part)
    return totals
