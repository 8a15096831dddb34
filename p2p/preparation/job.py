"""The job: look at the source, cut it into shards, let Ray Data write them, tell what came out."""

from __future__ import annotations

import logging
import pickle
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from p2p.data.description import Description, Side, write_description
from p2p.data.local import LocalWorker, session, wants_ray
from p2p.data.machine import available_cpus
from p2p.data.pairs import SPLITS, part_name
from p2p.data.tasks import is_repeat, memory_reported, run_as_task
from p2p.doctor import Doctor
from p2p.doctor.features import MOST_CLOSE
from p2p.doctor.files import BadRow
from p2p.errors import P2PError, UsageError, check_bad_fraction
from p2p.model.config import Palette as Classes
from p2p.model.config import as_palette
from p2p.preparation.chunks import ChunkStore
from p2p.preparation.config import SYNTHETIC, PrepareConfig, parse_synthetic
from p2p.preparation.examination import DOCUMENT, PAGE, Key, Sides, conclude
from p2p.preparation.fatal_pairs import drop_fatal_pairs
from p2p.preparation.locations import Drawing, Fetcher
from p2p.preparation.pairing import Pairing, PairRef, choose_split, pair_one_source, pair_two_sources
from p2p.preparation.shards import (
    Palette,
    Shard,
    ShardReport,
    cut_into_shards,
    decode_pairs,
    merge_palettes,
    write_shard,
)
from p2p.preparation.sources import Listing, kind_of, list_source, read_stream
from p2p.preparation.tables import pair_tables
from p2p.progress import Progress
from p2p.reports.sheets import as_rgb
from p2p.reports.thumbnails import thumbnail
from p2p.storage.filesystems import (
    absolute,
    join,
    list_names,
    remove,
    require_readable,
    write_json,
    write_table,
)
from p2p.storage.images import SUFFIXES
from p2p.storage.outputs import require_output
from p2p.synthetic.pairs import PALETTE

log = logging.getLogger("p2p")

_ERRORS = "errors"
_CHECK_FILES = (DOCUMENT, PAGE, "summary.json")
_OWN_FILES = ("dataset.json", *_CHECK_FILES)
_OWN_FOLDERS = (*SPLITS, _ERRORS)
_PART = re.compile(r"part-\d{5,}\.parquet")
_ERROR_SCHEMA = pa.schema([("source_uri", pa.string()), ("error", pa.string()), ("message", pa.string())])
_ERRORS_PER_PART = 100_000
_SYNTHETIC_SIZE = 256
_SMALL_PAIRS_PER_CORE, _SMALL_BYTES_PER_CORE = 400, 100 * 2**20  # about ten seconds
_SMALL_CORES = 4  # of which the threads of one process make use
_SECONDS_FOR_PICTURES = 600.0


def run(config: PrepareConfig) -> dict[str, Any]:
    """Do the whole job; see `p2p.preparation.prepare`."""
    started = time.monotonic()
    source = config.source if config.source.startswith(SYNTHETIC) else absolute(config.source)
    source_b = absolute(config.source_b) if config.source_b is not None else None
    output = absolute(config.output)
    addresses = [(source, "--source")] + ([(source_b, "--source-b")] if source_b is not None else [])
    for address, option in addresses:
        if not config.check:
            _require_apart(address, option, output)
        if kind_of(address) != "synthetic":
            require_readable(address, option)
    _require_replaceable(output, config)
    # A compressed tar cannot be listed without reading all of it, which waits until Ray can take its images.
    streamed = any(kind_of(address) == "stream" for address, _ in addresses)
    pairing = None if streamed else _find_pairs(config, source, source_b, ChunkStore())
    require_output(output, "output", "a prepared data set")

    chunks = ChunkStore()
    with session(small=pairing is not None and not wants_ray() and _is_small(pairing)) as worker:
        if worker:
            log.info("working in one process, without starting Ray: there are few pairs")
        if pairing is None:
            pairing = _find_pairs(config, source, source_b, chunks)
        _say_what_was_found(pairing, config)
        _clear(output)
        summary = _write(
            pairing, config, source=source, output=output, chunks=chunks.references, worker=worker, started=started
        )
    check_bad_fraction(
        summary["bad"],
        summary["bad"] + sum(summary["pairs"].values()),
        config.max_bad_fraction,
        join(output, _ERRORS),
        summary,
    )
    return summary


def _is_small(pairing: Pairing) -> bool:
    """Whether one process of this machine prepares them in about the time that it takes to start Ray."""
    cores = min(_SMALL_CORES, available_cpus())
    weight = sum(pair.weight for pair in pairing.pairs)
    return len(pairing.pairs) <= cores * _SMALL_PAIRS_PER_CORE and weight <= cores * _SMALL_BYTES_PER_CORE


def _require_apart(source: str, option: str, output: str) -> None:
    if f"{source.rstrip('/')}/".startswith(f"{output.rstrip('/')}/"):
        raise UsageError(f"--output {output}: holds {option} {source}, which would be replaced; choose another folder")


