"""What a job that has lost its output's lease still has under way when it wakes: it puts nothing in place."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from p2p.errors import LeaseLostError, OutputInUseError
from p2p.model.checkpoint import save_checkpoint
from p2p.model.config import ModelConfig
from p2p.model.pix2pix import Pix2Pix
from p2p.storage import creation, filesystems, lease
from p2p.storage.filesystems import (
    exists,
    join,
    list_files,
    read_bytes,
    replace_seen,
    write_bytes,
    write_json,
    write_table,
)
from p2p.storage.lease import Fence, Lease, hold_lease, read_lease
from p2p.storage.staging import StagedFile
from p2p.translation.plan.ledger import LedgerRow, write_ledger
from p2p.translation.sinks import ImagesSink
from p2p.translation.sinks.records import Record

OF_THE_HEIR = b"of the heir"


def later(mine: Lease) -> Lease:
    return dataclasses.replace(mine, pid=1, attempt=mine.attempt + 1, started=mine.started + 1, system="")


def hand_over(output: str, mine: Lease) -> Lease:
    """As a job does that takes over: it holds the lease, and what was not whole is gone."""
    heir = later(mine)
    write_json(join(output, lease.NAME), vars(heir))
    lease._remove_left(Fence(output, heir))
    return heir


def staged(output: str, fence: Fence) -> None:
    file = StagedFile(join(output, "data/part-00000.tar"), fence)
    try:
        file.file.write(b"of the first")
        file.publish()
    finally:
        file.discard()


def ledger(output: str, fence: Fence) -> None:
    write_ledger(output, 0, [LedgerRow("a", "translated", "", "", "")], fence)


def image(output: str, fence: Fence) -> None:
    writer = ImagesSink(output, "png", fence).open_shard(0)
    writer.add(Record("a.png", b"of the first", 1, 1, "a.png", 0.0))
    writer.publish()


def checkpoint(output: str, fence: Fence) -> None:
    config = ModelConfig(generator="unet_64", discriminator="patch_16", ngf=4, ndf=4, crop_size=64)
    save_checkpoint(join(output, "checkpoints/epoch_0001"), Pix2Pix(config, seed=0), {"epoch": 1}, {}, fence)


WRITERS: dict[str, tuple[str, Callable[[str, Fence], Any]]] = {
    "a packed file": ("data/part-00000.tar", staged),
    "an image": ("images/a.png", image),
    "a ledger": ("ledger/shard-00000.parquet", ledger),
    "a table": (
        "train/part-00000.parquet",
        lambda output, fence: write_table(join(output, "train/part-00000.parquet"), pa.table({"a": [1]}), fence=fence),
    ),
    "a checkpoint": ("checkpoints/epoch_0001/generator.safetensors", checkpoint),
}


@pytest.mark.parametrize("moment", ["fsync", "replace"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_that_was_being_written_on_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str, moment: str
) -> None:
    """It stands still when the content is written, or between its last look at the lease and the new name."""
    output = str(tmp_path / "out")
    name, write = WRITERS[writer]
    if name.startswith("ledger"):
        moment = moment.replace("replace", "link")  # it is written once
    original = getattr(os, moment)
    stands_still = [True]

    def wakes_too_late(*words: Any) -> None:
        if stands_still and threading.current_thread().name != "lease":
            stands_still.clear()
            hand_over(output, fence.lease)
            (tmp_path / "out" / name).write_bytes(OF_THE_HEIR)
        original(*words)

    with pytest.raises(LeaseLostError, match="process 1, attempt 2 now"), hold_lease(output, "output", "job") as fence:
        monkeypatch.setattr(os, moment, wakes_too_late)
        write(output, fence)
    assert not stands_still, "it never came to that"
    assert (tmp_path / "out" / name).read_bytes() == OF_THE_HEIR
    assert not list((tmp_path / "out").rglob(".p2p-*"))


@pytest.mark.parametrize("moment", ["before it is sent", "on its way"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_request_that_is_sent_late(s3: Any, writer: str, moment: str) -> None:
    """On its way where the heir has written the object already, else its last look is no older than two seconds."""
    output = s3.uri("out")
    name, write = WRITERS[writer]
    with pytest.raises(LeaseLostError), hold_lease(output, "output", "job") as fence:
        if moment == "on its way":
            fence.check()
            write_bytes(join(output, name), OF_THE_HEIR)
        write_json(join(output, lease.NAME), vars(later(fence.lease)))
        write(output, fence)
    if moment == "on its way":
        assert read_bytes(join(output, name)) == OF_THE_HEIR
    else:
        assert not exists(join(output, name))


@pytest.mark.parametrize("writer", WRITERS)
def test_what_an_interrupted_attempt_left_is_replaced_by_the_next(output: str, writer: str) -> None:
    name, write = WRITERS[writer]
    if name.startswith("ledger"):
        return
    write_bytes(join(output, name), b"of an attempt that was killed")
    with hold_lease(output, "output", "job") as fence:
        write(output, fence)
    assert read_bytes(join(output, name)) != b"of an attempt that was killed"


def test_a_renewal_that_arrives_late_replaces_nobodys_lease(s3: Any) -> None:
    output = s3.uri("out")
    uri = join(output, lease.NAME)
    with pytest.raises(LeaseLostError), hold_lease(output, "output", "job") as fence:
        tag = filesystems.read_tag(uri)
        replace_seen(uri, json.dumps(vars(dataclasses.replace(fence.lease, renewed=1.0))).encode(), tag)
        found = read_lease(output)
        assert found and found.renewed == 1.0, "nobody else was there"
        tag = filesystems.read_tag(uri)
        heir = later(fence.lease)
        write_json(uri, vars(heir))
        replace_seen(uri, json.dumps(vars(fence.lease)).encode(), tag)
        assert read_lease(output) == heir
        fence.check()


def test_an_attempt_removes_what_earlier_ones_had_not_finished_and_no_other_jobs_files(tmp_path: Path) -> None:
    kept = ["run/.p2p-attempt-1-0a/.p2p-1", "run/.p2p-2", "data/.p2p-3", ".p2p-4"]
    for name in (".p2p-attempt-1-0a/.p2p-1", ".p2p-attempt-7-0b/.p2p-1", ".p2p-5", *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"half a file")
    os.utime(tmp_path / ".p2p-5", (1e9, 1e9))
    with hold_lease(str(tmp_path), "output", "translate") as fence:
        left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob(".p2p*") if path.is_file())
        assert left == sorted(kept), "of another job, or of one that is being refused at this moment"
        write_bytes(str(tmp_path / "data" / "x"), b"1", fence=fence)
        assert [path.name for path in tmp_path.glob(".p2p-attempt-*")] == [fence.folder]
        assert fence.folder.startswith(".p2p-attempt-1-")
        assert [file.path for file in list_files(str(tmp_path))] == ["lease.json", "data/x"]
    assert not list(tmp_path.glob(".p2p-attempt-*"))


def test_a_folder_on_another_disk_has_its_temporary_files_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path("/dev/shm") / f"p2p-{os.getpid()}"
    other.mkdir()
    try:
        if other.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("there is one disk only")
        (tmp_path / "images").symlink_to(other)
        with hold_lease(str(tmp_path), "output", "translate") as fence:
            write_bytes(str(tmp_path / "images" / "a.png"), b"1", fence=fence)
        assert os.listdir(other) == ["a.png"]
    finally:
        shutil.rmtree(other)


_KILLED_WITHOUT_LINKS = """
import errno, os, signal, sys
from p2p.storage import creation
from p2p.storage.filesystems import write_bytes
def no_links(*_):
    raise PermissionError(errno.EPERM, "Operation not permitted")
