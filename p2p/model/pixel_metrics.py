"""What outputs and targets are compared by, pixel by pixel: one number for each image of a batch.

Images are (B, H, W, C) on the 0..255 scale, uint8 or float. Every number depends on its own image alone, to the bit,
and differences of uint8 are added as whole numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from p2p.model.tensors import nearest_colour

Palette: TypeAlias = Sequence[Sequence[int]]
"""RGB colours, 0..255."""

PSNR_CAP = 100.0
"""dB. Identical images have infinite PSNR; the cap keeps means finite. A difference of one level in one value of a
256x256 RGB image is 101 dB, so no visible difference reaches the cap."""
PIXEL_TOLERANCE = 10
"""Largest difference, in levels of 255, in any channel of a pixel that `pixel_accuracy` counts as correct."""
_PEAK = 255.0
_SSIM_WINDOW, _SSIM_SIGMA, _SSIM_K1, _SSIM_K2 = 11, 1.5, 0.01, 0.03
_WEIGHT_SUM = 2**24
_DETAIL_FLOOR = 1.0
"""Squared levels. Added to the energy of both images, so that flat targets have a ratio too."""


class ImagePairs:
    """Outputs and targets of a batch, and what several metrics need of them."""

    def __init__(self, outputs: Tensor, targets: Tensor) -> None:
        self.outputs, self.targets = outputs, targets

    @functools.cached_property
    def distances(self) -> Tensor:
        """|output - target|, (B, H, W, C): int16 of uint8 images, else float64."""
        return (_signed(self.outputs) - _signed(self.targets)).abs_()

    @functools.cached_property
    def mean_square(self) -> Tensor:
        """Mean of squared distances of each image, (B,) float64."""
        return _mean_square(self.distances)

    @functools.cached_property
    def largest(self) -> Tensor:
        """The largest distance among each pixel's channels, (B, H, W)."""
        return functools.reduce(torch.maximum, self.distances.unbind(dim=3))


def _signed(images: Tensor) -> Tensor:
    return images.to(torch.int16 if images.dtype == torch.uint8 else torch.float64)


def _mean(values: Tensor) -> Tensor:
    """(B, ...) -> (B,) float64; whole numbers are added exactly."""
    flat = values.flatten(1)
    total = flat.sum(dim=1) if flat.is_floating_point() else flat.sum(dim=1, dtype=torch.int64)
    return total.double() / max(1, flat.shape[1])


def _mean_square(values: Tensor) -> Tensor:
    return _mean(values.to(torch.int32).square_() if values.dtype == torch.int16 else values.square())


def l1(pairs: ImagePairs) -> Tensor:
    """Mean |output - target| / 255 of each image, (B,) in [0, 1]; on a [-1, 1] scale it would read twice that."""
    return _mean(pairs.distances) / _PEAK


def rmse(pairs: ImagePairs) -> Tensor:
    """Root of the mean squared difference over pixels and channels, (B,) in levels of 255.

    Published figures for maps (Fu et al., "Geometry-consistent generative adversarial networks", CVPR 2019) add the
    channels up without dividing by their number: they are sqrt(3) times as large.
    """
    return pairs.mean_square.sqrt()


def psnr(pairs: ImagePairs) -> Tensor:
    """10 log10(255² / mean squared error) of each image, (B,) in dB, at most `PSNR_CAP`."""
    ratio = _PEAK**2 / pairs.mean_square
    return (10.0 * torch.log10(ratio)).clamp(max=PSNR_CAP)  # error 0 gives inf, which the clamp takes


def pixel_accuracy(pairs: ImagePairs) -> Tensor:
    """Share of pixels whose every channel is within `PIXEL_TOLERANCE` levels of the target, (B,) in [0, 1]."""
    return _mean(pairs.largest <= PIXEL_TOLERANCE)


def pixel_accuracy_below(tolerance: int) -> Callable[[ImagePairs], Tensor]:
    """The share of pixels whose every channel differs by less than `tolerance` levels, of each image, (B,) in [0, 1].

    The pixel accuracy of map translation in Fu et al., "Geometry-consistent generative adversarial networks for
    one-sided unsupervised domain mapping", CVPR 2019, section 4.2, with tolerances of 5 and 10.
    """
    return lambda pairs: _mean(pairs.largest < tolerance)


def _detail_energy(images: Tensor) -> Tensor:
    signed = _signed(images)
    across, down = signed[:, :, 1:] - signed[:, :, :-1], signed[:, 1:] - signed[:, :-1]
    return _mean_square(across) + _mean_square(down)


def detail(pairs: ImagePairs) -> Tensor:
    """Energy of the differences between neighbouring pixels, the output's by the target's, (B,), 0 or more.

    1: as sharp as the target; below: blurred, as L1 alone makes outputs; above: noisy or checkered.
    """
    return (_detail_energy(pairs.outputs) + _DETAIL_FLOOR) / (_detail_energy(pairs.targets) + _DETAIL_FLOOR)


