"""One child process for the jobs of many tests, where each job would start its own."""

from __future__ import annotations

import os
import sys

from p2p.data.local import LocalWorker
from p2p.storage.child import ChildProcess


class KeptWorker(LocalWorker):
    """The child process of jobs without Ray, which goes on from one job to the next for as long as nothing that it
    starts with has changed and no job has ended it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._started_with: object = None

    def _start(self, attempts: int) -> ChildProcess:
        variables = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
        starts_with = (variables, os.getcwd(), sys.path[:], attempts)
        if starts_with != self._started_with:
            self.end()
        self._started_with = starts_with
        return super()._start(attempts)

    def close(self) -> None:
        if self._child is not None and self._child._process.poll() is not None:
            self.end()

    def end(self) -> None:
        super().close()
