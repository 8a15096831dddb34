"""Whose an output folder is: a job writes into an empty one or one of its own kind, never over another's results."""

from __future__ import annotations

from typing import Literal

from p2p.errors import UsageError
from p2p.storage.filesystems import list_names, require_writable

Kind = Literal["a prepared data set", "a run", "an evaluation", "a translation", "a benchmark"]

_MARKS: dict[Kind, str] = {
    "a prepared data set": "dataset.json",
    "a run": "latest.json",
    "an evaluation": "metrics.json",
    "a translation": "settings.json",
    "a benchmark": "benchmark.json",
}
"""The file by which each kind of output is known: no two kinds share it."""


def require_output(uri: str, option: str, kind: Kind) -> None:
    """Raise UsageError, naming `option`, unless `uri` can be written to and holds no other job's results.

    `kind` is what the job makes. Several share names such as summary.json and report.html.
    """
    require_writable(uri, option)
    names = set(list_names(uri))
    for other, mark in _MARKS.items():
        if other != kind and mark in names:
            raise UsageError(f"{option} {uri} holds {other} ({mark}), which would be lost; choose another folder")
