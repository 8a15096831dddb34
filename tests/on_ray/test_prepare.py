"""The whole job on Ray: every kind of source, bad inputs, and running again."""

from __future__ import annotations

import functools
import http.server
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from p2p.preparation import PrepareConfig, chunks, prepare
from p2p.storage import images
from p2p.synthetic.pairs import PALETTE

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def rows(output: Path, split: str = "train") -> dict[str, dict[str, Any]]:
    return {row["pair_id"]: row for row in pq.read_table(output / split).to_pylist()}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of a plain HTTP server for the files in `tmp_path`."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_bad_inputs_become_rows_good_ones_are_stored_and_a_rerun_replaces_everything(
    run_cli: Callable[..., Any], make_pairs: Callable[..., Path], make_image: Callable[..., bytes], tmp_path: Path
) -> None:
    source = make_pairs(tmp_path / "in/train", 6, 16).parent
    make_pairs(source / "val", 2, 16, seed=1)
    whole = make_image(16, 32, "JPEG")
    for name, data in {
        "cut.jpg": whole[: len(whole) // 2],
        "text.jpg": b"I am text",
        "empty.jpg": b"",
        "odd.png": make_image(16, 31),
    }.items():
        (source / "train" / name).write_bytes(data)
    words = ("--source", source, "--output", tmp_path / "out", "--load-size", 20)
    outcome = run_cli(PrepareConfig, prepare, *words)
    assert outcome.status == 3
    assert outcome.summary["pairs"] == {"train": 6, "val": 2, "test": 0}
    assert outcome.summary["bad"] == 4
    assert json.loads((tmp_path / "out/summary.json").read_text()) == outcome.summary
    errors = {Path(row["source_uri"]).name: row["error"] for row in pq.read_table(tmp_path / "out/errors").to_pylist()}
    assert errors == {
        "cut.jpg": "DamagedImage",
        "text.jpg": "NotAnImage",
        "empty.jpg": "EmptyFile",
        "odd.png": "OddWidth",
    }
    assert "Traceback" not in outcome.stderr
    for name in errors:
        (source / "train" / name).unlink()
    for path in (source / "val").iterdir():
        path.unlink()
    outcome = run_cli(PrepareConfig, prepare, *words)
    assert outcome.status == 0
    names = ["dataset.json", "doctor.html", "doctor.json", "summary.json", "train"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert outcome.summary["pairs"] == {"train": 6, "val": 0, "test": 0}
    assert all(row["width"] == row["height"] == 20 for row in rows(tmp_path / "out").values())


def test_some_bad_inputs_are_allowed_if_the_user_says_so(
    run_cli: Callable[..., Any], make_pairs: Callable[..., Path], tmp_path: Path
) -> None:
    make_pairs(tmp_path / "in", 3, 8)
    (tmp_path / "in/bad.jpg").write_bytes(b"")
    words = ("--source", tmp_path / "in", "--output", tmp_path / "out", "--max-bad-fraction", 0.25)
    assert run_cli(PrepareConfig, prepare, *words).status == 0


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz", "zip"])
def test_images_of_too_many_bytes_are_bad_wherever_they_lie(
    run_cli: Callable[..., Any], make_image: Callable[..., bytes], kind: str, tmp_path: Path
) -> None:
    good, large = make_image(8, 16), make_image(200, 400, "BMP")
    source = tmp_path / "in"
    source.mkdir()
    (source / "good.png").write_bytes(good)
    (source / "large.bmp").write_bytes(large)
    if kind != "folder":
        format = {"tar": "tar", "tar.gz": "gztar", "zip": "zip"}[kind]
        source = Path(shutil.make_archive(str(tmp_path / "archive"), format, source))
    words = ("--source", source, "--output", tmp_path / "out", "--layout", "combined", "--max-bytes", len(large) - 1)
    assert run_cli(PrepareConfig, prepare, *words).summary["pairs"]["train"] == 1
    (row,) = pq.read_table(tmp_path / "out/errors").to_pylist()
    assert row["error"] == "FileTooLarge" and row["source_uri"].endswith("large.bmp")
    assert f"more than the {len(large) - 1} bytes allowed" in row["message"]
    assert run_cli(PrepareConfig, prepare, *words[:-1], len(large)).status == 0


def test_a_compressed_tar_of_more_than_there_is_room_for_is_refused_as_it_grows(
    run_cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "x.tar.bz2", "w:bz2") as archive:
        for number in range(3):
            info = tarfile.TarInfo(f"{number}.png")
            info.size = 60 * 2**20
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    assert (tmp_path / "x.tar.bz2").stat().st_size < 1000
    monkeypatch.setattr(chunks, "MIN_FREE_DISK", 1.0)  # as if the disk were full; the object store holds 256 MiB
    outcome = run_cli(PrepareConfig, prepare, "--source", tmp_path / "x.tar.bz2", "--output", tmp_path / "out")
    assert outcome.status == 2 and "Traceback" not in outcome.stderr
    assert "x.tar.bz2: the first 180 MiB of its images are more than Ray's object store" in outcome.stderr
    assert "unpack it and give the folder" in outcome.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_its_archives_over_http_too_and_a_prepared_copy_give_the_same_pairs(
    make_pairs: Callable[..., Path], served: str, tmp_path: Path
) -> None:
    source = make_pairs(tmp_path / "in/set/train", 40, 8).parent
    for ending, mode in (("tar", "w"), ("tar.gz", "w:gz"), ("tar.xz", "w:xz")):
        with tarfile.open(tmp_path / f"set.{ending}", mode) as archive:
            archive.add(source, "set")
    prepare(PrepareConfig(source=str(source), output=str(tmp_path / "folder"), load_size=0))
    expected = rows(tmp_path / "folder")
    assert len(expected) == 40
    assert len(list((tmp_path / "folder/train").iterdir())) == 2
    sources = [str(tmp_path / "set.tar"), f"{served}/set.tar", f"{served}/set.tar.gz", f"{served}/set.tar.xz"]
    sources.append(str(tmp_path / "folder"))
    for number, address in enumerate(sources):
        output = tmp_path / f"out{number}"
        prepare(PrepareConfig(source=address, output=str(output), load_size=0))
        found = rows(output)
        assert found.keys() == expected.keys()
        for pair_id, row in found.items():
            for side in "ab":
                assert np.array_equal(images.decode(row[side]), images.decode(expected[pair_id][side]))


def test_the_synthetic_city_says_its_palette_and_is_the_same_in_every_run(tmp_path: Path) -> None:
    source = "synthetic:city?pairs=40&size=24&seed=5"
    for name in ("one", "two"):
        prepare(PrepareConfig(source=source, output=str(tmp_path / name), load_size=0, val_fraction=0.3))
    for split in ("train", "val"):
        assert rows(tmp_path / "one", split) == rows(tmp_path / "two", split)
    about = json.loads((tmp_path / "one/dataset.json").read_text())
    assert about["palette_b"] == [list(colour) for colour in PALETTE.values()]
    assert about["palette_a"] is None
    assert about["load_size"] == 0
    assert about["source"] == source


def test_parquet_columns_of_plain_or_wrapped_bytes(make_image: Callable[..., bytes], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    wrapped = [{"bytes": make_image(8, 8, seed=k), "path": None} for k in range(3)]
    table = pa.table({"id": ["x", "y", "x"], "label": wrapped, "photo": [make_image(8, 8, seed=9)] * 3})
    pq.write_table(table, tmp_path / "in/validation-00000-of-00001.parquet")
    config = PrepareConfig(source=str(tmp_path / "in"), output=str(tmp_path / "out"), max_bad_fraction=0.5)
    summary = prepare(config)
    assert summary["pairs"] == {"train": 0, "val": 2, "test": 0}
    assert summary["bad"] == 1, "an id that stands twice"
    assert set(rows(tmp_path / "out", "val")) == {"x", "y"}


def test_a_check_of_raw_or_prepared_pairs_finds_what_prepare_finds_and_changes_nothing(
    run_cli: Callable[..., Any], make_pairs: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_pairs(tmp_path / "in/train", 20, 48).parent
    make_pairs(source / "val", 2, 48, seed=1)
    (source / "val/copy.png").write_bytes((source / "train/0003.png").read_bytes())
    (source / "train/bad.png").write_bytes(b"")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    words = ("--source", source, "--output", tmp_path / "looked", "--load-size", 0, "--check")
    outcome = run_cli(PrepareConfig, prepare, *words)
    assert outcome.status == 3, "as preparing would end"
    assert outcome.summary["pairs"] == {"train": 20, "val": 3, "test": 0}
    assert outcome.summary["doctor"] == {"unusable_files": 1, "leakage": 2}
    assert "2 leakage: train/0003, val/copy" in outcome.stderr
    [bad] = pq.read_table(tmp_path / "looked/errors").to_pylist()
    assert (bad["source_uri"], bad["error"]) == (str(source / "train/bad.png"), "EmptyFile")
    names = ["doctor.html", "doctor.json", "errors", "summary.json"]
    assert sorted(path.name for path in (tmp_path / "looked").iterdir()) == names
    assert json.loads((tmp_path / "looked/summary.json").read_text()) == outcome.summary
    assert {path: path.stat().st_mtime_ns for path in before} == before

    out = tmp_path / "out"
    prepared = run_cli(PrepareConfig, prepare, *words[:3], out, *words[4:6], "--max-bad-fraction", 0.1)
    assert prepared.summary["doctor"] == outcome.summary["doctor"]
    told, found = (json.loads((folder / "doctor.json").read_text()) for folder in (out, tmp_path / "looked"))
    assert told == found
    again = run_cli(PrepareConfig, prepare, "--source", out, *words[2:])
    assert again.status == 0, "findings are no bad inputs, and bad inputs were left out"
    assert again.summary["doctor"] == {"leakage": 2}
    assert not (tmp_path / "looked/errors").exists(), "what an earlier check refused is no news of this one"
    refused = run_cli(PrepareConfig, prepare, "--source", out, "--output", out, "--check")
    assert refused.status == 2
    assert "--check changes no data set" in refused.stderr
