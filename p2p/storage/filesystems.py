"""Files at any local path or fsspec URI: listed, read, and published atomically."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import fsspec
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from p2p.documents import MAX_JSON_BYTES, parse_json, parse_json_object, to_json
from p2p.errors import (
    BadInputError,
    ConfigError,
    DamagedFileError,
    NotFoundError,
    RefusedError,
    StorageError,
    UsageError,
    redact,
)
from p2p.storage.bounded import read_limited, require_regular_file
from p2p.storage.creation import create_file, create_object, replace_object, replace_object_seen
from p2p.storage.error_mapping import LOCAL_SCHEMES, storage_errors
from p2p.storage.walking import walk_files

log = logging.getLogger("p2p")

_CONNECT_SECONDS = 5
_READ_SECONDS = 60
_ATTEMPTS = 8
_PREFLIGHT_ATTEMPTS = 2  # before work starts, a wrong address should be reported within seconds
_REMOVERS = 16
_BUCKET_SCHEMES = ("s3", "s3a", "gs", "gcs")
_UNCHAINED_SCHEMES = ("file", *_BUCKET_SCHEMES, "http", "https")
_PATTERN = re.compile(r"[*?]|\[.+\]|\{.+\}")
TEMPORARY_PREFIX = ".p2p-"
"""How the names of files begin that are not whole yet: listings pass them by."""
SECONDS_BETWEEN_CHECKS = 2.0
"""How often a job looks at its lease where it writes, or removes, one thing after the other."""


class Holder(Protocol):
    """The job that holds the lease of an output."""

    @property
    def output(self) -> str:
        """The folder or prefix that it writes."""

    @property
    def folder(self) -> str:
        """Where in it, on a disk, the job's temporary files are: no other attempt has a folder of that name."""

    def check(self, seconds: float = 0.0) -> None:
        """Raise LeaseLostError if another job has taken over."""


@dataclass(frozen=True)
class FileInfo:
    """A file below a listed address: its path relative to that address, its own address, its size in bytes, when
    it was written (seconds since 1970; 0 where the store does not say), and an object store's tag of its content.
    """

    path: str
    uri: str
    size: int
    modified: float = dataclasses.field(default=0.0, compare=False)
    etag: str = dataclasses.field(default="", compare=False)

    @property
    def version(self) -> int:
        """64 bits that change when the file is written anew; 0 where the store does not say when it was."""
        written = self.etag or self.modified
        if not written:
            return 0
        return int.from_bytes(hashlib.blake2b(f"{self.size} {written}".encode(), digest_size=8).digest(), "little")


def _file(path: str, uri: str, details: Mapping[str, Any]) -> FileInfo:
    modified = details.get("mtime") or details.get("LastModified") or details.get("updated") or 0.0
    if isinstance(modified, str):
        modified = datetime.fromisoformat(modified)
    seconds = modified.timestamp() if isinstance(modified, datetime) else float(modified)
    # Google's etag changes with a label or a storage class too, its generation with the content alone.
    etag = str(details.get("generation") or details.get("ETag") or details.get("etag") or "")
    return FileInfo(path, uri, int(details.get("size") or 0), seconds, etag)


def is_remote(uri: str) -> bool:
    """Whether `uri` has a scheme other than a plain path's."""
    return "://" in uri and not uri.startswith(LOCAL_SCHEMES)


def _options(scheme: str, attempts: int) -> dict[str, Any]:
    if scheme in ("s3", "s3a"):
        return {
            # A cached listing would hide what another process wrote a moment ago.
            "use_listings_cache": False,
            # Threads here read side by side; within one object it would cost a HEAD before every GET.
            "max_concurrency": 1,
            "config_kwargs": {
                "connect_timeout": _CONNECT_SECONDS,
                "read_timeout": _READ_SECONDS,
                "retries": {"max_attempts": attempts, "mode": "standard"},
            },
        }
    if scheme in ("http", "https"):
        import aiohttp

        # Its own is five minutes for a whole file: too long for a server that is gone, too short for a large file.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_READ_SECONDS)
        return {"client_kwargs": {"timeout": timeout}}
    return {"auto_mkdir": True} if scheme == "file" else {}


