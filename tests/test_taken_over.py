"""Jobs that stood still while another took over their output: they change nothing of it any more."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluations import confusions, write_evaluation
from translations import translate, write

from p2p.comparison import CompareConfig, compare
from p2p.errors import LeaseLostError, P2PError
from p2p.evaluation import EvaluateConfig, evaluate
from p2p.preparation import PrepareConfig, prepare
from p2p.preparation.locations import SourceReader
from p2p.preparation.pairing import Drawing, PairRef
from p2p.preparation.parts import Part, write_part
from p2p.storage.filesystems import write_json
from p2p.storage.lease import hold_lease, read_lease
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
    for name in ("summary.json", ".p2p-of-the-heir", *(name for name in before if "shard-" in name)):
        assert after[name] == {**before, ".p2p-of-the-heir": b""}[name]
    assert not [name for name in after.keys() - before.keys() if name.startswith(("data/", "ledger/"))]


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
