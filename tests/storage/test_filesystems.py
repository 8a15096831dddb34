"""Addresses, listing, atomic publishing and one-line refusals, on the local disk and on other file systems."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import BadInputError, DamagedFileError, NotFoundError, RefusedError, StorageError, UsageError
from p2p.storage.error_mapping import storage_errors
from p2p.storage.filesystems import (
    FileInfo,
    absolute,
    arrow_filesystem,
    exists,
    is_file,
    is_remote,
    join,
    list_files,
    list_names,
    open_filesystem,
    read_bytes,
    read_json,
    read_json_object,
    remove,
    require_readable,
    require_writable,
    write_bytes,
    write_json,
    write_table,
)

NAMES = ["plain", "with space", "ünï", "a+b", "50%", "hash#mark", "a[1]", "*star", "日本", "q?x=1", "x" * 250]


@pytest.fixture(params=["local", "file", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty address, once on each kind of file system."""
    if request.param == "s3":
        return str(request.getfixturevalue("s3").uri("place"))
    return {"local": str(tmp_path), "file": tmp_path.as_uri(), "memory": f"memory:/{tmp_path}"}[request.param]


def test_what_is_written_is_read_back_and_listed_under_its_own_address(place: str) -> None:
    names = NAMES if place.startswith("memory") else [*NAMES, "a::b", "s3::x"]  # fsspec's own memory has no `::`
    for index, name in enumerate(names):
        write_bytes(join(place, "deep", name), bytes([index]) * index)
    assert list_names(join(place, "deep")) == sorted(names)
    found = list(list_files(place))
    assert {file.path: file.size for file in found} == {f"deep/{name}": index for index, name in enumerate(names)}
    for file in found:
        assert read_bytes(file.uri) == bytes([names.index(file.path[5:])]) * file.size
        assert list(list_files(file.uri)) == [FileInfo(file.path[5:], file.uri, file.size)]


def test_a_file_is_a_file_a_folder_a_folder_and_nothing_nothing(place: str) -> None:
    write_bytes(join(place, "folder/file"), b"x")
    assert [is_file(join(place, name)) for name in ("folder/file", "folder", "none")] == [True, False, False]
    assert [exists(join(place, name)) for name in ("folder/file", "folder", "none")] == [True, True, False]
    require_readable(join(place, "folder"), "data")
    with pytest.raises(UsageError, match=r"data .*none: nothing is there"):
        require_readable(join(place, "none"), "data")
    with pytest.raises(NotFoundError, match="none: nothing is there"):
        read_bytes(join(place, "none"))
    assert list_names(join(place, "none")) == list(list_files(join(place, "none"))) == []


def test_listing_goes_folder_by_folder_sorted_and_passes_by_what_is_hidden(place: str) -> None:
    shown = ["b.PNG", "a.jpg", "2/z.png", "2/y.png", "10/x.png", "2/deeper/w.jpeg"]
    hidden = [".hidden.png", "_SUCCESS", "_temporary/a.png", "2/.git/b.png"]
    for name in [*shown, *hidden, "notes.txt"]:
        write_bytes(join(place, name), b"")
    suffixes = (".png", ".jpg", ".jpeg")
    listed = ["a.jpg", "b.PNG", "10/x.png", "2/y.png", "2/z.png", "2/deeper/w.jpeg"]
    assert [file.path for file in list_files(place, suffixes)] == listed
    assert "notes.txt" in [file.path for file in list_files(place + "/")]


def test_removing_takes_files_and_folders_and_minds_no_absence(place: str) -> None:
    write_bytes(join(place, "kept"), b"")
    write_bytes(join(place, "folder/file"), b"")
    for name in ("folder", "none"):
        remove(join(place, name))
    assert [file.path for file in list_files(place)] == ["kept"]


@pytest.mark.parametrize("odd", ["*", "a[1]", "b?", "[ab]*"])
def test_removing_takes_no_name_for_a_pattern(place: str, odd: str) -> None:
    others = ["a1/file", "b1/file", "ab/file"]
    for name in [*others, f"{odd}/file", f"{odd}/deep/file"]:
        write_bytes(join(place, name), b"")
    remove(join(place, odd))
    assert sorted(file.path for file in list_files(place)) == sorted(others)


def test_writing_replaces_and_a_writable_address_is_left_as_it_was(place: str) -> None:
    write_bytes(join(place, "file"), b"long before")
    write_bytes(join(place, "file"), b"after")
    for target in (place, join(place, "new")):
        require_writable(target, "output")
    assert read_bytes(join(place, "file")) == b"after"
    assert [file.path for file in list_files(place)] == list_names(place) == ["file"]


