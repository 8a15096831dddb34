"""The files of a run, written in such an order that a run killed at any time can be continued."""

from __future__ import annotations

import contextlib
import os
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from p2p.documents import check_fields, parse_json, to_json
from p2p.errors import DamagedFileError, NotFoundError
from p2p.model.checkpoint_names import META, checkpoint_name, is_checkpoint_path, parse_checkpoint_name
from p2p.storage.error_mapping import storage_errors
from p2p.storage.filesystems import (
    SECONDS_BETWEEN_CHECKS,
    is_remote,
    join,
    list_names,
    open_filesystem,
    read_bytes,
    read_json,
    read_json_object,
    remove,
    write_bytes,
    write_json,
)
from p2p.storage.lease import Fence

MetricsRow: TypeAlias = dict[str, Any]
"""One epoch's line of metrics.jsonl."""

_OWN_NAMES = (
    "summary.json",
    "checkpoints",
    "samples",
    "tensorboard",
    "report.html",
    "metrics.jsonl",
    "best.json",
    "latest.json",
    "config.json",
)
"""In the order in which they are removed: what tells that a run was here goes last."""


def check_row(row: Any, uri: str) -> MetricsRow:
    """`row`, read from `uri`, if it is numbers by name with `epoch` and `step` among them. Raises DamagedFileError if
    not.
    """
    if not isinstance(row, dict):
        raise DamagedFileError(f"{uri}: expected the numbers of an epoch, found {reprlib.repr(row)}")
    try:
        missing = {"epoch": None, "step": None}
        check_fields(missing | row, dict.fromkeys(row, float | None) | dict.fromkeys(missing, int))
    except ValueError as error:
        raise DamagedFileError(f"{uri}: not the numbers of an epoch: {error}") from None
    return row


