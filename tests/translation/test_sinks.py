"""Outputs: whole or absent, under names that stay inside and never meet."""

from __future__ import annotations

import dataclasses
import json
import os
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p.translation.config import Settings
from p2p.translation.sinks import ImagesSink, ParquetSink, Record, WebDatasetSink
from p2p.translation.sinks.images import image_name
from p2p.translation.sinks.webdataset import read_records

SETTINGS = Settings(
    source="/corpus", checkpoint="/model", output="/out", checkpoint_id="0123456789abcdef", tile_size=64, overlap=16
)


def below(folder: Path) -> Settings:
    return dataclasses.replace(SETTINGS, output=str(folder))


def record(image_id: str, image: bytes = b"bytes") -> Record:
    return Record(image_id, image, 3, 2, f"/corpus/{image_id}", 1.5)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_parquet_has_the_promised_columns_and_names_its_checkpoint(tmp_path: Path) -> None:
    writer = ParquetSink(below(tmp_path)).open_shard(7)
    large = os.urandom(10 * 2**20)
    uris = [writer.add(record(str(number), large)) for number in range(4)]
    assert files(tmp_path / "data") != ["part-00007.parquet"], "nothing is visible before it is whole"
    assert writer.publish() > 40 * 2**20
    assert files(tmp_path) == ["data/part-00007.parquet"]
    assert set(uris) == {str(tmp_path / "data" / "part-00007.parquet")}
    file = pq.ParquetFile(uris[0])
    wanted = ["image_id", "image", "width", "height", "source_uri", "checkpoint_id", "milliseconds"]
    assert file.schema_arrow.names == wanted
    assert file.num_row_groups == 2
    table = file.read()
    assert table["image_id"].to_pylist() == ["0", "1", "2", "3"] and table["image"][3].as_py() == large
    assert table["checkpoint_id"][0].as_py() == SETTINGS.checkpoint_id
    described = file.schema_arrow.metadata
    assert json.loads(described[b"p2p.settings"])["tile_size"] == 64
    assert described[b"p2p.checkpoint_id"] == SETTINGS.checkpoint_id.encode()


def test_a_second_writing_replaces_the_first_and_an_abandoned_one_leaves_nothing(tmp_path: Path) -> None:
    sink = ParquetSink(below(tmp_path))
    for ids in (["a", "b"], ["a", "b"], ["b"]):
        writer = sink.open_shard(0)
        for image_id in ids:
            writer.add(record(image_id))
        writer.publish()
        assert pq.read_table(tmp_path / "data")["image_id"].to_pylist() == ids
    writer = sink.open_shard(0)
    writer.add(record("c", os.urandom(20 * 2**20)))
    writer.discard()
    assert pq.read_table(tmp_path / "data")["image_id"].to_pylist() == ["b"]
    sink.open_shard(0).publish()
    assert files(tmp_path) == []


def test_images_mirror_the_source_and_failed_ones_are_removed(tmp_path: Path) -> None:
    sink = ImagesSink(str(tmp_path), "png")
    writer = sink.open_shard(0)
    assert writer.add(record("a/b.jpg", b"1")) == str(tmp_path / "images" / "a" / "b.png")
    writer.add(record("a/[c].jpg", b"2"))
    writer.add(record("a/c.jpg", b"3"))
    assert writer.publish() == 3
    assert files(tmp_path) == ["images/a/[c].png", "images/a/b.png", "images/a/c.png"]
    again = sink.open_shard(0)
    again.fail("a/[c].jpg")
    again.fail("never/was.jpg")
    assert len(files(tmp_path)) == 3, "another process may have made it meanwhile"
    again.publish()
    assert files(tmp_path) == ["images/a/b.png", "images/a/c.png"]


HOSTILE = [
    "../../etc/passwd.png",
    "/etc/passwd.png",
    "a/../b.png",
    "a/./b.png",
    "a//b.png",
    "nul\0byte.png",
    "new\nline.png",
    "x" * 300 + ".png",
    "deep/" * 300 + "x.png",
    "..",
    ".",
    "a::b.png",
    "c:\\windows\\x.png",
    "\udcff.png",
    "",
]


