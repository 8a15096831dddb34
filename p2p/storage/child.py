"""Another Python process that makes calls for this one, which goes on where that one crashes or hangs."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, TypeVar

from p2p.errors import ChildEndedError, P2PError

Item = TypeVar("Item")
_ITEM, _ERROR, _DONE = "item", "error", "done"
_PR_SET_PDEATHSIG = 1
_SECONDS_TO_END = 5.0


class _NoAnswerError(Exception):
    """What came from a child process is no answer of its `main`."""


class ChildProcess:
    """Is started at once (not forked), imports only what its calls need, and ends with the block or with this process.

    environment: variables that it has beside those of this process.

    >>> with ChildProcess() as child:
    ...     list(child.run(range, 3))
    [0, 1, 2]
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        path = os.pathsep.join(filter(None, sys.path))
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # what its libraries print, and where it was when it crashed
        self._process = subprocess.Popen(
            [sys.executable, "-m", "p2p.storage.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **(environment or {}), "PYTHONPATH": path},
        )
        self._started = False

    def run(self, work: Callable[..., Iterable[Item]], *args: Any, seconds: float | None = None) -> Iterator[Item]:
        """Yield what `work(*args)` yields there, as it comes. One call at a time.

        Args:
            work: a module's function. What it yields is pickled.
            args: likewise.
            seconds: the process is killed when the call has taken that long. None: never.

        Raises:
            ChildEndedError: the process has ended before the call did; no other call can be made.
            Exception: what `work` raises.

        """
        assert self._process.stdin is not None and self._process.stdout is not None
        timer = threading.Timer(seconds, self._process.kill) if seconds is not None else None
        if timer:
            timer.daemon = True
            timer.start()
        done = False
        try:
            pickle.dump((work, args), self._process.stdin)
            self._process.stdin.flush()
            while True:
                kind, value = self._read()
                self._started = True
                if kind == _ITEM:
                    yield value
                    continue
                done = True
                if kind == _ERROR:
                    raise value
                return
        except (_NoAnswerError, BrokenPipeError):
            done = True
            raise ChildEndedError(self._how_it_ended(), self._started) from None
        finally:
            if timer:
                timer.cancel()
            if not done:  # nobody reads the rest
                self.close()

    def _read(self) -> tuple[str, Any]:
        assert self._process.stdout is not None
        try:
            kind, value = pickle.load(self._process.stdout)  # written by `main` below
        except P2PError:  # raised by a signal's handler
            raise
        except Exception as error:  # it has ended, or something else has written there
            raise _NoAnswerError from error
        return kind, value

    def _how_it_ended(self) -> str:
        try:
            status = self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        self._log.seek(0)
        printed = self._log.read().decode(errors="replace").strip()
        return f"a process ended {how}" + (f": {printed.partition(chr(10))[0]}" if printed else "")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._log):
            with contextlib.suppress(OSError):  # what was written to a pipe and never read
                if file is not None:
                    file.close()

    def __enter__(self) -> ChildProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _end_with_parent() -> None:
    """A parent that is killed leaves no process behind. Linux only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _portable(error: Exception) -> Exception:
    """The same error, with its traceback as a note; where it cannot be pickled, one that says as much."""
    text = traceback.format_exc()
    if not isinstance(error, P2PError):
        error.add_note(text)
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(text)
    return error


def main() -> None:
    """The process: calls come in on stdin, what they yield or raise goes out on stdout."""
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Control-C to both; the parent ends this one
    faulthandler.enable()
    logging.getLogger("p2p").addHandler(logging.NullHandler())  # what a person must know goes out as an item
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # whatever a library prints is no answer

        def send(kind: str, value: Any = None) -> None:
            data = pickle.dumps((kind, value))
            answers.write(data)
            answers.flush()

        while True:
            try:
                work, args = pickle.load(sys.stdin.buffer)  # from the process that started this one
            except EOFError:
                return
            try:
                for item in work(*args):
                    send(_ITEM, item)
            except BrokenPipeError:
                return
            except Exception as error:
                send(_ERROR, _portable(error))
            else:
                send(_DONE)


if __name__ == "__main__":
    main()
