"""The stream of training pairs against what plain processes make of the same pairs."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from p2p.benchmark.networks import SIZE, alone
from p2p.benchmark.rows import Row, Setting, alternate, median_ratio, row
from p2p.data.augment import CropSettings
from p2p.data.machine import available_cpus
from p2p.data.order import EpochRange
from p2p.data.pairs import open_pairs, read_rows
from p2p.data.session import ray_session
from p2p.data.stream import BlockReader, PairStream
from p2p.preparation import PrepareConfig, prepare

PAIR_SIDE = 286
"""Pixels, of the pairs that crops of 256x256 are taken from."""
_BATCH = 8
_SIDES = ((PAIR_SIDE, SIZE), (64, 64))
"""Of pairs and of the crops of them; reading the small ones is mostly plumbing."""
_PAIRS = 1024
"""In an epoch."""
_WARM_UP_BLOCKS = 10
"""About as many as are read ahead before the first one is asked for."""


def data_rows(at: Setting) -> list[Row]:
    """The stream of pairs to one consumer, against what plain processes make of the same pairs."""
    rows = []
    for side, crop_size in _SIDES:
        pairs = str(prepared(at, side, _PAIRS))
        expected = alone(plain_rate, pairs, crop_size, at.seconds / 2)
        plains, streams = alternate(
            partial(alone, plain_rate, pairs, crop_size, at.seconds / 2),
            partial(alone, stream_rate, pairs, crop_size, round(expected * at.seconds)),
            at.rounds,
        )
        what = f"pairs of {side}x{side}, read, decoded and cropped"
        plain = row(f"{what} by {available_cpus()} plain processes", statistics.median(plains), "pairs/s")
        ratio = median_ratio(streams, plains)
        rows += [plain, row(f"{what} by the stream", statistics.median(streams), "pairs/s", plain, ratio)]
    return rows


def prepared(at: Setting, side: int, pairs: int) -> Path:
    """A new data set of at least so many pairs of that side: those of the images, repeated where they are fewer."""
    folder = Path(tempfile.mkdtemp(dir=at.folder))
    images, data = folder / "images", folder / "pairs"
    images.mkdir()
    for image in sorted(at.images.iterdir())[:pairs]:
        (images / image.name).hardlink_to(image)
    summary = prepare(PrepareConfig(source=str(images), output=str(data), load_size=side))
    parts = sorted(data.glob("train/*.parquet"))
    for copy in range(1, -(-pairs // summary["pairs"]["train"])):
        for number, part in enumerate(parts):
            (part.parent / f"part-{copy * len(parts) + number:05d}.parquet").hardlink_to(part)
    return data


def plain_rate(pairs: str, crop_size: int, seconds: float) -> float:
    """Pairs per second that processes without Ray read, decode and crop, one on each core."""
    cores = available_cpus()
    with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn")) as pool:
        return sum(pool.map(_read_blocks, [pairs] * cores, [crop_size] * cores, [seconds] * cores))


def _read_blocks(pairs: str, crop_size: int, seconds: float) -> float:
    stream = _stream(pairs, crop_size)
    epochs = (EpochRange(epoch, 0, len(stream.train)) for epoch in itertools.count(1))
    blocks = itertools.chain.from_iterable(map(stream.training_blocks, epochs))
    started, seen = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        block = next(blocks)
        for pair in read_rows(stream.train, stream.rows(block), stream.crop.formats):
            stream.crop.crop(pair, block.epoch)
        seen += len(block)
    return seen / (time.perf_counter() - started)


def stream_rate(pairs: str, crop_size: int, count: int) -> float:
    """Pairs per second of a training stream to one consumer, over `count` pairs or more after its first blocks."""
    stream = _stream(pairs, crop_size)
    size = len(stream.train)
    last = 1 + (_WARM_UP_BLOCKS * stream.block_pairs + count) // size
    epochs = [EpochRange(epoch, 0, size) for epoch in range(1, 1 + last)]
    with ray_session(), contextlib.closing(BlockReader(stream.dataset(epochs), stream)) as reader:
        blocks = itertools.chain.from_iterable(map(reader.training, epochs))
        for _ in range(_WARM_UP_BLOCKS):
            next(blocks)
        started = time.perf_counter()
        return sum(map(len, blocks)) / (time.perf_counter() - started)


def _stream(pairs: str, crop_size: int) -> PairStream:
    return PairStream(open_pairs(pairs, "train"), None, CropSettings(crop_size, flip=True), _BATCH)
