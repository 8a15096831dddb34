"""Whatever file systems raise -> one StorageError with the address and what to check."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from p2p.errors import CredentialsError, NotFoundError, P2PError, RefusedError, StorageError

LOCAL_SCHEMES = ("file://", "local://")
_S3 = ("s3://", "s3a://")
_GOOGLE = ("gs://", "gcs://")
_WEB = ("http://", "https://")
_STORAGE_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "s3fs", "gcsfs", "fsspec", "pyarrow", "asyncio")
_CREDENTIAL_ERRORS = (
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "NoCredentials",
    "PartialCredentials",
    "Unable to locate credentials",
    "Bad Request",  # S3's only words for an expired token where an answer has no body
)
_DENIED = ("AccessDenied", "Forbidden")
_WEB_DENIALS = {
    401: "the web server asks for a login (401), and p2p has none; copy what it holds to a bucket or a folder",
    403: "the web server does not let this machine read it (403); check the address with curl -I",
}
RETRYABLE_STATUSES = (408, 409, 425, 429)
"""Of the HTTP statuses 4xx, those after which trying again may help."""
_UNREACHABLE = ("ConnectorError", "EndpointConnection", "ConnectTimeout", "ConnectionRefused", "NameResolution")


@contextlib.contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Turn whatever a file system raises inside into a StorageError that names `uri`."""
    try:
        yield
    except P2PError:
        raise
    except Exception as error:  # every file system has its own exceptions
        if isinstance(error, OSError) or type(error).__module__.split(".")[0] in _STORAGE_LIBRARIES:
            raise _to_storage_error(error, uri) from error
        raise


def _to_storage_error(error: BaseException, uri: str) -> StorageError:
    chain = f"{type(error).__name__}: {error} {error.__cause__ or ''}".replace(uri, "")  # names may hold any word
    if "NoSuchBucket" in chain or "bucket does not exist" in chain:
        return NotFoundError(f"{uri}: there is no such bucket")
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{uri}: nothing is there")
    if isinstance(error, IsADirectoryError):
        return RefusedError(f"{uri}: is a folder, not a file")
    if isinstance(error, (NotADirectoryError, FileExistsError)):
        return RefusedError(f"{uri}: a file lies where a folder is needed")
    if uri.startswith(_WEB) and getattr(error, "status", None) in _WEB_DENIALS:  # its words say nothing of keys
        return RefusedError(f"{uri}: access denied; {_WEB_DENIALS[error.status]}")  # type: ignore[attr-defined]
    refused = next((word for word in _CREDENTIAL_ERRORS if word in chain), None)
    if refused and not uri.startswith(_WEB):
        return CredentialsError(
            f"{uri}: access denied; check {_keys_of(uri)}: the credentials are missing, wrong or expired ({refused})"
        )
    if any(word in chain for word in _DENIED) or isinstance(error, PermissionError):
        is_local = "://" not in uri or uri.startswith(LOCAL_SCHEMES)
        what = "check its mode" if is_local else f"check {_keys_of(uri)} and their rights"
        return RefusedError(f"{uri}: access denied; {what}")
    if any(word in chain for word in _UNREACHABLE):
        what = "AWS_ENDPOINT_URL" if uri.startswith(_S3) else "the address"
        return StorageError(f"{uri}: its server cannot be reached; check {what} and the network")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"{uri}: no space left on the disk")
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return StorageError(f"{uri}: larger than a file may be there (ulimit -f, or the file system's own limit)")
    kind = RefusedError if _is_refusal(error) else StorageError
    return kind(f"{uri}: {type(error).__name__}: {' '.join(str(error).split())}")


def _keys_of(uri: str) -> str:
    """Where the credentials come from that are used for `uri`."""
    if uri.startswith(_S3):
        return "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
    if uri.startswith(_GOOGLE):
        return "Google's credentials (GOOGLE_APPLICATION_CREDENTIALS, or the service account of the machine)"
    return "the credentials in the environment"


def _is_refusal(error: BaseException) -> bool:
    """Whether a server, or the disk, has answered that it refuses this one request."""
    if isinstance(error, OSError) and error.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL):
        return True
    status = http_status(error)
    return status is not None and 400 <= status < 500 and status not in RETRYABLE_STATUSES


def http_status(error: BaseException) -> int | None:
    """The HTTP status behind what a file system raised, if a server answered."""
    answer = getattr(error.__cause__, "response", None)  # botocore's, below the OSError that s3fs makes of it
    metadata = answer.get("ResponseMetadata", {}) if isinstance(answer, dict) else {}
    status = metadata.get("HTTPStatusCode") or getattr(error, "status", None)  # aiohttp's
    return status if isinstance(status, int) else None
