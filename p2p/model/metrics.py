"""Metrics of outputs against their targets, for each image and for a whole set.

Images are (B, H, W, C) on the 0..255 scale, uint8 or float; `measure` scales uint16 to it. Everything is computed on
the tensors' device, and only `MetricTotals.result` waits for it. There are three steps, which metrics over features
of a network would have too:

    features     computed for each image              error maps, palette classes
    statistics   summed over images                   one number per image; a confusion matrix
    metric       the number that is reported          the mean; intersection over union
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from p2p.errors import ConfigError
from p2p.model.tensors import nearest_colour, to_levels

Palette: TypeAlias = Sequence[Sequence[int]]
"""RGB colours, 0..255."""

PSNR_CAP = 100.0
"""dB. Identical images have infinite PSNR; the cap keeps means finite. A difference of one level in one value of a
256x256 RGB image is 101 dB, so no visible difference reaches the cap."""
PIXEL_TOLERANCE = 10
"""Largest difference, in levels of 255, in any channel of a pixel that `pixel_accuracy` counts as correct."""
_PEAK = 255.0
_SSIM_WINDOW, _SSIM_SIGMA, _SSIM_K1, _SSIM_K2 = 11, 1.5, 0.01, 0.03


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Name, unit and direction of a metric."""

    name: str
    unit: str
    """`dB`, `share` (0..1), or empty for a plain number."""
    better: Literal["lower", "higher"]
    meaning: str
    """One line for reports."""
    needs_palette: bool = False

    def improves(self, new: float | None, old: float | None) -> bool:
        """Whether `new` is better than `old`. Any number is better than None or NaN, which are never better."""
        if new is None or math.isnan(new):
            return False
        if old is None or math.isnan(old):
            return True
        return new < old if self.better == "lower" else new > old


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(name="l1", unit="", better="lower", meaning="mean absolute difference, 0 (equal) to 1"),
        Metric(name="psnr", unit="dB", better="higher", meaning="peak signal-to-noise ratio"),
        Metric(name="ssim", unit="", better="higher", meaning="structural similarity, 1 for equal images"),
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
            name="palette_iou",
            unit="share",
            better="higher",
            meaning="intersection over union of palette classes, mean over classes",
            needs_palette=True,
        ),
    )
}
"""Every metric that can be computed, in the order of tables."""

NEEDS_WEIGHTS: Mapping[str, str] = {
    "lpips": "lpips_weights",
    "fid": "inception_weights",
    "kid": "inception_weights",
    "is": "inception_weights",
}
"""Metrics over features of a pretrained network, not computed yet, and the field of its weights."""


def find_metric(name: str, field: str = "metrics") -> Metric:
    """The metric called `name` (`l1`) or `val_`+name (`val_l1`). Raises ConfigError: `field` and the choices."""
    plain = name.removeprefix("val_")
    if plain in NEEDS_WEIGHTS:
        raise ConfigError(
            field,
            f"{name}: this version does not compute {plain} yet; it needs a pretrained network "
            f"({NEEDS_WEIGHTS[plain]}). Leave it out; available are {', '.join(METRICS)}",
        )
    if plain not in METRICS:
        raise ConfigError(field, f"{name}: no such metric; available are {', '.join(METRICS)}")
    return METRICS[plain]


def default_metrics(has_palette: bool) -> tuple[str, ...]:
    """Names of all metrics that can be computed, with or without a known palette."""
    return tuple(name for name, metric in METRICS.items() if has_palette or not metric.needs_palette)


# Features and statistics: (B, H, W, C) images -> one number per image


