"""A translation ends with the weights it began with, whatever becomes of the run they are from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import in_this_process
from translations import ledger, outputs, refused, translate, write

from p2p.model.checkpoint import load_generator, save_checkpoint
from p2p.model.config import ModelConfig
from p2p.model.pix2pix import Pix2Pix
from p2p.translation import TranslateConfig, job
from p2p.translation.job import run
from p2p.translation.plan.resume import RemainingWork
from p2p.translation.pool import Outcome
from p2p.translation.work import Work

MODEL = ModelConfig(generator="unet_64", discriminator="patch_16", ngf=4, ndf=4, crop_size=64)


def save(run_folder: Path, epoch: int) -> None:
    """A checkpoint that is the best from now on."""
    name = f"checkpoints/epoch_{epoch:04d}"
    save_checkpoint(str(run_folder / name), Pix2Pix(MODEL, seed=epoch), {"epoch": epoch}, {})
    (run_folder / "best.json").write_text(json.dumps({"checkpoint": name}))


@pytest.fixture
def source(tmp_path: Path, make_image: Callable[..., bytes]) -> Path:
    return write(tmp_path / "in", {f"{number:02d}.png": make_image(64, 64, seed=number) for number in range(24)})


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    save(tmp_path / "run", 1)
    return tmp_path / "run"


@pytest.fixture
def kill_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`kill_in("start_output")`: the next translation ends when it comes there."""

    def arrange(name: str) -> None:
        call = getattr(job, name)

        def once(*_: Any, **__: Any) -> None:
            monkeypatch.setattr(job, name, call)
            raise KeyboardInterrupt

        monkeypatch.setattr(job, name, once)

    return arrange


def interrupted(work: Work, left: RemainingWork) -> Outcome:
    in_this_process(work, RemainingWork(left.shards[:1], left.done))
    raise KeyboardInterrupt


def config(run_folder: Path | str, source: Path, output: Path) -> TranslateConfig:
    return TranslateConfig(
        checkpoint=str(run_folder), source=str(source), output=str(output), precision="fp32", batch_size=4
    )


@pytest.mark.parametrize("change", ["another best", "pruned", "gone"])
def test_a_run_that_changes_half_way(tmp_path: Path, source: Path, run_folder: Path, change: str) -> None:
    def changes_half_way(work: Work, left: RemainingWork) -> Outcome:
        in_this_process(work, RemainingWork(left.shards[:1], left.done))
        if change != "gone":
            save(run_folder, 2)
        if change != "another best":
            shutil.rmtree(run_folder / "checkpoints/epoch_0001" if change == "pruned" else run_folder)
        in_this_process(work, RemainingWork(left.shards[1:2], left.done))  # as an actor that starts later
        raise KeyboardInterrupt

    expected, out = tmp_path / "expected", tmp_path / "out"
    translate(str(run_folder), source, expected)
    with pytest.raises(KeyboardInterrupt):
        run(config(run_folder, source, out), lambda _: nullcontext(changes_half_way))
    summary = run(config(run_folder, source, out), lambda _: nullcontext(in_this_process))
    assert (summary["translated"], summary["skipped"]) == (8, 16)
    found, wanted = outputs(out), outputs(expected)
    assert found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in found)
    assert not (out / "weights").exists()


@pytest.mark.parametrize("moment", ["pin_weights", "start_output", "extend_plan", "_read_examples"])
def test_a_kill_at_any_moment_leaves_an_output_that_the_same_command_ends(
    tmp_path: Path, source: Path, run_folder: Path, kill_in: Callable[[str], None], moment: str
) -> None:
    """Though the run's best has changed meanwhile."""
    kill_in(moment)
    with pytest.raises(KeyboardInterrupt):
        translate(str(run_folder), source, tmp_path / "out")
    save(run_folder, 2)
    summary = translate(str(run_folder), source, tmp_path / "out")
    began = 2 if moment in ("pin_weights", "start_output") else 1
    assert summary["checkpoint_id"] == load_generator(f"{run_folder}#epoch_{began:04d}").checkpoint_id
    assert len(ledger(tmp_path / "out")) == len(outputs(tmp_path / "out")) == 24
    assert not (tmp_path / "out" / "weights").exists()


def test_another_run_is_another_checkpoint_and_not_taken_for_the_first(
    tmp_path: Path, source: Path, run_folder: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(config(run_folder, source, out), lambda _: nullcontext(interrupted))
    save(tmp_path / "other", 2)
    assert "--checkpoint was" in refused(str(tmp_path / "other"), source, out)
    assert translate(str(run_folder), source, out)["translated"] == 16


def test_a_file_that_another_program_writes_into_is_copied(tmp_path: Path, source: Path, run_folder: Path) -> None:
    file = tmp_path / "generator.safetensors"
    file.write_bytes((run_folder / "checkpoints/epoch_0001/generator.safetensors").read_bytes())

    def written_into(work: Work, left: RemainingWork) -> Outcome:
        file.write_bytes(b"half of the next one")
        return in_this_process(work, left)

    summary = run(config(file, source, tmp_path / "out"), lambda _: nullcontext(written_into))
    assert (summary["translated"], summary["failed"]) == (24, 0)


def test_a_folder_of_somebody_elses_weights_stays(tmp_path: Path, source: Path, run_folder: Path) -> None:
    mine = write(tmp_path / "out", {"weights/generator.safetensors": b"mine"}) / "weights"
    assert translate(str(run_folder), source, tmp_path / "out")["translated"] == 24
    translate(str(run_folder), source, tmp_path / "out", resume="never", limit=8)
    assert len(list(mine.iterdir())) == 2, "with a limit the weights are kept for the rest"
    translate(str(run_folder), source, tmp_path / "out")
    assert [path.name for path in mine.iterdir()] == ["generator.safetensors"]


def test_damaged_weights_are_replaced_by_those_of_the_run(tmp_path: Path, source: Path, run_folder: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(config(run_folder, source, out), lambda _: nullcontext(interrupted))
    (pinned,) = (out / "weights").iterdir()
    pinned.unlink()  # a link: not the run's own file
    pinned.write_bytes(b"")
    assert translate(str(run_folder), source, out)["translated"] == 16
