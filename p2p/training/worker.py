"""The training loop, which Ray Train runs on each worker."""

from __future__ import annotations

import contextlib
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from torch import nn

from p2p.data.machine import available_cpus
from p2p.data.stream import Cache
from p2p.errors import P2PError, TrainingStoppedError, root_cause
from p2p.model.checkpoint import load_trainer
from p2p.model.cuda import require_cuda
from p2p.model.cuda_graphs import is_out_of_memory
from p2p.model.distributed import data_parallel, synchronise_batch_norm
from p2p.model.engine import choose_precision
from p2p.model.pix2pix import Pix2Pix
from p2p.training.feed import Feed
from p2p.training.keeper import RunKeeper
from p2p.training.position import Position, remaining_epochs
from p2p.training.run_folder import RunFolder
from p2p.training.stop import StopRequestedError, StopSignal
from p2p.training.task import TrainTask
from p2p.training.trainer import Trainer
from p2p.training.validation import average_statistics, validate

STREAM = "train"
"""The data set's name, for Ray Train."""
_MIN_VALIDATION_BATCH = 8


def train_worker(settings: dict[str, Any]) -> None:
    """Ray Train calls this on each worker: `settings["task"]` is a `TrainTask`."""
    task: TrainTask = settings["task"]
    if ray.get(task.reporter.failure.remote()) is not None:
        return  # restarted after an error that a restart does not help against
    try:
        _train(task)
    except Exception as error:
        cause = root_cause(error)  # an error of a reading task comes wrapped by Ray
        if is_out_of_memory(cause):
            cause = TrainingStoppedError(_memory_advice(cause, task.stream.cache))
        if isinstance(cause, P2PError) and not cause.retryable:
            ray.get(task.reporter.fail.remote(cause))
        raise cause from None


def _memory_advice(error: BaseException, cache: Cache) -> str:
    text = str(error)
    # Before that torch names the line of its source that noticed.
    reason = (text.partition("DefaultCPUAllocator: ")[2] or text).split(". ")[0] or "out of memory"
    less = {"none": "", "host": ", or set cache none", "device": ", or set cache host or none"}[cache]
    return f"{reason}; lower batch_size or crop_size{less}"


def _train(task: TrainTask) -> None:
    """Restore; then for each epoch: update on each batch, validate, keep, report."""
    config, context = task.config, ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    pix2pix = _build_networks(task, context)
    trainer = Trainer(config, pix2pix, _restore(task, pix2pix, rank), rank=rank, world=world)
    epochs = list(remaining_epochs(config, len(task.stream.train), trainer.position))
    feed = Feed(ray.train.get_dataset_shard(STREAM), task.stream, rank, epochs, pix2pix.device)
    with RunKeeper(task, trainer) as keeper, contextlib.closing(feed):
        if keeper.is_out_of_patience():
            return  # lost between its last checkpoint and the end
        stop = StopSignal(task.reporter, trainer)
        feed.wait()
        keeper.begin()
        is_fallback_logged = False
        try:
            for part in epochs:
                trainer.start_epoch(part.epoch)
                stop.start_epoch()
                last_step = trainer.position.step + task.stream.count_steps(part)
                for inputs, targets in trainer.waiting_for(feed.training(part)):
                    trainer.update(inputs, targets)
                    if trainer.position.step < last_step:
                        keeper.after_step()
                    stop.check(keeper)
                average_statistics(pix2pix)
                row = trainer.epoch_metrics()
                if trainer.fallback and not is_fallback_logged:  # an epoch that is continued may be too short for one
                    task.reporter.log.remote(f"the step is {trainer.fallback}")
                    is_fallback_logged = True
                if task.stream.val is not None:
                    held_out = stop.checked(feed.validation(), keeper)
                    batches = feed.cut(held_out, max(config.batch_size, _MIN_VALIDATION_BATCH))
                    row |= validate(pix2pix, batches, task.data.target_palette)
                ends = keeper.after_epoch(row, part, is_last=part is epochs[-1])
                ray.train.report(row)  # a barrier: no rank starts the next epoch before this one is saved
                if ends:
                    return
        except StopRequestedError:
            keeper.save_inside_epoch()


def _build_networks(task: TrainTask, context: Any) -> Pix2Pix:
    if ray.get_runtime_context().get_accelerator_ids().get("GPU"):
        require_cuda()  # else Ray Train would let it compute on the CPU
    config, bits, device = task.config, task.data.bits, ray.train.torch.get_device()
    # Ray sets OMP_NUM_THREADS to the CPUs a worker asks for, which here is only what placement needs.
    torch.set_num_threads(max(1, available_cpus() // context.get_local_world_size()))
    torch.backends.cudnn.benchmark = True

    def wrap(module: nn.Module) -> nn.Module:
        if config.sync_batch_norm:
            synchronise_batch_norm(module)
        # Each rank keeps its own running statistics between validations, where they are averaged.
        return data_parallel(module, [device] if device.type == "cuda" else None)

    model = config.model(
        choose_precision(config.precision, device, bits), bits, task.data.input_palette, task.data.bands
    )
    torch.backends.cudnn.allow_tf32 = model.precision != "fp32"  # else float32 products are rounded to 10 bits
    return Pix2Pix(model, seed=config.seed, device=device, wrap=wrap if context.get_world_size() > 1 else None)


def _restore(task: TrainTask, pix2pix: Pix2Pix, rank: int) -> Position:
    """Load the run's latest checkpoint; returns where it stands."""
    run = RunFolder(task.config.output)
    run.require_present()
    latest = run.latest()
    if latest is None:
        return Position()
    position = Position.from_dict(load_trainer(run.address(latest["checkpoint"]), pix2pix))
    if rank == 0:
        task.reporter.log.remote(f"continuing after step {position.step} from {latest['checkpoint']}")
    return position
