"""One rule for what a source holds, whatever the container and the job: hidden names, links, other files."""

from __future__ import annotations

import io
import logging
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from p2p.data.pairs import open_pairs
from p2p.errors import BadInputError, ConfigError
from p2p.preparation.locations import SourceReader
from p2p.preparation.recognition import _log_left_out
from p2p.preparation.sources import list_source, read_stream
from p2p.storage import formats
from p2p.storage.filesystems import list_files, require_readable
from p2p.translation.corpus.corpus import open_corpus
from p2p.translation.corpus.inputs import DAMAGED
from p2p.translation.pipeline.fetching import InputFetcher

NAMES = (
    "a.png",
    "_MG_1.jpg",
    "b/c.gif",
    ".x.png",
    "_marker",
    "__MACOSX/d.png",
    ".git/e.png",
    "_tmp/f.png",
    "@eaDir/a.png/SYNOFILE_THUMB_M.png",
    "b/@eaDir/g.png",
    "#recycle/h.png",
    "$Recycle.Bin/i.png",
    "lost+found/j.png",
    "System Volume Information/k.png",
    "notes.txt",
)
SEEN = {"a.png", "_MG_1.jpg", "b/c.gif"}


def image(shade: int = 0, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 16, 3), shade, np.uint8)).save(buffer, format)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(number))
    return tmp_path / "images"


def packed(folder: Path, to: Path) -> Path:
    if to.suffix == ".zip":
        with zipfile.ZipFile(to, "w") as archive:
            for name in NAMES:
                archive.write(folder / name, name)
    else:
        with tarfile.open(to, "w:gz" if to.suffix == ".gz" else "w") as tar:
            for name in NAMES:
                tar.add(folder / name, name)
    return to


@pytest.mark.parametrize("container", ["folder", "x.tar", "x.tar.gz", "x.zip"])
def test_prepare_sees_the_same_in_every_container(folder: Path, tmp_path: Path, container: str) -> None:
    uri = str(folder if container == "folder" else packed(folder, tmp_path / container))
    listing = read_stream(uri, "source", bytes) if container.endswith(".gz") else list_source(uri, "source")
    assert {member.path for member in listing.members} == SEEN
    assert not listing.bad
    assert str(listing.left_out) == "1 file left out: 1 .txt"


@pytest.mark.parametrize("container", ["folder", "x.tar"])
def test_translate_sees_the_same(folder: Path, tmp_path: Path, container: str) -> None:
    uri = str(folder if container == "folder" else packed(folder, tmp_path / container))
    assert {item.image_id for item in open_corpus(uri).items()} == SEEN


def test_every_job_says_what_it_leaves_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(formats, "_is_installed", lambda module: False)
    for name in ("1.heic", "2.HEIC", "3.cr2"):
        (folder / name).write_bytes(b"x")
    said = "4 files left out: 2 .heic (pip install pillow-heif), 1 .cr2, 1 .txt"
    corpus = open_corpus(str(folder))
    jobs = {
        "prepare": lambda: _log_left_out(list_source(str(folder), "source")),
        "train": lambda: open_pairs(str(folder), "train"),
        "translate": lambda: [*corpus.items(), *corpus.items()],
    }
    for job, listing in jobs.items():
        with caplog.at_level(logging.INFO, "p2p"):
            caplog.clear()
            listing()
        assert [record.getMessage() for record in caplog.records if "left out" in record.getMessage()] == [
            f"{folder}: {said}"
        ], job


def test_a_folder_of_formats_that_are_not_read_says_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_is_installed", lambda module: False)
    (tmp_path / "1.heic").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"1 \.heic \(pip install pillow-heif\)"):
        open_corpus(str(tmp_path))
    with pytest.raises(ConfigError, match=r"1 \.heic \(pip install pillow-heif\)"):
        list_source(str(tmp_path), "source").require_images("source")


def test_linked_folders_are_followed_once_and_never_in_a_loop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "elsewhere/below").mkdir(parents=True)
    (tmp_path / "elsewhere/below/x.png").write_bytes(image())
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "top/real").mkdir(parents=True)
    (tmp_path / "top/real/y.png").write_bytes(image())
    (tmp_path / "top/y.png").symlink_to(tmp_path / "top/real/y.png")
    for name, target in {
        "alias": "top/real",
        "other": "elsewhere",
        "again": "elsewhere",
        "up": ".",
        "me": "top",
    }.items():
        (tmp_path / "top" / name).symlink_to(tmp_path / target)
    (tmp_path / "top/gone").symlink_to(tmp_path / "nothing")
    with caplog.at_level(logging.INFO, "p2p"):
        for _ in range(2):
            found = [file.path for file in list_files(str(tmp_path / "top"), (".png",))]
            assert sorted(found) == ["again/below/x.png", "real/y.png", "y.png"]
    [said] = [record.getMessage() for record in caplog.records if "not followed" in record.getMessage()]
    assert said.endswith(f": {tmp_path}/top/again/loop -> {tmp_path}/elsewhere and 4 more")


