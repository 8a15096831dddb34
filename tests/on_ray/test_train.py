"""Whole training runs on real Ray workers, as small as they can be. One cluster serves them all."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import ray
import s3fs
import torch
from conftest import descendants, read_process
from PIL import Image
from safetensors.torch import load
from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator

from p2p.errors import TrainingStoppedError, UsageError
from p2p.model.checkpoint import load_generator
from p2p.storage.filesystems import list_names, read_bytes, read_json
from p2p.training import TrainConfig, launch, train
from p2p.training.config import TrainConfig as Config
from p2p.training.reporter import Display, RunReporter

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.usefixtures("ray_cluster")]


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
        "ema_images": 20,
        "precision": "fp32",
        "gpu": "false",
    }
    return TrainConfig(data=data, output=str(output), **{**small, **options})


@pytest.fixture(scope="module")
def finished(raw_pairs, tmp_path_factory):
    """A run that went through in one piece. Its worker has first counted page faults, for one of the tests."""
    output = tmp_path_factory.mktemp("whole") / "run"
    train_worker, report = launch.train_worker, output.parent / "faults.json"

    def count_page_faults_and_train(settings):
        counts = []
        for megabytes in (100, 90):  # more than a thread's arena of glibc's may hold
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            torch.empty(megabytes * 2**20, dtype=torch.uint8).fill_(1)
            counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        report.write_text(json.dumps({"faults": counts, "spin count": os.environ["GOMP_SPINCOUNT"]}))
        train_worker(settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "train_worker", count_page_faults_and_train)
        summary = train(config(raw_pairs, output))
    return output, summary


def tensors(run, checkpoint: str) -> dict[str, np.ndarray]:
    """Every number of a checkpoint, by file and name."""
    folder = f"{run}/checkpoints/{checkpoint}"
    return {
        f"{name}.{key}": value.numpy()
        for name in list_names(folder)
        if name.endswith(".safetensors")
        for key, value in load(read_bytes(f"{folder}/{name}")).items()
    }


def rows(run) -> list[dict]:
    return [json.loads(line) for line in read_bytes(f"{run}/metrics.jsonl").decode().splitlines()]


def assert_ends_as(run, whole) -> None:
    """`run` went through the numbers of `whole` and ended with its weights and moments, bit for bit."""
    for name in ("epoch", "step", "g_gan", "g_l1", "d_real", "d_fake", "val_l1", "val_psnr", "lr", "output_variety"):
        assert [row[name] for row in rows(run)] == [row[name] for row in rows(whole)], name
    expected, found = tensors(whole, "epoch_0003"), tensors(run, "epoch_0003")
    assert expected.keys() == found.keys() and len({name.split(".")[0] for name in expected}) == 4
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


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


def test_kept_pairs_train_to_the_same_bits_from_within_an_epoch_too(
    finished, raw_pairs, tmp_path, train_in_this_process
):
    train(config(raw_pairs, tmp_path, cache="host", max_steps=7))
    assert read_json(f"{tmp_path}/latest.json")["step"] == 7, "two steps of the second epoch"
    assert train(config(raw_pairs, tmp_path, cache="host"))["steps"] == 15
    assert_ends_as(tmp_path, finished[0])


def test_a_machine_without_memory_for_pairs_ends_the_run_with_advice(
    raw_pairs, tmp_path, train_in_this_process, monkeypatch
):
    monkeypatch.setattr("p2p.training.feed.pairs_per_worker", lambda *_: 2**40)
    with pytest.raises(TrainingStoppedError, match=r"allocat.*; lower batch_size or crop_size, or set cache none$"):
        train(config(raw_pairs, tmp_path, cache="host"))


def test_several_workers_train_on_pairs_that_they_keep(raw_pairs, tmp_path):
    summary = train(config(raw_pairs, tmp_path, cache="host", workers=2))
    assert (summary["epochs"], summary["steps"], summary["images_seen"]) == (3, 9, 30)
    first, _, last = rows(tmp_path)
    assert last["g_l1"] < first["g_l1"] and 0 < last["val_l1"] < 1


def test_another_network_in_the_same_folder_is_refused_by_option(finished, raw_pairs):
    run, _ = finished
    with pytest.raises(UsageError, match=r"ngf was 4, now 8.*resume never"):
        train(config(raw_pairs, run, ngf=8))


def test_a_run_is_not_deleted_for_options_that_the_cluster_cannot_serve(finished, raw_pairs, tmp_path, monkeypatch):
    monkeypatch.setattr("p2p.data.cluster._SECONDS_FOR_GPUS", 0.1)
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    with pytest.raises(UsageError, match=r"gpu true: 1 workers need one each, the cluster has 0 GPUs"):
        train(config(raw_pairs, run, gpu="true", resume="never"))
    assert load_generator(f"{run}#latest").checkpoint_id == load_generator(f"{finished[0]}#latest").checkpoint_id
    assert rows(run) == rows(finished[0])


def test_a_worker_keeps_the_memory_it_frees_though_its_loop_runs_in_a_thread(finished):
    found = json.loads((finished[0].parent / "faults.json").read_text())
    first, second = found["faults"]
    assert second < max(first / 10, 500)  # in pages of 2 MB the first are few
    assert found["spin count"] == "1000"


# Survival


def find_processes(parent: int, name: str) -> set[int]:
    """The processes with that in their command lines among those that `parent` has started."""
    return {pid for pid in descendants(parent) if name in read_process(pid, "cmdline")}


def halt(pid: int) -> None:
    """Stop a process; returns once each of its threads stands still."""
    os.kill(pid, signal.SIGSTOP)
    while not all(") T " in read_process(pid, f"task/{thread}/stat") for thread in os.listdir(f"/proc/{pid}/task")):
        time.sleep(0.001)


def training_worker():
    """The process of this cluster's only training worker, if there is one."""
    import psutil  # comes with Ray

    for process in psutil.Process(os.getpid()).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                return process
    return None


