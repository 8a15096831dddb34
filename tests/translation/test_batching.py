"""Batches under way: whatever the network's pace, every image gets its own windows back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from p2p.storage.images import resize
from p2p.translation.config import SizeMode
from p2p.translation.corpus.inputs import Input
from p2p.translation.pipeline.batching import Batcher
from p2p.translation.pipeline.tasks import ImageTask, OpenShard, ShardReport
from p2p.translation.pipeline.windows import SizePolicy
from p2p.translation.plan.crash_records import CrashRecord
from p2p.translation.plan.ledger import LedgerRow

Array = np.ndarray


class Inverting:
    """255 - x. Like a GPU's: a batch is computed only when it is taken, only so many may be under way, and a batch's
    output lies where that of an earlier one was.
    """

    input_channels = 3

    def __init__(self, batch_size: int, in_flight: int) -> None:
        self.batch_size, self.in_flight = batch_size, in_flight
        self.started: deque[Sequence[Array]] = deque()
        self.output = np.zeros((batch_size, 16, 16, 3), np.uint8)

    def start(self, tiles: Sequence[Array], keys: list[str]) -> Callable[[], Array]:
        assert len(tiles) == len(keys) <= self.batch_size
        self.started.append(tiles)
        assert len(self.started) <= self.in_flight, "more batches are under way than there are buffers"

        def take() -> Array:
            assert self.started.popleft() is tiles, "batches are taken in the order of their starts"
            self.output[: len(tiles)] = 255 - np.stack(tiles)
            return self.output[: len(tiles)]

        return take

    def with_batch_size(self, batch_size: int) -> Inverting:
        raise AssertionError("tiles have one shape")


@pytest.mark.parametrize("in_flight", [1, 2, 3])
@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("mode", ["tile", "resize"])
def test_every_image_comes_out_whole_and_no_more_batches_are_under_way_than_allowed(
    in_flight: int, one_by_one: bool, mode: SizeMode
) -> None:
    policy = SizePolicy(mode, 16, 4, 16)
    shard = OpenShard(ShardReport(0), None, CrashRecord(""), [])  # type: ignore[arg-type]
    images = [np.random.default_rng(n).integers(0, 256, (10 + 9 * n, 20, 3), dtype=np.uint8) for n in range(7)]
    taken: list[int] = []

    def tasks() -> Iterator[ImageTask]:
        for number, image in enumerate(images):
            taken.append(number)
            yield ImageTask(shard, number, Input(str(number), ""), b"", windows=policy(image))

    found = {}
    for task in Batcher(Inverting(4, in_flight), policy, one_by_one).run(tasks()):
        if one_by_one:
            assert taken[-1] == task.position, "no image is looked at before the one before it is through"
        assert task.windows is not None and task.seconds["network"] > 0
        found[task.position] = task.windows.result()
    expected = images if mode == "tile" else [resize(image, 16, 16) for image in images]
    assert all(np.array_equal(found[number], 255 - image) for number, image in enumerate(expected))
    assert len(found) == 7


def test_an_image_that_failed_passes_by() -> None:
    shard = OpenShard(ShardReport(0), None, CrashRecord(""), [LedgerRow("a", "failed")])  # type: ignore[arg-type]
    task = ImageTask(shard, 0, Input("a", ""), b"")
    batcher = Batcher(Inverting(4, 1), SizePolicy("tile", 16, 4, 16), False)
    assert list(batcher.run([task])) == [task]