def l1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean |output - target| / 255 of each image, (B,) in [0, 1]; on a [-1, 1] scale it would read twice that."""
    return (outputs.double() - targets.double()).abs().mean(dim=(1, 2, 3)) / _PEAK


def psnr(outputs: Tensor, targets: Tensor) -> Tensor:
    """10 log10(255² / mean squared error) of each image, (B,) in dB, at most `PSNR_CAP`."""
    error = (outputs.double() - targets.double()).square().mean(dim=(1, 2, 3))
    return (10.0 * torch.log10(_PEAK**2 / error)).clamp(max=PSNR_CAP)  # error 0 gives inf, which the clamp takes


def _gaussian(size: int) -> list[float]:
    weights = [math.exp(-((position - (size - 1) / 2) ** 2) / (2 * _SSIM_SIGMA**2)) for position in range(size)]
    return [weight / sum(weights) for weight in weights]


def _smooth(planes: Tensor, window: int) -> Tensor:
    """Gaussian mean over every window within the image; (N, H, W) -> (N, H-w+1, W-w+1)."""
    weights = _gaussian(window)
    # Shifted sums in place, one axis after the other: on a CPU ten times as fast as a depthwise convolution.
    height, width = planes.shape[1] - window + 1, planes.shape[2] - window + 1
    columns = planes[:, :height] * weights[0]
    for shift in range(1, window):
        columns.add_(planes[:, shift : shift + height], alpha=weights[shift])
    smooth = columns[:, :, :width] * weights[0]
    for shift in range(1, window):
        smooth.add_(columns[:, :, shift : shift + width], alpha=weights[shift])
    return smooth


def ssim(outputs: Tensor, targets: Tensor) -> Tensor:
    """Structural similarity of each image, (B,), mean over positions and channels.

    Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural similarity", IEEE
    TIP 13(4), 2004, equation 13: K1 = 0.01, K2 = 0.03, Gaussian 11x11 window of sigma 1.5, windows within the
    image. Equal to scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=255, channel_axis=-1)`. Images with a side below 11 use the largest odd
    window that fits.
    """
    batch, height, width, channels = outputs.shape
    side = min(_SSIM_WINDOW, height, width)
    window = side - 1 + side % 2
    x, y = (
        images.permute(0, 3, 1, 2).reshape(batch * channels, height, width).double() for images in (outputs, targets)
    )
    mean_x, mean_y = _smooth(x, window), _smooth(y, window)
    var_x = _smooth(x * x, window) - mean_x * mean_x
    var_y = _smooth(y * y, window) - mean_y * mean_y
    covariance = _smooth(x * y, window) - mean_x * mean_y
    c1, c2 = (_SSIM_K1 * _PEAK) ** 2, (_SSIM_K2 * _PEAK) ** 2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x * mean_x + mean_y * mean_y + c1) * (var_x + var_y + c2)
    )
    return similarity.reshape(batch, -1).mean(dim=1)


def pixel_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of pixels whose every channel is within `PIXEL_TOLERANCE` levels of the target, (B,) in [0, 1].

    The pixel accuracy of map translation in Isola et al., CVPR 2017, and Zhu et al., ICCV 2017 (CycleGAN): a pixel is
    correct if max |output - target| over its channels is at most a tolerance.
    """
    worst = (outputs.to(torch.float32) - targets.to(torch.float32)).abs().amax(dim=3)
    return (worst <= PIXEL_TOLERANCE).double().mean(dim=(1, 2))


def confusion(outputs: Tensor, targets: Tensor, palette: Palette) -> Tensor:
    """(B, K, K) int64 pixel counts: row = the target's nearest palette colour, column = the output's."""
    if outputs.shape[3] != 3:
        raise ValueError(f"a palette names RGB colours, the images have {outputs.shape[3]} channels")
    size = len(palette)
    colours = torch.tensor([list(colour) for colour in palette], dtype=torch.float32)
    colours = colours.to(outputs.device, non_blocking=True)
    cells = nearest_colour(targets, colours) * size + nearest_colour(outputs, colours)
    batch = cells.shape[0]
    cells += torch.arange(batch, device=cells.device).view(-1, 1, 1) * size**2
    counts = torch.zeros(batch * size**2, dtype=torch.int64, device=cells.device)
    one = counts.new_ones(1)
    # As quick as bincount, which on a GPU waits for the largest of the values.
    return counts.index_add_(0, cells.flatten(), one.expand(cells.numel())).view(batch, size, size)


# Metrics over confusion matrices, which can be summed over images


def palette_accuracy(counts: Tensor) -> Tensor:
    """(..., K, K) confusion -> (...) share of pixels on the diagonal, [0, 1]."""
    return counts.diagonal(dim1=-2, dim2=-1).sum(dim=-1).double() / counts.sum(dim=(-2, -1)).double()


def palette_iou(counts: Tensor) -> Tensor:
    """(..., K, K) confusion -> (...) mean over classes of intersection / union, [0, 1].

    Classes that occur in neither outputs nor targets are left out of the mean (Everingham et al., "The
    PASCAL visual object classes challenge", IJCV 2015, section 4.4; counts summed over the set, as there).
    """
    hits = counts.diagonal(dim1=-2, dim2=-1).double()
    union = counts.sum(dim=-1).double() + counts.sum(dim=-2).double() - hits
    present = union > 0
    shares = torch.where(present, hits / union.clamp(min=1), torch.zeros_like(hits))
    return shares.sum(dim=-1) / present.sum(dim=-1)


_IMAGE_METRICS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": l1,
    "psnr": psnr,
    "ssim": ssim,
    "pixel_accuracy": pixel_accuracy,
}
CONFUSION_METRICS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "palette_accuracy": palette_accuracy,
    "palette_iou": palette_iou,
}
"""What makes (..., K, K) counts (...) values of a metric."""


@dataclass(frozen=True)
class Measured:
    """Statistics of one batch."""

    values: dict[str, Tensor]
    """Metric name -> (B,) float64."""
    confusion: Tensor | None
    """(B, K, K) int64 if a palette metric was requested."""


def measure(outputs: Tensor, targets: Tensor, names: Sequence[str], palette: Palette | None = None) -> Measured:
    """Measure each image of a batch: (B, H, W, C) outputs and targets, uint8 or float on the 0..255 scale, or uint16.

    `palette_iou` of one image is the mean over the classes that image or its target has.
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
    values = {}
    for name in names:
        if name in _IMAGE_METRICS:
            values[name] = _IMAGE_METRICS[name](outputs, targets)
        else:
            assert counts is not None
            values[name] = CONFUSION_METRICS[name](counts)
    return Measured(values, counts)


class MetricTotals:
    """Metrics of a whole set, summed batch by batch: means over images, and palette metrics over all pixels.

    Example:
        >>> totals = MetricTotals()
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
