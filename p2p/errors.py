"""Every error p2p raises on purpose, and the removal of secrets from what it says.

P2PError                 exit status 1
├── UsageError           exit status 2: wrong options, found before any work starts
├── StorageError         a file system, bucket or disk said no
│   ├── NotFound         nothing lies at that address
│   ├── Damaged          a file is not what was written there
│   │   └── UnsafeFileError   reading it could run code that its author chose
│   ├── Refused          this one file or object is denied, a folder, …; its neighbours may be fine
│   └── KeysRefused      the credentials are missing, wrong or expired: nothing at all can be read or written with them
├── CheckpointError      a checkpoint cannot be read, or is of another kind
├── BadInput             one input of many is bad; becomes a row in `errors/` or `ledger/`
├── TrainingStopped      training cannot go on (numbers no longer finite, too many lost workers)
└── TooManyBadInputs     exit status 3: the work is done, but more inputs were bad than allowed
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

_SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
)
_USER_INFO = re.compile(r"(?<=://)[^/@\s]+@")
_SIGNED_QUERY = re.compile(
    r"(?i)([?&](?:x-amz-[a-z-]+|x-goog-[a-z-]+|awsaccesskeyid|signature|sig|token|expires)=)[^&\s'\"]+"
)
_SHORTEST_SECRET = 6


def redact(text: str) -> str:
    """Return `text` without passwords in addresses, signed queries, or keys that stand in the environment."""
    text = _SIGNED_QUERY.sub(r"\1***", _USER_INFO.sub("***@", text))
    for name in _SECRET_VARIABLES:
        secret = os.environ.get(name, "")
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "***")
    return text


class P2PError(Exception):
    """Something went wrong in a way a person can be told about in one line."""

    exit_status = 1
    may_pass = False
    """Whether trying again a while later may help."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


class UsageError(P2PError):
    """A wrong option or configuration, found before any work started."""

    exit_status = 2


class StorageError(P2PError):
    """A file system, bucket or disk refused."""

    may_pass = True


class NotFound(StorageError):
    """Nothing lies at that address."""

    may_pass = False


class Damaged(StorageError):
    """A file is not what was written there. `kind` is its name in a ledger."""

    may_pass = False
    kind = "DamagedFile"


class UnsafeFileError(Damaged):
    """Reading a file could run code that its author chose."""

    kind = "UnsafeFile"


class Refused(StorageError):
    """One file or object cannot be had, however often it is asked for; what lies beside it may be fine."""

    may_pass = False


class KeysRefused(StorageError):
    """The credentials themselves are missing, wrong or expired."""

    may_pass = False


class CheckpointError(P2PError):
    """A checkpoint cannot be read, or belongs to another kind of network."""


class BadInput(P2PError):
    """One input of many is bad. `kind` is a stable CamelCase name, the message is for a person."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[BadInput], tuple[str, str]]:
        return type(self), (self.kind, str(self))


class TrainingStopped(P2PError):
    """Training cannot go on; what was saved before is intact. `finding`, if any, is what the report says about it."""

    def __init__(self, message: str, finding: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.finding = finding

    def __reduce__(self) -> tuple[type[TrainingStopped], tuple[str, Mapping[str, Any] | None]]:
        return type(self), (str(self), self.finding)


class TooManyBadInputs(P2PError):
    """The work is done and `summary` written, but more inputs were bad than the user allows."""

    exit_status = 3

    def __init__(self, message: str, summary: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.summary = dict(summary)

    def __reduce__(self) -> tuple[type[TooManyBadInputs], tuple[str, dict[str, Any]]]:
        return type(self), (str(self), self.summary)


def check_bad_fraction(bad: int, total: int, allowed: float, where: str, summary: Mapping[str, Any]) -> None:
    """Raise `TooManyBadInputs` if more than the share `allowed` (0..1) of `total` inputs were bad."""
    if total and bad / total > allowed:
        raise TooManyBadInputs(
            f"{bad} of {total} inputs were bad, more than --max-bad-fraction {allowed:g} allows; "
            f"each is listed with its reason in {where}",
            summary,
        )
