"""The training job: check everything, start Ray, let the workers train, summarise."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

from p2p.data.description import DESCRIPTION, DataRecord, formats_for, read_description
from p2p.data.order import pairs_per_worker
from p2p.data.pairs import Pairs, raw_load_size
from p2p.doctor.evidence import open_examined_pairs
from p2p.errors import CheckpointError, ConfigError, DamagedFileError, NotFoundError, StorageError, TrainingStoppedError
from p2p.model.config import class_planes
from p2p.storage.filesystems import absolute, exists, join, read_json_object, require_readable
from p2p.storage.lease import Fence, hold_lease
from p2p.storage.outputs import is_within, require_output
from p2p.training.config import TrainConfig
from p2p.training.position import Position, remaining_images
from p2p.training.run_folder import RunFolder

if TYPE_CHECKING:
    from p2p.training.task import TrainTask

log = logging.getLogger("p2p")
_IN_EVERY_RUN = frozenset(("data", "output", "generator", "discriminator", "gan_mode", "epochs", "seed"))
"""Options by which the config.json of a run differs from other files of that name."""


def run(config: TrainConfig) -> dict[str, Any]:
    """Train as `config` says; returns the summary."""
    config = dataclasses.replace(config, data=absolute(config.data), output=absolute(config.output))
    require_readable(config.data, "data")
    config, data = _settle_pixels(config)
    require_output(config.output, "output", "a run")
    with hold_lease(config.output, "output", "train") as fence:
        return _train(config, data, fence)


def _train(config: TrainConfig, data: DataRecord, fence: Fence) -> dict[str, Any]:
    train, val = _open(config)
    data = dataclasses.replace(data, pairs=len(train))
    folder = RunFolder(config.output)
    earlier = _earlier(folder, config)
    if earlier and config.resume == "auto":
        if why := _why_finished(folder, config, len(train)):
            log.info("%s is finished (%s); set resume never to start over", config.output, why)
            return folder.summary() or _conclude(folder, config)
        from p2p.training.recovery import recover_latest_checkpoint

        fence.check()
        recover_latest_checkpoint(folder, config.best_metric)
        _warn_of_other_data(folder, data)
    # Not at the top of the file: Ray and torch take seconds to import, and a wrong option should be reported at once.
    from p2p.data.session import ray_session
    from p2p.training.launch import launch, resources

    with ray_session():
        scaling = resources(config)  # the last thing that can be wrong with the options: from here on, files change
        fence.check()
        if earlier and config.resume == "never":
            folder.delete(fence)
        folder.start(config.to_dict())
        try:
            launch(_task(config, train, val, data, fence), Position.of_run(folder), scaling)
        except TrainingStoppedError as stopped:
            fence.check()
            if stopped.finding is not None:
                stopped.summary = _conclude(folder, config, stopped)
            raise
    fence.check()
    return _conclude(folder, config)


def _task(config: TrainConfig, train: Pairs, val: Pairs | None, data: DataRecord, fence: Fence) -> TrainTask:
    from p2p.data.augment import CropSettings
    from p2p.data.stream import PairStream
    from p2p.training.task import TrainTask

    swap = config.direction == "BtoA"
    formats = formats_for(config.model("fp32", data.bits, data.input_palette, data.bands), swap)
    crop = CropSettings(config.crop_size, config.seed, config.flip, swap, formats)
    return TrainTask(config, PairStream(train, val, crop, config.batch_size, config.workers), data, fence)


def _open(config: TrainConfig) -> tuple[Pairs, Pairs | None]:
    load_size = raw_load_size(config.crop_size)
    try:
        train = open_examined_pairs(config.data, config.split, load_size)
    except NotFoundError as error:
        raise ConfigError("data", str(error)) from None
    try:
        val = open_examined_pairs(config.data, config.val_split, load_size, train.layout)
    except NotFoundError:
        if config.patience:
            raise ConfigError(
                "patience",
                f"{config.patience}: needs validation, and there is no {config.val_split} split in {config.data}; "
                "prepare again with val_fraction 0.1, or set patience 0",
            ) from None
        log.info("no %s split in %s: training without validation", config.val_split, config.data)
        val = None
    if train.layout:
        log.info("%s", train.layout.summary({config.split: len(train), config.val_split: len(val) if val else 0}))
    if not train.is_raw and not exists(join(config.data, DESCRIPTION)):
        log.warning(
            "%s has no %s: if jobs/prepare.py made it, that was stopped before its end and pairs are missing; run it "
            "again",
            config.data,
            DESCRIPTION,
        )
    for pairs in filter(None, (train, val)):
        if pairs.smallest_side < config.crop_size:
            raise ConfigError(
                "crop_size",
                f"{config.crop_size}: a pair in {join(pairs.uri, pairs.split)} is only {pairs.smallest_side} pixels "
                "wide or high; prepare again with a larger load_size, or use a smaller crop_size",
            )
        if pairs.is_raw and is_within(config.output, config.data):
            raise ConfigError(
                "output",
                f"{config.output}: lies in {config.data}, where every image is taken for a pair, the run's own samples "
                "too; choose a folder beside it",
            )
    if config.cache in ("host", "device") and not train.largest_area:
        raise ConfigError(
            "cache", f"{config.cache}: the parts of {config.data} do not say how large pairs are; prepare it again"
        )
    if pairs_per_worker(len(train), config.workers) < 1:
        raise ConfigError("workers", f"{config.workers}: there are only {len(train)} pairs, not one for each worker")
    return train, val


def _warn_of_other_data(folder: RunFolder, data: DataRecord) -> None:
    latest = folder.latest()
    before = read_json_object(join(folder.address(latest["checkpoint"]), "meta.json")).get("data", {}) if latest else {}
    for name, words in (("pairs", "{} training pairs"), ("load_size", "pairs stored in {} pixels")):
        if name in before and before[name] != getattr(data, name):
            log.warning(
                "%s has changed: %s now, %s before; training goes on with what is there",
                data.uri,
                words.format(getattr(data, name)),
                before[name],
            )


def _settle_pixels(config: TrainConfig) -> tuple[TrainConfig, DataRecord]:
    """Fill in the channels that are left to the data set; returns also what checkpoints record about it.

    Raises ConfigError where the data set cannot be read as the options say.
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
        raise ConfigError(
            "input_encoding",
            f"{config.input_encoding}: jobs/prepare.py has recorded no palette for the inputs in {config.data} "
            "(32 colours at most); prepare them from lossless label maps, or use colour",
        )
    data = description.record(config.direction, config.output_channels)
    if config.best_metric.startswith("val_palette_") and not data.target_palette:
        raise ConfigError(
            "best_metric",
            f"{config.best_metric}: the targets in {config.data} have no palette; use val_l1, val_psnr, val_ssim or "
            "val_pixel_accuracy",
        )
    config.model("fp32", data.bits, data.input_palette, data.bands)  # raises what does not fit
    return config, data