def open_filesystem(uri: str, attempts: int = _ATTEMPTS) -> tuple[fsspec.AbstractFileSystem, str]:
    """`uri` -> (file system, path on it). Raises UsageError for a scheme nothing here can open.

    `attempts` is how often a request that a server did not answer is sent. In fsspec `::` chains addresses
    (`zip://a.png::s3://bucket/x.zip`); in a local path or a key of a bucket it is two colons.
    """
    if is_remote(uri) and redact(uri) != uri:
        # An address is written into configurations, ledgers and reports, none of which may hold a secret.
        raise UsageError(f"{uri}: give credentials through the environment, not in the address")
    scheme = uri.partition("://")[0] if is_remote(uri) else "file"
    options = _options(scheme, attempts)
    try:
        if "::" in uri and scheme in _UNCHAINED_SCHEMES:
            filesystem = fsspec.filesystem(scheme, **options)
            return filesystem, filesystem._strip_protocol(uri)
        filesystem, path = fsspec.core.url_to_fs(uri, **options)
    except Exception as error:  # constructors of file systems raise anything, such as for a part that is missing
        if isinstance(error, (OSError, MemoryError)):
            raise
        raise UsageError(f"{uri}: cannot open this kind of address: {error}") from None
    return filesystem, path


def arrow_filesystem(uri: str) -> tuple[pa.fs.FileSystem, str]:
    """`uri` -> (PyArrow file system, path), for readers and writers of Parquet."""
    filesystem, path = open_filesystem(uri)
    if not is_remote(uri):
        return pa.fs.LocalFileSystem(), path
    return pa.fs.PyFileSystem(pa.fs.FSSpecHandler(filesystem)), path


def join(uri: str, *parts: str) -> str:
    """Append path `parts` to an address."""
    return "/".join([uri.rstrip("/") if uri != "/" else "", *(part.strip("/") for part in parts)])


def absolute(uri: str) -> str:
    """A local path becomes absolute, since Ray workers run in other folders, and plain; other addresses stay.

    A `file://` address is percent-encoded, as RFC 8089 has it; a path never is.
    """
    if is_remote(uri):
        return uri
    if uri.startswith("file://"):
        uri = unquote(uri.removeprefix("file://"), errors="surrogateescape")
    return os.path.abspath(os.path.expanduser(uri.removeprefix("local://")))


def exists(uri: str) -> bool:
    """Whether a file or folder lies at `uri`."""
    with storage_errors(uri):
        filesystem, path = open_filesystem(uri)
        return bool(filesystem.exists(path))


def is_file(uri: str) -> bool:
    """Whether `uri` names a file, not a folder or prefix."""
    with storage_errors(uri):
        filesystem, path = open_filesystem(uri)
        return bool(filesystem.isfile(path))


def read_bytes(uri: str, limit: int | None = None) -> bytes:
    """The whole content of one file. With a `limit` (bytes) as `read_limited` reads it."""
    with storage_errors(uri):
        filesystem, path = open_filesystem(uri)
        if limit is not None:
            return read_limited(filesystem, path, limit, uri)
        try:
            require_regular_file(filesystem, path)
        except BadInputError as error:
            raise RefusedError(f"{uri}: {error}") from None
        return bytes(filesystem.cat_file(path))


