"""The optimiser's steps on one rank, and the position they have reached. Without Ray."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from p2p.errors import TrainingStoppedError
from p2p.model.cuda_graphs import RecordedCall
from p2p.model.distributed import max_over_ranks, sum_over_ranks
from p2p.model.pix2pix import Pix2Pix
from p2p.model.tensors import to_model_range
from p2p.training.config import TrainConfig
from p2p.training.gpu_meter import GpuMeter
from p2p.training.health import broken, not_finite
from p2p.training.position import Position
from p2p.training.run_folder import MetricsRow, RunFolder

LOSSES = ("g_gan", "g_l1", "d_real", "d_fake")
_STEPS_BETWEEN_CHECKS = 100


class Trainer:
    """Trains `pix2pix` from `position` on, and keeps that position up to date.

    Methods marked (all ranks) talk to the other ranks, so every rank calls them at the same step.
    """

    def __init__(
        self, config: TrainConfig, pix2pix: Pix2Pix, position: Position, *, rank: int = 0, world: int = 1
    ) -> None:
        self.config, self.pix2pix, self.position = config, pix2pix, position
        self.rank, self.world = rank, world
        self.epoch = position.epoch + 1
        self._run = RunFolder(config.output)
        self._sums = torch.zeros(len(LOSSES), dtype=torch.float64, device=pix2pix.device)
        # The gradients of several ranks are averaged by hooks, which are not recorded.
        self._step = (
            RecordedCall(self._add_step, pix2pix.device, pix2pix.clear_gradients) if world == 1 else self._add_step
        )
        self._gpu = GpuMeter(pix2pix.device) if pix2pix.device.type == "cuda" else None
        self.start_clock()

    # Steps

    def start_epoch(self, epoch: int) -> None:
        """Prepare for the steps of an epoch, or for those that are left of it."""
        self.epoch = epoch
        self._seen_before, self._waited, self._updating = self.position.images_seen, 0.0, 0.0
        self._sums.zero_()
        if self._gpu is not None:
            self._gpu.start_epoch()
        if self.position.loss_sums and self.rank == 0:
            self._sums += torch.tensor(self.position.loss_sums, dtype=torch.float64, device=self._sums.device)
        self.pix2pix.train()
        self.pix2pix.set_learning_rate(self.config.learning_rate(epoch))

    def waiting_for(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The same batches; the time until each one comes is counted as waiting for data."""
        asked = time.monotonic()
        for batch in batches:
            self._waited += time.monotonic() - asked
            yield batch
            asked = time.monotonic()

    def update(self, inputs: Tensor, targets: Tensor) -> None:
        """One optimiser step. Nothing is read back, so a device is waited for only where it is steps behind, and every
        so many steps, when the losses are looked at (all ranks).

        Args:
            inputs: (B, H, W, C) uint8 or uint16, on the device.
            targets: (B, H, W, C') of the same type.

        """
        started = time.monotonic()
        self._seed_noise()
        seen = len(inputs) * self.world
        with self._gpu.step() if self._gpu is not None else contextlib.nullcontext():
            self._step(inputs, targets)
            self.pix2pix.update_average(seen, self.position.images_seen)
        self.position = replace(
            self.position,
            step=self.position.step + 1,
            images_seen=self.position.images_seen + seen,
            pairs_in_epoch=self.position.pairs_in_epoch + seen,
        )
        if self.position.step % _STEPS_BETWEEN_CHECKS == 0:
            self.check_losses()
        self._updating += time.monotonic() - started

    def _add_step(self, inputs: Tensor, targets: Tensor) -> None:
        """All of a step that happens on the device alone."""
        losses = self.pix2pix.update(self.pix2pix.encode(inputs), to_model_range(targets))
        self._sums += torch.stack([losses[name] for name in LOSSES]) * len(inputs)

    def _seed_noise(self) -> None:
        """Make dropout a function of (seed, step, rank), so that no generator's state has to be saved."""
        text = f"{self.config.seed}/{self.position.step}/{self.rank}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        torch.manual_seed(int.from_bytes(digest, "big") >> 1)

    @property
    def fallback(self) -> str | None:
        """Why steps run slower than they could, for the log."""
        return self._step.fallback if isinstance(self._step, RecordedCall) else None

    # Metrics and position

    def metrics(self) -> MetricsRow:
        """Where training stands, with the present epoch's mean losses (all ranks). Raises as `check_losses` does."""
        return {
            "epoch": self.epoch,
            "step": self.position.step,
            "images_seen": self.position.images_seen,
            **self.check_losses(),
            "lr": self.config.learning_rate(self.epoch),
        }

    def epoch_metrics(self) -> MetricsRow:
        """`metrics` and rates, after the steps of an epoch (all ranks)."""
        started = time.monotonic()
        row = self.metrics()
        seconds = max(self._waited + self._updating + time.monotonic() - started, 1e-9)
        waiting = torch.tensor(self._waited / seconds, dtype=torch.float64, device=self._sums.device)
        return {
            **row,
            "images_per_second": (self.position.images_seen - self._seen_before) / seconds,
            "data_wait": float(max_over_ranks(waiting)),
            **(self._gpu.measured(seconds) if self._gpu is not None else {}),
        }

    @property
    def epoch_seconds(self) -> float:
        """Time that the present epoch has taken, with what came after its steps."""
        return time.monotonic() - self._epoch_started

    def start_clock(self) -> None:
        """Time from here on counts for the present epoch."""
        self._epoch_started = time.monotonic() - self.position.seconds

    def finish_epoch(self) -> None:
        """All pairs of the epoch were seen."""
        self.position = replace(self.position, epoch=self.epoch, pairs_in_epoch=0, loss_sums=(), seconds=0.0)

    def position_inside_epoch(self) -> Position:
        """The position, with all that is needed to continue within this epoch (all ranks)."""
        sums = tuple(float(value) for value in sum_over_ranks(self._sums.clone()))
        return replace(self.position, loss_sums=sums, seconds=self.epoch_seconds)

    def check_losses(self) -> dict[str, float]:
        """Mean losses of the epoch so far; waits for the device (all ranks). Raises TrainingStoppedError on all of
        them.
        """
        sums, pairs = sum_over_ranks(self._sums.clone()), self.position.pairs_in_epoch
        losses = {name: float(value) / pairs for name, value in zip(LOSSES, sums, strict=True)}
        if self._gpu is not None:
            self._gpu.add_up()
        if names := not_finite(losses):
            raise self._stopped(names)
        return losses

    def check_weights(self) -> None:
        """Raise TrainingStoppedError if the networks are broken: the last step may have done it, its losses still
        whole.
        """
        if not self.pix2pix.is_finite():
            raise self._stopped(["weights"])

    def _stopped(self, names: list[str]) -> TrainingStoppedError:
        latest = self._run.latest()
        kept = f"{self._run.address(latest['checkpoint'])} is intact" if latest else "no checkpoint was saved yet"
        step = self.position.step
        finding = broken(names, self.epoch, step, self.config.learning_rate(self.epoch))
        return TrainingStoppedError(
            f"{', '.join(names)} no longer finite in epoch {self.epoch}, by step {step}; {kept}; {finding['advice']}",
            dict(finding),
        )
