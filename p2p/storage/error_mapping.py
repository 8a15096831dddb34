"""Whatever file systems raise -> one StorageError with the address and what to check.

But for accidents of this machine, whose memory or open files run out: no address is to blame for those.
"""

from __future__ import annotations

import contextlib
import errno
import resource
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from p2p.errors import CredentialsError, NotFoundError, P2PError, RefusedError, StorageError, TaskFailedError

LOCAL_SCHEMES = ("file://", "local://")
_S3 = ("s3://", "s3a://")
_GOOGLE = ("gs://", "gcs://")
_WEB = ("http://", "https://")
_STORAGE_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "s3fs", "gcsfs", "google", "fsspec", "pyarrow", "asyncio")


@dataclass(frozen=True)
class _Trouble:
    """What has happened, by the names that it goes by.

    Those are codes of S3's and STS's answers, names of exceptions (so that none of these libraries is imported before
    it is used), and numbers of the operating system's errors. A code alone tells: AWS answers a throttled request by
    400, as it does a malformed one.
    """

    names: frozenset[str | int]
    kind: type[StorageError]
    text: str
    """May hold `{name}`, one of those; `{said}` by the library; `{keys}`, `{place}` and `{disk}` of the address."""


_NO_BUCKET = "NoSuchBucket"
# The first that fits is taken. An answer to HEAD has no body, and then its status is the code: 400 of an expired token.
_TROUBLES = (
    _Trouble(frozenset([_NO_BUCKET]), NotFoundError, "there is no such bucket"),
    _Trouble(
        frozenset(
            [
                "RequestTimeout",
                "RequestTimeoutException",
                "PriorRequestNotComplete",
                "SlowDown",
                "Throttling",
                "ThrottlingException",
                "ThrottledException",
                "RequestThrottled",
                "RequestThrottledException",
                "RequestLimitExceeded",
                "BandwidthLimitExceeded",
                "TooManyRequestsException",
                "KMS.ThrottlingException",
                # What arrived is not what was sent.
                "IncompleteBody",
                "BadDigest",
                "XAmzContentSHA256Mismatch",
                "XAmzContentChecksumMismatch",
                "IDPCommunicationError",  # STS could not ask who has made a web identity token
            ]
        ),
        StorageError,
        "{said}",
    ),
    _Trouble(
        frozenset(
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
                "InvalidIdentityToken",
                "IDPRejectedClaim",
                "400",
                "NoCredentialsError",
                "PartialCredentialsError",
                "CredentialRetrievalError",
                "TokenRetrievalError",
                "SSOTokenLoadError",
                "UnauthorizedSSOTokenError",
                "NoAuthTokenError",
                "ProfileNotFound",
                "DefaultCredentialsError",
                "RefreshError",
            ]
        ),
        CredentialsError,
        "access denied; check {keys}: the credentials are missing, wrong or expired ({name})",
    ),
    _Trouble(
        frozenset(["InvalidObjectState"]),
        RefusedError,
        "is archived, and cannot be read before it is restored: aws s3api restore-object",
    ),
    _Trouble(
        frozenset(["MethodNotAllowed", "405"]),
        RefusedError,
        "its server does not take such requests there ({name}); check {place}",
    ),
    _Trouble(
        frozenset(["AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden", "403"]),
        RefusedError,
        "access denied; check {keys} and their rights",
    ),
    _Trouble(
        frozenset(["NotImplemented", "501"]),
        RefusedError,
        "the store does not know a feature of the request; if that is additional checksums, set "
        "AWS_REQUEST_CHECKSUM_CALCULATION=when_required and AWS_RESPONSE_CHECKSUM_VALIDATION=when_required",
    ),
    _Trouble(
        frozenset(
            [
                "EndpointConnectionError",
                "ConnectTimeoutError",
                "ProxyConnectionError",
                "ClientConnectorError",
                "ConnectionTimeoutError",
                "ConnectionRefusedError",
                "gaierror",
            ]
        ),
        StorageError,
        "its server cannot be reached; check {place} and the network",
    ),
    _Trouble(frozenset([errno.ENOSPC, errno.EDQUOT]), StorageError, "no space left {disk}"),
    _Trouble(
        frozenset([errno.EFBIG]),
        StorageError,
        "larger than a file may be there (ulimit -f, or the file system's own limit)",
    ),
    _Trouble(frozenset([errno.EROFS]), RefusedError, "cannot be written: the file system there is read-only"),
    _Trouble(
        frozenset([errno.ESTALE]),
        StorageError,
        "the file server has replaced or removed it while it was open (stale file handle); try again",
    ),
    _Trouble(frozenset([errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL]), RefusedError, "{said}"),
)
_WEB_DENIALS = {
    401: "the web server asks for a login (401), and p2p has none; copy what it holds to a bucket or a folder",
    403: "the web server does not let this machine read it (403); check the address with curl -I",
}
RETRYABLE_STATUSES = (408, 409, 425, 429)
"""Of the HTTP statuses 4xx, those after which trying again may help."""


