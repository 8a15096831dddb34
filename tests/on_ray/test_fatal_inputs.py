"""Inputs that end the process which works on them, in real jobs: each job ends as it says, with all others done.

The decoders of the tests' Ray have the defects of tests/fatal: they end the process at inputs that hold KILLS, HANGS or
TOO-LARGE, and at files called fatal-N-….
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Outcome

from p2p.evaluation import EvaluateConfig, evaluate
from p2p.preparation import PrepareConfig, prepare
from p2p.training import TrainConfig, train
from p2p.translation import TranslateConfig, translate

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.usefixtures("ray_cluster")]

JOBS: dict[str, tuple[type, Callable[[Any], Any]]] = {
    "prepare": (PrepareConfig, prepare),
    "train": (TrainConfig, train),
    "evaluate": (EvaluateConfig, evaluate),
    "translate": (TranslateConfig, translate),
}
Job = Callable[..., Outcome]


@pytest.fixture
def job(run_cli: Callable[..., Outcome]) -> Job:
    return lambda name, *words: run_cli(*JOBS[name], *words)


def last_line(done: Outcome) -> str:
    """What the job ends with; what Ray prints about its processes is not the job's."""
    return done.stderr.splitlines()[-1]


def add(path: Path, mark: bytes) -> None:
    path.write_bytes(path.read_bytes() + mark)


@pytest.fixture
def pairs(tmp_path: Path, make_pairs: Callable[..., Path]) -> Path:
    """32 combined images, which are one part of prepare's, and one row group."""
    return make_pairs(tmp_path / "in", 32, 64)


def test_prepare_leaves_out_what_kills_or_hangs(job: Job, pairs: Path, tmp_path: Path) -> None:
    add(pairs / "0003.png", b"KILLS")
    add(pairs / "0020.png", b"HANGS")
    done = job("prepare", "--source", pairs, "--output", tmp_path / "out", "--load-size", 0)
    assert done.status == 3, done.stderr
    errors = {row["source_uri"]: row["error"] for row in pq.read_table(tmp_path / "out/errors").to_pylist()}
    assert errors == {str(pairs / name): "ProcessEnded" for name in ("0003.png", "0020.png")}
    stored = pq.read_table(tmp_path / "out/train")["pair_id"].to_pylist()
    assert stored == [f"{number:04d}" for number in range(32) if number not in (3, 20)]
    assert "Traceback" not in done.stderr
    assert "data:image" in (tmp_path / "out/doctor.html").read_text()


def test_prepare_leaves_out_the_rows_of_a_row_group_whose_read_kills(
    job: Job, tmp_path: Path, make_image: Callable[..., bytes]
) -> None:
    (tmp_path / "in").mkdir()
    good = {"a": 10, "fatal-0-": 0, "fatal-5-": 5, "z": 10}
    for name in good:
        columns = {side: [make_image(16, 16, seed=number) for number in range(10)] for side in "ab"}
        table = pa.table({"pair_id": [f"{name}{number}" for number in range(10)], **columns})
        pq.write_table(table, tmp_path / f"in/{name}.parquet")
    done = job("prepare", "--source", tmp_path / "in", "--output", tmp_path / "out", "--load-size", 0)
    assert done.status == 3, done.stderr
    errors = pq.read_table(tmp_path / "out/errors").to_pylist()
    assert {row["error"] for row in errors} == {"ProcessEnded"}
    for name, count in good.items():
        rows = [row for row in errors if f"{name}.parquet" in row["source_uri"]]
        assert len(rows) == 10 - count
        assert sum("other rows" in row["message"] for row in rows) == max(0, len(rows) - 2)
    stored = pq.read_table(tmp_path / "out/train")["pair_id"].to_pylist()
    assert sorted(stored) == sorted(f"{name}{number}" for name, count in good.items() for number in range(count))


def test_too_little_memory_is_no_fault_of_an_image(job: Job, pairs: Path, tmp_path: Path) -> None:
    add(pairs / "0003.png", b"TOO-LARGE")
    done = job("prepare", "--source", pairs, "--output", tmp_path / "out")
    assert done.status == 1
    assert last_line(done).startswith("error: preparing pairs such as ") and "fewer CPUs" in last_line(done)
    assert "Traceback" not in done.stderr


def test_processes_that_end_though_no_image_is_to_blame_end_the_job(job: Job, pairs: Path, tmp_path: Path) -> None:
    add(pairs / "0003.png", b"ENDS-WORKERS")
    done = job("prepare", "--source", pairs, "--output", tmp_path / "out")
    assert done.status == 1
    assert last_line(done).startswith("error: 3 processes have ended while they worked on pairs such as ")
    assert "fewer CPUs" in last_line(done) and "Traceback" not in done.stderr


