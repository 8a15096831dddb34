"""The whole translation: check the options, plan, let Ray's actors work, count, report."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from p2p.data.local import current_worker, leave_local_worker, session, wants_ray
from p2p.data.tasks import run_as_task
from p2p.errors import (
    CheckpointError,
    ConfigError,
    NotGoodEnoughError,
    P2PError,
    StorageError,
    UsageError,
    check_bad_fraction,
)
from p2p.model.sizing import default_overlap
from p2p.reports.translation import Example, write_translation_report
from p2p.scenes.cogs import check_compression
from p2p.storage.filesystems import absolute, join, require_readable, write_json
from p2p.storage.lease import Fence, hold_lease
from p2p.storage.outputs import require_output
from p2p.storage.rasters import rasterio
from p2p.translation.config import PACKED, Settings, TranslateConfig
from p2p.translation.corpus.corpus import Corpus, open_corpus, open_scenes
from p2p.translation.corpus.manifest import ManifestCorpus
from p2p.translation.examples import read_examples, spread
from p2p.translation.plan import ledger
from p2p.translation.plan.plan import Plan, extend_plan, load_plan, require_unique
from p2p.translation.plan.resume import (
    RemainingWork,
    exists_translation,
    find_pinned_weights,
    pin_weights,
    remaining,
    remove_translation,
    remove_work_files,
    require_apart,
    require_same_settings,
    select_failed,
    start_output,
)
from p2p.translation.pool import Outcome, is_small, local_workforce, on_cores
from p2p.translation.scenes.plan import cut_into_sections
from p2p.translation.seams import Seams
from p2p.translation.sinks import OutputNames, output_names
from p2p.translation.work import Work

log = logging.getLogger("p2p")

_EXAMPLES = 12
_MAX_SECONDS_FOR_EXAMPLES = 600.0

WorkThrough = Callable[[Work, RemainingWork], Outcome]
Workforce = Callable[[TranslateConfig], AbstractContextManager[WorkThrough]]
"""What does the shards. Entering it raises UsageError if what the options ask for is not there."""


@dataclass(frozen=True)
class _Model:
    generator_uri: str
    of_run: bool
    """Whether the address names a run, whose best or latest checkpoint changes."""
    is_own: bool
    """Whether p2p wrote it, which replaces files and never writes into one."""
    checkpoint_id: str
    crop_size: int
    stride: int
    input_side: str
    output_channels: int
    output_dtype: str


def run(config: TranslateConfig, workforce: Workforce | None = None) -> dict[str, Any]:
    """Translate `config.source`; returns the summary. Raises UsageError before work, NotGoodEnoughError after it.

    `workforce` does the shards that remain, each to its end, and reports on them. By default it is one process of this
    machine for small work, and Ray's actors for other.
    """
    if workforce is not None or wants_ray(config.workers):
        return _run(config, workforce)
    with session(small=True):  # its child process does whatever needs torch
        return _run(config, None)


def _run(config: TranslateConfig, workforce: Workforce | None) -> dict[str, Any]:
    started = time.monotonic()
    source, output = absolute(config.source), absolute(config.output)
    require_readable(source, "source")
    require_apart(source, output)
    if config.dry_run:
        corpus, work, _ = _check(config, source, output)
        from p2p.translation.estimate import dry_run

        return dry_run(config, corpus, work)
    require_output(output, "output", "a translation")
    with hold_lease(output, "output", "translate") as fence:  # before the checkpoint is read, which takes seconds
        corpus, work, model = _check(config, source, output)
        settings = work.settings
        sink = output_names(settings)
        require_same_settings(settings)
        work = dataclasses.replace(work, fence=fence)
        with (workforce or _choose_workforce(config, corpus, settings))(config) as work_through:
            # From here on nothing is wrong with the options, so what an earlier attempt left may go.
            if config.resume == "never" and exists_translation(output):
                require_unique(corpus, sink, config.limit)
                fence.check()
                remove_translation(output, fence)
            fence.check()
            pinned = pin_weights(output, absolute(config.checkpoint), model.generator_uri, fence, may_link=model.is_own)
            work = dataclasses.replace(work, generator_uri=pinned)
            fence.check()
            start_output(settings)
            if config.only_failed:
                shards = ledger.shards_of_ledger(config.only_failed, output)
                fence.check()
                if shards and not ledger.reopen_failed(output, shards) and shards <= ledger.done_shards(output):
                    log.warning("--only-failed %s: it lists no failure", config.only_failed)
            left = remaining(output, _planned(config, output, corpus, sink, fence), config.limit)
            if left.changed:
                log.warning("%d inputs have changed since they were planned; they are translated anew", left.changed)
            if config.limit and left.images > config.limit:
                planned = "--limit %d: an earlier attempt planned more, in shards; %d images"
                log.warning(planned, config.limit, left.images)
            if left.done:
                log.info("%d of %d images were done by an earlier attempt", left.images_done, left.images)
            if config.format == "geotiff":
                left = run_as_task(cut_into_sections, settings, left, fence)
            outcome = work_through(work.reading_from(left.hosts), left) if left.shards else Outcome()
            return _finish(work, fence, left, outcome, started)


def _check(config: TranslateConfig, source: str, output: str) -> tuple[Corpus, Work, _Model]:
    """What to translate, how, and with what. Raises ConfigError where checkpoint, source and options do not fit."""
    model = _choose_model(config, output)
    corpus = _open_source(config, source, model.input_side)
    manifest = corpus if isinstance(corpus, ManifestCorpus) else None
    if next(iter(corpus.items()), None) is None:
        raise ConfigError("source", f"{source}: holds no {'GeoTIFFs' if config.format == 'geotiff' else 'images'}")
    corpus = select_failed(corpus, config, output)
    settings = _settings(config, source, output, corpus, model)
    work = Work(settings=settings, generator_uri=model.generator_uri, manifest=manifest)
    return corpus, on_cores(work, 1), model


def _open_source(config: TranslateConfig, source: str, input_side: str) -> Corpus:
    if config.format == "geotiff":
        rasterio()
        return open_scenes(source, local_root=config.allow_local)
    return open_corpus(
        source,
        config.image_column,
        config.id_column,
        input_side,
        local_root=config.allow_local,
        allow_signed=config.allow_signed_addresses,
        member=config.member,
    )


def _choose_workforce(config: TranslateConfig, corpus: Corpus, settings: Settings) -> Workforce:
    if current_worker() and is_small(config, corpus, settings.tile_size):
        return local_workforce
    leave_local_worker()
    from p2p.translation.ray_pool import ray_workforce

    return ray_workforce


def _planned(config: TranslateConfig, output: str, corpus: Corpus, sink: OutputNames, fence: Fence) -> Plan:
    try:
        return extend_plan(output, corpus, sink, config.limit, fence, only_failed=bool(config.only_failed))
    except UsageError:
        if not load_plan(output).shards:  # nothing was started, so other settings may follow
            remove_translation(output, fence)
        raise


def _choose_model(config: TranslateConfig, output: str) -> _Model:
    """The generator of `checkpoint`. An unfinished translation goes on with the one it began with where the checkpoint
    is a run whose best has changed since, or is gone.
    """
    checkpoint = absolute(config.checkpoint)
    pinned = find_pinned_weights(output, checkpoint) if config.resume == "auto" else None
    if pinned is None:
        return run_as_task(_read_model, checkpoint, config.format == "geotiff")
    try:
        began = run_as_task(_read_model, pinned, config.format == "geotiff")
    except ConfigError as error:
        log.warning("the weights that %s began with cannot be read: %s", output, error.problem)
        return run_as_task(_read_model, checkpoint, config.format == "geotiff")
    try:
        now = run_as_task(_read_model, checkpoint, config.format == "geotiff")
    except ConfigError as error:
        log.warning("continuing with the weights that %s began with: %s", output, error.problem)
        return began
    if now.checkpoint_id == began.checkpoint_id:
        return began
    if not now.of_run:
        return now
    log.info("%s has changed; continuing with the checkpoint that %s began with", config.checkpoint, output)
    return began


def _read_model(uri: str, for_scenes: bool) -> _Model:
    """Load the checkpoint once, to know that it is whole and what it wants. Raises ConfigError."""
    from p2p.model.checkpoint import load_generator, resolve_checkpoint

    try:
        resolved = resolve_checkpoint(uri)
        generator = load_generator(resolved.generator_uri if resolved.meta is None else str(resolved.folder_uri))
    except (CheckpointError, StorageError) as error:
        raise ConfigError("checkpoint", str(error)) from None
    config = generator.config
    channels = (config.input_image_channels, config.output_channels)
    if not for_scenes and (not set(channels) <= {1, 3} or config.bits != 8):
        raise ConfigError(
            "checkpoint",
            f"{uri}: a generator from {config.input_image_channels} to {config.output_channels} channels of "
            f"{config.bits} bits; images have 1 or 3 of 8 bits here; --format geotiff and p2p.Translator take any",
        )
    of_run = resolved.folder_uri is not None and resolved.folder_uri != uri.rstrip("/")
    side = "a" if config.direction == "AtoB" else "b"
    made = config.output_bands
    return _Model(
        resolved.generator_uri,
        of_run,
        resolved.folder_uri is not None,
        str(generator.checkpoint_id),
        config.crop_size,
        generator.stride,
        side,
        output_channels=config.output_channels,
        output_dtype=made.dtype if made is not None and made.is_scaled else f"uint{config.bits}",
    )


def _settings(config: TranslateConfig, source: str, output: str, corpus: Corpus, model: _Model) -> Settings:
    tile_size = config.tile_size or model.crop_size
    if config.size_mode != "pad" and tile_size % model.stride:
        raise ConfigError(
            "tile_size",
            f"{tile_size}: this generator needs a multiple of {model.stride}; "
            f"--tile-size {max(1, round(tile_size / model.stride)) * model.stride} is near",
        )
    check_compression(config.compression, model.output_channels, model.output_dtype)
    decided: dict[str, Any] = {
        "source": source,
        "output": output,
        "checkpoint_id": model.checkpoint_id,
        "image_format": config.image_format if config.format in (*PACKED, "geotiff") else config.format,
        "tile_size": tile_size,
        "overlap": default_overlap(tile_size) if config.overlap is None else config.overlap,
        "image_column": corpus.image_column,
    }
    return Settings(**(vars(config) | decided))


def _finish(work: Work, fence: Fence, left: RemainingWork, outcome: Outcome, started: float) -> dict[str, Any]:
    """Count by the ledger, write `summary.json` and the report. Raises NotGoodEnoughError when that is done."""
    settings, output = work.settings, work.settings.output
    unreported = {shard.index for shard in left.shards} - outcome.reported
    missing = unreported - ledger.done_shards(output)
    if missing:
        raise P2PError(f"{len(missing)} shards were not finished; the same command does what is missing")
    totals = ledger.read_totals(output, (shard.index for shard in left.done))
    skipped = totals.translated + outcome.kept
    late = ledger.read_totals(output, unreported)
    translated = outcome.translated + late.translated
    for part in (late, ledger.read_totals(output, outcome.with_failures)):
        totals.add(part)
    rate = translated / outcome.seconds if outcome.seconds else 0.0
    busy = sum(outcome.stages.values()) or 1.0
    seconds = time.monotonic() - started
    summary: dict[str, Any] = {
        "images": left.images,
        "translated": translated,
        "failed": totals.failed,
        "skipped": skipped,
        "changed": left.changed,
        "seconds": round(seconds, 2),
        "images_per_second": round(rate, 2),
        "megapixels_per_second": round(outcome.pixels / 1e6 / outcome.seconds if outcome.seconds else 0.0, 3),
        "start_up_seconds": round(seconds - outcome.seconds, 2),
        "stage_share": {stage: round(spent / busy, 3) for stage, spent in sorted(outcome.stages.items())},
        "checkpoint_id": settings.checkpoint_id,
        "output_bytes": outcome.output_bytes,
        "fallbacks": outcome.fallbacks,
        "output": output,
    }
    if settings.format == "geotiff":
        totals_of_all = ledger.read_totals(output, (shard.index for shard in (*left.done, *left.shards)))
        summary["scenes_with_holes"] = totals_of_all.with_message
    examples, seams = _read_examples(work, left)
    if settings.size_mode == "tile":
        summary |= _seam_scores(seams, settings.format == "geotiff")
    if settings.max_seam is not None:
        summary["max_seam"] = settings.max_seam
    fence.check()
    summary["report"] = write_translation_report(output, summary, examples, totals.failures, settings.to_dict())
    fence.check()
    write_json(join(output, "summary.json"), summary)
    fence.check()
    remove_work_files(output, fence, keep_weights=bool(settings.limit))  # last: what is there lets a killed job go on
    check_bad_fraction(totals.failed, left.images, settings.max_bad_fraction, join(output, ledger.FOLDER), summary)
    _check_seam(settings.max_seam, summary)
    return summary


def _seam_scores(seams: Mapping[str, Seams], of_scenes: bool) -> dict[str, Any]:
    """What the summary says of them: the score of all together, and which scene has the worst."""
    score = sum(seams.values(), Seams()).score
    found: dict[str, Any] = {"seam_score": None if score is None else round(score, 3)}
    scores = {image_id: part.score for image_id, part in seams.items() if part.score is not None}
    if of_scenes and scores:
        worst = max(scores, key=scores.__getitem__)
        found["worst_scene"] = {"image_id": worst, "seam_score": round(scores[worst], 3)}
    return found


def _check_seam(limit: float | None, summary: Mapping[str, Any]) -> None:
    """Raise NotGoodEnoughError if the score in the summary, of scenes the worst, is above the limit."""
    if limit is None:
        return
    worst = summary.get("worst_scene")
    score, what = (worst["seam_score"], worst["image_id"]) if worst else (summary["seam_score"], "the output")
    if score is None:
        log.warning("--max-seam %g: no border of tiles could be measured", limit)
    elif score > limit:
        raise NotGoodEnoughError(
            f"{what} has a seam score of {score:g}, above --max-seam {limit:g}; a larger --overlap hides seams", summary
        )


def _read_examples(work: Work, left: RemainingWork) -> tuple[list[Example], dict[str, Seams]]:
    """A few translated images, or none where they cannot be read back: a report is no reason to fail."""
    shards = sorted((*left.done, *left.shards), key=lambda shard: shard.index)
    try:
        some = shards if work.settings.format == "geotiff" else spread(shards, _EXAMPLES)
        return run_as_task(read_examples, work, some, _EXAMPLES, seconds=_MAX_SECONDS_FOR_EXAMPLES)
    except P2PError as error:
        log.warning("the report has no examples: %s", error)
        return [], {}
