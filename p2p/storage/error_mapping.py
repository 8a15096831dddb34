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
_STORAGE_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "s3fs", "gcsfs", "google", "fsspec", "pyarrow", "asyncio")
# Codes of S3's answers. An answer to HEAD has no body, and then its status is the code: 400 for an expired token.
_CREDENTIAL_CODES = frozenset(
    [
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidToken",
        "TokenRefreshRequired",
        "InvalidClientTokenId",
        "UnrecognizedClientException",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "InvalidSecurity",
        "400",
    ]
)
_DENIED_CODES = frozenset(["AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden", "403"])
_BUCKET_CODES = frozenset(("NoSuchBucket",))
_MISSING_FEATURE_CODES = frozenset(("NotImplemented", "501"))
# Names of exceptions, so that none of these libraries is imported before it is used.
_CREDENTIAL_TYPES = frozenset(
    [
        "NoCredentialsError",
        "PartialCredentialsError",
        "CredentialRetrievalError",
        "TokenRetrievalError",
        "SSOTokenLoadError",
        "UnauthorizedSSOTokenError",
        "DefaultCredentialsError",
        "RefreshError",
    ]
)
_UNREACHABLE_TYPES = frozenset(
    [
        "EndpointConnectionError",
        "ConnectTimeoutError",
        "ProxyConnectionError",
        "ClientConnectorError",
        "ConnectionTimeoutError",
        "ConnectionRefusedError",
        "gaierror",
    ]
)
_WEB_DENIALS = {
    401: "the web server asks for a login (401), and p2p has none; copy what it holds to a bucket or a folder",
    403: "the web server does not let this machine read it (403); check the address with curl -I",
}
RETRYABLE_STATUSES = (408, 409, 425, 429)
"""Of the HTTP statuses 4xx, those after which trying again may help."""


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
    codes, types = _codes(error), _type_names(error)
    if codes & _BUCKET_CODES:
        return NotFoundError(f"{uri}: there is no such bucket")
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{uri}: nothing is there")
    if isinstance(error, IsADirectoryError):
        return RefusedError(f"{uri}: is a folder, not a file")
    if isinstance(error, (NotADirectoryError, FileExistsError)):
        return RefusedError(f"{uri}: a file lies where a folder is needed")
    if uri.startswith(_WEB) and getattr(error, "status", None) in _WEB_DENIALS:
        return RefusedError(f"{uri}: access denied; {_WEB_DENIALS[error.status]}")  # type: ignore[attr-defined]
    if refused := sorted(codes & _CREDENTIAL_CODES | types & _CREDENTIAL_TYPES):
        return CredentialsError(
            f"{uri}: access denied; check {_keys_of(uri)}: the credentials are missing, wrong or expired ({refused[0]})"
        )
    if codes & _DENIED_CODES or isinstance(error, PermissionError) or _is_googles_denial(error, uri):
        is_local = "://" not in uri or uri.startswith(LOCAL_SCHEMES)
        what = "check its mode" if is_local else f"check {_keys_of(uri)} and their rights"
        return RefusedError(f"{uri}: access denied; {what}")
    if codes & _MISSING_FEATURE_CODES:
        return RefusedError(
            f"{uri}: the store does not know a feature of the request; if that is additional checksums, set "
            "AWS_REQUEST_CHECKSUM_CALCULATION=when_required and AWS_RESPONSE_CHECKSUM_VALIDATION=when_required"
        )
    if types & _UNREACHABLE_TYPES:
        what = "AWS_ENDPOINT_URL" if uri.startswith(_S3) else "the address"
        return StorageError(f"{uri}: its server cannot be reached; check {what} and the network")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"{uri}: no space left on the disk")
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return StorageError(f"{uri}: larger than a file may be there (ulimit -f, or the file system's own limit)")
    kind = RefusedError if _is_refusal(error) else StorageError
    return kind(f"{uri}: {type(error).__name__}: {' '.join(str(error).split())}")


def _is_googles_denial(error: BaseException, uri: str) -> bool:
    """Whether it is the plain OSError that gcsfs makes of 401 and 403, which its first word alone tells."""
    words = ("Forbidden:", "Unauthorized")
    return uri.startswith(_GOOGLE) and isinstance(error, OSError) and str(error).startswith(words)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """`error` and those it was made of, which hold what libraries of file systems leave out."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _codes(error: BaseException) -> set[str]:
    """The codes by which a server of S3's kind says what is wrong."""
    answers = (getattr(one, "response", None) for one in _chain(error))
    details = (answer.get("Error") for answer in answers if isinstance(answer, dict))
    return {str(detail.get("Code")) for detail in details if isinstance(detail, dict)}


def _type_names(error: BaseException) -> set[str]:
    return {kind.__name__ for one in _chain(error) for kind in type(one).__mro__}


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
    # Of botocore, aiohttp and gcsfs.
    status = metadata.get("HTTPStatusCode") or getattr(error, "status", None) or getattr(error, "code", None)
    return status if isinstance(status, int) else None
