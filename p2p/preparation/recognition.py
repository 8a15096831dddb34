"""Finding the pairs of a source, and making sure that they are pairs, before any work starts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from p2p.data.joining import FoundLayout, describe_left_out
from p2p.data.layouts import UNPAIRED_TOO
from p2p.data.matching import Unclear, match_names
from p2p.doctor.evidence import MAX_EXAMINED, NO_PAIR, Evidence, examine, examine_in_task, no_pairs, warn_of_strangers
from p2p.doctor.files import BadRow
from p2p.errors import ConfigError
from p2p.preparation.chunks import ChunkStore
from p2p.preparation.config import PrepareConfig, parse_synthetic
from p2p.preparation.locations import Cell, Drawing, SourceReader
from p2p.preparation.pairing import Pairing, PairRef, choose_split, pair_one_source, pair_two_sources
from p2p.preparation.parts import decode_pairs
from p2p.preparation.sources import Listing, list_source, read_stream, source_format
from p2p.preparation.tables import pair_tables, rows_with_images
from p2p.progress import Progress

log = logging.getLogger("p2p")

_SYNTHETIC_SIZE = 256
_MAX_LISTS_SHOWN = 3
_ONLY_SHAPES = 286  # any size: two sides that are scaled to one must have the same shape only


def find_pairs(config: PrepareConfig, source: str, source_b: str | None, chunks: ChunkStore) -> list[Pairing]:
    """List the source and pair it up. The images of compressed tars go into `chunks`.

    Returns what it may be, the likeliest first. Raises ConfigError where nothing pairs up.
    """
    kind, label_kind = source_format(source), "" if config.label_kind == "auto" else config.label_kind
    if kind == "synthetic":
        return [_pair_drawings(config, source)]
    if kind == "parquet" and source_b is None:
        return [_pair_tables(config, source)]
    listing = _list(source, "source", chunks, config.max_bytes)
    if source_b is None:
        if listing.parquet and kind == "folder":
            tables = _pair_tables_beside(listing, config) if listing.members else _pair_tables(config, source)
            if tables:
                return [tables]
        _log_left_out(listing).require_images("source")
        found = pair_one_source(
            listing,
            config.layout,
            config.val_fraction,
            patterns=config.patterns,
            label_kind=label_kind,
            is_archive=kind != "folder",
        )
        _warn_of_split_lists([listing], found)
        return found
    listing_b = _list(source_b, "source_b", chunks, config.max_bytes)
    _log_left_out(listing).require_images("source")
    _log_left_out(listing_b).require_images("source_b")
    found = [pair_two_sources(listing, listing_b, config.val_fraction, config.patterns, label_kind=label_kind)]
    _warn_of_split_lists([listing, listing_b], found)
    return found


def _pair_tables_beside(listing: Listing, config: PrepareConfig) -> Pairing | None:
    """The Parquet data set beside which images lie that only illustrate it, such as a preview; these are reported.

    None where the images are meant, whose names pair up, and the columns do not, as those of thumbnails. Raises
    ConfigError where either may be meant: where more images than the rows of images lie there.
    """
    paths = [member.path for member in listing.members]
    rows = 0 if config.patterns else rows_with_images(listing.uri, len(paths))  # patterns are of names of images
    if not rows:  # captions or addresses of those images
        return None
    found = match_names(paths, config.layout)
    have_pairs = bool(found.choices) if isinstance(found, Unclear) else not found[-1].layout.is_combined
    if have_pairs and config.layout == "folders":
        return None
    are_meant = have_pairs or rows < len(paths)
    try:
        tables = _pair_tables(config, listing.uri)
    except ConfigError:
        if are_meant:
            return None
        raise
    if are_meant and tables.layout.is_combined:
        return None
    pictures = f"{len(paths)} image{'s' if len(paths) > 1 else ''} ({describe_left_out(paths)})"
    if rows < len(paths):
        problem = f"holds a Parquet data set with images in {rows} of its rows, and {pictures} beside it"
        ways = "--pattern-a PATTERN --pattern-b PATTERN for the images, or give a folder that holds one of the two"
        raise ConfigError("source", f"{listing.uri}: {problem}. Pass {ways}")
    log.info("%s: a Parquet data set; left out beside it: %s", listing.uri, pictures)
    return tables


def _warn_of_split_lists(listings: Sequence[Listing], found: Sequence[Pairing]) -> None:
    """Where no folder says a split, lists beside the images may; these are not read."""
    lists = [path for listing in listings for path in listing.split_lists]
    counts = found[0].counts()
    if lists and not counts["test"] and (not counts["val"] or not counts["train"]):
        log.warning(
            "%s may list which images belong to a split; lists are not read, so move the images into folders named "
            "train, val and test, or hold out a share by --val-fraction",
            ", ".join([*lists[:_MAX_LISTS_SHOWN], *(["…"] if lists[_MAX_LISTS_SHOWN:] else [])]),
        )


def _pair_tables(config: PrepareConfig, source: str) -> Pairing:
    if config.patterns:
        problem = (
            f"is about names of files, and {source} is a Parquet data set, whose columns are the sides; leave it out"
        )
        raise ConfigError("pattern_a", f"{config.pattern_a}: {problem}")
    return pair_tables(source, config.layout, config.val_fraction)


def _list(uri: str, field: str, chunks: ChunkStore, max_bytes: int) -> Listing:
    if source_format(uri) != "stream":
        return list_source(uri, field, max_bytes)

    def keep(chunk: bytearray) -> None:
        chunks.put(chunk, f"--{field.replace('_', '-')} {uri}")
        progress.advance(len(chunk) // 2**20)

    with Progress(f"reading {uri}", total=None, unit="MiB") as progress:
        return read_stream(uri, field, keep, first=len(chunks.references), max_bytes=max_bytes)


def _log_left_out(listing: Listing) -> Listing:
    """The same. Files are left out by their names' endings; they may be images of a format that is not read."""
    if listing.members:
        listing.left_out.log(listing.uri)
    return listing


