"""Jobs of little work, as processes: they start no Ray, and outlive what ends their processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import descendants, read_process

from p2p.storage.filesystems import exists, join, list_files, list_names
from p2p.storage.parquet import read_parquet

ROOT = Path(__file__).parents[1]
DEFECTS = ROOT / "tests" / "fatal"
"""Decoders that end the process at inputs which hold KILLS, HANGS or TOO-LARGE, and files called fatal-N-…"""
WITHOUT_RAY = """
import runpy, sys
sys.modules["ray"] = None
from p2p.storage import lease
lease.RENEWAL_SECONDS, lease._WATCH_SECONDS, lease.EXPIRY_SECONDS = 0.5, 4.0, 12.0
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(name: str, *words: object) -> subprocess.Popen[str]:
    """Start a job that cannot import Ray, with the defects in each of its processes."""
    path = os.pathsep.join([str(DEFECTS), str(ROOT)])
    return subprocess.Popen(
        [sys.executable, "-c", WITHOUT_RAY, str(ROOT / "jobs" / f"{name}.py"), *map(str, words)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(job: subprocess.Popen[str], status: int) -> str:
    """Its stderr."""
    _, stderr = job.communicate(timeout=120)
    assert job.returncode == status, stderr
    assert "Traceback" not in stderr
    return stderr


def add(path: Path, mark: bytes) -> None:
    path.write_bytes(path.read_bytes() + mark)


@pytest.fixture
def pairs(tmp_path: Path, make_pairs: Callable[..., Path]) -> Path:
    """32 combined images, which are one shard of prepare's, and one row group."""
    return make_pairs(tmp_path / "in", 32, 64)


def test_prepare_leaves_out_what_kills_or_hangs(pairs: Path, tmp_path: Path) -> None:
    add(pairs / "0003.png", b"KILLS")
    add(pairs / "0020.png", b"HANGS")
    said = finish(start("prepare", "--source", pairs, "--output", tmp_path / "out", "--load-size", 0), 3)
    assert "without starting Ray" in said
    errors = {row["source_uri"]: row["error"] for row in pq.read_table(tmp_path / "out/errors").to_pylist()}
    assert errors == {str(pairs / name): "ProcessEnded" for name in ("0003.png", "0020.png")}
    stored = pq.read_table(tmp_path / "out/train")["pair_id"].to_pylist()
    assert stored == [f"{number:04d}" for number in range(32) if number not in (3, 20)]
    assert "data:image" in (tmp_path / "out/doctor.html").read_text()


def test_evaluate_names_the_pair_that_ends_its_processes(pairs: Path, tmp_path: Path, checkpoint_of_64: str) -> None:
    (tmp_path / "data").mkdir()
    pairs.rename(tmp_path / "data/val")
    words = ("--checkpoint", checkpoint_of_64, "--data", tmp_path / "data", "--output", tmp_path / "out")
    assert "without starting Ray" in finish(start("evaluate", *words), 0)
    assert "data:image" in (tmp_path / "out/report.html").read_text()
    add(tmp_path / "data/val/0007.png", b"KILLS")
    said = finish(start("evaluate", *words), 1)
    assert "pair '0007' in" in said and "the process that worked on it ended" in said


@pytest.fixture
def corpus(tmp_path: Path, make_image: Callable[..., bytes]) -> Path:
    """Three Parquet files of six rows."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in ("a", "fatal-0-", "z"):
        images = [make_image(64, 64, seed=number) for number in range(6)]
        if name == "z":
            images[4] += b"KILLS"
        ids = [f"{name}{number}" for number in range(6)]
        pq.write_table(pa.table({"id": ids, "image": images}), folder / f"{name}.parquet")
    return folder


def test_translate_fails_the_images_that_kill_and_the_rows_of_a_row_group_that_does(
    corpus: Path, tmp_path: Path, checkpoint_of_64: str
) -> None:
    words = ("--checkpoint", checkpoint_of_64, "--source", corpus, "--output", tmp_path / "out")
    assert "without starting Ray" in finish(start("translate", *words), 3)
    ledger = [row for file in (tmp_path / "out/ledger").iterdir() for row in pq.read_table(file).to_pylist()]
    failed = {row["image_id"]: row["error"] for row in ledger if row["status"] == "failed"}
    assert failed == dict.fromkeys([*(f"fatal-0-{number}" for number in range(6)), "z4"], "ProcessEnded")
    assert len(ledger) == 18
    assert len(pq.read_table(tmp_path / "out/data")) == 11
    assert "data:image" in (tmp_path / "out/report.html").read_text()


def children(pid: int) -> list[int]:
    return [child for child in descendants(pid) if "p2p.storage.child" in read_process(child, "cmdline")]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_job_that_is_ended_leaves_no_process_and_the_same_command_does_the_rest(
    tmp_path: Path, slow_corpus: Path, checkpoint_of_64: str, end: signal.Signals
) -> None:
    words = ("--checkpoint", checkpoint_of_64, "--source", slow_corpus, "--output", tmp_path / "out", "--format", "png")
    job = start("translate", *words)
    while not list((tmp_path / "out/ledger").glob("*.parquet")):  # until two of the three shards are done
        assert job.poll() is None, job.communicate()
    (child,) = children(job.pid)
    job.send_signal(end)
    _, said = job.communicate(timeout=60)
    assert job.returncode == (-end if end == signal.SIGKILL else 1) and "Traceback" not in said
    while children(child) or "p2p.storage.child" in read_process(child, "cmdline"):
        pass
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/ledger").glob("*.parquet")}
    finish(start("translate", *words), 3)
    assert {path: path.stat().st_mtime_ns for path in done} == done, "finished work was done again"
    assert len(list((tmp_path / "out/images").iterdir())) == 23


@pytest.fixture(params=["disk", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "out")
    uri: str = request.getfixturevalue("s3").uri("out")
    return uri


@pytest.fixture
def slow_corpus(tmp_path: Path, make_image: Callable[..., bytes]) -> Path:
    """24 images in three shards; the last shard takes some seconds, since one of its images ends the process."""
    source = tmp_path / "in"
    source.mkdir()
    for number in range(24):
        (source / f"{number:02d}.png").write_bytes(make_image(64, 64, seed=number))
    add(source / "20.png", b"HANGS")
    return source


def ids_in(output: str) -> list[str]:
    ids = [read_parquet(file.uri, ["image_id"])["image_id"].to_pylist() for file in list_files(join(output, "data"))]
    return sorted(image_id for of_file in ids for image_id in of_file)


EXPECTED = [f"{number:02d}.png" for number in range(24) if number != 20]


def test_of_two_jobs_on_one_output_one_works(slow_corpus: Path, output: str, checkpoint_of_64: str) -> None:
    words = ("--checkpoint", checkpoint_of_64, "--source", slow_corpus, "--output", output)
    jobs = [start("translate", *words) for _ in range(2)]
    said = {job.pid: job.communicate(timeout=200)[1] for job in jobs}
    refused, worked = sorted(jobs, key=lambda job: job.returncode)
    assert (refused.returncode, worked.returncode) == (2, 3), said
    assert f"error: --output {output}: translate on " in said[refused.pid]
    assert f"process {worked.pid}, attempt 1 writes there" in said[refused.pid]
    assert ids_in(output) == EXPECTED and not exists(join(output, "lease.json"))


def test_a_job_that_stood_still_while_another_took_over_publishes_nothing(
    slow_corpus: Path, output: str, checkpoint_of_64: str
) -> None:
    words = ("--checkpoint", checkpoint_of_64, "--source", slow_corpus, "--output", output)
    first = start("translate", *words)
    while not list_names(join(output, "ledger")):
        assert first.poll() is None, first.communicate()
    stopped = [first.pid, *children(first.pid)]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    said = finish(start("translate", *words), 3)
    assert "taken over from translate on" in said
    before = {file.uri: file.modified for folder in ("data", "ledger") for file in list_files(join(output, folder))}
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    said = finish(first, 1)
    assert f"error: {output} " in said and "gave no sign of life" in said
    after = {file.uri: file.modified for folder in ("data", "ledger") for file in list_files(join(output, folder))}
    assert after == before and ids_in(output) == EXPECTED
