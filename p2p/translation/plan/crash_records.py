"""Inputs that crash the process which works on them: a defect in a decoder, a hang, more memory than there is.

No process can report its own crash. So each shard has a record in the output while it is worked on. A process that
finds one left behind works through that shard image by image and records each before it is touched and when it is
through; an image at which two processes have crashed becomes a failed row. Reads that fetch several images at once are
recorded too: after a crash the next process reads them row by row. Hangs become crashes: decoding for too long ends the
process (`p2p.storage.deadline`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from p2p.errors import DamagedFileError, NotFoundError, P2PError
from p2p.storage.filesystems import join, read_json, remove_file, write_json
from p2p.storage.trial import process_ended
from p2p.translation.plan.shards import shard_uri, shards_in

FOLDER = "attempts"
_MAX_CRASHES = 2
_MAX_UNEXPLAINED = 5
Counts = dict[int, int]


@dataclass
class CrashRecord:
    """What is known of the processes that worked on a shard."""

    uri: str
    watched: bool = False
    """Whether its images are gone through one by one and recorded, since an earlier process left a record. Before that
    it is unknown where that one crashed, and whether it was in this shard at all."""
    unexplained: int = 0
    """Crashes at no particular image while the shard was watched."""
    at: int | None = None
    """Position of the image in work."""
    reading: bool = False
    """Whether that image is being read, with those after it perhaps."""
    crashes: Counts = field(default_factory=dict)
    """How often a process crashed at the image at a position."""
    read_crashes: Counts = field(default_factory=dict)
    """The same for the read that begins at a position."""

    def write(self) -> None:
        """Publish it."""
        write_json(self.uri, {name: value for name, value in vars(self).items() if name != "uri"})

    def start_image(self, position: int) -> None:
        """The image at `position` is decoded from now on. Raises BadInputError if it must not be touched again."""
        if self.watched and self.crashes.get(position, 0) >= _MAX_CRASHES:
            raise process_ended()
        self._move(position, reading=False)

    def start_read(self, position: int) -> bool:
        """Several images are read from now on, the first at `position`. Returns whether to read row by row, and call
        `start_row` for each, since that read has crashed a process.
        """
        self._move(position, reading=True)
        return self.watched and self.read_crashes.get(position, 0) > 0

    def start_row(self, position: int) -> None:
        """The image at `position` is read by itself. Raises BadInputError if it must not be touched again."""
        if self.read_crashes.get(position, 0) >= _MAX_CRASHES:
            raise process_ended()
        self._move(position, reading=True)

    def finish_image(self) -> None:
        """It is through: a crash while it is published is not its fault."""
        self._move(None, reading=False)

    def _move(self, position: int | None, *, reading: bool) -> None:
        if self.watched and (self.at, self.reading) != (position, reading):
            self.at, self.reading = position, reading
            self.write()

    def count_crash(self) -> None:
        """The process that left this record has crashed."""
        if self.at is not None:
            counts = self.read_crashes if self.reading else self.crashes
            counts[self.at] = counts.get(self.at, 0) + 1
        elif self.watched:
            self.unexplained += 1
        else:
            self.watched = True
        self.at, self.reading = None, False

    def remove(self) -> None:
        """The shard is done."""
        remove_file(self.uri)


def started_shards(output: str) -> set[int]:
    """Shards that a process is working on, or was when it crashed."""
    return shards_in(join(output, FOLDER))


def _uri(output: str, shard: int) -> str:
    return shard_uri(join(output, FOLDER), shard, "json")


def open_record(output: str, shard: int) -> CrashRecord:
    """Record that work on a shard begins, and count the crash of the process that left a record behind, if one did.

    Raises P2PError when so many processes have crashed that going on would never end.
    """
    record = _read_record(_uri(output, shard))
    if record is None:
        record = CrashRecord(_uri(output, shard))
    else:
        record.count_crash()
    record.write()
    if record.unexplained >= _MAX_UNEXPLAINED:
        raise P2PError(
            f"{record.unexplained} processes have crashed while they worked on shard {shard}, at no image in "
            f"particular; if memory is short, pass fewer --workers or a smaller --tile-size. The same command tries "
            f"again"
        )
    return record


def _read_record(uri: str) -> CrashRecord | None:
    """The record that was left at `uri`, if any.

    Of one that cannot be read (cut short, or of something else) only this is known: a process crashed.
    """
    try:
        left: Any = read_json(uri)
        at = None if left["at"] is None else int(left["at"])
        counts = [_counts(left[name]) for name in ("crashes", "read_crashes")]
        return CrashRecord(uri, bool(left["watched"]), int(left["unexplained"]), at, bool(left["reading"]), *counts)
    except NotFoundError:
        return None
    except (DamagedFileError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return CrashRecord(uri)


def _counts(found: Any) -> Counts:
    return {int(position): int(count) for position, count in found.items()}


def clear(output: str) -> None:
    """Before a job starts: the one before was stopped, or its machine was, which is no fault of the images in work."""
    for shard in started_shards(output):
        record = _read_record(_uri(output, shard))
        if record is None:
            continue
        record.remove()
        if record.crashes or record.read_crashes:
            CrashRecord(record.uri, crashes=record.crashes, read_crashes=record.read_crashes).write()
