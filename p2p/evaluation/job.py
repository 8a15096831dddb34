"""The evaluation job: check everything, measure the pairs on a pool of processes, write figures and report."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from p2p.data.augment import CropSettings
from p2p.data.description import Description, formats_for, read_description
from p2p.data.local import LocalWorker, session, wants_ray
from p2p.data.machine import available_cpus, worker_environment
from p2p.data.order import Row
from p2p.data.pairs import Pairs, open_pairs, raw_load_size
from p2p.data.tasks import run_as_task
from p2p.errors import CheckpointError, ConfigError, NotFoundError, P2PError, StorageError, UsageError
from p2p.evaluation.config import EvaluateConfig
from p2p.evaluation.evaluator import CHUNK_PAIRS, UNTRAINED, EvaluationTask, Evaluator, TranslatedPair, evaluate_rows
from p2p.evaluation.protocol import data_digest, package_version, signature
from p2p.evaluation.statistics import class_table, metric_intervals
from p2p.model.checkpoint import load_generator
from p2p.model.config import Direction, ModelConfig
from p2p.model.engine import choose_device
from p2p.model.metrics import METRICS, Measured, MetricTotals, default_metrics, find_metric
from p2p.model.networks import Generator
from p2p.model.pixel_metrics import Palette
from p2p.progress import Progress
from p2p.reports.evaluation import Judged, write_evaluation_report
from p2p.storage.filesystems import (
    absolute,
    join,
    require_readable,
    write_json,
    write_table,
)
from p2p.storage.lease import Fence, hold_lease
from p2p.storage.outputs import require_output
from p2p.storage.pixels import RGB

log = logging.getLogger("p2p")

_SMALL_PAIRS = 500  # which one process evaluates in less time than it takes to start Ray, or in little more
_EXAMPLES = 3
_MAX_ACTORS_PER_GPU, _CORES_PER_ACTOR = 8, 2
_SECONDS = 600.0  # for drawing them
_RANKING = ("palette_accuracy", "ssim", "l1")
"""The first of these that was measured sorts the examples."""
Results = list[dict[str, Any]]


def _load(checkpoint: str) -> Generator:
    try:
        return load_generator(checkpoint)
    except (CheckpointError, StorageError) as error:
        raise ConfigError("checkpoint", str(error)) from None


def _open(config: EvaluateConfig, data: str, crop_size: int) -> Pairs:
    try:
        return open_pairs(data, config.split, raw_load_size=raw_load_size(crop_size))
    except NotFoundError as error:
        raise ConfigError("data", str(error)) from None


def _metrics(config: EvaluateConfig, palette: Palette | None) -> tuple[str, ...]:
    if not config.metric_names:
        return default_metrics(has_palette=bool(palette))
    for name in config.metric_names:
        if weights := find_metric(name).weights:
            raise ConfigError(
                "metrics", f"{name}: this version does not compute {name} yet; it needs {weights}_weights. Leave it out"
            )
        if METRICS[name].needs_palette and not palette:
            raise ConfigError(
                "metrics",
                f"{name}: the targets in {config.data} have no palette (32 colours at most, recorded by "
                "jobs/prepare.py in dataset.json)",
            )
    return tuple(name for name in METRICS if name in config.metric_names)


def _require_channels(
    config: EvaluateConfig, model: ModelConfig, description: Description, direction: Direction
) -> None:
    try:
        description.require(direction, model.input_image_channels, model.output_channels)
    except UsageError as error:
        channels = f"from {model.input_image_channels} to {model.output_channels} channels"
        raise ConfigError("checkpoint", f"{config.checkpoint}: translates {channels}, but {error}") from None


def _plan(config: EvaluateConfig) -> tuple[EvaluationTask, str]:
    """Check every option against what is there; UsageError names the first that does not fit.

    Returns what the processes need to know, and the checkpoint's id.
    """
    data, checkpoint, output = absolute(config.data), absolute(config.checkpoint), absolute(config.output)
    require_readable(data, "data")
    generator = _load(checkpoint)
    model = generator.config
    pairs = _open(config, data, model.crop_size)
    if pairs.smallest_side < model.crop_size:
        raise ConfigError(
            "data",
            f"{config.data}: its smallest pair has a side of {pairs.smallest_side} pixels, this generator works on "
            f"{model.crop_size}; prepare the pairs with load_size {model.crop_size} or more",
        )
    direction = config.direction or model.direction
    swap = direction == "BtoA"
    description = read_description(data)
    _require_channels(config, model, description, direction)
    palette = description.sides(direction)[1].palette if model.output_channels == RGB.channels else None
    metrics = _metrics(config, palette)
    require_output(output, "output", "an evaluation")
    task = EvaluationTask(
        checkpoint=checkpoint,
        pairs=pairs,
        crop=CropSettings(model.crop_size, swap=swap, formats=formats_for(model, swap)),
        metrics=metrics,
        palette=palette,
        device="cpu",
        precision=config.precision,
        threads=1,
        compare_untrained=config.compare_untrained,
    )
    return task, generator.checkpoint_id


def _evaluate_locally(
    worker: LocalWorker, config: EvaluateConfig, task: EvaluationTask, rows: Sequence[Row]
) -> Results:
    device = choose_device(config.gpu).type
    log.info("evaluating %d pairs on the %s in one process, without starting Ray: they are few", len(rows), device)
    sized = dataclasses.replace(task, device=device, threads=available_cpus())
    batches = [
        {"group": np.array([group for group, _ in chunk]), "row": np.array([row for _, row in chunk])}
        for chunk in _chunks(rows)
    ]
    return _collect(worker.map(evaluate_rows, (sized,), batches), len(rows))


def _chunks(rows: Sequence[Row]) -> list[Sequence[Row]]:
    return [rows[start : start + CHUNK_PAIRS] for start in range(0, len(rows), CHUNK_PAIRS)]


def _size_pool(gpus: int, chunks: int) -> tuple[int, int, float]:
    """How many processes, the threads of each, and its share of a GPU (0 without)."""
    from p2p.data.cluster import cluster_cpus, cpus_per_gpu, spread_over_gpus

    if gpus:  # each decodes in one thread, so it takes several to keep a GPU busy
        each = min(_MAX_ACTORS_PER_GPU, max(1, cpus_per_gpu() // _CORES_PER_ACTOR))
        actors, per_gpu = spread_over_gpus(min(each * gpus, chunks), gpus)
        return actors, 1, 1 / per_gpu
    actors = min(cluster_cpus(), chunks)
    return actors, max(1, min(cluster_cpus() // actors, available_cpus())), 0


def _evaluate_on_ray(config: EvaluateConfig, task: EvaluationTask, rows: Sequence[Row]) -> Results:
    import ray.data

    from p2p.data.cluster import cluster_gpus, quiet_data_context

    gpus = cluster_gpus() if config.gpu != "false" else 0
    if config.gpu == "true" and not gpus:
        raise ConfigError("gpu", "true: the cluster has no GPU; use auto or false")
    actors, threads, gpu_share = _size_pool(gpus, len(_chunks(rows)))
    sized = dataclasses.replace(task, device="cuda" if gpus else "cpu", threads=threads)
    quiet_data_context()
    blocks = [
        pa.table({"group": [group for group, _ in chunk], "row": [row for _, row in chunk]}) for chunk in _chunks(rows)
    ]
    dataset = ray.data.from_arrow(blocks).map_batches(
        Evaluator,
        fn_constructor_kwargs={"task": sized},
        batch_size=CHUNK_PAIRS,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        num_gpus=gpu_share,
        runtime_env={"env_vars": worker_environment()},
    )
    return _collect(dataset.iter_rows(), len(rows))


def _collect(results: Iterable[dict[str, Any]], total: int) -> Results:
    """One row per pair, in stored order."""
    found: dict[Row, dict[str, Any]] = {}
    with Progress("evaluate", total=total, unit="pairs") as progress:
        for row in results:
            found[row["group"], row["row"]] = row
            progress.advance(1)
    return [found[place] for place in sorted(found)]


def _totals(task: EvaluationTask, results: Results, prefix: str) -> dict[str, float]:
    totals = MetricTotals()
    for row in results:
        counts = row.get(prefix + "confusion")
        side = len(task.palette or ())
        confusion = None if counts is None else torch.tensor(counts).reshape(1, side, side)
        values = {name: torch.tensor([row[prefix + name]], dtype=torch.float64) for name in task.metrics}
        totals.add(Measured(values, confusion))
    return {prefix + name: value for name, value in totals.result().items()}


def _examples(task: EvaluationTask, results: Results) -> dict[str, list[Judged]]:
    """Draw the best, median and worst pairs again, since nothing kept their pixels; none where that fails, which is no
    reason to.
    """
    ranking = next((name for name in _RANKING if name in task.metrics), task.metrics[0])
    ordered = sorted(results, key=lambda row: METRICS[ranking].loss(row[ranking]))
    count = min(_EXAMPLES, max(1, len(ordered) // 3))
    middle = (len(ordered) - count) // 2
    chosen = {"best": ordered[:count], "median": ordered[middle : middle + count], "worst": ordered[-count:]}
    places = [(row["group"], row["row"]) for rows in chosen.values() for row in rows]
    try:
        drawn = iter(run_as_task(_draw, dataclasses.replace(task, compare_untrained=False), places, seconds=_SECONDS))
    except P2PError as error:
        log.warning("the report has no examples: %s", error)
        return {}
    return {
        name: [
            Judged(pair.pair_id, pair.input, pair.output, pair.target, {m: float(row[m]) for m in task.metrics})
            for row, pair in zip(rows, itertools.islice(drawn, len(rows)), strict=True)
        ]
        for name, rows in chosen.items()
    }


def _draw(task: EvaluationTask, rows: Sequence[Row]) -> list[TranslatedPair]:
    return Evaluator(task).draw(rows)


def _write_table(output: str, columns: Sequence[str], results: Results) -> None:
    table: dict[str, Any] = {"pair_id": [str(row["pair_id"]) for row in results]}
    table |= {name: [float(row[name]) for row in results] for name in columns}
    if "confusion" in results[0]:
        counts = [[int(count) for count in row["confusion"]] for row in results]
        table["confusion"] = pa.array(counts, pa.list_(pa.int64()))
    table["target_sha256"] = [str(row["target_sha256"]) for row in results]
    write_table(join(output, "per_image.parquet"), pa.table(table))


def _protocol(config: EvaluateConfig, task: EvaluationTask, checkpoint_id: str, results: Results) -> dict[str, Any]:
    """All that the figures depend on, by name."""
    return {
        "version": package_version(),
        "n": len(results),
        "data": config.data,
        "data_digest": data_digest(
            [str(row["pair_id"]) for row in results], [str(row["target_sha256"]) for row in results]
        ),
        "split": config.split,
        "direction": "BtoA" if task.crop.swap else "AtoB",
        "region": "crop",
        "size": task.crop.crop_size,
        "norm_mode": "running",
        "dropout": False,
        "seed": 0,
        "precision": "+".join(sorted({str(row["precision"]) for row in results})),
        "outputs": "memory",
        "palette": [list(colour) for colour in task.palette] if task.palette else None,
        "inception": None,
        "lpips": None,
        "checkpoint_id": checkpoint_id,
        "checkpoint": config.checkpoint,
    }


def _evaluation(
    task: EvaluationTask, protocol: dict[str, Any], metrics: dict[str, Any], results: Results
) -> dict[str, Any]:
    """The content of evaluation.json."""
    confusion = _confusions(task, results)
    per_image = {name: [float(row[name]) for row in results] for name in task.metrics}
    untrained = {name.removeprefix(UNTRAINED): metrics[name] for name in metrics if name.startswith(UNTRAINED)}
    return {
        "signature": signature(protocol),
        "protocol": protocol,
        "metrics": metrics,
        "intervals": metric_intervals(per_image, confusion),
        "classes": [] if confusion is None else class_table(task.palette or (), confusion),
        "baselines": {"untrained": untrained} if untrained else {},
    }


def _confusions(task: EvaluationTask, results: Results) -> np.ndarray[Any, Any] | None:
    """(n, K, K) pixel counts, where a palette metric was measured."""
    if "confusion" not in results[0]:
        return None
    side = len(task.palette or ())
    return np.array([row["confusion"] for row in results], np.int64).reshape(-1, side, side)


def _details(config: EvaluateConfig, task: EvaluationTask, checkpoint_id: str) -> Mapping[str, Any]:
    return {
        "checkpoint": config.checkpoint,
        "checkpoint id": checkpoint_id,
        "data": config.data,
        "split": config.split,
        "direction": "BtoA" if task.crop.swap else "AtoB",
        "crop": f"the middle {task.crop.crop_size}x{task.crop.crop_size} pixels of each pair",
    }


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Do the whole job; returns the summary."""
    started = time.monotonic()
    task, checkpoint_id = _plan(config)
    output = absolute(config.output)
    with hold_lease(output, "output", "evaluate") as fence:
        return _measure_all(config, task, checkpoint_id, fence, started)


