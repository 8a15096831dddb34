"""What lies in the output before an attempt begins: nothing, an earlier attempt to continue, or something else."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from p2p.documents import build
from p2p.errors import StorageError, UsageError
from p2p.storage.filesystems import (
    absolute,
    exists,
    is_remote,
    join,
    list_names,
    open_filesystem,
    read_json_object,
    remove,
    remove_file,
    sweep_temporaries,
    write_json,
)
from p2p.translation.config import Settings, TranslateConfig
from p2p.translation.corpus.corpus import Corpus, Selection
from p2p.translation.plan import crash_records, ledger, plan
from p2p.translation.plan.plan import Plan, Shard
from p2p.translation.plan.shards import shards_in
from p2p.translation.sinks import images, open_sink, shard_files

SETTINGS = "settings.json"
_FOLDERS = (shard_files.FOLDER, images.FOLDER, ledger.FOLDER, plan.FOLDER)
_PASSING_FOLDERS = (crash_records.FOLDER, ledger.RETRY_FOLDER)  # there only while work is going on
_FILES = (SETTINGS, "summary.json", "report.html")
_REMOVERS = 16


@dataclass(frozen=True)
class RemainingWork:
    """What an attempt has to do, and what earlier ones did."""

    shards: tuple[Shard, ...]
    done: tuple[Shard, ...]
    hosts: frozenset[str] = frozenset()
    """The servers on which the corpus lies."""

    @property
    def images_done(self) -> int:
        """Inputs that earlier attempts dealt with."""
        return sum(shard.rows for shard in self.done)

    @property
    def images(self) -> int:
        """All inputs, done or not."""
        return self.images_done + sum(shard.rows for shard in self.shards)


def require_apart(source: str, output: str) -> None:
    """Raise UsageError if outputs would become inputs of the next attempt."""
    inside = f"{output.rstrip('/')}/"
    if inside.startswith(f"{source.rstrip('/')}/"):
        raise UsageError(f"--output {output} lies in --source, so outputs would become inputs; choose another folder")
    for folder in (shard_files.FOLDER, images.FOLDER):
        if f"{source.rstrip('/')}/".startswith(f"{inside}{folder}/"):
            raise UsageError(f"--source {source} lies where --output {output} puts its results; choose another folder")


def require_same_settings(output: str, settings: Settings, resume: Literal["auto", "never"]) -> None:
    """Raise UsageError unless `output` is empty of translations or holds one with the same settings."""
    if not exists(join(output, SETTINGS)):
        foreign = [name for name in list_names(output) if name in _FOLDERS]
        if foreign:
            raise UsageError(
                f"--output {output} holds {', '.join(foreign)}/ but no {SETTINGS}, so p2p translate did not make it; "
                f"choose an empty folder"
            )
        return
    before = _read_settings(output).to_dict()
    if resume == "never":
        return
    now = settings.to_dict()
    names = [name for name in now if before[name] != now[name]]
    if names:
        told = "; ".join(f"{_option(name)} was {before[name]}, is {now[name]}" for name in names)
        raise UsageError(
            f"--output {output} holds a translation made with other settings ({told}); "
            f"choose another --output, or --resume never to remove it and start over"
        )


def _read_settings(output: str) -> Settings:
    """What the translation in `output` was made with. Raises UsageError for what this version did not write."""
    uri = join(output, SETTINGS)
    try:
        return build(Settings, read_json_object(uri))
    except (ValueError, StorageError):
        raise UsageError(
            f"--output {output}: its {SETTINGS} was not written by this version of p2p; choose another --output"
        ) from None


def _option(field: str) -> str:
    return "--checkpoint" if field == "checkpoint_id" else "--" + field.replace("_", "-")


def exists_translation(output: str) -> bool:
    """Whether an earlier attempt has left something in `output`."""
    return exists(join(output, SETTINGS))


def start_output(output: str, settings: Settings) -> None:
    """Make `output` ready: sweep what killed writers left, note the settings."""
    sweep_temporaries(output)
    crash_records.clear(output)
    write_json(join(output, SETTINGS), settings.to_dict())


def select_failed(corpus: Corpus, config: TranslateConfig, output: str) -> Corpus:
    """`--only-failed`: the inputs to plan for. Raises UsageError where the ledger holds no failure of this corpus.

    For the ledger of the output itself that is every input: the plan has them already.
    """
    if not config.only_failed:
        return corpus
    meant = ledger.shards_meant(config.only_failed, output)
    if meant is not None:
        if not meant:
            raise UsageError(f"--only-failed {config.only_failed}: no ledger is there yet; leave the option out")
        return corpus
    try:
        ids = ledger.read_failed_ids(absolute(config.only_failed))
    except StorageError as error:
        raise UsageError(f"--only-failed {error}") from None
    if not ids:
        raise UsageError(f"--only-failed {config.only_failed}: there is no ledger with failed inputs")
    chosen = Selection(corpus, frozenset(ids))
    if next(iter(chosen.items()), None) is None:
        raise UsageError(f"--only-failed {config.only_failed}: none of its {len(ids)} failed inputs is in --source")
    return chosen


def remove_translation(output: str) -> None:
    """Remove the files an earlier translation wrote and no others, the settings last: an interruption is no loss."""
    earlier = open_sink(output, _read_settings(output))
    remove(join(output, ledger.FOLDER))  # first: no shard may count as done whose outputs are going
    with ThreadPoolExecutor(_REMOVERS) as pool:
        for shard in plan.load_plan(output).shards:
            names = earlier.output_names(shard.index, [item.image_id for item in plan.read_inputs(shard)])
            list(pool.map(remove_file, (join(output, name) for name in names)))
    for folder in (*_PASSING_FOLDERS, plan.FOLDER):
        remove(join(output, folder))
    if not is_remote(output):
        root = open_filesystem(output)[1]
        for top in (images.FOLDER, shard_files.FOLDER):
            for folder, _, _ in os.walk(os.path.join(root, top), topdown=False):
                if not os.listdir(folder):
                    os.rmdir(folder)
    for name in reversed(_FILES):
        remove_file(join(output, name))


def remove_work_files(output: str) -> None:
    """Remove what is there only while work is going on, if it no longer is."""
    finished = ledger.done_shards(output)
    for folder in _PASSING_FOLDERS:
        if finished.issuperset(shards_in(join(output, folder))):
            remove(join(output, folder))


def remaining(output: str, whole: Plan, limit: int) -> RemainingWork:
    """Split the plan into done and not done; with a limit, only as many of its first shards as hold that many."""
    finished = ledger.done_shards(output)
    within: list[Shard] = []
    images_within = 0
    for shard in whole.shards:
        if limit and images_within >= limit:
            break
        within.append(shard)
        images_within += shard.rows
    return RemainingWork(
        tuple(shard for shard in within if shard.index not in finished),
        tuple(shard for shard in within if shard.index in finished),
        whole.hosts,
    )
