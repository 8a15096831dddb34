"""The metrics against independent, slow computations of their formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from p2p.errors import UsageError
from p2p.model.metrics import METRICS, MetricTotals, default_metrics, find_metric, measure
from p2p.model.pixel_metrics import PSNR_CAP

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


def test_l1_rmse_and_psnr_follow_their_formulas_exactly():
    x, y = images(0), images(1)
    error = x.numpy().astype(float) - y.numpy().astype(float)
    squares = (error**2).sum((1, 2, 3)) / error[0].size
    assert value("l1", x, y) == (np.abs(error).sum((1, 2, 3)) / error[0].size / 255).tolist()
    assert value("rmse", x, y) == np.sqrt(squares).tolist()
    assert value("psnr", x, y) == pytest.approx((10 * np.log10(255**2 / squares)).tolist(), rel=1e-15)


def test_ssim_equals_the_window_by_window_computation():
    x = images(0)
    y = (x.float() * 0.7 + images(1).float() * 0.3).round().to(torch.uint8)
    wanted = [slow_ssim(a.numpy(), b.numpy()) for a, b in zip(x, y, strict=True)]
    assert value("ssim", x, y) == pytest.approx(wanted, abs=2e-7)


@pytest.mark.parametrize("low, high", [(0, 255), (250, 255), (0, 3), (90, 160)])
def test_ssim_of_flat_areas_loses_nothing_to_rounding(low, high):
    """Label maps: where nothing varies, the formula subtracts equal squares, and float32 alone is off by 1e-5."""
    y = torch.full((1, 48, 48, 3), low, dtype=torch.uint8)
    y[:, :, 30:] = high
    noise = torch.from_numpy(np.random.default_rng(0).integers(-2, 3, y.shape))
    x = (y.to(torch.int64) + noise).clamp(0, 255).to(torch.uint8)
    assert value("ssim", x, y) == pytest.approx([slow_ssim(x[0].numpy(), y[0].numpy())], abs=1e-6)


def test_an_image_has_the_same_bits_in_any_batch():
    x, y = images(0, 7, 40), images(1, 7, 40)
    names = default_metrics(has_palette=True)
    together, alone = measure(x, y, names, PALETTE), measure(x[5:6], y[5:6], names, PALETTE)
    assert {name: values[5].item() for name, values in together.values.items()} == {
        name: values[0].item() for name, values in alone.values.items()
    }


def test_equal_images_have_the_best_value_of_every_metric():
    x = images(0)
    best = {"l1": 0.0, "rmse": 0.0, "psnr": PSNR_CAP}
    for name in default_metrics(has_palette=True):
        assert value(name, x, x) == pytest.approx([best.get(name, 1.0)] * 2), name


def test_pixel_accuracy_counts_pixels_whose_every_channel_is_close():
    target = torch.full((1, 4, 4, 3), 100, dtype=torch.uint8)
    output = target.clone()
    output[0, 0, :, 1] = torch.tensor([110, 111, 95, 104], dtype=torch.uint8)
    assert value("pixel_accuracy", output, target) == [15 / 16]
    assert value("pixel_accuracy_10", output, target) == [14 / 16]
    assert value("pixel_accuracy_5", output, target) == [13 / 16]


def test_detail_is_below_one_for_blur_and_above_one_for_a_checkerboard():
    target = images(0, 1)
    blurred = target.float().unfold(1, 3, 1).mean(-1).unfold(2, 3, 1).mean(-1).round().to(torch.uint8)
    assert value("detail", blurred, target[:, 1:-1, 1:-1])[0] < 0.2
    flat = torch.full((1, 8, 8, 3), 100, dtype=torch.uint8)
    checkered = flat.clone()
    checkered[:, ::2, ::2] = checkered[:, 1::2, 1::2] = 103
    assert value("detail", checkered, flat) == [(2 * 9 + 1) / 1]
    assert value("detail", flat, flat) == [1.0]


def test_palette_metrics_compare_nearest_colours():
    target = torch.zeros((1, 2, 2, 3), dtype=torch.uint8)
    target[0, 1] = 255
    output = target.clone()
    output[0, 0, 0] = torch.tensor([200, 40, 30])  # nearest to red, target black
    output[0, 0, 1] = torch.tensor([60, 60, 60])  # still nearest to black
    assert value("palette_accuracy", output, target) == [0.75]
    assert value("palette_iou", output, target) == [pytest.approx((1 / 2 + 2 / 2 + 0 / 1) / 3)]
    assert value("class_accuracy", output, target) == [pytest.approx((1 / 2 + 2 / 2) / 2)]  # no target is red


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


def test_unknown_metrics_are_usage_errors():
    with pytest.raises(UsageError, match="no such metric; available are l1, rmse, psnr"):
        find_metric("val_lq", "best_metric")


def test_improvement_knows_the_direction_and_distrusts_nan():
    assert METRICS["l1"].improves(0.1, 0.2) and not METRICS["psnr"].improves(10, 20)
    assert METRICS["l1"].improves(0.1, None) and not METRICS["l1"].improves(math.nan, 0.2)
    detail = METRICS["detail"]
    assert detail.improves(0.9, 1.2) and detail.improves(1.1, 0.8) and not detail.improves(0.0, 3.0)


def test_measuring_reads_nothing_back_from_a_gpu():
    """Asked with tensors on a GPU that need not be there: an operator whose result depends on values would raise."""
    with FakeTensorMode():
        images = torch.zeros(2, 16, 16, 3, dtype=torch.uint8, device="cuda")
        totals = MetricTotals()
        totals.add(measure(images, images, default_metrics(True), [(0, 0, 0), (255, 255, 255)]))
        totals.add(measure(images, images, default_metrics(True), [(0, 0, 0), (255, 255, 255)]))
    assert totals.count == 4