def test_no_more_is_read_than_a_limit_allows(place: str) -> None:
    for size in (0, 99, 100, 101, 5000):
        write_bytes(join(place, f"{size}"), bytes(size))
    for size in (0, 99, 100):
        assert read_bytes(join(place, f"{size}"), limit=100) == bytes(size)
    for size in (101, 5000):
        with pytest.raises(BadInputError, match="more than the 100 bytes allowed for one image") as caught:
            read_bytes(join(place, f"{size}"), limit=100)
        assert caught.value.kind == "FileTooLarge"
    with pytest.raises(NotFoundError, match="none: nothing is there"):
        read_bytes(join(place, "none"), limit=100)


def test_a_file_that_does_not_say_its_size_is_counted_as_it_is_read() -> None:
    assert os.stat("/proc/self/environ").st_size == 0
    content = Path("/proc/self/environ").read_bytes()
    assert read_bytes("/proc/self/environ", limit=len(content)) == content
    with pytest.raises(BadInputError, match="more than the"):
        read_bytes("/proc/self/environ", limit=len(content) - 1)


def test_pipes_sockets_and_devices_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink("pipe.png", tmp_path / "link.png")
    os.symlink("/dev/zero", tmp_path / "device.png")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.relpath(tmp_path / "socket.png"))  # the path of a socket may not be long
    for name in ("pipe.png", "link.png", "device.png", "socket.png"):
        with pytest.raises(BadInputError, match="not a regular file") as caught:
            read_bytes(str(tmp_path / name), limit=100)
        assert caught.value.kind == "NotAFile"
    listener.close()
    with pytest.raises(StorageError, match="is a folder, not a file"):
        read_bytes(str(tmp_path), limit=100)


def test_json_is_strict_and_a_document_that_is_none_says_so(place: str) -> None:
    uri = join(place, "a.json")
    write_json(uri, {"psnr": float("inf"), "loss": float("nan"), "epochs": (1, 2), "where": Path("a/b")})
    assert read_json(uri) == {"psnr": None, "loss": None, "epochs": [1, 2], "where": "a/b"}
    assert b"NaN" not in read_bytes(uri)
    write_bytes(uri, b'{"half": ')
    with pytest.raises(StorageError, match=r"a\.json: not valid JSON"):
        read_json(uri)


def test_arrow_reads_the_table_that_was_written(place: str) -> None:
    table = pa.table({"pair_id": ["a", "b", "c"], "a": [b"1", b"22", b""]})
    write_table(join(place, "part-00000.parquet"), table, row_group_size=2)
    filesystem, path = arrow_filesystem(join(place, "part-00000.parquet"))
    file = pq.ParquetFile(filesystem.open_input_file(path))
    assert file.read() == table
    assert file.num_row_groups == 2


@given(parts=st.lists(st.text("abc/", min_size=1).filter(lambda part: part.strip("/")), max_size=4))
@pytest.mark.parametrize("base", ["/", "/data", "data/", "s3://bucket", "s3://bucket/key/"])
def test_join_puts_one_slash_between_parts(base: str, parts: list[str]) -> None:
    joined = join(base, *parts)
    assert joined.startswith(base.rstrip("/"))
    assert joined[len(base.rstrip("/")) :] == "".join("/" + part.strip("/") for part in parts)


def test_only_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert absolute("data") == str(tmp_path / "data")
    assert absolute("~/data") == "/home/someone/data"
    assert absolute("file:///a::b/../data/") == absolute("local:///data") == "/data"
    for uri in ("s3://bucket/key", "memory://a", "/data"):
        assert absolute(uri) == uri
    assert [is_remote(uri) for uri in ("/a", "a", "file:///a", "local:///a", "s3://a")] == [False] * 4 + [True]


@pytest.mark.parametrize("uri", ["nosuchscheme://a/b", "s4://bucket"])
def test_an_address_nothing_can_open_is_a_usage_error(uri: str) -> None:
    with pytest.raises(UsageError, match=f"{uri}: cannot open"):
        require_readable(uri, "data")


@pytest.mark.parametrize(
    "address",
    [
        "s3://me:pa55word@bucket/key",
        "https://pa55word@example.org/pairs",
        "https://example.org/a.zip?X-Amz-Signature=pa55word",
        "https://example.org/a.zip?part=1&sig=pa55word",
    ],
)
def test_a_secret_in_an_address_is_refused_and_not_repeated(address: str) -> None:
    for check in (require_readable, require_writable):
        with pytest.raises(UsageError, match="environment") as caught:
            check(address, "data")
        assert "pa55word" not in str(caught.value)


def test_a_file_in_the_way_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"output .*/file: a file lies where a folder is needed"):
        require_writable(str(tmp_path / "file"), "output")
    with pytest.raises(StorageError, match="is a folder, not a file"):
        read_bytes(str(tmp_path))
    with pytest.raises(StorageError, match="folder"):
        write_bytes(str(tmp_path), b"")


