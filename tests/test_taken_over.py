"""Jobs that stood still while another took over their output: they change nothing of it any more."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluations import confusions, write_evaluation
from fsspec.implementations.local import LocalFileSystem
from translations import translate, write

from p2p.benchmark import BenchmarkConfig, benchmark
from p2p.benchmark.rows import row
from p2p.comparison import CompareConfig, compare
from p2p.errors import LeaseLostError, P2PError
from p2p.evaluation import EvaluateConfig, evaluate
from p2p.evaluation.feature_cache import FeatureCache
from p2p.evaluation.plan import EvaluationPlan, make_plan
from p2p.model.inception import FEATURES
from p2p.preparation import PrepareConfig, prepare
from p2p.preparation.locations import SourceReader
from p2p.preparation.pairing import Drawing, PairRef
from p2p.preparation.parts import Part, write_part
from p2p.storage.filesystems import write_json
from p2p.storage.lease import Fence, hold_lease, read_lease
from p2p.training import TrainConfig, train
from p2p.training.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("jobs_share_a_process")
StandStill = Callable[[str, Path], None]


def take_over(output: Path) -> None:
    """Leave the lease that another job would have written."""
    held = read_lease(str(output))
    assert held
    heir = dataclasses.replace(held, pid=1, attempt=held.attempt + 1, started=held.started + 1)
    write_json(f"{output}/lease.json", vars(heir))


@pytest.fixture
def stand_still(monkeypatch: pytest.MonkeyPatch) -> StandStill:
    """`stand_still("module.function", output)`: the output is taken over while the job is in there."""

    def arrange(name: str, output: Path) -> None:
        module, _, function = name.rpartition(".")
        call = getattr(__import__(module, fromlist=[function]), function)

        def taken_over(*words: Any, **options: Any) -> Any:
            found = call(*words, **options)
            take_over(output)
            return found

        monkeypatch.setattr(name, taken_over)

    return arrange


@pytest.fixture
def look_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a pause of any length, whatever a job has seen a moment ago."""
    check = Fence.check
    monkeypatch.setattr(Fence, "check", lambda fence, seconds=0.0: check(fence))


@pytest.fixture
def stand_still_in_second(monkeypatch: pytest.MonkeyPatch, look_each_time: None) -> Callable[[Path], None]:
    """`stand_still_in_second(output)`: it is taken over when the job has removed its second file."""

    def arrange(output: Path) -> None:
        remove, calls = os.remove, itertools.count(1)

        def taken_over(path: str) -> None:
            remove(path)
            is_own = Path(path).is_relative_to(output) and not Path(path).name.startswith((".p2p-", "lease.json"))
            if is_own and next(calls) == 2:
                take_over(output)

        monkeypatch.setattr("p2p.storage.filesystems._REMOVERS", 1)
        monkeypatch.setattr(os, "remove", taken_over)

    return arrange


def content(output: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and path.name != "lease.json"
    }


@pytest.mark.parametrize("moment", ["choose_pairing", "_reports"])
def test_prepare(tmp_path: Path, stand_still: StandStill, moment: str) -> None:
    out = tmp_path / "out"
    prepare(PrepareConfig(source="synthetic:city?pairs=4&size=64", output=str(out), load_size=0))
    before = content(out)
    stand_still(f"p2p.preparation.job.{moment}", out)
    with pytest.raises(LeaseLostError):
        prepare(PrepareConfig(source="synthetic:city?pairs=4&size=64&seed=1", output=str(out), load_size=0))
    after = content(out)
    assert after == before if moment == "choose_pairing" else after.keys().isdisjoint(("dataset.json", "summary.json"))


@pytest.mark.parametrize(
    ("moment", "missing"),
    [
        ("_write_errors", {"dataset.json", "doctor.json", "doctor.html", "summary.json"}),
        ("write_description", {"doctor.json", "doctor.html", "summary.json"}),
        ("run_as_task", {"doctor.html", "summary.json"}),
        ("publish_findings", {"summary.json"}),
    ],
)
def test_prepare_at_its_end(tmp_path: Path, stand_still: StandStill, moment: str, missing: set[str]) -> None:
    stand_still(f"p2p.preparation.job.{moment}", tmp_path)
    with pytest.raises(LeaseLostError):
        prepare(PrepareConfig(source="synthetic:city?pairs=4&size=64", output=str(tmp_path), load_size=0))
    names = {"dataset.json", "doctor.json", "doctor.html", "summary.json"}
    assert names - content(tmp_path).keys() == missing


def test_prepare_while_it_removes_what_was_there(tmp_path: Path, stand_still_in_second: Callable[[Path], None]) -> None:
    config = PrepareConfig(source="synthetic:city?pairs=4&size=64", output=str(tmp_path), load_size=0)
    prepare(config)
    before = content(tmp_path)
    stand_still_in_second(tmp_path)
    with pytest.raises(LeaseLostError):
        prepare(config)
    assert before.keys() - content(tmp_path).keys() == {"dataset.json", "doctor.json"}


