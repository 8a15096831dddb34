"""What is in the output before an attempt begins: nothing, an earlier attempt to continue, or something else."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
from collections.abc import Collection
from dataclasses import dataclass

from p2p.errors import ConfigError, StorageError, UsageError
from p2p.storage.filesystems import (
    SECONDS_BETWEEN_CHECKS,
    TEMPORARY_PREFIX,
    absolute,
    exists,
    is_remote,
    join,
    list_names,
    open_filesystem,
    read_bytes,
    read_json_object,
    remove,
    remove_file,
    remove_files,
    write_bytes,
    write_json,
)
from p2p.storage.lease import Fence
from p2p.storage.outputs import is_within
from p2p.translation.config import Settings, TranslateConfig
from p2p.translation.corpus.corpus import Corpus, Selection
from p2p.translation.plan import crash_records, files, ledger
from p2p.translation.plan.files import Shard, read_inputs
from p2p.translation.plan.plan import Plan, checked_uri, load_plan
from p2p.translation.plan.shards import shard_of
from p2p.translation.sinks import geotiff, images, output_names, shard_files

SETTINGS = "settings.json"
_OUTPUT_FOLDERS = (shard_files.FOLDER, images.FOLDER, geotiff.FOLDER)
_FOLDERS = (*_OUTPUT_FOLDERS, ledger.FOLDER, files.FOLDER)
_WEIGHTS_FOLDER = "weights"
SECTIONS_FOLDER = "work"
"""Sections of scenes that are not whole yet."""
PREVIEWS_FOLDER = "previews"
"""What the report shows of scenes."""
_WORK_FOLDERS = (crash_records.FOLDER, ledger.RETRY_FOLDER, SECTIONS_FOLDER)  # there only while work is going on
_ENDINGS = {
    crash_records.FOLDER: ".json",
    ledger.FOLDER: ".parquet",
    ledger.RETRY_FOLDER: ".parquet",
    PREVIEWS_FOLDER: ".json",
    SECTIONS_FOLDER: ".sections",
}
"""Of what a translation writes for a shard in these folders. Whatever else lies there is somebody's."""
_PINNED = re.compile(r"[0-9a-f]{16}-.+")
_SUMMARY = "summary.json"
_FILES = (SETTINGS, _SUMMARY, "report.html")


@dataclass(frozen=True)
class RemainingWork:
    """What an attempt has to do, and what earlier ones did."""

    shards: tuple[Shard, ...]
    done: tuple[Shard, ...]
    hosts: frozenset[str] = frozenset()
    """The servers that hold the corpus."""
    changed: int = 0
    """Inputs whose sources have been written anew since an earlier attempt planned them."""
    sections: tuple[Shard, ...] | None = None
    """Of scenes: what is left to be done of `shards`."""

    @property
    def units(self) -> tuple[Shard, ...]:
        """What processes are given."""
        return self.shards if self.sections is None else self.sections

    @property
    def images_done(self) -> int:
        """Inputs that earlier attempts dealt with."""
        return sum(shard.rows for shard in self.done)

    @property
    def images(self) -> int:
        """All inputs, done or not."""
        return self.images_done + sum(shard.rows for shard in self.shards)


def require_apart(source: str, output: str) -> None:
    """Raise ConfigError if outputs would become inputs of the next attempt."""
    folders = [join(output, folder) for folder in _OUTPUT_FOLDERS]  # which may be links
    if any(is_within(source, folder) for folder in folders):
        raise ConfigError("source", f"{source} is where --output {output} puts its results; choose another folder")
    if any(is_within(place, source) for place in (output, *folders)):
        raise ConfigError("output", f"{output} is in --source, so outputs would become inputs; choose another folder")