def test_a_refusal_of_the_system_is_told(tmp_path: Path) -> None:
    # /proc refuses everyone, the superuser too.
    with pytest.raises(UsageError, match=r"output /proc/p2p-test"):
        require_writable("/proc/p2p-test", "output")
    with (
        pytest.raises(StorageError, match="no space left"),
        storage_errors("/full/disk"),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x")


def test_a_broken_link_does_not_stop_a_listing(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(b"12")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    assert ("good.png", 2) in [(file.path, file.size) for file in list_files(str(tmp_path))]


_WRITER = """
import sys
from p2p.storage.filesystems import write_bytes
for value in range(256):
    write_bytes(sys.argv[1], bytes([value]) * (8 << 20))
    print(value, flush=True)
"""


def test_a_writer_killed_in_mid_write_leaves_the_whole_old_file_or_the_whole_new_one(tmp_path: Path) -> None:
    target = tmp_path / "weights.bin"
    for written in (1, 2, 3):
        process = subprocess.Popen([sys.executable, "-c", _WRITER, str(target)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(written):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        content = target.read_bytes()
        assert content == content[:1] * (8 << 20)
    assert list_names(str(tmp_path)) == [file.path for file in list_files(str(tmp_path))] == ["weights.bin"]


def test_a_failed_write_leaves_no_trace(tmp_path: Path) -> None:
    data: Any = "text is not bytes"
    with pytest.raises(TypeError):
        write_bytes(str(tmp_path / "file"), data)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"a": ' + "9" * 5000 + "}", b"\xff\xfe\x00\xd8"])
def test_json_that_no_parser_takes_is_damaged(tmp_path: Path, text: str | bytes) -> None:
    (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DamagedFileError, match=r"a\.json: not valid JSON"):
        read_json(str(tmp_path / "a.json"))


def test_a_json_document_has_a_largest_size_and_may_have_to_be_an_object(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"[" + b" " * 2**26 + b"]")
    with pytest.raises(DamagedFileError, match=r"a\.json: no JSON document of more than 67108864 bytes"):
        read_json(str(tmp_path / "a.json"))
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(DamagedFileError, match=r"a\.json: expected a JSON object, found list"):
        read_json_object(str(tmp_path / "a.json"))


class _Refusing(http.server.BaseHTTPRequestHandler):
    """Answers every request with the status that its path begins with."""

    def do_GET(self) -> None:
        self.send_response(int(self.path.split("/")[1]))
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def refusing_server() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    threading.Thread(target=server.serve_forever).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "status, kind, said",
    [
        (400, RefusedError, "400"),
        (401, RefusedError, "asks for a login"),
        (403, RefusedError, "does not let this machine read"),
        (404, NotFoundError, "nothing is there"),
        (500, StorageError, "500"),
    ],
)
@pytest.mark.parametrize("name", ["a.png", "AccessDenied/NoSuchBucket/ExpiredToken.png"])
def test_what_a_web_server_refuses_is_no_matter_of_buckets_and_their_keys(
    refusing_server: str, status: int, kind: type[StorageError], said: str, name: str
) -> None:
    uri = f"{refusing_server}/{status}/{name}"
    with pytest.raises(StorageError, match=said) as caught:
        read_bytes(uri)
    assert type(caught.value) is kind
    assert "AWS" not in str(caught.value)
    if status in (401, 403):
        with pytest.raises(UsageError, match=f"source {uri}: access denied; .*{said}"):
            require_readable(uri, "source")


@pytest.mark.parametrize(
    "uri, said",
    [
        ("s3://b/k", "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"),
        ("gs://b/k", "check Google's credentials"),
        ("abfs://b/k", "check the credentials in the environment"),
        ("/b/k", "check its mode"),
    ],
)
def test_a_refusal_names_the_credentials_of_its_storage(uri: str, said: str) -> None:
    with pytest.raises(RefusedError, match=said), storage_errors(uri):
        raise PermissionError("Forbidden")


@pytest.mark.parametrize(
    "uri", ["https://h/x?page=3&keyword=a&author=b", "https://h/monkey.png", "s3://b/keys/x@y.png"]
)
def test_an_address_without_secrets_is_opened(uri: str) -> None:
    assert open_filesystem(uri)[1]


@pytest.mark.parametrize("uri", ["https://h/x?api_key=hush", "https://h/x;token=hush", "https://u:p@hush@h/x"])
def test_an_address_with_a_secret_is_refused_without_saying_it(uri: str) -> None:
    with pytest.raises(UsageError, match="give credentials through the environment") as caught:
        open_filesystem(uri)
    assert "hush" not in str(caught.value)


def test_no_document_is_read_from_what_never_ends(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "device.json").symlink_to("/dev/zero")
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(2**40)
    for name in ("pipe", "device", "large"):
        with pytest.raises(DamagedFileError, match=r"no JSON document (of more|is in a pipe)"):
            read_json(str(tmp_path / f"{name}.json"))
    for name in ("pipe", "device"):
        with pytest.raises(RefusedError, match="not a regular file"):
            read_bytes(str(tmp_path / f"{name}.json"))
