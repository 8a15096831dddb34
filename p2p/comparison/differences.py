"""How the figures of a side differ from those of the baseline, over the same pairs, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from p2p.comparison.evaluations import Colour, StoredEvaluation, Values
from p2p.model.bootstrap import RESAMPLES, Floats, bootstrap, interval
from p2p.model.metrics import METRICS
from p2p.model.pixel_metrics import CONFUSION_METRICS

_TOLERANCE = 1e-6
"""Relative; a figure of a set that is further from the mean over its pairs is no such mean."""
_NORMAL_95 = 1.96
CLASS_FIGURES = {"palette_iou": "iou", "class_accuracy": "accuracy"}
"""Metric -> what it is of one class."""
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One figure of a side and of the baseline. None stands for what is not known, or no number."""

    metric: str
    colour: Colour | None = None
    """The class, for a figure of one class."""
    baseline: float | None
    """Mean over the evaluations of the baseline."""
    value: float | None
    """Mean over the evaluations of this side."""
    interval: Interval | None = None
    """95 %, of `difference`."""
    worsening_interval: Interval | None = None
    """95 %, of `worsening`."""
    interval_by: Literal["bootstrap", "jackknife"] | None = None
    improved: float | None = None
    """Share of the pairs that are better than in the baseline."""
    worsened: float | None = None
    seeds: tuple[float | None, float | None] = (None, None)
    """Standard deviation over the evaluations of the baseline and of this side, where they are several."""

    @property
    def difference(self) -> float | None:
        """The figure of this side less that of the baseline."""
        return None if self.value is None or self.baseline is None else self.value - self.baseline

    @property
    def worsening(self) -> float | None:
        """How much more this side loses, in units of the metric; of one that should be close to 1, in its logarithm."""
        if self.value is None or self.baseline is None:
            return None
        return METRICS[self.metric].loss(self.value) - METRICS[self.metric].loss(self.baseline)

    @property
    def verdict(self) -> Literal["better", "worse", "unclear"]:
        """What the interval shows; without one nothing is shown."""
        if self.worsening_interval is None:
            return "unclear"
        low, high = self.worsening_interval
        return "worse" if low > 0 else "better" if high < 0 else "unclear"


Side = Sequence[StoredEvaluation]
"""The evaluations of one side; several are trainings with other seeds. All sides have their pairs in one order."""


def compare_sides(baseline: Side, side: Side) -> list[Difference]:
    """A difference for each figure that both or one of them has, in the order of tables, those of classes last.

    `baseline` may be empty: then nothing is compared.
    """
    resampled = _resample([*baseline, *side]) if baseline else {}
    weights = draw_seeds([len(baseline), len(side)])
    found = []
    for metric, colour in _figures(baseline, side):
        values = resampled.get((metric, colour))
        ends = None
        if values is not None:
            before, after = values[:, : len(baseline)] * weights[0], values[:, len(baseline) :] * weights[1]
            ends = before.sum(axis=1), after.sum(axis=1)
        found.append(_difference(metric, colour, baseline, side, ends))
    return found


def _figures(baseline: Side, side: Side) -> list[tuple[str, Colour | None]]:
    names = dict.fromkeys(name for one in (*baseline, *side) for name in one.metrics)
    order = {name: place for place, name in enumerate(METRICS)}
    known = sorted((name for name in names if name in METRICS), key=order.__getitem__)
    figures: list[tuple[str, Colour | None]] = [(name, None) for name in known]
    for colour in next((one.colours for one in (*baseline, *side) if one.colours), []):
        figures += [(name, colour) for name in known if name in CLASS_FIGURES]
    return figures


def _resample(evaluations: Side) -> dict[tuple[str, Colour | None], Floats]:
    """Figure -> (R, evaluations) values over the same resampled pairs; only what is the same figure of every one."""
    statistics: dict[str, npt.NDArray[Any]] = {}
    figures: dict[str, tuple[str, Callable[[Floats], Floats]]] = {}
    names: dict[str, tuple[str, Colour | None]] = {}
    pairs = len(evaluations[0].pair_ids)
    for metric in METRICS:
        if metric not in CONFUSION_METRICS and all(_is_mean(one, metric) for one in evaluations):
            statistics[metric] = np.stack([one.per_pair[metric] for one in evaluations], axis=1)
            figures[metric], names[metric] = (metric, lambda sums: sums / pairs), (metric, None)
    counts = [one.confusion for one in evaluations]
    colours = evaluations[0].colours
    if all(one is not None for one in counts):
        statistics["counts"] = np.stack([one for one in counts if one is not None], axis=1)
        for metric, formula in CONFUSION_METRICS.items():
            figures[metric], names[metric] = ("counts", _over_counts(formula)), (metric, None)
        for kind in ("iou", "accuracy"):
            figures[f"class {kind}"] = ("counts", _CLASS_FORMULAS[kind])
    if not statistics:
        return {}
    values = bootstrap(statistics, figures)
    found = {figure: values[name] for name, figure in names.items()}
    for metric, kind in CLASS_FIGURES.items():
        if f"class {kind}" in values:
            of_classes = values[f"class {kind}"]
            found |= {(metric, colour): of_classes[:, :, place] for place, colour in enumerate(colours)}
    return {figure: array for figure, array in found.items() if np.isfinite(array).all()}