def require_same_settings(settings: Settings) -> None:
    """Raise ConfigError unless `output` is empty of translations or holds one with the same settings."""
    output = settings.output
    if not exists_translation(output):
        foreign = [name for name in list_names(output) if name in _FOLDERS]
        if foreign:
            raise ConfigError(
                "output",
                f"{output} holds {', '.join(foreign)}/ but no {SETTINGS}, so p2p translate did not make it; "
                f"choose an empty folder",
            )
        return
    before, now = _read_settings(output).to_dict(), settings.to_dict()
    changed = "; ".join(
        f"--{name.removesuffix('_id').replace('_', '-')} was {before[name]}, is {now[name]}"
        for name in now
        if before[name] != now[name]
    )
    if changed and settings.resume != "never":
        raise ConfigError(
            "output",
            f"{output} holds a translation made with other settings ({changed}); "
            f"choose another --output, or --resume never to remove it and start over",
        )


def _read_settings(output: str) -> Settings:
    """What the translation in `output` was made with. Raises ConfigError for what this version did not write."""
    try:
        return Settings.from_dict(read_json_object(join(output, SETTINGS)), output)
    except (ValueError, StorageError, UsageError):
        raise ConfigError(
            "output", f"{output}: its {SETTINGS} was not written by this version of p2p; choose another --output"
        ) from None


def exists_translation(output: str) -> bool:
    """Whether an earlier attempt has left something in `output`."""
    return exists(join(output, SETTINGS))


def start_output(settings: Settings) -> None:
    """Make `output` ready: it counts as unfinished from here on. Forget earlier crashes, write the settings."""
    remove_file(join(settings.output, _SUMMARY))
    crash_records.clear(settings.output)
    write_json(join(settings.output, SETTINGS), settings.to_dict())


def pin_weights(output: str, checkpoint: str, generator_uri: str, fence: Fence, *, may_link: bool) -> str:
    """Keep the generator's file in `output` until the translation is finished, whatever happens to it meanwhile.

    checkpoint: what the options name.
    may_link: nothing writes into the file, so that on one disk a link, which takes no time and no room, is enough.

    Returns its new address.
    """
    folder = join(output, _WEIGHTS_FOLDER)
    above, _, name = generator_uri.rpartition("/")
    if above == folder and _PINNED.fullmatch(name):  # by an earlier attempt
        return generator_uri
    _unpin_weights(output)
    pinned = join(folder, _pinned_prefix(checkpoint) + name)
    try:
        if not may_link or is_remote(output) or is_remote(generator_uri):
            raise OSError
        os.makedirs(folder, exist_ok=True)
        os.link(generator_uri, pinned)
    except OSError:  # another disk, or one without links
        write_bytes(pinned, read_bytes(generator_uri), fence=fence)
    return pinned


def find_pinned_weights(output: str, checkpoint: str) -> str | None:
    """The generator's file of `checkpoint` that an unfinished translation began with, if it is there."""
    if not exists_translation(output):
        return None
    folder, prefix = join(output, _WEIGHTS_FOLDER), _pinned_prefix(checkpoint)
    return next((join(folder, name) for name in list_names(folder) if name.startswith(prefix)), None)


def _unpin_weights(output: str) -> None:
    """Remove what `pin_weights` has made; other files that lie there are somebody's."""
    folder = join(output, _WEIGHTS_FOLDER)
    for name in list_names(folder):
        if _PINNED.fullmatch(name):
            remove_file(join(folder, name))
    if not is_remote(output):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def _pinned_prefix(checkpoint: str) -> str:
    return f"{hashlib.sha256(checkpoint.encode()).hexdigest()[:16]}-"


