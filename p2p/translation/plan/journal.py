"""What is written down of a shard when work on it starts and ends, so that another process can continue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from p2p.storage.filesystems import SECONDS_BETWEEN_CHECKS, exists
from p2p.storage.lease import Fence
from p2p.translation.corpus.inputs import Input
from p2p.translation.plan.crash_records import CrashRecord, open_record
from p2p.translation.plan.files import Shard, read_inputs
from p2p.translation.plan.ledger import LedgerRow, ledger_uri, read_kept, write_ledger


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

    def check_lease(self) -> None:
        """Called for each image before anything of it is written. Raises LeaseLostError as `may_publish` does."""

    def may_publish(self, shard: int) -> bool:
        """Called before outputs of `shard` are put in place. False if another process has finished it meanwhile.

        Raises LeaseLostError where another job writes the output now.
        """

    def finish_shard(self, shard: int, rows: Sequence[LedgerRow], record: CrashRecord) -> bool:
        """Called, in a thread, with the rows of all inputs when every output of the shard is in place. False if another
        process has finished it meanwhile. Raises LeaseLostError as `may_publish` does.
        """


@dataclass(frozen=True)
class OutputJournal:
    """The journal of a translation: the crash records and the ledger in its output."""

    output: str
    fence: Fence | None = None

    def start_shard(self, shard: Shard) -> StartedShard | None:
        """Read the inputs and open the crash record. Raises P2PError, StorageError."""
        if exists(ledger_uri(self.output, shard.index)):  # by a process that died later, in another shard of its chain
            return None
        inputs = read_inputs(shard)
        record = open_record(self.output, shard.index)
        return StartedShard(inputs, record, read_kept(self.output, shard.index))

    def check_lease(self) -> None:
        """Look at the lease now and then."""
        if self.fence:
            self.fence.check(SECONDS_BETWEEN_CHECKS)

    def may_publish(self, shard: int) -> bool:
        """Look at the lease and the ledger."""
        if self.fence:
            self.fence.check()
        return not exists(ledger_uri(self.output, shard))

    def finish_shard(self, shard: int, rows: Sequence[LedgerRow], record: CrashRecord) -> bool:
        """Write the ledger: from now on the shard is done."""
        is_first = write_ledger(self.output, shard, rows, self.fence)
        record.remove()
        return is_first
