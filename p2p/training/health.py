"""What the numbers of a run say about it: findings a person can act on. Pure functions over metrics rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from p2p.model.gan_health import balance_of
from p2p.model.metrics import find_metric
from p2p.training.run_folder import MetricsRow

_WINDOW = 5
"""Epochs that must agree before anything is said."""
_FLAT = 0.01
_STARVED = 0.2
_WORSE_EPOCHS = 10
_SAME = 0.1
"""Outputs that differ less than this share of what their targets differ by count as the same."""


class Finding(TypedDict):
    """One thing worth knowing about a run."""

    finding: str
    numbers: dict[str, float]
    advice: str


def not_finite(losses: Mapping[str, float]) -> list[str]:
    """Names of the losses that are NaN or infinite."""
    return [name for name, value in losses.items() if not math.isfinite(value)]


def broken(names: Sequence[str], epoch: int, step: int, lr: float) -> Finding:
    """Why training stopped: `names` of losses, or of networks, hold numbers that are no longer finite."""
    return {
        "finding": f"{', '.join(names)} no longer finite (NaN or infinite): training stopped",
        "numbers": {"epoch": epoch, "step": step, "lr": lr},
        "advice": "try a lower --lr, --precision fp32, or --norm instance, with --resume never or another --output",
    }


def describe_finding(finding: Finding) -> str:
    """A finding as one line for the log."""
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in finding["numbers"].items())
    return f"health: {finding['finding']} ({numbers}); {finding['advice']}"


def _mean(rows: Sequence[MetricsRow], name: str) -> float:
    return float(sum(row[name] for row in rows) / len(rows))


def _discriminator_won(rows: Sequence[MetricsRow], config: Mapping[str, Any]) -> Finding | None:
    recent, balance = rows[-_WINDOW:], balance_of(config["gan_mode"], config["label_smoothing"])
    if balance is None or len(recent) < _WINDOW:
        return None
    numbers = {name: _mean(recent, name) for name in ("d_real", "d_fake", "g_gan")}
    sure = numbers["d_real"] - balance.perfect_real <= balance.near and numbers["d_fake"] <= balance.near
    if not sure or numbers["g_gan"] < balance.hopeless_g_gan:
        return None
    smoothing = "" if config["label_smoothing"] or config["gan_mode"] == "hinge" else "--label-smoothing 0.1, "
    return {
        "finding": "the discriminator has won: it recognises every output",
        "numbers": numbers,
        "advice": f"try {smoothing}a smaller --ndf or --discriminator patch_16, or more training pairs",
    }


def _generator_won(rows: Sequence[MetricsRow], config: Mapping[str, Any]) -> Finding | None:
    recent, balance = rows[-_WINDOW:], balance_of(config["gan_mode"], config["label_smoothing"])
    if balance is None or len(recent) < _WINDOW:
        return None
    numbers = {name: _mean(recent, name) for name in ("d_real", "d_fake", "g_gan")}
    if numbers["g_gan"] > balance.fooling_g_gan or numbers["d_fake"] < balance.fooled_d_fake:
        return None
    return {
        "finding": "the generator has won: the discriminator takes every output for a target",
        "numbers": numbers,
        "advice": "try a larger --ndf or --discriminator patch_70, and check that both sides are aligned",
    }


def _undecided(rows: Sequence[MetricsRow], config: Mapping[str, Any]) -> Finding | None:
    recent, balance = rows[-_WINDOW:], balance_of(config["gan_mode"], config["label_smoothing"])
    if balance is None or len(recent) < _WINDOW:
        return None
    numbers = {name: _mean(recent, name) for name in ("d_real", "d_fake")}
    guess = {"d_real": balance.guess_real, "d_fake": balance.guess_fake}
    if any(abs(numbers[name] - value) > balance.guess_within for name, value in guess.items()):
        return None
    return {
        "finding": f"both discriminator losses stay at {balance.guess_words}: it only guesses which one is the output",
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


def _same_outputs(rows: Sequence[MetricsRow], config: Mapping[str, Any]) -> Finding | None:
    del config
    known = [row for row in rows if row.get("output_variety") is not None]
    recent = known[-_WINDOW:]
    if len(recent) < _WINDOW or any(row["output_variety"] >= _SAME * row["target_variety"] for row in recent):
        return None
    return {
        "finding": "outputs are nearly identical for different inputs: the generator ignores its input",
        "numbers": {name: _mean(recent, name) for name in ("output_variety", "target_variety")},
        "advice": "past the first thousand steps, check --direction and that inputs differ; then try another --norm "
        "or a lower --lr",
    }


def _overfitting(rows: Sequence[MetricsRow], config: Mapping[str, Any]) -> Finding | None:
    metric = config["best_metric"]
    known = [row for row in rows if row.get(metric) is not None]
    if len(known) <= _WORSE_EPOCHS:
        return None
    improves = find_metric(metric, "best_metric").improves
    best = 0
    for index, row in enumerate(known):
        if improves(row[metric], known[best][metric]):
            best = index
    since = len(known) - 1 - best
    learned = "g_l1" if config["lambda_l1"] else "g_gan"
    if since < _WORSE_EPOCHS or known[-1][learned] >= known[best][learned]:
        return None
    return {
        "finding": f"validation has been getting worse for {since} epochs while training improves",
        "numbers": {
            "best_epoch": known[best]["epoch"],
            f"{metric}_best": known[best][metric],
            f"{metric}_last": known[-1][metric],
            f"{learned}_best": known[best][learned],
            f"{learned}_last": known[-1][learned],
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


_CHECKS = (_discriminator_won, _generator_won, _undecided, _flat_l1, _same_outputs, _overfitting, _starved)


def findings(rows: Sequence[MetricsRow], config: Mapping[str, Any]) -> list[Finding]:
    """What stands out in a run: `rows` of metrics.jsonl in order, `config` as in config.json."""
    return [finding for check in _CHECKS if (finding := check(rows, config)) is not None]
