"""One writer for each output: `OUTPUT/lease.json` says which job writes there, and a second one is refused.

A job that has not renewed its lease for a minute has died or is cut off. The next one takes over with a higher attempt
number, and whatever the older one still wants to publish is refused: it finds that the lease is no longer its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from p2p.documents import build, to_json
from p2p.errors import ConfigError, DamagedFileError, LeaseLostError, NotFoundError, StorageError
from p2p.storage.filesystems import (
    TEMPORARY_PREFIX,
    is_remote,
    join,
    read_json_object,
    remove_file,
    write_bytes,
    write_json,
)

log = logging.getLogger("p2p")

NAME = "lease.json"
RENEWAL_SECONDS = 5.0
EXPIRY_SECONDS = 60.0
"""After so long without a renewal nobody is writing any more."""
_WATCH_SECONDS = 12.0
"""A lease of another machine that is renewed within this time belongs to a job that lives."""
_POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Lease:
    """Who writes an output: the content of its `lease.json`. Times are seconds since 1970 by that machine's clock."""

    job: str
    host: str
    pid: int
    attempt: int
    started: float
    renewed: float
    system: str = ""
    """Which running system `pid` belongs to: hosts of one name may be several machines or containers."""

    def is_newer_than(self, other: Lease) -> bool:
        """Whether it was taken after `other`, by a job that found that one dead."""
        return (self.attempt, self.started) > (other.attempt, other.started)

    def is_same_as(self, other: Lease | None) -> bool:
        """Whether both were written by one job."""
        return other is not None and dataclasses.replace(other, renewed=self.renewed) == self

    def __str__(self) -> str:
        return f"{self.job} on {self.host}, process {self.pid}, attempt {self.attempt}"


@dataclass
class Fence:
    """By which the processes of a job know that it still holds its output's lease. Can be pickled."""

    output: str
    lease: Lease
    _checked: float = field(default=-math.inf, init=False, compare=False)

    def check(self, seconds: float = 0.0) -> None:
        """Raise LeaseLostError if another job has taken over. Called before anything is published.

        Does not look again where it has looked within so many `seconds`.
        """
        if time.monotonic() - self._checked < seconds:
            return
        silent = f"this job ({self.lease}) gave no sign of life for a while"
        try:
            found = _read(self.output)
        except NotFoundError as error:
            raise LeaseLostError(f"{error}: its lease is gone, perhaps since {silent}") from None
        if found.is_newer_than(self.lease):
            raise LeaseLostError(f"{self.output} is written by {found} now, since {silent}")
        self._checked = time.monotonic()

    def __reduce__(self) -> tuple[type[Fence], tuple[str, Lease]]:
        return Fence, (self.output, self.lease)  # another machine's clock began at another time


def read_lease(output: str) -> Lease | None:
    """The lease of `output`; None if nobody writes there. Raises StorageError, DamagedFileError for another file."""
    try:
        return _read(output)
    except NotFoundError:
        return None


def _read(output: str) -> Lease:
    uri = join(output, NAME)
    try:
        return build(Lease, read_json_object(uri))
    except (DamagedFileError, ValueError) as error:
        raise DamagedFileError(f"{uri}: no lease ({error}); remove the file if no job writes there") from None


@contextlib.contextmanager
def hold_lease(output: str, field: str, job: str) -> Iterator[Fence]:
    """Hold the lease of `output` inside.

    Args:
        output: the folder or prefix that the job writes.
        field: of the configuration that names it, for messages.
        job: what writes there, such as "translate".

    Raises:
        ConfigError: another job writes there.
        LeaseLostError: another job has taken over meanwhile, since this process stood still.

    """
    is_new = not is_remote(output) and not os.path.exists(output)
    try:
        lease = _acquire(output, field, job)
    except DamagedFileError as error:
        raise ConfigError(field, str(error)) from None
    fence, stop = Fence(output, lease), threading.Event()
    try:
        with _interruptible(fence) as interrupt:
            renewal = threading.Thread(target=_renew, args=(fence, stop, interrupt), name="lease", daemon=True)
            renewal.start()
            try:
                yield fence
                fence.check()
            finally:
                stop.set()
                renewal.join()
    finally:
        with contextlib.suppress(StorageError):
            if lease.is_same_as(read_lease(output)):
                remove_file(join(output, NAME))
                if is_new:
                    with contextlib.suppress(OSError):  # a job that was refused leaves no folder; one with files stays
                        os.rmdir(output)


