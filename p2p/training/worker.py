"""The training loop, as each of Ray Train's workers runs it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed
from torch import Tensor, nn

from p2p.data.description import formats_for
from p2p.data.feed import Feed, Part, Preparation
from p2p.data.pairs import Pairs
from p2p.data.session import physical_cores
from p2p.errors import P2PError, StorageError, TrainingStopped
from p2p.model.allocator import keep_freed_memory
from p2p.model.checkpoint import load_trainer, save_checkpoint
from p2p.model.engine import choose_precision
from p2p.model.pix2pix import Pix2Pix
from p2p.model.tensors import to_model_range
from p2p.storage.images import Pixels
from p2p.training.config import TrainConfig
from p2p.training.health import findings, not_finite
from p2p.training.judgement import Samples, average_statistics, epochs_without_improvement, is_best, validate
from p2p.training.position import Leg, Position, legs
from p2p.training.run_folder import MetricsRow, RunFolder
from p2p.training.scalars import Scalars

LOSSES = ("g_gan", "g_l1", "d_real", "d_fake")
_STEPS_BETWEEN_CHECKS = 100
_SECONDS_BETWEEN_POSTS = 2.0
_SMALLEST_VALIDATION_BATCH = 8


@dataclass(frozen=True)
class Task:
    """Everything a worker is told."""

    config: TrainConfig
    train: Pairs
    val: Pairs | None
    data: dict[str, Any]
    """What a checkpoint should know about its data set, such as `target_palette`."""
    board: Any
    """Handle of the `Board` actor."""


def train_worker(settings: dict[str, Any]) -> None:
    """Ray Train calls this on each worker: `settings["task"]` is a `Task`."""
    task: Task = settings["task"]
    if ray.get(task.board.failure.remote()) is not None:
        return  # started again after something that a restart cannot mend
    try:
        _Worker(task).train()
    except torch.OutOfMemoryError as error:
        reason = str(error).split(". ")[0]
        ray.get(task.board.fail.remote(TrainingStopped(f"{reason}; lower --batch-size or --crop-size")))
        raise
    except P2PError as error:
        if not isinstance(error, StorageError):  # a bucket may come back
            ray.get(task.board.fail.remote(error))
        raise


class _Worker:
    def __init__(self, task: Task) -> None:
        context = ray.train.get_context()
        self.task, self.config = task, task.config
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        keep_freed_memory()
        # Ray sets OMP_NUM_THREADS to the CPUs a worker asks for, which here is only what placement needs.
        torch.set_num_threads(max(1, physical_cores() // context.get_local_world_size()))
        torch.backends.cudnn.benchmark = True
        bits = task.data["bits"]
        precision = choose_precision(self.config.precision, self.device, bits)
        model = self.config.model(precision, bits, task.data["input_palette"])
        swap = model.direction == "BtoA"
        self.preparation = Preparation(
            model.crop_size, self.config.seed, self.config.flip, swap, formats_for(model, swap)
        )
        wrap = self._data_parallel if self.world > 1 else None
        self.pix2pix = Pix2Pix(model, seed=self.config.seed, device=self.device, wrap=wrap)
        self.run = RunFolder(self.config.output)
        self.position = self._restore()
        self.rows = self.run.rows(up_to_epoch=self.position.epoch)
        self.samples: Samples | None = None
        self.scalars: Scalars | None = None
        self.sums = torch.zeros(len(LOSSES), dtype=torch.float64, device=self.device)
        self._posted = time.monotonic()

    # The loop

    def train(self) -> None:
        """Go through every leg that is left: update, validate, judge, save."""
        config = self.config
        with ExitStack() as stack:
            if self.rank == 0:
                self.samples = Samples(self.task.val or self.task.train, self.preparation)
                self.scalars = stack.enter_context(Scalars(config.output, self.position.step))
            feed = stack.enter_context(self._feed())
            remaining = list(legs(config, len(self.task.train), self.position))
            feed.wait()
            self._post(self.position)
            started = time.monotonic()
            for leg in remaining:
                self.pix2pix.set_learning_rate(config.learning_rate(leg.epoch))
                row = self._train_leg(feed, leg)
                average_statistics(self.pix2pix, self.world)
                if self.task.val is not None:
                    pairs = map(self._to_device, feed.batches())
                    row |= validate(self.pix2pix, pairs, self.task.data["target_palette"], self.world)
                row["seconds"] = self.position.seconds + time.monotonic() - started
                started = time.monotonic()
                stop = self._record(row, leg, last=leg is remaining[-1])
                if self.world > 1:
                    torch.distributed.barrier()  # nobody starts the next epoch before this one is saved
                if stop:
                    return

    def _train_leg(self, feed: Feed, leg: Leg) -> MetricsRow:
        """Optimise over one epoch, or what is left of it; returns its losses and rates."""
        started, waited = time.monotonic(), 0.0
        position = self.position
        self.sums.zero_()
        if position.loss_sums and self.rank == 0:
            self.sums += torch.tensor(position.loss_sums, dtype=torch.float64, device=self.device)
        self.pix2pix.train()
        batches = feed.batches()
        for number in range(leg.steps(self.config.batch_size)):
            asked = time.monotonic()
            inputs, targets = self._to_device(next(batches))
            waited += time.monotonic() - asked
            self._seed_noise(position.step)
            step_losses = self.pix2pix.update(self.pix2pix.encode(inputs), to_model_range(targets))
            self.sums += torch.stack([step_losses[name] for name in LOSSES]) * len(inputs)
            seen = len(inputs) * self.world
            position = replace(
                position,
                step=position.step + 1,
                images_seen=position.images_seen + seen,
                pairs_in_epoch=position.pairs_in_epoch + seen,
            )
            if time.monotonic() - self._posted >= _SECONDS_BETWEEN_POSTS:
                self._post(position)
            if number % _STEPS_BETWEEN_CHECKS == _STEPS_BETWEEN_CHECKS - 1:
                self._check_finite(position, leg)
        next(batches, None)  # the part's end
        losses = self._check_finite(position, leg)
        seconds = time.monotonic() - started
        images = position.images_seen - self.position.images_seen
        self.position = position
        return {
            "epoch": leg.epoch,
            "step": position.step,
            "images_seen": position.images_seen,
            **losses,
            "lr": self.config.learning_rate(leg.epoch),
            "images_per_second": images / seconds,
            "data_wait": waited / seconds,
        }

    def _check_finite(self, position: Position, leg: Leg) -> dict[str, float]:
        """Mean losses of the epoch so far over all ranks; waits for the device. Raises TrainingStopped on all ranks."""
        sums = self.sums.clone()
        if self.world > 1:
            torch.distributed.all_reduce(sums)
        losses = {name: float(value) / position.pairs_in_epoch for name, value in zip(LOSSES, sums, strict=True)}
        if broken := not_finite(losses):
            latest = self.run.latest()
            kept = f"{self.run.address(latest['checkpoint'])} is intact" if latest else "no checkpoint was saved yet"
            raise TrainingStopped(
                f"{', '.join(broken)} no longer finite in epoch {leg.epoch}, by step {position.step}; {kept}. "
                "Try a lower --lr, --precision fp32, or --norm instance, with --resume never or another --output"
            )
        return losses

    # Starting

    def _data_parallel(self, module: nn.Module) -> nn.Module:
        # Each rank keeps its own running statistics between validations, where they are averaged.
        ids = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)

    def _restore(self) -> Position:
        latest = self.run.latest()
        if latest is None:
            return Position()
        position = Position.from_dict(load_trainer(self.run.address(latest["checkpoint"]), self.pix2pix))
        if self.rank == 0:
            self._say(f"continuing after step {position.step} from {latest['checkpoint']}")
        return position

    def _feed(self) -> Feed:
        validation_batch = max(self.config.batch_size, _SMALLEST_VALIDATION_BATCH)

        def plan() -> Iterator[Part]:
            for leg in legs(self.config, len(self.task.train), self.position):
                yield Part(self.task.train, leg.epoch, self.config.batch_size, skip=leg.skip, stop=leg.stop)
                if self.task.val is not None:
                    yield Part(self.task.val, 0, validation_batch)

        return Feed(
            plan(),
            self.preparation,
            largest_batch=validation_batch,
            rank=self.rank,
            world=self.world,
            convert=self._pin,
        )

    # Steps

    def _pin(self, batch: Pixels) -> Tensor:
        tensor = torch.from_numpy(batch)
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def _to_device(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """(B, values) -> inputs and targets, (B, H, W, C) uint8 or uint16 each, on the device."""
        return self.preparation.sides(batch.to(self.device, non_blocking=True))

    def _seed_noise(self, step: int) -> None:
        """Make dropout a function of (seed, step, rank), so that no generator's state has to be saved."""
        digest = hashlib.blake2b(f"{self.config.seed}/{step}/{self.rank}".encode(), digest_size=8).digest()
        torch.manual_seed(int.from_bytes(digest, "big") >> 1)

    def _say(self, *lines: str) -> None:
        self.task.board.say.remote(*lines)

    def _post(self, position: Position) -> None:
        self._posted = time.monotonic()
        if self.rank == 0:
            note = f"epoch {min(position.epoch + 1, self.config.last_epoch)}/{self.config.last_epoch}"
            self.task.board.progress.remote(position.images_seen, note)

    # After an epoch

    def _record(self, row: MetricsRow, leg: Leg, *, last: bool) -> bool:
        """Judge an epoch and, on rank 0, keep it. Returns whether training ends here; the same on every rank."""
        config = self.config
        before = [finding["finding"] for finding in findings(self.rows, config.to_dict())]
        self.rows.append(row)
        patient = not config.patience or epochs_without_improvement(self.rows, config.best_metric) < config.patience
        save = last or not patient or leg.epoch % config.checkpoint_every == 0
        if leg.finishes_epoch:
            self.position = replace(self.position, epoch=leg.epoch, pairs_in_epoch=0, loss_sums=(), seconds=0.0)
        else:
            self.position = replace(self.position, loss_sums=self._summed_losses(), seconds=row["seconds"])
        if self.rank == 0:
            new = [f for f in findings(self.rows, config.to_dict()) if f["finding"] not in before]
            self._say(_describe(row, config), *(f"health: {f['finding']} {f['numbers']}; {f['advice']}" for f in new))
            self._post(self.position)
            self._keep(row, save)
            if not patient:
                self._say(f"stopping: {config.best_metric} has not improved for {config.patience} epochs")
        return not patient

    def _summed_losses(self) -> tuple[float, ...]:
        sums = self.sums.clone()
        if self.world > 1:
            torch.distributed.all_reduce(sums)
        return tuple(float(value) for value in sums)

    def _keep(self, row: MetricsRow, save: bool) -> None:
        assert self.samples is not None and self.scalars is not None
        sheet, png = self.samples.draw(self.pix2pix)
        self.run.write_sample(row["epoch"], png)
        self.scalars.write(row, sheet)
        self.run.write_rows(self.rows)
        if not save:
            return
        name = self.run.new_checkpoint(row["epoch"], row["step"])
        meta = {
            "epoch": row["epoch"],
            "step": row["step"],
            "images_seen": row["images_seen"],
            "metrics": row,
            "data": self.task.data,
        }
        save_checkpoint(self.run.address(name), self.pix2pix, meta, self.position.to_dict())
        best = self.run.best()
        improved = is_best(row, best["metrics"] if best else None, self.config.best_metric)
        self.run.publish(name, row, is_best=improved, keep=self.config.keep_checkpoints)


def _describe(row: MetricsRow, config: TrainConfig) -> str:
    values = [f"{name} {row[name]:.3f}" for name in (*LOSSES, "val_l1", "val_psnr", "val_ssim") if name in row]
    return f"epoch {row['epoch']}/{config.last_epoch}: {', '.join(values)}, {row['images_per_second']:.1f} img/s"
