"""From files to figures with more or fewer channels than RGB, with 16 bit, and with label maps as classes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

import p2p
from p2p.data.pairs import open_pairs, read_rows
from p2p.evaluation import EvaluateConfig, evaluate
from p2p.preparation import PrepareConfig, prepare
from p2p.storage.pixels import PixelFormat
from p2p.training import TrainConfig, train

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster", "train_in_this_process")]

RunCli = Callable[..., Any]
SIDE, PAIRS = 64, 6
SMALL = ("--generator", "unet_64", "--discriminator", "patch_16", "--ngf", 4, "--ndf", 4, "--crop-size", SIDE)
PALETTE = np.array([[0, 0, 0], [220, 20, 60], [70, 130, 180], [128, 64, 128], [107, 142, 35]], np.uint8)


def write_bands(folder: Path) -> None:
    """A: 12 bands of 16 bit as TIFF. B: what one of them says, as 16-bit gray PNG."""
    for split, count in (("train", PAIRS), ("val", 3)):
        for side in "ab":
            (folder / side / split).mkdir(parents=True)
        for index in range(count):
            bands = np.random.default_rng(index).integers(0, 65536, (SIDE, SIDE, 12), dtype=np.uint16)
            file = folder / "a" / split / f"{index}.tif"
            tifffile.imwrite(file, bands, photometric="minisblack", planarconfig="contig")
            Image.fromarray(np.ascontiguousarray(bands[..., 3])).save(folder / "b" / split / f"{index}.png")


def label_map(seed: int) -> np.ndarray:
    classes = np.kron(np.random.default_rng(seed).integers(0, len(PALETTE), (8, 8)), np.ones((8, 8), np.intp))
    return PALETTE[classes]


def write_labels(folder: Path) -> None:
    """A: photos. B: label maps of five colours, some as RGB and some as palette images."""
    for split, count in (("train", PAIRS), ("val", 3)):
        for side in "ab":
            (folder / side / split).mkdir(parents=True)
        for index in range(count):
            labels = Image.fromarray(label_map(index))
            Image.fromarray(255 - label_map(index)).save(folder / "a" / split / f"{index}.jpg")
            if index % 2:
                labels = labels.quantize(len(PALETTE), dither=Image.Dither.NONE)
            labels.save(folder / "b" / split / f"{index}.png")


def evaluated(run_cli: RunCli, run: Path, data: Path, output: Path) -> dict[str, float]:
    words = ("--checkpoint", run, "--data", data, "--output", output, "--precision", "fp32")
    outcome = run_cli(EvaluateConfig, evaluate, *words)
    assert outcome.status == 0, outcome.stderr
    assert "<html" in (output / "report.html").read_text()
    metrics: dict[str, float] = json.loads((output / "metrics.json").read_text())
    return metrics


def test_twelve_bands_of_16_bit_become_16_bit_gray(run_cli: RunCli, tmp_path: Path) -> None:
    write_bands(tmp_path)
    data, run = tmp_path / "pairs", tmp_path / "run"
    sources = ("--source", tmp_path / "a", "--source-b", tmp_path / "b", "--load-size", 0)
    refused = run_cli(PrepareConfig, prepare, *sources, "--output", tmp_path / "refused")
    assert refused.status == 3 and refused.summary["bad"] == PAIRS + 3
    formats = ("--pixels-a", "12x16", "--pixels-b", "1x16")
    assert run_cli(PrepareConfig, prepare, *sources, *formats, "--output", data).status == 0

    wrong = run_cli(TrainConfig, train, "--data", data, "--output", run, *SMALL, "--input-channels", 3)
    assert wrong.status == 2 and "--input-channels 3: the input images" in wrong.stderr and not run.exists()
    outcome = run_cli(TrainConfig, train, "--data", data, "--output", run, *SMALL, "--batch-size", 2, "--max-steps", 3)
    assert outcome.status == 0, outcome.stderr
    used = json.loads((run / "config.json").read_text())
    assert (used["input_channels"], used["output_channels"]) == (12, 1)

    metrics = evaluated(run_cli, run, data, tmp_path / "evaluation")
    translator = p2p.Translator(str(run), device="cpu", precision="fp32")
    val = open_pairs(str(data), "val")
    pairs = list(read_rows(val, val.rows(), (PixelFormat(12, 16), PixelFormat(1, 16))))
    outputs = [translator(pair["a"]) for pair in pairs]
    assert all(output.dtype == np.uint16 and output.shape == (SIDE, SIDE, 1) for output in outputs)
    far = [np.abs(out.astype(float) - pair["b"]).mean() / 65535 for out, pair in zip(outputs, pairs, strict=True)]
    assert metrics["n"] == 3 and metrics["l1"] == pytest.approx(np.mean(far), abs=1e-4)


def test_label_maps_as_classes_need_to_be_told_of_once(run_cli: RunCli, tmp_path: Path) -> None:
    write_labels(tmp_path)
    data, run = tmp_path / "pairs", tmp_path / "run"
    sources = ("--source", tmp_path / "a", "--source-b", tmp_path / "b", "--load-size", SIDE)
    assert run_cli(PrepareConfig, prepare, *sources, "--output", data).status == 0

    words = ("--data", data, "--output", run, *SMALL, "--direction", "BtoA", "--batch-size", 2, "--max-steps", 3)
    for option, complaint in (
        (("--input-encoding", "onehot:4"), "onehot:4: the inputs have a palette of 5 colours; use onehot:5 or more"),
        (("--input-encoding", "onehot:5", "--direction", "AtoB"), "has recorded no palette for the inputs"),
    ):
        outcome = run_cli(TrainConfig, train, *words, *option)
        assert outcome.status == 2 and complaint in outcome.stderr and not run.exists()
    outcome = run_cli(TrainConfig, train, *words, "--input-encoding", "onehot:6")
    assert outcome.status == 0, outcome.stderr

    generator = p2p.load_generator(str(run))
    assert generator.config.input_channels == 6
    assert generator.config.input_palette == tuple(sorted(map(tuple, PALETTE.tolist())))
    metrics = evaluated(run_cli, run, data, tmp_path / "evaluation")
    translator = p2p.Translator(str(run), device="cpu", precision="fp32")
    val = open_pairs(str(data), "val")
    pairs = list(read_rows(val, val.rows()))
    far = [np.abs(translator(pair["b"]).astype(float) - pair["a"]).mean() / 255 for pair in pairs]
    assert metrics["l1"] == pytest.approx(np.mean(far), abs=1e-3)
    # A label file in any form gives the same picture.
    buffer = io.BytesIO()
    Image.fromarray(label_map(0)).quantize(len(PALETTE), dither=Image.Dither.NONE).save(buffer, "PNG")
    assert np.array_equal(np.asarray(translator(Image.open(buffer))), translator(label_map(0)))
