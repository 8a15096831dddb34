"""Jobs that are killed between two changes of their output."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from p2p.storage.filesystems import TEMPORARY_PREFIX
from p2p.storage.lease import NAME


class _Killed(BaseException):
    """The process ends here."""


@contextlib.contextmanager
def killed_before(number: int, output: Path) -> Iterator[Callable[[], bool]]:
    """Inside, this process makes so many changes to the results in `output` and then ends, as far as the block is
    concerned. Yields what says whether it came to that.
    """
    changes, killed = itertools.count(), False
    replace, remove = os.replace, os.remove

    def count(file: str) -> None:
        nonlocal killed
        path = Path(file)
        if path.parent != output or path.name == NAME or path.name.startswith(TEMPORARY_PREFIX):
            return
        if next(changes) >= number:
            killed = True
            raise _Killed

    def counted_replace(source: str, target: str) -> None:
        count(target)
        replace(source, target)

    def counted_remove(file: str) -> None:
        count(file)
        remove(file)

    with (
        contextlib.suppress(_Killed),
        mock.patch.object(os, "replace", counted_replace),
        mock.patch.object(os, "remove", counted_remove),
    ):
        yield lambda: killed
