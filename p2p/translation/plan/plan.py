"""The work plan: every input belongs to one shard for ever, written down before work starts.

`OUTPUT/manifest/part-*.parquet` holds the inputs, one row group per shard. Every output file is named after its shard
or its input, so a shard that is done again after a kill writes the same files again. One job at a time writes an output
(`p2p.storage.lease`), and a ledger is written once: whoever comes late publishes nothing. Ray Data's own job
checkpointing is not used: it keeps every id in memory, cannot name one file per image, and its filter actor takes 15 s
to start and can leave two cores waiting for each other.
"""

from __future__ import annotations

import logging
import posixpath
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress, islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from p2p.errors import ConfigError, DamagedFileError, LeaseLostError, NotFoundError
from p2p.storage.filesystems import join, read_json, remove, remove_file, write_json
from p2p.storage.lease import Fence
from p2p.storage.names import printable
from p2p.storage.parquet import read_parquet
from p2p.translation.corpus.addresses import host_of
from p2p.translation.corpus.corpus import Corpus, Selection
from p2p.translation.corpus.inputs import MAX_SHARD_ROWS, WHOLE_FILE, Input
from p2p.translation.plan.changes import redo_changed
from p2p.translation.plan.files import (
    FOLDER,
    INPUT_COLUMNS,
    Hashes,
    PlanFile,
    Shard,
    hash_id,
    next_number,
    plan_uri,
    plan_uris,
    read_plan_file,
    write_plan_file,
)
from p2p.translation.plan.ledger import shards_of_ledger
from p2p.translation.sinks.records import OutputNames

log = logging.getLogger("p2p")

_MAX_SHARD_BYTES = 64 * 2**20
_MIN_SHARD_ROWS = 8
_SMALL_CORPUS_SHARDS = 64  # enough that no actor idles for long at the end
_SHARDS_PER_PART = 64
_CHUNK_ROWS = MAX_SHARD_ROWS * _SMALL_CORPUS_SHARDS
_MAX_CHANGED = 500_000  # they are kept in memory


@dataclass(frozen=True)
class Plan:
    """Every shard there is."""

    shards: tuple[Shard, ...]
    hosts: frozenset[str] = field(default=frozenset(), compare=False)
    """The servers that hold the corpus; known where it was listed."""
    changed: int = field(default=0, compare=False)
    """Inputs planned earlier whose sources have been written anew since."""


def load_plan(output: str) -> Plan:
    """The plan in `output`; empty where there is none."""
    return Plan(tuple(shard for uri in plan_uris(output) for shard in read_plan_file(uri).shards))


def extend_plan(
    output: str,
    corpus: Corpus,
    sink: OutputNames,
    limit: int = 0,
    fence: Fence | None = None,
    *,
    only_failed: bool = False,
) -> Plan:
    """List `corpus` and append shards for the inputs the plan in `output` does not have yet.

    Those whose source has been written anew since count as not done; with `only_failed`, if they have failed. Raises
    ConfigError, and leaves the plan as it was, if two inputs have one id, would be written under one name, or one would
    be written where another needs a folder.
    """
    checked = _checked_files(output)
    uris = _drop_unchecked(output, plan_uris(output), checked, fence)
    is_checked = checked.issuperset(map(posixpath.basename, uris))
    files = [read_plan_file(uri) for uri in uris]
    is_resumed = bool(files)
    listing = _Listing(corpus, limit)
    changed: list[Input] = []
    containers: dict[str, int] = {}
    written: list[str] = []
    try:
        groups = _groups(_unplanned(listing, files, changed, containers), corpus.min_shard_rows, sink.max_shard_rows)
        while some := list(islice(groups, _SHARDS_PER_PART)):
            # Not by a new look: a file that comes from elsewhere meanwhile must stand in the way of this one.
            uri = plan_uri(output, next_number([*uris, *checked]) + len(written))
            first = 1 + max((file.shards[-1].index for file in files if file.shards), default=-1)
            if not write_plan_file(uri, dict(enumerate(some, first)), sink, fence=fence):
                raise LeaseLostError(f"{uri}: another job has written it meanwhile; the same command continues")
            written.append(uri)
            files.append(read_plan_file(uri))
        if written or not is_checked:
            names = _joined([file.names for file in files])
            _require_unique(output, "id_hash", _joined([file.ids for file in files]), lambda id: id, _repeated_id)
            _require_unique(output, "name_hash", names, sink.name_of, _repeated_name)
            if sink.is_tree:
                _require_no_file_is_a_folder(output, names, sink)
            if fence:
                fence.check()
            write_json(checked_uri(output), sorted(map(posixpath.basename, (*uris, *written))))
    except BaseException:
        if fence:
            fence.check()  # else these files are the other job's by now
        for uri in written:
            remove(uri)
        raise
    count = 0
    if is_resumed and (changed or containers):
        is_whole = not limit and not isinstance(corpus, Selection)
        count = redo_changed(output, changed, containers, sink, fence, is_whole=is_whole, only_failed=only_failed)
        files = [read_plan_file(uri) for uri in plan_uris(output)]
    shards = tuple(shard for file in files for shard in file.shards)
    return Plan(shards, frozenset(listing.hosts), count)


