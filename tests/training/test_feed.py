"""A worker's batches, with pairs kept in memory and without. No Ray is needed: a stream's row is a dictionary."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from p2p.data import stream as stream_module
from p2p.data.augment import CropSettings
from p2p.data.order import EpochRange, PairBlock
from p2p.data.pairs import open_pairs
from p2p.data.stream import PairStream, WholeBlock
from p2p.errors import TaskFailedError
from p2p.model.cuda_graphs import is_out_of_memory
from p2p.storage.pixels import PixelFormat
from p2p.training import TrainConfig, pair_cache
from p2p.training.feed import Feed
from p2p.training.pair_cache import PairCache, cache_bytes, choose_cache, place_cache
from p2p.training.upload import UPLOADS, Upload
from p2p.training.worker import _memory_advice

SIZE, PAIRS, HELD_OUT = 16, 11, 3
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_pairs) -> str:
    folder = tmp_path_factory.mktemp("pairs")
    make_pairs(folder / "train", PAIRS, size=20)
    make_pairs(folder / "val", HELD_OUT, size=20, seed=1)
    return str(folder)


def stream_of(data: str, cache: str, *, workers: int = 1, bits: int = 8, swap: bool = True) -> PairStream:
    train, val = (open_pairs(data, split, raw_load_size=20) for split in ("train", "val"))
    formats = (PixelFormat(3, bits), PixelFormat(1, bits))
    return PairStream(train, val, CropSettings(SIZE, 0, True, swap, formats), 2, workers, cache)


def feed_of(stream: PairStream, parts: list[EpochRange], rank: int = 0) -> Feed:
    class Rows:
        """What Ray Data makes of a stream, from the worker's side."""

        def iter_batches(self, **_):
            listed = [row for part in stream.parts_to_read(parts) for row in stream._list_blocks(vars(part))]
            for row in listed[rank :: stream.workers]:
                yield stream._read_block({name: np.array([value]) for name, value in row.items()})

    return Feed(Rows(), stream, rank, parts, CPU)


def seen(stream: PairStream, parts: list[EpochRange], rank: int = 0) -> list[list[tuple[bytes, ...]]]:
    """Inputs and targets of each batch, for each part those trained and those validated on."""
    found = []
    with contextlib.closing(feed_of(stream, parts, rank)) as feed:
        feed.wait()
        for part in parts:
            for batches in (feed.training(part), feed.cut(feed.validation(), 8)):
                found.append([tuple(side.numpy().tobytes() for side in batch) for batch in batches])
    return found


@pytest.mark.parametrize("skip", [0, 4])
@pytest.mark.parametrize("cache", ["host", "device"])
@pytest.mark.parametrize(("bits", "swap"), [(8, False), (16, True)])
def test_kept_pairs_give_the_same_batches_to_the_bit_and_are_decoded_once(data, monkeypatch, cache, skip, bits, swap):
    parts = [EpochRange(3, skip, PAIRS), EpochRange(4, 0, PAIRS), EpochRange(5, 0, PAIRS)]
    expected = seen(stream_of(data, "none", bits=bits, swap=swap), parts)
    decoded, read = [], stream_module.read_rows_in_task

    def count(pairs, rows, formats):
        for pair in read(pairs, rows, formats):
            decoded.append(pair["pair_id"])
            yield pair

    monkeypatch.setattr(stream_module, "read_rows_in_task", count)
    assert seen(stream_of(data, cache, bits=bits, swap=swap), parts) == expected
    assert len(decoded) == PAIRS + HELD_OUT + ((PAIRS - skip + HELD_OUT) if skip else 0)
    assert [len(batches) for batches in expected[2:]] == [6, 1] * 2
    assert len({batch for batches in expected[2::2] for batch in batches}) == 12, "each epoch has its own crops"


@pytest.mark.parametrize("workers", [2, 3])
def test_each_of_several_workers_keeps_its_share_of_which_it_sees_each_pair_once_an_epoch(data, workers):
    share = PAIRS // workers
    parts = [EpochRange(epoch, 0, share) for epoch in range(1, 7)]
    stream = stream_of(data, "host", workers=workers)
    held_out = Counter()
    trained: list[list[set]] = []
    for rank in range(workers):
        rows = [
            [row for block in list(stream.training_blocks(part))[rank::workers] for row in stream.rows(block)]
            for part in parts
        ]
        assert set(map(len, rows)) == {share}
        assert len(set(map(frozenset, rows))) == 1 < len(set(map(tuple, rows))), "the same pairs in another order"
        trained.append(set(rows[0]))
        found = seen(stream, parts, rank)
        assert [sum(len(batch[1]) for batch in batches) for batches in found[::2]] == [share * SIZE * SIZE * 3] * 6
        assert found[1] == found[3] == found[11]
        held_out.update(hashlib.sha256(batch[1]).digest() for batch in found[11])
    assert len(set.union(*trained)) == share * workers
    assert sum(held_out.values()) == (HELD_OUT if workers == 3 else 2)


def test_an_epoch_that_is_cut_short_by_the_number_of_steps_is_decoded_as_far_as_it_goes(data):
    parts = [EpochRange(1, 0, 6, finishes_epoch=False)]
    assert seen(stream_of(data, "host"), parts) == seen(stream_of(data, "none"), parts)


