"""Which job an output folder belongs to: none writes over the results of another."""

from __future__ import annotations

import os
from typing import Literal

from p2p.errors import ConfigError
from p2p.storage.filesystems import absolute, is_remote, list_names, require_writable

OutputKind = Literal["a prepared data set", "a run", "an evaluation", "a comparison", "a translation", "a benchmark"]

_MARKS: dict[OutputKind, str] = {
    "a prepared data set": "dataset.json",
    "a run": "latest.json",
    "an evaluation": "metrics.json",
    "a comparison": "comparison.json",
    "a translation": "settings.json",
    "a benchmark": "benchmark.json",
}
"""The file that only this kind of output has."""
_SAME_SCHEMES = {"s3a": "s3", "gcs": "gs"}


def is_within(uri: str, folder: str) -> bool:
    """Whether `uri` is `folder` or lies below it, whatever links lead there and whichever scheme names the store."""
    return f"{_real_place(uri)}/".startswith(f"{_real_place(folder)}/")


def _real_place(uri: str) -> str:
    if not is_remote(uri):
        return os.path.realpath(absolute(uri)).rstrip("/")
    scheme, _, path = uri.partition("://")
    return f"{_SAME_SCHEMES.get(scheme, scheme)}://{path.rstrip('/')}"


def require_output(uri: str, field: str, kind: OutputKind) -> None:
    """Raise ConfigError about `field` unless `uri` can be written to and holds no other job's results.

    `kind` is what the job makes. Several share names such as summary.json and report.html.
    """
    require_writable(uri, field)
    names = set(list_names(uri))
    for other, mark in _MARKS.items():
        if other != kind and mark in names:
            raise ConfigError(field, f"{uri} holds {other} ({mark}), which would be lost; choose another folder")
