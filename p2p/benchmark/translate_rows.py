"""The translation job against the bare generator and against what its parts allow."""

from __future__ import annotations

import statistics
from pathlib import Path

from p2p.benchmark.images import Codecs, codec_seconds
from p2p.benchmark.networks import alone, engine_rate, fast_path_difference, plain_forward
from p2p.benchmark.rows import Row, Setting, alternate, median_ratio, row
from p2p.data.machine import available_cpus
from p2p.model.config import ModelConfig
from p2p.translation import TranslateConfig, translate


def translate_rows(at: Setting) -> list[Row]:
    """The bare generator and the job that runs it."""
    plain = row(f"network, {at.textbook}, batch 1", alone(plain_forward, 1, at.seconds, at.device), "images/s")
    rows = [plain]
    for size in (1, network_batch(at)):
        rate = alone(engine_rate, size, at.seconds, at.device, at.precision, 0)
        bare = row(f"bare network, {at.precision}, batch {size}", rate, "images/s", plain)
        rows.append(bare)
    rows += translate_job_rows(at, bare)
    rows.append(row("translation job", rows[-1]["value"], "images/s", plain))
    difference = alone(fast_path_difference, str(at.images), at.device, at.precision)
    rows.append(row(f"{at.precision} against float32, mean absolute difference", difference, "levels of 255"))
    return rows


def network_batch(at: Setting) -> int:
    """Of the job's network."""
    return 64 if at.device == "cuda" else 8


def translate_job_rows(at: Setting, bare: Row) -> list[Row]:
    """The job that translates, against `bare` and against what its parts allow.

    A CPU's cores do one part after another; a GPU computes while they decode and encode.
    """
    cores, overlapping = available_cpus(), at.device == "cuda"

    def parts() -> float:
        network = alone(engine_rate, network_batch(at), at.seconds / 2, at.device, at.precision, 0)
        codecs: Codecs = alone(codec_seconds, str(at.images), at.seconds / 2)
        outside = (codecs.decode + codecs.resize + codecs.encode) / cores
        return min(network, 1 / outside) if overlapping else 1 / (1 / network + outside)

    corpus = _repeated_images(at, round(at.seconds * parts()))
    limits, jobs = alternate(parts, lambda: _translate_job(at, corpus), at.rounds)
    codecs: Codecs = alone(codec_seconds, str(at.images), at.seconds)
    times = (("decode", codecs.decode), ("resize", codecs.resize), ("encode PNG", codecs.encode))
    name = f"{'slowest' if overlapping else 'sum'} of the parts on {cores} cores"
    limit = row(name, statistics.median(limits), "images/s", bare)
    whole = statistics.median(jobs)
    return [
        *(row(f"{what}, one core", 1000 * value, "ms/image") for what, value in times),
        limit,
        row("translation job", whole, "images/s", limit, median_ratio(jobs, limits)),
        row("translation job", whole, "images/s", bare),
    ]


def _repeated_images(at: Setting, wanted: int) -> Path:
    """A folder of at least `wanted` images: the ones to measure on, repeated."""
    corpus = at.folder / "corpus"
    corpus.mkdir()
    paths = sorted(at.images.iterdir())
    for copy in range(-(-wanted // len(paths))):
        for path in paths:
            (corpus / f"{copy:05d}-{path.name}").hardlink_to(path)
    return corpus


def untrained_checkpoint(folder: Path) -> Path:
    """Of U-Net 256, in `folder`."""
    from p2p.model.checkpoint import save_checkpoint
    from p2p.model.pix2pix import Pix2Pix

    target = folder / "checkpoint"
    save_checkpoint(str(target), Pix2Pix(ModelConfig()), {"epoch": 0}, {})
    return target


def _translate_job(at: Setting, corpus: Path) -> float:
    """Images per second of `jobs/translate.py` (left half, resized to the model's size, PNG in Parquet)."""
    summary = translate(
        TranslateConfig(
            checkpoint=str(untrained_checkpoint(at.folder)),
            source=str(corpus),
            output=str(at.folder / "translated"),
            resume="never",
            side="left",
            size_mode="resize",
            gpu="true" if at.device == "cuda" else "false",
            precision=at.precision,
        )
    )
    return float(summary["images_per_second"])