def test_pairs_that_are_larger_than_their_part_says_are_refused_by_name(data):
    stream = stream_of(data, "host")
    small = replace(stream, train=replace(stream.train, largest_area=399))
    with pytest.raises(Exception, match=r"pair '00\d\d' has 400 pixels, more than the 399"):
        seen(small, [EpochRange(1, 0, PAIRS)])


def test_blocks_of_large_pairs_hold_fewer_of_them(data):
    stream = stream_of(data, "host")
    large = replace(stream, train=replace(stream.train, largest_area=2**20))
    assert (stream.block_pairs, large.block_pairs, replace(large, cache="none").block_pairs) == (512, 16, 512)
    assert replace(large, train=replace(stream.train, largest_area=2**30)).block_pairs == 2


GIB = 2**30


@pytest.mark.parametrize(
    ("needed", "workers", "device", "host", "place"),
    [
        (25, 1, 100, 1000, "device"),
        (26, 1, 100, 1000, "host"),
        (200, 8, 100, 0, "device"),
        (250, 1, 0, 1000, "host"),
        (251, 1, 100, 1000, "none"),
        (250, 8, 100, 999, "none"),
    ],
)
def test_where_pairs_are_kept_unasked(needed, workers, device, host, place):
    chosen, why = place_cache(needed * GIB, workers, device * GIB, host * GIB)
    assert chosen == place and f"{needed / workers if place == 'device' else needed:.1f} GiB" in why


def test_gpu_and_machine_are_asked_only_where_the_choice_is_open(data, monkeypatch):
    asked = []
    monkeypatch.setattr(pair_cache, "run_as_task", lambda call, **options: asked.append((call, options)) or 20_000)
    monkeypatch.setattr(pair_cache, "gpu_node_memory", lambda: 90_000)
    stream = stream_of(data, "none")
    assert cache_bytes(stream) == 20_672

    def chosen(cache: str, *, use_gpu: bool = True, stream: PairStream = stream) -> str:
        config = TrainConfig(data="d", output="o", cache=cache)
        return choose_cache(config, stream, use_gpu=use_gpu)[0]

    assert [chosen(cache) for cache in ("none", "host", "device")] == ["none", "host", "device"]
    assert chosen("auto", use_gpu=False) == "none"
    assert chosen("auto", stream=replace(stream, train=replace(stream.train, largest_area=0))) == "none"
    assert not asked
    wanted = {"num_cpus": 0, "num_gpus": 1, "seconds": 120}
    assert chosen("auto") == "host" and asked == [(pair_cache._free_device_memory, wanted)]


def test_a_gpu_that_does_not_answer_keeps_no_pairs_and_an_explicit_choice_says_what_it_takes(data, monkeypatch):
    def fail(*_, **__):
        raise TaskFailedError("the task free_device_memory has not ended after 120 s")

    monkeypatch.setattr(pair_cache, "run_as_task", fail)
    stream, config = stream_of(data, "none"), TrainConfig(data="d", output="o", cache="auto")
    place, why = choose_cache(config, stream, use_gpu=True)
    assert place == "none" and why.endswith("has not ended after 120 s")
    large = replace(stream, train=replace(stream.train, largest_area=2**28))
    assert choose_cache(replace(config, cache="host"), large, use_gpu=True) == (
        "host",
        "11.0 GiB of pairs at most, as asked for",
    )


def test_a_machine_without_memory_for_pairs_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as found:
        PairCache(CropSettings(SIZE), 2**58, CPU, on_host=True)
    assert is_out_of_memory(found.value)
    advice = _memory_advice(found.value, "host")
    assert "allocat" in advice and "alloc_cpu" not in advice
    assert advice.endswith("; lower batch_size or crop_size, or set cache none")


def test_what_a_cache_takes_is_counted_at_load_size_and_validation_at_crop_size(data):
    assert cache_bytes(stream_of(data, "none")) == PAIRS * 20 * 20 * 4 + HELD_OUT * SIZE * SIZE * 4
    cache = PairCache(CropSettings(SIZE), 7, CPU, on_host=True)
    assert [tuple(side.shape) for side in cache._sides] == [(7, 3), (7, 3)]


