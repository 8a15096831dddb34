"""Inputs that end the process which works on them: a crash in a decoder, a hang, more memory than there is.

No process can tell of its own end. So each shard has a note in the output while it is worked on. A process that finds
one left behind works through that shard image by image and notes each before it touches it; the image at which a
process has ended twice becomes a failed row. Hangs become ends: decoding for too long ends the process.
"""

from __future__ import annotations

import faulthandler
import re
import sys
import threading
from dataclasses import dataclass, field
from typing import Any

from p2p.errors import P2PError
from p2p.storage.filesystems import exists, join, list_names, read_json, remove_file, write_json

FOLDER = "attempts"
PROCESS_ENDED = "ProcessEnded"
"""Kind of a BadInput at which two processes have ended."""
DECODE_SECONDS = 120.0
"""No image takes that long: the largest one allowed is decoded in five seconds."""
_ENDS_OF_A_BAD_INPUT = 2
_UNEXPLAINED_ENDS = 5
_NO_END_YET = -1  # whoever finds a note counts the end of the process that left it
_NAME = re.compile(r"shard-(\d+)\.json")


@dataclass
class Note:
    """What is known of the earlier processes that worked on a shard."""

    uri: str
    unexplained: int = 0
    """Ends at no particular image."""
    at: int | None = None
    """Position of the image in hand."""
    ends: dict[int, int] = field(default_factory=dict)
    """How often a process ended at a position."""
    is_new: bool = True
    """Whether no earlier process left one."""

    def write(self) -> None:
        """Publish it."""
        write_json(self.uri, {"unexplained": self.unexplained, "at": self.at, "ends": self.ends})

    def take_up(self, position: int) -> None:
        """The image at `position` is in hand from now on."""
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
    names = (_NAME.fullmatch(name) for name in list_names(join(output, FOLDER)))
    return {int(name[1]) for name in names if name}


def _uri(output: str, shard: int) -> str:
    return join(output, FOLDER, f"shard-{shard:05d}.json")


def begin_note(output: str, shard: int) -> Note:
    """A note that a shard is begun; with one left behind, what it says of the process that left it.

    Raises P2PError when so many processes have ended that going on would never end.
    """
    note = Note(_uri(output, shard))
    if exists(note.uri):
        left: dict[str, Any] = read_json(note.uri)
        note.is_new = False
        note.unexplained = left["unexplained"]
        note.ends = {int(position): count for position, count in left["ends"].items()}
        if left["at"] is None:
            note.unexplained += 1
        else:
            note.ends[left["at"]] = note.ends.get(left["at"], 0) + 1
    note.write()
    if note.unexplained >= _UNEXPLAINED_ENDS:
        raise P2PError(
            f"{note.unexplained} processes have ended while they worked on shard {shard}, at no image in particular; "
            f"if memory is short, pass fewer --workers or a smaller --batch-size. The same command tries again"
        )
    return note


def forgive(output: str) -> None:
    """Before a job begins: it was stopped, or its machine was, and that is no fault of the images then in hand."""
    for shard in begun_shards(output):
        uri = _uri(output, shard)
        ends = {int(position): count for position, count in read_json(uri)["ends"].items()}
        remove_file(uri)
        if ends:
            Note(uri, _NO_END_YET, None, ends).write()


class Deadline:
    """While entered, by any number of threads, the process ends if nothing enters or leaves for so many seconds.

    The clock runs outside Python, since a decoder that hangs may hold Python's lock.
    """

    def __init__(self, seconds: float) -> None:
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
            if self._inside and sys.__stderr__ is not None:
                faulthandler.dump_traceback_later(self._seconds, exit=True, file=sys.__stderr__)
            else:
                faulthandler.cancel_dump_traceback_later()
