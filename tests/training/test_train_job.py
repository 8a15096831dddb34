"""What the training job decides before it starts anything; a run here is files alone, and no Ray is started."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from p2p.data.pairs import PAIR_SCHEMA
from p2p.errors import UsageError
from p2p.model.checkpoint import save_checkpoint
from p2p.model.pix2pix import Pix2Pix
from p2p.storage.filesystems import write_json, write_table
from p2p.training import TrainConfig, train
from p2p.training.position import Position
from p2p.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, make_pairs) -> str:
    folder = tmp_path_factory.mktemp("pairs")
    make_pairs(folder / "train", 4, size=72)
    make_pairs(folder / "val", 2, size=72)
    return str(folder)


@pytest.fixture(autouse=True)
def no_ray(monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("training was started")

    monkeypatch.setattr("p2p.data.session.ray_session", refuse)


def config(data: str, output: Path, **options) -> TrainConfig:
    small = {
        "generator": "unet_64",
        "discriminator": "patch_16",
        "crop_size": 64,
        "epochs": 9,
        "epochs_decay": 0,
        "ngf": 1,
        "ndf": 1,
    }
    return TrainConfig(data=data, output=str(output), **{**small, **options})


def run_of(options: TrainConfig, val_l1: list[float]) -> RunFolder:
    """A run that has come as far as there are values."""
    folder = RunFolder(options.output)
    folder.start({**options.to_dict(), "input_channels": 3, "output_channels": 3})
    rows = [
        {"epoch": epoch, "step": 4 * epoch, "images_seen": 4 * epoch, "val_l1": value, "seconds": 1.0, "lr": 2e-4}
        | dict.fromkeys(("g_gan", "g_l1", "d_real", "d_fake"), 1.0)
        for epoch, value in enumerate(val_l1, 1)
    ]
    folder.write_rows(rows)
    folder.publish(saved(folder, options, rows[-1]), rows[-1], is_best=True, keep=0)
    return folder


def saved(folder: RunFolder, options: TrainConfig, row: dict) -> str:
    """The name of a checkpoint with the numbers of `row`, which nothing refers to yet."""
    name = folder.new_checkpoint(row["epoch"], row["step"])
    position = Position(epoch=row["epoch"], step=row["step"], images_seen=row["images_seen"])
    save_checkpoint(folder.address(name), Pix2Pix(options.model("fp32")), {"metrics": row}, position.to_dict())
    return name


def test_a_run_that_ran_out_of_patience_is_finished_even_if_it_was_killed_before_it_said_so(pairs, tmp_path):
    options = config(pairs, tmp_path, patience=2)
    folder = run_of(options, [0.3, 0.2, 0.25, 0.26])
    summary = train(options)
    assert (summary["epochs"], summary["stopped_early"], summary["images_seen"]) == (4, True, 16)
    assert folder.summary() == summary and (tmp_path / "report.html").exists()
    assert train(options) == summary
    assert train(config(pairs, tmp_path, patience=1)) == summary
    for more in ({"patience": 3}, {"patience": 0}, {"patience": 2, "best_metric": "val_psnr"}):
        with pytest.raises(AssertionError, match="training was started"):
            train(config(pairs, tmp_path, **more))


def test_a_run_that_was_killed_after_its_last_epoch_gets_its_summary(pairs, tmp_path):
    options = config(pairs, tmp_path, epochs=3)
    run_of(options, [0.3, 0.2, 0.1])
    assert (train(options)["epochs"], train(options)["stopped_early"]) == (3, False)


def test_patience_without_validation_is_refused(pairs, tmp_path):
    with pytest.raises(UsageError, match=r"patience 3: needs validation, and there is no test split"):
        train(config(pairs, tmp_path / "run", patience=3, val_split="test"))
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("resume", ["auto", "never"])
@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"config.json": {"name": "a web server", "output": "logs"}}, "a config.json that train did not write"),
        ({"config.json": ["a", "list"]}, "a config.json that train did not write"),
        ({"latest.json": {"version": 3}, "checkpoints/v3/weights": {}}, r"latest\.json: names no checkpoint"),
    ],
)
def test_a_folder_of_something_else_is_refused_and_left_alone(pairs, tmp_path, files, reason, resume):
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=rf"output .*{reason}.*choose another output"):
        train(config(pairs, tmp_path, resume=resume))
    assert {name: json.loads((tmp_path / name).read_text()) for name in files} == files


def test_a_config_json_that_is_no_json_is_refused(pairs, tmp_path):
    (tmp_path / "config.json").write_text("port = 80")
    with pytest.raises(UsageError, match=r"output .*config.json: not valid JSON.*choose another output"):
        train(config(pairs, tmp_path))


def test_a_run_in_an_empty_folder_begins(pairs, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(AssertionError, match="training was started"):
        train(config(pairs, tmp_path))


def test_a_run_among_the_raw_images_it_trains_on_is_refused(tmp_path, make_pairs):
    make_pairs(tmp_path / "photos", 4, size=72)
    (tmp_path / "photos" / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "photos" / "run")
    for output in (tmp_path / "photos", tmp_path / "photos" / "run", tmp_path / "link"):
        with pytest.raises(UsageError, match=r"lies in .*photos, .* choose a folder beside it"):
            train(config(str(tmp_path / "photos"), output))
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".png"}


def two_checkpoints(options: TrainConfig) -> RunFolder:
    """A run with a checkpoint after each of two epochs; the later one is the best."""
    folder = run_of(options, [0.3, 0.2])
    saved(folder, options, folder.rows()[0])
    return folder


DAMAGES = {
    "gone": shutil.rmtree,
    "never finished": lambda checkpoint: (checkpoint / "meta.json").unlink(),
    "generator cut off": lambda checkpoint: os.truncate(checkpoint / "generator.safetensors", 1000),
    "moments cut off": lambda checkpoint: os.truncate(checkpoint / "trainer.safetensors", 1000),
    "position lost": lambda checkpoint: (checkpoint / "trainer.json").write_text("{}"),
    "position of other types": lambda checkpoint: (checkpoint / "trainer.json").write_text('{"loss_sums": 3}'),
    "position a list": lambda checkpoint: (checkpoint / "trainer.json").write_text("[]"),
    "description nested too deeply": lambda checkpoint: (checkpoint / "meta.json").write_text("[" * 100_000),
    "position no JSON": lambda checkpoint: (checkpoint / "trainer.json").write_text(""),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_latest_checkpoint_gives_way_to_the_one_before(pairs, tmp_path, damage, caplog):
    options = config(pairs, tmp_path / "run")
    folder = two_checkpoints(options)
    before = folder.rows()[0]
    damage(tmp_path / "run" / "checkpoints" / "epoch_0002")
    with pytest.raises(AssertionError, match="training was started"):
        train(options)
    entry = {"checkpoint": "checkpoints/epoch_0001", "epoch": 1, "step": 4, "metrics": before}
    assert (folder.latest(), folder.best()) == (entry, entry)
    assert (
        "checkpoints/epoch_0002 cannot be used" in caplog.text and "going on from checkpoints/epoch_0001" in caplog.text
    )


def test_a_run_without_one_whole_checkpoint_is_told_before_anything_starts(pairs, tmp_path):
    options = config(pairs, tmp_path / "run")
    folder = two_checkpoints(options)
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        (checkpoint / "meta.json").unlink()
    with pytest.raises(UsageError, match=r"epoch_0002 is gone or damaged, and there is no other; set resume never"):
        train(options)
    assert folder.latest()["checkpoint"] == "checkpoints/epoch_0002"


def test_a_whole_checkpoint_is_left_as_it_is(pairs, tmp_path):
    options = config(pairs, tmp_path / "run")
    folder = two_checkpoints(options)
    latest = folder.latest()
    with pytest.raises(AssertionError, match="training was started"):
        train(options)
    assert folder.latest() == latest


@pytest.mark.parametrize("name", ["latest.json", "best.json", "metrics.jsonl"])
@pytest.mark.parametrize(
    "content",
    [
        "junk",
        "3",
        "[" * 100_000,
        '{"epoch": 1, "step": "4"}',
        '{"checkpoint": "../other/checkpoints/epoch_0001", "epoch": 1, "metrics": {"epoch": 1, "step": 4}}',
        '{"checkpoint": "checkpoints/epoch_0001", "epoch": 1, "metrics": {"epoch": 1, "step": 4, "val_l1": "low"}}',
        '{"checkpoint": "checkpoints/epoch_0001", "epoch": 1, "metrics": {"epoch": "1"}}',
        '{"checkpoint": "checkpoints/epoch_0001", "epoch": 1, "metrics": []}',
    ],
)
def test_a_damaged_file_of_a_run_is_told_before_anything_starts_and_can_be_left_behind(pairs, tmp_path, name, content):
    options = config(pairs, tmp_path)
    run_of(options, [0.3])
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=rf"output .*{name}: .*resume never to start over"):
        train(options)
    with pytest.raises(AssertionError, match="training was started"):
        train(config(pairs, tmp_path, resume="never"))


def test_data_that_changed_under_a_run_is_told(pairs, tmp_path, caplog):
    options = config(pairs, tmp_path)
    folder = run_of(options, [0.3])
    meta = json.loads((tmp_path / folder.latest()["checkpoint"] / "meta.json").read_text())
    for known, told in (({}, False), ({"pairs": 4, "load_size": None}, False), ({"pairs": 3}, True)):
        write_json(f"{folder.address(folder.latest()['checkpoint'])}/meta.json", {**meta, "data": known})
        caplog.clear()
        with pytest.raises(AssertionError, match="training was started"):
            train(options)
        assert ("4 training pairs now, 3 before" in caplog.text) is told


def test_a_data_set_that_was_not_prepared_to_its_end_is_told(tmp_path, make_pairs, caplog):
    rows = [{"pair_id": str(n), "a": b"", "b": b"", "width": 72, "height": 72, "source_uri": ""} for n in range(4)]
    write_table(f"{tmp_path}/data/train/part-00000.parquet", pa.Table.from_pylist(rows, schema=PAIR_SCHEMA))
    for described in (False, True):
        caplog.clear()
        with pytest.raises(AssertionError, match="training was started"):
            train(config(f"{tmp_path}/data", tmp_path / "run"))
        assert ("stopped before its end" in caplog.text) is not described
        write_json(f"{tmp_path}/data/dataset.json", {})
