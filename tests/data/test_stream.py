"""The tasks and the readers of a training's stream, without Ray: a row of it is a dictionary of arrays."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from p2p.data.augment import CropSettings
from p2p.data.order import EpochRange, PairBlock, block_rows
from p2p.data.pairs import open_pairs, read_rows
from p2p.data.stream import BlockReader, PairStream
from p2p.errors import BadInputError, StorageError

SIZE = 16


@pytest.fixture
def data(tmp_path, make_pairs) -> str:
    make_pairs(tmp_path / "train", 11, size=20)
    make_pairs(tmp_path / "val", 3, size=20, seed=1)
    return str(tmp_path)


def stream_of(data: str, *, workers: int = 1, swap: bool = False, flip: bool = False) -> PairStream:
    train, val = (open_pairs(data, split, raw_load_size=20) for split in ("train", "val"))
    return PairStream(train, val, CropSettings(SIZE, 0, flip, swap), 2, workers)


class Rows:
    """What Ray Data makes of a stream, from the worker's side."""

    def __init__(self, stream: PairStream, *parts: EpochRange) -> None:
        self.stream, self.parts = stream, parts
        self.of_rank = 0

    def iter_batches(self, **_: Any) -> Iterator[dict[str, Any]]:
        listed = [row for part in self.parts for row in self.stream._list_blocks(vars(part))]
        for row in listed[self.of_rank :: self.stream.workers]:
            yield self.stream._read_block({name: np.array([value]) for name, value in row.items()})


@pytest.mark.parametrize("swap", [False, True])
def test_a_block_becomes_input_and_target_crops_of_its_pairs(data, swap):
    stream = stream_of(data, swap=swap)
    part = EpochRange(1, 0, 11)
    with contextlib.closing(BlockReader(Rows(stream, part), stream)) as reader:
        [values] = reader.training(part)
    inputs, targets = stream.crop.sides(values)
    assert inputs.shape == targets.shape == (11, SIZE, SIZE, 3)
    rows = block_rows(PairBlock(1, 0, 11), stream.train.group_rows, seed=0, window=stream.window)
    for pair, image, target in zip(read_rows(stream.train, rows), inputs, targets, strict=True):
        wanted = np.stack((target, image) if swap else (image, target))
        places = [(slice(y, y + SIZE), slice(x, x + SIZE)) for y in range(5) for x in range(5)]
        assert any((np.stack([pair["a"][at], pair["b"][at]]) == wanted).all() for at in places)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_worker_finds_its_epochs_and_all_validation_pairs_are_seen(data, workers):
    stream = stream_of(data, workers=workers)
    share = 11 // workers
    parts = [EpochRange(1, min(2, share), share), EpochRange(2, 0, share)]
    rows, validated = Rows(stream, *parts), 0
    for rows.of_rank in range(workers):
        reader = BlockReader(rows, stream, rows.of_rank)
        reader.wait()
        for part in parts:
            assert sum(map(len, reader.training(part))) == part.stop - part.skip
            assert stream.count_steps(part) == -(-(part.stop - part.skip) // 2)
            validated += sum(map(len, reader.validation()))
    assert validated == 2 * 3


def test_a_crop_depends_on_the_epoch_and_not_on_how_the_order_is_cut(data):
    stream = stream_of(data, flip=True)
    reader = BlockReader(Rows(stream, EpochRange(1, 4, 11), EpochRange(1, 0, 11), EpochRange(2, 0, 11)), stream)
    read = []
    for epoch, skip in ((1, 4), (1, 0), (2, 0)):
        read.append(np.concatenate(list(reader.training(EpochRange(epoch, skip, 11)))))
        assert len(list(reader.validation())) == 1
    assert np.array_equal(read[0], read[1][4:])
    assert not np.array_equal(read[1], read[2])


def test_a_block_with_a_bad_pair_names_it(data, tmp_path):
    damaged = tmp_path / "train" / "0004.png"
    damaged.write_bytes(damaged.read_bytes()[:300])
    stream, part = stream_of(data), EpochRange(1, 0, 11)
    with pytest.raises(BadInputError, match=r"pair '0004'.*damaged.*jobs/prepare.py leaves bad pairs out"):
        list(BlockReader(Rows(stream, part), stream).training(part))


def test_a_stream_that_begins_elsewhere_than_the_training_is_refused(data):
    stream = stream_of(data)
    reader = BlockReader(Rows(stream, EpochRange(1, 2, 11)), stream)
    with pytest.raises(StorageError, match="does not begin at"):
        list(reader.training(EpochRange(1, 0, 11)))
    with pytest.raises(StorageError, match="does not begin at"):
        list(BlockReader(Rows(stream), stream).training(EpochRange(1, 0, 11)))


def test_blocks_are_whole_batches_and_those_of_large_crops_hold_fewer_pairs(data):
    pairs = open_pairs(data, "train", raw_load_size=20)

    def block_pairs(crop_size: int, batch_size: int) -> int:
        return PairStream(pairs, None, CropSettings(crop_size, 0, True, swap=False), batch_size).block_pairs

    assert [block_pairs(crop, 1) for crop in (64, 128, 192, 256, 512, 4096)] == [512, 512, 256, 128, 42, 1]
    assert [block_pairs(256, batch) for batch in (3, 64, 100, 500)] == [126, 128, 100, 500]
