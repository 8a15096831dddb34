"""Archives of a few kilobytes that would take gigabytes, or for ever: each is refused in one line, in little memory."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2p.errors import BadInputError, UsageError
from p2p.preparation import sources
from p2p.preparation.locations import File, SourceReader, ZipMember
from p2p.preparation.sources import list_source, read_stream
from p2p.storage import compressed

MIB = 2**20
# Lists a source and reads its images as the job does. What a process has taken at most is counted from its start on.
_READER = """
import json, sys
from p2p.errors import BadInputError, UsageError
from p2p.preparation.locations import SourceReader
from p2p.preparation.sources import source_format, list_source, read_stream

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

uri, before, found = sys.argv[1], peak(), {}
try:
    if source_format(uri) == "stream":
        listing = read_stream(uri, "source", lambda chunk: None)
    else:
        listing = list_source(uri, "source")
        fetch = SourceReader()
        for member in listing.members:
            try:
                found[member.path] = len(fetch(member.location))
            except BadInputError as error:
                found[member.path] = error.kind
    found.update({row.source_uri.partition("#")[2]: row.error for row in listing.bad})
    print(json.dumps({"found": found, "grown": peak() - before}))
except UsageError as error:
    print(json.dumps({"refused": str(error), "grown": peak() - before}))