def checked_uri(output: str) -> str:
    """The address of the list of the plan's files whose inputs were compared with each other. Work begins when all are
    on it.
    """
    return join(output, FOLDER, "checked.json")


def _checked_files(output: str) -> frozenset[str]:
    """The names on that list; none where it cannot be read, so that they are compared again."""
    try:
        return frozenset(map(str, read_json(checked_uri(output))))
    except (NotFoundError, DamagedFileError, TypeError):
        return frozenset()


def _drop_unchecked(output: str, uris: Sequence[str], checked: Collection[str], fence: Fence | None) -> list[str]:
    """Remove those files of the plan that an attempt left which was killed before it had compared their inputs: they
    are listed again, as they are now. Returns the others.

    Files of earlier versions of p2p are on no list; they stay once something of them is done.
    """
    unchecked = [uri for uri in uris if posixpath.basename(uri) not in checked]
    begun = (shards_of_ledger(output, output) or set()) if unchecked else set()
    if any(shard.index in begun for uri in unchecked for shard in read_plan_file(uri).shards):
        return list(uris)
    for uri in unchecked:
        if fence:
            fence.check()
        remove_file(uri)
    return [uri for uri in uris if uri not in unchecked]


def _joined(hashes: Sequence[Hashes]) -> Hashes:
    """All of them, sorted."""
    return np.sort(np.concatenate([np.empty(0, np.uint64), *hashes]))


def require_unique(corpus: Corpus, sink: OutputNames, limit: int = 0) -> None:
    """Raise ConfigError as `extend_plan` would for an empty output, and write nothing there."""
    with tempfile.TemporaryDirectory(prefix="p2p-plan-") as scratch:
        extend_plan(scratch, corpus, sink, limit)


class _Listing:
    """The first `limit` inputs of a corpus, or all; and the servers of those listed so far."""

    def __init__(self, corpus: Corpus, limit: int) -> None:
        self._corpus, self._limit = corpus, limit
        self.hosts: set[str] = set()

    def __iter__(self) -> Iterator[Input]:
        for item in islice(self._corpus.items(), self._limit or None):
            self.hosts.add(host_of(item.source_uri))
            yield item._replace(image_id=printable(item.image_id), source_uri=printable(item.source_uri))


def _unplanned(
    listing: _Listing, files: Sequence[PlanFile], changed: list[Input], containers: dict[str, int]
) -> Iterator[Input]:
    """List what the plan does not have already; add to `changed` what it has in another version, and to `containers`
    the tars and Parquet files there are, with their versions.

    Raises ConfigError for an id of the plan that is listed twice. Hashes are looked up a chunk at a time, since NumPy
    is quick only on many.
    """
    ids = np.concatenate([np.empty(0, np.uint64), *(file.ids for file in files)])
    order = np.argsort(ids)
    known = ids[order]
    versions = np.concatenate([np.empty(0, np.uint64), *(file.versions for file in files)])[order]
    times_listed = np.zeros(len(known), np.int64)
    for chunk in _chunks(iter(listing)):
        if not len(known):
            yield from chunk
            continue
        hashes = np.fromiter((hash_id(item.image_id) for item in chunk), np.uint64, len(chunk))
        places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        is_known = known[places] == hashes
        found = places[is_known]
        np.add.at(times_listed, found, 1)
        if times_listed[found].max(initial=0) > 1:
            repeated = known[found[times_listed[found].argmax()]]
            first, second = islice((item for item in listing if hash_id(item.image_id) == repeated), 2)
            raise _repeated_id(first, second, second.image_id)
        listed = np.fromiter((item.version for item in chunk), np.uint64, len(chunk))
        planned = versions[places]
        is_changed = is_known & (listed != planned) & (listed != 0) & (planned != 0)
        changed += [chunk[place] for place in np.flatnonzero(is_changed)]
        if len(changed) > _MAX_CHANGED:
            raise ConfigError(
                "resume",
                f"auto: more than {_MAX_CHANGED} inputs have changed since they were planned; choose another "
                "--output, or --resume never to translate all of them again",
            )
        in_files = (item for item in chunk if item.offset != WHOLE_FILE or item.row_group != WHOLE_FILE)
        containers.update((item.source_uri, item.version) for item in in_files)
        yield from compress(chunk, ~is_known)


