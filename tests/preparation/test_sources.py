"""Listing folders and archives: only images, only safe names, only from whole archives."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from p2p.errors import BadInputError, UsageError
from p2p.preparation.locations import SourceReader
from p2p.preparation.sources import Listing, list_source, read_stream, source_format, splits_of
from p2p.storage.bounded import DEFAULT_MAX_BYTES

FILES = {"set/train/1.jpg": b"one", "set/train/2.png": b"twotwo", "set/readme.txt": b"no", "set/val/3.PNG": b""}


def tar_of(files: dict[str, bytes], path: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def zip_of(files: dict[str, bytes], path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def folder_of(files: dict[str, bytes], path: Path) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def read_all(uri: Path, max_bytes: int = DEFAULT_MAX_BYTES) -> tuple[Listing, dict[str, bytes]]:
    chunks: list[bytes] = []
    if source_format(str(uri)) == "stream":
        listing = read_stream(str(uri), "source", lambda chunk: chunks.append(bytes(chunk)), max_bytes=max_bytes)
    else:
        listing = list_source(str(uri), "source", max_bytes)
    fetch = SourceReader(lambda number: memoryview(chunks[number]), max_bytes)
    return listing, {member.path: fetch(member.location) for member in listing.members}


MAKERS: dict[str, Callable[[dict[str, bytes], Path], Path]] = {
    "folder": lambda files, path: folder_of(files, path / "f"),
    "zip": lambda files, path: zip_of(files, path / "f.zip"),
    "tar": lambda files, path: tar_of(files, path / "f.tar"),
    "tar.gz": lambda files, path: tar_of(files, path / "f.tar.gz", "w:gz"),
    "tgz": lambda files, path: tar_of(files, path / "f.TGZ", "w:gz"),
    "tar.bz2": lambda files, path: tar_of(files, path / "f.tar.bz2", "w:bz2"),
    "tar.xz": lambda files, path: tar_of(files, path / "f.tar.xz", "w:xz"),
}


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz"])  # a zip's names are text
def test_names_that_are_no_text_are_written_as_text_and_their_bytes_found(kind: str, tmp_path: Path) -> None:
    listing, found = read_all(MAKERS[kind]({"train/caf\udce9.jpg": b"one", "train/caf.\udcea": b""}, tmp_path))
    assert found == {r"train/caf\xe9.jpg": b"one"}
    assert listing.members[0].location.uri.endswith(r"train/caf\xe9.jpg")
    assert str(listing.left_out) == r"1 file left out: 1 .\xea"


@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_of_source_lists_the_same_images_and_gives_their_bytes(kind: str, tmp_path: Path) -> None:
    listing, contents = read_all(MAKERS[kind](FILES, tmp_path))
    assert contents == {name: data for name, data in FILES.items() if not name.endswith(".txt")}
    assert str(listing.left_out) == "1 file left out: 1 .txt"
    assert not listing.bad
    assert [member.size for member in listing.members] == [len(contents[member.path]) for member in listing.members]


def test_a_stream_is_cut_into_chunks_that_are_each_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2p.preparation.sources._CHUNK_BYTES", 10)
    files = {f"{i}.jpg": bytes([i]) * (i % 7) for i in range(40)}
    assert read_all(tar_of(files, tmp_path / "x.tar.gz", "w:gz"))[1] == files


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("name", ["/etc/1.jpg", "../1.jpg", "a/../../1.jpg", "..\\1.jpg", "C:\\1.jpg"])
def test_names_that_point_outside_the_archive_become_bad_rows(kind: str, name: str, tmp_path: Path) -> None:
    listing, contents = read_all(MAKERS[kind]({name: b"evil", "ok.jpg": b"fine"}, tmp_path))
    assert contents == {"ok.jpg": b"fine"}
    assert [row.error for row in listing.bad] == ["UnsafeName"]
    assert listing.bad[0].source_uri.endswith("#" + name)


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_in_a_tar_are_refused(ending: str, kind: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"x.{ending}"
    with tarfile.open(path, "w:gz" if ending.endswith("gz") else "w") as archive:
        link = tarfile.TarInfo("1.jpg")
        link.type, link.linkname = kind, "/etc/passwd"
        archive.addfile(link)
    listing, contents = read_all(path)
    assert not contents
    assert [row.error for row in listing.bad] == ["LinkMember"]


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("1.jpg")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    assert [row.error for row in read_all(tmp_path / "x.zip")[0].bad] == ["LinkMember"]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_an_image_of_too_many_bytes_is_refused_unread(kind: str, tmp_path: Path) -> None:
    listing, contents = read_all(MAKERS[kind]({"big.jpg": b"x" * 101, "ok.jpg": b"x" * 100}, tmp_path), 100)
    assert list(contents) == ["ok.jpg"]
    assert [row.error for row in listing.bad] == ["FileTooLarge"]


def test_hidden_members_and_a_leading_dot_folder_are_seen_as_in_a_folder(tmp_path: Path) -> None:
    files = {"./train/1.jpg": b"1", "__MACOSX/train/._1.jpg": b"m", "train/._1.jpg": b"m"}
    assert read_all(tar_of(files, tmp_path / "x.tar"))[1] == {"train/1.jpg": b"1"}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_an_archive_that_is_cut_off_is_one_clear_error(kind: str, kept: float, tmp_path: Path) -> None:
    path = MAKERS[kind]({f"{i}.jpg": bytes(range(256)) * 40 for i in range(9)}, tmp_path)
    data = path.read_bytes()
    path.write_bytes(b"not an archive at all" * 60 if kept == 0 else data[: int(len(data) * kept)])
    with pytest.raises(UsageError, match=r"source .*: not a whole (tar|zip) archive"):
        read_all(path)


def test_a_damaged_zip_member_is_a_bad_input(tmp_path: Path) -> None:
    path = zip_of({"1.jpg": bytes(1000)}, tmp_path / "x.zip")
    data = bytearray(path.read_bytes())
    data[40] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(BadInputError, match="cannot be read out of its archive"):
        read_all(path)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "holds no files"),
        ({"a.txt": b"", "b/c.doc": b""}, r"holds no images.*; 2 files left out: 1 \.doc, 1 \.txt"),
    ],
)
def test_a_source_without_images_says_what_it_holds(files: dict[str, bytes], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"source_b .*: {reason}"):
        list_source(str(folder_of(files, tmp_path)), "source_b").require_images("source_b")


def test_a_single_file_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match="neither a folder nor"):
        list_source(str(tmp_path / "x.jpg"), "source")


ADVICE = {
    ".parquet": "a Parquet data set has both sides in its columns, so give it as --source alone",
    ".arrow": "once their to_parquet has written them as .parquet",
    ".rar": "unpack",
    ".7z": "unpack",
}


@pytest.mark.parametrize("ending", ADVICE)
def test_files_that_are_read_otherwise_or_not_say_what_to_do(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{ending}"
    path.write_bytes(b"x")
    with pytest.raises(UsageError, match=ADVICE[ending]):
        list_source(str(path), "source_b")
    with pytest.raises(UsageError, match=rf"1 file left out: 1 \{ending}; .*{ADVICE[ending]}"):
        list_source(str(tmp_path), "source_b").require_images("source_b")


def test_parquet_within_an_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    path = str(zip_of({"train/0.parquet": b"x"}, tmp_path / "x.zip"))
    with pytest.raises(UsageError, match="Parquet files are not read in archives, so unpack them"):
        list_source(path, "source").require_images("source")


def test_two_archives_side_by_side_may_be_the_sides(tmp_path: Path) -> None:
    for name in ("gtFine_trainvaltest", "leftImg8bit_trainvaltest"):
        zip_of(FILES, tmp_path / f"{name}.zip")
    with pytest.raises(UsageError, match="where two of them hold a side each, these as --source and --source-b"):
        list_source(str(tmp_path), "source").require_images("source")


@pytest.mark.parametrize(
    "kind, ending, what", [("zip", "tar", "a zip"), ("zip", "tar.gz", ""), ("tar", "zip", "a tar")]
)
def test_an_archive_of_another_kind_than_its_name_says_is_whole(
    kind: str, ending: str, what: str, tmp_path: Path
) -> None:
    path = MAKERS[kind](FILES, tmp_path).rename(tmp_path / f"other.{ending}")
    with pytest.raises(UsageError, match=f"this is {what}.* archive, though its name") as raised:
        read_all(path)
    assert "fetch it again" not in str(raised.value)


def test_kinds_are_told_by_the_name() -> None:
    assert source_format("http://host/maps.tar.gz?x=1") == source_format("http://host/maps.tar") == "stream"
    assert source_format("s3://b/x.tar") == "tar"
    assert source_format("/x/y.parquet") == "parquet"
    assert source_format("s3://b/tar.gz/") == "folder"


def test_a_folder_of_tars_is_one_source(tmp_path: Path) -> None:
    files = {"0.jpg": b"one", "0.seg.png": b"two", "0.json": b"{}"}
    for name in ("s-000", "s-001"):
        tar_of(files, tmp_path / f"{name}.tar")
    listing, contents = read_all(tmp_path)
    expected = {f"{shard}/0.{end}": files[f"0.{end}"] for shard in ("s-000", "s-001") for end in ("jpg", "seg.png")}
    assert contents == expected and not listing.bad
    assert str(listing.left_out) == "2 files left out: 2 .json"


def test_names_of_tars_say_the_split_as_those_of_folders_do(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    for name in ("train-000", "val-000", "test/s-000"):
        tar_of({"x.jpg": b"x"}, tmp_path / f"{name}.tar")
    assert sorted(read_all(tmp_path)[1]) == ["test/s-000/x.jpg", "train/train-000/x.jpg", "val/val-000/x.jpg"]


SPLIT_PATHS = {
    "val.parquet test.parquet train.parquet": "val test train",
    "default/train/0.parquet default/validation/0.parquet default/partial-test/0.parquet": "train val test",
    "split=train/p.parquet year=1/split=test/p.parquet": "train test",
    "train_0.parquet val_0.parquet my-dev-00000.parquet eval2.parquet": "train val val val",
    "cc-train-000.tar cc-val-000.tar cc.test.000.tar": "train val test",
    "more.parquet test.parquet": ". test",
    "train/test_1.parquet test/train-1.parquet": "train test",
    "train-test-0.parquet my-train-val-0.parquet x.parquet": "train . .",  # a name begins with it, or says two
    "test_0.parquet test_1.parquet": ". .",  # of all of them it may be just a word
    "test-0.parquet": "test",
    "contest.parquet valued.parquet trainer-1.parquet": ". . .",
}


@pytest.mark.parametrize("paths", SPLIT_PATHS)
def test_a_file_of_pairs_says_its_split_by_any_folder_or_a_word_of_its_name(paths: str) -> None:
    assert splits_of(paths.split()) == [split.strip(".") for split in SPLIT_PATHS[paths].split()]


def test_tars_whose_splits_are_words_of_their_names_are_below_folders_of_those(tmp_path: Path) -> None:
    for name in ("cc-train-000", "cc-val-000", "test", "all/split=val/0", "split=val/train"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        tar_of({"x.jpg": b"x"}, tmp_path / f"{name}.tar")
    expected = ["test/x.jpg", "train/cc-train-000/x.jpg", "val/all/split=val/0/x.jpg", "val/cc-val-000/x.jpg"]
    expected.append("val/split=val/train/x.jpg")
    assert sorted(read_all(tmp_path)[1]) == expected


@pytest.mark.parametrize("name", ["train", "x/test"])
def test_a_lone_tar_is_below_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    tar_of({"x.jpg": b"x"}, tmp_path / f"{name}.tar")
    assert [member.path for member in list_source(str(tmp_path), "source").members] == [f"{name}/x.jpg"]


def test_of_several_tars_a_damaged_one_is_bad(tmp_path: Path) -> None:
    for name in ("0", "1"):
        tar_of({"x.jpg": b"x" * 2000}, tmp_path / f"{name}.tar")
    (tmp_path / "1.tar").write_bytes((tmp_path / "1.tar").read_bytes()[:1500])
    listing, contents = read_all(tmp_path)
    assert list(contents) == ["0/x.jpg"]
    assert [(Path(row.source_uri).name, row.error) for row in listing.bad] == [("1.tar", "DamagedFile")]


def test_a_tar_beside_images_is_left_out(tmp_path: Path) -> None:
    tar_of({"x.jpg": b"x"}, tmp_path / "all.tar")
    (tmp_path / "x.jpg").write_bytes(b"x")
    listing, contents = read_all(tmp_path)
    assert list(contents) == ["x.jpg"] and str(listing.left_out) == "1 file left out: 1 .tar"


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_folder_of_other_archives_says_what_to_do(kind: str, tmp_path: Path) -> None:
    MAKERS[kind](FILES, tmp_path)
    with pytest.raises(UsageError, match=r"1 file left out: .*only \.tar is read, so unpack them, or give one"):
        list_source(str(tmp_path), "source").require_images("source")
