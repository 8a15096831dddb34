"""The job: list the source, cut its pairs into parts, let Ray Data write them, report what was written."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from p2p.data.description import Description, SideDescription, write_description
from p2p.data.local import LocalWorker, session, wants_ray
from p2p.data.machine import available_cpus
from p2p.data.pairs import FEATURES_FOLDER, SPLITS, part_name
from p2p.data.tasks import is_repeat, memory_reported, run_as_task
from p2p.doctor import Doctor
from p2p.doctor.features import MAX_DETAILED
from p2p.doctor.files import BadRow
from p2p.errors import ConfigError, P2PError, check_bad_fraction
from p2p.model.config import Palette, as_palette
from p2p.preparation.chunks import ChunkStore
from p2p.preparation.config import SYNTHETIC, PrepareConfig
from p2p.preparation.fatal_pairs import drop_fatal_pairs
from p2p.preparation.findings import DOCUMENT, PAGE, Key, Sides, publish_findings
from p2p.preparation.locations import Cell
from p2p.preparation.pairing import Pairing, PairRef
from p2p.preparation.palettes import FoundPalette, find_palette, parse_palette, pixels_per_pair
from p2p.preparation.parts import (
    Colours,
    Part,
    PartReport,
    cut_into_parts,
    decode_pairs,
    merge_colours,
    write_part,
)
from p2p.preparation.rasters import pair_rasters
from p2p.preparation.recognition import choose_pairing, find_pairs, make_reader
from p2p.preparation.sources import source_format
from p2p.progress import Progress
from p2p.reports.sheets import as_rgb
from p2p.reports.thumbnails import thumbnail
from p2p.scenes.bands import RasterBands
from p2p.storage.filesystems import (
    SECONDS_BETWEEN_CHECKS,
    absolute,
    join,
    list_names,
    remove,
    remove_file,
    remove_files,
    require_readable,
    write_json,
    write_table,
)
from p2p.storage.lease import NAME as LEASE
from p2p.storage.lease import Fence, hold_lease
from p2p.storage.outputs import is_within, require_output
from p2p.storage.pixels import Array
from p2p.storage.rasters import rasterio
from p2p.synthetic.pairs import PALETTE

log = logging.getLogger("p2p")

_ERRORS = "errors"
_CHECK_FILES = (DOCUMENT, PAGE, "summary.json")
_OWN_FILES = ("dataset.json", *_CHECK_FILES)
_OWN_FOLDERS = (*SPLITS, _ERRORS, FEATURES_FOLDER)
_OWN_TABLE = re.compile(rf"(part-\d{{5,}}|({'|'.join(SPLITS)})-[0-9a-f]{{16}})\.parquet")
_ERROR_SCHEMA = pa.schema([("source_uri", pa.string()), ("error", pa.string()), ("message", pa.string())])
_ERRORS_PER_PART = 100_000
_SMALL_PAIRS_PER_CORE, _SMALL_BYTES_PER_CORE = 400, 100 * 2**20  # about ten seconds
_SMALL_CORES = 4  # of which the threads of one process make use
_SECONDS_FOR_PICTURES = 600.0


def run(config: PrepareConfig) -> dict[str, Any]:
    """Do the whole job; see `p2p.preparation.prepare`."""
    started = time.monotonic()
    source = config.source if config.source.startswith(SYNTHETIC) else absolute(config.source)
    source_b = absolute(config.source_b) if config.source_b is not None else None
    output = absolute(config.output)
    wanted_palette = None if config.palette is None else parse_palette(config.palette)
    addresses = {"source": source} | ({"source_b": source_b} if source_b is not None else {})
    for field, address in addresses.items():
        if source_format(address) == "synthetic":
            continue
        if not config.check and is_within(address, output):
            problem = f"holds the {field} {address}, which would be replaced; choose another folder"
            raise ConfigError("output", f"{output}: {problem}")
        require_readable(address, field)
    require_output(output, "output", "a prepared data set")
    with hold_lease(output, "output", "prepare") as fence:
        _require_replaceable(output, config)
        # A compressed tar cannot be listed without reading all of it, which waits until Ray can take its images.
        streamed = any(source_format(address) == "stream" for address in addresses.values())
        bands: tuple[RasterBands | None, RasterBands | None] = (None, None)
        found: list[Pairing] | None
        if config.layout == "rasters":
            assert source_b is not None
            config, found, bands = _cut_rasters(config, source, source_b)
        else:
            found = None if streamed else find_pairs(config, source, source_b, ChunkStore())
            if found and isinstance(found[0].pairs[0].a, Cell) and is_within(output, source):
                problem = f"is in {source}, where every Parquet file is taken for pairs, those written here too"
                raise ConfigError("output", f"{output}: {problem}; choose a folder beside it")
        chunks = ChunkStore()
        with session(small=found is not None and not wants_ray() and _is_small(found[0])) as worker:
            if worker:
                log.info("working in one process, without starting Ray: there are few pairs")
            if found is None:
                found = find_pairs(config, source, source_b, chunks)
            pairing = choose_pairing(found, config, source, chunks.references)
            fence.check()
            _clear(output, config, fence)
            summary = _write(
                pairing,
                config,
                source=source,
                output=output,
                chunks=chunks.references,
                worker=worker,
                fence=fence,
                wanted_palette=wanted_palette,
                started=started,
                bands=bands,
            )
    check_bad_fraction(
        summary["bad"],
        summary["bad"] + sum(summary["pairs"].values()),
        config.max_bad_fraction,
        join(output, _ERRORS),
        summary,
    )
    return summary


def _cut_rasters(
    config: PrepareConfig, source: str, source_b: str
) -> tuple[PrepareConfig, list[Pairing], tuple[RasterBands, RasterBands]]:
    """The windows of rasters, and the configuration under which they are stored as they are."""
    rasterio()
    with session(small=not wants_ray()):  # headers and pixels of unknown origin are read by another process
        found = run_as_task(pair_rasters, config, source, source_b)
    pixels = [str(pixels) for pixels in found.formats]
    stored = copy.copy(config)
    for field, value in (("load_size", 0), ("pixels_a", pixels[0]), ("pixels_b", pixels[1])):
        object.__setattr__(stored, field, value)
    return stored, [found.pairing], found.bands


def _is_small(pairing: Pairing) -> bool:
    """Whether one process of this machine prepares them in about the time that it takes to start Ray."""
    cores = min(_SMALL_CORES, available_cpus())
    weight = sum(pair.weight for pair in pairing.pairs)
    return len(pairing.pairs) <= cores * _SMALL_PAIRS_PER_CORE and weight <= cores * _SMALL_BYTES_PER_CORE


def _require_replaceable(output: str, config: PrepareConfig) -> None:
    """Raise ConfigError if `output` holds anything that this job, with or without --check, did not write."""
    own, folders = _own_names(config)
    foreign = [name for name in list_names(output) if name not in (*own, *folders, LEASE)]
    for folder in folders:
        names = list_names(join(output, folder)) if not foreign else []
        foreign += [f"{folder}/{name}" for name in names if not _OWN_TABLE.fullmatch(name)]
    if foreign:
        shown = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
        why = "; --check changes no data set" if config.check else ""
        problem = f"holds files of something else ({shown}){why}; choose an empty or new folder"
        raise ConfigError("output", f"{output}: {problem}")


def _own_names(config: PrepareConfig) -> tuple[Sequence[str], Sequence[str]]:
    """The files and folders that this job, with or without --check, writes."""
    return (_CHECK_FILES, (_ERRORS,)) if config.check else (_OWN_FILES, _OWN_FOLDERS)


def _clear(output: str, config: PrepareConfig, fence: Fence) -> None:
    """Remove what an earlier job wrote; a description first, so that a half-removed data set is not taken for whole."""
    files, folders = _own_names(config)
    for name in files:
        fence.check(SECONDS_BETWEEN_CHECKS)
        remove_file(join(output, name))
    for folder in (join(output, folder) for folder in folders):
        if not os.path.islink(folder):  # what lies behind a link is not removed with it
            remove_files([join(folder, name) for name in list_names(folder)], fence)
        remove(folder)


@dataclass(frozen=True)
class _PartWriter:
    """Prepares the pairs of one part at a time, on whatever process; the pairs themselves go straight to storage."""

    output: str | None
    config: PrepareConfig
    detailed_share: float
    chunks: list[Any]
    fence: Fence
    sample: tuple[float, int] | None

    def __call__(self, part: Part) -> PartReport:
        fatal: list[BadRow] = []
        config, some = self.config, f"pairs such as {part.pairs[0].a.uri}"
        with memory_reported(f"preparing {some}"):
            fetch = make_reader(self.chunks, config.max_bytes)
            if is_repeat(some):
                fetch = make_reader(self.chunks, config.max_bytes, row_by_row=True)
                part, fatal = drop_fatal_pairs(part, config.load_size, fetch, config.formats)
            report = write_part(
                part,
                self.output,
                config.load_size,
                fetch,
                formats=config.formats,
                detailed_share=self.detailed_share,
                sample=self.sample,
                fence=self.fence,
            )
        report.bad += fatal
        return report

    def in_ray(self, batch: pa.Table) -> pa.Table:
        """As a map function of Ray Data: pickled parts in, pickled reports out."""
        reports = [pickle.dumps(self(pickle.loads(part))) for part in batch.column("part").to_pylist()]
        return pa.table({"report": pa.array(reports, pa.binary())})


def _numbered(writer: _PartWriter) -> Callable[[tuple[int, Part]], list[tuple[int, PartReport]]]:
    return lambda numbered: [(numbered[0], writer(numbered[1]))]


def _reports(parts: list[Part], writer: _PartWriter, worker: LocalWorker | None) -> Iterator[PartReport]:
    if worker:
        found = worker.map(_numbered, (writer,), list(enumerate(parts)), threads=available_cpus())
        seen: set[int] = set()
        for number, report in found:
            if number not in seen:
                seen.add(number)
                yield report
        return
    import ray.data

    from p2p.data.cluster import quiet_data_context

    quiet_data_context()
    rows = [{"part": pickle.dumps(part)} for part in parts]
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
    fence: Fence,
    wanted_palette: int | Palette | None,
    started: float,
    bands: tuple[RasterBands | None, RasterBands | None],
) -> dict[str, Any]:
    counts = dict.fromkeys(SPLITS, 0)
    bad = list(pairing.bad)
    colours_a: Colours = frozenset()
    colours_b: Colours = frozenset()
    doctor = Doctor()
    parts = cut_into_parts(pairing.pairs)
    detailed_share = min(1.0, MAX_DETAILED / max(1, len(pairing.pairs)))
    sample = None if wanted_palette is None else pixels_per_pair(len(pairing.pairs))
    writer = _PartWriter(None if config.check else output, config, detailed_share, chunks, fence, sample)
    pixels: tuple[list[Array], list[Array]] = ([], [])
    with Progress("checking" if config.check else "preparing", total=len(pairing.pairs), unit="pairs") as progress:
        for report in _reports(parts, writer, worker):
            counts[report.split] += report.pairs
            doctor.add(report.split, report.features)
            bad += report.bad
            colours_a = merge_colours(colours_a, report.colours_a)
            colours_b = merge_colours(colours_b, report.colours_b)
            pixels[0].extend(report.pixels_a)
            pixels[1].extend(report.pixels_b)
            progress.advance(report.pairs + len(report.bad), f"{len(bad)} bad" if bad else "")
    _write_errors(output, bad, fence)
    palette = None if wanted_palette is None else find_palette(wanted_palette, pixels)
    if not config.check:
        fixed = as_palette(list(PALETTE.values())) if source.startswith(SYNTHETIC) else None
        described = Description(
            output,
            SideDescription(config.formats[0], _of_side("a", palette) or _to_palette(colours_a), bands[0]),
            SideDescription(config.formats[1], _of_side("b", palette) or fixed or _to_palette(colours_b), bands[1]),
            config.window if config.layout == "rasters" else config.load_size,
        )
        fence.check()
        write_description(described, layout=pairing.layout.name, source=source)
    about = {"source": source, "pairs": counts, "bad": len(bad), "sides": pairing.layout.names_of_sides}
    show = _show(pairing, config, chunks, fence)
    fence.check()
    found = publish_findings(doctor, bad, show, output=output, about=about, palette=palette)
    summary = {
        "pairs": counts,
        "bad": len(bad),
        "doctor": found,
        "seconds": round(time.monotonic() - started, 3),
    }
    fence.check()
    write_json(join(output, "summary.json"), summary)
    return summary


def _show(pairing: Pairing, config: PrepareConfig, chunks: list[Any], fence: Fence) -> Callable[[Iterable[Key]], Sides]:
    """A function that fetches some pairs again, small, for the doctor's page; none where that fails.

    That takes minutes perhaps, so it looks at the lease afterwards: the page is written next.
    """

    def show(keys: Iterable[Key]) -> Sides:
        wanted = set(keys)
        pairs = [pair for pair in pairing.pairs if (pair.split, pair.pair_id) in wanted]
        sides: Sides = {}
        try:
            sides = run_as_task(_make_thumbnails, pairs, config, chunks, seconds=_SECONDS_FOR_PICTURES)
        except P2PError as error:
            log.warning("the doctor's page has no pictures: %s", error)
        fence.check()
        return sides

    return show


def _make_thumbnails(pairs: list[PairRef], config: PrepareConfig, chunks: list[Any]) -> Sides:
    decoded = decode_pairs(pairs, config.load_size, make_reader(chunks, config.max_bytes), [], config.formats)
    return {
        (pair.split, pair.pair_id): (thumbnail(as_rgb(a.image)), thumbnail(as_rgb(b.image))) for pair, a, b in decoded
    }


def _of_side(side: str, palette: FoundPalette | None) -> Palette | None:
    return palette.colours if palette and palette.side == side else None


def _to_palette(colours: Colours) -> Palette | None:
    return tuple(sorted(colours)) if colours else None


def _write_errors(output: str, bad: list[BadRow], fence: Fence) -> None:
    ordered = sorted(bad, key=lambda row: (row.source_uri, row.error))
    for number, first in enumerate(range(0, len(ordered), _ERRORS_PER_PART)):
        rows = [vars(row) for row in ordered[first : first + _ERRORS_PER_PART]]
        fence.check()
        write_table(join(output, _ERRORS, part_name(number)), pa.Table.from_pylist(rows, schema=_ERROR_SCHEMA))