def _require_replaceable(output: str, config: PrepareConfig) -> None:
    """Raise UsageError if `output` holds anything that this job, with or without --check, did not write."""
    own, folders = (_CHECK_FILES, (_ERRORS,)) if config.check else (_OWN_FILES, _OWN_FOLDERS)
    strange = [name for name in list_names(output) if name not in (*own, *folders)]
    for folder in folders:
        names = list_names(join(output, folder)) if not strange else []
        strange += [f"{folder}/{name}" for name in names if not _PART.fullmatch(name)]
    if strange:
        shown = ", ".join(strange[:3]) + (", …" if len(strange) > 3 else "")
        why = "; --check changes no data set" if config.check else ""
        raise UsageError(
            f"--output {output}: holds files of something else ({shown}){why}; choose an empty or new folder"
        )


def _clear(output: str) -> None:
    """Remove what an earlier job wrote; a description first, so that a half-removed data set is not taken for whole."""
    for name in (*reversed(_OWN_FILES), *_OWN_FOLDERS):
        remove(join(output, name))


def _find_pairs(config: PrepareConfig, source: str, source_b: str | None, chunks: ChunkStore) -> Pairing:
    """List the source and pair it up. The images of compressed tars go into `chunks`."""
    if kind_of(source) == "synthetic":
        return _pair_drawings(config, source)
    if kind_of(source) == "parquet" and source_b is None:
        return pair_tables(source, config.layout, config.val_fraction)
    listing = _list(source, "--source", chunks, config.max_bytes)
    if source_b is None:
        if not listing.members and listing.parquet and kind_of(source) == "folder":
            return pair_tables(source, config.layout, config.val_fraction)
        listing.require_images("--source")
        return pair_one_source(listing, config.layout, config.val_fraction, kind_of(source) != "folder")
    listing_b = _list(source_b, "--source-b", chunks, config.max_bytes)
    listing.require_images("--source")
    listing_b.require_images("--source-b")
    archives = (kind_of(source) != "folder", kind_of(source_b) != "folder")
    return pair_two_sources(listing, listing_b, archives, config.val_fraction)


def _list(uri: str, option: str, chunks: ChunkStore, max_bytes: int) -> Listing:
    if kind_of(uri) != "stream":
        return _told(list_source(uri, option, max_bytes))

    def keep(chunk: bytearray) -> None:
        chunks.put(chunk, f"{option} {uri}")
        progress.advance(len(chunk) // 2**20)

    with Progress(f"reading {uri}", total=None, unit="MiB") as progress:
        return _told(read_stream(uri, option, keep, first=len(chunks.references), max_bytes=max_bytes))


def _told(listing: Listing) -> Listing:
    """The same; says what is left out for its ending, which may be images of a kind that is not read."""
    if listing.members and listing.others:
        log.info(
            "%s: %d other files are left out (the first: %s); images end in %s",
            listing.uri,
            listing.others,
            listing.example,
            " ".join(SUFFIXES),
        )
    return listing


def _pair_drawings(config: PrepareConfig, source: str) -> Pairing:
    asked = parse_synthetic(source)
    size = config.load_size or _SYNTHETIC_SIZE
    height, width = asked.height or size, asked.width or size
    pairing = Pairing(layout="folders", note="A is the aerial photograph, B the map")
    for index in range(asked.pairs):
        pair_id = f"city-{asked.seed}-{index:06d}"
        split = choose_split("", pair_id, config.val_fraction)
        drawing = Drawing(asked.seed, index, height, width)
        pairing.pairs.append(PairRef(pair_id, split, drawing, None, 3 * height * width))
    return pairing


def _say_what_was_found(pairing: Pairing, config: PrepareConfig) -> None:
    counts = {split: sum(pair.split == split for pair in pairing.pairs) for split in SPLITS}
    found = ", ".join(f"{count} {split}" for split, count in counts.items() if count)
    log.info("found %d pairs (%s); %s", len(pairing.pairs), found, pairing.note)
    if config.val_fraction and not counts["val"]:
        log.warning(
            "--val-fraction %g puts no pair into val: split folders decide for themselves, of few pairs none may go",
            config.val_fraction,
        )


def _fetcher(chunks: list[Any], max_bytes: int, row_by_row: bool = False) -> Fetcher:
    """Reads whatever a location names; compressed tars lie in `chunks` of Ray's object store."""

    def chunk(number: int) -> memoryview:
        import ray

        return memoryview(ray.get(chunks[number]))

    return Fetcher(chunk, max_bytes, row_by_row)


@dataclass(frozen=True)
class _PartWriter:
    """Prepares the pairs of one shard at a time, on whatever process; the pairs themselves go straight to storage."""

    output: str | None
    config: PrepareConfig
    close_share: float
    chunks: list[Any]

    def __call__(self, shard: Shard) -> ShardReport:
        fatal: list[BadRow] = []
        config, some = self.config, f"pairs such as {shard.pairs[0].a.uri}"
        with memory_reported(f"preparing {some}"):
            fetch = _fetcher(self.chunks, config.max_bytes)
            if is_repeat(some):
                fetch = _fetcher(self.chunks, config.max_bytes, row_by_row=True)
                shard, fatal = drop_fatal_pairs(shard, config.load_size, fetch, config.formats)
            report = write_shard(
                shard, self.output, config.load_size, fetch, formats=config.formats, close_share=self.close_share
            )
        report.bad += fatal
        return report

    def in_ray(self, batch: pa.Table) -> pa.Table:
        """As a map function of Ray Data: pickled shards in, pickled reports out."""
        reports = [pickle.dumps(self(pickle.loads(shard))) for shard in batch.column("shard").to_pylist()]
        return pa.table({"report": pa.array(reports, pa.binary())})


def _numbered(writer: _PartWriter) -> Callable[[tuple[int, Shard]], list[tuple[int, ShardReport]]]:
    return lambda numbered: [(numbered[0], writer(numbered[1]))]


def _reports(shards: list[Shard], writer: _PartWriter, worker: LocalWorker | None) -> Iterator[ShardReport]:
    if worker:
        found = worker.map(_numbered, (writer,), list(enumerate(shards)), threads=available_cpus())
        seen: set[int] = set()
        for number, report in found:
            if number not in seen:
                seen.add(number)
                yield report
        return
    import ray.data

    from p2p.data.cluster import quiet_data_context

    quiet_data_context()
    rows = [{"shard": pickle.dumps(shard)} for shard in shards]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        writer.in_ray, batch_size=1, batch_format="pyarrow"
    )
    for row in dataset.iter_rows():
        yield pickle.loads(row["report"])