"""


def read(path: Path) -> dict[str, Any]:
    """What a process of its own finds, and by how many bytes its memory grows."""
    done = subprocess.run(
        [sys.executable, "-c", _READER, path], check=False, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def compress(pieces: Iterable[bytes], kind: str) -> bytes:
    packer: Any = {
        "gz": lambda: zlib.compressobj(wbits=31),
        "bz2": bz2.BZ2Compressor,
        "xz": lambda: lzma.LZMACompressor(preset=0),
    }[kind]()
    return b"".join(packer.compress(piece) for piece in pieces) + bytes(packer.flush())


def header(name: str, size: int, type: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, type
    return info.tobuf(tarfile.GNU_FORMAT)


def zeros(size: int) -> Iterator[bytes]:
    for _ in range(size // MIB):
        yield bytes(MIB)


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("type", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_header_records_of_a_streamed_tar_are_not_held(kind: str, type: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"x.tar.{kind}"
    path.write_bytes(compress([header("x", 50 * MIB, type), *zeros(50 * MIB), header("1.jpg", 0), bytes(1024)], kind))
    result = read(path)
    assert "headers of more than 1048576 bytes for one member" in result["refused"]
    assert result["refused"].startswith(f"source {path}: ") and "\n" not in result["refused"]
    assert result["grown"] < 30 * MIB


def test_header_records_of_a_plain_tar_are_not_held(tmp_path: Path) -> None:
    with open(tmp_path / "x.tar", "wb") as file:
        file.write(header("x", 400 * MIB, tarfile.XHDTYPE))
        file.truncate(500 * MIB)  # takes no space on the disk
    result = read(tmp_path / "x.tar")
    assert "headers of more than" in result["refused"] and result["grown"] < 30 * MIB


def test_an_image_that_is_too_large_in_a_streamed_tar_is_passed_over_in_little_memory(tmp_path: Path) -> None:
    pieces = [header("1.jpg", 300 * MIB), *zeros(300 * MIB), header("2.jpg", 0), bytes(1024)]
    (tmp_path / "x.tar.gz").write_bytes(compress(pieces, "gz"))
    result = read(tmp_path / "x.tar.gz")
    assert result["found"] == {"1.jpg": "FileTooLarge"} and result["grown"] < 30 * MIB


def test_a_claim_of_memory_in_xz_is_refused(tmp_path: Path) -> None:
    data = bytearray(lzma.compress(header("1.jpg", 0) + bytes(1024), format=lzma.FORMAT_ALONE))
    data[1:5] = struct.pack("<I", 2**31)  # the size of its dictionary
    (tmp_path / "x.tar.xz").write_bytes(bytes(data))
    with pytest.raises(UsageError, match="needs more than 256 MiB of memory; compress it with xz -9 or less"):
        read_stream(str(tmp_path / "x.tar.xz"), "source", lambda chunk: None)


def test_an_archive_that_expands_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "MIN_EXPANSION_BYTES", 10 * MIB)
    kept: list[bytearray] = []
    film = [header("film.mp4", 2**40), *zeros(12 * MIB)]
    (tmp_path / "x.tar.gz").write_bytes(compress([header("1.jpg", 0), *film], "gz"))
    with pytest.raises(UsageError, match=r"x\.tar\.gz: expands to more than .* 100 times its size; .*unpack it"):
        read_stream(str(tmp_path / "x.tar.gz"), "source", kept.append)
    images = [part for name in "12345" for part in (header(f"{name}.jpg", 3 * MIB), os.urandom(MIB), bytes(2 * MIB))]
    (tmp_path / "y.tar.gz").write_bytes(gzip.compress(b"".join([*images, bytes(1024)])))
    assert len(read_stream(str(tmp_path / "y.tar.gz"), "source", kept.append).members) == 5


@pytest.mark.parametrize("name", ["1.jpg", "a.txt", "../1.jpg"])
def test_more_members_than_so_few_bytes_can_hold_are_not_listed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_MAX_MEMBERS", 1000)
    (tmp_path / "x.tar.bz2").write_bytes(bz2.compress(header(name, 0) * 50_000 + bytes(1024)))
    with pytest.raises(UsageError, match=r"x\.tar\.bz2: has 1001 files in \d+ bytes; unpack it"):
        read_stream(str(tmp_path / "x.tar.bz2"), "source", lambda chunk: None)
    names = (header(f"{number}.jpg", 20) + os.urandom(20) + bytes(492) for number in range(2000))
    (tmp_path / "y.tar.xz").write_bytes(lzma.compress(b"".join([*names, bytes(1024)])))
    assert len(read_stream(str(tmp_path / "y.tar.xz"), "source", lambda chunk: None).members) == 2000


def zip_of(members: Iterable[tuple[zipfile.ZipInfo, bytes]], path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for info, data in members:
            archive.writestr(info, data, compresslevel=9)
    return path


def info(name: str, method: int) -> zipfile.ZipInfo:
    found = zipfile.ZipInfo(name)
    found.compress_type = method
    return found


def patch_list(path: Path, offset: int, format: str, value: int) -> None:
    """Change a field of every entry in the list at a zip's end."""
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\1\2")
    while at >= 0:
        struct.pack_into(format, data, at + offset, value)
        at = data.find(b"PK\1\2", at + 1)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_of_other_compressions_are_bad_rows(method: int, tmp_path: Path) -> None:
    bomb = bytes(100 * MIB) if method == zipfile.ZIP_BZIP2 else bytes(1000)
    members = [
        (info("1.jpg", method), bomb),
        (info("a.txt", method), b""),
        (info("2.jpg", zipfile.ZIP_STORED), b"fine"),
    ]
    path = zip_of(members, tmp_path / "x.zip")
    patch_list(path, 24, "<I", 1000)  # what their sizes are said to be
    result = read(path)
    assert result["found"] == {"1.jpg": "UnsupportedCompression", "2.jpg": 4}
    assert result["grown"] < 30 * MIB
    rows = list_source(str(path), "source").bad
    assert len(rows) == 1 and "pack the archive with deflate" in rows[0].message


def test_a_deflated_member_that_lies_about_its_size_is_not_inflated_further(tmp_path: Path) -> None:
    path = zip_of([(info("1.jpg", zipfile.ZIP_DEFLATED), bytes(300 * MIB))], tmp_path / "x.zip")
    assert read(path)["found"] == {"1.jpg": "FileTooLarge"}
    patch_list(path, 24, "<I", 1000)
    result = read(path)
    assert result["found"] == {"1.jpg": "DamagedMember"} and result["grown"] < 30 * MIB