@pytest.fixture
def tar_of_links(tmp_path: Path) -> Path:
    with tarfile.open(tmp_path / "links.tar", "w") as tar:
        first = tarfile.TarInfo("a/one.png")
        first.size = len(image(7))
        tar.addfile(first, io.BytesIO(image(7)))
        long = "n" * 150 + ".png"
        for name, kind, target in (
            ("two.png", tarfile.LNKTYPE, "a/one.png"),
            (long, tarfile.LNKTYPE, "a/one.png"),
            ("lost.png", tarfile.LNKTYPE, "nowhere.png"),
            ("soft.png", tarfile.SYMTYPE, "a/one.png"),
            ("latest", tarfile.SYMTYPE, "a"),
            ("pipe.png", tarfile.FIFOTYPE, ""),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            tar.addfile(link)
    return tmp_path / "links.tar"


def test_hard_links_in_tars_are_the_files_they_name(tar_of_links: Path) -> None:
    good = {"a/one.png", "two.png", "n" * 150 + ".png"}
    listing = list_source(str(tar_of_links), "source")
    assert {member.path for member in listing.members} == good
    assert {SourceReader()(member.location) for member in listing.members} == {image(7)}
    assert {row.source_uri.rpartition("#")[2]: row.error for row in listing.bad} == {
        "lost.png": "LinkMember",
        "soft.png": "LinkMember",
        "pipe.png": "NotAFile",
    }
    inputs = list(open_corpus(str(tar_of_links)).items())
    assert {item.image_id for item in inputs if item.row != DAMAGED} == good
    assert {item.image_id: item.reason for item in inputs if item.row == DAMAGED} == {
        "lost.png": "LinkMember: it is a link to nowhere.png, which is no file of this archive",
        "soft.png": "LinkMember: it is a symbolic link, which is not followed in archives",
        "pipe.png": "NotAFile: it is a special file, which is not followed in archives",
    }
    fetcher = InputFetcher("")
    assert {bytes(fetcher.fetch([item])[0]) for item in inputs if item.row != DAMAGED} == {image(7)}  # type: ignore[arg-type]


def test_a_tar_that_is_compressed_says_so(folder: Path, tmp_path: Path) -> None:
    packed(folder, tmp_path / "x.tar.gz").rename(tmp_path / "x.tar")
    for job in (lambda uri: list(open_corpus(uri).items()), lambda uri: list_source(uri, "source")):
        with pytest.raises(Exception, match=r"compressed by gzip, though its name ends in \.tar"):
            job(str(tmp_path / "x.tar"))


@pytest.mark.parametrize("name", ["x.zip", "x.7z", "x.tar.zst", "x.tgz"])
def test_archives_that_a_job_does_not_read_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(ConfigError, match="unpack"):
        open_corpus(str(tmp_path / name))
    if name not in ("x.zip", "x.tgz"):
        with pytest.raises(ConfigError, match="an archive of a kind that is not read; unpack it"):
            list_source(str(tmp_path / name), "source")


def test_a_link_to_nothing_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "x.png").symlink_to("gone.png")
    [member] = list_source(str(tmp_path), "source").members
    with pytest.raises(BadInputError, match="a link to nothing"):
        SourceReader()(member.location)
    [fetched] = InputFetcher("").fetch(list(open_corpus(str(tmp_path)).items()))
    assert "no file lies at" in str(fetched)


def test_of_a_tar_the_members_that_are_meant(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("0.input.png", "0.target.png", "1.input.png", "2.xinput.png"):
            info = tarfile.TarInfo(name)
            info.size = len(image())
            tar.addfile(info, io.BytesIO(image()))
    corpus = open_corpus(str(tmp_path / "x.tar"), member="input.png")
    assert [item.image_id for item in corpus.items()] == ["0.input.png", "1.input.png"]
    (tmp_path / "a.png").write_bytes(image())
    with pytest.raises(ConfigError, match=r"member input\.png: .* is no tar"):
        open_corpus(str(tmp_path / "a.png"), member="input.png")


@pytest.mark.parametrize("pattern", ["*.png", "x/**", "a?.png", "[ab].png", "{a,b}.png"])
def test_a_pattern_says_what_to_give_instead(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"patterns are not followed: give one folder or file$"):
        require_readable(f"{tmp_path}/{pattern}", "source")
