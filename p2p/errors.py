"""Every error p2p raises on purpose, and what is taken out of texts before a person sees them.

P2PError                          exit status 1
├── UsageError                    exit status 2: wrong options, found before any work starts
│   └── ConfigError               one field of a configuration
│       └── OutputInUseError      another job writes the output
├── StorageError                  a file system, bucket or disk refused
│   ├── NotFoundError             nothing lies at that address
│   ├── DamagedFileError          a file is not what was written there
│   │   ├── LongTextError         it holds longer text than an id or a name is
│   │   └── UnsafeFileError       reading it could run code that its author chose
│   ├── RefusedError              this one file or object is denied, a folder, …; its neighbours may be fine
│   └── CredentialsError          the credentials are missing, wrong or expired: nothing can be read or written
├── CheckpointError               a checkpoint cannot be read, or is of another kind
├── BadInputError                 one input of many is bad; becomes a row in `errors/` or `ledger/`
├── TaskFailedError               a task cannot be done where it runs: its processes end at no input, or memory or open
│                                 files run out
├── LeaseLostError                another job has taken over the output
├── ChildEndedError               a child process has ended before its work
├── TrainingStoppedError          training cannot go on (numbers no longer finite, too many lost workers)
└── NotGoodEnoughError            exit status 3: the work is done, but a gate is not passed
    └── TooManyBadInputsError     … but more inputs were bad than allowed
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

_USER_INFO = re.compile(r"(?<=://)[^/?#\s]+@")
# The name of a parameter of an address: of its query, its fragment, or its path (`/a;token=b`).
_PARAMETER = re.compile(r"(?:[?&][^=?&;#\s]++|[;#][^=?&;#\s/]++)=")
_VALUE = re.compile(r"[^&\s\"<>]*+")  # what an address cannot hold ends it
_PLAIN_VALUE = re.compile(r"[^&;?#\s\"<>]*+")
_SECRET_PARAMETER = re.compile(
    r"token|key|secret|sig|auth|pass|pwd|jwt|policy|credential|bearer|hmac|^(?:x-amz-|x-goog-|expires$|hdn|__gda|verify$)"
)
_ORDINARY_WORDS = re.compile(r"author(?!i[sz])|keyword|keyboard|monkey|sigma|signal|design|insight|passenger|compass")
"""They hold one of those, and are no secrets: an address with `?author=` must be usable."""
_SECRET_VARIABLE = re.compile(
    r"(?:SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CONNECTION_STRING"
    r"|(?:ACCESS|ACCOUNT|API|AUTH|ENCRYPTION|MASTER|PRIVATE|SECRET|SIGNING|STORAGE)_?KEY(?:_ID)?)$",
    re.IGNORECASE,
)
"""At the end of a name: RAY_AUTH_TOKEN is a secret, RAY_AUTH_TOKEN_PATH and TOKENIZERS_PARALLELISM are not."""
_MIN_SECRET_LENGTH = 6
# Of what a terminal obeys and does not show: control characters, line ends, reversed text, and halves of characters.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def redact(text: str) -> str:
    """Return `text` without passwords in addresses, signed queries, or keys that stand in the environment."""
    if "://" in text:
        text = _USER_INFO.sub("***@", text)
    if "=" in text:
        text = _mask_parameters(text)
    for secret in _secrets_of_the_environment():
        text = text.replace(secret, "***")
    return text


def _mask_parameters(text: str) -> str:
    parts, end = [], 0
    for match in _PARAMETER.finditer(text):
        if match.start() < end:  # within a value that is masked
            continue
        if _is_secret(match[0]) or _holds_secret_address(_matched(_PLAIN_VALUE, text, match.end())):
            value = _matched(_VALUE, text, match.end())
            parts += [text[end : match.end()], "***" if value else ""]
            end = match.end() + len(value)
    return "".join(parts) + text[end:]


def _is_secret(parameter: str) -> bool:
    name = unquote(unquote(parameter[1:-1])).lower()  # within an address that is a value, encoded again
    return _SECRET_PARAMETER.search(_ORDINARY_WORDS.sub("", name)) is not None


def _holds_secret_address(value: str) -> bool:
    """Whether a parameter's value is itself an address with a secret, encoded: `?url=https%3A%2F%2Fh%3Fkey%3D1`."""
    if "%" not in value:
        return False
    inner = unquote(value)
    return _USER_INFO.search(inner) is not None or any(_is_secret(match[0]) for match in _PARAMETER.finditer(inner))


def _matched(pattern: re.Pattern[str], text: str, start: int) -> str:
    match = pattern.match(text, start)
    return match[0] if match else ""


def _secrets_of_the_environment() -> list[str]:
    """Longest first: one may be part of another."""
    values = (os.environ.get(name, "") for name in os.environ if _is_secret_variable(name))
    return sorted((value for value in values if len(value) >= _MIN_SECRET_LENGTH), key=len, reverse=True)


@functools.cache
def _is_secret_variable(name: str) -> bool:
    return _SECRET_VARIABLE.search(name) is not None


def quote_controls(text: str, keep: str = "") -> str:
    r"""Return `text` with each character that a terminal would obey written like `\x1b`, but for those in `keep`."""
    return _CONTROL.sub(
        lambda match: match[0] if match[0] in keep else match[0].encode("unicode_escape").decode(), text
    )


