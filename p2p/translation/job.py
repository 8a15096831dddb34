"""The whole translation: judge the options, plan, let Ray's actors work, count, report."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from p2p.data.local import wants_ray
from p2p.data.machine import available_cpus
from p2p.data.tasks import run_as_task
from p2p.errors import CheckpointError, P2PError, StorageError, UsageError, check_bad_fraction
from p2p.model.sizing import default_overlap
from p2p.storage.filesystems import (
    absolute,
    join,
    require_readable,
    sweep_temporaries,
    write_json,
)
from p2p.storage.outputs import require_output
from p2p.translation.actor import Work, open_fetcher
from p2p.translation.config import PACKED, Settings, TranslateConfig
from p2p.translation.corpus.corpus import Corpus, open_corpus
from p2p.translation.corpus.manifest import ManifestCorpus
from p2p.translation.examples import Pair, Reader, spread
from p2p.translation.pipeline.codec import Codec
from p2p.translation.plan import ledger
from p2p.translation.plan.ledger import LedgerTotals
from p2p.translation.plan.plan import Plan, Shard, extend_plan, load_plan, require_unique
from p2p.translation.plan.resume import (
    RemainingWork,
    exists_translation,
    remaining,
    remove_translation,
    remove_work_files,
    require_apart,
    require_same_settings,
    select_failed,
    start_output,
)
from p2p.translation.pool import ACTORS_PER_GPU, Outcome, is_small, local_workforce, on_cores, on_gpu
from p2p.translation.seams import Seams
from p2p.translation.sinks import NamedSink, open_sink

log = logging.getLogger("p2p")

_EXAMPLES = 12
_SECONDS_FOR_EXAMPLES = 600.0


WorkThrough = Callable[[Work, RemainingWork], Outcome]
Workforce = Callable[[TranslateConfig], AbstractContextManager[WorkThrough]]
"""Who does the shards. Entering it raises UsageError if what the options ask for is not there."""


@dataclass(frozen=True)
class _Model:
    generator_uri: str
    checkpoint_id: str
    crop_size: int
    stride: int
    input_side: str


def run(config: TranslateConfig, workforce: Workforce | None = None) -> dict[str, Any]:
    """Translate `config.source`; returns the summary. Raises UsageError before work, TooManyBadInputsError after it.

    `workforce` does the shards that remain, each to its end, and reports on them. By default it is one process of this
    machine for small work, and Ray's actors for other.
    """
    started = time.monotonic()
    source, output = absolute(config.source), absolute(config.output)
    model = _read_model(absolute(config.checkpoint))
    require_readable(source, "source")
    require_apart(source, output)
    corpus = open_corpus(
        source,
        config.image_column,
        config.id_column,
        model.input_side,
        local_root=config.allow_local,
        allow_signed=config.allow_signed_addresses,
    )
    manifest = corpus if isinstance(corpus, ManifestCorpus) else None
    if next(iter(corpus.items()), None) is None:
        raise UsageError(f"--source {source}: holds no images")
    corpus = select_failed(corpus, config, output)
    settings = _settings(config, source, corpus, model)
    work = dataclasses.replace(
        _work(config, output, settings, corpus, model),
        max_bytes=config.max_bytes,
        allow_private=config.allow_private_addresses or manifest is None,
        manifest=manifest,
    )
    if config.dry_run:
        return _dry_run(config, corpus, work)
    require_same_settings(output, settings, config.resume)
    require_output(output, "output", "a translation")
    sink = open_sink(output, settings)
    with (workforce or _choose_workforce(config, corpus, settings))(config) as work_through:
        # From here on nothing is wrong with the options, so what an earlier attempt left may go.
        if config.resume == "never" and exists_translation(output):
            require_unique(corpus, sink, config.limit)
            remove_translation(output)
        start_output(output, settings)
        if config.only_failed:
            meant = ledger.shards_meant(config.only_failed, output)
            if meant and not ledger.reopen_failed(output, meant) and meant <= ledger.done_shards(output):
                log.warning("--only-failed %s: it lists no failure", config.only_failed)
        left = remaining(output, _planned(output, corpus, sink, config.limit), config.limit)
        if config.limit and left.images > config.limit:
            log.warning("--limit %d: an earlier attempt planned more, in shards; %d images", config.limit, left.images)
        if left.done:
            log.info("%d of %d images were done by an earlier attempt", left.images_done, left.images)
        outcome = work_through(work.reading_from(left.hosts), left) if left.shards else Outcome()
        return _finish(config, work, left, outcome, started)


def _choose_workforce(config: TranslateConfig, corpus: Corpus, settings: Settings) -> Workforce:
    if not wants_ray(config.workers) and is_small(config, corpus, settings.tile_size):
        return local_workforce
    from p2p.translation.ray_pool import ray_workforce

    return ray_workforce


def _planned(output: str, corpus: Corpus, sink: NamedSink, limit: int) -> Plan:
    try:
        return extend_plan(output, corpus, sink, limit)
    except UsageError:
        if not load_plan(output).shards:  # nothing was begun, so other settings must be free to follow
            remove_translation(output)
        raise


def _read_model(uri: str) -> _Model:
    """Load the checkpoint once, to know that it is whole and what it wants. Raises UsageError."""
    from p2p.model.checkpoint import load_generator, resolve_checkpoint

    try:
        resolved = resolve_checkpoint(uri)
        generator = load_generator(resolved.generator_uri if resolved.meta is None else str(resolved.folder_uri))
    except (CheckpointError, StorageError) as error:
        raise UsageError(f"--checkpoint {error}") from None
    config = generator.config
    if config.input_image_channels not in (1, 3) or config.output_channels not in (1, 3) or config.bits != 8:
        raise UsageError(
            f"--checkpoint {uri}: a generator from {config.input_image_channels} to {config.output_channels} channels "
            f"of {config.bits} bits; this job translates images of 1 or 3 of 8 bits, p2p.Translator any"
        )
    # The folder rather than the run: what is `best` may change while actors start.
    pinned = resolved.folder_uri or resolved.generator_uri
    side = "a" if config.direction == "AtoB" else "b"
    return _Model(pinned, str(generator.checkpoint_id), config.crop_size, generator.stride, side)


def _settings(config: TranslateConfig, source: str, corpus: Corpus, model: _Model) -> Settings:
    tile_size = config.tile_size or model.crop_size
    if config.size_mode != "pad" and tile_size % model.stride:
        raise UsageError(
            f"--tile-size {tile_size}: this generator needs a multiple of {model.stride}; "
            f"--tile-size {max(1, round(tile_size / model.stride)) * model.stride} is near"
        )
    return Settings(
        source=source,
        checkpoint_id=model.checkpoint_id,
        format=config.format,
        image_format=config.image_format if config.format in PACKED else config.format,  # type: ignore[arg-type]
        quality=config.quality,
        png_level=config.png_level,
        side=config.side,
        size_mode=config.size_mode,
        tile_size=tile_size,
        overlap=_overlap(config, tile_size),
        image_column=corpus.image_column,
        id_column=config.id_column,
        norm_mode=config.norm_mode,
        dropout=config.dropout,
        seed=config.seed,
        precision=config.precision,
    )


def _overlap(config: TranslateConfig, tile_size: int) -> int:
    if config.overlap is None:
        return default_overlap(tile_size)
    if config.size_mode == "tile" and config.overlap >= tile_size:
        raise UsageError(
            f"--overlap {config.overlap} must be smaller than this model's tiles of {tile_size} pixels; "
            f"leave it out for {default_overlap(tile_size)}"
        )
    return config.overlap


def _work(config: TranslateConfig, output: str, settings: Settings, corpus: Corpus, model: _Model) -> Work:
    """The work of one process on this machine's cores; the pool fits it to a cluster."""
    work = Work(
        generator_uri=model.generator_uri,
        output=output,
        settings=settings,
        image_column=corpus.image_column,
        max_pixels=config.max_pixels,
        batch_size=1,
        device="cpu",
        threads=1,
        codec_threads=0,
    )
    return on_cores(work, 1)