def write_bytes(uri: str, data: bytes, *, only_new: bool = False, fence: Holder | None = None) -> bool:
    """Write one file so that a reader sees either all of it or what was there before. Returns whether it was written.

    Args:
        uri: where.
        data: its content.
        only_new: write nothing where a file is already; of several processes that try at a time one succeeds.
        fence: of the job that writes it, which is asked at the last moment.

    Raises:
        LeaseLostError: another job writes there now.
        StorageError: it could not be written.

    """
    with storage_errors(uri):
        filesystem, path = open_filesystem(uri)
        if is_remote(uri):  # an object store shows an object only when it is whole
            if only_new:
                if fence:
                    fence.check()
                return create_object(filesystem, path, data)
            if fence:
                fence.check(SECONDS_BETWEEN_CHECKS)
                replace_object(filesystem, path, data, fence.check)
            else:
                filesystem.pipe_file(path, data)
            return True
        with temporary_file(path, fence) as temporary:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if fence:
                fence.check()
            if only_new:
                return create_file(temporary, path)
            os.replace(temporary, path)
            return True


def read_tag(uri: str) -> str:
    """An object store's tag of the content at `uri`; "" where it has none."""
    with storage_errors(uri):
        filesystem, path = open_filesystem(uri)
        return str(filesystem.info(path).get("ETag") or "")


def replace_seen(uri: str, data: bytes, tag: str) -> None:
    """Write an object whose tag was `tag`; nothing where another is there by now."""
    with storage_errors(uri):
        filesystem, path = open_filesystem(uri)
        replace_object_seen(filesystem, path, data, tag)


@contextlib.contextmanager
def temporary_file(path: str, fence: Holder | None) -> Iterator[str]:
    """Yield a free name for what becomes the local file `path`; nothing is left under it afterwards.

    Raises LeaseLostError instead of FileNotFoundError where the job that has taken over has removed it.
    """
    temporary = ""
    try:
        temporary = temporary_path(path, fence)
        yield temporary
    except FileNotFoundError:
        if fence:
            fence.check()
        raise
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def temporary_path(path: str, fence: Holder | None) -> str:
    """A free name for what becomes the local file `path`: on its disk, and where the job keeps such files."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    if fence and not is_remote(fence.output):
        own = os.path.join(fence.output, fence.folder)
        os.makedirs(own, exist_ok=True)
        if os.stat(own).st_dev == os.stat(folder).st_dev:
            folder = own
    # The name stays short: the target's own may be as long as the file system allows.
    return os.path.join(folder, f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")


def read_json(uri: str) -> Any:
    """The JSON document at `uri`. Raises DamagedFileError if it is not one."""
    return parse_json(_read_document(uri), uri)


def read_json_object(uri: str) -> dict[str, Any]:
    """As `read_json`, of an object. Raises DamagedFileError if the document is anything else."""
    return parse_json_object(_read_document(uri), uri)


def _read_document(uri: str) -> bytes:
    try:
        return read_bytes(uri, MAX_JSON_BYTES)
    except BadInputError as error:
        reason = f"of more than {MAX_JSON_BYTES} bytes" if error.kind == "FileTooLarge" else f"is in {error}"
        raise DamagedFileError(f"{uri}: no JSON document {reason}") from None


def write_json(uri: str, document: Any, fence: Holder | None = None) -> None:
    """Publish `document` as indented JSON; numbers that are not finite become null."""
    write_bytes(uri, (to_json(document, indent=2) + "\n").encode(), fence=fence)


def write_table(
    uri: str,
    table: pa.Table,
    row_group_size: int | None = None,
    compression: str = "NONE",
    *,
    only_new: bool = False,
    fence: Holder | None = None,
) -> bool:
    """Publish one Parquet file, as `write_bytes` does. Images are compressed already, so by default nothing is."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=row_group_size, compression=compression, use_dictionary=False)
    return write_bytes(uri, sink.getvalue().to_pybytes(), only_new=only_new, fence=fence)


def remove(uri: str) -> None:
    """Delete a file or a whole folder; nothing there is fine."""
    with storage_errors(uri):
        filesystem, path = open_filesystem(uri)
        if is_remote(uri):
            path = glob.escape(path)  # these file systems would take `*` and `[` in a name for a pattern
        with contextlib.suppress(FileNotFoundError):
            filesystem.rm(path, recursive=True)


