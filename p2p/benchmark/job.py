"""The benchmark job: each part measured alone, then the whole job, then their ratio, in one run on one machine."""

from __future__ import annotations

import functools
import io
import itertools
import json
import logging
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from p2p.benchmark.config import BenchmarkConfig
from p2p.benchmark.images import Codecs, codec_seconds, feed_rate
from p2p.benchmark.networks import (
    SIZE,
    alone,
    bare_update,
    engine_rate,
    fast_path_difference,
    plain_forward,
    plain_update,
)
from p2p.data.machine import available_cpus
from p2p.errors import ConfigError
from p2p.model.config import ModelConfig, Precision
from p2p.model.engine import choose_precision
from p2p.preparation import PrepareConfig, prepare
from p2p.storage.filesystems import absolute, join, list_files, read_bytes, write_json
from p2p.storage.images import SUFFIXES
from p2p.storage.outputs import require_output
from p2p.synthetic.pairs import city_pair
from p2p.training import TrainConfig, train
from p2p.translation import TranslateConfig, translate

log = logging.getLogger("p2p")

_LOAD_SIZE = 286
_EPOCHS = 2
_ROUNDS = 3
_PAIRS = "pairs"
_MADE_HEIGHT, _MADE_WIDTH = 600, 1200
_JPEG_QUALITY = 90
Row = dict[str, Any]
Result = TypeVar("Result")


def _device(wanted: str) -> str:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device", "cuda: no CUDA GPU is visible here; use auto or cpu")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def _row(what: str, value: float, unit: str, against: Row | None = None, ratio: float | None = None) -> Row:
    """A line of the table; `against` is the row that it is compared with, `ratio` how, where not as it stands there."""
    log.info("%s: %.4g %s", what, value, unit)
    row = {"what": what, "value": value, "unit": unit}
    if against is None:
        return row
    return {**row, "ratio": value / against["value"] if ratio is None else ratio, "against": against["what"]}


def _alternate(limit: Callable[[], float], job: Callable[[], Result]) -> tuple[list[float], list[Result]]:
    """Measure `limit`, then a few times `job` and `limit` again: no machine is as quick now as a minute ago."""
    limits, jobs = [limit()], []
    for _ in range(_ROUNDS):
        jobs.append(job())
        limits.append(limit())
    log.info("the limit, before, between and after the jobs: %s", ", ".join(f"{value:.4g}" for value in limits))
    return limits, jobs


def _ratio(jobs: Sequence[float], limits: Sequence[float]) -> float:
    """Median of the rounds' ratios: each job against the mean of what was measured just before and just after it."""
    return statistics.median(
        2 * job / sum(around) for job, around in zip(jobs, itertools.pairwise(limits), strict=True)
    )


