"""The training job against the bare update."""

from __future__ import annotations

import functools
import itertools
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from p2p.benchmark.data_rows import PAIR_SIDE, prepared
from p2p.benchmark.networks import alone, bare_update, plain_update
from p2p.benchmark.rows import Row, Setting, alternate, median_ratio, row
from p2p.training import TrainConfig, train

_EPOCHS = 2


def train_rows(at: Setting) -> list[Row]:
    """Bare updates and the job that makes them."""
    rows = []
    for size in sorted({1, at.batch}):
        plains, bares = alternate(
            functools.partial(alone, plain_update, size, at.seconds / 2, at.device),
            functools.partial(alone, bare_update, size, at.seconds / 2, at.device, at.precision),
            at.rounds,
        )
        plain = row(f"update, {at.textbook}, batch {size}", statistics.median(plains), "pairs/s")
        rate = statistics.median(bares)
        bare = row(f"bare update, {at.precision}, batch {size}", rate, "pairs/s", plain, median_ratio(bares, plains))
        rows += [plain, bare]
    return rows + train_job_rows(at, bare)


def train_job_rows(at: Setting, bare: Row) -> list[Row]:
    """The job that trains, against `bare`."""
    data = prepared(at, PAIR_SIDE, max(2, round(at.seconds * bare["value"] / at.batch)) * at.batch)
    runs = itertools.count()
    limits, jobs = alternate(
        lambda: alone(bare_update, at.batch, at.seconds / 2, at.device, at.precision),
        lambda: _train_job(at, data, at.folder / f"run-{next(runs)}"),
        at.rounds,
    )
    what = f"training job, {at.precision}, batch {at.batch}"
    rates, inside = [job.rate for job in jobs], [job.inside for job in jobs]
    middle = statistics.median
    return [
        row(f"{what}, epochs of {jobs[0].pairs} pairs", middle(rates), "pairs/s", bare, median_ratio(rates, limits)),
        row(f"{what}, inside an epoch", middle(inside), "pairs/s", bare, median_ratio(inside, limits)),
        row(f"{what}, between two epochs", middle(job.between for job in jobs), "s"),
        row(f"{what}, waiting for data", middle(100 * job.waiting for job in jobs), "% of an epoch"),
        row(f"{what}, before and after the epochs", middle(job.around for job in jobs), "s"),
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


def _train_job(at: Setting, data: Path, run: Path) -> _TrainJob:
    """Run `jobs/train.py` for two epochs, as it comes: no validation, one checkpoint.

    The first epoch is the warm-up, the second is measured.
    """
    started = time.monotonic()
    train(
        TrainConfig(
            data=str(data),
            output=str(run),
            batch_size=at.batch,
            epochs=_EPOCHS,
            epochs_decay=0,
            checkpoint_every=_EPOCHS,
            gpu="true" if at.device == "cuda" else "false",
            precision=at.precision,
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
