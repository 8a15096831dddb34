import math

import pytest

from p2p.training import TrainConfig
from p2p.training.health import findings, not_finite

CONFIG = TrainConfig(data="pairs", output="run").to_dict()
GOOD = {"g_gan": 1.5, "g_l1": 20.0, "d_real": 0.4, "d_fake": 0.4, "val_l1": 0.1, "data_wait": 0.01}


def rows(count: int, **changes) -> list[dict]:
    """A healthy run of `count` epochs, L1 falling, but for `changes`: numbers, or functions of the epoch."""
    healthy = {**GOOD, "g_l1": lambda epoch: 30.0 * 0.97**epoch, "val_l1": lambda epoch: 0.2 * 0.97**epoch}
    described = {**healthy, **changes}
    return [
        {"epoch": epoch, **{name: value(epoch) if callable(value) else value for name, value in described.items()}}
        for epoch in range(1, count + 1)
    ]


def test_a_healthy_run_has_no_findings():
    for count in (0, 1, 5, 40):
        assert findings(rows(count), CONFIG) == []


@pytest.mark.parametrize(
    ("changes", "words", "number"),
    [
        ({"d_real": 0.01, "d_fake": 0.02, "g_gan": 6.0}, "discriminator has won", "g_gan"),
        ({"d_fake": 5.0, "g_gan": 0.01}, "generator has won", "d_fake"),
        ({"d_real": math.log(2), "d_fake": math.log(2)}, "log 2", "d_real"),
        ({"g_l1": 25.0}, "L1 has not fallen", "g_l1_last"),
        ({"val_l1": lambda epoch: 0.1 + 0.01 * abs(epoch - 4)}, "getting worse for 16 epochs", "val_l1_best"),
        ({"data_wait": 0.5}, "waits for its data", "data_wait"),
    ],
)
def test_each_trouble_is_found_with_its_numbers_and_advice(changes, words, number):
    (finding,) = findings(rows(20, **changes), CONFIG)
    assert words in finding["finding"]
    assert math.isfinite(finding["numbers"][number])
    assert len(finding["advice"]) > 20


def test_runs_without_l1_validation_or_log_losses_are_judged_by_what_they_have():
    without_l1 = rows(20, g_l1=0.0)
    assert findings(without_l1, {**CONFIG, "lambda_l1": 0.0}) == []
    no_validation = [{name: value for name, value in row.items() if name != "val_l1"} for row in rows(20)]
    assert findings(no_validation, CONFIG) == []
    assert findings(rows(20, d_real=0.01, d_fake=0.02, g_gan=6.0), {**CONFIG, "gan_mode": "lsgan"}) == []


def test_losses_that_are_not_finite_are_named():
    assert not_finite({"g_gan": math.nan, "g_l1": 1.0, "d_real": math.inf}) == ["g_gan", "d_real"]