def _is_mean(evaluation: StoredEvaluation, metric: str) -> bool:
    values, figure = evaluation.per_pair.get(metric), evaluation.metrics.get(metric)
    if values is None or figure is None or not np.isfinite(values).all():
        return False
    return math.isclose(float(values.mean()), figure, rel_tol=_TOLERANCE, abs_tol=1e-12)


def _over_counts(formula: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Floats], Floats]:
    return lambda counts: np.asarray(formula(torch.from_numpy(counts)).numpy())


def class_iou(counts: npt.NDArray[Any]) -> Floats:
    """(..., K, K) confusion -> (..., K) intersection over union of each class; NaN for one that nobody has."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    with np.errstate(invalid="ignore"):
        return np.asarray(hits / (counts.sum(axis=-1) + counts.sum(axis=-2) - hits))


def class_accuracy(counts: npt.NDArray[Any]) -> Floats:
    """(..., K, K) confusion -> (..., K) share of each class's pixels that are right; NaN for one without pixels."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.diagonal(counts, axis1=-2, axis2=-1) / counts.sum(axis=-1))


_CLASS_FORMULAS: Mapping[str, Callable[[npt.NDArray[Any]], Floats]] = {"iou": class_iou, "accuracy": class_accuracy}


def draw_seeds(counts: Sequence[int]) -> list[Values]:
    """For sides of so many trainings each, (R, count) weights of means over trainings drawn with replacement.

    The spread of so few is underestimated: by the divisor n for n - 1, and since it is itself uncertain. Deviations
    from the equal weights are widened by both, the latter as Student's t is wider than the normal distribution
    (Abramowitz, Stegun, "Handbook of mathematical functions", 26.7.5).
    """
    freedom = sum(count - 1 for count in counts if count)
    z, widening = _NORMAL_95, 1.0
    if freedom:
        terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
        widening += sum(term / freedom**power for power, term in enumerate(terms, 1)) / z
    weights = []
    for side, count in enumerate(counts):
        if not count:
            weights.append(np.zeros((RESAMPLES, 0)))
            continue
        drawn = np.random.default_rng([side, count]).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
        scale = widening * math.sqrt(count / max(1, count - 1))
        weights.append(1 / count + scale * (drawn / count - 1 / count))
    return weights


def _difference(
    metric: str, colour: Colour | None, baseline: Side, side: Side, resampled: tuple[Floats, Floats] | None
) -> Difference:
    """`resampled`: the baseline's figure and this side's over the resamples."""
    (before, before_spread), (after, after_spread) = (_value(one, metric, colour) for one in (baseline, side))
    shown = worsening = None
    by: Literal["bootstrap", "jackknife"] | None = None
    if resampled and before is not None and after is not None:
        by, shown, worsening = (
            "bootstrap",
            interval(resampled[1] - resampled[0]),
            interval(-gain_of(metric, *resampled)),
        )
    elif metric == "kid" and before is not None and after is not None:
        errors = [_value(one, "kid_se", None)[0] for one in (baseline, side)]
        if errors[0] is not None and errors[1] is not None:
            half = _NORMAL_95 * math.hypot(errors[0], errors[1])
            by, shown = "jackknife", (after - before - half, after - before + half)
            worsening = shown  # less is better
    improved = worsened = None
    if colour is None and baseline and all(metric in one.per_pair for one in (*baseline, *side)):
        ends = (np.mean([one.per_pair[metric] for one in group], axis=0) for group in (baseline, side))
        gain = gain_of(metric, *ends)
        improved, worsened = float((gain > 0).mean()), float((gain < 0).mean())
    return Difference(
        metric=metric,
        colour=colour,
        baseline=before,
        value=after,
        interval=shown,
        worsening_interval=worsening,
        interval_by=by,
        improved=improved,
        worsened=worsened,
        seeds=(before_spread, after_spread),
    )


def gain_of(metric: str, before: Floats, after: Floats) -> Floats:
    """How much better each of `after` is, in units of the metric."""
    if METRICS[metric].better == "close to 1":
        loss = np.vectorize(METRICS[metric].loss, otypes=[np.float64])
        return np.asarray(loss(before) - loss(after))
    return np.asarray(before - after if METRICS[metric].better == "lower" else after - before)


def _value(side: Side, metric: str, colour: Colour | None) -> tuple[float | None, float | None]:
    """Mean and standard deviation over the evaluations of a side; None where one of them has no number."""
    values = [_figure(one, metric, colour) for one in side]
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite or len(finite) < len(values):
        return None, None
    return float(np.mean(finite)), float(np.std(finite, ddof=1)) if len(finite) > 1 else None


def _figure(evaluation: StoredEvaluation, metric: str, colour: Colour | None) -> float | None:
    if colour is None:
        return evaluation.metrics.get(metric)
    if evaluation.confusion is None or colour not in evaluation.colours:
        return None
    formula = _CLASS_FORMULAS[CLASS_FIGURES[metric]]
    return float(formula(evaluation.confusion.sum(axis=0))[list(evaluation.colours).index(colour)])