@contextlib.contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Turn whatever a file system raises inside into a StorageError that names `uri`.

    Where this machine is the reason, it is a MemoryError, or a TaskFailedError if too many files are open.
    """
    outer = sys.exc_info()[1]
    try:
        yield
    except (P2PError, MemoryError):  # PyArrow has a MemoryError of its own
        raise
    except Exception as error:  # every file system has its own exceptions
        if isinstance(error, OSError) or type(error).__module__.split(".")[0] in _STORAGE_LIBRARIES:
            causes = _causes(error, outer)
            _raise_for_this_machine(causes, uri)
            raise _to_storage_error(causes, uri) from error
        raise


def _causes(error: BaseException, outer: BaseException | None) -> list[BaseException]:
    """`error` and those it was made of, which hold what libraries of file systems leave out.

    Not `outer`, which was being handled when the work began: Python makes it a context of all that is raised since.
    """
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current is not outer and current not in found:
        found.append(current)
        current = current.__cause__ or current.__context__
    return found


def _raise_for_this_machine(causes: Sequence[BaseException], uri: str) -> None:
    """Raise what ends the job if memory, or the number of open files, has run out: any input would have met that."""
    numbers = {cause.errno for cause in causes if isinstance(cause, OSError)}
    if errno.ENOMEM in numbers or any(isinstance(cause, MemoryError) for cause in causes):
        raise MemoryError(f"{uri}: out of memory") from causes[0]
    if errno.EMFILE in numbers:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        raise TaskFailedError(
            f"{uri}: this process has all the {limit} files and connections open that it may; raise that limit "
            "(ulimit -n) where the job, or the Ray cluster, is started"
        ) from causes[0]
    if errno.ENFILE in numbers:
        raise TaskFailedError(
            f"{uri}: this machine has all the files open that it may; end other programs there, or raise that limit "
            "(sysctl fs.file-max)"
        ) from causes[0]


def _to_storage_error(causes: Sequence[BaseException], uri: str) -> StorageError:
    error, codes = causes[0], _codes(causes)
    if isinstance(error, FileNotFoundError) and _NO_BUCKET not in codes:
        return NotFoundError(f"{uri}: nothing is there")
    if isinstance(error, IsADirectoryError):
        return RefusedError(f"{uri}: is a folder, not a file")
    if isinstance(error, (NotADirectoryError, FileExistsError)):
        return RefusedError(f"{uri}: a file lies where a folder is needed")
    if uri.startswith(_WEB) and getattr(error, "status", None) in _WEB_DENIALS:
        return RefusedError(f"{uri}: access denied; {_WEB_DENIALS[error.status]}")  # type: ignore[attr-defined]
    is_local = "://" not in uri or uri.startswith(LOCAL_SCHEMES)
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    names: set[str | int | None] = {*codes, *_type_names(causes), error.errno if isinstance(error, OSError) else None}
    for trouble in _TROUBLES:
        if found := sorted(map(str, trouble.names & names)):
            text = trouble.text.format(
                name=found[0],
                said=said,
                keys=_keys_of(uri),
                place="AWS_ENDPOINT_URL" if uri.startswith(_S3) else "the address",
                disk="on the disk" if is_local else _temporary_folder(),
            )
            return trouble.kind(f"{uri}: {text}")
    if isinstance(error, PermissionError) or _is_googles_denial(error, uri):
        what = "check its mode" if is_local else f"check {_keys_of(uri)} and their rights"
        return RefusedError(f"{uri}: access denied; {what}")
    return (RefusedError if _is_refusal(error) else StorageError)(f"{uri}: {said}")


def _temporary_folder() -> str:
    """Where files are put together before an upload: what a bucket's address has to do with a disk."""
    folder = f" {tempfile.tempdir}" if tempfile.tempdir else ""  # None until the process makes its first one
    return f"in this machine's folder for temporary files{folder} (TMPDIR)"


def _is_googles_denial(error: BaseException, uri: str) -> bool:
    """Whether it is the plain OSError that gcsfs makes of 401 and 403, which its first word alone tells."""
    words = ("Forbidden:", "Unauthorized")
    return uri.startswith(_GOOGLE) and isinstance(error, OSError) and str(error).startswith(words)


def _codes(causes: Sequence[BaseException]) -> set[str]:
    """The codes by which a server of S3's kind says what is wrong."""
    answers = (getattr(cause, "response", None) for cause in causes)
    details = (answer.get("Error") for answer in answers if isinstance(answer, dict))
    return {str(detail.get("Code")) for detail in details if isinstance(detail, dict)}


def _type_names(causes: Sequence[BaseException]) -> set[str]:
    return {kind.__name__ for cause in causes for kind in type(cause).__mro__}


def _keys_of(uri: str) -> str:
    """Where the credentials come from that are used for `uri`."""
    if uri.startswith(_S3):
        return "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
    if uri.startswith(_GOOGLE):
        return "Google's credentials (GOOGLE_APPLICATION_CREDENTIALS, or the service account of the machine)"
    return "the credentials in the environment"


def _is_refusal(error: BaseException) -> bool:
    """Whether a server has answered that it refuses this one request."""
    status = http_status(error)
    return status is not None and 400 <= status < 500 and status not in RETRYABLE_STATUSES


def http_status(error: BaseException) -> int | None:
    """The HTTP status behind what a file system raised, if a server answered."""
    answer = getattr(error.__cause__, "response", None)  # botocore's, below the OSError that s3fs makes of it
    metadata = answer.get("ResponseMetadata", {}) if isinstance(answer, dict) else {}
    # Of botocore, aiohttp and gcsfs.
    status = metadata.get("HTTPStatusCode") or getattr(error, "status", None) or getattr(error, "code", None)
    return status if isinstance(status, int) else None
