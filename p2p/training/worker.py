"""What each of Ray Train's workers does: restore, feed the loop, validate, judge; the first one also records."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
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
from p2p.errors import P2PError, TrainingStopped
from p2p.model.allocator import keep_freed_memory
from p2p.model.checkpoint import load_trainer
from p2p.model.engine import choose_precision
from p2p.model.pix2pix import Pix2Pix
from p2p.model.sync_norm import data_parallel, synchronise_batch_norm
from p2p.storage.images import Pixels
from p2p.training.config import TrainConfig
from p2p.training.health import describe_finding, findings
from p2p.training.judgement import average_statistics, is_out_of_patience, validate
from p2p.training.loop import LOSSES, Loop
from p2p.training.position import Leg, Position, legs
from p2p.training.recorder import Recorder
from p2p.training.run_folder import MetricsRow, RunFolder

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
        if not error.may_pass:
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
        self.loop = Loop(self.config, self.pix2pix, self._restore(), rank=self.rank, world=self.world)
        self.rows = self.run.rows(up_to_epoch=self.position.epoch)
        self.recorder: Recorder | None = None
        self._posted = time.monotonic()

    @property
    def position(self) -> Position:
        return self.loop.position

    def train(self) -> None:
        """Go through every leg that is left: update, validate, judge, save."""
        remaining = list(legs(self.config, len(self.task.train), self.position))
        if self._is_out_of_patience():
            return  # lost between its last checkpoint and saying so
        with ExitStack() as stack:
            if self.rank == 0:
                self.recorder = stack.enter_context(self._recorder())
            feed = stack.enter_context(self._feed())
            feed.wait()
            self._post()
            self.loop.start_clock()
            for leg in remaining:
                end = self.position.step + leg.steps(self.config.batch_size)
                after_step = functools.partial(self._after_step, leg.epoch, end)
                row = self.loop.run(leg, map(self._to_device, feed.batches()), after_step)
                average_statistics(self.pix2pix, self.world)
                if self.task.val is not None:
                    row |= validate(
                        self.pix2pix, map(self._to_device, feed.batches()), self.task.data["target_palette"], self.world
                    )
                stop = self._record(row, leg, last=leg is remaining[-1])
                if self.world > 1:
                    torch.distributed.barrier()  # nobody starts the next epoch before this one is saved
                if stop:
                    return

    # Starting

    def _data_parallel(self, module: nn.Module) -> nn.Module:
        if self.config.sync_batch_norm:
            synchronise_batch_norm(module)
        # Each rank keeps its own running statistics between validations, where they are averaged.
        ids = [self.device] if self.device.type == "cuda" else None
        return data_parallel(module, ids)

    def _restore(self) -> Position:
        self.run.require_present()
        latest = self.run.latest()
        if latest is None:
            return Position()
        position = Position.from_dict(load_trainer(self.run.address(latest["checkpoint"]), self.pix2pix))
        if self.rank == 0:
            self._say(f"continuing after step {position.step} from {latest['checkpoint']}")
        return position

    def _recorder(self) -> Recorder:
        task = self.task
        return Recorder(
            self.config,
            self.pix2pix,
            validated=task.val is not None,
            drawn=task.val or task.train,
            preparation=self.preparation,
            data=task.data,
            last_step=self.position.step,
        )

    def _feed(self) -> Feed:
        validation_batch = max(self.config.batch_size, _SMALLEST_VALIDATION_BATCH)
        position = self.position

        def plan() -> Iterator[Part]:
            for leg in legs(self.config, len(self.task.train), position):
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

    def _pin(self, batch: Pixels) -> Tensor:
        tensor = torch.from_numpy(batch)
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def _to_device(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """(B, values) -> inputs and targets, (B, H, W, C) uint8 or uint16 each, on the device."""
        return self.preparation.sides(batch.to(self.device, non_blocking=True))

    # Telling

    def _say(self, *lines: str) -> None:
        self.task.board.say.remote(*lines)

    def _post(self) -> None:
        self._posted = time.monotonic()
        if self.rank == 0:
            note = f"epoch {min(self.position.epoch + 1, self.config.last_epoch)}/{self.config.last_epoch}"
            self.task.board.progress.remote(self.position.images_seen, note)

    # Inside an epoch

    def _after_step(self, epoch: int, last_step: int) -> None:
        """Keep what is due at this step, unless the epoch's end, which keeps more, is here."""
        if time.monotonic() - self._posted >= _SECONDS_BETWEEN_POSTS:
            self._post()
        step = self.position.step
        save, draw = _is_due(step, self.config.checkpoint_every_steps), _is_due(step, self.config.samples_every_steps)
        if step == last_step or not (save or draw):
            return
        average_statistics(self.pix2pix, self.world)
        losses = self.loop.check_losses(epoch)
        position = self.loop.inside_epoch()
        if save:
            self.loop.check_weights(epoch)
        if self.recorder is None:
            return
        if draw:
            self.recorder.draw(epoch, step, inside_epoch=True)
        if save:
            self.recorder.save(self.loop.row(epoch, losses), position, inside_epoch=True)

    # After an epoch

    def _record(self, row: MetricsRow, leg: Leg, *, last: bool) -> bool:
        """Judge an epoch and, on rank 0, keep it. Returns whether training ends here; the same on every rank."""
        config = self.config
        row["seconds"] = self.loop.epoch_seconds
        before = [finding["finding"] for finding in findings(self.rows, config.to_dict())]
        self.rows.append(row)
        stop = self._is_out_of_patience()
        draw = _is_due(leg.epoch, config.samples_every) or _is_due(row["step"], config.samples_every_steps)
        save = _is_due(leg.epoch, config.checkpoint_every) or _is_due(row["step"], config.checkpoint_every_steps)
        if save or stop or last:
            self.loop.check_weights(leg.epoch)
        if leg.finishes_epoch:
            self.loop.finish_epoch(leg.epoch)
        else:
            self.loop.position = self.loop.inside_epoch()
        self.loop.start_clock()
        if self.recorder is not None:
            self._keep(self.recorder, row, before, draw=draw or stop or last, save=save or stop or last)
        if stop and self.rank == 0:
            self._say(f"stopping: {config.best_metric} has not improved for {config.patience} epochs")
        return stop

    def _is_out_of_patience(self) -> bool:
        return is_out_of_patience(self.rows, self.config.patience, self.config.best_metric)

    def _keep(self, recorder: Recorder, row: MetricsRow, known: list[str], *, draw: bool, save: bool) -> None:
        """Say how the epoch went, with what is new about the run's health, and keep it. Rank 0 only."""
        if draw:
            varieties = recorder.draw(row["epoch"], row["step"])
            if self.task.val is None:  # else validation has measured them on more than a few
                row.update(varieties)
        health = findings(self.rows, self.config.to_dict())
        new = [finding for finding in health if finding["finding"] not in known]
        self._say(_describe(row, self.config), *(describe_finding(finding) for finding in new))
        self._post()
        self.task.board.measured.remote(row)
        recorder.write(self.rows)
        if save:
            recorder.save(row, self.position)
        recorder.refresh_report(health)


def _is_due(count: int, every: int) -> bool:
    return bool(every) and count % every == 0


def _describe(row: MetricsRow, config: TrainConfig) -> str:
    names = dict.fromkeys((*LOSSES, "val_l1", "val_psnr", "val_ssim", config.best_metric))
    values = [f"{name} {row[name]:.3f}" for name in names if name in row]
    return f"epoch {row['epoch']}/{config.last_epoch}: {', '.join(values)}, {row['images_per_second']:.1f} img/s"
