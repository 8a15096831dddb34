"""The parts of a GPU's benchmark that need no GPU: its checks, its limits, and how it is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from p2p.benchmark import BenchmarkConfig, benchmark, networks, train_rows, translate_rows
from p2p.benchmark.gpu import FORWARD, UPDATE, speed_of_card
from p2p.benchmark.gpu_checks import CHECKS, GpuCheck, check_updates
from p2p.benchmark.images import Codecs
from p2p.benchmark.rows import Setting, row


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA GPU is visible here")
def test_without_a_card_it_is_a_mistake_of_the_options(run_cli: Any, tmp_path: Path) -> None:
    outcome = run_cli(BenchmarkConfig, benchmark, "--what", "gpu", "--output", tmp_path / "out")
    assert outcome.status == 2
    assert "--what gpu: no CUDA GPU is visible here" in outcome.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("checks", [checks for checks in CHECKS if checks is not check_updates])
def test_a_cpu_computes_what_a_cpu_does(checks: Any) -> None:
    found = list(checks("cpu"))
    # A processor without bfloat16 is slower than it could be.
    assert [check for check in found if not check.passed and "slower" not in check.what] == []
    assert len({check.what for check in found}) == len(found)


def test_a_check_fails_above_its_limit_and_for_nan() -> None:
    assert GpuCheck("loss", 1.0, 1.0).passed
    assert not GpuCheck("loss", 1.1, 1.0).passed and not GpuCheck("loss", float("nan"), 1.0).passed


def test_a_small_batch_is_bound_by_weights_and_a_large_one_by_arithmetic() -> None:
    h200 = {"flops": 788e12, "bandwidth": 4.3e12}
    assert FORWARD.roofline(1, **h200) == pytest.approx(33_200, rel=0.01)
    assert FORWARD.roofline(64, **h200) == pytest.approx(65_100, rel=0.01)
    assert UPDATE.roofline(1, **h200) == pytest.approx(1_760, rel=0.01)
    assert UPDATE.roofline(64, **h200) == pytest.approx(9_060, rel=0.01)


def test_the_card_is_measured_by_itself() -> None:
    assert min(speed_of_card("cpu", 0.01, side=64)) > 0


@pytest.mark.parametrize("device, batches", [("cpu", 1), ("cuda", 16)])
def test_a_gpu_gets_many_batches_at_once(monkeypatch: pytest.MonkeyPatch, device: str, batches: int) -> None:
    calls: list[int] = []
    monkeypatch.setattr(networks, "Engine", lambda *_, **__: lambda images: calls.append(len(images)))
    monkeypatch.setattr(networks, "build_generator", lambda *_, **__: None)
    monkeypatch.setattr(networks, "rate", lambda step, per_call, *_: (step(), float(per_call))[1])
    assert networks.engine_rate(4, 1.0, device, "bf16", 0) == 4 * batches
    assert calls == [4 * batches]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_bare_update_is_measured_with_trainings_kernels(monkeypatch: pytest.MonkeyPatch, precision: Any) -> None:
    cudnn, seen = torch.backends.cudnn, []
    monkeypatch.setattr(cudnn, "benchmark", False)
    monkeypatch.setattr(cudnn, "allow_tf32", precision == "fp32")
    network = SimpleNamespace(update=None, device=torch.device("cpu"))
    monkeypatch.setattr(networks, "Pix2Pix", lambda *_, **__: network)
    monkeypatch.setattr(networks, "rate", lambda *_: seen.append((cudnn.benchmark, cudnn.allow_tf32)))
    networks.bare_update(1, 1.0, "cpu", precision)
    assert seen == [(True, precision == "bf16")]


@pytest.mark.parametrize("device, limit", [("cpu", 1 / (1 / 100 + 0.02 / 2)), ("cuda", 100.0)])
def test_on_a_gpu_the_slowest_part_is_the_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, limit: float
) -> None:
    def alone(measure: Any, *_: object) -> object:
        return 100.0 if measure is networks.engine_rate else Codecs(0.005, 0.005, 0.01)

    translated: list[int] = []
    monkeypatch.setattr(translate_rows, "alone", alone)
    monkeypatch.setattr(translate_rows, "available_cpus", lambda: 2)
    monkeypatch.setattr(
        translate_rows, "_translate_job", lambda at, corpus: translated.append(len(list(corpus.iterdir()))) or 40.0
    )
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "images" / name).write_bytes(b"")
    at = Setting(
        device=device,
        precision="bf16",
        seconds=0.1,
        batch=1,
        rounds=1,
        images=tmp_path / "images",
        folder=tmp_path,
    )
    rows = translate_rows.translate_job_rows(at, row("bare", 100.0, "images/s"))
    assert [line["value"] for line in rows if "of the parts" in line["what"]] == [pytest.approx(limit)]
    assert [line["ratio"] for line in rows if line["what"] == "translation job"] == [pytest.approx(40 / limit), 0.4]
    assert translated == [np.ceil(limit * 0.1 / 2) * 2], "work for so many seconds"


def test_the_training_job_gets_work_for_so_many_seconds(
    monkeypatch: pytest.MonkeyPatch, make_pairs: Any, tmp_path: Path
) -> None:
    def alone(measure: Any, *_: object) -> float:
        return 10.0 if measure is networks.plain_update else 40.0

    def train_job(at: Setting, data: Path, run: Path) -> Any:
        pairs = 8 * len(list((data / "train").iterdir()))
        assert pairs >= at.seconds * 40
        return train_rows._TrainJob(pairs=pairs, rate=30.0, inside=36.0, between=1.0, waiting=0.5, around=9.0)

    monkeypatch.setattr(train_rows, "alone", alone)
    monkeypatch.setattr(train_rows, "_train_job", train_job)
    images = make_pairs(tmp_path / "images", 8, size=32)
    at = Setting(device="cuda", precision="bf16", seconds=3, batch=4, rounds=2, images=images, folder=tmp_path)
    rows = {line["what"]: line for line in train_rows.train_rows(at)}
    assert rows["bare update, bf16, batch 4"]["against"] == "update, textbook TF32, batch 4"
    assert rows["bare update, bf16, batch 1"]["ratio"] == 4.0
    assert rows["training job, bf16, batch 4, epochs of 120 pairs"]["ratio"] == 0.75
    assert rows["training job, bf16, batch 4, inside an epoch"]["ratio"] == 0.9