def _chunks(items: Iterator[Input]) -> Iterator[list[Input]]:
    while chunk := list(islice(items, _CHUNK_ROWS)):
        yield chunk


def _groups(items: Iterator[Input], min_rows: int, max_rows: int) -> Iterator[list[Input]]:
    """Cut the listing into shards. How many rows they have depends on the corpus only, never on the machine."""
    is_small = True
    for chunk in _chunks(items):
        rows = MAX_SHARD_ROWS
        if is_small and len(chunk) < _CHUNK_ROWS:
            rows = _MIN_SHARD_ROWS * -(-len(chunk) // (_SMALL_CORPUS_SHARDS * _MIN_SHARD_ROWS))
        is_small = False
        group: list[Input] = []
        size = 0
        for item in chunk:
            if group and (len(group) >= min(max(rows, min_rows), max_rows) or size + item.size > _MAX_SHARD_BYTES):
                yield group
                group, size = [], 0
            group.append(item)
            size += item.size
        yield group


def _folders(name: str) -> Iterator[str]:
    """The folders of an output's path that could be another output's: those with the ending that all outputs have."""
    ending = posixpath.splitext(name)[1]
    start = name.find(f"{ending}/")
    while ending and start >= 0:
        yield name[: start + len(ending)]
        start = name.find(f"{ending}/", start + 1)


def _planned(output: str, column: str, hashes: Hashes) -> Iterator[Input]:
    """The inputs of the plan with one of `hashes` in `column`."""
    for uri in plan_uris(output) if len(hashes) else ():
        table = read_parquet(uri, [*INPUT_COLUMNS, column])
        hit = table.filter(pc.is_in(table[column], value_set=pa.array(hashes, pa.uint64())))
        for row in hit.drop_columns([column]).to_pylist():
            yield Input(**row)


def _require_unique(
    output: str,
    column: str,
    hashes: Hashes,
    name_of: Callable[[str], str],
    repeated: Callable[[Input, Input, str], ConfigError],
) -> None:
    """Raise `repeated(first, second, name)` for two inputs with one name. `hashes` is sorted, and `column` has them."""
    seen: dict[str, Input] = {}
    for item in _planned(output, column, np.unique(hashes[1:][hashes[1:] == hashes[:-1]])):
        name = name_of(item.image_id)
        if name in seen:
            raise repeated(seen[name], item, name)
        seen[name] = item


def _repeated_id(first: Input, second: Input, image_id: str) -> ConfigError:
    if second.row_group != WHOLE_FILE:
        way_out = "pass --id-column with a column whose values are, or --id-column none to name rows by file and number"
    elif second.offset != WHOLE_FILE:
        way_out = "a tar that holds a name twice must be packed again"
    elif second.source_uri == first.source_uri:
        way_out = "remove one of the lines from the manifest"
    else:
        way_out = "name them apart in a column image_id of a manifest (.csv or .parquet)"
    both = " and ".join(dict.fromkeys((first.source_uri, second.source_uri)))
    return ConfigError("source", f"has two inputs with the id {image_id!r} ({both}); ids must be unique: {way_out}")


def _repeated_name(first: Input, second: Input, name: str) -> ConfigError:
    return ConfigError(
        "source",
        f"has {first.image_id!r} and {second.image_id!r}, which would both be written as {name!r}; rename one, or use "
        f"--format parquet, which keeps whole names",
    )


def _require_no_file_is_a_folder(output: str, names: Hashes, sink: OutputNames) -> None:
    folders: dict[str, str] = {}  # each with an image id that needs it
    for uri in plan_uris(output):
        ids = read_parquet(uri, ["image_id"])["image_id"]
        for image_id in ids.filter(pc.match_substring_regex(ids, r"\.[^/]*/")).to_pylist():
            folders.update(dict.fromkeys(_folders(sink.name_of(image_id)), image_id))
    hashes = np.fromiter(map(hash_id, folders), np.uint64, len(folders))
    for item in _planned(output, "name_hash", hashes[np.isin(hashes, names)]):
        name = sink.name_of(item.image_id)
        raise ConfigError(
            "source",
            f"has {item.image_id!r}, which would be written as {name!r}, which must be a folder for "
            f"{folders[name]!r}; rename one, or use --format parquet, which keeps whole names",
        )
