"""What is written down while shards are worked on: whose fault it would be if the process ended now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from test_batching import Inverting

from p2p.translation.config import TranslateConfig
from p2p.translation.corpus.inputs import Input
from p2p.translation.pipeline.codec import Codec
from p2p.translation.pipeline.fetching import Fetched, InputFetcher, StartRow
from p2p.translation.pipeline.pipeline import Pipeline
from p2p.translation.pipeline.windows import SizePolicy
from p2p.translation.plan.crash_records import CrashRecord
from p2p.translation.plan.files import Shard
from p2p.translation.plan.journal import StartedShard
from p2p.translation.sinks import ImagesSink

IMAGES = 30
SHARDS = [Shard(number, "", 0, IMAGES) for number in range(2)]


class FakeJournal(InputFetcher, CrashRecord):
    """Notes every event with the image that is in hand at that moment."""

    def __init__(self, inputs: list[Input]) -> None:
        InputFetcher.__init__(self, "image")
        CrashRecord.__init__(self, "")
        self.inputs = inputs
        self.in_hand: int | None = None
        self.started: list[int] = []
        self.started_at_fetch: list[int] = []
        self.events: list[tuple[str, int | None]] = []

    def start_shard(self, shard: Shard) -> StartedShard:
        self.started.append(shard.index)
        return StartedShard(self.inputs, self)

    def fetch(self, unit: Sequence[Input], start_row: StartRow | None = None) -> list[Fetched]:
        self.events.append((f"fetch {unit[0].image_id}", self.in_hand))
        self.started_at_fetch.append(len(self.started))
        return super().fetch(unit, start_row)

    def check_lease(self) -> None:
        pass

    def may_publish(self, shard: int) -> bool:
        return True

    def finish_shard(self, shard: int, rows: object, record: CrashRecord) -> bool:
        self.events.append(("publish", self.in_hand))
        return True

    def start_read(self, position: int) -> bool:
        self.in_hand = position
        return False

    def start_image(self, position: int) -> None:
        self.events.append((f"decode {position}", self.in_hand))
        self.in_hand = position

    def finish_image(self) -> None:
        self.in_hand = None


@pytest.fixture
def pipeline(tmp_path: Path, make_image: Callable[..., bytes]) -> tuple[Pipeline, FakeJournal]:
    inputs = []
    for position in range(IMAGES):
        path = tmp_path / f"{position}.png"
        path.write_bytes(make_image(16, 16) if position != 3 else b"no image")
        inputs.append(Input(str(position), str(path)))
    journal = FakeJournal(inputs)
    config = TranslateConfig(checkpoint="/model", source=str(tmp_path), output="/out", max_pixels=1000)
    made = Pipeline(
        network=Inverting(4, 1),
        policy=SizePolicy("tile", 16, 4, 16),
        codec=Codec(config),
        fetcher=journal,
        open_writer=ImagesSink(str(tmp_path / "out"), "png").open_shard,
        journal=journal,
        io_threads=2,
        codec_threads=0,
    )
    return made, journal


def test_one_by_one_nobody_is_blamed_for_another_or_for_publishing(pipeline: tuple[Pipeline, FakeJournal]) -> None:
    run, journal = pipeline
    list(run.run(SHARDS[:1], one_by_one=True))
    expected = [(f"{what} {position}", position) for position in range(IMAGES) for what in ("fetch", "decode")]
    assert journal.events == [*expected, ("publish", None)]


class Prompt(ThreadPoolExecutor):
    """Whatever is submitted is done at once: the second shard may begin early only where the first list is slow."""

    def submit(self, *args: Any, **options: Any) -> Future[Any]:
        future = super().submit(*args, **options)
        wait([future])
        return future


def test_a_shard_is_begun_when_its_turn_comes_though_its_list_is_read_ahead(
    pipeline: tuple[Pipeline, FakeJournal], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, journal = pipeline
    monkeypatch.setattr("p2p.translation.pipeline.pipeline.ThreadPoolExecutor", Prompt)
    list(run.run(SHARDS))
    assert journal.started == [0, 1]
    assert journal.started_at_fetch == [1] * IMAGES + [2] * IMAGES
