"""Runs the workers with Ray Train: resources, the stream of pairs, progress, interruption, and why it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import re
import tempfile
import threading
import time
from concurrent.futures import Future, wait
from typing import Any

import ray
import ray.data
import ray.train
from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import PreemptionError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from p2p.data.cluster import TRAINERS_SHARE, await_gpus, cluster_gpus, smallest_node_cpus
from p2p.data.machine import worker_environment
from p2p.data.order import EpochRange
from p2p.errors import ConfigError, P2PError, TrainingStoppedError
from p2p.training.config import TrainConfig
from p2p.training.pair_cache import choose_cache
from p2p.training.position import Position, remaining_epochs, remaining_images
from p2p.training.reporter import Display, LostWorkers, RunReporter, is_preemption, last_line
from p2p.training.run_folder import RunFolder
from p2p.training.task import TrainTask
from p2p.training.worker import STREAM, train_worker

log = logging.getLogger("p2p")
MAX_RESTARTS = 3
MAX_PREEMPTIONS = 20  # each costs little, but a cluster that takes away all it gives must end some time
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_ANSWER = 5.0
_SECONDS_TO_SAVE = 20.0


def resources(config: TrainConfig) -> ScalingConfig:
    """What the workers ask the cluster for; waits for its GPUs where they are to be used. Needs Ray.

    Raises ConfigError if it cannot have that.
    """
    if config.gpu == "true" and not await_gpus(config.workers):
        gpus = cluster_gpus()
        raise ConfigError("gpu", f"true: {config.workers} workers need one each, the cluster has {gpus} GPUs; use auto")
    use_gpu = config.gpu != "false" and cluster_gpus() >= config.workers
    if config.cache == "device" and not use_gpu:
        raise ConfigError("cache", "device: no GPUs are used; use host, auto or none")
    logical = smallest_node_cpus()
    # Ray counts CPUs to place work, it does not reserve them. Workers that took all would leave readers none, for ever;
    # and any node may be the one that is left to all of them.
    cpus = min(1.0, int(100 * TRAINERS_SHARE * logical / config.workers) / 100)
    if cpus < 0.01:
        raise ConfigError("workers", f"{config.workers}: too many for a node of {logical:g} CPUs")
    resources = {"CPU": cpus} | ({"GPU": 1.0} if use_gpu else {})
    # GPUs of one machine talk fastest to each other; workers on CPUs had better not share a machine's.
    placement = "PACK" if use_gpu else "SPREAD"
    return ScalingConfig(
        num_workers=config.workers, use_gpu=use_gpu, resources_per_worker=resources, placement_strategy=placement
    )


def remaining_stream(task: TrainTask) -> ray.data.Dataset:
    """What is left to train on. Ray Train calls this each time it starts the workers."""
    try:
        position = Position.of_run(RunFolder(task.config.output))
    except P2PError:  # the workers, which read it too, report it
        position = Position()
    nothing = [EpochRange(1, 0, 0)]  # Ray Data needs at least one item
    return task.stream.dataset(list(remaining_epochs(task.config, len(task.stream.train), position)) or nothing)


def launch(task: TrainTask, position: Position, scaling: ScalingConfig) -> None:
    """Train from `position` to the end. Needs Ray. Raises what stopped it."""
    config, pairs = task.config, len(task.stream.train)
    # On this node, so that it survives the loss of others. If it dies, its successor has what is reported from then on.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    reporter = RunReporter.options(  # type: ignore[attr-defined]
        scheduling_strategy=here, max_restarts=-1, max_task_retries=-1
    ).remote(config.output, MAX_PREEMPTIONS)
    log.info(
        "training on %d pairs, epochs %d to %d, %d worker(s)",
        pairs,
        position.epoch + 1,
        config.last_epoch,
        config.workers,
    )
    cache, why = choose_cache(config, task.stream, use_gpu=bool(scaling.use_gpu))
    if why:
        log.info("cache %s: %s", cache, why)
    task = dataclasses.replace(task, stream=dataclasses.replace(task.stream, cache=cache))
    total = position.images_seen + remaining_images(config, pairs, position)
    # RUN alone decides where training continues, so that it can be read without Ray and by other versions of it. What
    # Ray Train itself records is deleted at the end of the job.
    with tempfile.TemporaryDirectory(prefix="p2p-ray-train-") as bookkeeping, Display(reporter, total) as display:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"task": dataclasses.replace(task, reporter=reporter)},
            scaling_config=scaling,
            datasets={STREAM: functools.partial(remaining_stream, task)},
            dataset_config=DataConfig(execution_options=task.stream.execution_options()),
            run_config=RunConfig(
                name=re.sub(r"[^\w.-]+", "-", config.output).strip("-.")[-100:] or "run",
                storage_path=bookkeeping,
                worker_runtime_env={"env_vars": worker_environment()},  # type: ignore[call-arg]
                failure_config=FailureConfig(  # type: ignore[call-arg]
                    max_failures=MAX_RESTARTS,
                    controller_failure_limit=MAX_RESTARTS,
                    max_preemption_failures=MAX_PREEMPTIONS,
                ),
                callbacks=[LostWorkers(reporter, MAX_RESTARTS)],  # type: ignore[list-item]
            ),
        )
        fit = _start(trainer)
        try:
            _show(display, fit)
        except KeyboardInterrupt:
            if not (task.fence and task.fence.lost):  # else nothing can be saved any more
                _stop_and_save(reporter, display, fit)
            raise
    _raise_failure(config, ray.get(reporter.failure.remote()), fit.exception())


def _start(trainer: TorchTrainer) -> Future[None]:
    """Fit in a thread: in the main one Ray Train answers Control-C itself, by ending the workers at once."""
    fit: Future[None] = Future()

    def run() -> None:
        try:
            trainer.fit()
            fit.set_result(None)
        except BaseException as error:
            fit.set_exception(error)

    threading.Thread(target=run, name="p2p-fit", daemon=True).start()
    return fit


def _show(display: Display, fit: Future[None], seconds: float = float("inf")) -> None:
    """Show progress until training ends, or for so many `seconds`."""
    until = time.monotonic() + seconds
    while not wait([fit], timeout=_SECONDS_BETWEEN_LOOKS).done and time.monotonic() < until:
        display.refresh()
    display.refresh()


def _stop_and_save(reporter: Any, display: Display, fit: Future[None]) -> None:
    """Ask the workers to save a checkpoint and end, and wait for it if they have begun."""
    reporter.request_stop.remote()
    with contextlib.suppress(ray.exceptions.RayError):
        display.refresh(timeout=_SECONDS_TO_ANSWER)  # they may have begun since the last look
    if display.has_begun:
        log.info("interrupted: saving a checkpoint, %g s at most; interrupt once more to end at once", _SECONDS_TO_SAVE)
        _show(display, fit, _SECONDS_TO_SAVE)


def _raise_failure(config: TrainConfig, failure: P2PError | None, error: BaseException | None) -> None:
    """Raise why training ended, if that was before its end."""
    if failure is not None:
        raise failure from None
    if error is None:
        return
    intact = f"what {config.output} holds is intact, and the same command continues"
    if isinstance(error, ray.exceptions.RayActorError):
        raise TrainingStoppedError(f"Ray Train's controller was lost: {last_line(error)}; {intact}") from None
    failures = list(getattr(error, "worker_failures", {}).values())
    if isinstance(error, PreemptionError) or any(is_preemption(failure) for failure in failures):
        raise TrainingStoppedError(f"nodes were taken away {MAX_PREEMPTIONS + 1} times; {intact}") from None
    if failures and all(isinstance(failure, ray.exceptions.RayActorError) for failure in failures):
        raise TrainingStoppedError(
            f"workers were lost {MAX_RESTARTS + 1} times, the last time: {failures[0]}; {intact}"
        ) from None
    log.info("%s", intact)
    raise error
