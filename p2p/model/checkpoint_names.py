"""Names of checkpoints, and of the sample sheets drawn beside them, by epoch and step. Without torch."""

from __future__ import annotations

import math
import re

CHECKPOINT_NAME = r"epoch_\d+(?:_step_\d+)?"
"""Regular expression for such a name."""
CHECKPOINTS = "checkpoints"
"""Folder of a run's checkpoints."""
META = "meta.json"
"""File of a checkpoint, without which its folder is none."""
_PATH = re.compile(rf"{CHECKPOINTS}/{CHECKPOINT_NAME}")
_NAME = re.compile(r"epoch_(\d+)(?:_step_(\d+))?")


def checkpoint_name(epoch: int, step: int | None = None) -> str:
    """`epoch_0010` for the end of an epoch, `epoch_0010_step_00005000` for an optimiser step within it."""
    return f"epoch_{epoch:04d}" + ("" if step is None else f"_step_{step:08d}")


def parse_checkpoint_name(name: str) -> tuple[int, float] | None:
    """(epoch, step, or infinity for its end) of a `checkpoint_name`, ascending with time; None for other names."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), math.inf if match[2] is None else int(match[2])) if match else None


def is_checkpoint_path(path: object) -> bool:
    """Whether `path` is of the form `checkpoints/epoch_0010`, as best.json and latest.json contain it."""
    return isinstance(path, str) and _PATH.fullmatch(path) is not None
