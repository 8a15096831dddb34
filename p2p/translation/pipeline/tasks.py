"""One image on its way through the pipeline, and the shard it belongs to."""

from __future__ import annotations

from dataclasses import dataclass, field

from p2p.errors import BadInputError
from p2p.translation.corpus.inputs import Input
from p2p.translation.pipeline.fetching import Fetched
from p2p.translation.pipeline.windows import Windows
from p2p.translation.plan.crash_records import CrashRecord
from p2p.translation.plan.ledger import LedgerRow
from p2p.translation.sinks import ShardWriter

_STAGES = ("fetch", "decode", "network", "encode", "publish", "wait")


def _no_time() -> dict[str, float]:
    return dict.fromkeys(_STAGES, 0.0)


@dataclass
class ShardReport:
    """How far a shard is; `finished` once its ledger is in the output."""

    shard: int
    section: int = -1
    """Of a scene, that is done; -1: the report is about the whole shard."""
    images: int = 0
    finished: bool = False
    translated: int = 0
    failed: int = 0
    kept: int = 0
    """Images that an earlier attempt had translated, in a shard whose failures are tried again."""
    pixels: int = 0
    output_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=_no_time)
    """By stage of the work, of all its images together."""


@dataclass
class OpenShard:
    """A shard in work: its outputs so far, and a ledger row for each input that is through."""

    report: ShardReport
    writer: ShardWriter
    record: CrashRecord
    rows: list[LedgerRow | None]


@dataclass
class ImageTask:
    """One image on its way through."""

    shard: OpenShard
    position: int
    item: Input
    data: Fetched
    pixels: int = 0
    windows: Windows | None = None
    answered: int = 0
    encoded: bytes = b""
    size: tuple[int, int] = (0, 0)
    seconds: dict[str, float] = field(default_factory=_no_time)
    """By stage of the work."""

    def fail(self, error: BadInputError) -> None:
        """The image has no output, for this reason."""
        self.data, self.windows = error, None
