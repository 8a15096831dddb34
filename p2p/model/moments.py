"""Names of moments in a run, which its checkpoints and sample sheets carry. Without torch."""

from __future__ import annotations

import math
import re

MOMENT = r"epoch_\d+(?:_step_\d+)?"
"""Regular expression of such a name."""
CHECKPOINTS = "checkpoints"
"""Folder of a run that holds its checkpoints."""
_CHECKPOINT = re.compile(rf"{CHECKPOINTS}/{MOMENT}")
_NAME = re.compile(r"epoch_(\d+)(?:_step_(\d+))?")


def moment_name(epoch: int, step: int | None = None) -> str:
    """`epoch_0010` for the end of an epoch, `epoch_0010_step_00005000` for an optimiser step within it."""
    return f"epoch_{epoch:04d}" + ("" if step is None else f"_step_{step:08d}")


def moment_of(name: str) -> tuple[int, float] | None:
    """(epoch, step, or infinity for its end) of a name made by `moment_name`, ascending with time; None for others."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), math.inf if match[2] is None else int(match[2])) if match else None


def is_checkpoint_name(name: object) -> bool:
    """Whether best.json and latest.json may give this `name`: `checkpoints/epoch_0010`, so never another place."""
    return isinstance(name, str) and _CHECKPOINT.fullmatch(name) is not None
