"""The ledger: one row per input, one file per shard. A shard is done exactly when its ledger file exists."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from p2p.errors import DamagedFileError
from p2p.storage.filesystems import absolute, exists, is_file, join, list_names, remove, write_table
from p2p.storage.lease import Fence
from p2p.storage.parquet import read_parquet
from p2p.translation.plan.shards import shard_of, shard_uri, shards_in

FOLDER = "ledger"
RETRY_FOLDER = "retry"
"""Ledgers of shards whose failures are tried again, until the new ledger is written."""
LEDGER_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("image_id", "status", "error", "message", "output_uri")],
)
_READERS = 16
_MAX_FAILURES_KEPT = 1000


class LedgerRow(NamedTuple):
    """What became of one input. `error` is a stable name, `message` for a person; both empty if it was translated."""

    image_id: str
    status: str
    error: str = ""
    message: str = ""
    output_uri: str = ""


@dataclass
class LedgerTotals:
    """The ledgers of several shards, added up."""

    translated: int = 0
    failed: int = 0
    with_message: int = 0
    """Translated, but there is something to say."""
    failures: list[dict[str, Any]] = field(default_factory=list)
    """The first thousand, as `image_id, error, message`; the ledger itself has all."""

    def add(self, other: LedgerTotals) -> None:
        """Count `other` too."""
        self.translated += other.translated
        self.failed += other.failed
        self.with_message += other.with_message
        self.failures += other.failures[: _MAX_FAILURES_KEPT - len(self.failures)]


def ledger_uri(output: str, shard: int) -> str:
    """The address of one shard's ledger."""
    return shard_uri(join(output, FOLDER), shard, "parquet")


def done_shards(output: str) -> set[int]:
    """Shards that an attempt has finished."""
    return shards_in(join(output, FOLDER))


def write_ledger(output: str, shard: int, rows: Sequence[LedgerRow], fence: Fence | None = None) -> bool:
    """Declare a shard done. The last thing that is written of it. Returns whether it was not done already."""
    columns = list(zip(*rows, strict=True))
    table = pa.table([list(values) for values in columns], schema=LEDGER_SCHEMA)
    return write_table(ledger_uri(output, shard), table, only_new=True, fence=fence)


def _read(uri: str) -> pa.Table:
    table = read_parquet(uri, LEDGER_SCHEMA.names)
    try:
        return table.cast(LEDGER_SCHEMA)
    except pa.ArrowException as error:
        raise DamagedFileError(f"{uri}: not a ledger of p2p: {error}") from None


def _failed(table: pa.Table) -> pa.Table:
    return table.filter(pc.equal(table["status"], "failed"))


def _read_totals(uri: str) -> LedgerTotals:
    table = _read(uri)
    failed = _failed(table)
    failures = failed.select(["image_id", "error", "message"]).slice(0, _MAX_FAILURES_KEPT).to_pylist()
    with_message = pc.sum(pc.not_equal(table["message"], "")).as_py() or 0
    return LedgerTotals(len(table) - len(failed), len(failed), with_message - len(failed), failures)


def read_totals(output: str, shards: Iterable[int]) -> LedgerTotals:
    """Count what the ledgers of `shards` say."""
    totals = LedgerTotals()
    with ThreadPoolExecutor(_READERS) as pool:
        for part in pool.map(_read_totals, (ledger_uri(output, shard) for shard in sorted(shards))):
            totals.add(part)
    return totals


def _retry_uri(output: str, shard: int) -> str:
    return shard_uri(join(output, RETRY_FOLDER), shard, "parquet")


def read_kept(output: str, shard: int) -> dict[str, LedgerRow]:
    """Rows of a reopened shard that stay as they are, by image id; none for a shard that never was done."""
    uri = _retry_uri(output, shard)
    if not exists(uri):
        return {}
    rows = [LedgerRow(**row) for row in _read(uri).to_pylist()]
    return {row.image_id: row for row in rows if row.status == "translated"}


def reopen_failed(output: str, shards: Collection[int]) -> int:
    """Let those of `shards` with failures count as not done; what they translated is kept. Returns how many there are.

    A shard's old ledger is copied before it is removed, so that an interruption loses neither.
    """

    def reopen(shard: int) -> bool:
        table = _read(ledger_uri(output, shard))
        if not len(_failed(table)):
            return False
        write_table(_retry_uri(output, shard), table)
        remove(ledger_uri(output, shard))
        return True

    with ThreadPoolExecutor(_READERS) as pool:
        return sum(pool.map(reopen, sorted(done_shards(output).intersection(shards))))


def read_translated(output: str, shard: int) -> set[str]:
    """Ids of what attempts have translated of a shard, be it done or reopened."""
    uri = ledger_uri(output, shard)
    if not exists(uri):
        return set(read_kept(output, shard))
    table = _read(uri)
    return set(table.filter(pc.equal(table["status"], "translated"))["image_id"].to_pylist())


def forget_shard(output: str, shard: int) -> None:
    """Remove what is written down of a shard that leaves the plan."""
    for uri in (ledger_uri(output, shard), _retry_uri(output, shard)):
        remove(uri)


def finish_without(output: str, shard: int, image_ids: Collection[str]) -> None:
    """Declare a shard done whose inputs are all translated but `image_ids`, which leave the plan."""
    uri = ledger_uri(output, shard)
    table = _read(uri if exists(uri) else _retry_uri(output, shard))
    write_table(uri, table.filter(pc.invert(pc.is_in(table["image_id"], pa.array(list(image_ids), pa.string())))))
    remove(_retry_uri(output, shard))


def reopen_changed(output: str, shard: int, image_ids: Collection[str]) -> None:
    """Let a shard count as not done, and keep what it translated except `image_ids`. Without ids, nothing is done."""
    uris = [uri for uri in (ledger_uri(output, shard), _retry_uri(output, shard)) if exists(uri)] if image_ids else []
    if not uris:
        return
    table = _read(uris[0])
    changed = pc.is_in(table["image_id"], pa.array(list(image_ids), pa.string()))
    write_table(_retry_uri(output, shard), table.filter(pc.invert(changed)))
    remove(ledger_uri(output, shard))


def shards_of_ledger(uri: str, output: str) -> set[int] | None:
    """The shards whose ledger is at `uri`, if that is `output`, its ledger or one file of it; None elsewhere.

    A shard whose retry was interrupted is among them.
    """
    folder = join(output, FOLDER)
    known = done_shards(output) | shards_in(join(output, RETRY_FOLDER))
    place = absolute(uri).rstrip("/")
    if place in (output.rstrip("/"), folder):
        return known
    above, _, name = place.rpartition("/")
    return known.intersection((shard_of(name),)) if above == folder else None


def read_failed_ids(uri: str) -> set[str]:
    """Ids of the inputs that failed, from an output, its ledger folder or one file of it. Raises StorageError."""
    uris = [uri]
    if not is_file(uri):
        folder = join(uri, FOLDER) if list_names(join(uri, FOLDER)) else uri
        uris = [join(folder, name) for name in list_names(folder) if name.endswith(".parquet")]

    with ThreadPoolExecutor(_READERS) as pool:
        return {image_id for table in pool.map(_read, uris) for image_id in _failed(table)["image_id"].to_pylist()}
