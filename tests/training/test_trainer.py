"""The optimiser steps without Ray: what they read back from the device, and where they say they stand."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from p2p.errors import TrainingStoppedError
from p2p.model.cuda_graphs import RecordedCall
from p2p.model.pix2pix import Pix2Pix
from p2p.training import TrainConfig
from p2p.training import trainer as trainer_module
from p2p.training.gpu_meter import GpuMeter
from p2p.training.position import Position
from p2p.training.run_folder import RunFolder
from p2p.training.trainer import Trainer
from p2p.training.upload import UPLOADS

READS_BACK = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "_is_all_true", "_is_any_true")
"""Operators that wait for the device, since Python needs their value."""


class Readings(TorchDispatchMode):
    """Counts, while it is entered, how often a tensor's value is asked for."""

    count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        self.count += name in READS_BACK or (name == "_to_copy" and (kwargs or {}).get("device") is not None)
        return operator(*args, **(kwargs or {}))


def config(tmp_path, **options) -> TrainConfig:
    small = {"generator": "unet_64", "discriminator": "patch_16", "ngf": 4, "ndf": 4, "crop_size": 64}
    return TrainConfig(data="pairs", output=str(tmp_path / "run"), **{**small, **options})


def trainer_of(config: TrainConfig, position: Position | None = None, pix2pix: Pix2Pix | None = None) -> Trainer:
    return Trainer(config, pix2pix or Pix2Pix(config.model("fp32")), position or Position())


def batches(steps: int, batch: int = 1, first: int = 0):
    for number in range(first, first + steps):
        generator = torch.Generator().manual_seed(number)
        pairs = torch.randint(0, 256, (batch, 2, 64, 64, 3), dtype=torch.uint8, generator=generator)
        yield pairs[:, 0], pairs[:, 1]


def run(trainer: Trainer, epoch: int, pairs, after_step=lambda: None) -> dict:
    trainer.start_epoch(epoch)
    for inputs, targets in trainer.waiting_for(pairs):
        trainer.update(inputs, targets)
        after_step()
    return trainer.epoch_metrics()


@pytest.mark.parametrize("options", [{}, {"gan_mode": "wgangp", "ema_images": 100, "norm": "instance"}])
def test_no_step_reads_anything_back_from_the_device(tmp_path, monkeypatch, options):
    assert trainer_module._STEPS_BETWEEN_CHECKS == 100
    monkeypatch.setattr(trainer_module, "_STEPS_BETWEEN_CHECKS", 12)
    trained = trainer_of(config(tmp_path, **options))
    seen = []
    with Readings() as readings:
        run(trained, 1, batches(15), lambda: seen.append(readings.count))
    assert len(seen) == 15
    assert seen[10] == 0  # then the losses of all steps so far are looked at
    assert 0 < seen[11] == seen[14] <= 8
    assert readings.count <= 16  # and at the end of the epoch


