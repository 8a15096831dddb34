"""Jobs of little work, as processes: they start no Ray, and outlive what ends their processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import descendants, read_process

from p2p.storage.filesystems import exists, join, list_files, list_names
from p2p.storage.lease import read_lease
from p2p.storage.parquet import read_parquet

ROOT = Path(__file__).parents[1]
DEFECTS = ROOT / "tests" / "fatal"
"""Decoders that end the process at inputs which hold KILLS, HANGS or TOO-LARGE, and files called fatal-N-…; or wait for
their end.
"""
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
        # A shell that runs the tests in the background has them ignore the signal, and all that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(job: subprocess.Popen[str], status: int) -> str:
    """Its stderr."""
    _, stderr = job.communicate(timeout=250)
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


def test_evaluate_names_the_pair_that_ends_its_processes(pairs: Path, tmp_path: Path, checkpoint: str) -> None:
    (tmp_path / "data").mkdir()
    pairs.rename(tmp_path / "data/val")
    words = ("--checkpoint", checkpoint, "--data", tmp_path / "data", "--output", tmp_path / "out")
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
            for number in (1, 3, 4):
                images[number] += b"KILLS"
        ids = [f"{name}{number}" for number in range(6)]
        pq.write_table(pa.table({"id": ids, "image": images}), folder / f"{name}.parquet")
    return folder


def test_translate_fails_the_images_that_kill_and_the_rows_of_a_row_group_that_does(
    corpus: Path, tmp_path: Path, checkpoint: str
) -> None:
    words = ("--checkpoint", checkpoint, "--source", corpus, "--output", tmp_path / "out")
    assert "without starting Ray" in finish(start("translate", *words), 3)
    ledger = [row for file in (tmp_path / "out/ledger").iterdir() for row in pq.read_table(file).to_pylist()]
    failed = {row["image_id"]: row["error"] for row in ledger if row["status"] == "failed"}
    assert failed == dict.fromkeys([*(f"fatal-0-{number}" for number in range(6)), "z1", "z3", "z4"], "ProcessEnded")
    assert len(ledger) == 18
    assert len(pq.read_table(tmp_path / "out/data")) == 9
    assert "data:image" in (tmp_path / "out/report.html").read_text()


@pytest.fixture
def scenes(tmp_path: Path, checkpoint: str) -> tuple[object, ...]:
    """Options that translate two scenes of three sections each, `fatal-2150.tif` and `good.tif`."""
    rasterio = pytest.importorskip("rasterio")
    (tmp_path / "scenes").mkdir()
    data = np.random.default_rng(0).integers(0, 256, (3, 4200, 64), np.uint8)
    for name in ("fatal-2150", "good"):
        profile = {"driver": "GTiff", "count": 3, "height": 4200, "width": 64, "dtype": "uint8", "crs": "EPSG:32633"}
        profile["transform"] = rasterio.transform.from_origin(500000, 5000000, 0.5, 0.5)
        with rasterio.open(tmp_path / "scenes" / f"{name}.tif", "w", **profile) as file:
            file.write(data)
    return "--checkpoint", checkpoint, "--source", tmp_path / "scenes", "--format", "geotiff"


def test_translate_fails_the_scene_that_kills(scenes: tuple[object, ...], tmp_path: Path) -> None:
    said = finish(start("translate", *scenes, "--output", tmp_path / "out"), 3)
    assert "without starting Ray" in said
    ledger = [row for file in (tmp_path / "out/ledger").iterdir() for row in pq.read_table(file).to_pylist()]
    bad, good = sorted(ledger, key=lambda row: str(row["image_id"]))
    assert (bad["image_id"], bad["error"], good["status"]) == ("fatal-2150.tif", "ProcessEnded", "translated")
    assert bad["message"].startswith("rows 2048..4095: the process that worked on it ended each time: a crash, ")
    assert [path.name for path in (tmp_path / "out/scenes").iterdir()] == ["good.tif"]


def test_a_scene_whose_processes_were_killed_is_finished(scenes: tuple[object, ...], tmp_path: Path) -> None:
    (tmp_path / "scenes" / "fatal-2150.tif").unlink()
    finish(start("translate", *scenes, "--output", tmp_path / "once"), 0)
    hold = tmp_path / "scenes" / "good.tif.hold"
    os.mkfifo(hold)
    job = start("translate", *scenes, "--output", tmp_path / "out")
    for last in (False, True):
        child = int(hold.read_text())  # waits until a process is there
        if last:
            hold.unlink()
        os.kill(child, signal.SIGKILL)
    finish(job, 0)
    name = "scenes/good.tif"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "once" / name).read_bytes()


def children(pid: int) -> list[int]:
    return [child for child in descendants(pid) if "p2p.storage.child" in read_process(child, "cmdline")]


class Source:
    """Images on a web server that answers for the last of three shards only once it is released."""

    def __init__(self, images: list[bytes], folder: Path) -> None:
        released = self.released = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                number = int(self.path[1:3])
                if number >= len(images) - 8:
                    released.wait(100)
                self.send_response(200)
                self.send_header("Content-Length", str(len(images[number])))
                self.end_headers()
                self.wfile.write(images[number])

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a reader was killed
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{self.server.server_port}"
        self.manifest = folder / "list.csv"
        lines = "".join(f"{name},{url}/{name}\n" for name in NAMES)
        self.manifest.write_text("image_id,uri\n" + lines)


NAMES = [f"{number:02d}.png" for number in range(24)]


@pytest.fixture
def source(tmp_path: Path, make_image: Callable[..., bytes]) -> Iterator[Source]:
    source = Source([make_image(64, 64, seed=number) for number in range(len(NAMES))], tmp_path)
    yield source
    source.released.set()
    source.server.shutdown()
    source.server.server_close()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_job_that_is_ended_leaves_no_process_and_the_same_command_does_the_rest(
    tmp_path: Path, source: Source, checkpoint: str, end: signal.Signals
) -> None:
    output = str(tmp_path / "out")
    words = translation(source, checkpoint, output)
    job = start("translate", *words)
    wait_for_two_shards(job, output)
    (child,) = children(job.pid)
    job.send_signal(end)
    _, said = job.communicate(timeout=60)
    assert job.returncode == (-end if end == signal.SIGKILL else 1) and "Traceback" not in said
    while "p2p.storage.child" in read_process(child, "cmdline"):
        time.sleep(0.05)
    done = files_of(output)
    source.released.set()
    finish(start("translate", *words), 0)
    assert done.items() <= files_of(output).items(), "finished work was done again"
    assert ids_in(output) == NAMES


def translation(source: Source, checkpoint: str, output: str) -> tuple[object, ...]:
    where = ("--checkpoint", checkpoint, "--source", source.manifest, "--output", output)
    return (*where, "--allow-private-addresses")


def wait_for_two_shards(job: subprocess.Popen[str], output: str) -> None:
    while len(list_names(join(output, "ledger"))) < 2:
        assert job.poll() is None, job.communicate()
        time.sleep(0.05)


def files_of(output: str) -> dict[str, float]:
    """When each file of data and ledger was written."""
    return {file.uri: file.modified for folder in ("data", "ledger") for file in list_files(join(output, folder))}


def ids_in(output: str) -> list[str]:
    ids = [read_parquet(file.uri, ["image_id"])["image_id"].to_pylist() for file in list_files(join(output, "data"))]
    return sorted(image_id for of_file in ids for image_id in of_file)


def test_of_two_jobs_on_one_output_one_works(source: Source, output: str, checkpoint: str) -> None:
    jobs = [start("translate", *translation(source, checkpoint, output)) for _ in range(2)]
    while (refused := next((job for job in jobs if job.poll() is not None), None)) is None:
        time.sleep(0.05)
    third = finish(start("translate", *translation(source, "/nowhere", output)), 2)
    assert "writes there" in third, "it is refused before its checkpoint is read, which takes seconds"
    source.released.set()
    (worked,) = [job for job in jobs if job is not refused]
    said = finish(refused, 2)
    assert f"error: --output {output}: translate on " in said
    assert f"process {worked.pid}, attempt 1 writes there" in said
    finish(worked, 0)
    assert ids_in(output) == NAMES and not exists(join(output, "lease.json"))


def renewal(output: str) -> float:
    """When the job that writes `output` last renewed its lease."""
    lease = read_lease(output)
    assert lease is not None
    return lease.renewed


def test_a_job_that_stood_still_while_another_took_over_publishes_nothing(
    source: Source, output: str, checkpoint: str
) -> None:
    words = translation(source, checkpoint, output)
    first = start("translate", *words)
    wait_for_two_shards(first, output)
    stopped = [first.pid, *children(first.pid)]
    renewed = renewal(output)
    while renewal(output) == renewed:  # so that it is not stopped between a renewal's look at the lease and its writing
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    try:
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        source.released.set()
        assert "taken over from translate on" in finish(start("translate", *words), 0)
        before = files_of(output)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    said = finish(first, 1)
    assert f"error: {output}/lease.json: nothing is there: its lease is gone" in said
    assert files_of(output) == before and ids_in(output) == NAMES