def select_failed(corpus: Corpus, config: TranslateConfig, output: str) -> Corpus:
    """`--only-failed`: the inputs to plan for. Raises ConfigError where the ledger holds no failure of this corpus.

    For the ledger of the output itself that is every input: the plan has them already.
    """
    if not config.only_failed:
        return corpus
    shards = ledger.shards_of_ledger(config.only_failed, output)
    if shards is not None:
        if not shards:
            raise ConfigError("only_failed", f"{config.only_failed}: no ledger is there yet; leave the option out")
        return corpus
    try:
        ids = ledger.read_failed_ids(absolute(config.only_failed))
    except StorageError as error:
        raise ConfigError("only_failed", str(error)) from None
    if not ids:
        raise ConfigError("only_failed", f"{config.only_failed}: there is no ledger with failed inputs")
    chosen = Selection(corpus, frozenset(ids))
    if next(iter(chosen.items()), None) is None:
        raise ConfigError("only_failed", f"{config.only_failed}: none of its {len(ids)} failed inputs is in --source")
    return chosen


def remove_translation(output: str, fence: Fence) -> None:
    """Remove the files an earlier translation wrote and no others, the settings last: an interruption is no loss.

    Raises LeaseLostError where another job has taken over meanwhile.
    """
    earlier = output_names(_read_settings(output))
    _remove_of_shards(output, ledger.FOLDER, fence)  # first: no shard may count as done whose outputs are going
    for shard in load_plan(output).shards:
        names = earlier.output_names(shard.index, [item.image_id for item in read_inputs(shard)])
        remove_files((join(output, name) for name in names), fence)
    for folder in (*_WORK_FOLDERS, PREVIEWS_FOLDER):
        _remove_of_shards(output, folder, fence)
    remove_files([*files.plan_uris(output), checked_uri(output)], fence)
    _remove_empty(join(output, files.FOLDER))
    fence.check(SECONDS_BETWEEN_CHECKS)
    _unpin_weights(output)
    if not is_remote(output):
        root = open_filesystem(output)[1]
        for top in _OUTPUT_FOLDERS:
            for folder, _, _ in os.walk(os.path.join(root, top), topdown=False):
                if not os.listdir(folder):
                    os.rmdir(folder)
    for name in reversed(_FILES):
        fence.check(SECONDS_BETWEEN_CHECKS)
        remove_file(join(output, name))


def remove_work_files(output: str, fence: Fence, *, keep_weights: bool) -> None:
    """Remove what is there only while work is going on, of shards that are done. With a limit the rest is still to
    come. Raises LeaseLostError as `remove_translation` does.
    """
    finished = ledger.done_shards(output)
    if not keep_weights:
        _unpin_weights(output)
    for folder in _WORK_FOLDERS:
        _remove_of_shards(output, folder, fence, finished)


def _remove_of_shards(output: str, folder: str, fence: Fence, shards: Collection[int] | None = None) -> None:
    """Remove what a translation wrote in `folder` for `shards`, or for all, and the folder if nothing else is there."""
    place = join(output, folder)
    names = [name for name in list_names(place) if name.endswith(_ENDINGS[folder])]
    own = {name: shard for name in names if (shard := shard_of(name)) is not None}
    uris = [join(place, name) for name, shard in own.items() if shards is None or shard in shards]
    remove_files(uris, fence, remove if folder == SECTIONS_FOLDER else remove_file)
    _remove_empty(place)


def _remove_empty(folder: str) -> None:
    """Remove a local folder that holds nothing but what writers left that were killed in mid-write."""
    if is_remote(folder):
        return
    with contextlib.suppress(OSError):
        left = os.listdir(folder)
        if all(name.startswith(TEMPORARY_PREFIX) for name in left):
            for name in left:
                os.unlink(os.path.join(folder, name))
            os.rmdir(folder)


def remaining(output: str, whole: Plan, limit: int) -> RemainingWork:
    """Split the plan into done and not done; with a limit, only as many of its first shards as hold that many."""
    finished = ledger.done_shards(output)
    starts = itertools.accumulate((shard.rows for shard in whole.shards), initial=0)
    within = [shard for shard, start in zip(whole.shards, starts, strict=False) if not limit or start < limit]
    return RemainingWork(
        tuple(shard for shard in within if shard.index not in finished),
        tuple(shard for shard in within if shard.index in finished),
        whole.hosts,
        whole.changed,
    )
