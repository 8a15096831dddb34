from p2p.training.selection import epochs_without_improvement, is_best, is_out_of_patience


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


def test_the_best_is_judged_by_the_metric_and_without_one_it_is_the_newest():
    assert is_best({"val_l1": 0.2}, None, "val_l1")
    assert is_best({"val_l1": 0.2}, {"val_l1": 0.3}, "val_l1")
    assert not is_best({"val_ssim": 0.2}, {"val_ssim": 0.3}, "val_ssim")
    assert not is_best({"val_l1": float("nan")}, {"val_l1": 0.3}, "val_l1")
    assert is_best({"g_l1": 1.0}, {"g_l1": 0.5}, "val_l1")
