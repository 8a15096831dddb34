"""Inputs that end their process: found, failed, and the rest done."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from p2p.errors import P2PError
from p2p.translation import TranslateConfig, actor, codec
from p2p.translation.actor import Work
from p2p.translation.attempt import Remaining
from p2p.translation.deaths import FOLDER, begin_note, begun_shards, forgive
from p2p.translation.job import run
from p2p.translation.pool import Outcome

MOST_ENDS = 20


def in_processes(work: Work, left: Remaining) -> Outcome:
    """A stand-in for Ray: each attempt at the shards is a process of its own; another follows one that ends."""
    columns = ("index", "manifest_uri", "row_group", "rows")
    batch = {name: np.array([getattr(shard, name) for shard in left.shards]) for name in columns}
    for _ in range(MOST_ENDS):
        process = os.fork()
        if not process:
            status = 1
            with contextlib.suppress(BaseException):
                list(actor.ShardTranslator(work)(batch))
                status = 0
            os._exit(status)
        if os.waitpid(process, 0)[1] == 0:
            return Outcome()
    raise AssertionError("for ever")


def dangerous(decode: Callable[..., Any]) -> Callable[..., Any]:
    """Some images kill the process, or hang while Python is locked, as a defect in a decoder's C code would."""

    def instead(data: bytes, *rest: Any) -> Any:
        if b"KILLS" in data:
            os.kill(os.getpid(), signal.SIGKILL)
        if b"HANGS" in data:
            ctypes.PyDLL(None).sleep(300)
        return decode(data, *rest)

    return instead


def test_inputs_that_end_their_process_fail_and_the_others_do_not(
    tmp_path: Path, checkpoint_of_64: str, make_image: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for number in range(9):
        (source / f"{number:02d}.png").write_bytes(make_image(64, 70, seed=number))
    (source / "03.png").write_bytes(make_image(64, 64) + b"KILLS")
    (source / "06.png").write_bytes(make_image(64, 64) + b"HANGS")
    output = tmp_path / "out"
    monkeypatch.setattr(codec, "decode", dangerous(codec.decode))
    monkeypatch.setattr(actor, "DECODE_SECONDS", 0.5)
    config = TranslateConfig(
        checkpoint=checkpoint_of_64, source=str(source), output=str(output), precision="fp32", max_bad_fraction=1.0
    )
    summary = run(config, lambda _: nullcontext(in_processes))
    assert (summary["translated"], summary["failed"]) == (7, 2)
    rows = [row for path in (output / "ledger").iterdir() for row in pq.read_table(path).to_pylist()]
    assert sorted(row["image_id"] for row in rows) == sorted(path.name for path in source.iterdir())
    failed = {row["image_id"]: row["error"] for row in rows if row["status"] == "failed"}
    assert failed == {"03.png": "ProcessEnded", "06.png": "ProcessEnded"}
    translated = pq.read_table(output / "data")["image_id"].to_pylist()
    assert len(translated) == len(set(translated)) == 7
    assert not (output / FOLDER).exists()


def test_a_shard_whose_processes_end_at_no_image_stops_the_job(tmp_path: Path) -> None:
    begin_note(str(tmp_path), 7)
    with pytest.raises(P2PError, match=r"shard 7.*--workers"):
        for _ in range(10):
            begin_note(str(tmp_path), 7)
    assert begun_shards(str(tmp_path)) == {7}


def test_an_end_in_the_flow_explains_nothing_and_accuses_nobody(tmp_path: Path) -> None:
    output = str(tmp_path)
    assert not begin_note(output, 0).watched
    note = begin_note(output, 0)
    assert note.watched and note.unexplained == 0
    note.take_up(3)
    note.take_up(None)  # it is through; the end comes while the next one is fetched
    note = begin_note(output, 0)
    assert (note.ends, note.unexplained) == ({}, 1)


@pytest.mark.parametrize(
    "left",
    [
        '{"unexpl',
        "",
        "[1]",
        "null",
        '{"ends": 3}',
        '{"at": "x", "ends": {}}',
        '{"at": Infinity, "ends": {}}',
        "[" * 100_000,
    ],
)
def test_a_note_that_cannot_be_read_is_one_of_a_process_that_ended(tmp_path: Path, left: str) -> None:
    output = str(tmp_path)
    begin_note(output, 4)
    path = tmp_path / FOLDER / "shard-00004.json"
    path.write_text(left)
    note = begin_note(output, 4)
    assert note.watched and (note.ends, note.unexplained) == ({}, 0)
    path.write_text(left)
    forgive(output)
    assert begun_shards(output) == set()


def test_a_position_is_bad_after_two_ends_at_it(tmp_path: Path) -> None:
    output = str(tmp_path)
    begin_note(output, 0)
    for ends in range(3):
        note = begin_note(output, 0)
        assert note.is_bad(4) == (ends == 2) and not note.is_bad(3)
        for position in (3, 3, 4):
            note.take_up(position)
    note.remove()
    assert begun_shards(output) == set()


def test_stopping_a_job_is_no_images_fault(tmp_path: Path) -> None:
    output = str(tmp_path)
    for _ in range(5):  # every time a person stops it at the same image
        begin_note(output, 0)
        begin_note(output, 0).take_up(2)
        forgive(output)
        assert begun_shards(output) == set()
    begin_note(output, 1)
    for _ in range(2):
        begin_note(output, 1).take_up(2)
    forgive(output)
    assert json.loads((tmp_path / FOLDER / "shard-00001.json").read_text())["ends"] == {"2": 1}
    note = begin_note(output, 1)
    assert not note.is_bad(2) and note.ends == {2: 1} and note.unexplained == 0
