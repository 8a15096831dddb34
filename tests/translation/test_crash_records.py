"""Inputs that crash their process: found, failed, and the rest done."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from p2p.errors import BadInputError, P2PError
from p2p.translation import TranslateConfig, actor
from p2p.translation.job import run
from p2p.translation.pipeline import codec
from p2p.translation.plan.crash_records import FOLDER, CrashRecord, clear, open_record, started_shards
from p2p.translation.plan.resume import RemainingWork
from p2p.translation.pool import SHARD_COLUMNS, Outcome
from p2p.translation.work import Work

MAX_CRASHES = 20


def in_processes(work: Work, left: RemainingWork) -> Outcome:
    """A stand-in for Ray: each attempt at the shards is a process of its own; another follows one that ends."""
    columns = SHARD_COLUMNS
    batch = {name: np.array([getattr(shard, name) for shard in left.shards]) for name in columns}
    for _ in range(MAX_CRASHES):
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

    def instead(data: bytes, *rest: Any, **options: Any) -> Any:
        if b"KILLS" in data:
            os.kill(os.getpid(), signal.SIGKILL)
        if b"HANGS" in data:
            ctypes.PyDLL(None).sleep(300)
        return decode(data, *rest, **options)

    return instead


def test_inputs_that_end_their_process_fail_and_the_others_do_not(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for number in range(9):
        (source / f"{number:02d}.png").write_bytes(make_image(64, 70, seed=number))
    (source / "03.png").write_bytes(make_image(64, 64) + b"KILLS")
    (source / "06.png").write_bytes(make_image(64, 64) + b"HANGS")
    output = tmp_path / "out"
    monkeypatch.setattr(codec, "decode", dangerous(codec.decode))
    monkeypatch.setattr(actor, "DECODE_SECONDS", 2.0)
    config = TranslateConfig(
        checkpoint=checkpoint, source=str(source), output=str(output), precision="fp32", max_bad_fraction=1.0
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


@pytest.mark.parametrize("fatal_row", [0, 5])
def test_a_row_group_whose_read_crashes_costs_the_rows_that_cannot_be_reached(
    tmp_path: Path,
    checkpoint: str,
    make_image: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
    fatal_row: int,
) -> None:
    source, output, test = tmp_path / "in", tmp_path / "out", os.getpid()
    source.mkdir()
    rows = pa.table({"image": [make_image(64, 64, seed=number) for number in range(8)]})
    for name in ("a", "fatal", "z"):
        pq.write_table(
            rows.append_column("id", pa.array([f"{name}{row}" for row in range(8)])), source / f"{name}.parquet"
        )
    plain = pq.ParquetFile.iter_batches

    def iter_batches(file: pq.ParquetFile, **options: Any) -> Iterator[pa.RecordBatch]:
        """What a page of the file does to the process, as a defect in a decompressor would."""
        read = 0
        for batch in plain(file, **options):
            read += len(batch)
            if read > fatal_row and "fatal" in str(made_of[file]) and os.getpid() != test:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    made_of: dict[Any, Any] = {}
    init = pq.ParquetFile.__init__

    def remember(file: pq.ParquetFile, where: Any, *rest: Any, **options: Any) -> None:
        made_of[file] = where
        init(file, where, *rest, **options)

    monkeypatch.setattr(pq.ParquetFile, "__init__", remember)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    config = TranslateConfig(checkpoint=checkpoint, source=str(source), output=str(output), max_bad_fraction=1.0)
    summary = run(config, lambda _: nullcontext(in_processes))
    assert (summary["translated"], summary["failed"]) == (16 + fatal_row, 8 - fatal_row)
    ledger = [row for path in (output / "ledger").iterdir() for row in pq.read_table(path).to_pylist()]
    failed = {row["image_id"]: row for row in ledger if row["status"] == "failed"}
    assert sorted(failed) == [f"fatal{row}" for row in range(fatal_row, 8)]
    assert {row["error"] for row in failed.values()} == {"ProcessEnded"}
    assert "row group" in failed["fatal7"]["message"]
    assert len(pq.read_table(output / "data")) == 16 + fatal_row
    assert not (output / FOLDER).exists()


def test_a_shard_whose_processes_end_at_no_image_stops_the_job(tmp_path: Path) -> None:
    open_record(str(tmp_path), 7)
    with pytest.raises(P2PError, match=r"shard 7.*--workers"):
        for _ in range(10):
            open_record(str(tmp_path), 7)
    assert started_shards(str(tmp_path)) == {7}


def test_a_crash_in_the_flow_explains_nothing_and_accuses_nobody(tmp_path: Path) -> None:
    output = str(tmp_path)
    assert not open_record(output, 0).watched
    record = open_record(output, 0)
    assert record.watched and record.unexplained == 0
    record.start_image(3)
    record.finish_image()
    record = open_record(output, 0)
    assert (record.crashes, record.unexplained) == ({}, 1)


@pytest.mark.parametrize(
    "left",
    [
        '{"unexpl',
        "",
        "[1]",
        "null",
        '{"crashes": 3}',
        '{"at": "x", "crashes": {}}',
        '{"at": Infinity, "crashes": {}}',
        "[" * 100_000,
    ],
)
def test_a_record_that_cannot_be_read_is_one_of_a_process_that_crashed(tmp_path: Path, left: str) -> None:
    output = str(tmp_path)
    open_record(output, 4)
    path = tmp_path / FOLDER / "shard-00004.json"
    path.write_text(left)
    record = open_record(output, 4)
    assert record.watched and (record.crashes, record.unexplained) == ({}, 0)
    path.write_text(left)
    clear(output)
    assert started_shards(output) == set()


@pytest.mark.parametrize("start", [CrashRecord.start_image, CrashRecord.start_row])
def test_a_position_is_bad_after_two_crashes_at_it(tmp_path: Path, start: Callable[..., None]) -> None:
    output = str(tmp_path)
    open_record(output, 0)
    for _ in range(2):
        record = open_record(output, 0)
        for position in (3, 3, 4):
            start(record, position)
    record = open_record(output, 0)
    start(record, 3)
    with pytest.raises(BadInputError) as caught:
        start(record, 4)
    assert caught.value.kind == "ProcessEnded"
    record.remove()
    assert started_shards(output) == set()


def test_a_read_of_several_images_is_repeated_row_by_row_and_blames_no_image(tmp_path: Path) -> None:
    output = str(tmp_path)
    for _ in range(2):
        record = open_record(output, 0)
    assert not record.start_read(2)
    record = open_record(output, 0)
    assert record.start_read(2) and record.unexplained == 0
    record.start_image(2)


def test_stopping_a_job_is_no_images_fault(tmp_path: Path) -> None:
    output = str(tmp_path)
    for _ in range(5):  # every time a person stops it at the same image
        open_record(output, 0)
        open_record(output, 0).start_image(2)
        clear(output)
        assert started_shards(output) == set()
    open_record(output, 1)
    for _ in range(2):
        open_record(output, 1).start_image(2)
    clear(output)
    assert json.loads((tmp_path / FOLDER / "shard-00001.json").read_text())["crashes"] == {"2": 1}
    record = open_record(output, 1)
    record.start_image(2)
    assert record.crashes == {2: 1} and record.unexplained == 0
