"""What a tile becomes depends on its pixels, the checkpoint and the seed, to the bit on a CPU."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import in_this_process
from PIL import Image

from p2p.model.checkpoint import save_checkpoint
from p2p.model.config import ModelConfig
from p2p.model.pix2pix import Pix2Pix
from p2p.translation import TranslateConfig
from p2p.translation.job import run

# Where rounding is left to the processor's kernels, it is known to follow the batch size or the threads in these.
CASES = [
    ("fp32", "batch", {"generator": "unet_128", "crop_size": 128, "ngf": 8}),
    ("bf16", "running", {"generator": "unet_256", "crop_size": 256, "ngf": 16}),
    ("fp32", "batch", {"generator": "resnet_6", "crop_size": 64, "ngf": 7}),
    ("fp32", "running", {"generator": "resnet_6", "crop_size": 64, "ngf": 16, "norm": "instance"}),
]


@pytest.mark.parametrize("precision, norm_mode, network", CASES)
def test_neither_batch_size_nor_threads_change_a_bit(
    tmp_path: Path, precision: str, norm_mode: str, network: dict[str, Any]
) -> None:
    config = ModelConfig(discriminator="pixel", ndf=4, **network)
    model = Pix2Pix(config, seed=0)
    for parameter in model.generator.parameters():
        parameter.data.mul_(2)  # the outputs of untrained weights differ little
    save_checkpoint(str(tmp_path / "checkpoint"), model, {"epoch": 1}, {})
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    for number in range(9):
        image = rng.integers(0, 256, (config.crop_size, config.crop_size, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / "in" / f"{number}.bmp")

    def outputs(batch_size: int, threads: int) -> dict[str, bytes]:
        output = tmp_path / f"{batch_size}-{threads}"
        options = {"norm_mode": norm_mode, "precision": precision, "workers": 1, "batch_size": batch_size}
        run(
            TranslateConfig(
                checkpoint=str(tmp_path / "checkpoint"), source=str(tmp_path / "in"), output=str(output), **options
            ),
            lambda _: nullcontext(lambda work, left: in_this_process(dataclasses.replace(work, threads=threads), left)),
        )
        rows = pq.read_table(output / "data").to_pylist()
        return {row["image_id"]: row["image"] for row in rows}

    expected = outputs(1, 1)
    assert len(expected) == 9
    for batch_size, threads in ((2, 1), (3, 2), (8, 2)):
        assert outputs(batch_size, threads) == expected, (batch_size, threads)
