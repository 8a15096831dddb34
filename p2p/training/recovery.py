"""Recovers a run whose latest checkpoint cannot be read any more."""

from __future__ import annotations

import logging
from typing import Any

from p2p.errors import CheckpointError, ConfigError, DamagedFileError, NotFoundError
from p2p.model.checkpoint import read_checkpoint
from p2p.training.position import Position
from p2p.training.run_folder import RunFolder, check_row
from p2p.training.selection import is_best

log = logging.getLogger("p2p")

_Entry = dict[str, Any]


def recover_latest_checkpoint(folder: RunFolder, metric: str) -> None:
    """Where the latest checkpoint is gone or damaged, publish the newest whole one in its place, with a warning.

    If it was the best by `metric` too, the best of the others is published as the best. A storage that does not answer
    is not taken for damage. Raises ConfigError if no checkpoint is left.
    """
    latest, best = folder.latest(), folder.best()
    if latest is None or _whole(folder, latest["checkpoint"]):
        return
    left = [name for name in reversed(folder.checkpoints()) if name != latest["checkpoint"]]
    newest = next((entry for name in left if (entry := _whole(folder, name))), None)
    if newest is None:
        raise ConfigError(
            "output",
            f"{folder.uri}: its latest checkpoint {latest['checkpoint']} is gone or damaged, and there is no other; "
            "set resume never to start over",
        )
    if best is not None and best["checkpoint"] == latest["checkpoint"]:
        best = newest
        for entry in filter(None, (_whole(folder, name) for name in left)):
            if metric in entry["metrics"] and is_best(entry["metrics"], best["metrics"], metric):
                best = entry
        folder.publish(best["checkpoint"], best["metrics"], is_best=True, keep=0)
    folder.publish(newest["checkpoint"], newest["metrics"], is_best=False, keep=0)
    log.warning("going on from %s instead", newest["checkpoint"])


def _whole(folder: RunFolder, name: str) -> _Entry | None:
    """What latest.json would say of a checkpoint; None, with a line in the log, if training cannot continue from it."""
    address = folder.address(name)
    try:
        meta, _, trainer = read_checkpoint(address)
        Position.from_dict(trainer)
        return {"checkpoint": name, "metrics": check_row(meta.get("metrics"), address)}
    except (CheckpointError, NotFoundError, DamagedFileError) as error:
        log.warning("%s cannot be used: %s", name, error)
        return None
