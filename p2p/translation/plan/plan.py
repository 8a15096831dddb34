"""The work plan: every input belongs to one shard, written down before work starts and never changed.

`OUTPUT/manifest/part-*.parquet` holds the inputs, one row group per shard. Every output file is named after its shard
or its input, so a shard that is done again after a kill writes the same files again. One job at a time writes an output
(`p2p.storage.lease`), and a ledger is written once: whoever comes late publishes nothing. Ray Data's own job
checkpointing is not used: it keeps every id in memory, cannot name one file per image, and its filter actor takes 15 s
to start and can leave two cores waiting for each other.
"""

from __future__ import annotations

import hashlib
import posixpath
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from p2p.errors import ConfigError, LeaseLostError
from p2p.storage.filesystems import join, list_names, remove, write_bytes
from p2p.storage.names import printable
from p2p.storage.parquet import open_parquet, read_parquet
from p2p.translation.corpus.addresses import host_of
from p2p.translation.corpus.corpus import Corpus
from p2p.translation.corpus.inputs import WHOLE_FILE, Input
from p2p.translation.sinks.records import Sink

FOLDER = "manifest"
MANIFEST_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("image_id", pa.string()),
        ("source_uri", pa.string()),
        ("size", pa.int64()),
        ("offset", pa.int64()),
        ("row_group", pa.int32()),
        ("row", pa.int64()),
        ("reason", pa.string()),
        ("id_hash", pa.uint64()),
        ("name_hash", pa.uint64()),
    ]
)
_INPUT_COLUMNS = list(Input._fields)
_MAX_SHARD_ROWS = 256
_MAX_SHARD_BYTES = 64 * 2**20
_MIN_SHARD_ROWS = 8
_SMALL_CORPUS_SHARDS = 64  # enough that no actor idles for long at the end
_SHARDS_PER_PART = 64
_CHUNK_ROWS = _MAX_SHARD_ROWS * _SMALL_CORPUS_SHARDS

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Shard:
    """Up to 256 inputs, or about 64 MB of them, that are done together. Picklable and small."""

    index: int
    manifest_uri: str
    row_group: int
    rows: int


@dataclass(frozen=True)
class Plan:
    """Every shard there is."""

    shards: tuple[Shard, ...]
    hosts: frozenset[str] = field(default=frozenset(), compare=False)
    """The servers that hold the corpus; known where it was listed."""