class P2PError(Exception):
    """An error whose message, of one line, is meant for the user."""

    exit_status = 1
    retryable = False
    """Whether trying again a while later may help."""
    is_final = False
    """Whether the same command would end in the same way, on other machines too."""
    summary: Mapping[str, Any] | None = None
    """What `summary.json` says, where the job got so far."""

    def __init__(self, message: str) -> None:
        self.message = redact(message)
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message  # not `args`, to which Ray Data appends advice of its own


class UsageError(P2PError):
    """A wrong option or configuration, found before any work started."""

    exit_status = 2
    is_final = True


class ConfigError(UsageError):
    """A field of a configuration has a value that cannot be. The command line names the option instead of the field.

    >>> raise ConfigError("tile_size", "300: must be a multiple of 256")
    Traceback (most recent call last):
    p2p.errors.ConfigError: tile_size 300: must be a multiple of 256
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field, self.problem = field, problem

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, str]]:
        return type(self), (self.field, self.problem)


class OutputInUseError(ConfigError):
    """Another job writes the output."""

    is_final = False


class StorageError(P2PError):
    """A file system, bucket or disk refused."""

    retryable = True


class NotFoundError(StorageError):
    """Nothing lies at that address."""

    retryable = False


class DamagedFileError(StorageError):
    """A file is not what was written there. `kind` is its name in a ledger."""

    retryable = False
    kind = "DamagedFile"


class LongTextError(DamagedFileError):
    """A column of short text, such as ids, holds a value that is longer."""


class UnsafeFileError(DamagedFileError):
    """Reading a file could run code that its author chose."""

    kind = "UnsafeFile"


class RefusedError(StorageError):
    """One file or object cannot be had, however often it is asked for; what lies beside it may be fine."""

    retryable = False


class CredentialsError(StorageError):
    """The credentials themselves are missing, wrong or expired."""

    retryable = False


class CheckpointError(P2PError):
    """A checkpoint cannot be read, or belongs to another kind of network."""


class BadInputError(P2PError):
    """One input of many is bad. `kind` is a stable CamelCase name, the message is for a person."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[BadInputError], tuple[str, str]]:
        return type(self), (self.kind, str(self))


class TaskFailedError(P2PError):
    """A task's processes end again and again at no input in particular, or memory or open files run out."""


class LeaseLostError(P2PError):
    """Another job has taken over the output that this one was writing."""


class ChildEndedError(P2PError):
    """A child process ended before its work. `started` says whether it had begun to work at all."""

    def __init__(self, reason: str, started: bool = True) -> None:
        super().__init__(reason)
        self.started = started

    def __reduce__(self) -> tuple[type[ChildEndedError], tuple[str, bool]]:
        return type(self), (str(self), self.started)


class TrainingStoppedError(P2PError):
    """Training cannot go on; what was saved before is intact. `finding`, if any, is for the report."""

    def __init__(self, message: str, finding: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.finding = finding
        self.is_final = finding is not None

    def __reduce__(self) -> tuple[type[TrainingStoppedError], tuple[str, Mapping[str, Any] | None]]:
        return type(self), (str(self), self.finding)


class NotGoodEnoughError(P2PError):
    """The work is done and `summary` written, but it is not what the user asked for."""

    exit_status = 3
    is_final = True

    def __init__(self, message: str, summary: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.summary = dict(summary)

    def __reduce__(self) -> tuple[type[NotGoodEnoughError], tuple[str, Mapping[str, Any] | None]]:
        return type(self), (str(self), self.summary)


class TooManyBadInputsError(NotGoodEnoughError):
    """More inputs were bad than the user allows."""


def root_cause(error: BaseException) -> BaseException:
    """The error that a person can use, below the wrappers that Ray puts around what a worker raised."""
    wrapped = list(_causes(error))
    for current in wrapped:
        # Ray's error for a task that raised a P2PError is also an instance of it, with a traceback for a message.
        if isinstance(current, P2PError) and not isinstance(getattr(current, "cause", None), P2PError):
            return current
    if any(isinstance(current, MemoryError) for current in wrapped):
        return P2PError("out of memory; use machines with more of it for each CPU, or smaller images")
    return error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and all that it wraps, nearest first."""
    seen: set[int] = set()
    queue: list[BaseException] = [error]
    while queue:
        current = queue.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        failures = getattr(current, "worker_failures", None)
        inner = list(failures.values()) if isinstance(failures, dict) else []
        inner += [getattr(current, "cause", None), current.__cause__, current.__context__]
        queue += [candidate for candidate in inner if isinstance(candidate, BaseException)]


def check_bad_fraction(bad: int, total: int, allowed: float, where: str, summary: Mapping[str, Any]) -> None:
    """Raise `TooManyBadInputsError` if more than the share `allowed` (0..1) of `total` inputs were bad."""
    if total and bad / total > allowed:
        raise TooManyBadInputsError(
            f"{bad} of {total} inputs were bad, more than --max-bad-fraction {allowed:g} allows; "
            f"each is listed with its reason in {where}",
            summary,
        )