def test_a_part_of_pairs_that_was_being_made(tmp_path: Path) -> None:
    drawing = PairRef("0", "train", Drawing(seed=0, index=0, height=64, width=64), None, 0)
    with pytest.raises(LeaseLostError), hold_lease(str(tmp_path), "output", "prepare") as fence:
        take_over(tmp_path)
        write_part(Part("train", 0, (drawing,)), str(tmp_path), 0, SourceReader(), fence=fence)
    assert not content(tmp_path)


def test_train(tmp_path: Path, make_pairs: Any, stand_still: StandStill, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pairs(tmp_path / "data" / "train", 2, size=64)
    small: dict[str, Any] = {"generator": "unet_64", "discriminator": "patch_16", "crop_size": 64, "ngf": 1, "ndf": 1}
    config = TrainConfig(data=str(tmp_path / "data"), output=str(tmp_path / "run"), resume="never", **small)
    RunFolder(config.output).start(config.to_dict())
    before = content(tmp_path / "run")
    monkeypatch.setattr("p2p.data.session.ray_session", nullcontext)
    monkeypatch.setattr("p2p.training.launch.resources", lambda config: None)
    stand_still("p2p.training.launch.resources", tmp_path / "run")
    with pytest.raises(LeaseLostError):
        train(config)
    assert content(tmp_path / "run") == before


@pytest.mark.parametrize("moment", ["require_unique", "pin_weights", "extend_plan"])
def test_translate(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes], stand_still: StandStill, moment: str
) -> None:
    source = write(tmp_path / "in", {f"{number}.png": make_image(64, 64, seed=number) for number in range(9)})
    out = tmp_path / "out"
    translate(checkpoint, source, out)
    before = content(out)
    write(source, {"9.png": make_image(64, 64)})
    write(out, {".p2p-of-the-heir": b""})
    stand_still(f"p2p.translation.job.{moment}", out)
    with pytest.raises(P2PError, match=r"process 1, attempt 2 now"):
        translate(checkpoint, source, out, resume="never" if moment == "require_unique" else "auto")
    after = content(out)
    if moment == "require_unique":
        assert after == {**before, ".p2p-of-the-heir": b""}
    assert ("summary.json" in after) == (moment != "extend_plan")
    for name in (".p2p-of-the-heir", *(name for name in before if "shard-" in name)):
        assert after[name] == {**before, ".p2p-of-the-heir": b""}[name]
    assert not [name for name in after.keys() - before.keys() if name.startswith(("data/", "ledger/"))]


@pytest.mark.usefixtures("look_each_time")
def test_translate_while_it_notes_what_has_changed(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes], stand_still: StandStill
) -> None:
    source = write(tmp_path / "in", {f"{number:02d}.png": make_image(64, 64, seed=number) for number in range(12)})
    out = tmp_path / "out"
    translate(checkpoint, source, out)
    before = content(out)
    write(source, {name: make_image(70, 64) for name in ("00.png", "11.png")})
    stand_still("p2p.translation.plan.changes.reopen_changed", out)
    with pytest.raises(P2PError, match=r"process 1, attempt 2 now"):
        translate(checkpoint, source, out)
    after = content(out)
    assert before.keys() - after.keys() == {"summary.json", "ledger/shard-00000.parquet"}, "of the first shard alone"
    assert after["manifest/part-00000.parquet"] == before["manifest/part-00000.parquet"]


@pytest.mark.parametrize(
    ("moment", "missing"),
    [
        ("_read_examples", {"report.html", "summary.json"}),
        ("write_translation_report", {"summary.json"}),
        ("write_json", set()),
    ],
)
def test_translate_at_its_end(
    tmp_path: Path,
    checkpoint: str,
    make_image: Callable[..., bytes],
    stand_still: StandStill,
    moment: str,
    missing: set[str],
) -> None:
    source, out = write(tmp_path / "in", {"a.png": make_image(64, 64)}), tmp_path / "out"
    stand_still(f"p2p.translation.job.{moment}", out)
    with pytest.raises(LeaseLostError):
        translate(checkpoint, source, out)
    assert {"report.html", "summary.json"} - content(out).keys() == missing
    assert list((out / "weights").iterdir()), "the heir goes on with them"


@pytest.mark.parametrize("format", ["png", "parquet"])
def test_translate_while_it_removes_what_was_there(
    tmp_path: Path,
    checkpoint: str,
    make_image: Callable[..., bytes],
    stand_still_in_second: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    format: str,
) -> None:
    source, out = write(tmp_path / "in", {f"{number}.png": make_image(64, 64) for number in range(9)}), tmp_path / "out"
    translate(checkpoint, source, out, format=format)
    before = content(out)
    stand_still_in_second(out)
    with pytest.raises(LeaseLostError):
        translate(checkpoint, source, out, format=format, resume="never")
    assert len(before.keys() - content(out).keys()) == 2, "what was removed before, and what was being removed"


@pytest.fixture
def run_of_white(tmp_path: Path, checkpoint: str, make_pairs: Any) -> EvaluateConfig:
    make_pairs(tmp_path / "data" / "val", 3, size=64)
    return EvaluateConfig(checkpoint=checkpoint, data=str(tmp_path / "data"), output=str(tmp_path / "out"))


