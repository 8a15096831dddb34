import json
from typing import get_args

import pytest
import yaml

from p2p.cli import parse
from p2p.errors import ConfigError
from p2p.model.metrics import default_metrics
from p2p.training import TrainConfig
from p2p.training.config import BestMetric

WHERE = {"data": "pairs", "output": "run"}


def test_the_rate_is_constant_and_then_falls_to_almost_nothing():
    config = TrainConfig(**WHERE, epochs=3, epochs_decay=4, lr=1e-3)
    rates = [config.learning_rate(epoch) / 1e-3 for epoch in range(1, config.last_epoch + 1)]
    assert rates == pytest.approx([1, 1, 1, 0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": 128}, r"crop_size 128.*unet_256 needs a multiple of 256.*unet_128"),
        ({"crop_size": 64, "generator": "unet_64", "discriminator": "patch_286"}, r"patch_286 needs at least 96"),
        ({"batch_size": 0}, r"batch_size 0: must be at least 1"),
        ({"epochs": 0, "epochs_decay": 0}, r"nothing to train"),
        ({"lr": 0.0}, r"lr 0"),
        ({"lr": float("inf")}, r"lr inf: must be a finite number"),
        ({"lambda_l1": float("inf")}, r"lambda_l1 inf: must be a finite number"),
        ({"label_smoothing": 0.1, "gan_mode": "hinge"}, r"label_smoothing 0.1: gan_mode hinge has no labels"),
        ({"best_metric": "val_lpips"}, r"best_metric 'val_lpips': use one of val_l1, val_rmse"),
        ({"sync_batch_norm": True, "norm": "instance"}, r"sync_batch_norm true: norm instance has no batch stat"),
        ({"ema_images": -1}, r"ema_images -1: must be 0 \(off\) or more"),
        ({"checkpoint_every_steps": -5}, r"checkpoint_every_steps -5: must be at least 0"),
        ({"best_metric": "g_l1"}, r"best_metric 'g_l1': use one of val_l1, val_rmse"),
    ],
)
def test_options_that_cannot_work_are_named_with_a_fix(options, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**WHERE, **options)


def test_what_shapes_the_network_may_not_change_in_a_run_and_its_length_may():
    earlier = json.loads(json.dumps(TrainConfig(**WHERE).to_dict()))
    assert TrainConfig(**WHERE, epochs=300, workers=2, patience=3).conflicts(earlier) == []
    changed = TrainConfig(**WHERE, ngf=32, seed=1).conflicts(earlier)
    assert changed == ["ngf was 64, now 32", "seed was 0, now 1"]


def test_an_option_that_an_earlier_version_did_not_have_counts_as_its_default():
    earlier = TrainConfig(**WHERE).to_dict()
    del earlier["ema_images"], earlier["samples_every_steps"]
    assert TrainConfig(**WHERE, samples_every_steps=5).conflicts(earlier) == []
    assert TrainConfig(**WHERE, ema_images=500).conflicts(earlier) == ["ema_images was 0, now 500"]


def test_the_choices_of_the_best_metric_are_what_validation_measures():
    assert get_args(BestMetric) == tuple(f"val_{name}" for name in default_metrics(has_palette=True))


def test_the_model_gets_the_options():
    model = TrainConfig(**WHERE, ngf=8, gan_mode="lsgan", direction="BtoA", norm="instance").model("bf16")
    assert (model.ngf, model.gan_mode, model.direction, model.norm) == (8, "lsgan", "BtoA", "instance")
    assert model.precision == "bf16"


def test_every_preset_is_a_valid_configuration(pytestconfig):
    presets = sorted((pytestconfig.rootpath / "jobs" / "presets").glob("*.yaml"))
    assert {"facades", "cityscapes", "maps", "dayton"} <= {preset.stem for preset in presets}
    for preset in presets:
        config = parse(TrainConfig, ["--config", str(preset), "--data", "x", "--output", "y"])
        written = {name.replace("-", "_"): value for name, value in yaml.safe_load(preset.read_text()).items()}
        assert {name: getattr(config, name) for name in written} == written
        assert preset.read_text().startswith("# ")