@contextlib.contextmanager
def meanwhile(action, *arguments):
    """Run `action(stop, *arguments)` in a thread for as long as the block takes; `stop` is set at its end."""
    stop = threading.Event()
    thread = threading.Thread(target=action, args=(stop, *arguments), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def half_written(run: Path) -> str | None:
    """The checkpoint being written, once another one can be found."""
    folders = run.glob("checkpoints/*") if (run / "latest.json").exists() else ()
    return next((folder.name for folder in folders if not (folder / "meta.json").exists()), None)


def kill_during_a_save(stop: threading.Event, run: Path, killed: list[str]) -> None:
    """kill -9 of the training worker at a moment when a checkpoint is half written, which a stopped process shows."""
    before = find_processes(os.getpid(), "RayTrainWorker")  # of the test before, about to end
    # Looked up before it saves anything: on a busy machine that takes longer than a save.
    while not (workers := find_processes(os.getpid(), "RayTrainWorker") - before) and not stop.wait(0.05):
        pass
    while not stop.is_set():
        if not half_written(run):
            stop.wait(0.001)
            continue
        (worker,) = workers
        halt(worker)
        caught = half_written(run)
        os.kill(worker, signal.SIGKILL if caught else signal.SIGCONT)
        if caught:
            killed.append(caught)
            return


def test_a_worker_killed_while_it_saves_is_replaced_and_ends_bit_equal(finished, raw_pairs, tmp_path, run_cli):
    run, killed = tmp_path / "run", []
    options = config(raw_pairs, run, checkpoint_every_steps=1, samples_every_steps=2, keep_checkpoints=0)
    with meanwhile(kill_during_a_save, run, killed):
        outcome = run_cli(Config, lambda _: train(options), "--data", "-", "--output", "-")
    assert outcome.status == 0, outcome.stderr
    assert killed
    assert "worker 0 was lost" in outcome.stderr and "starting the workers again (1 of 3)" in outcome.stderr
    assert "continuing after step" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert_ends_as(run, finished[0])
    assert outcome.summary["images_seen"] == 30
    inside = [f"epoch_{step // 5 + 1:04d}_step_{step:08d}" for step in range(1, 15) if step % 5]
    assert sorted(list_names(f"{run}/checkpoints")) == sorted([*inside, "epoch_0001", "epoch_0002", "epoch_0003"])
    assert load_generator(f"{run}#{inside[0]}").config.ngf == 4
    drawn = [path.stem for path in (run / "samples").iterdir()]
    even = [name for name in inside if int(name[-8:]) % 2 == 0]
    assert sorted(drawn) == sorted([*even, "epoch_0001", "epoch_0002", "epoch_0003"])
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={IMAGES: 0})
    events.Reload()
    assert {event.step for event in events.Images("samples")} == {2, 4, 5, 6, 8, 10, 12, 14, 15}
    assert "epoch 2, step 6" in (run / "report.html").read_text()