def test_an_epoch_in_two_halves_is_the_epoch_in_one(tmp_path):
    options = config(tmp_path, batch_size=2, ema_images=20)
    whole, first = trainer_of(options), trainer_of(options)
    expected = run(whole, 1, batches(6, 2))
    run(first, 1, batches(4, 2))
    second = trainer_of(options, first.position_inside_epoch(), first.pix2pix)
    assert (second.position.step, second.position.pairs_in_epoch, second.position.images_seen) == (4, 8, 8)
    found = run(second, 1, batches(2, 2, first=4))
    for name in ("epoch", "step", "images_seen", "g_gan", "g_l1", "d_real", "d_fake", "lr"):
        assert found[name] == expected[name], name
    for a, b in zip(whole.pix2pix.state(), second.pix2pix.state(), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    second.finish_epoch()
    assert second.position == Position(epoch=1, step=6, images_seen=12)


def test_what_happens_between_steps_is_not_counted_as_training(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("p2p.training.trainer.time.monotonic", lambda: clock[0])
    trained = trainer_of(config(tmp_path))
    update = trained.pix2pix.update

    def pass_time(seconds: float) -> None:
        clock[0] += seconds

    def slow_batches():
        for batch in batches(4):
            pass_time(1.0)
            yield batch

    monkeypatch.setattr(trained.pix2pix, "update", lambda *pair: (pass_time(3.0), update(*pair))[1])
    row = run(trained, 1, slow_batches(), lambda: pass_time(100.0))
    assert row["images_per_second"] == pytest.approx(1 / 4)
    assert row["data_wait"] == pytest.approx(1 / 4)
    assert trained.epoch_seconds == pytest.approx(4 * 104)


def test_numbers_that_are_not_finite_stop_training_with_a_finding(tmp_path):
    options = config(tmp_path)
    trained = trainer_of(options)
    RunFolder(options.output).publish("checkpoints/epoch_0001", {"epoch": 1, "step": 7}, is_best=True, keep=0)
    with torch.no_grad():
        next(trained.pix2pix.generator.parameters()).fill_(math.inf)
    with pytest.raises(
        TrainingStoppedError, match=r"g_gan.*in epoch 2, by step 3; .*epoch_0001 is intact; try"
    ) as stopped:
        run(trained, 2, batches(3))
    assert stopped.value.finding["numbers"]["step"] == 3
    with pytest.raises(TrainingStoppedError, match="weights no longer finite"):
        trained.check_weights()


class FakeCard:
    """torch.cuda's graphs and events on the CPU. What is recorded is computed when it is replayed."""

    def __init__(self, monkeypatch, trained: Trainer) -> None:
        self.trained, self.replays, self.stream = trained, 0, "steps"
        trained._step = RecordedCall(trained._add_step, torch.device("cuda"), trained.pix2pix.clear_gradients)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: self)
        monkeypatch.setattr(torch.cuda, "graph", self.record)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.stream)
        monkeypatch.setattr(torch.cuda, "stream", self.on)

    @contextlib.contextmanager
    def on(self, stream):
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    @contextlib.contextmanager
    def record(self, graph, *, stream, capture_error_mode):
        assert graph is self and capture_error_mode == "thread_local"
        tensors = [tensor for part in self.trained.pix2pix.state() for tensor in part.values()]
        kept = [tensor.clone() for tensor in (*tensors, self.trained._sums)]
        noise = torch.get_rng_state()
        yield
        torch.set_rng_state(noise)
        with torch.no_grad():
            for tensor, before in zip((*tensors, self.trained._sums), kept, strict=True):
                tensor.copy_(before)

    def replay(self) -> None:
        self.replays += 1
        self.trained._add_step(*self.trained._step._inputs)


@pytest.mark.parametrize("options", [{}, {"gan_mode": "wgangp", "ema_images": 100, "lr": 0.01}])
def test_a_recorded_step_is_the_step_to_the_bit(tmp_path, monkeypatch, options):
    plain, recorded = (trainer_of(config(tmp_path, epochs=1, epochs_decay=3, **options)) for _ in range(2))
    card = FakeCard(monkeypatch, recorded)
    for epoch in (1, 2):
        for trained in (plain, recorded):
            # The last batch of an epoch is smaller, and is no reason to record another graph.
            found = run(trained, epoch, [*batches(5, 2, first=10 * epoch), *batches(1, 1)])
            assert found["step"] == 6 * epoch
    assert card.replays == 2 + 5
    assert recorded.check_losses() == plain.check_losses()
    for a, b in zip(plain.pix2pix.state(), recorded.pix2pix.state(), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


REFUSED = RuntimeError("operation not permitted when stream is capturing\nmore")
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("error", [REFUSED, FULL, RuntimeError("CUDA error: out of memory\nmore")])
def test_a_step_that_cannot_be_recorded_is_computed_all_the_same(tmp_path, monkeypatch, error):
    plain, recorded = (trainer_of(config(tmp_path)) for _ in range(2))
    card, freed = FakeCard(monkeypatch, recorded), []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append((recorded._step._inputs, gradients())))

    def gradients() -> list[torch.Tensor]:
        networks = recorded.pix2pix.generator, recorded.pix2pix.discriminator
        return [weight.grad for network in networks for weight in network.parameters() if weight.grad is not None]

    @contextlib.contextmanager
    def fail(*_, **__):
        with card.record(card, stream=None, capture_error_mode="thread_local"):
            yield
        raise error

    monkeypatch.setattr(torch.cuda, "graph", fail)
    for trained in (plain, recorded):
        run(trained, 1, batches(6))
    reason = str(error).split("\n")[0].split(". ")[0]
    assert recorded.fallback == f"not recorded as a CUDA graph, it runs slower: {reason}"
    assert card.replays == 0 and freed == [([], [])]
    assert recorded.check_losses() == plain.check_losses()