def _write(
    pairing: Pairing,
    config: PrepareConfig,
    *,
    source: str,
    output: str,
    chunks: list[Any],
    worker: LocalWorker | None,
    started: float,
) -> dict[str, Any]:
    counts = dict.fromkeys(SPLITS, 0)
    bad = list(pairing.bad)
    palette_a: Palette = frozenset()
    palette_b: Palette = frozenset()
    doctor = Doctor()
    shards = cut_into_shards(pairing.pairs)
    close_share = min(1.0, MOST_CLOSE / max(1, len(pairing.pairs)))
    writer = _PartWriter(None if config.check else output, config, close_share, chunks)
    with Progress("checking" if config.check else "preparing", total=len(pairing.pairs), unit="pairs") as progress:
        for report in _reports(shards, writer, worker):
            counts[report.split] += report.pairs
            doctor.add(report.split, report.portraits)
            bad += report.bad
            palette_a = merge_palettes(palette_a, report.palette_a)
            palette_b = merge_palettes(palette_b, report.palette_b)
            progress.advance(report.pairs + len(report.bad), f"{len(bad)} bad" if bad else "")
    _write_errors(output, bad)
    if not config.check:
        fixed = as_palette(list(PALETTE.values())) if source.startswith(SYNTHETIC) else None
        described = Description(
            output,
            Side(config.formats[0], _listed(palette_a)),
            Side(config.formats[1], fixed or _listed(palette_b)),
            config.load_size,
        )
        write_description(described, layout=pairing.layout, source=source)
    about = {"source": source, "pairs": counts, "bad": len(bad), "sides": pairing.note}
    found = conclude(doctor, bad, _show(pairing, config, chunks), output, about)
    summary = {
        "pairs": counts,
        "bad": len(bad),
        "doctor": found,
        "seconds": round(time.monotonic() - started, 3),
    }
    write_json(join(output, "summary.json"), summary)
    return summary


def _show(pairing: Pairing, config: PrepareConfig, chunks: list[Any]) -> Callable[[Iterable[Key]], Sides]:
    """What fetches some pairs once more, small, for the doctor's page; none where that fails, which is no reason to."""

    def show(keys: Iterable[Key]) -> Sides:
        wanted = set(keys)
        pairs = [pair for pair in pairing.pairs if (pair.split, pair.pair_id) in wanted]
        try:
            return run_as_task(_make_thumbnails, pairs, config, chunks, seconds=_SECONDS_FOR_PICTURES)
        except P2PError as error:
            log.warning("the doctor's page has no pictures: %s", error)
            return {}

    return show


def _make_thumbnails(pairs: list[PairRef], config: PrepareConfig, chunks: list[Any]) -> Sides:
    decoded = decode_pairs(pairs, config.load_size, _fetcher(chunks, config.max_bytes), [], config.formats)
    return {
        (pair.split, pair.pair_id): (thumbnail(as_rgb(a.image)), thumbnail(as_rgb(b.image))) for pair, a, b in decoded
    }


def _listed(palette: Palette) -> Classes | None:
    return tuple(sorted(palette)) if palette else None


def _write_errors(output: str, bad: list[BadRow]) -> None:
    ordered = sorted(bad, key=lambda row: (row.source_uri, row.error))
    for number, first in enumerate(range(0, len(ordered), _ERRORS_PER_PART)):
        rows = [vars(row) for row in ordered[first : first + _ERRORS_PER_PART]]
        write_table(join(output, _ERRORS, part_name(number)), pa.Table.from_pylist(rows, schema=_ERROR_SCHEMA))