def _dry_run(config: TranslateConfig, corpus: Corpus, work: Work) -> dict[str, Any]:
    import torch

    from p2p.model.engine import choose_device

    if not os.environ.get("RAY_ADDRESS"):
        gpus = torch.cuda.device_count() if choose_device(config.gpu).type == "cuda" else 0
        return _estimate(config, corpus, work, available_cpus(), gpus)
    from p2p.data.cluster import cluster_cpus, cluster_gpus
    from p2p.data.session import ray_session

    with ray_session():
        gpus = cluster_gpus() if config.gpu != "false" else 0
        if config.gpu == "true" and not gpus:
            raise UsageError("--gpu true: the cluster has no GPU that is up; pass --gpu auto or false")
        cores = cluster_cpus()
        log.info("measuring one process on the cluster, which has %d CPUs and %d GPUs now", cores, gpus)
        return _estimate(config, corpus, work, cores, gpus)


def _estimate(config: TranslateConfig, corpus: Corpus, work: Work, cores: int, gpus: int) -> dict[str, Any]:
    from p2p.translation.estimate import estimate

    if gpus:
        processes = config.workers or ACTORS_PER_GPU * gpus
        return estimate(config, corpus, on_gpu(work, config.batch_size, cores // gpus), processes, min(processes, gpus))
    processes = config.workers or cores
    return estimate(config, corpus, work, processes, min(cores, processes * max(1, cores // processes)))


def _finish(
    config: TranslateConfig, work: Work, left: RemainingWork, outcome: Outcome, started: float
) -> dict[str, Any]:
    """Count by the ledger, write `summary.json` and the report. Raises TooManyBadInputsError when all of that is
    done.
    """
    output = work.output
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
    sweep_temporaries(output)
    remove_work_files(output)
    rate = translated / outcome.seconds if outcome.seconds else 0.0
    busy = sum(outcome.stages.values()) or 1.0
    seconds = time.monotonic() - started
    summary: dict[str, Any] = {
        "images": left.images,
        "translated": translated,
        "failed": totals.failed,
        "skipped": skipped,
        "seconds": round(seconds, 2),
        "images_per_second": round(rate, 2),
        "megapixels_per_second": round(outcome.pixels / 1e6 / outcome.seconds if outcome.seconds else 0.0, 3),
        "start_up_seconds": round(seconds - outcome.seconds, 2),
        "stage_share": {stage: round(spent / busy, 3) for stage, spent in sorted(outcome.stages.items())},
        "checkpoint_id": work.settings.checkpoint_id,
        "output_bytes": outcome.output_bytes,
        "fallbacks": outcome.fallbacks,
        "output": output,
    }
    pairs = _examples(work, left)
    if work.settings.size_mode == "tile":
        score = sum((pair.seams for pair in pairs), Seams()).score
        summary["seam_score"] = None if score is None else round(score, 3)
    summary["report"] = _write_report(work, pairs, summary, totals)
    write_json(join(output, "summary.json"), summary)
    check_bad_fraction(totals.failed, left.images, config.max_bad_fraction, join(output, ledger.FOLDER), summary)
    return summary


def _examples(work: Work, left: RemainingWork) -> list[Pair]:
    """A few translated images, or none where they cannot be read back: a report is no reason to fail."""
    shards = sorted((*left.done, *left.shards), key=lambda shard: shard.index)
    try:
        return run_as_task(_read_examples, work, spread(shards, _EXAMPLES), seconds=_SECONDS_FOR_EXAMPLES)
    except P2PError as error:
        log.warning("the report has no examples: %s", error)
        return []


def _read_examples(work: Work, shards: Sequence[Shard]) -> list[Pair]:
    settings = work.settings
    codec = Codec(settings.side, work.max_pixels, settings.image_format, settings.quality, settings.png_level)
    tiling = (settings.tile_size, settings.overlap) if settings.size_mode == "tile" else None
    reader = Reader(work.output, settings.format, open_fetcher(work), codec, tiling)
    return reader.examples(shards, _EXAMPLES)


def _write_report(work: Work, pairs: Sequence[Pair], summary: dict[str, Any], totals: LedgerTotals) -> str:
    from p2p.reports.translation import Example, write_translation_report

    examples = [Example(image_id=pair.image_id, input=pair.input, output=pair.output) for pair in pairs]
    return write_translation_report(work.output, summary, examples, totals.failures, work.settings.to_dict())
