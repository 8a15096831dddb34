"""What the training job decides before it starts anything; a run here is files alone, and no Ray is started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from p2p.errors import UsageError
from p2p.storage.filesystems import write_json
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
    small = {"generator": "unet_64", "discriminator": "patch_16", "crop_size": 64, "epochs": 9, "epochs_decay": 0}
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
    name = folder.new_checkpoint(len(rows), 4 * len(rows))
    position = Position(epoch=len(rows), step=4 * len(rows), images_seen=4 * len(rows))
    write_json(f"{folder.address(name)}/trainer.json", position.to_dict())
    folder.publish(name, rows[-1], is_best=True, keep=0)
    return folder


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
    with pytest.raises(UsageError, match=r"--patience 3: needs validation, and there is no test split"):
        train(config(pairs, tmp_path / "run", patience=3, val_split="test"))
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("resume", ["auto", "never"])
@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"config.json": {"name": "a web server", "output": "logs"}}, "a config.json that train did not write"),
        ({"config.json": ["a", "list"]}, "a config.json that train did not write"),
        ({"latest.json": {"version": 3}, "checkpoints/v3/weights": {}}, "has a latest.json and no config.json"),
    ],
)
def test_a_folder_of_something_else_is_refused_and_left_alone(pairs, tmp_path, files, reason, resume):
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=rf"--output .*{reason}.*choose another --output"):
        train(config(pairs, tmp_path, resume=resume))
    assert {name: json.loads((tmp_path / name).read_text()) for name in files} == files


def test_a_config_json_that_is_no_json_is_refused(pairs, tmp_path):
    (tmp_path / "config.json").write_text("port = 80")
    with pytest.raises(UsageError, match=r"--output .*config.json: not valid JSON.*choose another --output"):
        train(config(pairs, tmp_path))


def test_a_run_in_an_empty_folder_begins(pairs, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(AssertionError, match="training was started"):
        train(config(pairs, tmp_path))


def test_a_run_among_the_raw_images_it_trains_on_is_refused(tmp_path, make_pairs):
    make_pairs(tmp_path / "photos", 4, size=72)
    for output in (tmp_path / "photos", tmp_path / "photos" / "run"):
        with pytest.raises(UsageError, match=r"lies in --data .* choose a folder beside it"):
            train(config(str(tmp_path / "photos"), output))
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".png"}
