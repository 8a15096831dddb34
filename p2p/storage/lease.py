"""One writer for each output: `OUTPUT/lease.json` says which job writes there, and a second one is refused.

A job that has not renewed its lease for a minute has died or is cut off. The next one takes over with a higher attempt
number, and whatever the older one still wants to publish is refused: it finds that the lease is no longer its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import math
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from p2p.documents import build, to_json
from p2p.errors import (
    ConfigError,
    DamagedFileError,
    LeaseLostError,
    NotFoundError,
    OutputInUseError,
    P2PError,
    StorageError,
)
from p2p.storage.creation import log_missing_conditions
from p2p.storage.filesystems import (
    TEMPORARY_PREFIX,
    is_remote,
    join,
    read_bytes,
    read_json_object,
    read_tag,
    remove_file,
    replace_seen,
    write_bytes,
    write_json,
)
from p2p.storage.processes import is_stopped, running_system, start_time

log = logging.getLogger("p2p")

NAME = "lease.json"
_FOLDER_PREFIX = f"{TEMPORARY_PREFIX}attempt-"
RENEWAL_SECONDS = 5.0
EXPIRY_SECONDS = 60.0
"""After so long without a renewal nobody is writing any more."""
_WATCH_SECONDS = 12.0
"""A lease that is renewed within this time belongs to a job that lives, on whatever machine."""
_LONG_SECONDS = 600.0
"""After so long without a renewal, by whatever clock, its job is dead: clocks are not that far apart."""
_POLL_SECONDS = 0.5
_LOOKS = 3


@dataclass(frozen=True, kw_only=True)
class Lease:
    """Who writes an output: the content of its `lease.json`. Times are seconds since 1970 by that machine's clock, but
    `started` is always after that of the job that was taken over from.
    """

    job: str
    host: str
    pid: int
    attempt: int
    started: float
    renewed: float
    system: str = ""
    """Which running system `pid` belongs to, and when that process began there: hosts of one name may be several
    machines or containers, and ids are used again."""

    def is_older_than(self, other: Lease) -> bool:
        """Whether it was certainly taken before `other`: clocks differ, and attempts are counted anew once a job has
        removed its lease.
        """
        return self.started < other.started and self.attempt < other.attempt

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
    lost: LeaseLostError | None = field(default=None, init=False, compare=False)
    """What `check` has raised."""
    _checked: float = field(default=-math.inf, init=False, compare=False)

    def check(self, seconds: float = 0.0) -> None:
        """Raise LeaseLostError if another job has taken over. Called before anything is published.

        Does not look again where it has looked within so many `seconds`.
        """
        if time.monotonic() - self._checked < seconds:
            return
        silent = f"this job ({self.lease}) gave no sign of life for a while"
        try:
            found = self._look()
        except NotFoundError as error:
            self.lost = LeaseLostError(
                f"{error}: its lease is gone. Either {silent}, or the output lies on a disk that not all machines share"
            )
            raise self.lost from None
        if not found.is_same_as(self.lease) and not found.is_older_than(self.lease):
            self.lost = LeaseLostError(f"{self.output} is written by {found} now, since {silent}")
            raise self.lost
        self._checked = time.monotonic()

    def _look(self) -> Lease:
        for _ in range(_LOOKS - 1):
            # On network disks a file may be away, or be empty, at the moment in which another takes its place.
            with contextlib.suppress(StorageError):
                return _read(self.output)
            time.sleep(_POLL_SECONDS)
        return _read(self.output)

    @property
    def folder(self) -> str:
        """Where in the output, on a disk, this attempt keeps files that are not whole yet."""
        who = to_json(vars(dataclasses.replace(self.lease, renewed=0.0))).encode()
        return f"{_FOLDER_PREFIX}{self.lease.attempt}-{hashlib.blake2b(who, digest_size=4).hexdigest()}"

    def __reduce__(self) -> tuple[type[Fence], tuple[str, Lease]]:
        return Fence, (self.output, self.lease)  # another machine's clock began at another time


def read_lease(output: str) -> Lease | None:
    """The lease of `output`; None if nobody writes there. Raises StorageError, DamagedFileError for another file."""
    try:
        return _read(output)
    except NotFoundError:
        return None


def is_alive(lease: Lease) -> bool:
    """Whether the job that took `lease` still works, as far as can be told from here."""
    return time.time() - lease.renewed < EXPIRY_SECONDS and _is_running(lease) is not False


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
        OutputInUseError: another job writes there.
        ConfigError: what lies there as a lease is none.
        LeaseLostError: another job has taken over meanwhile, since this process stood still.

    """
    new_folders = [] if is_remote(output) else _missing_folders(output)
    try:
        lease = _acquire(output, field, job)
    except DamagedFileError as error:
        raise ConfigError(field, str(error)) from None
    fence, stop = Fence(output, lease), threading.Event()
    try:
        _remove_left(fence)
        with _interruptible(fence) as interrupt:
            words = (dataclasses.replace(fence), stop, interrupt)
            renewal = threading.Thread(target=_renew, args=words, name="lease", daemon=True)
            renewal.start()
            try:
                yield fence
                fence.check()
            except KeyboardInterrupt:
                if fence.lost:
                    raise fence.lost from None
                raise
            finally:
                stop.set()
                renewal.join()
    finally:
        if not is_remote(output):
            shutil.rmtree(join(output, fence.folder), ignore_errors=True)
        with contextlib.suppress(P2PError, MemoryError):
            if lease.is_same_as(read_lease(output)):
                remove_file(join(output, NAME))
                with contextlib.suppress(OSError):  # a job that was refused leaves no folder; one with files stays
                    for folder in new_folders:
                        os.rmdir(folder)