def remove_file(uri: str) -> None:
    """Delete exactly one file, whatever characters its name has; none there is fine."""
    with storage_errors(uri):
        filesystem, path = open_filesystem(uri)
        with contextlib.suppress(FileNotFoundError):
            filesystem.rm_file(path)


def remove_files(uris: Iterable[str], fence: Holder, remove_one: Callable[[str], None] = remove_file) -> None:
    """Remove several, a few at a time; `remove_one` removes one.

    There may be many, and another job may take over meanwhile: each is removed only while the lease is held. Raises
    LeaseLostError.
    """

    def remove_held(uri: str) -> None:
        fence.check(SECONDS_BETWEEN_CHECKS)
        remove_one(uri)

    with ThreadPoolExecutor(_REMOVERS) as pool:
        list(pool.map(remove_held, uris))


def list_names(uri: str) -> list[str]:
    """Sorted names directly below a folder; empty where there is none."""
    with storage_errors(uri):
        filesystem, path = open_filesystem(uri)
        try:
            entries = filesystem.ls(path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry.rstrip("/") != path)
        return [name for name in names if name and not name.startswith(TEMPORARY_PREFIX)]


def list_files(uri: str, suffixes: Sequence[str] = ()) -> Iterator[FileInfo]:
    """Yield the files below `uri` folder by folder, sorted within each, without those that `is_hidden`.

    `suffixes` are lower-case endings such as `.jpg`; none means every file. An address of one file yields that file.
    On a local disk links are followed: to files, and to folders outside of `uri`, each of which is listed once.
    """
    with storage_errors(uri):
        filesystem, root = open_filesystem(uri)
        scheme = uri.split("://", 1)[0] + "://" if "://" in uri else ""
        if filesystem.isfile(root):
            name = root.rsplit("/", 1)[-1]
            yield _file(name, uri, filesystem.info(root))
            return
        for whole, details in walk_files(filesystem, root, None if is_remote(uri) else {os.path.realpath(root)}):
            if not suffixes or whole.lower().endswith(tuple(suffixes)):
                yield _file(whole[len(root.rstrip("/")) + 1 :], scheme + whole, details)


def require_readable(uri: str, field: str) -> None:
    """Raise ConfigError about `field` unless something can be read at `uri`. Answers in seconds."""
    try:
        with storage_errors(uri):
            filesystem, path = open_filesystem(uri, _PREFLIGHT_ATTEMPTS)
            if filesystem.exists(path):
                return
            if is_remote(uri):
                filesystem.ls(path)  # raises where access is denied
    except NotFoundError as error:
        bucket = path.split("/", 1)[0]
        if urlsplit(uri).scheme in _BUCKET_SCHEMES and bucket != path and not filesystem.exists(bucket):
            raise ConfigError(field, f"{uri}: there is no bucket {bucket!r}") from None
        raise ConfigError(field, str(error)) from None
    except StorageError as error:
        raise ConfigError(field, str(error)) from None
    hint = "; patterns are not followed: give one folder or file" if _PATTERN.search(uri) else ""
    raise ConfigError(field, f"{uri}: nothing is there{hint}")


def require_writable(uri: str, field: str) -> None:
    """Raise ConfigError about `field` unless `uri` can be written below. Takes seconds, leaves no new folder."""
    probe = join(uri, f"{TEMPORARY_PREFIX}probe-{uuid.uuid4().hex}")
    try:
        with storage_errors(uri):
            filesystem, path = open_filesystem(probe, _PREFLIGHT_ATTEMPTS)
            if is_remote(uri):
                filesystem.pipe_file(path, b"")
                filesystem.rm_file(path)
            else:
                folder = os.path.dirname(path)
                is_new = not os.path.exists(folder)
                write_bytes(probe, b"")
                remove(probe)
                if is_new:
                    with contextlib.suppress(OSError):
                        os.rmdir(folder)
    except StorageError as error:
        raise ConfigError(field, str(error).replace(probe, uri)) from None