def _images(config: BenchmarkConfig, folder: Path) -> Path:
    """A folder with the images to measure on: copies of --source's first, or made ones, as JPEG 1200x600."""
    target = folder / "images"
    target.mkdir()
    if config.source is not None:
        found = list(itertools.islice(list_files(absolute(config.source), SUFFIXES), config.images))
        if len(found) < config.images:
            raise ConfigError("source", f"{config.source}: has {len(found)} images, {config.images} are asked for")
        for index, info in enumerate(found):
            (target / f"{index:05d}-{Path(info.path).name}").write_bytes(read_bytes(info.uri))
        return target
    distinct = min(16, config.images)
    for index in range(distinct):
        buffer = io.BytesIO()
        combined = np.hstack(city_pair(0, index, _MADE_HEIGHT, _MADE_WIDTH // 2))
        Image.fromarray(combined).save(buffer, "JPEG", quality=_JPEG_QUALITY)
        for copy in range(index, config.images, distinct):
            (target / f"{copy:05d}.jpg").write_bytes(buffer.getvalue())
    return target


def _train_rows(config: BenchmarkConfig, device: str, precision: Precision, folder: Path) -> list[Row]:
    """Bare updates and the job that makes them."""
    batch = config.batch_size or (64 if device == "cuda" else 8)
    seconds = config.seconds
    rows = []
    for size in sorted({1, batch}):
        plains, bares = _alternate(
            functools.partial(alone, plain_update, size, seconds / 2, device),
            functools.partial(alone, bare_update, size, seconds / 2, device, precision),
        )
        plain = _row(f"update, textbook float32, batch {size}", statistics.median(plains), "pairs/s")
        rate = statistics.median(bares)
        bare = _row(f"bare update, {precision}, batch {size}", rate, "pairs/s", plain, _ratio(bares, plains))
        rows += [plain, bare]
    data = _repeated(folder, max(2, round(seconds * rate / batch)) * batch)
    runs = itertools.count()
    limits, jobs = _alternate(
        lambda: alone(bare_update, batch, seconds / 2, device, precision),
        lambda: _train_job(batch, data, device, precision, folder / f"run-{next(runs)}"),
    )
    what = f"training job, {precision}, batch {batch}"
    rates, inside = [job.rate for job in jobs], [job.inside for job in jobs]
    middle = statistics.median
    return [
        *rows,
        _row(f"{what}, epochs of {jobs[0].pairs} pairs", middle(rates), "pairs/s", bare, _ratio(rates, limits)),
        _row(f"{what}, inside an epoch", middle(inside), "pairs/s", bare, _ratio(inside, limits)),
        _row(f"{what}, between two epochs", middle(job.between for job in jobs), "s"),
        _row(f"{what}, waiting for data", middle(100 * job.waiting for job in jobs), "% of an epoch"),
        _row(f"{what}, before and after the epochs", middle(job.around for job in jobs), "s"),
    ]


@dataclass(frozen=True)
class _TrainJob:
    """What `jobs/train.py` did in one epoch, not its first."""

    pairs: int
    """In the epoch."""
    rate: float
    """Pairs per second of the epoch, with everything that came between the epoch before and itself."""
    inside: float
    """Pairs per second of its steps."""
    between: float
    """Seconds for sample sheet, numbers, report and the like."""
    waiting: float
    """Share of the epoch in which no batch was ready."""
    around: float
    """Seconds of the job outside its epochs: starting Ray and the network, the last checkpoint, stopping."""


def _repeated(folder: Path, wanted: int) -> Path:
    """A data set of at least `wanted` pairs: the prepared ones, repeated."""
    pairs, data = folder / _PAIRS, folder / "repeated"
    parts = sorted(pairs.glob("train/*.parquet"))
    (data / "train").mkdir(parents=True)
    for copy in range(-(-wanted // _pairs_in(pairs))):
        for number, part in enumerate(parts):
            (data / "train" / f"part-{copy * len(parts) + number:05d}.parquet").hardlink_to(part)
    return data


def _train_job(batch: int, data: Path, device: str, precision: Precision, run: Path) -> _TrainJob:
    """Run `jobs/train.py` for two epochs, as it comes: no validation, one checkpoint.

    The first epoch is the warm-up, the second is measured.
    """
    started = time.monotonic()
    train(
        TrainConfig(
            data=str(data),
            output=str(run),
            batch_size=batch,
            epochs=_EPOCHS,
            epochs_decay=0,
            checkpoint_every=_EPOCHS,
            gpu="true" if device == "cuda" else "false",
            precision=precision,
        )
    )
    seconds = time.monotonic() - started
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last, images = epochs[-1], epochs[-1]["images_seen"] - epochs[-2]["images_seen"]
    return _TrainJob(
        pairs=images,
        rate=images / last["seconds"],
        inside=last["images_per_second"],
        between=last["seconds"] - images / last["images_per_second"],
        waiting=last["data_wait"],
        around=seconds - sum(epoch["seconds"] for epoch in epochs),
    )


def _pairs_in(pairs: Path) -> int:
    summary = json.loads((pairs / "summary.json").read_text())
    return int(summary["pairs"]["train"])


def _translate_rows(
    config: BenchmarkConfig, device: str, precision: Precision, images: Path, folder: Path
) -> list[Row]:
    cores, seconds = available_cpus(), config.seconds
    batch = 64 if device == "cuda" else 8
    plain = _row("network, textbook float32, batch 1", alone(plain_forward, 1, seconds, device), "images/s")
    rows = [plain]
    for size in (1, batch):
        rate = alone(engine_rate, size, seconds, device, precision, 0)
        bare = _row(f"bare network, {precision}, batch {size}", rate, "images/s", plain)
        rows.append(bare)

    def parts(seconds: float = seconds / 2) -> float:
        network = alone(engine_rate, batch, seconds, device, precision, 0)
        codecs: Codecs = alone(codec_seconds, str(images), seconds)
        return 1 / (1 / network + (codecs.decode + codecs.resize + codecs.encode) / cores)

    limits, jobs = _alternate(parts, lambda: _translate_job(device, precision, images, folder))
    codecs: Codecs = alone(codec_seconds, str(images), seconds)
    for name, value in (("decode", codecs.decode), ("resize", codecs.resize), ("encode PNG", codecs.encode)):
        rows.append(_row(f"{name}, one core", 1000 * value, "ms/image"))
    limit = _row(f"sum of the parts on {cores} cores", statistics.median(limits), "images/s", bare)
    rows.append(limit)
    whole = statistics.median(jobs)
    rows.append(_row("translation job", whole, "images/s", plain))
    rows.append(_row("translation job", whole, "images/s", bare))
    rows.append(_row("translation job", whole, "images/s", limit, _ratio(jobs, limits)))
    difference = alone(fast_path_difference, str(images), device, precision)
    rows.append(_row(f"{precision} against float32, mean absolute difference", difference, "levels of 255"))
    return rows


def _untrained_checkpoint(folder: Path) -> Path:
    from p2p.model.checkpoint import save_checkpoint
    from p2p.model.pix2pix import Pix2Pix

    target = folder / "checkpoint"
    save_checkpoint(str(target), Pix2Pix(ModelConfig()), {"epoch": 0}, {})
    return target


def _translate_job(device: str, precision: Precision, images: Path, folder: Path) -> float:
    """Images per second of `jobs/translate.py` (left half, resized to the model's size, PNG in Parquet)."""
    summary = translate(
        TranslateConfig(
            checkpoint=str(_untrained_checkpoint(folder)),
            source=str(images),
            output=str(folder / "translated"),
            resume="never",
            side="left",
            size_mode="resize",
            gpu="true" if device == "cuda" else "false",
            precision=precision,
        )
    )
    return float(summary["images_per_second"])


def _print(rows: Sequence[Row]) -> None:
    table = Table("what", "value", "unit", "ratio", "of")
    for row in rows:
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        table.add_row(row["what"], f"{row['value']:.4g}", row["unit"], ratio, row.get("against", ""))
    Console(stderr=True, width=140).print(table)


def _machine(device: str) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cores": available_cpus(),
        "processor": platform.processor() or platform.machine(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "torch": torch.__version__,
    }


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """Do the whole benchmark; returns the summary."""
    started = time.monotonic()
    device = _device(config.device)
    output = absolute(config.output)
    require_output(output, "output", "a benchmark")
    precision = choose_precision("auto", device)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="p2p-benchmark-") as scratch:
        folder = Path(scratch)
        images = _images(config, folder)
        pairs = folder / _PAIRS
        if config.what != "translate":
            prepare(PrepareConfig(source=str(images), output=str(pairs), load_size=_LOAD_SIZE))
        if config.what in ("data", "all"):
            rate = alone(feed_rate, str(pairs), SIZE, config.seconds)
            rows.append(_row("pairs read, decoded and cropped for training", rate, "pairs/s"))
        if config.what in ("train", "all"):
            rows += _train_rows(config, device, precision, folder)
        if config.what in ("translate", "all"):
            rows += _translate_rows(config, device, precision, images, folder)
    _print(rows)
    result = {"machine": _machine(device), "precision": precision, "rows": rows}
    write_json(join(output, "benchmark.json"), result)
    summary = {**result, "seconds": round(time.monotonic() - started, 3)}
    write_json(join(output, "summary.json"), summary)
    return summary
