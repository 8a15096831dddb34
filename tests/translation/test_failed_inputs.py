"""Inputs that cannot be translated: what is said of them, and how they are tried again."""

from __future__ import annotations

import functools
import http.server
import io
import json
import tarfile
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import in_this_process
from translations import ledger, outputs, refused, spoil, temporaries, translate, write

from p2p.errors import P2PError, TooManyBadInputsError
from p2p.model.engine import Engine
from p2p.storage.images import encode
from p2p.translation import TranslateConfig
from p2p.translation.job import run
from p2p.translation.pipeline import fetching
from p2p.translation.plan.resume import RemainingWork
from p2p.translation.pool import Outcome
from p2p.translation.work import Work


def test_bad_inputs_become_rows_with_reasons_and_an_exit_status(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    jpeg = make_image(64, 64, "JPEG")
    source = write(
        tmp_path / "in",
        {
            "good.png": make_image(64, 64),
            "cut.jpg": jpeg[: len(jpeg) // 2],
            "text.jpg": b"this is no image",
            "empty.png": b"",
            "odd.png": make_image(64, 65),
            "huge.png": make_image(400, 400),
        },
    )
    with pytest.raises(TooManyBadInputsError, match="5 of 6 inputs were bad"):
        translate(checkpoint, source, tmp_path / "out", side="left", max_pixels=100_000)
    rows = ledger(tmp_path / "out")
    assert {name: row["error"] for name, row in rows.items()} == {
        "good.png": "",
        "cut.jpg": "DamagedImage",
        "text.jpg": "NotAnImage",
        "empty.png": "EmptyFile",
        "odd.png": "OddWidth",
        "huge.png": "TooManyPixels",
    }
    assert all(row["message"] for row in rows.values() if row["status"] == "failed")
    assert list(outputs(tmp_path / "out")) == ["good.png"]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["images"], summary["translated"], summary["failed"], summary["skipped"]) == (6, 1, 5, 0)
    with pytest.raises(TooManyBadInputsError):  # the failures of an earlier attempt still count
        translate(checkpoint, source, tmp_path / "out", side="left", max_pixels=100_000)
    allowed = translate(checkpoint, source, tmp_path / "out", side="left", max_bad_fraction=0.9)
    assert (allowed["translated"], allowed["failed"], allowed["skipped"]) == (0, 5, 1)


def test_an_image_that_would_cost_hours_is_a_failed_row(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    jpeg = make_image(64, 64, "JPEG", progressive=True)
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    source = write(
        tmp_path / "in",
        {
            "good.png": make_image(64, 64),
            "thin.png": encode(np.zeros((1, 80_000, 3), np.uint8)),
            "scans.jpg": jpeg[:-2] + 200 * scan + jpeg[-2:],
        },
    )
    translate(checkpoint, source, tmp_path / "out", max_bad_fraction=0.9)
    errors = {name: row["error"] for name, row in ledger(tmp_path / "out").items()}
    assert errors == {"good.png": "", "thin.png": "TooManyTiles", "scans.jpg": "TooManyScans"}


@pytest.mark.parametrize("format, width", [("webp", 16_384), ("jpeg", 65_536)])
def test_an_output_too_long_for_its_format_is_a_failed_row(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes], format: Any, width: int
) -> None:
    files = {"good.png": make_image(64, 64), "long.png": encode(np.zeros((40, width, 3), np.uint8))}
    translate(checkpoint, write(tmp_path / "in", files), tmp_path / "out", image_format=format, max_bad_fraction=0.9)
    rows = ledger(tmp_path / "out")
    assert {name: row["error"] for name, row in rows.items()} == {"good.png": "", "long.png": "TooLargeForFormat"}
    assert "png" in rows["long.png"]["message"]


def test_inputs_that_cannot_be_read_are_bad_however_many_stand_in_a_row(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    write(tmp_path / "in", {"good.png": make_image(64, 64)})
    (tmp_path / "in" / "folder.png").mkdir()
    manifest = tmp_path / "list.txt"
    manifest.write_text("in/good.png\nin/folder.png\nin/gone.png\n")
    summary = translate(checkpoint, manifest, tmp_path / "out", max_bad_fraction=1.0)
    assert (summary["translated"], summary["failed"]) == (1, 2)
    assert ledger(tmp_path / "out")["in/folder.png"]["error"] == "Refused"
    assert ledger(tmp_path / "out")["in/gone.png"]["error"] == "NotFound"
    many = tmp_path / "many.csv"
    many.write_text("image_id,uri\n" + "".join(f"{number},in/folder.png\n" for number in range(100)))
    with pytest.raises(TooManyBadInputsError):
        translate(checkpoint, many, tmp_path / "bad", max_bad_fraction=0.9)
    rows = ledger(tmp_path / "bad")
    assert len(rows) == 100 and {row["error"] for row in rows.values()} == {"Refused"}


NOBODY_LISTENS = [f"http://127.0.0.1:1/{number}.png" for number in range(80)]


@pytest.fixture
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many attempts as ever, but no second of waiting before each."""
    monkeypatch.setattr(fetching, "_WEB_PAUSES", [0.01 for _ in fetching._WEB_PAUSES])


@pytest.mark.usefixtures("without_pauses")
def test_storage_that_does_not_answer_stops_the_work(tmp_path: Path, checkpoint: str) -> None:
    (tmp_path / "list.txt").write_text("\n".join(NOBODY_LISTENS))
    with pytest.raises(P2PError, match=r"reads in a row have failed.*check the address"):
        translate(
            checkpoint,
            tmp_path / "list.txt",
            tmp_path / "out",
            max_bad_fraction=1.0,
            allow_private_addresses=True,
        )
    assert temporaries(tmp_path / "out") == []


@pytest.mark.usefixtures("without_pauses")
@pytest.mark.parametrize("first", [True, False])
def test_one_server_of_several_that_is_gone_spoils_its_own_images_only(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes], first: bool
) -> None:
    """The other one asks for patience at first."""
    refused: set[str] = set()

    class Impatient(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path in refused:
                super().do_GET()
            else:
                refused.add(self.path)
                self.send_error(429)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    write(tmp_path / "served", {f"{number}.png": make_image(64, 64, seed=number) for number in range(20)})
    handler = functools.partial(Impatient, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        answered = [f"http://127.0.0.1:{server.server_port}/{number}.png" for number in range(20)]
        addresses = [*NOBODY_LISTENS, *answered] if first else [*answered, *NOBODY_LISTENS]
        (tmp_path / "list.txt").write_text("\n".join(addresses))
        options = {"max_bad_fraction": 0.9, "allow_private_addresses": True}
        summary = translate(checkpoint, tmp_path / "list.txt", tmp_path / "out", **options)
        server.shutdown()
    assert (summary["translated"], summary["failed"]) == (20, len(NOBODY_LISTENS))
    errors = Counter(row["message"] for row in ledger(tmp_path / "out").values() if row["error"] == "FetchFailed")
    assert errors["its server has not answered many reads in a row and was not asked again"] >= 16
    assert refused == {f"/{number}.png" for number in range(20)}


@pytest.mark.usefixtures("without_pauses")
def test_any_number_of_servers_that_are_gone_does_not_end_the_job(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    write(tmp_path, {"good.png": make_image(64, 64)})
    gone = [f"http://127.0.0.{number}:1/x.png" for number in range(1, 101)]
    (tmp_path / "list.txt").write_text("\n".join([*gone, "good.png"]))
    options = {"max_bad_fraction": 1.0, "allow_private_addresses": True}
    summary = translate(checkpoint, tmp_path / "list.txt", tmp_path / "out", **options)
    assert (summary["translated"], summary["failed"]) == (1, len(gone))


@pytest.mark.parametrize("format", ["parquet", "webdataset", "png"])
def test_only_what_failed_is_tried_again(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes], format: Any
) -> None:
    good = {f"{number:02d}.png": make_image(64, 64, seed=number) for number in range(20)}
    source = write(tmp_path / "in", {**good, "03.png": b"", "11.png": b"no image"})
    out = tmp_path / "out"
    options = {"format": format, "max_bad_fraction": 1.0}
    assert translate(checkpoint, source, out, **options)["failed"] == 2
    before = outputs(out)
    spoil(source, set(good) - {"03.png", "11.png"})  # whoever read these again would fail
    (source / "11.png").write_bytes(b"")
    (source / "03.png").write_bytes(good["03.png"])
    summary = translate(checkpoint, source, out, only_failed=str(out / "ledger"), **options)
    assert (summary["images"], summary["translated"], summary["failed"], summary["skipped"]) == (20, 1, 1, 18)
    rows = ledger(out)
    assert rows.keys() == good.keys()
    assert {name: row["error"] for name, row in rows.items() if row["status"] == "failed"} == {"11.png": "EmptyFile"}
    after = outputs(out)
    assert len(after) == 19 and all(np.array_equal(after[name], image) for name, image in before.items())
    write(source, good)
    summary = translate(checkpoint, source, out, only_failed=str(out), **options)
    assert (summary["translated"], summary["failed"], summary["skipped"]) == (1, 0, 19)
    again = translate(checkpoint, source, out, only_failed=str(out), **options)
    assert (again["translated"], again["failed"], again["skipped"]) == (0, 0, 20)
    assert len(ledger(out)) == len(outputs(out)) == 20
    assert not (out / "retry").exists() and not (out / "attempts").exists()


@pytest.mark.parametrize("again", [{}, {"only_failed": "out"}])
def test_an_interrupted_retry_is_ended_by_either_command(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes], again: dict[str, str]
) -> None:
    good = {f"{number:02d}.png": make_image(64, 64, seed=number) for number in range(20)}
    source = write(tmp_path / "in", {**good, "01.png": b"", "11.png": b"", "19.png": b""})
    out = tmp_path / "out"
    options = {"max_bad_fraction": 1.0, "precision": "fp32"}
    translate(checkpoint, source, out, **options)
    spoil(source, set(good) - {"01.png", "11.png", "19.png"})
    for name in ("01.png", "11.png"):
        (source / name).write_bytes(good[name])

    def dies_half_way(work: Work, left: RemainingWork) -> Outcome:
        in_this_process(work, RemainingWork(left.shards[:2], left.done))
        (out / "ledger" / "shard-00001.parquet").unlink()  # its data was published, its ledger was not
        raise KeyboardInterrupt

    config = {"checkpoint": checkpoint, "source": str(source), "output": str(out), **options}
    with pytest.raises(KeyboardInterrupt):
        run(TranslateConfig(**config, only_failed=str(out)), lambda _: nullcontext(dies_half_way))  # type: ignore[arg-type]
    again = {name: str(tmp_path / value) for name, value in again.items()}
    run(TranslateConfig(**config, **again), lambda _: nullcontext(in_this_process))  # type: ignore[arg-type]
    rows = ledger(out)
    assert rows.keys() == good.keys()
    assert [name for name, row in rows.items() if row["status"] == "failed"] == ["19.png"]
    assert outputs(out).keys() == good.keys() - {"19.png"}


def test_failures_can_be_tried_again_into_another_output(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    source = write(tmp_path / "in", {"a.png": make_image(64, 64), "b.png": b"", "c.png": b"x"})
    translate(checkpoint, source, tmp_path / "first", max_bad_fraction=1.0)
    write(source, {"b.png": make_image(64, 64), "c.png": make_image(64, 64)})
    failed = str(tmp_path / "first" / "ledger")
    for skipped in (0, 2):
        summary = translate(checkpoint, source, tmp_path / "second", only_failed=failed)
        assert (summary["images"], summary["translated"], summary["skipped"]) == (2, 2 - skipped, skipped)
    assert ledger(tmp_path / "second").keys() == outputs(tmp_path / "second").keys() == {"b.png", "c.png"}
    message = refused(checkpoint, source, tmp_path / "third", only_failed=str(tmp_path / "second"))
    assert message.startswith("only_failed ") and "there is no ledger with failed inputs" in message
    assert not (tmp_path / "third").exists()


def test_one_file_of_a_ledger_means_the_failures_it_lists(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    good = {f"{number:02d}.png": make_image(64, 64) for number in range(20)}
    source = write(tmp_path / "in", {**good, "01.png": b"", "19.png": b""})
    out = tmp_path / "out"
    translate(checkpoint, source, out, max_bad_fraction=1.0)
    write(source, good)
    files = sorted((out / "ledger").iterdir())
    (out / "retry").mkdir()
    files[0].rename(out / "retry" / files[0].name)  # as a retry that was killed at once leaves it
    for file, failed in ((files[0], 1), (files[0], 1), (files[-1], 0)):
        summary = translate(checkpoint, source, out, max_bad_fraction=1.0, only_failed=f"file://{file}")
        assert (summary["images"], summary["failed"]) == (20, failed)
    assert outputs(out).keys() == ledger(out).keys() == good.keys()
    missing = out / "ledger" / "shard-00099.parquet"
    assert "no ledger is there" in refused(checkpoint, source, out, only_failed=str(missing))


def test_a_damaged_tar_among_others_is_one_failed_row(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    source = tmp_path / "in::put"
    source.mkdir()
    for name in ("a", "b"):
        with tarfile.open(source / f"{name}.tar", "w") as tar:
            for number in range(3):
                data = make_image(64, 64, seed=number)
                info = tarfile.TarInfo(f"{number}.png")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    whole = (source / "b.tar").read_bytes()
    (source / "b.tar").write_bytes(whole[: whole.rindex(b"2.png") + 200])
    summary = translate(checkpoint, source, tmp_path / "out::put", max_bad_fraction=0.2, format="png")
    assert (summary["images"], summary["translated"], summary["failed"]) == (6, 5, 1)
    rows = ledger(tmp_path / "out::put")
    assert rows["b.tar"]["error"] == "DamagedFile" and "cut off or damaged at byte" in rows["b.tar"]["message"]
    assert outputs(tmp_path / "out::put").keys() == rows.keys() - {"b.tar"}


def test_too_little_memory_is_reported_with_what_to_do(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a capacity of …")

    monkeypatch.setattr(Engine, "start", no_memory)
    source = write(tmp_path / "in", {"a.png": make_image(64, 64)})
    with pytest.raises(P2PError, match=r"^CUDA out of memory; pass a smaller --tile-size or fewer --workers"):
        translate(checkpoint, source, tmp_path / "out")
    monkeypatch.undo()
    assert translate(checkpoint, source, tmp_path / "out")["translated"] == 1


def test_no_line_of_a_manifest_stops_the_others(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    write(tmp_path, {"_MG_1.png": make_image(64, 64), "b#1.png": make_image(64, 64), "b#2.png": make_image(64, 64)})
    good = ["_MG_1.png", f"file://{tmp_path}/b#1.png", f"{tmp_path}/b#2.png"]
    (tmp_path / "list.txt").write_text("\n".join([*good, "foo://bar/x.png", "http://[bad/x.png", "nul\0.png"]))
    translate(checkpoint, tmp_path / "list.txt", tmp_path / "out", max_bad_fraction=1.0)
    rows = ledger(tmp_path / "out")
    assert sorted(name for name, row in rows.items() if row["status"] == "failed") == [
        "[bad/x.png",
        "bar/x.png",
        "nul\0.png",
    ]
    assert len(outputs(tmp_path / "out")) == len(good)


def test_there_must_be_a_ledger_to_try_the_failed_of(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    source = write(tmp_path / "in", {"a.png": make_image(64, 64)})
    for where in (tmp_path / "out", tmp_path / "elsewhere"):
        assert "no ledger" in refused(checkpoint, source, tmp_path / "out", only_failed=str(where))
    assert "leave one out" in refused(checkpoint, source, tmp_path / "out", only_failed="x", resume="never")
