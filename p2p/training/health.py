"""What the numbers of a run say about it: findings a person can act on. Pure functions over metrics rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from p2p.training.run_folder import MetricsRow

_WINDOW = 5
"""Epochs that must agree before anything is said."""
_WON = 0.1
_CLIMBED = 3.0
_LOG_2 = math.log(2.0)
_NEAR_LOG_2 = 0.02
_FLAT = 0.01
_STARVED = 0.2
_WORSE_EPOCHS = 10


class Finding(TypedDict):
    """One thing worth knowing about a run."""

    finding: str
    numbers: dict[str, float]
    advice: str


def not_finite(losses: Mapping[str, float]) -> list[str]:
    """Names of the losses that are NaN or infinite."""
    return [name for name, value in losses.items() if not math.isfinite(value)]


def _mean(rows: Sequence[MetricsRow], name: str) -> float:
    return float(sum(row[name] for row in rows) / len(rows))


def _discriminator_won(rows: Sequence[MetricsRow], config: Mapping[str, Any]) -> Finding | None:
    recent = rows[-_WINDOW:]
    if config["gan_mode"] != "vanilla" or len(recent) < _WINDOW:
        return None
    numbers = {name: _mean(recent, name) for name in ("d_real", "d_fake", "g_gan")}
    if max(numbers["d_real"], numbers["d_fake"]) > _WON or numbers["g_gan"] < _CLIMBED:
        return None
    return {
        "finding": "the discriminator has won: it tells every output from its target",
        "numbers": numbers,
        "advice": "try --label-smoothing 0.1, a smaller --ndf or --discriminator patch_16, or more training pairs",
    }


def _generator_won(rows: Sequence[MetricsRow], config: Mapping[str, Any]) -> Finding | None:
    recent = rows[-_WINDOW:]
    if config["gan_mode"] != "vanilla" or len(recent) < _WINDOW:
        return None
    numbers = {name: _mean(recent, name) for name in ("d_real", "d_fake", "g_gan")}
    if numbers["g_gan"] > _WON or numbers["d_fake"] < _CLIMBED:
        return None
    return {
        "finding": "the generator has won: the discriminator takes every output for a target",
        "numbers": numbers,
        "advice": "try a larger --ndf or --discriminator patch_70, and check that both sides are aligned",
    }


def _undecided(rows: Sequence[MetricsRow], config: Mapping[str, Any]) -> Finding | None:
    recent = rows[-_WINDOW:]
    if config["gan_mode"] != "vanilla" or config["label_smoothing"] or len(recent) < _WINDOW:
        return None
    numbers = {name: _mean(recent, name) for name in ("d_real", "d_fake")}
    if any(abs(value - _LOG_2) > _NEAR_LOG_2 for value in numbers.values()):
        return None
    return {
        "finding": "both discriminator losses stay at log 2 = 0.69: it only guesses which of two is the output",
        "numbers": numbers,
        "advice": "fine if samples look right; else try a larger --ndf, a higher --lr, or another --norm",
    }


def _flat_l1(rows: Sequence[MetricsRow], config: Mapping[str, Any]) -> Finding | None:
    if not config["lambda_l1"] or len(rows) < 2 * _WINDOW:
        return None
    first, last = _mean(rows[:_WINDOW], "g_l1"), _mean(rows[-_WINDOW:], "g_l1")
    if last < first * (1 - _FLAT):
        return None
    return {
        "finding": "L1 has not fallen since the first epochs: the generator is not learning the targets",
        "numbers": {"g_l1_first": first, "g_l1_last": last},
        "advice": "check --direction and that A and B show the same place; then try another --lr",
    }


def _overfitting(rows: Sequence[MetricsRow], config: Mapping[str, Any]) -> Finding | None:
    del config
    known = [row for row in rows if row.get("val_l1") is not None]
    if len(known) <= _WORSE_EPOCHS:
        return None
    best = min(range(len(known)), key=lambda index: known[index]["val_l1"])
    since = len(known) - 1 - best
    if since < _WORSE_EPOCHS or known[-1]["g_l1"] >= known[best]["g_l1"]:
        return None
    return {
        "finding": f"validation has been getting worse for {since} epochs while training improves",
        "numbers": {
            "best_epoch": known[best]["epoch"],
            "val_l1_best": known[best]["val_l1"],
            "val_l1_last": known[-1]["val_l1"],
        },
        "advice": "use the best checkpoint (translate takes it by itself); try --patience 10 or more training pairs",
    }


def _starved(rows: Sequence[MetricsRow], config: Mapping[str, Any]) -> Finding | None:
    del config
    recent = [row for row in rows[-_WINDOW:] if row.get("data_wait") is not None]
    if not recent or _mean(recent, "data_wait") <= _STARVED:
        return None
    return {
        "finding": "training waits for its data",
        "numbers": {"data_wait": _mean(recent, "data_wait")},
        "advice": "give the cluster more CPUs, store the pairs smaller (prepare --load-size), or move them nearer",
    }


_CHECKS = (_discriminator_won, _generator_won, _undecided, _flat_l1, _overfitting, _starved)


def findings(rows: Sequence[MetricsRow], config: Mapping[str, Any]) -> list[Finding]:
    """What stands out in a run: `rows` of metrics.jsonl in order, `config` as in config.json."""
    return [finding for check in _CHECKS if (finding := check(rows, config)) is not None]