SMALL = {"generator": "unet_64", "ngf": 4, "discriminator": "patch_16", "ndf": 4, "crop-size": 64, "batch-size": 2}
SMALL |= {"epochs-decay": 0, "precision": "fp32", "gpu": "false"}


@contextlib.contextmanager
def a_job(data: str, run: Path, **options):
    """`jobs/train.py` on a private Ray; killed at the end if it still runs."""
    options = {
        **SMALL,
        **{name.replace("_", "-"): value for name, value in options.items()},
        "data": data,
        "output": run,
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    with subprocess.Popen(
        [sys.executable, "jobs/train.py", *words],
        cwd=Path(__file__).parent.parent.parent,
        # A shell that runs the tests in the background has them ignore the signal, and all that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as job:
        try:
            yield job
        finally:
            job.kill()


def wait_for(condition, job: subprocess.Popen) -> None:
    while not condition():
        assert job.poll() is None, job.communicate()
        time.sleep(0.01)


def kill_reporter_and_controller(stop: threading.Event, run: Path, killed: list[str]) -> None:
    """kill -9 of the one as training begins, of the other some steps later."""
    actors = {"ray::RunReporter": 1, "ray::TrainController": 7}
    before = {name: find_processes(os.getpid(), name) for name in actors}  # of the test before, about to end
    found: dict[str, set[int]] = {}
    for name, step in actors.items():
        while not stop.wait(0.01):
            if (run / "latest.json").exists() and read_json(f"{run}/latest.json")["step"] >= step:
                # Both are looked up at the first step: on a busy machine that takes as long as many steps.
                found = found or {actor: find_processes(os.getpid(), actor) - before[actor] for actor in actors}
                (pid,) = found[name]
                os.kill(pid, signal.SIGKILL)
                killed.append(name)
                break


def test_a_training_outlives_its_reporter_and_after_the_loss_of_its_controller_the_same_command_continues(
    raw_pairs, tmp_path, run_cli
):
    run, killed = tmp_path / "run", []
    options = config(raw_pairs, run, epochs=6, epochs_decay=0, workers=2, checkpoint_every_steps=1)
    command = (Config, lambda _: train(options), "--data", "-", "--output", "-")
    with meanwhile(kill_reporter_and_controller, run, killed):
        outcome = run_cli(*command)
    assert killed == ["ray::RunReporter", "ray::TrainController"]
    assert outcome.status == 1
    error = outcome.stderr.splitlines()[-1]
    assert error.startswith("error: Ray Train's controller was lost") and "the same command continues" in error
    assert "Traceback" not in outcome.stderr
    outcome = run_cli(*command)
    assert outcome.status == 0, outcome.stderr
    assert "continuing after step" in outcome.stderr
    assert outcome.summary["epochs"] == 6
    assert [row["epoch"] for row in rows(run)] == list(range(1, 7))


def read_until(text: str, job: subprocess.Popen) -> str:
    """What a job says on stderr, up to the line that has `text`, or to its end."""
    lines = ["-"]
    while lines[-1] and text not in lines[-1]:
        lines.append(job.stderr.readline())
    return "".join(lines[1:])


def drawn_step(run: Path) -> int:
    """Step of the latest sample sheet within an epoch: how far a training is that saves no checkpoint meanwhile."""
    return max((int(path.stem[-8:]) for path in run.glob("samples/*_step_*.png")), default=0)


def test_sigterm_saves_within_an_epoch_and_the_next_start_goes_on_there_to_the_same_bits(
    tmp_path, make_pairs, run_cli, train_in_this_process
):
    data = str(make_pairs(tmp_path / "pairs" / "train", 200, size=72).parent)
    whole, run = tmp_path / "whole", tmp_path / "run"
    options = {"epochs": 1, "samples_every_steps": 10}
    with a_job(data, run, **options) as job:
        wait_for(lambda: drawn_step(run) >= 10, job)
        (worker,) = find_processes(job.pid, "RayTrainWorker")
        wait_for(lambda: drawn_step(run) >= 20, job)
        # It asks about once a second whether to stop, and might be over by then: it stands still until told.
        try:
            halt(worker)
            job.send_signal(signal.SIGTERM)
            said = read_until("saving a checkpoint", job)
        finally:
            os.kill(worker, signal.SIGCONT)
        stdout, stderr = job.communicate(timeout=60)
    assert (job.returncode, stdout) == (1, "")
    assert "saving a checkpoint" in said and "Traceback" not in said
    assert stderr.splitlines()[-1].endswith("interrupted; the same command does what is missing")
    assert "Traceback" not in stderr
    latest = read_json(f"{run}/latest.json")
    assert 20 <= latest["step"] < 100
    assert latest["checkpoint"] == f"checkpoints/epoch_0001_step_{latest['step']:08d}"

    same = {**options, "epochs_decay": 0, "ema_images": 0}
    outcome = run_cli(Config, lambda _: train(config(data, run, **same)), "--data", "-", "--output", "-")
    assert outcome.status == 0, outcome.stderr
    assert f"continuing after step {latest['step']} from" in outcome.stderr
    train(config(data, whole, **same))
    expected, found = tensors(whole, "epoch_0001"), tensors(run, "epoch_0001")
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[name], found[name]) for name in expected)
    for name in ("step", "images_seen", "g_gan", "g_l1", "d_real", "d_fake"):
        assert rows(run)[0][name] == rows(whole)[0][name], name


