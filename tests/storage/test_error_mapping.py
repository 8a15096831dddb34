"""What file systems raise is classified by types and codes, never by words: an address may hold any word."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import resource
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import botocore.exceptions
import pyarrow as pa
import pytest
from botocore.retries.standard import ThrottledRetryableChecker, TransientRetryableChecker
from s3fs.errors import translate_boto_error

from p2p.errors import CredentialsError, NotFoundError, RefusedError, StorageError, TaskFailedError
from p2p.preparation.locations import open_zip
from p2p.storage.error_mapping import storage_errors
from p2p.storage.filesystems import exists, read_bytes

WORDS = "InvalidToken/Forbidden/NoSuchBucket/ConnectTimeout/AccessDenied/Bad Request/ExpiredToken.png"


def answered(code: str, status: int, message: str = "") -> BaseException:
    """As s3fs raises it for an answer with this code."""
    answer: dict[str, Any] = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return translate_boto_error(botocore.exceptions.ClientError(answer, "GetObject"))  # type: ignore[no-any-return]


def mapped(error: BaseException, uri: str = f"s3://bucket/{WORDS}") -> StorageError:
    with pytest.raises(StorageError) as found, storage_errors(uri):
        raise error
    assert str(found.value).startswith(f"{uri}: ")
    return found.value


@pytest.mark.parametrize(
    "code, status",
    [
        ("InvalidAccessKeyId", 403),
        ("SignatureDoesNotMatch", 403),
        ("ExpiredToken", 400),
        ("InvalidToken", 400),
        ("TokenRefreshRequired", 400),
        ("RequestTimeTooSkewed", 403),
        ("ExpiredTokenException", 400),
        ("InvalidIdentityToken", 400),
        ("IDPRejectedClaim", 403),
        ("400", 400),
    ],
)
def test_codes_of_wrong_credentials(code: str, status: int) -> None:
    error = mapped(answered(code, status))
    assert type(error) is CredentialsError and f"({code})" in str(error)


@pytest.mark.parametrize(
    "error",
    [
        botocore.exceptions.NoCredentialsError(),
        botocore.exceptions.PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"),
        botocore.exceptions.CredentialRetrievalError(provider="web-identity", error_msg="gone"),
        botocore.exceptions.ProfileNotFound(profile="p"),
        botocore.exceptions.NoAuthTokenError(),
    ],
)
def test_credentials_that_are_not_there(error: BaseException) -> None:
    assert type(mapped(error)) is CredentialsError


@pytest.mark.parametrize("code, status", [("AccessDenied", 403), ("403", 403), ("AllAccessDisabled", 403)])
def test_codes_of_a_denied_object(code: str, status: int) -> None:
    error = mapped(answered(code, status))
    assert type(error) is RefusedError and "access denied" in str(error) and not error.retryable


@pytest.mark.parametrize(
    "code, status, said",
    [
        ("InvalidObjectState", 403, "is archived, and cannot be read before it is restored"),
        ("MethodNotAllowed", 405, "does not take such requests there (MethodNotAllowed); check AWS_ENDPOINT_URL"),
        ("405", 405, "does not take such requests there (405); check AWS_ENDPOINT_URL"),
    ],
)
def test_codes_of_what_no_other_key_would_open(code: str, status: int, said: str) -> None:
    error = mapped(answered(code, status))
    assert type(error) is RefusedError and said in str(error) and "AWS_ACCESS_KEY_ID" not in str(error)


@pytest.mark.parametrize("code, status", [("NoSuchKey", 404), ("404", 404), ("NoSuchBucket", 404)])
def test_codes_of_what_is_not_there(code: str, status: int) -> None:
    assert type(mapped(answered(code, status))) is NotFoundError


@pytest.mark.parametrize(
    "code, status",
    [
        ("SlowDown", 503),
        ("InternalError", 500),
        ("RequestTimeout", 400),
        ("RequestTimeout", 408),  # of Ceph
        ("Throttling", 400),
        ("ThrottlingException", 400),
        ("KMS.ThrottlingException", 400),
        ("IncompleteBody", 400),
        ("BadDigest", 400),
        ("XAmzContentSHA256Mismatch", 400),
        ("XAmzContentChecksumMismatch", 400),
        ("IDPCommunicationError", 400),
        ("503", 503),
    ],
)
def test_codes_after_which_trying_again_may_help(code: str, status: int) -> None:
    error = mapped(answered(code, status, message="Forbidden InvalidToken AccessDenied"))
    assert type(error) is StorageError and error.retryable


def test_what_botocore_itself_would_try_again_may_help() -> None:
    of_other_services = {
        "EC2ThrottledException",
        "LimitExceededException",
        "ProvisionedThroughputExceededException",
        "TransactionInProgressException",
    }
    codes = {*TransientRetryableChecker._TRANSIENT_ERROR_CODES, *ThrottledRetryableChecker._THROTTLED_ERROR_CODES}
    assert [code for code in codes - of_other_services if not mapped(answered(code, 400)).retryable] == []


def test_a_store_without_additional_checksums_is_helped() -> None:
    error = mapped(answered("NotImplemented", 501, "A header implies functionality that is not implemented"))
    assert not error.retryable and "AWS_REQUEST_CHECKSUM_CALCULATION=when_required" in str(error)


@pytest.mark.parametrize(
    "error",
    [
        botocore.exceptions.EndpointConnectionError(endpoint_url="http://127.0.0.1:1"),
        botocore.exceptions.ConnectTimeoutError(endpoint_url="http://127.0.0.1:1"),
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        socket.gaierror(socket.EAI_NONAME, "no such host"),
    ],
)
def test_servers_that_cannot_be_reached(error: BaseException) -> None:
    found = mapped(error)
    assert type(found) is StorageError and found.retryable and "cannot be reached; check AWS_ENDPOINT_URL" in str(found)


@pytest.mark.parametrize(
    "error, kind",
    [
        (FileNotFoundError(errno.ENOENT, "gone"), NotFoundError),
        (PermissionError(errno.EACCES, "denied"), RefusedError),
        (PermissionError(errno.EPERM, "denied"), RefusedError),
        (IsADirectoryError(errno.EISDIR, "folder"), RefusedError),
        (NotADirectoryError(errno.ENOTDIR, "file"), RefusedError),
        (OSError(errno.ELOOP, "loop"), RefusedError),
        (OSError(errno.ENAMETOOLONG, "long"), RefusedError),
        (OSError(errno.ENOSPC, "full"), StorageError),
        (OSError(errno.EDQUOT, "quota"), StorageError),
        (OSError(errno.EIO, "bad block"), StorageError),
        (OSError(errno.EROFS, "read-only"), RefusedError),
        (OSError(errno.ESTALE, "stale handle"), StorageError),
        (TimeoutError(errno.ETIMEDOUT, "timed out"), StorageError),
    ],
)
def test_errors_of_a_disk_whatever_its_folders_are_called(error: OSError, kind: type[StorageError]) -> None:
    path = f"/data/{WORDS}"
    error.filename = path
    found = mapped(error, path)
    assert type(found) is kind and found.retryable == (kind is StorageError)
    assert "credentials" not in str(found).removeprefix(path) and "bucket" not in str(found).removeprefix(path)


def test_google_denies_by_a_plain_error() -> None:
    uri = "gs://bucket/Forbidden: x.png"
    assert type(mapped(OSError("Forbidden: https://storage.googleapis.com/…"), uri)) is RefusedError
    assert type(mapped(OSError("Reset by peer"), uri)) is StorageError


def test_a_full_disk_under_an_upload_is_this_machines() -> None:
    folder = tempfile.gettempdir()
    for uri, place in (("s3://bucket/x", f"folder for temporary files {folder} (TMPDIR)"), ("/data/x", "on the disk")):
        with (
            pytest.raises(StorageError) as found,
            storage_errors(uri),
            open("/dev/full", "wb", buffering=0) as full,
        ):
            full.write(b"x")
        assert str(found.value).startswith(f"{uri}: no space left ") and place in str(found.value)


def raised_around(inner: BaseException, make: Any) -> BaseException:
    """What `make` makes of `inner`, as a library raises it that has caught it."""
    try:
        try:
            raise inner
        except BaseException as caught:
            raise make(caught)  # noqa: B904 - as botocore does
    except BaseException as error:
        return error


def of_botocore(inner: BaseException) -> BaseException:
    return botocore.exceptions.HTTPClientError(error=inner)


def of_aiobotocore(inner: OSError) -> BaseException:
    """What becomes of an error at a connection's start."""
    key = aiohttp.client_reqrep.ConnectionKey("host", 443, True, None, None, None, None)

    def unreachable(error: BaseException) -> BaseException:
        return botocore.exceptions.EndpointConnectionError(endpoint_url="https://host", error=error)

    return raised_around(raised_around(inner, lambda error: aiohttp.ClientConnectorError(key, error)), unreachable)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        pa.ArrowMemoryError("malloc of size 64 failed"),
        raised_around(MemoryError(), of_botocore),
        OSError(errno.ENOMEM, "cannot allocate memory"),
        of_aiobotocore(OSError(errno.ENOMEM, "cannot allocate memory")),
    ],
    ids=repr,
)
def test_memory_that_runs_out_is_no_error_of_storage(error: BaseException) -> None:
    with pytest.raises(MemoryError), storage_errors("s3://bucket/x"):
        raise error


