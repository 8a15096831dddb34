import pytest
import torch

from p2p.training.judgement import epochs_without_improvement, is_best, is_out_of_patience, variety


def rows(metric: str, *values: float) -> list[dict]:
    return [{metric: value} for value in values]


def test_patience_counts_epochs_since_the_best_in_the_metrics_own_direction():
    assert epochs_without_improvement(rows("val_l1", 0.3, 0.2, 0.25, 0.2), "val_l1") == 2
    assert epochs_without_improvement(rows("val_psnr", 10, 12, 11), "val_psnr") == 1
    assert epochs_without_improvement(rows("val_psnr", 10, 12, 13), "val_psnr") == 0
    assert epochs_without_improvement([{"g_l1": 1.0}] * 5, "val_l1") == 0
    measured_later = [{"g_l1": 1.0}, *rows("val_l1", 0.2, 0.3)]
    assert epochs_without_improvement(measured_later, "val_l1") == 1
    assert [is_out_of_patience(measured_later, patience, "val_l1") for patience in (0, 1, 2)] == [False, True, False]


def test_variety_is_the_mean_difference_of_neighbours_on_a_scale_of_one():
    images = torch.zeros(3, 4, 4, 3, dtype=torch.uint8)
    images[1] = 255
    images[2, :2] = 255
    assert variety(images).tolist() == pytest.approx([1.0, 0.5])
    assert variety(images[:1]).tolist() == []


def test_the_best_is_judged_by_the_metric_and_without_one_it_is_the_newest():
    assert is_best({"val_l1": 0.2}, None, "val_l1")
    assert is_best({"val_l1": 0.2}, {"val_l1": 0.3}, "val_l1")
    assert not is_best({"val_ssim": 0.2}, {"val_ssim": 0.3}, "val_ssim")
    assert not is_best({"val_l1": float("nan")}, {"val_l1": 0.3}, "val_l1")
    assert is_best({"g_l1": 1.0}, {"g_l1": 0.5}, "val_l1")
