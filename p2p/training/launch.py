"""Ray Train around the training loop: resources, restarts, progress, and why it ended."""

from __future__ import annotations

import itertools
import logging
import tempfile
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from p2p.data.pairs import Pairs
from p2p.data.session import TRAINERS_SHARE, available_gpus, is_private, smallest_node_cpus
from p2p.errors import P2PError, TrainingStopped, UsageError
from p2p.training.board import Board, LostWorkers, ProgressThread, last_words
from p2p.training.config import TrainConfig
from p2p.training.position import Position, remaining_images
from p2p.training.worker import Task, train_worker

log = logging.getLogger("p2p")
_MOST_RESTARTS = 3
_ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}
"""For glibc as a worker starts. Ray Train has it work in a thread, whose own arena would return every large buffer to
the kernel, whatever `keep_freed_memory` says. The tasks that read for a worker have it from there too.
"""


class _Trainer(TorchTrainer):
    """Ray's, without two of its habits; should Ray rename what is overridden here, they come back."""

    controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave Control-C to the program: Ray's own answer to it may end the process with status 0 and says nothing."""
        self.controller = controller

    def _create_default_callbacks(self) -> list[Any]:
        """Start no process that is of no use here: each wakes a hundred times a second beside the network."""
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        unneeded = _unneeded(self.scaling_config.num_workers)
        return [callback for callback in callbacks if type(callback).__name__ not in unneeded]


def _unneeded(workers: Any) -> list[str]:
    """Of Ray Train's callbacks: that for data sets which Ray Train hands out, here each worker reads its own; on a
    private Ray, which ends with its driver, the one that cleans up after that; and for a worker by itself the one that
    lets it talk to the others.
    """
    names = ["DatasetsCallback"]
    if is_private():
        names.append("PlacementGroupCleanerCallback")
    if workers == 1:
        names.append("BackendSetupCallback")
    return names


def resources(config: TrainConfig) -> ScalingConfig:
    """What the workers ask the cluster for. Needs Ray. Raises UsageError if it cannot have that."""
    gpus = available_gpus()
    if config.gpu == "true" and gpus < config.workers:
        raise UsageError(f"--gpu true --workers {config.workers}: the cluster has {gpus} GPUs; pass --gpu auto")
    use_gpu = config.gpu != "false" and gpus >= config.workers
    logical = smallest_node_cpus()
    # Ray counts CPUs to place work, it does not reserve them. Workers that took all would leave readers none, for ever;
    # and any node may be the one that is left to all of them.
    cpus = min(1.0, int(100 * TRAINERS_SHARE * logical / config.workers) / 100)
    if cpus < 0.01:
        raise UsageError(f"--workers {config.workers}: too many for a node of {logical:g} CPUs")
    resources = {"CPU": cpus} | ({"GPU": 1.0} if use_gpu else {})
    # GPUs of one machine talk fastest to each other; workers on CPUs had better not share a machine's.
    placement = "PACK" if use_gpu else "SPREAD"
    return ScalingConfig(
        num_workers=config.workers, use_gpu=use_gpu, resources_per_worker=resources, placement_strategy=placement
    )


def launch(
    config: TrainConfig,
    train: Pairs,
    val: Pairs | None,
    data: dict[str, Any],
    *,
    position: Position,
    scaling: ScalingConfig,
) -> None:
    """Train from `position` to the end. Needs Ray. Raises what stopped it."""
    # Beside this process, so that no other node's end takes it away. Should it die by itself, a new one has what is
    # told from then on.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    again = {"max_restarts": -1, "max_task_retries": _MOST_RESTARTS}
    board = Board.options(scheduling_strategy=here, **again).remote(config.output)  # type: ignore[attr-defined]
    left = remaining_images(config, len(train), position)
    _fit(config, Task(config, train, val, data, board), position, left, scaling)


def _fit(config: TrainConfig, task: Task, position: Position, left: int, scaling: ScalingConfig) -> None:
    progress = ProgressThread(task.board, total_images=position.images_seen + left)
    log.info(
        "training on %d pairs, epochs %d to %d, %d worker(s)",
        len(task.train),
        position.epoch + 1,
        config.last_epoch,
        config.workers,
    )
    with progress:
        for count in itertools.count(1):
            lost = _fit_once(config, task, scaling)
            if lost is None:
                return
            _tell_of_lost_controller(config, count, lost)
            _free_places()


def _fit_once(config: TrainConfig, task: Task, scaling: ScalingConfig) -> Exception | None:
    """Train from the run's latest checkpoint to its end, or until Ray Train's controller dies: of what is returned."""
    lost: Exception | None = None
    # Ray's own bookkeeping stays out of the run, which says by itself where it stands.
    with tempfile.TemporaryDirectory(prefix="p2p-ray-train-") as bookkeeping:
        trainer = _Trainer(
            train_worker,
            train_loop_config={"task": task},
            scaling_config=scaling,
            run_config=RunConfig(
                name="train",
                storage_path=bookkeeping,
                worker_runtime_env={"env_vars": _ONE_ARENA},  # type: ignore[call-arg]
                failure_config=FailureConfig(max_failures=_MOST_RESTARTS),
                callbacks=[LostWorkers(task.board, _MOST_RESTARTS)],  # type: ignore[list-item]
            ),
        )
        try:
            trainer.fit()
        except KeyboardInterrupt:  # else the workers would go on for as long as this process lives
            if trainer.controller is not None:
                ray.kill(trainer.controller)
            raise
        except ray.exceptions.RayActorError as error:
            if trainer.controller is None or error.actor_init_failed:
                raise
            ray.kill(trainer.controller)  # it may only be out of reach, and two of them would write one run
            lost = error
        except ray.train.TrainingFailedError as error:
            _raise_failure(task)
            _explain(config, error)
            log.info("what %s holds is intact, and the same command continues", config.output)
            raise
    _raise_failure(task)
    return lost


def _raise_failure(task: Task) -> None:
    """Raise what a worker has told the board that no restart can mend."""
    failure: P2PError | None = ray.get(task.board.failure.remote())
    if failure is not None:
        raise failure from None


def _tell_of_lost_controller(config: TrainConfig, count: int, error: Exception) -> None:
    """Raises TrainingStopped if that was once too often."""
    if count > _MOST_RESTARTS:
        raise TrainingStopped(
            f"Ray Train's controller was lost {count} times, the last time: {last_words(error)}; what {config.output} "
            "holds is intact, and the same command continues"
        ) from None
    log.info(
        "Ray Train's controller was lost: %s; starting the workers again (%d of %d)",
        last_words(error),
        count,
        _MOST_RESTARTS,
    )


def _free_places() -> None:
    """Give back what the workers of a lost controller had asked Ray for.

    Ray Train itself does so on a cluster only, for workers that were up, and where Ray's dashboard runs.
    """
    job = ray.get_runtime_context().get_job_id()
    for group in placement_group_table():
        if group.endswith(job):  # an identifier in hexadecimal, whose last bytes are those of its job
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group)))


def _explain(config: TrainConfig, error: Exception) -> None:
    """Raise TrainingStopped if workers died too often without saying why."""
    failures = getattr(error, "worker_failures", {}).values()
    if failures and all(isinstance(failure, ray.exceptions.RayActorError) for failure in failures):
        raise TrainingStopped(
            f"workers were lost {_MOST_RESTARTS + 1} times, the last time: {next(iter(failures))}; what "
            f"{config.output} holds is intact, and the same command continues"
        ) from None