def test_what_happens_after_memory_has_run_out_is_told_as_it_is(tmp_path: Path) -> None:
    """Such as the removal of a lease, as a job ends."""
    try:
        raise MemoryError
    except MemoryError:
        with pytest.raises(NotFoundError):
            read_bytes(str(tmp_path / "gone"))


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """Inside, this process can open nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))  # the lowest number that is free is not allowed any more
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_files_that_run_out_are_no_errors_of_storage(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"a")
    assert exists(str(path)), "whatever is imported at the first use is"
    with pytest.raises(TaskFailedError, match=rf"{path}: .* all the [0-9]+ files .*\(ulimit -n\)"), no_more_files():
        read_bytes(str(path))
    assert read_bytes(str(path)) == b"a"


@pytest.mark.parametrize(
    "error, limit",
    [
        (of_aiobotocore(OSError(errno.EMFILE, "too many open files")), "ulimit -n"),
        (OSError(errno.ENFILE, "too many open files in system"), "fs.file-max"),
    ],
    ids=["connections", "machine"],
)
def test_the_limit_of_open_files_is_named(error: BaseException, limit: str) -> None:
    with pytest.raises(TaskFailedError, match=limit), storage_errors("s3://bucket/x"):
        raise error


def test_memory_that_runs_out_is_no_damage_of_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.png", bytes(100_000_000))

    class Full(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise MemoryError

    with pytest.raises(MemoryError):
        open_zip(Full((tmp_path / "a.zip").read_bytes()), "a.zip")
    code = """
import pathlib, resource, sys
from p2p.preparation.locations import SourceReader, ZipMember
now = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 50_000_000,) * 2)
try:
    SourceReader()(ZipMember(sys.argv[1], "1.png", 0))
except MemoryError:
    print("MemoryError")
"""
    run = [sys.executable, "-c", code, str(tmp_path / "a.zip")]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "MemoryError\n"
