"""What file systems raise is classified by types and codes, never by words: an address may hold any word."""

from __future__ import annotations

import errno
import socket
from typing import Any

import botocore.exceptions
import pytest
from s3fs.errors import translate_boto_error

from p2p.errors import CredentialsError, NotFoundError, RefusedError, StorageError
from p2p.storage.error_mapping import storage_errors

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
    ],
)
def test_credentials_that_are_not_there(error: BaseException) -> None:
    assert type(mapped(error)) is CredentialsError


@pytest.mark.parametrize("code, status", [("AccessDenied", 403), ("403", 403), ("AllAccessDisabled", 403)])
def test_codes_of_a_denied_object(code: str, status: int) -> None:
    error = mapped(answered(code, status))
    assert type(error) is RefusedError and "access denied" in str(error) and not error.retryable


@pytest.mark.parametrize("code, status", [("NoSuchKey", 404), ("404", 404), ("NoSuchBucket", 404)])
def test_codes_of_what_is_not_there(code: str, status: int) -> None:
    assert type(mapped(answered(code, status))) is NotFoundError


@pytest.mark.parametrize(
    "code, status", [("SlowDown", 503), ("InternalError", 500), ("RequestTimeout", 408), ("503", 503)]
)
def test_codes_after_which_trying_again_may_help(code: str, status: int) -> None:
    error = mapped(answered(code, status, message="Forbidden InvalidToken AccessDenied"))
    assert type(error) is StorageError and error.retryable


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
        (OSError(errno.ESTALE, "stale handle"), StorageError),
        (TimeoutError(errno.ETIMEDOUT, "timed out"), StorageError),
    ],
)
def test_errors_of_a_disk_whatever_its_folders_are_called(error: OSError, kind: type[StorageError]) -> None:
    path = f"/data/{WORDS}"
    error.filename = path
    found = mapped(error, path)
    assert type(found) is kind
    assert "credentials" not in str(found).removeprefix(path) and "bucket" not in str(found).removeprefix(path)


def test_google_denies_by_a_plain_error() -> None:
    uri = "gs://bucket/Forbidden: x.png"
    assert type(mapped(OSError("Forbidden: https://storage.googleapis.com/…"), uri)) is RefusedError
    assert type(mapped(OSError("Reset by peer"), uri)) is StorageError


def test_memory_that_runs_out_is_no_error_of_storage() -> None:
    with pytest.raises(MemoryError), storage_errors("s3://bucket/x"):
        raise MemoryError
