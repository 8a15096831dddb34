"""Tars are read as `tarfile` reads them; what no tool writes is refused before it costs memory or time."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import lzma
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import DamagedFileError
from p2p.storage.compressed import DecompressedFile
from p2p.storage.tars import MAX_HEADER_BYTES, TarMember, read_members

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
TYPES = (
    tarfile.REGTYPE,
    tarfile.AREGTYPE,
    tarfile.CONTTYPE,
    tarfile.DIRTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
)
END = bytes(1024)


def read(data: bytes) -> list[TarMember]:
    return list(read_members(io.BytesIO(data), "x.tar"))


def header(name: str, type: bytes = tarfile.REGTYPE, size: int = 0) -> bytes:
    """One block, as it stands in the file."""
    info = tarfile.TarInfo(name)
    info.type, info.size = type, size
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax(*records: tuple[str, str], type: bytes = tarfile.XHDTYPE) -> bytes:
    """A header of records, whose lengths count themselves."""
    body = b""
    for keyword, value in records:
        rest = f" {keyword}={value}\n".encode("utf-8", "surrogateescape")
        length = next(n for n in itertools.count(len(rest)) if n == len(rest) + len(str(n)))
        body += str(length).encode() + rest
    return header("pax", type, len(body)) + padded(body)


text = st.text(st.characters(blacklist_characters="\0/", blacklist_categories=("Cs",)), min_size=1, max_size=120)
names = st.lists(text, min_size=1, max_size=4).map("/".join)


@given(
    st.lists(st.tuples(names, st.sampled_from(TYPES), st.binary(max_size=1500)), max_size=6), st.sampled_from(FORMATS)
)
def test_members_are_those_that_tarfile_finds(members: list[tuple[str, bytes, bytes]], format: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, type, data in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mtime = type, "y" * 150 if format != tarfile.USTAR_FORMAT else "y", 1.5
            info.size = len(data) if info.isreg() else 0
            try:
                tar.addfile(info, io.BytesIO(data))
            except ValueError:  # ustar has no room for such a name
                continue
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as tar:
        expected = [(info.name, info.isfile(), info.isdir(), info.offset_data, info.size) for info in tar]
    found = read(buffer.getvalue())
    assert [
        (item.name.rstrip("/") if item.kind == "folder" else item.name, item.kind == "file", item.kind == "folder",
         item.start, item.size) for item in found
    ] == expected  # fmt: skip


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize("format", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_what_gnu_tar_writes_is_read(format: str, tmp_path: Path) -> None:
    name = "a" * 60 if format == "v7" else "long/" * 15 + "b" * 60
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"content" * 99)
    takes_holes = format in ("oldgnu", "gnu", "posix")
    if takes_holes:
        with open(tmp_path / "holes", "wb") as file:
            for part in range(60):
                file.seek(part * 2**17)
                file.write(b"part" * 1024)
    options = [f"--format={format}", *(["--sparse"] if takes_holes else [])]
    subprocess.run(["tar", *options, "-cf", "../x.tar", "."], cwd=tmp_path, check=True)
    data = (tmp_path.parent / "x.tar").read_bytes()
    found = {member.name.removeprefix("./"): member for member in read(data)}
    assert found[name].kind == "file"
    assert data[found[name].start :][: found[name].size] == b"content" * 99
    assert not takes_holes or found["holes"].kind == "sparse"
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} <= {
        name.rstrip("/") for name in found
    }


def test_numbers_too_large_for_octal_digits_are_read() -> None:
    large = 2**40
    for data in (header("big", size=large), pax(("size", f"{large}")) + header("big")):
        members = read_members(io.BytesIO(data), "x.tar")
        assert next(members).size == large
        with pytest.raises(DamagedFileError, match="it ends within a member"):
            next(members)


def test_global_records_hold_for_all_members_and_local_ones_count_more() -> None:
    data = pax(("path", "all"), ("comment", "c"), type=tarfile.XGLTYPE)
    data += header("1") + pax(("path", "local")) + header("2") + header("3") + END
    assert [member.name for member in read(data)] == ["all", "local", "all"]


LONG = "9" * (MAX_HEADER_BYTES - 4096)
HOSTILE: dict[str, bytes] = {
    "large pax": header("x", tarfile.XHDTYPE, 2**40),
    "large name": header("x", tarfile.GNUTYPE_LONGNAME, 2**30),
    "large link": header("x", tarfile.GNUTYPE_LONGLINK, 2**30),
    "large global": header("x", tarfile.XGLTYPE, 2**30),
    "large solaris": header("x", tarfile.SOLARIS_XHDTYPE, 2**30),
    "many headers": pax(("comment", "x")) * 2000 + header("1.png") + END,
    "many globals": pax(("comment", "x"), type=tarfile.XGLTYPE) * 2000 + END,
    "many names": (header("x", tarfile.GNUTYPE_LONGNAME, 4) + padded(b"name")) * 2000 + header("1.png") + END,
    "long path": pax(("path", LONG)) + header("1.png") + END,
    "long sparse name": pax(("GNU.sparse.name", LONG)) + header("1.png") + END,
    "endless sparse map": header("1.png", tarfile.GNUTYPE_SPARSE)[:482] + b"\1" + header("1.png")[483:],
    "digits": header("x", tarfile.XHDTYPE, len(LONG)) + padded(LONG.encode()) + header("1.png") + END,
    "keywords in keywords": header("x", tarfile.XHDTYPE, 2**19) + padded(b"2 " * 2**18 + b"=") + header("1") + END,
    "length of zero": header("x", tarfile.XHDTYPE, 8) + padded(b"0 a=bcd\n") + header("1.png") + END,
    "length beyond": header("x", tarfile.XHDTYPE, 8) + padded(b"999 a=b\n") + header("1.png") + END,
    "negative": header("1.png", size=-512) + END,
    "negative pax": pax(("size", "-1024")) + header("1.png") + END,
    "no number": pax(("size", "1_0")) + header("1.png") + END,
    "long number": pax(("size", "9" * 5000)) + header("1.png") + END,
    "beyond all files": pax(("size", f"{2**60}")) + header("1.png") + END,
    "beyond all numbers": pax(("size", f"{2**64}")) + header("1.png") + END,
    "ends after its header": pax(("path", "1.png")),
    "ends in its header": pax(("path", "1.png"))[:700],
    "zeros after its header": pax(("path", "1.png")) + END,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_tool_writes_is_refused(name: str, tmp_path: Path) -> None:
    good = header("0.png", size=3) + padded(b"abc")
    (tmp_path / "x.tar").write_bytes(good + HOSTILE[name])
    found = []
    with (
        open(tmp_path / "x.tar", "rb") as file,
        pytest.raises(DamagedFileError, match=r"x\.tar: not a whole tar archive: "),
    ):
        for member in read_members(file, "x.tar"):
            found.append(member.name)
            assert len(found) < 3
    assert found[0] == "0.png"


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "plain": bytes,
}


@pytest.mark.parametrize("kind", PACKERS)
@given(
    parts=st.lists(st.tuples(st.binary(max_size=50), st.integers(0, 50_000)), min_size=1, max_size=3),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 400_000)), max_size=8),
)
def test_compressed_content_is_read_and_passed_over(
    kind: str, parts: list[tuple[bytes, int]], steps: list[tuple[bool, int]]
) -> None:
    pieces = [data * times for data, times in parts]
    if kind == "lzma":  # cannot be put one after the other
        pieces = [b"".join(pieces)]
    if kind == "plain":  # begins with a name, so not as a compressed file does
        pieces.insert(0, b"name")
    content = io.BytesIO(b"".join(pieces))
    file = DecompressedFile(io.BytesIO(b"".join(map(PACKERS[kind], pieces))), "x.tar.gz")
    for is_read, count in steps:
        if is_read:
            assert file.read(count) == content.read(count)
        else:
            end = len(content.getbuffer())
            content.seek(min(end, content.tell() + count))
            file.seek(file.tell() + count)
        assert file.tell() == content.tell()
    assert file.read(10**9) == content.read()


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "garbage"])
def test_damaged_compression_is_told(kind: str, damage: str) -> None:
    data = PACKERS[kind](bytes(range(256)) * 1000)
    middle = len(data) // 2
    data = {
        "cut": data[:middle],
        "flipped": data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :],
        "garbage": data + b"garbage",
    }[damage]
    with pytest.raises(DamagedFileError, match=r"x\.tar\.gz: not a whole tar archive"):
        DecompressedFile(io.BytesIO(data), "x.tar.gz").read(10**9)