def test_a_training_that_began_since_the_last_look_at_its_progress_is_waited_for():
    reporter, fit = RunReporter.remote("run", 0), Future()
    with Display(reporter, 10) as display:
        ray.get(reporter.progress.remote(0, "epoch 1/10"))
        threading.Timer(1.0, fit.set_result, (None,)).start()
        launch._stop_and_save(reporter, display, fit)
        assert fit.done() and ray.get(reporter.stop_requested.remote())


def test_one_whose_reporter_is_lost_ends_at_once():
    reporter = RunReporter.remote("run", 0)
    with Display(reporter, 10) as display:
        ray.kill(reporter)
        launch._stop_and_save(reporter, display, Future())


def test_a_second_control_c_does_not_wait_for_a_checkpoint(raw_pairs, tmp_path):
    run = tmp_path / "run"
    with a_job(raw_pairs, run, epochs=100_000) as job:
        wait_for((run / "latest.json").exists, job)
        (worker,) = find_processes(job.pid, "RayTrainWorker")
        halt(worker)  # it cannot save any more
        before = read_json(f"{run}/latest.json")
        job.send_signal(signal.SIGINT)
        said = read_until("saving a checkpoint", job)
        job.send_signal(signal.SIGINT)
        _, stderr = job.communicate(timeout=60)
    assert job.returncode == 1 and "saving a checkpoint" in said
    assert "interrupted; the same command" in stderr and "Traceback" not in stderr
    assert read_json(f"{run}/latest.json") == before


