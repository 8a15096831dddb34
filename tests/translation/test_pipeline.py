"""What is written down while shards are worked on: whose fault it would be if the process ended now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from test_batching import Inverting

from p2p.translation.corpus.inputs import Input
from p2p.translation.estimate import _Nowhere
from p2p.translation.pipeline.codec import Codec
from p2p.translation.pipeline.fetching import Fetched, InputFetcher, StartRow
from p2p.translation.pipeline.pipeline import Pipeline, ShardBooks
from p2p.translation.pipeline.windows import SizePolicy
from p2p.translation.plan.plan import Shard

IMAGES = 30
SHARDS = [Shard(number, "", 0, IMAGES) for number in range(2)]


class Diary(InputFetcher):
    """Notes every event with the image that is in hand at that moment."""

    def __init__(self) -> None:
        super().__init__("image")
        self.in_hand: int | None = None
        self.begun: list[int] = []
        self.begun_at_fetch: list[int] = []
        self.events: list[tuple[str, int | None]] = []

    def fetch(self, unit: Sequence[Input], start_row: StartRow | None = None) -> list[Fetched]:
        self.events.append((f"fetch {unit[0].image_id}", self.in_hand))
        self.begun_at_fetch.append(len(self.begun))
        return super().fetch(unit, start_row)

    def publish(self, shard: int, rows: object) -> None:
        self.events.append(("publish", self.in_hand))

    def start_read(self, shard: int, position: int) -> bool:
        self.in_hand = position
        return False

    def start_image(self, shard: int, position: int) -> None:
        self.events.append((f"decode {position}", self.in_hand))
        self.in_hand = position

    def finish_image(self, shard: int) -> None:
        self.in_hand = None


@pytest.fixture
def pipeline(tmp_path: Path, make_image: Callable[..., bytes]) -> tuple[Pipeline, Diary]:
    inputs = []
    for position in range(IMAGES):
        path = tmp_path / f"{position}.png"
        path.write_bytes(make_image(16, 16) if position != 3 else b"no image")
        inputs.append(Input(str(position), str(path)))
    diary = Diary()
    books = ShardBooks(
        lambda shard: inputs,
        diary.publish,
        begin=diary.begun.append,
        start_read=diary.start_read,
        start_image=diary.start_image,
        finish_image=diary.finish_image,
    )
    policy, codec = SizePolicy("tile", 16, 4, 16), Codec("whole", 1000, "png", 90, 0)
    made = Pipeline(
        network=Inverting(4, 1),
        policy=policy,
        codec=codec,
        fetcher=diary,
        sink=_Nowhere(),
        books=books,
        io_threads=2,
        codec_threads=0,
    )
    return made, diary


def test_one_by_one_nobody_is_blamed_for_another_or_for_publishing(pipeline: tuple[Pipeline, Diary]) -> None:
    run, diary = pipeline
    list(run.run(SHARDS[:1], one_by_one=True))
    expected = [(f"{what} {position}", position) for position in range(IMAGES) for what in ("fetch", "decode")]
    assert diary.events == [*expected, ("publish", None)]


def test_a_shard_is_begun_when_its_turn_comes_though_its_list_is_read_ahead(pipeline: tuple[Pipeline, Diary]) -> None:
    run, diary = pipeline
    list(run.run(SHARDS))
    assert diary.begun == [0, 1]
    assert diary.begun_at_fetch[:20] == [1] * 20
