"""The metrics against independent, slow computations of their formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from p2p.errors import UsageError
from p2p.model.metrics import METRICS, PSNR_CAP, MetricTotals, default_metrics, find_metric, measure

PALETTE = [[0, 0, 0], [255, 255, 255], [255, 0, 0]]


def images(seed: int, count: int = 2, side: int = 24) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def value(name: str, outputs: torch.Tensor, targets: torch.Tensor) -> list[float]:
    return measure(outputs, targets, [name], PALETTE).values[name].tolist()


def slow_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Equation 13 of Wang et al. 2004, window by window."""
    ax = np.arange(11) - 5.0
    gauss = np.exp(-(ax**2) / (2 * 1.5**2))
    weights = np.outer(gauss, gauss) / gauss.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = []
    for c in range(3):
        for i in range(x.shape[0] - 10):
            for j in range(x.shape[1] - 10):
                a, b = (image[i : i + 11, j : j + 11, c].astype(float) for image in (x, y))
                ma, mb = (weights * a).sum(), (weights * b).sum()
                va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
                cov = (weights * (a - ma) * (b - mb)).sum()
                found.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return float(np.mean(found))


def test_l1_and_psnr_follow_their_formulas():
    x, y = images(0), images(1)
    error = x.numpy().astype(float) - y.numpy().astype(float)
    assert value("l1", x, y) == pytest.approx((np.abs(error).mean((1, 2, 3)) / 255).tolist())
    assert value("psnr", x, y) == pytest.approx((10 * np.log10(255**2 / (error**2).mean((1, 2, 3)))).tolist())


def test_ssim_equals_the_window_by_window_computation():
    x = images(0)
    y = (x.float() * 0.7 + images(1).float() * 0.3).round().to(torch.uint8)
    assert value("ssim", x, y) == pytest.approx([slow_ssim(a.numpy(), b.numpy()) for a, b in zip(x, y, strict=True)])


def test_equal_images_have_the_best_value_of_every_metric():
    x = images(0)
    best = {"l1": 0.0, "psnr": PSNR_CAP}
    for name in METRICS:
        assert value(name, x, x) == pytest.approx([best.get(name, 1.0)] * 2), name


def test_pixel_accuracy_counts_pixels_within_ten_levels_in_every_channel():
    target = torch.full((1, 4, 4, 3), 100, dtype=torch.uint8)
    output = target.clone()
    output[0, 0, 0, 1] = 110
    output[0, 0, 1, 1] = 111
    assert value("pixel_accuracy", output, target) == [15 / 16]


def test_palette_metrics_compare_nearest_colours():
    target = torch.zeros((1, 2, 2, 3), dtype=torch.uint8)
    target[0, 1] = 255
    output = target.clone()
    output[0, 0, 0] = torch.tensor([200, 40, 30])  # nearest to red, target black
    output[0, 0, 1] = torch.tensor([60, 60, 60])  # still nearest to black
    assert value("palette_accuracy", output, target) == [0.75]
    assert value("palette_iou", output, target) == [pytest.approx((1 / 2 + 2 / 2 + 0 / 1) / 3)]


@given(st.integers(1, 5), st.integers(1, 30))
@settings(deadline=None, max_examples=15)
def test_totals_do_not_depend_on_batches(split, seed):
    x, y = images(seed, 6), images(seed + 100, 6)
    names = default_metrics(has_palette=True)
    whole, parts = MetricTotals(), MetricTotals()
    whole.add(measure(x, y, names, PALETTE))
    for part in (slice(split), slice(split, None)):
        parts.add(measure(x[part], y[part], names, PALETTE))
    assert parts.count == 6
    assert parts.result() == pytest.approx(whole.result())


def test_tiny_images_still_have_an_ssim():
    for side in (1, 2, 5):
        assert all(math.isfinite(v) for v in value("ssim", images(0, 2, side), images(1, 2, side)))


def test_unknown_and_unavailable_metrics_are_usage_errors():
    with pytest.raises(UsageError, match="no such metric; available are l1, psnr"):
        find_metric("val_lq", "best_metric")
    with pytest.raises(UsageError, match="inception_weights"):
        find_metric("fid")


def test_improvement_knows_the_direction_and_distrusts_nan():
    assert METRICS["l1"].improves(0.1, 0.2) and not METRICS["psnr"].improves(10, 20)
    assert METRICS["l1"].improves(0.1, None) and not METRICS["l1"].improves(math.nan, 0.2)


def test_measuring_reads_nothing_back_from_a_gpu():
    """Asked with tensors on a GPU that need not be there: an operator whose result depends on values would raise."""
    with FakeTensorMode():
        images = torch.zeros(2, 16, 16, 3, dtype=torch.uint8, device="cuda")
        totals = MetricTotals()
        totals.add(measure(images, images, list(METRICS), [(0, 0, 0), (255, 255, 255)]))
        totals.add(measure(images, images, list(METRICS), [(0, 0, 0), (255, 255, 255)]))
    assert totals.count == 4