def test_evaluate(tmp_path: Path, run_of_white: EvaluateConfig, stand_still: StandStill) -> None:
    stand_still("p2p.evaluation.job.measure_rows", tmp_path / "out")
    with pytest.raises(LeaseLostError):
        evaluate(run_of_white)
    assert not content(tmp_path / "out")


def test_compare(tmp_path: Path, stand_still: StandStill) -> None:
    values = {"ssim": np.linspace(0, 1, 20)}
    for name in ("a", "b"):
        write_evaluation(tmp_path / name, values, confusions(20, 0.6, 0))
    stand_still("p2p.comparison.job.compare_sides", tmp_path / "out")
    with pytest.raises(LeaseLostError):
        compare(CompareConfig(evaluations=(str(tmp_path / "a"), str(tmp_path / "b")), output=str(tmp_path / "out")))
    assert not content(tmp_path / "out")


@pytest.fixture
def stand_still_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """`stand_still_after(file)`: the folder of the file is taken over once the job has published it."""
    replace = os.replace

    def arrange(file: Path) -> None:
        def taken_over(source: str, target: str) -> None:
            replace(source, target)
            if target == str(file):
                take_over(file.parent)

        monkeypatch.setattr(os, "replace", taken_over)

    return arrange


EVALUATION = ["metrics.json", "per_image.parquet", "examples.parquet", "evaluation.json", "report.html"]


@pytest.mark.parametrize("number", range(len(EVALUATION)))
def test_evaluate_between_two_files(
    tmp_path: Path, run_of_white: EvaluateConfig, stand_still_after: Callable[[Path], None], number: int
) -> None:
    stand_still_after(tmp_path / "out" / EVALUATION[number])
    with pytest.raises(LeaseLostError):
        evaluate(run_of_white)
    assert content(tmp_path / "out").keys() == set(EVALUATION[: number + 1])


COMPARISON = ["comparison.json", "comparison.md", "gate.json", "gate.xml", "report.html"]


@pytest.mark.parametrize("number", range(len(COMPARISON)))
def test_compare_between_two_files(tmp_path: Path, stand_still_after: Callable[[Path], None], number: int) -> None:
    one = write_evaluation(tmp_path / "one", {"ssim": np.linspace(0, 1, 20)})
    (tmp_path / "gate.yaml").write_text("metrics: {ssim: {at_least: 0}}")
    stand_still_after(tmp_path / "out" / COMPARISON[number])
    with pytest.raises(LeaseLostError):
        compare(CompareConfig(evaluations=(str(one),), gate=str(tmp_path / "gate.yaml"), output=str(tmp_path / "out")))
    assert content(tmp_path / "out").keys() == set(COMPARISON[: number + 1])


def test_evaluate_with_its_data_set_in_its_output(
    tmp_path: Path, checkpoint: str, stand_still: StandStill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside which the features of the targets are kept."""

    def plan_with_features(config: EvaluateConfig) -> EvaluationPlan:
        return dataclasses.replace(make_plan(config), inception_sha256="7f" * 32)  # its weights may not be here

    monkeypatch.setattr("p2p.evaluation.job.make_plan", plan_with_features)
    monkeypatch.setattr(FeatureCache, "read", lambda cache: {"a" * 64: np.ones(FEATURES, np.float32)})
    out = tmp_path / "out"
    source = "synthetic:city?pairs=2&size=64"
    prepare(PrepareConfig(source=source, output=str(out / "pairs"), load_size=0, val_fraction=1.0))
    before = content(out)
    stand_still("p2p.evaluation.job.measure_rows", out)
    with pytest.raises(LeaseLostError):
        evaluate(EvaluateConfig(checkpoint=checkpoint, data=str(out / "pairs"), output=str(out), metrics="l1"))
    assert content(out) == before


@pytest.mark.usefixtures("look_each_time")
def test_a_run_that_was_being_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(str(tmp_path))
    folder.start({"seed": 1})
    for epoch in (1, 2, 3):
        folder.write_sample(f"epoch_000{epoch}", b"PNG")
    remove_one = LocalFileSystem.rm_file

    def taken_over(filesystem: LocalFileSystem, path: str) -> None:
        remove_one(filesystem, path)
        take_over(tmp_path)

    monkeypatch.setattr(LocalFileSystem, "rm_file", taken_over)
    with pytest.raises(LeaseLostError), hold_lease(str(tmp_path), "output", "train") as fence:
        folder.delete(fence)
    assert content(tmp_path).keys() == {"samples/epoch_0002.png", "samples/epoch_0003.png", "config.json"}


def test_benchmark(tmp_path: Path, stand_still: StandStill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2p.benchmark.job.data_rows", lambda at: [row("pairs", 1.0, "pairs/s")])
    config = BenchmarkConfig(what="data", device="cpu", images=8, output=str(tmp_path / "out"))
    benchmark(config)
    before = content(tmp_path / "out")
    assert before.keys() == {"benchmark.json", "summary.json"} and read_lease(config.output) is None
    stand_still("p2p.benchmark.job.data_rows", tmp_path / "out")
    with pytest.raises(LeaseLostError):
        benchmark(config)
    assert content(tmp_path / "out") == before