def _gaussian(size: int) -> list[float]:
    """Weights that float32 holds exactly, with a sum of exactly 1: else flat areas would have a variance."""
    weights = [math.exp(-((position - (size - 1) / 2) ** 2) / (2 * _SSIM_SIGMA**2)) for position in range(size)]
    whole = [round(weight / sum(weights) * _WEIGHT_SUM) for weight in weights]
    whole[size // 2] += _WEIGHT_SUM - sum(whole)
    return [weight / _WEIGHT_SUM for weight in whole]


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


def _ssim_of_planes(x: Tensor, y: Tensor, window: int) -> Tensor:
    """(N, H, W) -> (N,).

    Of sum and difference, s and d, of both: (2 cov + c) / (var x + var y + c) is 1 - 2 var d / (var s + var d + 2 c),
    and means likewise. Nothing large is subtracted where the images are alike, so float32 is enough; the sum is taken
    from its plane's mean, for the same reason.
    """
    total, difference = x + y, x - y
    middle = total.mean(dim=(1, 2), keepdim=True).round_()
    total -= middle
    mean_s, mean_d = _smooth(total, window), _smooth(difference, window)
    var_s = _smooth(total.square_(), window).sub_(mean_s.square())
    square_d = mean_d.square_()
    var_d = _smooth(difference.square_(), window).sub_(square_d)
    c1, c2 = (_SSIM_K1 * _PEAK) ** 2, (_SSIM_K2 * _PEAK) ** 2
    luminance = square_d / mean_s.add_(middle).square_().add_(square_d).add_(2 * c1)
    structure = var_d / var_s.add_(var_d).add_(2 * c2)
    return _mean(luminance.mul_(-2).add_(1).mul_(structure.mul_(-2).add_(1)).double())


def ssim(pairs: ImagePairs) -> Tensor:
    """Structural similarity of each image, (B,), mean over positions and channels.

    Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural similarity", IEEE
    TIP 13(4), 2004, equation 13: K1 = 0.01, K2 = 0.03, Gaussian 11x11 window of sigma 1.5, windows within the
    image. Within 1e-6 of scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=255, channel_axis=-1)`. Images with a side below 11 use the largest odd
    window that fits.
    """
    batch, height, width, channels = pairs.outputs.shape
    side = min(_SSIM_WINDOW, height, width)
    window = side - 1 + side % 2
    x, y = (
        images.permute(0, 3, 1, 2).reshape(-1, height, width).to(torch.float32)
        for images in (pairs.outputs, pairs.targets)
    )
    # One plane at a time stays in a CPU's cache, and takes less than half the time of all.
    at_once = 1 if x.device.type == "cpu" else len(x)
    planes = [
        _ssim_of_planes(*part, window) for part in zip(torch.split(x, at_once), torch.split(y, at_once), strict=True)
    ]
    return torch.cat(planes).reshape(batch, channels).mean(dim=1)


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


def _mean_share(hits: Tensor, totals: Tensor) -> Tensor:
    """(..., K) hits out of totals -> (...) mean share over the classes that have a total."""
    present = totals > 0
    shares = torch.where(present, hits / totals.clamp(min=1), torch.zeros_like(hits))
    return shares.sum(dim=-1) / present.sum(dim=-1)


def class_accuracy(counts: Tensor) -> Tensor:
    """(..., K, K) confusion -> (...) mean over the targets' classes of the share of their pixels that is right, [0, 1].

    The per-class accuracy of Long, Shelhamer, Darrell, "Fully convolutional networks for semantic segmentation", CVPR
    2015, section 5, as pix2pix has it beside per-pixel accuracy and IoU: a class that covers most pixels hides no
    other.
    """
    return _mean_share(counts.diagonal(dim1=-2, dim2=-1).double(), counts.sum(dim=-1).double())


def palette_iou(counts: Tensor) -> Tensor:
    """(..., K, K) confusion -> (...) mean over classes of intersection / union, [0, 1].

    Classes that occur in neither outputs nor targets are left out of the mean (Everingham et al., "The
    PASCAL visual object classes challenge", IJCV 2015, section 4.4; counts summed over the set, as there).
    """
    hits = counts.diagonal(dim1=-2, dim2=-1).double()
    return _mean_share(hits, counts.sum(dim=-1).double() + counts.sum(dim=-2).double() - hits)


IMAGE_METRICS: Mapping[str, Callable[[ImagePairs], Tensor]] = {
    "l1": l1,
    "rmse": rmse,
    "psnr": psnr,
    "ssim": ssim,
    "pixel_accuracy": pixel_accuracy,
    "pixel_accuracy_5": pixel_accuracy_below(5),
    "pixel_accuracy_10": pixel_accuracy_below(10),
    "detail": detail,
}
"""What makes one number of each image."""
CONFUSION_METRICS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "palette_accuracy": palette_accuracy,
    "class_accuracy": class_accuracy,
    "palette_iou": palette_iou,
}
"""What makes (..., K, K) counts (...) values of a metric."""