def _pair_drawings(config: PrepareConfig, source: str) -> Pairing:
    asked = parse_synthetic(source)
    size = config.load_size or _SYNTHETIC_SIZE
    height, width = asked.height or size, asked.width or size
    pairing = Pairing(FoundLayout("synthetic", ("aerial photograph", "map")))
    for index in range(asked.pairs):
        pair_id = f"city-{asked.seed}-{index:06d}"
        split = choose_split("", pair_id, config.val_fraction)
        drawing = Drawing(asked.seed, index, height, width)
        pairing.add(PairRef(pair_id, split, drawing, None, 3 * height * width))
    return pairing


def choose_pairing(found: Sequence[Pairing], config: PrepareConfig, source: str, chunks: list[Any]) -> Pairing:
    """The first of `found` that is certain, or of which some images show that they are pairs; it is printed.

    Raises ConfigError if there is none.
    """
    first: Evidence | None = None
    for pairing in found:
        is_certain = pairing.layout.is_certain
        if is_certain and pairing.layout.name not in UNPAIRED_TOO:
            break
        evidence = examine_in_task(_examine, _spread(pairing.pairs), config, chunks)
        if pairing.layout.is_combined:
            first = first or evidence
        # Where nothing can be decoded, each is a bad input.
        if is_certain or not evidence.examined or evidence.shows_pairs(pairing.layout.is_combined):
            warn_of_strangers(source, pairing.layout, evidence)
            if pairing.layout.is_combined:
                pairing.expect_shape(evidence.usual_shape)
            break
    else:
        layout = found[0].layout
        choices = [other.layout.patterns for other in found if other.layout.patterns]
        seen = Unclear(layout.seen, tuple(choices), have_names=not isinstance(found[0].pairs[0].a, Cell))
        raise no_pairs("source", source, len(found[0].pairs), seen, first)
    counts = pairing.counts()
    log.info("%s", pairing.layout.summary(counts))
    if pairing.left_out:
        log.info("left out, neither A nor B of a pair: %s", pairing.left_out)
    if pairing.unsplit:
        log.warning(
            "beside the folders of splits, so in train unless --val-fraction chooses them: %s; where they are for "
            "validation or test, name their folder val or test",
            pairing.unsplit,
        )
    if config.val_fraction and not counts["val"]:
        log.warning(
            "--val-fraction %g puts no pair into val: it leaves split folders alone, and may choose none of few pairs",
            config.val_fraction,
        )
    return pairing


def _spread(pairs: Sequence[PairRef]) -> list[PairRef]:
    """Some pairs of all parts of the source."""
    return list(pairs[:: -(-len(pairs) // MAX_EXAMINED)])


def _examine(pairs: Sequence[PairRef], config: PrepareConfig, chunks: list[Any]) -> Evidence:
    bad: list[BadRow] = []
    reader = make_reader(chunks, config.max_bytes)
    decoded = decode_pairs(pairs, config.load_size or _ONLY_SHAPES, reader, bad, config.formats)
    evidence = examine((a.image, b.image) for _, a, b in decoded)
    no_pair = sum(row.error in NO_PAIR for row in bad)
    return evidence + Evidence(no_pair)


def make_reader(chunks: list[Any], max_bytes: int, row_by_row: bool = False) -> SourceReader:
    """Reads whatever a location names; compressed tars lie in `chunks` of Ray's object store."""

    def chunk(number: int) -> memoryview:
        import ray

        return memoryview(ray.get(chunks[number]))

    return SourceReader(chunk, max_bytes, row_by_row)
