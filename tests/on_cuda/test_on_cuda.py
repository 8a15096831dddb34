"""What can only be seen on a CUDA GPU. `jobs/benchmark.py --what gpu` makes the same checks, and measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from p2p.benchmark.gpu_checks import CHECKS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU is visible here")


@pytest.mark.parametrize("checks", CHECKS, ids=lambda checks: checks.__name__)
def test_a_gpu_computes_what_a_cpu_does(checks: Any) -> None:
    wrong = [check for check in checks("cuda") if not check.passed]
    assert not wrong


def test_training_records_its_step_and_tells_how_busy_the_gpu_is(tmp_path: Path) -> None:
    from p2p.model.pix2pix import Pix2Pix
    from p2p.training import TrainConfig
    from p2p.training.position import Position
    from p2p.training.trainer import Trainer

    small = {"generator": "unet_64", "discriminator": "patch_16", "ngf": 8, "ndf": 8, "crop_size": 64}
    config = TrainConfig(data="pairs", output=str(tmp_path), **small)  # type: ignore[arg-type]
    trainer = Trainer(config, Pix2Pix(config.model("bf16"), device="cuda"), Position())
    trainer.start_epoch(1)
    for inputs, targets in torch.randint(0, 256, (12, 2, 4, 64, 64, 3), dtype=torch.uint8, device="cuda"):
        trainer.update(inputs, targets)
    row = trainer.epoch_metrics()
    assert trainer.fallback is None
    assert 0 < row["gpu_busy"] <= 1 and 0 < row["gpu_memory"] < 8
    assert json.dumps(row)