SMALL = ("--generator", "unet_64", "--discriminator", "patch_16", "--ngf", 4, "--ndf", 4, "--crop-size", 64)


@pytest.mark.parametrize("name, mark", [("0000", b"KILLS"), ("0031", b"HANGS")], ids=["sample", "other"])
def test_train_names_the_pair_that_ends_its_processes(
    job: Job, pairs: Path, tmp_path: Path, name: str, mark: bytes, request: pytest.FixtureRequest
) -> None:
    if mark == b"HANGS":  # how what a worker raises comes to the job, the other one shows
        request.getfixturevalue("train_in_this_process")
    (tmp_path / "data").mkdir()
    pairs.rename(tmp_path / "data/train")
    add(tmp_path / f"data/train/{name}.png", mark)
    words = ("--data", tmp_path / "data", "--output", tmp_path / "run", "--epochs", 1, "--epochs-decay", 0, *SMALL)
    done = job("train", *words)
    assert done.status == 1
    assert f"pair '{name}' in" in last_line(done) and "the process that worked on it ended" in last_line(done)
    assert "Traceback" not in done.stderr


def test_evaluate_names_the_pair_that_ends_its_processes(
    job: Job, pairs: Path, tmp_path: Path, checkpoint: str
) -> None:
    (tmp_path / "data").mkdir()
    pairs.rename(tmp_path / "data/val")
    add(tmp_path / "data/val/0007.png", b"KILLS")
    done = job("evaluate", "--checkpoint", checkpoint, "--data", tmp_path / "data", "--output", tmp_path / "out")
    assert done.status == 1
    assert "pair '0007' in" in last_line(done) and "the process that worked on it ended" in last_line(done)
    assert "Traceback" not in done.stderr


def test_translate_fails_the_images_that_kill_and_the_rows_of_a_row_group_that_does(
    job: Job, tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "fatal-0-", "z"):
        images = [make_image(64, 64, seed=number) for number in range(6)]
        if name == "z":
            images[4] += b"KILLS"
        ids = [f"{name}{number}" for number in range(6)]
        pq.write_table(pa.table({"id": ids, "image": images}), tmp_path / f"in/{name}.parquet")
    words = ("--checkpoint", checkpoint, "--source", tmp_path / "in", "--output", tmp_path / "out")
    done = job("translate", *words, "--workers", 1)
    assert done.status == 3, done.stderr
    ledger = [row for file in (tmp_path / "out/ledger").iterdir() for row in pq.read_table(file).to_pylist()]
    failed = {row["image_id"]: row["error"] for row in ledger if row["status"] == "failed"}
    assert failed == dict.fromkeys([*(f"fatal-0-{number}" for number in range(6)), "z4"], "ProcessEnded")
    assert len(ledger) == 18
    assert len(pq.read_table(tmp_path / "out/data")) == 11
    assert "data:image" in (tmp_path / "out/report.html").read_text()


@pytest.fixture
def nothing_decoded_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which submits a job; Ray's workers decode as ever."""

    def refuse(*_: Any) -> None:
        raise AssertionError("decoded in the process that submits the job")

    from p2p.preparation import parts
    from p2p.storage import images
    from p2p.translation import examples
    from p2p.translation.pipeline import codec

    for module in (images, codec, examples):
        monkeypatch.setattr(module, "decode", refuse)
    monkeypatch.setattr(parts.images, "read_image", refuse)


def test_the_process_that_submits_a_job_decodes_nothing(
    nothing_decoded_here: None,
    pairs: Path,
    tmp_path: Path,
    checkpoint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(PrepareConfig(source=str(pairs), output=str(tmp_path / "data"), load_size=64, val_fraction=0.3))
    evaluate(EvaluateConfig(checkpoint=checkpoint, data=str(tmp_path / "data"), output=str(tmp_path / "figures")))
    corpus = TranslateConfig(checkpoint=checkpoint, source=str(pairs), output=str(tmp_path / "out"), side="left")
    translate(corpus)
    for page in ("data/doctor.html", "figures/report.html", "out/report.html"):
        assert "data:image" in (tmp_path / page).read_text(), page
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # which only says that there is a cluster: this process has joined it
    dry = TranslateConfig(
        checkpoint=checkpoint, source=str(pairs), output=str(tmp_path / "dry"), side="left", dry_run=True
    )
    summary = translate(dry)
    assert (summary["images"], summary["sampled_failed"]) == (32, 0)