def take_the_bucket_away(stop: threading.Event, bucket: str, elsewhere: str, taken: list[int]) -> None:
    """Move a bucket's content and delete the bucket, between two instructions of the training worker."""
    store = s3fs.S3FileSystem(use_listings_cache=False)
    while not stop.is_set():
        worker = training_worker() if store.exists(f"{bucket}/run/latest.json") else None
        if worker is None:
            stop.wait(0.01)
            continue
        worker.send_signal(signal.SIGSTOP)
        try:
            store.copy(f"{bucket}/run", elsewhere, recursive=True)
            store.rm(bucket, recursive=True)
        finally:
            worker.send_signal(signal.SIGCONT)
        taken.append(json.loads(store.cat(f"{elsewhere}/latest.json"))["step"])
        return


def test_a_lost_bucket_is_told_in_a_line_and_once_it_is_back_the_same_command_ends_bit_equal(
    finished, raw_pairs, s3_server, run_cli, request
):
    store, taken = s3fs.S3FileSystem(use_listings_cache=False), []
    store.mkdir("p2p-lost")
    run, elsewhere = "s3://p2p-lost/run", "p2p-tests/lost-and-found"
    options = config(raw_pairs, run, checkpoint_every_steps=2, keep_checkpoints=0)
    command = (Config, lambda _: train(options), "--data", "-", "--output", "-")
    with meanwhile(take_the_bucket_away, "p2p-lost", elsewhere, taken):
        outcome = run_cli(*command)
    assert (outcome.status, outcome.summary) == (1, None)
    assert outcome.stderr.splitlines()[-1].startswith(f"error: {run}")
    assert "there is no such bucket" in outcome.stderr.splitlines()[-1]
    assert "Traceback" not in outcome.stderr
    assert "starting the workers again" not in outcome.stderr, "no restart brings a bucket back"
    assert not store.exists("p2p-lost")  # nothing begins anew in a place that is gone
    store.mkdir("p2p-lost")
    store.copy(elsewhere, "p2p-lost/run", recursive=True)
    assert load_generator(f"{run}#latest").config.ngf == 4
    request.getfixturevalue("train_in_this_process")
    assert run_cli(*command).status == 0
    assert 0 < taken[0] < 15
    assert_ends_as(run, finished[0])


def test_numbers_that_break_end_the_run_with_a_finding_and_the_last_good_checkpoint(
    raw_pairs, tmp_path, run_cli, train_in_this_process
):
    options = config(raw_pairs, tmp_path, lr=3e4, norm="none", checkpoint_every_steps=1)
    outcome = run_cli(Config, lambda _: train(options), "--data", "-", "--output", "-")
    assert outcome.status == 1
    error = outcome.stderr.splitlines()[-1]
    assert error.startswith("error: ") and "no longer finite" in error and "lower --lr" in error
    assert "Traceback" not in outcome.stderr
    latest = read_json(f"{tmp_path}/latest.json")
    assert f"{latest['checkpoint']} is intact" in error
    assert all(np.isfinite(value).all() for value in tensors(tmp_path, latest["checkpoint"].split("/")[1]).values())
    summary = read_json(f"{tmp_path}/summary.json")
    assert outcome.summary == summary
    assert summary["error"] == error.removeprefix("error: ") and not summary["stopped_early"]
    assert summary["health"][0]["numbers"]["step"] >= latest["step"]
    page = (tmp_path / "report.html").read_text()
    assert "stopped by an error" in page and "no longer finite" in page


def test_control_c_ends_a_training_that_is_no_finished_one(raw_pairs, tmp_path):
    def interrupt() -> None:
        while not (tmp_path / "run" / "latest.json").exists() and not ended.wait(0.05):
            pass
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    ended, thread = threading.Event(), threading.Thread(target=interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background have it ignored
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            train(config(raw_pairs, tmp_path / "run", epochs=100_000))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        ended.set()
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "run" / "summary.json").exists()
    deadline = time.monotonic() + 60
    while training_worker() is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert training_worker() is None, "nobody waits for it any more"
