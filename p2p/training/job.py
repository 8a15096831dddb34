"""From options to a finished run: check everything, start Ray, let the workers train, sum up."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, Literal

from p2p.data.description import read_description
from p2p.data.order import pairs_per_rank
from p2p.data.pairs import Pairs, open_pairs, raw_load_size
from p2p.errors import NotFound, UsageError
from p2p.model.config import class_planes
from p2p.storage.filesystems import absolute, join, read_json, require_readable
from p2p.storage.outputs import require_output
from p2p.storage.pixels import RGB
from p2p.training.config import TrainConfig
from p2p.training.health import findings
from p2p.training.position import Position, remaining_images
from p2p.training.run_folder import RunFolder

log = logging.getLogger("p2p")


def run(config: TrainConfig) -> dict[str, Any]:
    """Train as `config` says; returns the summary."""
    config = dataclasses.replace(config, data=absolute(config.data), output=absolute(config.output))
    require_readable(config.data, "--data")
    config, data = _settle_pixels(config)
    require_output(config.output, "--output", "a run")
    train, val = _open(config)
    folder = RunFolder(config.output)
    finished = _continue_or_start(folder, config, len(train))
    if finished is not None:
        log.info("%s is finished; raise --epochs to train on, or pass --resume never", config.output)
        return finished
    # Not at the top of the file: Ray and torch take seconds to import, and a wrong option should be told at once.
    from p2p.reports.run import write_run_report
    from p2p.training.launch import launch

    launch(config, train, val, data, _position(folder))
    summary = _summarise(folder, config)
    folder.finish(summary)
    write_run_report(config.output)
    return summary


def _open(config: TrainConfig) -> tuple[Pairs, Pairs | None]:
    load_size = raw_load_size(config.crop_size)
    try:
        train = open_pairs(config.data, config.split, raw_load_size=load_size)
    except NotFound as error:
        raise UsageError(f"--data {error}") from None
    try:
        val = open_pairs(config.data, config.val_split, raw_load_size=load_size)
    except NotFound:
        log.info("no %s split in %s: training without validation", config.val_split, config.data)
        val = None
    for pairs in (train, val):
        if pairs is not None and pairs.smallest_side < config.crop_size:
            raise UsageError(
                f"--crop-size {config.crop_size}: a pair in {join(pairs.uri, pairs.split)} is only "
                f"{pairs.smallest_side} pixels wide or high; prepare again with a larger --load-size, or pass a "
                "smaller --crop-size"
            )
    if pairs_per_rank(len(train), config.workers) < 1:
        raise UsageError(f"--workers {config.workers}: there are only {len(train)} pairs, not one for each worker")
    return train, val


def _settle_pixels(config: TrainConfig) -> tuple[TrainConfig, dict[str, Any]]:
    """Fill in the channels that are left to the data set; returns also what a checkpoint should know about the data.

    Raises UsageError where the data set cannot be read as the options say.
    """
    description = read_description(config.data)
    inputs, targets = description.sides(config.direction)
    config = dataclasses.replace(
        config,
        input_channels=config.input_channels or inputs.pixels.channels,
        output_channels=config.output_channels or targets.pixels.channels,
    )
    description.require(config.direction, config.input_channels, config.output_channels)
    if class_planes(config.input_encoding) and inputs.palette is None:
        raise UsageError(
            f"--input-encoding {config.input_encoding}: jobs/prepare.py has recorded no palette for the inputs in "
            f"{config.data} (32 colours at most); prepare them from lossless label maps, or use --input-encoding colour"
        )
    palette = targets.palette if config.output_channels == RGB.channels else None
    if config.best_metric.startswith("val_palette_") and not palette:
        raise UsageError(
            f"--best-metric {config.best_metric}: the targets in {config.data} have no palette; use val_l1, val_psnr, "
            "val_ssim or val_pixel_accuracy"
        )
    bits: Literal[8, 16] = 16 if 16 in (inputs.pixels.bits, targets.pixels.bits) else 8
    config.model("fp32", bits, inputs.palette)  # tells what does not fit
    data = {
        "uri": config.data,
        "load_size": description.load_size,
        "input_palette": inputs.palette,
        "target_palette": palette,
        "bits": bits,
    }
    return config, data


def _position(folder: RunFolder) -> Position:
    latest = folder.latest()
    if latest is None:
        return Position()
    return Position.from_dict(read_json(join(folder.address(latest["checkpoint"]), "trainer.json")))


def _continue_or_start(folder: RunFolder, config: TrainConfig, pairs: int) -> dict[str, Any] | None:
    """Make `folder` ready for (further) training; returns the summary instead if there is nothing left to do."""
    earlier = folder.config()
    if earlier is not None and config.resume == "never":
        folder.delete()
        earlier = None
    if earlier is not None:
        if conflicts := config.conflicts(earlier):
            raise UsageError(
                f"--output {folder.uri} holds a run with other options: {'; '.join(conflicts)}. "
                "Use the same options, another --output, or --resume never to start over"
            )
        summary = folder.summary()
        stopped_early = summary is not None and earlier.get("patience") == config.patience and summary["stopped_early"]
        if summary is not None and (stopped_early or not remaining_images(config, pairs, _position(folder))):
            return summary
    folder.start(config.to_dict())
    return None


def _summarise(folder: RunFolder, config: TrainConfig) -> dict[str, Any]:
    rows = folder.rows()
    last = rows[-1]
    seconds = sum(row["seconds"] for row in rows)
    return {
        "epochs": last["epoch"],
        "steps": last["step"],
        "images_seen": last["images_seen"],
        "seconds": round(seconds, 2),
        "images_per_second": round(last["images_seen"] / seconds, 3),
        "best": folder.best(),
        "latest": folder.latest(),
        "stopped_early": last["epoch"] < config.last_epoch
        and not (config.max_steps and last["step"] >= config.max_steps),
        "health": findings(rows, config.to_dict()),
    }