def test_encrypted_members_are_bad_rows(tmp_path: Path) -> None:
    path = zip_of([(info("1.jpg", zipfile.ZIP_DEFLATED), b"x")], tmp_path / "x.zip")
    patch_list(path, 8, "<H", 1)
    rows = list_source(str(path), "source").bad
    assert [(row.error, row.message) for row in rows] == [
        ("EncryptedMember", "it is encrypted; pack the archive without a password")
    ]


def test_what_an_archive_has_become_since_it_was_listed_is_not_trusted(tmp_path: Path) -> None:
    path = zip_of([(info("1.jpg", zipfile.ZIP_DEFLATED), b"x" * 1000)], tmp_path / "x.zip")
    member = list_source(str(path), "source").members[0].location
    patch_list(path, 10, "<H", zipfile.ZIP_LZMA)
    with pytest.raises(BadInputError, match="compressed by method 14"):
        SourceReader()(member)
    zip_of([(info("2.jpg", zipfile.ZIP_DEFLATED), b"y")], path)
    with pytest.raises(BadInputError, match="not the one any more"):
        SourceReader()(member)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    path = zip_of([(info("1.jpg", zipfile.ZIP_STORED), data) for data in (b"first", b"second")], tmp_path / "x.zip")
    fetch = SourceReader()
    assert [fetch(member.location) for member in list_source(str(path), "source").members] == [b"first", b"second"]


@pytest.mark.parametrize("offset", [42, 20, 24])
@pytest.mark.parametrize("value", [0, 7, 2**31, 2**32 - 2])
def test_a_member_whose_place_is_a_lie_is_a_bad_row(offset: int, value: int, tmp_path: Path) -> None:
    members = [(info(f"{name}.jpg", zipfile.ZIP_DEFLATED), os.urandom(100)) for name in "12"]
    path = zip_of(members, tmp_path / "x.zip")
    patch_list(path, offset, "<I", value)
    found = read(path)["found"]
    assert found.keys() == {"1.jpg", "2.jpg"}
    assert set(found.values()) <= {"DamagedMember", "FileTooLarge", 100, 0}


@pytest.mark.parametrize("field", [(10, "<H"), (12, "<I"), (16, "<I")])
@pytest.mark.parametrize("value", [1, 2**15, 2**16 - 1])
def test_a_list_of_members_that_lies_is_one_clear_error(field: tuple[int, str], value: int, tmp_path: Path) -> None:
    path = zip_of([(info("1.jpg", zipfile.ZIP_DEFLATED), b"x")], tmp_path / "x.zip")
    data = bytearray(path.read_bytes())
    struct.pack_into(field[1], data, data.rfind(b"PK\5\6") + field[0], value)
    path.write_bytes(bytes(data))
    try:
        list_source(str(path), "source")
    except UsageError as error:
        assert str(error).startswith(f"source {path}: ") and "\n" not in str(error)


def test_pipes_in_a_folder_are_bad_rows(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1.jpg")
    (tmp_path / "2.jpg").write_bytes(b"fine")
    assert read(tmp_path)["found"] == {"1.jpg": "NotAFile", "2.jpg": 4}


def test_a_file_that_grew_since_it_was_listed_is_not_read_further(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(bytes(101))
    with pytest.raises(BadInputError, match="more than the 100 bytes allowed"):
        SourceReader(max_bytes=100)(File(str(tmp_path / "1.jpg")))
    path = zip_of([(info("1.jpg", zipfile.ZIP_DEFLATED), bytes(101))], tmp_path / "x.zip")
    with pytest.raises(BadInputError, match="more than the 100 bytes allowed"):
        SourceReader(max_bytes=100)(ZipMember(str(path), "1.jpg", 0))


def test_an_empty_member_costs_nothing_wherever_it_lies(tmp_path: Path, s3: Any) -> None:
    from p2p.storage.filesystems import write_bytes

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("empty.jpg"))
        tar.addfile(tarfile.TarInfo("1.jpg"))
    write_bytes(s3.uri("x.tar"), buffer.getvalue())
    members = list_source(s3.uri("x.tar"), "source").members
    assert [SourceReader()(member.location) for member in members] == [b"", b""]
