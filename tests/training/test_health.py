import math

import pytest
import torch

from p2p.model.losses import GanObjective
from p2p.training import TrainConfig
from p2p.training.health import broken, describe_finding, health_findings, not_finite

CONFIG = TrainConfig(data="pairs", output="run").to_dict()
GOOD = {
    "g_gan": 1.5,
    "g_l1": 20.0,
    "d_real": 0.4,
    "d_fake": 0.4,
    "val_l1": 0.1,
    "data_wait": 0.01,
    "output_variety": 0.15,
    "target_variety": 0.2,
}


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
        assert health_findings(rows(count), CONFIG) == []


@pytest.mark.parametrize(
    ("changes", "words", "number"),
    [
        ({"d_real": 0.01, "d_fake": 0.02, "g_gan": 6.0}, "discriminator has won", "g_gan"),
        ({"d_fake": 5.0, "g_gan": 0.01}, "generator has won", "d_fake"),
        ({"d_real": math.log(2), "d_fake": math.log(2)}, "log 2", "d_real"),
        ({"g_l1": 25.0}, "L1 has not fallen", "g_l1_last"),
        ({"val_l1": lambda epoch: 0.1 + 0.01 * abs(epoch - 4)}, "getting worse for 16 epochs", "val_l1_best"),
        ({"data_wait": 0.5}, "waits for its data", "data_wait"),
        ({"output_variety": 0.001}, "nearly identical for different inputs", "output_variety"),
    ],
)
def test_each_trouble_is_found_with_its_numbers_and_advice(changes, words, number):
    (finding,) = health_findings(rows(20, **changes), CONFIG)
    assert words in finding["finding"]
    assert math.isfinite(finding["numbers"][number])
    assert len(finding["advice"]) > 20


def test_runs_without_l1_validation_or_log_losses_are_judged_by_what_they_have():
    without_l1 = rows(20, g_l1=0.0)
    assert health_findings(without_l1, {**CONFIG, "lambda_l1": 0.0}) == []
    no_validation = [{name: value for name, value in row.items() if name != "val_l1"} for row in rows(20)]
    assert health_findings(no_validation, CONFIG) == []
    assert health_findings(rows(20, d_real=-0.5, d_fake=0.5, g_gan=9.0), {**CONFIG, "gan_mode": "wgangp"}) == []


def losses_of(config: dict, logits_real: float, logits_fake: float) -> dict[str, float]:
    """The mean losses of a discriminator that answers every target and every output with these logits."""
    objective = GanObjective(config["gan_mode"], config["label_smoothing"])
    real, fake = torch.tensor([logits_real]), torch.tensor([logits_fake])
    values = {"d_real": objective.real(real), "d_fake": objective.fake(fake), "g_gan": objective.fool(fake)}
    return {name: value.item() for name, value in values.items()}


MODES = [("vanilla", 0.0), ("vanilla", 0.1), ("lsgan", 0.0), ("lsgan", 0.1), ("hinge", 0.0)]


@pytest.mark.parametrize(("gan_mode", "smoothing"), MODES)
def test_who_has_won_is_told_in_the_scale_of_each_objective(gan_mode, smoothing):
    config = {**CONFIG, "gan_mode": gan_mode, "label_smoothing": smoothing}
    label = 1.0 - smoothing
    sure = {"vanilla": (math.log(label / (1 - label)) if smoothing else 6.0, -6.0), "lsgan": (label, 0.0)}
    real, fake = sure.get(gan_mode, (1.5, -1.5))
    guess = {"vanilla": math.log(label / (2 - label)), "lsgan": label / 2}.get(gan_mode, 0.0)

    def found(logits_real: float, logits_fake: float) -> str:
        losses = losses_of(config, logits_real, logits_fake)
        return " ".join(finding["finding"] for finding in health_findings(rows(20, **losses), config))

    assert found(real, fake).startswith("the discriminator has won")
    assert found(guess, 6.0 if gan_mode == "vanilla" else real).startswith("the generator has won")
    assert found(guess, guess).startswith("both discriminator losses stay at")
    assert found(*(guess + (other - guess) / 4 for other in (real, fake))) == ""


def test_getting_worse_is_judged_by_the_metric_that_picks_the_best_and_in_its_direction():
    falling = rows(20, val_psnr=lambda epoch: 30.0 - abs(epoch - 4), val_l1=0.1)
    config = {**CONFIG, "best_metric": "val_psnr"}
    (finding,) = health_findings(falling, config)
    assert "getting worse for 16 epochs" in finding["finding"]
    assert (finding["numbers"]["best_epoch"], finding["numbers"]["val_psnr_best"]) == (4, 30.0)
    assert (
        health_findings(rows(20, val_psnr=lambda epoch: 20.0 + epoch, val_l1=lambda epoch: 0.1 + epoch), config) == []
    )
    adversarial = {**config, "lambda_l1": 0.0}
    assert health_findings(falling, adversarial) == []
    (finding,) = health_findings([{**row, "g_gan": 2 - row["epoch"] / 50} for row in falling], adversarial)
    assert finding["numbers"]["g_gan_last"] < finding["numbers"]["g_gan_best"]


def test_a_finding_is_one_line_with_its_numbers_and_advice():
    line = describe_finding(broken(["g_gan", "d_real"], epoch=3, step=120, lr=2e-4))
    assert line.startswith("health: g_gan, d_real no longer finite")
    assert "step 120, lr 0.0002" in line and "lower --lr" in line and "\n" not in line


def test_losses_that_are_not_finite_are_named():
    assert not_finite({"g_gan": math.nan, "g_l1": 1.0, "d_real": math.inf}) == ["g_gan", "d_real"]