@dataclass(frozen=True)
class RunFolder:
    """A run at `uri`.

    A checkpoint is written under a name that nothing refers to, then `latest.json` and `best.json` are replaced one
    after the other, then older checkpoints go. So whatever these two name is whole.
    """

    uri: str

    def _read_object(self, name: str) -> dict[str, Any] | None:
        try:
            return read_json_object(join(self.uri, name))
        except NotFoundError:
            return None

    def config(self) -> Any:
        """The content of config.json, perhaps of another program; None where there is none."""
        try:
            return read_json(join(self.uri, "config.json"))
        except NotFoundError:
            return None

    def require_present(self) -> None:
        """Raise NotFoundError if the run is gone, which must not be taken for one that has no checkpoint yet."""
        try:
            read_json(join(self.uri, "config.json"))  # written before any worker starts
        except NotFoundError as error:
            raise NotFoundError(f"{error}; the run that was here cannot be found any more") from None

    def latest(self) -> dict[str, Any] | None:
        """`{"checkpoint", "epoch", "step", "metrics"}` of the newest checkpoint."""
        return self._entry("latest.json")

    def best(self) -> dict[str, Any] | None:
        """As `latest`, of the best checkpoint."""
        return self._entry("best.json")

    def _entry(self, name: str) -> dict[str, Any] | None:
        found = self._read_object(name)
        if found is None:
            return None
        if not (is_checkpoint_path(found.get("checkpoint")) and {"epoch", "metrics"} <= found.keys()):
            raise DamagedFileError(f"{join(self.uri, name)}: names no checkpoint of its run")
        return found | {"metrics": check_row(found["metrics"], join(self.uri, name))}

    def summary(self) -> dict[str, Any] | None:
        """The summary of a run that is finished."""
        return self._read_object("summary.json")

    def start(self, config: dict[str, Any]) -> None:
        """Write config.json; the run counts as unfinished from here on."""
        remove(join(self.uri, "summary.json"))
        write_json(join(self.uri, "config.json"), config)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json; the run counts as finished."""
        write_json(join(self.uri, "summary.json"), summary)

    def delete(self, fence: Fence) -> None:
        """Remove what a run consists of; other files in the folder stay.

        Raises LeaseLostError once another job has taken over, whose files these would be.
        """
        for name in _OWN_NAMES:
            uri = join(self.uri, name)
            _remove_files_below(uri, fence)
            fence.check()
            remove(uri)

    def rows(self, up_to_epoch: int | None = None) -> list[MetricsRow]:
        """The lines of metrics.jsonl, at most those of the first `up_to_epoch` epochs."""
        uri = join(self.uri, "metrics.jsonl")
        try:
            lines = read_bytes(uri).splitlines()
        except NotFoundError:
            return []
        rows = [check_row(parse_json(line, uri), uri) for line in lines if line]
        return [row for row in rows if up_to_epoch is None or row["epoch"] <= up_to_epoch]

    def write_rows(self, rows: Sequence[MetricsRow]) -> None:
        """Replace metrics.jsonl."""
        write_bytes(join(self.uri, "metrics.jsonl"), "".join(to_json(row) + "\n" for row in rows).encode())

    def write_sample(self, name: str, png: bytes) -> None:
        """Write the sample sheet of a step, such as `epoch_0010`."""
        write_bytes(join(self.uri, "samples", f"{name}.png"), png)

    def address(self, checkpoint: str) -> str:
        """The URI of a checkpoint that best.json or latest.json names."""
        return join(self.uri, checkpoint)

    def new_checkpoint(self, epoch: int, step: int, *, inside_epoch: bool = False) -> str:
        """An empty place for a checkpoint: `checkpoints/epoch_0010`, or `checkpoints/epoch_0010_step_00005000`.

        An epoch that was interrupted by --max-steps and went on has two; the second one's name has its step.
        """
        name = f"checkpoints/{checkpoint_name(epoch, step if inside_epoch else None)}"
        if name in self._named():
            name = f"checkpoints/{checkpoint_name(epoch, step)}"
        remove(self.address(name))  # left by a writer that was killed
        return name

    def publish(self, checkpoint: str, row: MetricsRow, *, is_best: bool, keep: int) -> None:
        """Make a whole checkpoint the latest, and perhaps the best; then prune to the newest `keep` (0: all)."""
        entry = {"checkpoint": checkpoint, "epoch": row["epoch"], "step": row["step"], "metrics": row}
        if is_best:  # first: after a kill in between, training goes on from the one before, and this one stays the best
            write_json(join(self.uri, "best.json"), entry)
        write_json(join(self.uri, "latest.json"), entry)
        if keep:
            self._prune(keep)

    def _named(self) -> set[str]:
        return {entry["checkpoint"] for entry in (self.latest(), self.best()) if entry}

    def checkpoints(self) -> list[str]:
        """Every place a checkpoint was ever begun at, oldest first, as latest.json would name it."""
        parsed = {name: parse_checkpoint_name(name) for name in list_names(join(self.uri, "checkpoints"))}
        ascending = sorted((step, name) for name, step in parsed.items() if step is not None)
        return [f"checkpoints/{name}" for _, name in ascending]

    def _prune(self, keep: int) -> None:
        kept = self._named()
        for name in self.checkpoints()[:-keep]:
            if name not in kept:
                remove(join(self.address(name), META))  # first: a reader must not take the rest for whole
                remove(self.address(name))


def _remove_files_below(uri: str, fence: Fence) -> None:
    """Remove all files of a folder, one by one: as a whole, a large one would go on being removed for minutes by a job
    that is no longer the one to do it. Not those behind a link, which are somebody else's.
    """
    with storage_errors(uri):
        filesystem, path = open_filesystem(uri)
        if not is_remote(uri) and os.path.islink(path):
            return
        for file in filesystem.find(path):
            fence.check(SECONDS_BETWEEN_CHECKS)
            with contextlib.suppress(FileNotFoundError):
                filesystem.rm_file(file)