def test_hostile_names_stay_inside_and_apart(tmp_path: Path) -> None:
    sink = ImagesSink(str(tmp_path / "out"), "png")
    writer = sink.open_shard(0)
    for name in HOSTILE:
        writer.add(record(name, name.encode("utf-8", "surrogatepass") or b"-"))
    writer.publish()
    assert os.listdir(tmp_path) == ["out"]
    assert len(files(tmp_path / "out" / "images")) == len(HOSTILE)
    for name in HOSTILE:
        path = tmp_path / "out" / "images" / sink.name_of(name)
        assert path.read_bytes() == (name.encode("utf-8", "surrogatepass") or b"-")


def test_hostile_names_stay_inside_their_file_and_apart(tmp_path: Path) -> None:
    for sink in (ParquetSink(below(tmp_path / "parquet")), WebDatasetSink(below(tmp_path / "tar"))):
        names = [name for name in HOSTILE if name != "\udcff.png" or isinstance(sink, WebDatasetSink)]
        writer = sink.open_shard(0)
        for name in names:
            writer.add(record(name))
        writer.publish()
    assert sorted(os.listdir(tmp_path)) == ["parquet", "tar"]
    assert files(tmp_path) == ["parquet/data/part-00000.parquet", "tar/data/part-00000.tar"]
    assert [found.image_id for found in read_records(str(tmp_path / "tar" / "data" / "part-00000.tar"))] == HOSTILE
    with tarfile.open(tmp_path / "tar" / "data" / "part-00000.tar") as tar:
        members = tar.getnames()
        tar.extractall(tmp_path / "unpacked", filter="data")  # refuses whatever would leave the folder
    assert len(set(members)) == len(members) == 2 * len(HOSTILE)


def test_a_tar_pairs_each_image_with_what_is_known_of_it(tmp_path: Path) -> None:
    sink = WebDatasetSink(below(tmp_path))
    tars = []
    for _ in range(2):
        writer = sink.open_shard(3)
        for name in ("a/b.c.jpg", "a/d.jpg", "ä e.png"):
            writer.add(record(name, name.encode()))
        assert writer.publish() == (tmp_path / "data" / "part-00003.tar").stat().st_size
        tars.append((tmp_path / "data" / "part-00003.tar").read_bytes())
    assert tars[0] == tars[1], "equal images make equal tars"
    with tarfile.open(tmp_path / "data" / "part-00003.tar") as tar:
        content = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert list(content) == [
        *("a/b%2Ec.png", "a/b%2Ec.json"),
        *("a/d.png", "a/d.json"),
        *("ä e.png", "ä e.json"),
    ]
    assert content["a/b%2Ec.png"] == b"a/b.c.jpg"
    known = json.loads(content["a/d.json"])
    assert (known["image_id"], known["width"], known["checkpoint_id"]) == ("a/d.jpg", 3, SETTINGS.checkpoint_id)
    sink.open_shard(3).publish()
    assert files(tmp_path) == []


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_every_name_stays_below_its_folder(name: str) -> None:
    path = os.path.normpath(os.path.join("/out/images", image_name(name, "png")))
    assert path.startswith("/out/images/") and path.endswith(".png")
    assert image_name(name, "png") == image_name(name, "png")


@pytest.mark.parametrize("name", ["a.jpg", "ä/with space.jpeg", "a.b.c.tif", "no ending", "z/12/x/y.webp"])
def test_ordinary_names_only_change_their_ending(name: str) -> None:
    stem = name.rsplit(".", 1)[0] if "." in name else name
    assert image_name(name, "webp") == f"{stem}.webp"


def test_names_that_end_like_no_image_stay_whole() -> None:
    names = ["x.parquet#1", "x.parquet#2", "frame.0001", "frame.0002"]
    assert [image_name(name, "png") for name in names] == [f"{name}.png" for name in names]
