"""What the numbers of a run say about it: findings a person can act on. Pure functions over metrics rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from p2p.model.gan_health import gan_thresholds
from p2p.training.run_folder import MetricsRow
from p2p.training.selection import epochs_without_improvement

_WINDOW = 5
"""Epochs whose mean is compared: those of a single one vary too much."""
_MIN_L1_DECREASE = 0.01
_MAX_DATA_WAIT = 0.2
_MIN_WORSE_EPOCHS = 10
_MIN_VARIETY = 0.1
"""Outputs that differ less than this share of what their targets differ by count as the same."""


class HealthFinding(TypedDict):
    """One thing worth knowing about a run."""

    finding: str
    numbers: dict[str, float]
    advice: str


def not_finite(losses: Mapping[str, float]) -> list[str]:
    """Names of the losses that are NaN or infinite."""
    return [name for name, value in losses.items() if not math.isfinite(value)]


def broken(names: Sequence[str], epoch: int, step: int, lr: float) -> HealthFinding:
    """Why training stopped: `names` of losses, or of networks, hold numbers that are no longer finite."""
    return {
        "finding": f"{', '.join(names)} no longer finite (NaN or infinite): training stopped",
        "numbers": {"epoch": epoch, "step": step, "lr": lr},
        "advice": "try a lower --lr, --precision fp32, or --norm instance, with --resume never or another --output",
    }


def describe_finding(finding: HealthFinding) -> str:
    """A finding as one line for the log."""
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in finding["numbers"].items())
    return f"health: {finding['finding']} ({numbers}); {finding['advice']}"


def _means(rows: Sequence[MetricsRow], *names: str) -> dict[str, float]:
    return {name: float(sum(row[name] for row in rows) / len(rows)) for name in names}


def _adversarial(rows: Sequence[MetricsRow], config: Mapping[str, Any]) -> HealthFinding | None:
    recent, limits = rows[-_WINDOW:], gan_thresholds(config["gan_mode"], config["label_smoothing"])
    if limits is None or len(recent) < _WINDOW:
        return None
    numbers = _means(recent, "d_real", "d_fake", "g_gan")
    d_real, d_fake, g_gan = numbers.values()
    is_perfect = max(d_real - limits.perfect_d_real, d_fake) <= limits.perfect_within
    if is_perfect and g_gan >= limits.lost_g_gan:
        smoothing = "" if config["label_smoothing"] or config["gan_mode"] == "hinge" else "--label-smoothing 0.1, "
        return {
            "finding": "the discriminator has won: it recognises every output",
            "numbers": numbers,
            "advice": f"try {smoothing}a smaller --ndf or --discriminator patch_16, or more training pairs",
        }
    if d_fake >= limits.fooled_d_fake and g_gan <= limits.fooled_g_gan:
        return {
            "finding": "the generator has won: the discriminator takes every output for a target",
            "numbers": numbers,
            "advice": "try a larger --ndf or --discriminator patch_70, and check that both sides are aligned",
        }
    if max(abs(d_real - limits.chance_d_real), abs(d_fake - limits.chance_d_fake)) <= limits.chance_within:
        chance = limits.describe_chance()
        return {
            "finding": f"both discriminator losses stay at {chance}: it only guesses which one is the output",
            "numbers": {"d_real": d_real, "d_fake": d_fake},
            "advice": "fine if samples look right; else try a larger --ndf, a higher --lr, or another --norm",
        }
    return None


def _flat_l1(rows: Sequence[MetricsRow], config: Mapping[str, Any]) -> HealthFinding | None:
    if not config["lambda_l1"] or len(rows) < 2 * _WINDOW:
        return None
    first, last = (_means(part, "g_l1")["g_l1"] for part in (rows[:_WINDOW], rows[-_WINDOW:]))
    if last < first * (1 - _MIN_L1_DECREASE):
        return None
    return {
        "finding": "L1 has not fallen since the first epochs: the generator is not learning the targets",
        "numbers": {"g_l1_first": first, "g_l1_last": last},
        "advice": "check --direction and that A and B show the same place; then try another --lr",
    }


def _same_outputs(rows: Sequence[MetricsRow], config: Mapping[str, Any]) -> HealthFinding | None:
    del config
    recent = [row for row in rows if row.get("output_variety") is not None][-_WINDOW:]
    if len(recent) < _WINDOW or any(row["output_variety"] >= _MIN_VARIETY * row["target_variety"] for row in recent):
        return None
    return {
        "finding": "outputs are nearly identical for different inputs: the generator ignores its input",
        "numbers": _means(recent, "output_variety", "target_variety"),
        "advice": "past the first thousand steps, check --direction and that inputs differ; then try another --norm "
        "or a lower --lr",
    }


def _overfitting(rows: Sequence[MetricsRow], config: Mapping[str, Any]) -> HealthFinding | None:
    metric, loss = config["best_metric"], "g_l1" if config["lambda_l1"] else "g_gan"
    measured = [row for row in rows if row.get(metric) is not None]
    since = epochs_without_improvement(measured, metric)
    if not _MIN_WORSE_EPOCHS <= since < len(measured):
        return None
    best, last = measured[-1 - since], measured[-1]
    if last[loss] >= best[loss]:
        return None
    return {
        "finding": f"validation has been getting worse for {since} epochs while training improves",
        "numbers": {
            "best_epoch": best["epoch"],
            f"{metric}_best": best[metric],
            f"{metric}_last": last[metric],
            f"{loss}_best": best[loss],
            f"{loss}_last": last[loss],
        },
        "advice": "use the best checkpoint (translate takes it by itself); try --patience 10 or more training pairs",
    }


def _waits_for_data(rows: Sequence[MetricsRow], config: Mapping[str, Any]) -> HealthFinding | None:
    del config
    recent = [row for row in rows[-_WINDOW:] if row.get("data_wait") is not None]
    if not recent or (numbers := _means(recent, "data_wait"))["data_wait"] <= _MAX_DATA_WAIT:
        return None
    return {
        "finding": "training waits for its data",
        "numbers": numbers,
        "advice": "give the cluster more CPUs, store the pairs smaller (prepare --load-size), or move them nearer",
    }


_CHECKS = (_adversarial, _flat_l1, _same_outputs, _overfitting, _waits_for_data)


def health_findings(rows: Sequence[MetricsRow], config: Mapping[str, Any]) -> list[HealthFinding]:
    """What stands out in a run: `rows` of metrics.jsonl in order, `config` as in config.json."""
    return [finding for check in _CHECKS if (finding := check(rows, config)) is not None]