def _measure_all(
    config: EvaluateConfig, task: EvaluationTask, checkpoint_id: str, fence: Fence, started: float
) -> dict[str, Any]:
    rows = task.pairs.rows(config.limit or None)
    with session(small=not wants_ray() and len(rows) <= _SMALL_PAIRS) as worker:
        results = _evaluate_locally(worker, config, task, rows) if worker else _evaluate_on_ray(config, task, rows)
        examples = _examples(task, results)
    fence.check()
    output = fence.output
    prefixes = ["", UNTRAINED] if config.compare_untrained else [""]
    metrics: dict[str, Any] = {"n": len(results)}
    for prefix in prefixes:
        metrics |= _totals(task, results, prefix)
    protocol = _protocol(config, task, checkpoint_id, results)
    write_json(join(output, "metrics.json"), metrics)
    write_json(join(output, "evaluation.json"), _evaluation(task, protocol, metrics, results))
    _write_table(output, [prefix + name for prefix in prefixes for name in task.metrics], results)
    per_image = {name: [float(row[name]) for row in results] for name in task.metrics}
    details = dict(_details(config, task, checkpoint_id))
    report = write_evaluation_report(output, metrics, examples, per_image, details)
    seconds = round(time.monotonic() - started, 3)
    summary = {"metrics": metrics, "seconds": seconds, "checkpoint_id": checkpoint_id, "report": report}
    write_json(join(output, "summary.json"), summary)
    return summary
