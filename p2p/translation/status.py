"""How far a translation is, read from its output: its job need not run."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import tyro

from p2p.errors import ConfigError, UsageError
from p2p.progress import format_duration
from p2p.storage.filesystems import absolute, join, list_files, require_readable
from p2p.storage.lease import is_alive, read_lease
from p2p.translation.plan import crash_records, files, ledger
from p2p.translation.plan.plan import load_plan
from p2p.translation.plan.resume import SECTIONS_FOLDER, SETTINGS, exists_translation
from p2p.translation.plan.shards import shard_of, shards_in
from p2p.translation.scenes.store import count_sections, sections_folder

log = logging.getLogger("p2p")
_RATE_SECONDS = 600.0
"""The rate is that of the shards finished in this time before the last one."""


@dataclass(frozen=True, kw_only=True)
class StatusConfig:
    """Say how far a translation is, whether it runs, is finished or died. Reads its output and writes nothing."""

    output: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """The --output of jobs/translate.py. Path or URI."""


def status(config: StatusConfig) -> dict[str, Any]:
    """Count what the ledger says. Raises UsageError where there is no translation.

    Of scenes that are in work it also counts `sections` and `sections_done`. `images` is what is planned so far: a job
    lists its whole source before it starts. `images_per_second` and `eta_seconds` are None where too little is done to
    know, the latter also when nothing has been finished lately.
    """
    output = absolute(config.output)
    try:
        require_readable(output, "output")
    except ConfigError as error:
        raise UsageError(f"OUTPUT {error.problem}") from None
    if not exists_translation(output):
        raise UsageError(f"OUTPUT {config.output}: holds no translation; name the --output of jobs/translate.py")
    shards = {shard.index: shard.rows for shard in load_plan(output).shards}
    finished = _finished(output, shards)
    totals = ledger.read_totals(output, (index for _, index in finished))
    images, done = sum(shards.values()), sum(shards[index] for _, index in finished)
    rate = _rate([(moment, shards[index]) for moment, index in finished])
    silence = time.time() - finished[-1][0] if finished else None
    lease = read_lease(output)
    state = "working" if lease and is_alive(lease) else "stopped"
    if images and done == images:
        state = "finished"
    summary: dict[str, Any] = {
        "output": output,
        "state": state,
        "images": images,
        "done": done,
        "translated": totals.translated,
        "failed": totals.failed,
        "left": images - done,
        "images_per_second": None if rate is None else round(rate, 2),
        "eta_seconds": round((images - done) / rate) if rate and state == "working" else None,
        "stopped_since": None,
        "seconds_since_last_shard": None if silence is None else round(max(0.0, silence)),
    }
    started = shards_in(join(output, SECTIONS_FOLDER))
    if state == "stopped":
        written = _last_written(output, started)
        last = max([written, *(moment for moment, _ in finished[-1:]), *([lease.renewed] if lease else [])])
        if last:
            summary["stopped_since"] = datetime.fromtimestamp(last, UTC).isoformat(timespec="seconds")
    if started:
        counts = [count_sections(output, shard) for shard in sorted(started)]
        summary["sections_done"], summary["sections"] = (sum(column) for column in zip(*counts, strict=True))
    log.info("%s", _describe(summary))
    return summary


def _finished(output: str, shards: dict[int, int]) -> list[tuple[float, int]]:
    """When each finished shard was finished, and its number, in order of time."""
    found = [(file.modified, shard_of(file.path)) for file in list_files(join(output, ledger.FOLDER), (".parquet",))]
    return sorted((moment, index) for moment, index in found if index is not None and index in shards)


def _last_written(output: str, started: Iterable[int]) -> float:
    """When a job last wrote the settings, the plan, the record of a shard in work, or a section of the scenes
    `started`; 0 if the store does not say. A job that was stopped in good order has removed its lease, and perhaps
    finished no shard.
    """
    places = [
        join(output, SETTINGS),
        join(output, files.FOLDER),
        *(sections_folder(output, shard) for shard in started),
    ]
    written = [file for place in places for file in list_files(place)]
    written += [file for file in list_files(join(output, crash_records.FOLDER)) if shard_of(file.path) is not None]
    return max((file.modified for file in written), default=0.0)


def _rate(finished: Sequence[tuple[float, int]]) -> float | None:
    """Images per second over the last minutes of work."""
    recent = [entry for entry in finished if entry[0] >= finished[-1][0] - _RATE_SECONDS]
    if len(recent) < 2 or recent[-1][0] <= recent[0][0]:
        return None
    return sum(rows for _, rows in recent[1:]) / (recent[-1][0] - recent[0][0])


def _describe(summary: dict[str, Any]) -> str:
    share = f" ({summary['done'] / summary['images']:.1%})" if summary["images"] else ""
    line = f"{summary['state']}: {summary['done']} of {summary['images']} images done{share}"
    line += f", {summary['failed']} of them failed, {summary['left']} left"
    if "sections" in summary:
        line += f"; {summary['sections_done']} of {summary['sections']} sections of the scenes in work are done"
    if summary["images_per_second"] is not None:
        line += f", {summary['images_per_second']} img/s"
    if summary["eta_seconds"] is not None:
        line += f", ETA {format_duration(summary['eta_seconds'])}"
    if summary["seconds_since_last_shard"] is not None:
        line += f"; last shard finished {format_duration(summary['seconds_since_last_shard'])} ago"
    if summary["state"] == "stopped":
        since = f" since {summary['stopped_since']}" if summary["stopped_since"] else ""
        line += f"; nobody works on it{since}, and the same command does the rest"
    return line