def _remove_left(fence: Fence) -> None:
    """Remove what older attempts had not finished writing. From now on they finish nothing of it: it is gone."""
    if is_remote(fence.output):
        return
    with contextlib.suppress(OSError):
        ours = os.stat(join(fence.output, NAME)).st_mtime
        for entry in os.scandir(fence.output):
            if entry.name.startswith(_FOLDER_PREFIX) and entry.name != fence.folder:
                shutil.rmtree(entry.path, ignore_errors=True)
            elif entry.name.startswith(TEMPORARY_PREFIX):
                with contextlib.suppress(OSError):  # a job that is being refused at this moment has such files too
                    if ours - entry.stat().st_mtime > EXPIRY_SECONDS:
                        os.unlink(entry.path)


def _missing_folders(path: str) -> list[str]:
    """`path` and the folders above it, as far as they do not exist."""
    return [] if not path or os.path.exists(path) else [path, *_missing_folders(os.path.dirname(path))]


@contextlib.contextmanager
def _interruptible(fence: Fence) -> Iterator[Callable[[LeaseLostError], bool]]:
    """Yield what interrupts the main thread, whatever it waits for, once the lease is lost. To be called until it says
    that the thread has noticed: a signal that comes just before a call that waits in the system is noticed after it.

    Elsewhere than in the main thread the block is left to its end, and what it publishes is refused.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda _: True
        return
    lost: LeaseLostError | None = None

    def notice(*_: object) -> None:
        if lost and not fence.lost:
            fence.lost = lost
            raise KeyboardInterrupt  # as Control-C: Ray passes on no other, and none that goes on after errors does

    def interrupt(error: LeaseLostError) -> bool:
        nonlocal lost
        lost = error
        if not fence.lost:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)
        return fence.lost is not None

    # Not SIGINT, which may be ignored (`job &` in a script) or blocked (drivers that Ray starts).
    before = signal.signal(signal.SIGUSR2, notice)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGUSR2, before)


def _renew(fence: Fence, stop: threading.Event, interrupt: Callable[[LeaseLostError], bool]) -> None:
    while not stop.wait(RENEWAL_SECONDS):
        try:
            _write_renewed(fence)
        except LeaseLostError as error:
            while not stop.is_set() and not interrupt(error):
                stop.wait(_POLL_SECONDS)
            return
        except (P2PError, MemoryError) as error:  # it may go better next time
            log.warning("the lease could not be renewed: %s", error)


def _write_renewed(fence: Fence) -> None:
    uri = join(fence.output, NAME)
    document = vars(dataclasses.replace(fence.lease, renewed=time.time()))
    if is_remote(uri):  # a request that arrives late, when another job has taken over, must change nothing
        fence.check()  # of a lease that is gone there is no tag
        tag = read_tag(uri)
        fence.check()
        replace_seen(uri, to_json(document, indent=2).encode(), tag)
    else:
        write_json(uri, document, fence)


def _acquire(output: str, field: str, job: str) -> Lease:
    attempt, system, began = 1, running_system(), start_time(os.getpid())
    claims: dict[bytes, float] = {}  # of others, and when they were first seen
    while True:
        now = time.time()
        mine = Lease(
            job=job,
            host=socket.gethostname(),
            pid=os.getpid(),
            attempt=attempt,
            started=now,
            renewed=now,
            system=f"{system} {began}" if system and began else "",
        )
        other = read_lease(output)  # first, since some stores let everybody create what is there already
        if other is None:
            attempt = 1
            if _create(join(output, NAME), mine) and _is_kept(output, mine):
                return mine
            time.sleep(_POLL_SECONDS)
            continue
        _wait_until_dead(output, other, field)
        attempt, now = other.attempt + 1, time.time()
        # Whatever clocks say, it starts after the other.
        mine = dataclasses.replace(mine, attempt=attempt, started=max(now, other.started + 1), renewed=now)
        claim = join(output, f"{TEMPORARY_PREFIX}lease-{attempt}-{int(other.started)}")
        if not _create(claim, mine):  # somebody else is taking over at this moment, or has died of it
            with contextlib.suppress(NotFoundError):
                if time.monotonic() - claims.setdefault(read_bytes(claim), time.monotonic()) > EXPIRY_SECONDS:
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


def _is_kept(output: str, mine: Lease) -> bool:
    """Whether a lease that was just created keeps others out, as far as the store lets it."""
    uri = join(output, NAME)
    if not is_remote(uri) or not _create(uri, dataclasses.replace(mine, renewed=mine.renewed + 1e-3)):
        return True
    log_missing_conditions(uri.partition("://")[0])
    time.sleep(_POLL_SECONDS)
    return mine.is_same_as(read_lease(output))


def _is_running(lease: Lease) -> bool | None:
    """Whether the process that took `lease` runs on this system; None where that cannot be told: it may be elsewhere,
    hidden, or stopped for good. None too for this process: the lease may be left of an earlier job in it.
    """
    system, _, began = lease.system.rpartition(" ")
    if not system or lease.host != socket.gethostname() or system != running_system():
        return None
    found = start_time(lease.pid)
    if found is None or found != began:
        return None if found is None else False
    return None if lease.pid == os.getpid() or is_stopped(lease.pid) else True


def _create(uri: str, lease: Lease) -> bool:
    return write_bytes(uri, to_json(vars(lease)).encode(), only_new=True)


def _wait_until_dead(output: str, other: Lease, field: str) -> None:
    """Return when the job of the lease `other` is dead; raise OutputInUseError when it lives."""
    started = time.monotonic()
    age = max(0.0, time.time() - other.renewed)
    is_running, has_clock = _is_running(other), other.system.rpartition(" ")[0] in ("", running_system())
    if is_running is False:
        return
    if is_running and age < 2 * RENEWAL_SECONDS:
        raise _in_use(output, other, field, age)
    said = False
    while True:
        found = read_lease(output)
        if found is None or not other.is_same_as(found):
            return
        if found.renewed != other.renewed:
            raise _in_use(output, other, field, 0.0)
        waited = time.monotonic() - started
        if waited >= _WATCH_SECONDS:
            # A clock elsewhere may be behind this one, so that the age is not known.
            if waited + (age if has_clock or age >= _LONG_SECONDS else 0.0) >= EXPIRY_SECONDS:
                return
            if not said:
                said = True
                log.info("%s: waiting for %s, which has given no sign of life for %d s", output, other, age + waited)
        time.sleep(_POLL_SECONDS)


def _in_use(output: str, other: Lease, field: str, age: float) -> OutputInUseError:
    since = f"{age:.0f} s" if age >= 1 else "a moment"
    problem = f"{other} writes there, with a sign of life {since} ago"
    return OutputInUseError(field, f"{output}: {problem}; wait until it has ended, or choose another folder")