def hash_id(text: str) -> int:
    """64 bits of `text`. Two of ten million ids agree with a probability below 1 in 100,000."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def read_inputs(shard: Shard) -> list[Input]:
    """The inputs of one shard, in their order."""
    with open_parquet(shard.manifest_uri) as file:
        columns = file.read_row_group(shard.row_group, columns=_INPUT_COLUMNS).to_pydict()
    columns.setdefault("reason", [""] * shard.rows)  # plans of earlier versions have none
    return [Input(*values) for values in zip(*(columns[name] for name in _INPUT_COLUMNS), strict=True)]


def _part_uris(output: str) -> list[str]:
    folder = join(output, FOLDER)
    return [join(folder, name) for name in list_names(folder) if name.endswith(".parquet")]


@dataclass(frozen=True)
class _Part:
    """A file of the manifest."""

    shards: list[Shard]
    ids: Hashes
    names: Hashes


def _read_part(uri: str) -> _Part:
    with open_parquet(uri) as file:
        table = file.read(columns=["shard", "id_hash", "name_hash"])
        rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    firsts = table["shard"].take(pa.array(np.cumsum([0, *rows[:-1]]))).to_pylist()
    shards = [Shard(index, uri, group, rows[group]) for group, index in enumerate(firsts)]
    return _Part(shards, table["id_hash"].to_numpy(), table["name_hash"].to_numpy())


def _write_part(uri: str, first_shard: int, groups: Sequence[Sequence[Input]], sink: Sink) -> None:
    """Publish a file with one shard for each of `groups`."""
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(buffer, MANIFEST_SCHEMA, compression="zstd") as writer:
        for shard, inputs in enumerate(groups, first_shard):
            columns: dict[str, list[Any]] = dict(zip(_INPUT_COLUMNS, map(list, zip(*inputs, strict=True)), strict=True))
            ids = columns["image_id"]
            columns["shard"] = [shard] * len(inputs)
            columns["id_hash"] = [hash_id(image_id) for image_id in ids]
            columns["name_hash"] = [hash_id(sink.name_of(image_id)) for image_id in ids]
            writer.write_table(pa.table(columns, MANIFEST_SCHEMA), row_group_size=len(inputs))
    if not write_bytes(uri, buffer.getvalue().to_pybytes(), only_new=True):
        raise LeaseLostError(f"{uri}: another job has written it meanwhile; the same command continues")


def load_plan(output: str) -> Plan:
    """The plan in `output`; empty where there is none."""
    return Plan(tuple(shard for uri in _part_uris(output) for shard in _read_part(uri).shards))


def extend_plan(output: str, corpus: Corpus, sink: Sink, limit: int = 0) -> Plan:
    """List `corpus` and append shards for the inputs the plan in `output` does not have yet.

    Raises ConfigError, and leaves the plan as it was, if two inputs have one id, would be written under one name, or
    one would be written where another needs a folder.
    """
    parts = [_read_part(uri) for uri in _part_uris(output)]
    listing = _Listing(corpus, limit)
    written: list[str] = []
    try:
        groups = _groups(_unplanned(listing, _joined([part.ids for part in parts])), corpus.min_shard_rows)
        while some := list(islice(groups, _SHARDS_PER_PART)):
            uri = join(output, FOLDER, f"part-{len(parts):05d}.parquet")
            _write_part(uri, parts[-1].shards[-1].index + 1 if parts else 0, some, sink)
            written.append(uri)
            parts.append(_read_part(uri))
        if written:
            names = _joined([part.names for part in parts])
            _require_unique(output, "id_hash", _joined([part.ids for part in parts]), lambda id: id, _repeated_id)
            _require_unique(output, "name_hash", names, sink.name_of, _repeated_name)
            if sink.is_tree:
                _require_no_file_is_a_folder(output, names, sink)
    except BaseException:
        for uri in written:
            remove(uri)
        raise
    return Plan(tuple(shard for part in parts for shard in part.shards), frozenset(listing.hosts))


def _joined(hashes: Sequence[Hashes]) -> Hashes:
    """All of them, sorted."""
    return np.sort(np.concatenate([np.empty(0, np.uint64), *hashes]))


def require_unique(corpus: Corpus, sink: Sink, limit: int = 0) -> None:
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


def _unplanned(listing: _Listing, known: Hashes) -> Iterator[Input]:
    """List what the plan does not have already. Raises ConfigError for an id of the plan that is listed twice.

    Hashes are looked up a chunk at a time, since NumPy is quick only on many.
    """
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
        yield from (item for item, hit in zip(chunk, is_known, strict=True) if not hit)


def _chunks(items: Iterator[Input]) -> Iterator[list[Input]]:
    while chunk := list(islice(items, _CHUNK_ROWS)):
        yield chunk


def _groups(items: Iterator[Input], min_rows: int) -> Iterator[list[Input]]:
    """Cut the listing into shards. How many rows they have depends on the corpus only, never on the machine."""
    is_small = True
    for chunk in _chunks(items):
        rows = _MAX_SHARD_ROWS
        if is_small and len(chunk) < _CHUNK_ROWS:
            rows = _MIN_SHARD_ROWS * -(-len(chunk) // (_SMALL_CORPUS_SHARDS * _MIN_SHARD_ROWS))
        is_small = False
        group: list[Input] = []
        size = 0
        for item in chunk:
            if group and (len(group) >= max(rows, min_rows) or size + item.size > _MAX_SHARD_BYTES):
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
    for uri in _part_uris(output) if len(hashes) else ():
        table = read_parquet(uri, [*_INPUT_COLUMNS, column])
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


def _require_no_file_is_a_folder(output: str, names: Hashes, sink: Sink) -> None:
    folders: dict[str, str] = {}  # each with an image id that needs it
    for uri in _part_uris(output):
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