@contextlib.contextmanager
def _interruptible(fence: Fence) -> Iterator[Callable[[], None]]:
    """Yield what interrupts the main thread, whatever it waits for, with a LeaseLostError.

    Elsewhere than in the main thread the block is left to its end, and what it publishes is refused.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    # Not SIGINT, which may be ignored (`job &` in a script) or blocked (drivers that Ray starts).
    before = signal.signal(signal.SIGUSR2, lambda *_: fence.check())
    try:
        yield lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)


def _renew(fence: Fence, stop: threading.Event, interrupt: Callable[[], None]) -> None:
    while not stop.wait(RENEWAL_SECONDS):
        try:
            fence.check()
            write_json(join(fence.output, NAME), vars(dataclasses.replace(fence.lease, renewed=time.time())))
        except LeaseLostError:
            if not stop.is_set():
                interrupt()
            return
        except NotFoundError:  # its temporary file was swept up
            continue
        except StorageError as error:
            log.warning("the lease could not be renewed: %s", error)


def _acquire(output: str, field: str, job: str) -> Lease:
    attempt = 1
    while True:
        now = time.time()
        mine = Lease(
            job=job,
            host=socket.gethostname(),
            pid=os.getpid(),
            attempt=attempt,
            started=now,
            renewed=now,
            system=_running_system(),
        )
        if attempt == 1 and _create(join(output, NAME), mine):
            return mine
        other = read_lease(output)
        if other is None:
            attempt = 1
            continue
        _wait_until_dead(output, other, field)
        attempt = other.attempt + 1
        mine = dataclasses.replace(mine, attempt=attempt)
        claim = join(output, f"{TEMPORARY_PREFIX}lease-{attempt}-{int(other.started)}")
        if not _create(claim, mine):  # somebody else is taking over at this moment, or has died of it
            with contextlib.suppress(NotFoundError):
                if _age_of_claim(claim) > EXPIRY_SECONDS:
                    remove_file(claim)
            time.sleep(_POLL_SECONDS)
            continue
        try:
            if other.is_same_as(read_lease(output)):  # nobody was quicker
                log.warning("%s: taken over from %s, which gave no sign of life", output, other)
                write_json(join(output, NAME), vars(mine))
                return mine
        finally:
            remove_file(claim)


def _age_of_claim(uri: str) -> float:
    try:
        return time.time() - build(Lease, read_json_object(uri)).started
    except (DamagedFileError, ValueError):
        return math.inf


def _running_system() -> str:
    """The boot of this machine, and the namespace of its process ids. Empty where the system does not say."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _create(uri: str, lease: Lease) -> bool:
    return write_bytes(uri, to_json(vars(lease)).encode(), only_new=True)


def _wait_until_dead(output: str, other: Lease, field: str) -> None:
    """Return when nobody renews the lease `other` any more; raise ConfigError when somebody does."""
    started = time.monotonic()
    age = max(0.0, time.time() - other.renewed)
    same_system = other.host == socket.gethostname() and other.system and other.system == _running_system()
    if same_system and not _is_running(other.pid):
        return
    said = False
    while True:
        found = read_lease(output)
        if found is None or not other.is_same_as(found):
            return
        if found.renewed != other.renewed:
            raise ConfigError(
                field,
                f"{output}: {other} writes there, with a sign of life a moment ago; wait until it has ended, or choose "
                "another folder",
            )
        waited = time.monotonic() - started
        if waited >= _WATCH_SECONDS:
            if age + waited >= EXPIRY_SECONDS:
                return
            if not said:
                said = True
                log.info("%s: waiting for %s, which has given no sign of life for %d s", output, other, age + waited)
        time.sleep(_POLL_SECONDS)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
