"""From what was measured of each pair to the figures of the set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from p2p.evaluation.evaluator import BACK, CEILING, EvaluationTask
from p2p.evaluation.feature_cache import TargetFeatures
from p2p.evaluation.pool import Results
from p2p.evaluation.protocol import data_digest, package_version
from p2p.evaluation.statistics import class_table, metric_intervals
from p2p.model.inception import RESIZE
from p2p.model.metrics import METRICS, Measured, MetricTotals
from p2p.model.networks import Generator
from p2p.model.pixel_metrics import CONFUSION_METRICS
from p2p.model.set_metrics import fid, inception_score, kid


def prefixes(task: EvaluationTask) -> list[str]:
    """Of the names of all that is measured like the outputs, whose own is empty."""
    return ["", *(f"{name}." for name in task.baselines)]


def per_image_names(task: EvaluationTask) -> list[str]:
    """The metrics that each pair has a value of."""
    return [name for name in task.metrics if METRICS[name].per_image]


def set_figures(task: EvaluationTask, results: Results, known: TargetFeatures) -> dict[str, float]:
    """Each metric over all pairs, of outputs, baselines (`untrained.l1`) and a round trip.

    known: features of targets that were computed before; those of `results` are added. All features are taken out of
        `results`: they are 8 KiB each, and the rows of every checkpoint of a run are kept.
    """
    figures: dict[str, float] = {"n": len(results)}
    for prefix in prefixes(task):
        figures |= _totals(task, results, prefix)
    if task.inception:
        for row in results:
            known.setdefault(str(row["target_sha256"]), np.asarray(row.pop("target_features"), np.float32))
        targets = np.stack([known[str(row["target_sha256"])] for row in results])
        for prefix in prefixes(task):
            figures |= _feature_figures(task, results, prefix, targets)
    if task.round_trip is not None:
        for prefix in (BACK, CEILING):
            counts = torch.from_numpy(_counts(results, prefix, len(task.input_palette or ())).sum(axis=0))
            figures |= {f"{prefix}{name}": float(metric(counts)) for name, metric in CONFUSION_METRICS.items()}
    return figures


def _totals(task: EvaluationTask, results: Results, prefix: str) -> dict[str, float]:
    counts = confusions(task, results, prefix)
    values = {
        name: torch.tensor([float(row[prefix + name]) for row in results], dtype=torch.float64)
        for name in per_image_names(task)
    }
    if not values:
        return {}
    totals = MetricTotals()
    totals.add(Measured(values, None if counts is None else torch.from_numpy(counts)))
    return {prefix + name: value for name, value in totals.result().items()}


def _feature_figures(
    task: EvaluationTask, results: Results, prefix: str, targets: npt.NDArray[np.float32]
) -> dict[str, float]:
    outputs = np.stack([np.asarray(row.pop(f"{prefix}features")) for row in results])
    figures: dict[str, float] = {}
    if "fid" in task.metrics:
        figures["fid"] = fid(outputs, targets)
    if "kid" in task.metrics:
        figures["kid"], figures["kid_se"] = kid(outputs, targets)
    if "is" in task.metrics:
        logits = np.stack([np.asarray(row.pop(f"{prefix}logits")) for row in results])
        figures["is"], figures["is_std"] = inception_score(logits)
    return {prefix + name: value for name, value in figures.items()}


def _counts(results: Results, prefix: str, classes: int) -> npt.NDArray[np.int64]:
    return np.array([row[f"{prefix}confusion"] for row in results], np.int64).reshape(-1, classes, classes)


def confusions(task: EvaluationTask, results: Results, prefix: str = "") -> npt.NDArray[np.int64] | None:
    """(n, K, K) pixel counts, where a palette metric was measured."""
    return _counts(results, prefix, len(task.palette or ())) if f"{prefix}confusion" in results[0] else None


def protocol(
    task: EvaluationTask, results: Results, data: str, checkpoint: str, checkpoint_id: str | None
) -> dict[str, Any]:
    """All that the figures depend on, by name, the pretrained networks apart."""
    digests = [str(row["target_sha256"]) for row in results]
    return {
        "version": package_version(),
        "n": len(results),
        "data": data,
        "data_digest": data_digest([str(row["pair_id"]) for row in results], digests),
        "split": task.pairs.split,
        "direction": "BtoA" if task.crop.swap else "AtoB",
        "region": "whole" if task.is_whole else "crop",
        "size": task.crop.crop_size,
        "norm_mode": task.norm_mode,
        "dropout": task.dropout,
        "seed": task.seed,
        "precision": "+".join(sorted({str(row["precision"]) for row in results})),
        "outputs": task.outputs.format if task.outputs else "memory",
        "palette": [list(colour) for colour in task.palette] if task.palette else None,
        "inception": None,
        "lpips": None,
        "round_trip": task.round_trip.checkpoint_id if isinstance(task.round_trip, Generator) else None,
        "checkpoint_id": checkpoint_id,
        "checkpoint": checkpoint,
    }


def pretrained(task: EvaluationTask, inception_sha256: str | None, lpips_sha256: str | None) -> dict[str, Any]:
    """The part of a protocol that names the pretrained networks which were used."""
    inception = (
        {"file": _name(task.inception), "sha256": inception_sha256, "resize": RESIZE} if task.inception else None
    )
    lpips = {"file": _name(task.lpips[0]), "sha256": lpips_sha256, "net": task.lpips[1]} if task.lpips else None
    return {"inception": inception, "lpips": lpips}


def _name(uri: str) -> str:
    return uri.rpartition("/")[2]


def intervals(task: EvaluationTask, results: Results) -> dict[str, list[float]]:
    """Of the metrics that pairs have values of."""
    values = {name: [float(row[name]) for row in results] for name in per_image_names(task)}
    return metric_intervals(values, confusions(task, results))


def classes(task: EvaluationTask, results: Results) -> list[dict[str, Any]]:
    """One row for each palette colour, or none."""
    counts = confusions(task, results)
    return [] if counts is None else class_table(task.palette or (), counts)


def by_baseline(task: EvaluationTask, figures: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Baseline -> metric -> value."""
    return {
        baseline: {
            name.removeprefix(f"{baseline}."): value
            for name, value in figures.items()
            if name.startswith(f"{baseline}.")
        }
        for baseline in task.baselines
    }
