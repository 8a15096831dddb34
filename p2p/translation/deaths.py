"""Inputs that end the process which works on them: a crash in a decoder, a hang, more memory than there is.

No process can tell of its own end. So each shard has a note in the output while it is worked on. A process that finds
one left behind works through that shard image by image and notes each before it touches it and when it is through;
the image at which a process has ended twice becomes a failed row. Hangs become ends: decoding for too long ends the
process.
"""

from __future__ import annotations

import faulthandler
import signal
import sys
import threading
from dataclasses import dataclass, field
from typing import Any

from p2p.errors import Damaged, NotFound, P2PError
from p2p.storage.filesystems import join, read_json, remove_file, write_json
from p2p.translation.shards import shard_uri, shards_in

FOLDER = "attempts"
PROCESS_ENDED = "ProcessEnded"
"""Kind of a BadInput at which two processes have ended."""
DECODE_SECONDS = 120.0
"""No image takes that long: the largest one allowed is decoded in five seconds."""
_ENDS_OF_A_BAD_INPUT = 2
_UNEXPLAINED_ENDS = 5


@dataclass
class Note:
    """What is known of the earlier processes that worked on a shard."""

    uri: str
    watched: bool = False
    """Whether its images are gone through one by one, since an earlier process left a note. Before that nobody knows
    where it ended, nor whether it was in this shard at all."""
    unexplained: int = 0
    """Ends at no particular image while the shard was watched."""
    at: int | None = None
    """Position of the image in hand."""
    ends: dict[int, int] = field(default_factory=dict)
    """How often a process ended at a position."""

    def write(self) -> None:
        """Publish it."""
        known = {"watched": self.watched, "unexplained": self.unexplained, "at": self.at, "ends": self.ends}
        write_json(self.uri, known)

    def take_up(self, position: int | None) -> None:
        """The image at `position` is in hand from now on, or none: what is fetched or published is not its doing."""
        if self.at != position:
            self.at = position
            self.write()

    def is_bad(self, position: int) -> bool:
        """Whether the image at `position` must not be touched again."""
        return self.ends.get(position, 0) >= _ENDS_OF_A_BAD_INPUT

    def remove(self) -> None:
        """The shard is done."""
        remove_file(self.uri)


def begun_shards(output: str) -> set[int]:
    """Shards that a process is working on, or was when it ended."""
    return shards_in(join(output, FOLDER))


def _uri(output: str, shard: int) -> str:
    return shard_uri(join(output, FOLDER), shard, "json")


def begin_note(output: str, shard: int) -> Note:
    """A note that a shard is begun; with one left behind, what it says of the process that left it.

    Raises P2PError when so many processes have ended that going on would never end.
    """
    note = _read_note(_uri(output, shard))
    if note is None:
        note = Note(_uri(output, shard))
    elif note.at is not None:
        note.ends[note.at] = note.ends.get(note.at, 0) + 1
    elif note.watched:
        note.unexplained += 1
    else:
        note.watched = True
    note.at = None
    note.write()
    if note.unexplained >= _UNEXPLAINED_ENDS:
        raise P2PError(
            f"{note.unexplained} processes have ended while they worked on shard {shard}, at no image in particular; "
            f"if memory is short, pass fewer --workers or a smaller --tile-size. The same command tries again"
        )
    return note


def _read_note(uri: str) -> Note | None:
    """The note that was left at `uri`, if any.

    One that tells nothing (cut short, or somebody else's) is as good as new: a process ended, and nobody knows where.
    """
    try:
        left: Any = read_json(uri)
        ends = {int(position): int(count) for position, count in left["ends"].items()}
        at = None if left["at"] is None else int(left["at"])
        return Note(uri, bool(left["watched"]), int(left["unexplained"]), at, ends)
    except NotFound:
        return None
    except (Damaged, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return Note(uri)


def forgive(output: str) -> None:
    """Before a job begins: it was stopped, or its machine was, and that is no fault of the images then in hand."""
    for shard in begun_shards(output):
        note = _read_note(_uri(output, shard))
        if note is None:
            continue
        note.remove()
        if note.ends:
            Note(note.uri, watched=False, ends=note.ends).write()


class Deadline:
    """While entered, by any number of threads, the process ends if nothing enters or leaves for so many seconds.

    The clock is the system's (`SIGALRM`), since a decoder that hangs may hold Python's lock, and since it is set twice
    for each image. Where the process was goes to stderr.
    """

    def __init__(self, seconds: float) -> None:
        if sys.__stderr__ is not None:
            faulthandler.register(signal.SIGALRM, file=sys.__stderr__, chain=True)
        self._seconds = seconds
        self._inside = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._move(1)

    def __exit__(self, *error: object) -> None:
        self._move(-1)

    def _move(self, step: int) -> None:
        with self._lock:
            self._inside += step
            signal.setitimer(signal.ITIMER_REAL, self._seconds if self._inside else 0)
