"""Pairs at which the process ends that prepares them: found in processes of their own, and left out."""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence

from p2p.data.pairs import Formats
from p2p.doctor.features import compute_features
from p2p.doctor.files import BadRow
from p2p.errors import BadInputError
from p2p.preparation.locations import Cell, Chunk, Fetcher, Location
from p2p.preparation.pairing import PairRef
from p2p.preparation.shards import Shard, ShardReport, decode_pairs, make_row
from p2p.storage.trial import PROCESS_ENDED, find_fatal_item, process_ended

_MAX_ENDS_OF_A_ROW_GROUP = 2
"""Rows of a Parquet row group at which a process has ended; then it is their read that does it, and not an image."""
Held = Mapping[Location, bytes | BadInputError]


def drop_fatal_pairs(shard: Shard, load_size: int, fetch: Fetcher, formats: Formats) -> tuple[Shard, list[BadRow]]:
    """Work on every pair in another process. Returns the shard without those at which that one ends, and these.

    Arguments are those of `write_shard`.
    """
    left = deque(shard.pairs)
    good: list[PairRef] = []
    bad: list[BadRow] = []
    ends: Counter[tuple[str, int]] = Counter()
    while left:
        held = {where: _fetch(fetch, where) for pair in left for where in _locations(pair) if isinstance(where, Chunk)}
        ended_at = find_fatal_item(_prepare_each, list(left), load_size, fetch, held, formats)
        if ended_at is None:
            break
        good += [left.popleft() for _ in range(ended_at)]
        fatal = left.popleft()
        bad.append(BadRow(fatal.a.uri, PROCESS_ENDED, str(process_ended())))
        ends.update(_row_groups(fatal))
        given_up = {group for group, count in ends.items() if count >= _MAX_ENDS_OF_A_ROW_GROUP}
        untouched = [pair for pair in left if given_up & _row_groups(pair)]
        left = deque(pair for pair in left if not given_up & _row_groups(pair))
        why = "not read: the process ended at other rows of the same row group"
        bad += [BadRow(pair.a.uri, PROCESS_ENDED, why) for pair in untouched]
    return dataclasses.replace(shard, pairs=(*good, *left)), bad


def _prepare_each(
    pairs: Sequence[PairRef], load_size: int, fetch: Fetcher, held: Held, formats: Formats
) -> Iterator[None]:
    """Do what `write_shard` does with each pair, and keep nothing. `held`: what only the calling process can fetch."""

    def get(where: Location) -> bytes:
        found = held[where] if where in held else fetch(where)
        if isinstance(found, BadInputError):
            raise found
        return found

    for pair in pairs:
        for _, a, b in decode_pairs([pair], load_size, get, [], formats):
            make_row(pair, a, b, load_size, ShardReport(pair.split))
            compute_features(a.image, b.image, (a.mode, b.mode), closely=True)
        yield


def _fetch(fetch: Fetcher, where: Location) -> bytes | BadInputError:
    try:
        return fetch(where)
    except BadInputError as error:
        return error


def _locations(pair: PairRef) -> list[Location]:
    return [where for where in (pair.a, pair.b) if where is not None]


def _row_groups(pair: PairRef) -> set[tuple[str, int]]:
    return {(where.file, where.row_group) for where in _locations(pair) if isinstance(where, Cell)}
