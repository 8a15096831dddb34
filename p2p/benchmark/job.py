"""The benchmark job: each part measured alone, then the whole job, then their ratio, in one run on one machine."""

from __future__ import annotations

import io
import itertools
import logging
import platform
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from p2p.benchmark.config import BenchmarkConfig
from p2p.benchmark.data_rows import data_rows
from p2p.benchmark.evaluate_rows import evaluate_rows
from p2p.benchmark.gpu import network_rows
from p2p.benchmark.gpu_checks import CHECKS
from p2p.benchmark.networks import alone, fast_path_difference
from p2p.benchmark.rows import Row, Setting, print_rows, row
from p2p.benchmark.scene_rows import scene_rows
from p2p.benchmark.train_rows import train_job_rows, train_rows
from p2p.benchmark.translate_rows import translate_job_rows, translate_rows
from p2p.data.machine import available_cpus
from p2p.errors import ConfigError, P2PError
from p2p.model.engine import choose_precision
from p2p.storage.filesystems import absolute, join, list_files, read_bytes, write_json
from p2p.storage.formats import SUFFIXES
from p2p.storage.lease import hold_lease
from p2p.storage.outputs import require_output
from p2p.storage.rasters import rasterio
from p2p.synthetic.pairs import city_pair

log = logging.getLogger("p2p")

_ROUNDS = 3
_BRIEF_SECONDS, _LATEST_JOB_SECONDS = 4.0, 240.0  # of --what gpu, which ends within six minutes
_MADE_HEIGHT, _MADE_WIDTH = 600, 1200
_JPEG_QUALITY = 90


def _device(what: str, wanted: str) -> str:
    if what == "gpu" and (wanted == "cpu" or not torch.cuda.is_available()):
        raise ConfigError("what", "gpu: no CUDA GPU is visible here; use train, translate, evaluate, data or all")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device", "cuda: no CUDA GPU is visible here; use auto or cpu")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


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


def _machine(device: str) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cores": available_cpus(),
        "processor": platform.processor() or platform.machine(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "torch": torch.__version__,
    }


def _gpu_rows(at: Setting, started: float) -> tuple[list[Row], list[str]]:
    """Everything about a GPU, in a few minutes. Returns also what is wrong with it."""
    checks = [check for make in CHECKS for check in make(at.device)]
    rows = [row(f"{check.what} (at most {check.limit:g})", check.found, check.unit) for check in checks]
    networks = {line["what"]: line for line in alone(network_rows, at.device, at.seconds, at.batch)}
    difference = alone(fast_path_difference, str(at.images), at.device, at.precision)
    rows += [*networks.values(), row("fast path against float32, mean difference", difference, "levels of 255")]
    update, generator = (networks[f"{network}, batch {at.batch}"] for network in ("update", "generator"))
    for job in (partial(train_job_rows, at, update), partial(translate_job_rows, at, generator)):
        if time.monotonic() - started > _LATEST_JOB_SECONDS:
            log.warning("there is no time left for all jobs; --what train and --what translate measure them")
            break
        rows += job()
    return rows, [f"{check.what} is {check.found:.3g}" for check in checks if not check.passed]


def _measure(config: BenchmarkConfig, device: str, started: float) -> tuple[dict[str, Any], list[str]]:
    """What benchmark.json holds, and what is wrong with the GPU."""
    precision = choose_precision("auto", device)
    rows: list[Row] = []
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="p2p-benchmark-") as scratch:
        folder = Path(scratch)
        brief = config.what == "gpu"
        at = Setting(
            device=device,
            precision=precision,
            seconds=min(config.seconds, _BRIEF_SECONDS) if brief else config.seconds,
            batch=config.batch_size or (64 if device == "cuda" else 8),
            rounds=1 if brief else _ROUNDS,
            images=_images(config, folder),
            folder=folder,
        )
        if config.what in ("data", "all"):
            rows += data_rows(at)
        if config.what in ("train", "all"):
            rows += train_rows(at)
        if config.what in ("translate", "all"):
            rows += translate_rows(at)
        if config.what in ("evaluate", "all"):
            rows += evaluate_rows(at)
        if config.what == "scenes":
            rows += scene_rows(at, config.scene_side)
        if config.what == "gpu":
            rows, wrong = _gpu_rows(at, started)
    print_rows(rows)
    return {"machine": _machine(device), "precision": precision, "rows": rows}, wrong


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """Do the whole benchmark; returns the summary. Raises P2PError if a GPU does not compute what a CPU does."""
    started = time.monotonic()
    device = _device(config.what, config.device)
    output = absolute(config.output)
    require_output(output, "output", "a benchmark")
    if config.what == "scenes":
        rasterio()
    with hold_lease(output, "output", "benchmark") as fence:
        result, wrong = _measure(config, device, started)
        fence.check()
        write_json(join(output, "benchmark.json"), result)
        summary = {**result, "seconds": round(time.monotonic() - started, 3)}
        fence.check()
        write_json(join(output, "summary.json"), summary)
    if wrong:
        error = P2PError(f"this GPU computes something else than the CPU: {'; '.join(wrong)}")
        error.summary = summary
        raise error
    return summary
