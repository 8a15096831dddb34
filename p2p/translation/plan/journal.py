"""What is written down of a shard when work on it starts and ends, so that another process can continue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from p2p.storage.filesystems import exists
from p2p.translation.corpus.inputs import Input
from p2p.translation.plan.crash_records import CrashRecord, open_record
from p2p.translation.plan.ledger import LedgerRow, ledger_uri, read_kept, write_ledger
from p2p.translation.plan.plan import Shard, read_inputs


@dataclass(frozen=True)
class StartedShard:
    """What is known of a shard that is to be translated now."""

    inputs: Sequence[Input]
    record: CrashRecord
    kept: Mapping[str, LedgerRow] = field(default_factory=dict)
    """Rows, by image id, that stay as they are where a shard's failures are tried again."""


class ShardJournal(Protocol):
    """Where the start and the end of shards are written down."""

    def start_shard(self, shard: Shard) -> StartedShard | None:
        """Called, in a thread, before any image of `shard` is read. None if it is done already."""

    def finish_shard(self, shard: int, rows: Sequence[LedgerRow], record: CrashRecord) -> None:
        """Called, in a thread, with the rows of all inputs when every output of the shard is in place."""


@dataclass(frozen=True)
class OutputJournal:
    """The journal of a translation: the crash records and the ledger in its output."""

    output: str

    def start_shard(self, shard: Shard) -> StartedShard | None:
        """Read the inputs and open the crash record. Raises P2PError, StorageError."""
        if exists(ledger_uri(self.output, shard.index)):  # by a process that died later, in another shard of its chain
            return None
        inputs = read_inputs(shard)
        record = open_record(self.output, shard.index)
        return StartedShard(inputs, record, read_kept(self.output, shard.index))

    def finish_shard(self, shard: int, rows: Sequence[LedgerRow], record: CrashRecord) -> None:
        """Write the ledger: from now on the shard is done."""
        write_ledger(self.output, shard, rows)
        record.remove()
