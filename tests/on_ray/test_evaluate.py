"""Pairs and a checkpoint in, figures, a table and a page out."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from p2p.evaluation import EvaluateConfig, evaluate

pytestmark = pytest.mark.ray

PALETTE = [[242, 239, 233], [170, 211, 223], [200, 220, 170], [255, 255, 255]]
SIDE, PAIRS = 64, 5


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_pairs) -> Path:
    """A raw folder of combined pairs with a recorded palette, whose last row group is not full."""
    folder = tmp_path_factory.mktemp("evaluate") / "pairs"
    make_pairs(folder / "val", PAIRS, SIDE)
    (folder / "dataset.json").write_text(json.dumps({"palette_a": None, "palette_b": PALETTE}))
    return folder


@pytest.fixture(scope="module")
def save_white(tmp_path_factory):
    """Makes the checkpoint of a generator that paints everything nearly white: its figures are known beforehand."""
    import torch

    from p2p.model.checkpoint import save_checkpoint
    from p2p.model.config import ModelConfig
    from p2p.model.pix2pix import Pix2Pix

    def save(direction: str = "AtoB") -> Path:
        small = {"generator": "unet_64", "discriminator": "patch_16", "ngf": 4, "ndf": 4, "norm": "none"}
        pix2pix = Pix2Pix(ModelConfig(**small, crop_size=SIDE, direction=direction))
        with torch.no_grad():
            last = [parameter for name, parameter in pix2pix.generator.named_parameters() if name.endswith("bias")][-1]
            for parameter in pix2pix.generator.parameters():
                parameter.zero_()
            last.fill_(10.0)
        folder = tmp_path_factory.mktemp("checkpoint") / "epoch_0001"
        save_checkpoint(str(folder), pix2pix, {"epoch": 1}, {})
        return folder

    return save


@pytest.fixture(scope="module")
def checkpoint(save_white) -> Path:
    return save_white()


def middle_sides(data: Path, side: str) -> list[np.ndarray]:
    """What is left of one side of every pair: raw pairs are resized on reading and cropped in the middle."""
    from p2p.data.pairs import open_pairs, raw_load_size, read_rows

    pairs = open_pairs(str(data), "val", raw_load_size=raw_load_size(SIDE))
    top = (pairs.load_size - SIDE) // 2
    return [pair[side][top : top + SIDE, top : top + SIDE].astype(int) for pair in read_rows(pairs, pairs.rows())]


def test_figures_of_a_generator_that_paints_white(ray_cluster, run_cli, data, checkpoint, tmp_path):
    words = ["--checkpoint", checkpoint, "--data", data, "--output", tmp_path, "--baselines", "untrained"]
    outcome = run_cli(EvaluateConfig, evaluate, *words, "--precision", "fp32")
    assert outcome.status == 0, outcome.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert outcome.summary is not None and outcome.summary["metrics"] == metrics
    assert metrics["n"] == PAIRS

    targets = middle_sides(data, "b")  # what is white of these is known without a generator
    nearest = [((t[:, :, None] - np.array(PALETTE)) ** 2).sum(-1).argmin(-1) for t in targets]
    assert metrics["palette_accuracy"] == pytest.approx(np.mean([(classes == 3).mean() for classes in nearest]))
    assert metrics["l1"] == pytest.approx(np.mean([np.abs(t - 255).mean() / 255 for t in targets]))
    assert set(metrics) >= {"psnr", "ssim", "pixel_accuracy", "palette_iou", "untrained.palette_accuracy"}
    assert metrics["untrained.l1"] != metrics["l1"]

    table = pq.read_table(tmp_path / "per_image.parquet").to_pydict()
    assert table["pair_id"] == [f"{index:04d}" for index in range(PAIRS)]
    assert np.mean(table["l1"]) == pytest.approx(metrics["l1"])
    counts = np.array(table["confusion"]).reshape(PAIRS, 4, 4)
    assert counts.sum(axis=0)[:, 3].sum() == counts.sum() == PAIRS * SIDE * SIDE  # all outputs are white
    assert len(set(table["target_sha256"])) == PAIRS

    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluation["metrics"] == metrics
    assert evaluation["baselines"]["untrained"]["l1"] == metrics["untrained.l1"]
    assert [row["accuracy"] for row in evaluation["classes"]] == [0, 0, 0, 1]
    assert evaluation["classes"][3]["share"] == pytest.approx(metrics["palette_accuracy"])
    protocol = evaluation["protocol"]
    assert (protocol["n"], protocol["size"], protocol["precision"], protocol["palette"]) == (
        PAIRS,
        SIDE,
        "fp32",
        PALETTE,
    )
    assert evaluation["signature"].startswith(f"p2p{protocol['version']}|n{PAIRS}|pairs/val:")
    assert f"|AtoB|crop{SIDE}|norm:running|dropout:false|fp32|memory|palette4:" in evaluation["signature"]
    assert all(low <= metrics[name] <= high for name, (low, high) in evaluation["intervals"].items())
    assert "<html" in (tmp_path / "report.html").read_text()


def test_the_checkpoint_knows_its_direction_and_an_option_overrules_it(
    ray_cluster, run_cli, data, save_white, tmp_path
):
    backwards = save_white("BtoA")
    for side, options in (("a", []), ("b", ["--direction", "AtoB"])):
        words = ["--checkpoint", backwards, "--data", data, "--output", tmp_path / side, "--limit", "2", *options]
        outcome = run_cli(EvaluateConfig, evaluate, *words, "--precision", "fp32")
        assert outcome.status == 0, outcome.stderr
        assert ("the generator was trained BtoA, not AtoB" in outcome.stderr) == (side == "b")
        metrics = json.loads((tmp_path / side / "metrics.json").read_text())
        assert metrics["n"] == 2
        assert metrics["l1"] == pytest.approx(
            np.mean([np.abs(t - 255).mean() / 255 for t in middle_sides(data, side)[:2]])
        )
        # Only B has a recorded palette, so only there are palette classes to compare.
        assert ("palette_accuracy" in metrics) == (side == "b")


@pytest.mark.usefixtures("torch_threads")
def test_one_process_two_threads_and_four_workers_give_the_same_bits(
    ray_cluster, make_pairs, checkpoint, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    import ray.data

    from p2p.data.local import LocalWorker
    from p2p.evaluation.evaluator import evaluate_rows
    from p2p.evaluation.plan import make_plan
    from p2p.evaluation.pool import measure_rows

    make_pairs(tmp_path / "pairs" / "val", 27, SIDE)
    (tmp_path / "pairs" / "dataset.json").write_text(json.dumps({"palette_a": None, "palette_b": PALETTE}))
    options = {"data": str(tmp_path / "pairs"), "output": str(tmp_path / "out"), "checkpoint": str(checkpoint)}
    plan = make_plan(EvaluateConfig(**options, baselines="untrained", precision="fp32"))
    groups, rows = (np.array(column) for column in zip(*plan.rows, strict=True))
    found = [evaluate_rows(plan.task)({"group": groups, "row": rows})]

    monkeypatch.setattr("p2p.evaluation.pool.available_cpus", lambda: 2)
    with contextlib.closing(LocalWorker()) as child:
        found.append(measure_rows(child, "false", plan.task, plan.rows))

    sizes, strategy = [], ray.data.ActorPoolStrategy
    monkeypatch.setattr(ray.data, "ActorPoolStrategy", lambda size: (sizes.append(size), strategy(size=size))[1])
    monkeypatch.setattr("p2p.data.cluster.cluster_cpus", lambda: 4)
    found.append(measure_rows(None, "false", plan.task, plan.rows))
    assert sizes == [4]
    for measured in found[1:]:
        for one, other in zip(found[0], measured, strict=True):
            assert [name for name in one if not np.array_equal(one[name], other[name])] == [], one["pair_id"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"--inception-weights": "/nowhere/inception.pth"}, "--inception-weights /nowhere/inception.pth"),
        ({"--metrics": "l2"}, "no such metric; available are l1"),
        ({"--split": "test"}, "no pairs there"),
        ({"--checkpoint": "/nowhere/run"}, "--checkpoint /nowhere/run: nothing is there"),
        ({"--data": "/nowhere/pairs"}, "--data /nowhere/pairs: nothing is there"),
        ({"--limit": "-1"}, "--limit -1"),
    ],
)
def test_mistakes_are_one_line_and_status_2(run_cli, data, checkpoint, tmp_path, options, complaint):
    words = {"--checkpoint": checkpoint, "--data": data, "--output": tmp_path / "out", **options}
    outcome = run_cli(EvaluateConfig, evaluate, *[word for option in words.items() for word in option])
    assert outcome.status == 2
    *before, last = outcome.stderr.strip().splitlines()
    assert last.startswith("error: ") and complaint in last and "Traceback" not in outcome.stderr
    assert not any("error" in line for line in before)  # what raw pairs are taken for may be told first
    assert not (tmp_path / "out").exists()