os.link = no_links
creation._RESERVED_SECONDS, creation._PAUSE = 1.0, 0.1
if sys.argv[2] == "killed":
    os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
print(write_bytes(sys.argv[1], b"whole", only_new=True))
"""


def test_on_a_disk_without_links_a_killed_process_leaves_no_empty_file(tmp_path: Path) -> None:
    uri = tmp_path / "shard-00000.parquet"

    def create(how: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", _KILLED_WITHOUT_LINKS, str(uri), how]
        return subprocess.run(words, check=False, capture_output=True, text=True, timeout=60)

    assert create("killed").returncode == -signal.SIGKILL
    assert not uri.exists(), "it would count as done"
    assert len(list(tmp_path.glob(f"{creation.RESERVED_PREFIX}*"))) == 1
    assert create("").stdout == "True\n" and uri.read_bytes() == b"whole"
    assert create("").stdout == "False\n"
    assert not list(tmp_path.glob(f"{creation.RESERVED_PREFIX}*"))


@pytest.fixture
def careless(monkeypatch: pytest.MonkeyPatch) -> str:
    """An output in a store that takes conditional writes and does not look at the condition."""
    output = "memory://careless/out"
    store = filesystems.open_filesystem(output)[0]
    put = store.pipe_file
    monkeypatch.setattr(store, "pipe_file", lambda path, data, **_: put(path, data))
    return output


def test_in_a_store_that_ignores_conditions_the_lease_alone_holds(
    careless: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    creation.log_missing_conditions.cache_clear()
    with hold_lease(careless, "output", "train") as fence:
        renewed = threading.Event()
        sleep = lease.time.sleep

        def renew(seconds: float) -> None:
            """Time passes, in which the first gives a sign of life."""
            if threading.current_thread() is not threading.main_thread():
                sleep(seconds)
                return
            monkeypatch.setattr(lease.time, "sleep", sleep)
            renewing = dataclasses.replace(fence.lease, renewed=fence.lease.renewed + 1)
            write_json(join(careless, lease.NAME), vars(renewing))
            renewed.set()

        monkeypatch.setattr(lease.time, "sleep", renew)
        with pytest.raises(OutputInUseError), hold_lease(careless, "output", "train"):
            pass
        fence.check()
    assert renewed.is_set()
    (line,) = [line for line in caplog.messages if "no conditional writes" in line]
    assert line.startswith("memory://: this store")


@pytest.mark.parametrize("seen", [b"", None], ids=["an empty file", "nothing"])
def test_a_lease_that_is_away_for_a_moment_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: bytes | None
) -> None:
    """As on a network disk, where another takes its place."""
    path = tmp_path / lease.NAME
    with hold_lease(str(tmp_path), "output", "train") as fence:
        whole = path.read_bytes()
        path.unlink() if seen is None else path.write_bytes(seen)
        sleep = lease.time.sleep

        def comes_back(seconds: float) -> None:
            sleep(seconds)
            path.write_bytes(whole)

        monkeypatch.setattr(lease.time, "sleep", comes_back)
        fence.check()


def test_a_job_whose_clock_is_behind_is_given_the_whole_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_WATCH_SECONDS", 0.0)
    with hold_lease(str(tmp_path), "output", "train") as fence:
        behind = dataclasses.replace(fence.lease, host="elsewhere", system="another 1", renewed=lease.time.time() - 90)
        (tmp_path / lease.NAME).write_text(json.dumps(vars(behind)))
        looks = [0]
        sleep = lease.time.sleep

        def renews_at_last(seconds: float) -> None:
            sleep(seconds / 10)
            looks[0] += threading.current_thread() is threading.main_thread()
            if looks[0] == 3:
                renewed = dataclasses.replace(behind, renewed=behind.renewed + 30)
                (tmp_path / lease.NAME).write_text(json.dumps(vars(renewed)))

        monkeypatch.setattr(lease.time, "sleep", renews_at_last)
        with pytest.raises(OutputInUseError):
            lease._acquire(str(tmp_path), "output", "translate")
        monkeypatch.setattr(lease.time, "sleep", sleep)
        (tmp_path / lease.NAME).write_text(json.dumps(vars(fence.lease)))
