"""Checkpoint + corpus -> translated corpus, each input exactly once."""

from __future__ import annotations

from typing import Any

from p2p.translation.config import TranslateConfig

__all__ = ["TranslateConfig", "translate"]


def translate(config: TranslateConfig) -> dict[str, Any]:
    """Translate every image of `config.source`; returns what `summary.json` says.

    Raises UsageError before any work starts, NotGoodEnoughError after all of it is done and written.
    """
    from p2p.translation.job import run

    return run(config)
