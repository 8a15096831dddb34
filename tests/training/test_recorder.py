"""What the first worker writes, on real files and without Ray."""

from __future__ import annotations

from contextlib import closing

import pytest

from p2p.data.augment import CropSettings
from p2p.data.description import DataRecord
from p2p.data.pairs import open_pairs
from p2p.data.stream import PairStream
from p2p.errors import LeaseLostError
from p2p.model.checkpoint import load_generator
from p2p.model.pix2pix import Pix2Pix
from p2p.training import TrainConfig
from p2p.training.position import Position
from p2p.training.recorder import Recorder
from p2p.training.run_folder import RunFolder
from p2p.training.task import TrainTask


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, make_pairs):
    folder = make_pairs(tmp_path_factory.mktemp("pairs") / "train", 3, size=64)
    return open_pairs(str(folder.parent), "train", raw_load_size=64)


@pytest.fixture
def recorder_of(tmp_path, pairs):
    """`recorder_of(validated=True)`: a recorder of a tiny model, in RUN = tmp_path."""

    def make(*, validated: bool) -> Recorder:
        config = TrainConfig(
            data=pairs.uri, output=str(tmp_path), generator="unet_64", discriminator="patch_16", ngf=4, crop_size=64
        )
        RunFolder(config.output).start(config.to_dict())
        crop = CropSettings(64, seed=0, flip=False, swap=False)
        stream = PairStream(pairs, pairs if validated else None, crop, batch_size=1)
        data = DataRecord(pairs.uri, 0, None, None)
        return Recorder(TrainTask(config, stream, data), Pix2Pix(config.model("fp32")), last_step=0)

    return make


def row(epoch: int, step: int, **metrics: float) -> dict:
    return {"epoch": epoch, "step": step, "images_seen": step, "g_l1": 1.0, "seconds": 1.0, **metrics}


@pytest.mark.parametrize("validated", [True, False])
def test_a_checkpoint_within_an_epoch_is_the_best_only_where_nothing_is_validated(tmp_path, recorder_of, validated):
    folder, judged = RunFolder(str(tmp_path)), {"val_l1": 0.1} if validated else {}
    with closing(recorder_of(validated=validated)) as recorder:
        recorder.save(row(1, 2), Position(step=2), inside_epoch=True)
        assert (folder.best() is None) == validated
        recorder.save(row(1, 5, **judged), Position(1, step=5))
        recorder.save(row(2, 7), Position(1, 2, 7), inside_epoch=True)
    assert folder.latest()["checkpoint"] == "checkpoints/epoch_0002_step_00000007"
    assert folder.best()["checkpoint"] == ("checkpoints/epoch_0001" if validated else folder.latest()["checkpoint"])
    assert load_generator(f"{tmp_path}#epoch_0001_step_00000002").config.ngf == 4


def test_workers_that_were_replaced_while_they_stood_still_set_nothing_back(tmp_path, recorder_of):
    """A node that is cut off from Ray still reaches the storage."""
    folder = RunFolder(str(tmp_path))
    with closing(recorder_of(validated=False)) as cut_off, closing(recorder_of(validated=False)) as recorder:
        for epoch in (1, 2, 3):
            recorder.save(row(epoch, 2 * epoch), Position(epoch, step=2 * epoch))
        weights = (tmp_path / "checkpoints" / "epoch_0002" / "generator.safetensors").stat().st_mtime_ns
        with pytest.raises(LeaseLostError, match="have saved step 6 already, these are at 4"):
            cut_off.save(row(2, 4), Position(2, step=4))
    assert folder.latest()["epoch"] == 3
    assert (tmp_path / "checkpoints" / "epoch_0002" / "generator.safetensors").stat().st_mtime_ns == weights


def test_the_page_shows_the_run_so_far_and_costs_a_small_share_of_the_time(tmp_path, recorder_of, monkeypatch):
    page, clock = tmp_path / "report.html", [0.0]
    monkeypatch.setattr("p2p.training.recorder.time.monotonic", lambda: clock[0])
    with closing(recorder_of(validated=True)) as recorder:
        assert recorder.draw(1, 3, inside_epoch=True).keys() == {"output_variety", "target_variety"}
        recorder.draw(1, 5)
        recorder.write([row(1, 5)])
        recorder.refresh_report([])
        assert "epoch 1, step 3" in page.read_text() and "No findings so far." in page.read_text()
        page.unlink()

        def slow(*_: object) -> None:
            page.touch()
            clock[0] += 2.0

        monkeypatch.setattr("p2p.training.recorder.write_run_report", slow)
        clock[0] = 10.0
        for at, written in ((10.0, True), (30.0, False), (111.0, False), (113.0, True)):
            clock[0] = at
            recorder.refresh_report([])
            assert page.exists() is written, at
            page.unlink(missing_ok=True)
