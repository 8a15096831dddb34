"""Whole training runs on real Ray workers, as small as they can be. One cluster serves them all."""

import json
import os
import signal
import threading

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from p2p.errors import UsageError
from p2p.model.checkpoint import load_generator
from p2p.training import TrainConfig, train
from p2p.training.config import TrainConfig as Config

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

TENSORS = ("generator", "discriminator", "trainer")


@pytest.fixture(scope="module")
def raw_pairs(tmp_path_factory, make_pairs) -> str:
    folder = tmp_path_factory.mktemp("pairs")
    make_pairs(folder / "train", 10, size=72)
    make_pairs(folder / "val", 5, size=72, seed=1)
    return str(folder)


def config(data: str, output, **options) -> Config:
    small = {
        "generator": "unet_64",
        "discriminator": "patch_16",
        "ngf": 4,
        "ndf": 4,
        "crop_size": 64,
        "batch_size": 2,
        "epochs": 2,
        "epochs_decay": 1,
        "precision": "fp32",
        "gpu": "false",
    }
    return TrainConfig(data=data, output=str(output), **{**small, **options})


@pytest.fixture(scope="module")
def finished(raw_pairs, tmp_path_factory):
    """A run that went through in one piece."""
    output = tmp_path_factory.mktemp("whole") / "run"
    summary = train(config(raw_pairs, output))
    return output, summary


def tensors(run, checkpoint: str) -> dict[str, np.ndarray]:
    folder = run / "checkpoints" / checkpoint
    return {
        f"{name}.{key}": value.numpy()
        for name in TENSORS
        for key, value in load_file(folder / f"{name}.safetensors").items()
    }


def rows(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_everything_it_promises(finished):
    run, summary = finished
    assert {path.name for path in run.iterdir()} == {
        "config.json",
        "checkpoints",
        "best.json",
        "latest.json",
        "metrics.jsonl",
        "samples",
        "tensorboard",
        "report.html",
        "summary.json",
    }
    assert summary == json.loads((run / "summary.json").read_text())
    assert (summary["epochs"], summary["steps"], summary["images_seen"]) == (3, 15, 30)
    assert summary["latest"]["checkpoint"] == "checkpoints/epoch_0003"
    assert [row["epoch"] for row in rows(run)] == [1, 2, 3]
    assert [row["lr"] for row in rows(run)] == pytest.approx([2e-4, 2e-4, 1e-4])
    for row in rows(run):
        assert {"step", "images_seen", "g_gan", "g_l1", "d_real", "d_fake", "images_per_second"} <= set(row)
        assert 0 < row["val_l1"] < 1
        assert {"val_psnr", "val_ssim"} <= set(row)
    assert rows(run)[-1]["g_l1"] < rows(run)[0]["g_l1"]
    assert Image.open(run / "samples" / "epoch_0002.png").size[0] > 3 * 64
    assert list((run / "tensorboard").iterdir())
    assert load_generator(str(run)).config.ngf == 4
    assert not list(run.rglob("*.pkl")) + list(run.rglob("*.pth"))


def test_a_finished_run_is_not_trained_again(finished, raw_pairs):
    run, summary = finished
    before = (run / "metrics.jsonl").stat().st_mtime_ns
    assert train(config(raw_pairs, run)) == summary
    assert (run / "metrics.jsonl").stat().st_mtime_ns == before


def test_another_network_in_the_same_folder_is_refused_by_option(finished, raw_pairs):
    run, _ = finished
    with pytest.raises(UsageError, match=r"--ngf was 4, now 8.*--resume never"):
        train(config(raw_pairs, run, ngf=8))


def test_a_run_stopped_inside_an_epoch_ends_bit_equal_to_one_that_was_not(finished, raw_pairs, tmp_path):
    whole, _ = finished
    run = tmp_path / "run"
    assert train(config(raw_pairs, run, max_steps=7))["steps"] == 7
    summary = train(config(raw_pairs, run))
    assert summary["images_seen"] == 30
    assert [row["epoch"] for row in rows(run)] == [1, 2, 3]
    for name in ("g_gan", "g_l1", "d_real", "d_fake", "val_l1", "val_psnr", "val_ssim", "lr", "step"):
        assert [row[name] for row in rows(run)] == [row[name] for row in rows(whole)]
    expected, found = tensors(whole, "epoch_0003"), tensors(run, "epoch_0003")
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_two_workers_take_the_first_step_that_one_takes_with_twice_the_batch(raw_pairs, tmp_path):
    same = {"norm": "instance", "dropout": False, "max_steps": 1}
    train(config(raw_pairs, tmp_path / "one", batch_size=4, **same))
    train(config(raw_pairs, tmp_path / "two", batch_size=2, workers=2, **same))
    one, two = tensors(tmp_path / "one", "epoch_0001"), tensors(tmp_path / "two", "epoch_0001")
    # Adam's first moment is a tenth of half the gradient; the step itself has only the gradient's sign.
    moments = [name for name in one if name.endswith(".exp_avg")]
    assert moments
    for name in moments:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-3, atol=1e-5, err_msg=name)
    for name, value in rows(tmp_path / "one")[0].items():
        if name.startswith(("g_", "d_r", "d_f")):
            assert rows(tmp_path / "two")[0][name] == pytest.approx(value, rel=1e-4)


def _kill_a_training_worker(run, killed: list[int]) -> None:
    """kill -9 of one of this process's own Ray Train workers, once the run has a checkpoint."""
    import psutil  # comes with Ray

    wait = threading.Event()
    while not (run / "latest.json").exists():
        wait.wait(0.05)
    for process in psutil.Process(os.getpid()).children(recursive=True):
        if "RayTrainWorker" in " ".join(process.cmdline()):
            killed.append(process.pid)
            os.kill(process.pid, signal.SIGKILL)
            return


def test_a_killed_worker_is_replaced_and_training_goes_on(raw_pairs, tmp_path):
    run, killed = tmp_path / "run", []
    killer = threading.Thread(target=_kill_a_training_worker, args=(run, killed), daemon=True)
    killer.start()
    summary = train(config(raw_pairs, run, epochs=25, epochs_decay=0, keep_checkpoints=1))
    killer.join()
    assert killed
    assert summary["epochs"] == 25
    assert summary["images_seen"] == 250
    assert [row["epoch"] for row in rows(run)] == list(range(1, 26))