def test_after_a_recording_that_could_not_be_ended_there_is_noise_on_the_stream_of_before(tmp_path, monkeypatch):
    """Torch 2.11 then stays on the recording's stream, and takes its generator for one that is still recorded."""
    trained = trainer_of(config(tmp_path))
    card, encode, ends, recorded = FakeCard(monkeypatch, trained), trained.pix2pix.encode, [], []

    @contextlib.contextmanager
    def graph(*_, **__):
        card.stream, before = "recording", card.stream
        recorded.append(False)
        with card.record(card, stream=None, capture_error_mode="thread_local"):
            yield
        if len(recorded) == 1:
            raise REFUSED
        card.stream, recorded[:] = before, []

    def draw_noise(images):
        assert (
            card.stream == "recording" if len(recorded) == 1 and not ends else card.stream == "steps" and not recorded
        )
        return encode(images)

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: ends.append(1))
    monkeypatch.setattr(trained.pix2pix, "encode", draw_noise)
    run(trained, 1, batches(6))
    assert ends and trained.fallback.endswith("operation not permitted when stream is capturing")


def test_a_step_without_memory_even_unrecorded_says_so(tmp_path, monkeypatch):
    trained = trainer_of(config(tmp_path))
    card = FakeCard(monkeypatch, trained)

    @contextlib.contextmanager
    def fill_up(*_, **__):
        with card.record(card, stream=None, capture_error_mode="thread_local"):
            yield
        monkeypatch.setattr(trained.pix2pix, "encode", fail)
        raise FULL

    def fail(_):
        raise torch.OutOfMemoryError("CUDA out of memory. Without a graph too")

    monkeypatch.setattr(torch.cuda, "graph", fill_up)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with pytest.raises(torch.OutOfMemoryError, match="Without a graph too"):
        run(trained, 1, batches(6))
    assert trained.position.step == 3 and "runs slower: CUDA out of memory" in trained.fallback


def test_how_busy_a_gpu_was_is_told_where_there_is_one(tmp_path, monkeypatch):
    clock = [0.0]

    class Event:
        def __init__(self, enable_timing: bool, blocking: bool) -> None:
            assert enable_timing and blocking

        def record(self) -> None:
            self.at = clock[0] = clock[0] + 1.0

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, end: Event) -> float:
            return 1000.0 * (end.at - self.at)

    trained = trainer_of(config(tmp_path))
    assert not {"gpu_busy", "gpu_memory"} & set(run(trained, 1, batches(2)))
    resets = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", resets.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 3 * 2**30)
    monkeypatch.setattr("p2p.training.trainer.time.monotonic", lambda: clock[0])
    trained._gpu = GpuMeter(trained.pix2pix.device)
    row = run(trained, 2, batches(4))
    assert (row["gpu_busy"], row["gpu_memory"]) == (0.5, 3.0), (
        "a second between two events, of which half are in a step"
    )
    assert len(resets) == 2
    assert run(trained, 3, batches(1))["gpu_busy"] == 0.5
    assert trained._gpu.measured(0.5)["gpu_busy"] == 1, "of a second that was not all training's"


def test_waiting_for_a_slow_gpu_is_not_taken_for_waiting_for_data(tmp_path, monkeypatch):
    clock, idle_from = [0.0], [0.0]  # when the GPU has computed all that is queued

    class Event:
        def __init__(self, **_) -> None:
            pass

        def record(self) -> None:
            self.at = idle_from[0]

        def synchronize(self) -> None:
            clock[0] = max(clock[0], self.at)

        def elapsed_time(self, end: Event) -> float:
            return 1000.0 * (end.at - self.at)

    def uploaded():
        used = []
        for batch in batches(8):
            clock[0] += 0.5
            used.append(Event())  # as `Upload` waits before it overwrites a batch
            used[-1].record()
            if len(used) >= UPLOADS:
                used[-UPLOADS].synchronize()
            yield batch

    trained = trainer_of(config(tmp_path))
    update = trained.pix2pix.update

    def queue(*pair):
        idle_from[0] = max(idle_from[0], clock[0]) + 3.0
        return update(*pair)

    monkeypatch.setattr(trained.pix2pix, "update", queue)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 0)
    monkeypatch.setattr("p2p.training.trainer.time.monotonic", lambda: clock[0])
    trained._gpu = GpuMeter(trained.pix2pix.device)
    row = run(trained, 1, uploaded())
    assert clock[0] > 15, "the GPU was waited for"
    assert row["data_wait"] == pytest.approx(8 * 0.5 / clock[0])