@pytest.mark.parametrize(("bits", "swap"), [(8, False), (16, True)])
def test_pairs_that_a_gpu_fetches_from_its_host_are_cropped_as_those_it_keeps(bits, swap):
    formats = (PixelFormat(3, bits), PixelFormat(1, bits))
    crop, sizes = CropSettings(SIZE, 0, True, swap, formats), [("a", 20, 31), ("b", 16, 16), ("c", 40, 17)]
    rows, generator = [(0, row) for row in range(3)], np.random.default_rng(0)
    pixels = sum(height * width for _, height, width in sizes)
    values = generator.integers(0, 256, 4 * pixels * bits // 8, np.uint8).view(formats[0].dtype)
    on_host, on_device = (PairCache(crop, pixels, CPU, on_host=here) for here in (True, False))
    for cache in (on_host, on_device):
        cache.add(rows, WholeBlock(PairBlock(1, 0, 3), sizes, values))
    upload = Upload(CPU)
    for epoch in range(1, 9):
        wanted = crop.sides(np.stack(on_host.crops(rows, epoch)))
        for cache in (on_host, on_device):
            for found in (cache.crop_on_device(rows, epoch, upload), cache.batch(rows, epoch, upload)):
                assert all(np.array_equal(ours.numpy(), side) for ours, side in zip(found, wanted, strict=True))


@pytest.mark.parametrize("refused", [False, True])
def test_memory_of_the_host_that_a_gpu_reads_is_pinned_where_that_is_to_be_had(card, monkeypatch, refused):
    ones, registered, raised = torch.ones, {}, []

    class Runtime:
        def cudaHostRegister(self, pointer, size, flags):  # noqa: N802
            registered[pointer] = size
            return 2 * refused

        def cudaHostUnregister(self, pointer):  # noqa: N802
            del registered[pointer]

    def fail(*shape, device):
        raised.append(device)
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    monkeypatch.setattr(torch, "ones", fail if refused else ones)
    formats = (PixelFormat(3, 8), PixelFormat(1, 8))
    cache = PairCache(CropSettings(SIZE, formats=formats), 7, torch.device("cuda"), on_host=True)
    assert all(side.device == CPU for side in cache._sides)
    assert registered == {side.data_ptr(): side.nbytes for side in cache._sides} and len(registered) == 2
    assert len(raised) == 2 * refused, "an error that is not looked at is raised by what is computed next"
    waits = len(FakeStream.log)
    cache.clear()
    assert FakeStream.log[waits:] == ["wait for cuda"], "copies may be under way from memory that is filled anew"
    del cache
    assert bool(registered) == refused


class FakeStream:
    """Of a card: says in `log` what is asked of it."""

    log: ClassVar[list[str]] = []

    def __init__(self, *_: object, blocking: bool = True, name: str = "side") -> None:
        self.name = name

    def wait_stream(self, other: FakeStream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


class FakeEvent:
    made = 0

    def __init__(self, blocking: bool) -> None:
        assert blocking
        self.number = FakeEvent.made
        FakeEvent.made += 1

    def record(self, stream: FakeStream) -> None:
        FakeStream.log.append(f"{stream.name} will use {self.number}")

    def synchronize(self) -> None:
        FakeStream.log.append(f"wait for {self.number}")


@pytest.fixture
def card(monkeypatch) -> list[bool]:
    """torch.cuda as far as uploads need it, on the CPU. Returns for each allocation whether it is pinned."""
    current = FakeStream(name="steps")
    monkeypatch.setattr(FakeEvent, "made", 0)
    monkeypatch.setattr(FakeStream, "log", [])
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: FakeStream.log.append(f"wait for {device}"))
    empty, pinned = torch.empty, []

    def on_cpu(*shape, pin_memory=False, device=None, **options):
        pinned.append(pin_memory)
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", on_cpu)
    return pinned


def test_a_gpu_gets_batches_on_a_stream_of_its_own_and_no_memory_is_written_before_its_step_is_done(card):
    upload = Upload(torch.device("cuda"))
    assert UPLOADS == 3
    batches = [[np.full(5, 10 * step + row, np.uint8) for row in range(2 if step < 5 else 1)] for step in range(6)]
    kept = []
    for step, batch in enumerate(batches):
        FakeStream.log.clear()
        kept.append(upload(batch))
        assert np.array_equal(kept[-1].numpy(), np.stack(batch))
        before, slot = (step - 1) % 3, step % 3
        assert FakeStream.log == [f"steps will use {before}", f"wait for {slot}", "steps waits for side"]
    assert sum(card) == 3, "pinned memory is made once"
    assert kept[3].data_ptr() == kept[0].data_ptr() != kept[1].data_ptr()


def test_what_goes_with_a_batch_stays_as_long_as_the_batch(card):
    upload, seen = Upload(torch.device("cuda")), []
    for step in range(6):
        upload([np.array([step])])
        sides = [[torch.full((rows, 3), 10 * step + rows), torch.full((2, 3), step)] for rows in (4, 4 - step % 3)]
        FakeStream.log.clear()
        seen.append(upload.beside(sides))
        assert FakeStream.log == ["steps waits for side"]
        for side, parts in zip(seen[-1], sides, strict=True):
            assert torch.equal(side[: sum(map(len, parts))], torch.cat(parts))
    places = [[side.data_ptr() for side in sides] for sides in seen]
    assert places[:3] == places[3:] and len({place for sides in places for place in sides}) == 6


@pytest.mark.parametrize("rows", [1, 2])
def test_memory_that_validation_made_is_written_by_training(card, rows):
    upload, batch = Upload(torch.device("cuda")), [np.full(5, 7, np.uint8)]
    with torch.inference_mode():
        for _ in range(3):
            assert (upload(batch * 2) == 7).all() and (upload.beside([[torch.ones(4)]])[0] == 1).all()
    for _ in range(3):
        assert (upload([*batch] * rows) == 7).all() and (upload.beside([[torch.ones(3)]])[0] == 1).all()
