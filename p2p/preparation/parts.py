"""The work of one task: read the pairs of an output file, check and resize them, publish the file."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa
from PIL import Image

from p2p.data.pairs import PAIR_SCHEMA, ROW_GROUP_PAIRS, Formats, part_name
from p2p.data.sizes import check_sizes
from p2p.doctor.evidence import examine, have_one_shape
from p2p.doctor.features import PairFeatures, collect, compute_features, is_sampled
from p2p.doctor.files import BadRow
from p2p.errors import BadInputError
from p2p.model.config import MAX_PALETTE
from p2p.preparation.locations import Drawing, File, Location
from p2p.preparation.pairing import PairRef
from p2p.preparation.palettes import sample_pixels
from p2p.preparation.windows import RasterWindow
from p2p.storage import images
from p2p.storage.deadline import decode_deadline
from p2p.storage.filesystems import is_remote, join, write_table
from p2p.storage.lease import Fence
from p2p.storage.pixels import RGB, Array, Pixels
from p2p.synthetic.pairs import city_pair

_PLACED_SCHEMA = pa.schema([*PAIR_SCHEMA, ("crs", pa.string()), ("transform", pa.list_(pa.float64(), 6))])
"""Of windows of rasters: where each lies."""
MAX_PART_PAIRS = 1024
_MAX_PART_BYTES = 128 * 2**20
_TARGET_PARTS = 256
_READER_THREADS = 16  # an object store answers slowly, but many requests at once
_MAX_DRAWN_COLOURS = 256  # an image of more colours is a photograph; others are stored without loss

Read = Callable[[Location], bytes]
"""As `SourceReader` does."""
Colours = frozenset[tuple[int, int, int]] | None
"""None: more than MAX_PALETTE."""


@dataclass(frozen=True)
class Part:
    """The pairs of one output file."""

    split: str
    number: int
    pairs: tuple[PairRef, ...]


@dataclass
class PartReport:
    """How many pairs of a part are good, which are bad, the colours of each side, and the features of the good ones."""

    split: str
    pairs: int = 0
    bad: list[BadRow] = field(default_factory=list)
    colours_a: Colours = frozenset()
    colours_b: Colours = frozenset()
    pixels_a: list[Array] = field(default_factory=list)
    """Some of each sampled pair, (n, 3)."""
    pixels_b: list[Array] = field(default_factory=list)
    features: PairFeatures = field(default_factory=lambda: collect([]))


def cut_into_parts(pairs: Sequence[PairRef]) -> list[Part]:
    """Cut each split, in order, into files of whole row groups; the cuts depend on the pairs alone.

    Some 256 files, so that many workers share even a small data set, but never more than 1024 pairs or 128 MiB each.
    """
    limit = -(-len(pairs) // _TARGET_PARTS)
    limit = min(MAX_PART_PAIRS, -(-limit // ROW_GROUP_PAIRS) * ROW_GROUP_PAIRS)
    parts = []
    for split in sorted({pair.split for pair in pairs}):
        chosen: list[PairRef] = []
        weight, number = 0, 0
        for pair in (pair for pair in pairs if pair.split == split):
            if chosen and (len(chosen) == limit or weight + pair.weight > _MAX_PART_BYTES):
                parts.append(Part(split, number, tuple(chosen)))
                chosen, weight, number = [], 0, number + 1
            chosen.append(pair)
            weight += pair.weight
        parts.append(Part(split, number, tuple(chosen)))
    return parts


@dataclass(frozen=True)
class DecodedSide:
    """One side of a pair: its pixels, its original bytes where a file holds just it, and what `DecodedImage` says."""

    image: Pixels
    original: bytes = b""
    mode: str = ""
    is_plain: bool = False

    @property
    def size(self) -> str:
        """`WIDTHxHEIGHT`, for messages."""
        return f"{self.image.shape[1]}x{self.image.shape[0]}"


def write_part(
    part: Part,
    output: str | None,
    load_size: int,
    read: Read,
    *,
    formats: Formats = (RGB, RGB),
    detailed_share: float = 1.0,
    sample: tuple[float, int] | None = None,
    fence: Fence | None = None,
) -> PartReport:
    """Publish `OUTPUT/<split>/part-<number>.parquet`, or nothing if every pair is bad.

    Args:
        part: the pairs of one file.
        output: the data set's folder; None stores nothing.
        load_size: side of the stored images, pixels; 0 keeps each pair's own size.
        read: gets the bytes at a location.
        formats: pixels of A and of B.
        detailed_share: share, 0..1, of the pairs whose features are computed in detail.
        sample: of which share of the pairs how many pixels of each side are put into the report; None of none.
        fence: of the job that writes there.

    Raises:
        LeaseLostError: another job writes there now.

    """
    report = PartReport(part.split)
    rows: list[dict[str, Any]] = []
    features = []
    for pair, a, b in decode_pairs(part.pairs, load_size, read, report.bad, formats):
        if output is not None:
            rows.append(make_row(pair, a, b, load_size, report))
        if sample and is_sampled(pair.pair_id, sample[0]):
            for side, found, format in zip((a, b), (report.pixels_a, report.pixels_b), formats, strict=True):
                if format == RGB:
                    found.append(sample_pixels(cast(Array, side.image), pair.pair_id, sample[1]))
        detailed = is_sampled(pair.pair_id, detailed_share)
        features.append((pair.pair_id, *compute_features(a.image, b.image, (a.mode, b.mode), detailed=detailed)))
    if rows and output is not None:
        are_placed = isinstance(part.pairs[0].a, RasterWindow)
        table = pa.Table.from_pylist(rows, schema=_PLACED_SCHEMA if are_placed else PAIR_SCHEMA)
        uri = join(output, part.split, part_name(part.number))
        write_table(uri, table, row_group_size=ROW_GROUP_PAIRS, fence=fence)
    report.pairs = len(features)
    report.features = collect(features)
    return report


def decode_pairs(
    pairs: Sequence[PairRef], load_size: int, read: Read, bad: list[BadRow], formats: Formats = (RGB, RGB)
) -> Iterator[tuple[PairRef, DecodedSide, DecodedSide]]:
    """Yield the pairs of which both sides can be decoded and fit each other, with them; the others go into `bad`."""
    for pair, encoded in _read_all(pairs, read):
        where = pair.a.uri
        try:
            if isinstance(pair.a, Drawing):
                drawn = city_pair(pair.a.seed, pair.a.index, pair.a.height, pair.a.width)
                sides = [DecodedSide(image) for image in drawn]
            else:
                sides = []
            for (location, data), wanted in zip(encoded, formats, strict=False):
                where = location.uri
                if isinstance(data, BadInputError):
                    raise data
                with decode_deadline():
                    image, mode, is_plain = images.read_image(data, wanted)
                sides.append(DecodedSide(image, data, mode if wanted == RGB else "", is_plain))
            where = pair.a.uri
            if len(sides) == 1:
                sides = _halves(sides[0], formats)
                _check_shape(pair, sides[0], sides[1])
            _check_sizes(pair, sides[0], sides[1], load_size)
        except BadInputError as error:
            bad.append(BadRow(where, error.kind, str(error)))
        else:
            yield pair, sides[0], sides[1]


def _halves(whole: DecodedSide, formats: Formats) -> list[DecodedSide]:
    """A and B of a combined image that was decoded as A is."""
    with decode_deadline():
        image_b = whole.image if formats[0] == formats[1] else images.decode(whole.original, formats[1])
    halves = images.split_halves(whole.image)[0], images.split_halves(image_b)[1]
    return [DecodedSide(half, mode=whole.mode) for half in halves]


def _check_shape(pair: PairRef, a: DecodedSide, b: DecodedSide) -> None:
    """Raise BadInputError for a picture that is not shaped as the combined pairs around it, and looks like none."""
    height, width = a.image.shape[:2]
    if not pair.shape or have_one_shape(width / height, pair.shape):
        return
    seen = examine([(a.image, b.image)])
    if not seen.borders and not seen.outlines:
        raise BadInputError(
            "OtherShape",
            f"{2 * width}x{height} is no combined pair: most here are {2 * pair.shape:.2f} times as wide as high, and "
            "it does not break off in the middle; leave it out, or pass --layout combined if all are pairs",
        )


def read_or_error(read: Read, where: Location) -> bytes | BadInputError:
    """The bytes at a location, or why there are none."""
    try:
        return read(where)
    except BadInputError as error:
        return error


def _read_all(
    pairs: Sequence[PairRef], read: Read
) -> Iterator[tuple[PairRef, list[tuple[Location, bytes | BadInputError]]]]:
    """Yield each pair with the bytes of its files, in order; some remote files at once."""
    remote = any(isinstance(pair.a, File) and is_remote(pair.a.address) for pair in pairs)
    with ThreadPoolExecutor(_READER_THREADS if remote else 1) as threads:
        for start in range(0, len(pairs), ROW_GROUP_PAIRS):
            window = pairs[start : start + ROW_GROUP_PAIRS]
            wanted = [where for pair in window for where in pair.files]
            get = functools.partial(read_or_error, read)
            found = iter(list(threads.map(get, wanted)) if remote else map(get, wanted))
            for pair in window:
                yield pair, [(where, next(found)) for where in pair.files]


def _check_sizes(pair: PairRef, a: DecodedSide, b: DecodedSide, load_size: int) -> None:
    scale, also = "pass --load-size 286", ", or pass --max-bad-fraction 0.01"
    check_sizes(pair.pair_id, a.image, b.image, load_size, scale=scale, also=also)


def make_row(pair: PairRef, a: DecodedSide, b: DecodedSide, load_size: int, report: PartReport) -> dict[str, Any]:
    """Encode a pair at its stored size; the colours go into `report`."""
    height, width = (load_size, load_size) if load_size else a.image.shape[:2]
    stored_a, colours_a = _store(a, load_size)
    stored_b, colours_b = _store(b, load_size)
    report.colours_a = merge_colours(report.colours_a, colours_a)
    report.colours_b = merge_colours(report.colours_b, colours_b)
    row = {"pair_id": pair.pair_id, "a": stored_a, "b": stored_b, "width": width, "height": height}
    row["source_uri"] = pair.a.uri
    return row | ({"crs": pair.a.crs, "transform": pair.a.transform} if isinstance(pair.a, RasterWindow) else {})


def merge_colours(left: Colours, right: Colours) -> Colours:
    """The colours of both, None if there are too many."""
    if left is None or right is None or len(left | right) > MAX_PALETTE:
        return None
    return left | right


def _store(side: DecodedSide, load_size: int) -> tuple[bytes, Colours]:
    """Encode one side at its stored size. Returns the bytes and the colours it had before resizing."""
    resized = images.resize(side.image, load_size, load_size) if load_size else side.image
    if side.image.dtype != np.uint8 or side.image.shape[2] != RGB.channels:
        return images.encode_exactly(resized), None
    # Stops counting at the limit, so a photograph costs next to nothing.
    counted = Image.fromarray(side.image).getcolors(_MAX_DRAWN_COLOURS)
    colours: Colours = None
    if counted and len(counted) <= MAX_PALETTE:
        colours = frozenset(cast(tuple[int, int, int], colour) for _, colour in counted)
    if resized is side.image and side.is_plain:
        return side.original, colours
    lossless = not load_size or counted is not None
    return images.encode(cast(Array, resized), "png" if lossless else "jpeg"), colours
