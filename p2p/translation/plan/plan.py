"""The work plan: every input belongs to one shard, written down before work starts and never changed.

`OUTPUT/manifest/part-*.parquet` holds the inputs, one row group per shard. Every output file is named after its shard
or its input, so a shard that is done twice (a killed actor, a zombie of a killed driver) writes the same files again.
That gives exactly once without any coordination. Ray Data's own job checkpointing is not used: it keeps every id in
memory, cannot name one file per image, and its filter actor takes 15 s to start and can leave two cores waiting for
each other.
"""

from __future__ import annotations

import hashlib
import posixpath
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from p2p.errors import ConfigError
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
    """The servers that the corpus lies on; known where it was listed."""


def hash_id(text: str) -> int:
    """64 bits of `text`. Two of ten million ids agree by chance with a probability below 1 in 100,000."""
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


def _read_part(uri: str) -> tuple[list[Shard], Hashes, Hashes]:
    with open_parquet(uri) as file:
        table = file.read(columns=["shard", "id_hash", "name_hash"])
        rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    firsts = table["shard"].take(pa.array(np.cumsum([0, *rows[:-1]]))).to_pylist()
    shards = [Shard(index, uri, group, rows[group]) for group, index in enumerate(firsts)]
    return shards, table["id_hash"].to_numpy(), table["name_hash"].to_numpy()


def load_plan(output: str) -> Plan:
    """The plan as it stands in `output`; empty where there is none."""
    return Plan(tuple(shard for uri in _part_uris(output) for shard in _read_part(uri)[0]))


def extend_plan(output: str, corpus: Corpus, sink: Sink, limit: int = 0) -> Plan:
    """List `corpus` and append shards for the inputs the plan in `output` does not have yet.

    Raises ConfigError, and leaves the plan as it was, if two inputs have one id, would be written under one name, or
    one would be written where another needs a folder.
    """
    parts = _part_uris(output)
    read = [_read_part(uri) for uri in parts]
    shards = [shard for part, _, _ in read for shard in part]
    ids = np.concatenate([np.empty(0, np.uint64), *(part for _, part, _ in read)])
    names = np.concatenate([np.empty(0, np.uint64), *(part for _, _, part in read)])
    writer = _PlanWriter(output, len(parts), max((shard.index for shard in shards), default=-1) + 1, sink)
    listing = _Listing(corpus, limit)
    try:
        for group in _groups(_unplanned(listing, np.sort(ids)), corpus.min_shard_rows):
            writer.add(group)
        writer.flush()
        if writer.parts:
            names = np.concatenate([names, *writer.names])
            _require_unique(output, "id_hash", np.concatenate([ids, *writer.ids]), lambda id: id, _repeated_id)
            _require_unique(output, "name_hash", names, sink.name_of, _repeated_name)
            if sink.is_tree:
                folders = _read_folders(parts, sink) | writer.folders
                _require_no_file_is_a_folder(output, names, folders, sink)
    except BaseException:
        for uri in writer.parts:
            remove(uri)
        raise
    return Plan((*shards, *writer.shards), frozenset(listing.hosts))


def require_unique(corpus: Corpus, sink: Sink, limit: int = 0) -> None:
    """Raise ConfigError as `extend_plan` would for an empty output, and write nothing there."""
    with tempfile.TemporaryDirectory(prefix="p2p-plan-") as scratch:
        extend_plan(scratch, corpus, sink, limit)


class _Listing:
    """The first `limit` inputs of a corpus, or all; and which servers those lie on that were listed so far."""

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
    met = np.zeros(len(known), bool)
    for chunk in _chunks(iter(listing)):
        if not len(known):
            yield from chunk
            continue
        hashes = np.fromiter((hash_id(item.image_id) for item in chunk), np.uint64, len(chunk))
        places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        is_known = known[places] == hashes
        found = places[is_known]
        repeated = met[found]
        repeated[np.setdiff1d(np.arange(len(found)), np.unique(found, return_index=True)[1])] = True
        if repeated.any():
            second = chunk[np.flatnonzero(is_known)[repeated.argmax()]]
            first = next(item for item in listing if item.image_id == second.image_id)
            raise _repeated_id(first, second, second.image_id)
        met[found] = True
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