def _earlier(folder: RunFolder, config: TrainConfig) -> bool:
    """Whether a run lies in `folder`. Raises ConfigError for one that `config` cannot continue, and for other files."""
    other = "choose another output"
    try:
        earlier, latest = folder.config(), None
        if earlier is None or config.resume == "auto":
            latest, _, _ = folder.latest(), folder.best(), folder.rows(up_to_epoch=0)  # damage is reported here
    except StorageError as error:
        fix = other if config.resume == "never" else f"{other}, or set resume never to start over"
        raise ConfigError("output", f"{error}; {fix}") from None
    if earlier is None and latest is None:
        return False
    if not isinstance(earlier, dict) or not set(earlier) >= _IN_EVERY_RUN:
        found = "a latest.json and no config.json" if earlier is None else "a config.json that train did not write"
        raise ConfigError("output", f"{folder.uri} has {found}, so it is no run to continue or to delete; {other}")
    if config.resume == "auto" and (conflicts := config.conflicts(earlier)):
        raise ConfigError(
            "output",
            f"{folder.uri} holds a run with other options: {'; '.join(conflicts)}. "
            "Use the same options, another output, or resume never to start over",
        )
    return True


def _why_finished(folder: RunFolder, config: TrainConfig, pairs: int) -> str:
    """Why nothing is left to train in a run; empty if something is, or if its latest checkpoint cannot tell."""
    try:
        position = Position.of_run(folder)
    except (CheckpointError, NotFoundError, DamagedFileError):
        return ""
    if not remaining_images(config, pairs, position):
        return f"{position.epoch} epochs, {position.step} steps; raise epochs or max_steps to train on"
    if config.patience:
        from p2p.training.selection import is_out_of_patience

        if is_out_of_patience(folder.rows(position.epoch), config.patience, config.best_metric):
            return f"{config.best_metric} has not improved for {config.patience} epochs; raise patience to train on"
    return ""


def _conclude(folder: RunFolder, config: TrainConfig, stopped: TrainingStoppedError | None = None) -> dict[str, Any]:
    """Write the summary and the report of a run that ended, or that was `stopped` by numbers no longer finite."""
    from p2p.reports.run import write_run_report

    summary = _summarise(folder, config, stopped)
    folder.finish(summary)
    write_run_report(config.output)
    return summary


def _summarise(folder: RunFolder, config: TrainConfig, stopped: TrainingStoppedError | None) -> dict[str, Any]:
    from p2p.training.health import health_findings

    rows = folder.rows()
    last: dict[str, Any] = rows[-1] if rows else {"epoch": 0, "step": 0, "images_seen": 0}
    seconds = sum(row["seconds"] for row in rows)
    at_max_steps = bool(config.max_steps) and last["step"] >= config.max_steps
    health: list[Any] = [] if stopped is None else [stopped.finding]
    return {
        "epochs": last["epoch"],
        "steps": last["step"],
        "images_seen": last["images_seen"],
        "seconds": round(seconds, 2),
        "images_per_second": round(last["images_seen"] / seconds, 3) if seconds else 0.0,
        "best": folder.best(),
        "latest": folder.latest(),
        "stopped_early": stopped is None and last["epoch"] < config.last_epoch and not at_max_steps,
        "error": None if stopped is None else str(stopped),
        "health": [*health, *health_findings(rows, config.to_dict())],
    }
