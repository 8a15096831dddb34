"""Pairs at which the process ends that prepares them: found in processes of their own, and left out."""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence

from p2p.data.pairs import Formats
from p2p.doctor.features import compute_features
from p2p.doctor.files import BadRow
from p2p.errors import BadInputError
from p2p.preparation.locations import Cell, Chunk, Location, SourceReader
from p2p.preparation.pairing import PairRef
from p2p.preparation.parts import Part, PartReport, decode_pairs, make_row, read_or_error
from p2p.storage.trial import PROCESS_ENDED, find_fatal_item, process_ended

_MAX_FATAL_ROWS = 2
"""Rows of a Parquet row group at which a process has ended; then reading the group ends it, and not an image."""
Held = Mapping[Location, bytes | BadInputError]


def drop_fatal_pairs(part: Part, load_size: int, read: SourceReader, formats: Formats) -> tuple[Part, list[BadRow]]:
    """Work on every pair in another process. Returns the part without those at which that one ends, and these.

    Arguments are those of `write_part`.
    """
    left = deque(part.pairs)
    good: list[PairRef] = []
    bad: list[BadRow] = []
    fatal_rows: Counter[tuple[str, int]] = Counter()
    while left:
        held = {where: read_or_error(read, where) for pair in left for where in pair.files if isinstance(where, Chunk)}
        ended_at = find_fatal_item(_prepare_each, list(left), load_size, read, held, formats)
        if ended_at is None:
            break
        good += [left.popleft() for _ in range(ended_at)]
        fatal = left.popleft()
        bad.append(BadRow(fatal.a.uri, PROCESS_ENDED, str(process_ended())))
        fatal_rows.update(_row_groups(fatal))
        unreadable = {group for group, count in fatal_rows.items() if count >= _MAX_FATAL_ROWS}
        why = "not read: the process ended at other rows of the same row group"
        bad += [BadRow(pair.a.uri, PROCESS_ENDED, why) for pair in left if unreadable & _row_groups(pair)]
        left = deque(pair for pair in left if not unreadable & _row_groups(pair))
    return dataclasses.replace(part, pairs=(*good, *left)), bad


def _prepare_each(
    pairs: Sequence[PairRef], load_size: int, read: SourceReader, held: Held, formats: Formats
) -> Iterator[None]:
    """Do what `write_part` does with each pair, and keep nothing. `held`: what only the calling process can read."""

    def get(where: Location) -> bytes:
        found = held[where] if where in held else read(where)
        if isinstance(found, BadInputError):
            raise found
        return found

    for pair in pairs:
        for _, a, b in decode_pairs([pair], load_size, get, [], formats):
            make_row(pair, a, b, load_size, PartReport(pair.split))
            compute_features(a.image, b.image, (a.mode, b.mode), detailed=True)
        yield


def _row_groups(pair: PairRef) -> set[tuple[str, int]]:
    return {(where.file, where.row_group) for where in pair.files if isinstance(where, Cell)}
