"""Raw pairs of images -> a prepared data set that training and evaluation stream."""

from __future__ import annotations

from typing import Any

from p2p.preparation.config import PrepareConfig


def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Write the prepared data set and return its summary: `pairs` per split, `bad`, `seconds`.

    Raises:
        UsageError: nothing usable at the source, or the output cannot be written; found before any work starts.
        TooManyBadInputsError: everything is written, but more inputs were bad than `config.max_bad_fraction` allows.

    """
    from p2p.preparation.job import run

    return run(config)


__all__ = ["PrepareConfig", "prepare"]