class _PlanWriter:
    """Appends shards to the manifest, a part of 64 shards at a time."""

    def __init__(self, output: str, first_part: int, first_shard: int, sink: Sink) -> None:
        self._output, self._next_part, self._next_shard, self._sink = output, first_part, first_shard, sink
        self._waiting: list[pa.Table] = []
        self.shards: list[Shard] = []
        self.parts: list[str] = []
        self.ids: list[Hashes] = []
        self.names: list[Hashes] = []
        self.folders: dict[str, str] = {}
        """What outputs need as a folder and another could be written as, each with an image id that needs it."""

    def add(self, inputs: Sequence[Input]) -> None:
        columns = dict(zip(_INPUT_COLUMNS, map(list, zip(*inputs, strict=True)), strict=True))
        ids = np.array([hash_id(item.image_id) for item in inputs], np.uint64)
        named = [self._sink.name_of(item.image_id) for item in inputs]
        names = np.array([hash_id(name) for name in named], np.uint64)
        for item, name in zip(inputs, named, strict=True):
            self.folders.update(dict.fromkeys(_folders(name), item.image_id))
        index = self._next_shard + len(self._waiting)
        extra = {"shard": [index] * len(inputs), "id_hash": ids, "name_hash": names}
        self._waiting.append(pa.table({**columns, **extra}).select(MANIFEST_SCHEMA.names).cast(MANIFEST_SCHEMA))
        self.ids.append(ids)
        self.names.append(names)
        if len(self._waiting) == _SHARDS_PER_PART:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        uri = join(self._output, FOLDER, f"part-{self._next_part:05d}.parquet")
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, MANIFEST_SCHEMA, compression="zstd") as writer:
            for table in self._waiting:
                writer.write_table(table, row_group_size=len(table))
        write_bytes(uri, sink.getvalue().to_pybytes())
        self.parts.append(uri)
        for group, table in enumerate(self._waiting):
            self.shards.append(Shard(self._next_shard + group, uri, group, len(table)))
        self._next_part += 1
        self._next_shard += len(self._waiting)
        self._waiting = []


def _folders(name: str) -> Iterator[str]:
    """The folders of an output's path that could be another output's: those with the ending that all outputs have."""
    ending = posixpath.splitext(name)[1]
    start = name.find(f"{ending}/")
    while ending and start >= 0:
        yield name[: start + len(ending)]
        start = name.find(f"{ending}/", start + 1)


def _read_folders(parts: Sequence[str], sink: Sink) -> dict[str, str]:
    folders: dict[str, str] = {}
    for uri in parts:
        ids = read_parquet(uri, ["image_id"])["image_id"]
        for image_id in ids.filter(pc.match_substring_regex(ids, r"\.[^/]*/")).to_pylist():
            folders.update(dict.fromkeys(_folders(sink.name_of(image_id)), image_id))
    return folders


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
    """Raise what `repeated` makes of two inputs with one of `hashes` whose ids `name_of` turns into one name."""
    ordered = np.sort(hashes)
    seen: dict[str, Input] = {}
    for item in _planned(output, column, np.unique(ordered[1:][ordered[1:] == ordered[:-1]])):
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


def _require_no_file_is_a_folder(output: str, names: Hashes, folders: dict[str, str], sink: Sink) -> None:
    hashes = np.fromiter(map(hash_id, folders), np.uint64, len(folders))
    for item in _planned(output, "name_hash", hashes[np.isin(hashes, names)]):
        name = sink.name_of(item.image_id)
        raise ConfigError(
            "source",
            f"has {item.image_id!r}, which would be written as {name!r}, which must be a folder for "
            f"{folders[name]!r}; rename one, or use --format parquet, which keeps whole names",
        )
