"""The optimiser steps without Ray: what they read back from the device, and where they say they stand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from p2p.errors import TrainingStopped
from p2p.model.pix2pix import Pix2Pix
from p2p.training import TrainConfig
from p2p.training import loop as loop_module
from p2p.training.loop import Loop
from p2p.training.position import Leg, Position
from p2p.training.run_folder import RunFolder

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


def loop(config: TrainConfig, position: Position | None = None, pix2pix: Pix2Pix | None = None) -> Loop:
    return Loop(config, pix2pix or Pix2Pix(config.model("fp32")), position or Position())


def batches(steps: int, batch: int = 1, first: int = 0):
    for number in range(first, first + steps):
        generator = torch.Generator().manual_seed(number)
        pairs = torch.randint(0, 256, (batch, 2, 64, 64, 3), dtype=torch.uint8, generator=generator)
        yield pairs[:, 0], pairs[:, 1]


def nothing() -> None: ...


@pytest.mark.parametrize("options", [{}, {"gan_mode": "wgangp", "ema_images": 100, "norm": "instance"}])
def test_no_step_reads_anything_back_from_the_device(tmp_path, monkeypatch, options):
    assert loop_module._STEPS_BETWEEN_CHECKS == 100
    monkeypatch.setattr(loop_module, "_STEPS_BETWEEN_CHECKS", 12)
    trained = loop(config(tmp_path, **options))
    seen = []
    with Readings() as readings:
        trained.run(Leg(1, 0, 15, True), batches(15), lambda: seen.append(readings.count))
    assert len(seen) == 15
    assert seen[10] == 0  # then the losses of all steps so far are looked at
    assert 0 < seen[11] == seen[14] <= 8
    assert readings.count <= 16  # and at the end of the epoch


def test_an_epoch_in_two_halves_is_the_epoch_in_one(tmp_path):
    options = config(tmp_path, batch_size=2, ema_images=20)
    whole, first = loop(options), loop(options)
    expected = whole.run(Leg(1, 0, 12, True), batches(6, 2), nothing)
    first.run(Leg(1, 0, 8, False), batches(4, 2), nothing)
    second = loop(options, first.inside_epoch(), first.pix2pix)
    assert (second.position.step, second.position.pairs_in_epoch, second.position.images_seen) == (4, 8, 8)
    found = second.run(Leg(1, 8, 12, True), batches(2, 2, first=4), nothing)
    for name in ("epoch", "step", "images_seen", "g_gan", "g_l1", "d_real", "d_fake", "lr"):
        assert found[name] == expected[name], name
    for a, b in zip(whole.pix2pix.state(), second.pix2pix.state(), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    second.finish_epoch(1)
    assert second.position == Position(epoch=1, step=6, images_seen=12)


def test_what_happens_between_steps_is_not_counted_as_training(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("p2p.training.loop.time.monotonic", lambda: clock[0])
    trained = loop(config(tmp_path))
    update = trained.pix2pix.update

    def pass_time(seconds: float) -> None:
        clock[0] += seconds

    def slow_batches():
        for batch in batches(4):
            pass_time(1.0)
            yield batch

    monkeypatch.setattr(trained.pix2pix, "update", lambda *pair: (pass_time(3.0), update(*pair))[1])
    row = trained.run(Leg(1, 0, 4, True), slow_batches(), lambda: pass_time(100.0))
    assert row["images_per_second"] == pytest.approx(1 / 4)
    assert row["data_wait"] == pytest.approx(1 / 4)
    assert trained.epoch_seconds == pytest.approx(4 * 104)


def test_numbers_that_are_not_finite_stop_training_with_a_finding(tmp_path):
    options = config(tmp_path)
    trained = loop(options)
    RunFolder(options.output).publish("checkpoints/epoch_0001", {"epoch": 1, "step": 7}, is_best=True, keep=0)
    trained.pix2pix.set_learning_rate(1.0)
    with torch.no_grad():
        next(trained.pix2pix.generator.parameters()).fill_(math.inf)
    with pytest.raises(TrainingStopped, match=r"g_gan.*in epoch 2, by step 3; .*epoch_0001 is intact; try") as stopped:
        trained.run(Leg(2, 0, 3, True), batches(3), nothing)
    assert stopped.value.finding["numbers"]["step"] == 3
    with pytest.raises(TrainingStopped, match="weights no longer finite"):
        trained.check_weights(2)
