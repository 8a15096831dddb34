"""Metrics of outputs against their targets, for each image and for a whole set.

Images are (B, H, W, C) on the 0..255 scale, uint8 or float; `measure` scales uint16 to it. Everything is computed on
the tensors' device, and only `MetricTotals.result` waits for it. There are three steps, also of metrics over features
of a pretrained network:

    features     computed for each image              error maps, palette classes, 2048 numbers of Inception
    statistics   summed over images                   one number per image; a confusion matrix; means and covariances
    metric       the number that is reported          the mean; intersection over union; FID
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from p2p.errors import ConfigError
from p2p.model.pixel_metrics import (
    CONFUSION_METRICS,
    IMAGE_METRICS,
    PIXEL_TOLERANCE,
    ImagePairs,
    Palette,
    confusion,
)
from p2p.model.tensors import to_levels


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Name, unit and direction of a metric."""

    name: str
    unit: str
    """`dB`, `share` (0..1), `levels` (of 255), or empty for a plain number."""
    better: Literal["lower", "higher", "close to 1"]
    meaning: str
    """One line for reports."""
    needs_palette: bool = False
    weights: Literal["inception", "lpips"] | None = None
    """The pretrained network whose features it needs."""
    per_image: bool = True
    """Whether each image has a value of its own; FID, KID and IS are of a set."""

    def improves(self, new: float | None, old: float | None) -> bool:
        """Whether `new` is better than `old`. Any number is better than None or NaN, which are never better."""
        if new is None or math.isnan(new):
            return False
        if old is None or math.isnan(old):
            return True
        return self.loss(new) < self.loss(old)

    def loss(self, value: float) -> float:
        """A number that is lower for a better `value`; of those close to 1, twice as much is as bad as half."""
        if self.better == "close to 1":
            return abs(math.log(value)) if value > 0 else math.inf
        return value if self.better == "lower" else -value


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(name="l1", unit="", better="lower", meaning="mean absolute difference, 0 (equal) to 1"),
        Metric(name="rmse", unit="levels", better="lower", meaning="root mean square difference, levels of 255"),
        Metric(name="psnr", unit="dB", better="higher", meaning="peak signal-to-noise ratio"),
        Metric(name="ssim", unit="", better="higher", meaning="structural similarity, 1 for equal images"),
        *(
            Metric(
                name=f"pixel_accuracy_{tolerance}",
                unit="share",
                better="higher",
                meaning=f"share of pixels that differ by less than {tolerance} levels of 255 in every channel",
            )
            for tolerance in (5, 10)
        ),
        Metric(
            name="pixel_accuracy",
            unit="share",
            better="higher",
            meaning=f"share of pixels with every channel within {PIXEL_TOLERANCE} levels of 255",
        ),
        Metric(
            name="palette_accuracy",
            unit="share",
            better="higher",
            meaning="share of pixels whose nearest palette colour is the target's",
            needs_palette=True,
        ),
        Metric(
            name="class_accuracy",
            unit="share",
            better="higher",
            meaning="share of a palette class's pixels that are right, mean over the targets' classes",
            needs_palette=True,
        ),
        Metric(
            name="palette_iou",
            unit="share",
            better="higher",
            meaning="intersection over union of palette classes, mean over classes",
            needs_palette=True,
        ),
        Metric(
            name="detail",
            unit="",
            better="close to 1",
            meaning="contrast of neighbouring pixels against the targets': below 1 blurred, above noisy or checkered",
        ),
        Metric(
            name="lpips",
            unit="",
            better="lower",
            meaning="distance of features of a classifier, 0 for equal images",
            weights="lpips",
        ),
        Metric(
            name="fid",
            unit="",
            better="lower",
            meaning="Fréchet distance of the sets' Inception features; depends on the number of images",
            weights="inception",
            per_image=False,
        ),
        Metric(
            name="kid",
            unit="",
            better="lower",
            meaning="squared kernel distance of the sets' Inception features, over all pairs, unbiased",
            weights="inception",
            per_image=False,
        ),
        Metric(
            name="is",
            unit="",
            better="higher",
            meaning="Inception score of the outputs, 10 splits; says little about maps",
            weights="inception",
            per_image=False,
        ),
    )
}
"""Every metric, in the order of tables."""


def find_metric(name: str, field: str = "metrics") -> Metric:
    """The metric called `name` (`l1`) or `val_`+name (`val_l1`). Raises ConfigError: `field` and the choices."""
    plain = name.removeprefix("val_")
    if plain not in METRICS:
        raise ConfigError(field, f"{name}: no such metric; available are {', '.join(METRICS)}")
    return METRICS[plain]


def default_metrics(has_palette: bool) -> tuple[str, ...]:
    """Names of all metrics that need no pretrained network, with or without a known palette."""
    return tuple(
        name for name, metric in METRICS.items() if not metric.weights and (has_palette or not metric.needs_palette)
    )


@dataclass(frozen=True)
class Measured:
    """Statistics of one batch."""

    values: dict[str, Tensor]
    """Metric name -> (B,) float64."""
    confusion: Tensor | None
    """(B, K, K) int64 if a palette metric was requested."""


def measure(outputs: Tensor, targets: Tensor, names: Sequence[str], palette: Palette | None = None) -> Measured:
    """Measure each image of a batch: (B, H, W, C) outputs and targets, uint8 or float on the 0..255 scale, or uint16.

    names: metrics without a pretrained network. `palette_iou` of one image is the mean over the classes
    that the image or its target has.
    """
    if outputs.shape != targets.shape or outputs.ndim != 4:
        raise ValueError(
            f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} must be (B, H, W, C) of equal shape"
        )
    outputs, targets = to_levels(outputs), to_levels(targets)
    counts = None
    if any(METRICS[name].needs_palette for name in names):
        if not palette:
            raise ValueError("palette metrics need a palette")
        counts = confusion(outputs, targets, palette)
    pairs, values = ImagePairs(outputs, targets), {}
    for name in names:
        if name in IMAGE_METRICS:
            values[name] = IMAGE_METRICS[name](pairs)
        else:
            assert counts is not None
            values[name] = CONFUSION_METRICS[name](counts)
    return Measured(values, counts)


class MetricTotals:
    """Metrics of a whole set, summed batch by batch: means over images, and palette metrics over all pixels.

    Example:
        >>> totals = MetricTotals()
        >>> import torch
        >>> targets = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
        >>> totals.add(measure(targets + 51, targets, ["l1", "pixel_accuracy"]))
        >>> totals.result()
        {'l1': 0.2, 'pixel_accuracy': 0.0}

    """

    def __init__(self) -> None:
        self.count = 0
        self._sums: dict[str, Tensor] = {}
        self._confusion: Tensor | None = None

    def add(self, measured: Measured) -> None:
        """Add the statistics of a batch. Never waits for the device."""
        self.count += len(next(iter(measured.values.values())))
        for name, values in measured.values.items():
            total = values.sum()
            self._sums[name] = self._sums[name] + total if name in self._sums else total
        if measured.confusion is not None:
            counts = measured.confusion.sum(dim=0)
            self._confusion = counts if self._confusion is None else self._confusion + counts

    def result(self) -> dict[str, float]:
        """Metric name -> value over everything added; empty if nothing was added. Waits for the device."""
        values = {}
        for name in self._sums:
            if name in CONFUSION_METRICS and self._confusion is not None:
                values[name] = float(CONFUSION_METRICS[name](self._confusion))
            else:
                values[name] = float(self._sums[name]) / self.count
        return values
