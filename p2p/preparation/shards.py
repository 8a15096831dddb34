"""One task's work: fetch the pairs of a shard, check and resize them, publish one Parquet file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa
from PIL import Image

from p2p.data.pairs import PAIR_SCHEMA, ROW_GROUP_PAIRS, Formats, part_name
from p2p.doctor.features import Portraits, collect, compute_features, is_sampled, mode_of
from p2p.doctor.files import BadRow
from p2p.errors import BadInputError
from p2p.model.config import MAX_PALETTE
from p2p.preparation.locations import Drawing, Fetcher, File, Location
from p2p.preparation.pairing import PairRef
from p2p.storage import images, pixels
from p2p.storage.deadline import decode_deadline
from p2p.storage.filesystems import is_remote, join, write_table
from p2p.storage.images import Array, Pixels
from p2p.storage.pixels import RGB
from p2p.synthetic.pairs import city_pair

MAX_PART_PAIRS = 1024
_MAX_PART_BYTES = 128 * 2**20
_PARTS_AIMED_AT = 256
_FETCHING_THREADS = 16  # an object store answers slowly, but many at once
_LABEL_COLOURS = 256  # a picture of at most so many colours is drawn, not photographed: kept lossless
_SAME_SHAPE = 0.01  # how far two aspect ratios may differ, relatively, and still show the same place

Colour = tuple[int, int, int]
Fetch = Callable[[Location], bytes]
"""As `Fetcher` does."""
Palette = frozenset[Colour] | None  # None: more than MAX_PALETTE colours


@dataclass(frozen=True)
class Shard:
    """The pairs of one output file."""

    split: str
    number: int
    pairs: tuple[PairRef, ...]


@dataclass
class ShardReport:
    """What became of a shard: how many pairs are good, which were bad, the colours of each side, what was looked at."""

    split: str
    pairs: int = 0
    bad: list[BadRow] = field(default_factory=list)
    palette_a: Palette = frozenset()
    palette_b: Palette = frozenset()
    portraits: Portraits = field(default_factory=lambda: collect([]))


def cut_into_shards(pairs: Sequence[PairRef]) -> list[Shard]:
    """Cut each split, in order, into files of whole row groups; the cuts depend on the pairs alone.

    Some 256 files, so that many workers share even a small data set, but never more than 1024 pairs or 128 MiB each.
    """
    limit = -(-len(pairs) // _PARTS_AIMED_AT)
    limit = min(MAX_PART_PAIRS, -(-limit // ROW_GROUP_PAIRS) * ROW_GROUP_PAIRS)
    shards = []
    for split in sorted({pair.split for pair in pairs}):
        chosen: list[PairRef] = []
        weight, number = 0, 0
        for pair in (pair for pair in pairs if pair.split == split):
            if chosen and (len(chosen) == limit or weight + pair.weight > _MAX_PART_BYTES):
                shards.append(Shard(split, number, tuple(chosen)))
                chosen, weight, number = [], 0, number + 1
            chosen.append(pair)
            weight += pair.weight
        shards.append(Shard(split, number, tuple(chosen)))
    return shards


@dataclass(frozen=True)
class Side:
    """One side of a pair: its pixels, its original bytes where a file holds just it, and Pillow's word for its mode."""

    image: Pixels
    original: bytes = b""
    mode: str = ""

    @property
    def size(self) -> str:
        """`WIDTHxHEIGHT`, for messages."""
        return f"{self.image.shape[1]}x{self.image.shape[0]}"


def write_shard(
    shard: Shard,
    output: str | None,
    load_size: int,
    fetch: Fetcher,
    *,
    formats: Formats = (RGB, RGB),
    close_share: float = 1.0,
) -> ShardReport:
    """Publish `OUTPUT/<split>/part-<number>.parquet`, or nothing if every pair is bad; compute the
    features of every good pair.

    Args:
        shard: the pairs of one file.
        output: the data set's folder; None stores nothing.
        load_size: side of the stored pictures, pixels; 0 keeps each pair's own size.
        fetch: gets the bytes of a location.
        formats: pixels of A and of B.
        close_share: share, 0..1, of the pairs that are portrayed closely.

    """
    report = ShardReport(shard.split)
    rows: list[dict[str, Any]] = []
    portraits = []
    for pair, a, b in decode_pairs(shard.pairs, load_size, fetch, report.bad, formats):
        if output is not None:
            rows.append(make_row(pair, a, b, load_size, report))
        closely = is_sampled(pair.pair_id, close_share)
        portraits.append((pair.pair_id, *compute_features(a.image, b.image, (a.mode, b.mode), closely=closely)))
    if rows and output is not None:
        table = pa.Table.from_pylist(rows, schema=PAIR_SCHEMA)
        write_table(join(output, shard.split, part_name(shard.number)), table, row_group_size=ROW_GROUP_PAIRS)
    report.pairs = len(portraits)
    report.portraits = collect(portraits)
    return report


def decode_pairs(
    pairs: Sequence[PairRef], load_size: int, fetch: Fetch, bad: list[BadRow], formats: Formats = (RGB, RGB)
) -> Iterator[tuple[PairRef, Side, Side]]:
    """Yield the pairs of which both sides can be decoded and fit each other, with them; the others go into `bad`."""
    for pair, fetched in _fetch_all(pairs, fetch):
        where = pair.a.uri
        try:
            sides = [Side(image) for image in _draw(pair.a)] if isinstance(pair.a, Drawing) else []
            for (location, data), wanted in zip(fetched, formats, strict=False):
                where = location.uri
                if isinstance(data, BadInputError):
                    raise data
                with decode_deadline():
                    sides.append(Side(pixels.decode(data, wanted), data, mode_of(data) if wanted == RGB else ""))
            where = pair.a.uri
            if len(sides) == 1:
                sides = _halves(sides[0], formats)
            _check_sizes(pair, sides[0], sides[1], load_size)
        except BadInputError as error:
            bad.append(BadRow(where, error.kind, str(error)))
        else:
            yield pair, sides[0], sides[1]


def _halves(whole: Side, formats: Formats) -> list[Side]:
    """A and B of a combined image that was read as A is."""
    with decode_deadline():
        image_b = whole.image if formats[0] == formats[1] else pixels.decode(whole.original, formats[1])
    return [
        Side(images.split_halves(whole.image)[0], mode=whole.mode),
        Side(images.split_halves(image_b)[1], mode=whole.mode),
    ]


def _draw(where: Drawing) -> tuple[Array, Array]:
    return city_pair(where.seed, where.index, where.height, where.width)


Fetched = list[tuple[Location, bytes | BadInputError]]


def _fetch_all(pairs: Sequence[PairRef], fetch: Fetch) -> Iterator[tuple[PairRef, Fetched]]:
    """Yield each pair with the bytes of its files, in order; remote files some at a time."""

    def get(where: Location) -> bytes | BadInputError:
        try:
            return fetch(where)
        except BadInputError as error:
            return error

    remote = any(isinstance(pair.a, File) and is_remote(pair.a.address) for pair in pairs)
    with ThreadPoolExecutor(_FETCHING_THREADS if remote else 1) as threads:
        for start in range(0, len(pairs), ROW_GROUP_PAIRS):
            window = pairs[start : start + ROW_GROUP_PAIRS]
            wanted = [
                [where for where in (pair.a, pair.b) if where is not None and not isinstance(where, Drawing)]
                for pair in window
            ]
            flat = [where for of_pair in wanted for where in of_pair]
            found = iter(list(threads.map(get, flat)) if remote else map(get, flat))
            for pair, of_pair in zip(window, wanted, strict=True):
                yield pair, [(where, next(found)) for where in of_pair]


def _check_sizes(pair: PairRef, a: Side, b: Side, load_size: int) -> None:
    """Raise BadInputError unless both sides can show the same place."""
    if a.image.shape[:2] == b.image.shape[:2]:
        return
    aspect_a, aspect_b = (side.image.shape[1] / side.image.shape[0] for side in (a, b))
    same_shape = abs(aspect_a / aspect_b - 1) <= _SAME_SHAPE
    if same_shape and load_size:
        return
    way_out = "pass --load-size 286 or" if same_shape else "their shapes differ, so correct one of them, or pass"
    raise BadInputError(
        "MismatchedSizes",
        f"pair {pair.pair_id!r}: a is {a.size}, b is {b.size}; {way_out} --max-bad-fraction 0.01",
    )


def make_row(pair: PairRef, a: Side, b: Side, load_size: int, report: ShardReport) -> dict[str, Any]:
    """Encode a pair at its stored size; the colours go into `report`."""
    height, width = (load_size, load_size) if load_size else a.image.shape[:2]
    stored_a, colours_a = _store(a, load_size)
    stored_b, colours_b = _store(b, load_size)
    report.palette_a = merge_palettes(report.palette_a, colours_a)
    report.palette_b = merge_palettes(report.palette_b, colours_b)
    return {
        "pair_id": pair.pair_id,
        "a": stored_a,
        "b": stored_b,
        "width": width,
        "height": height,
        "source_uri": pair.a.uri,
    }


def merge_palettes(left: Palette, right: Palette) -> Palette:
    """The colours of both, None if there are too many."""
    if left is None or right is None or len(left | right) > MAX_PALETTE:
        return None
    return left | right


def _store(side: Side, load_size: int) -> tuple[bytes, Palette]:
    """Encode one side at its stored size. Returns the bytes and the colours it had before resizing."""
    resized = images.resize(side.image, load_size, load_size) if load_size else side.image
    if side.image.dtype != np.uint8 or side.image.shape[2] != RGB.channels:
        return pixels.encode(resized), None
    # Stops counting at the limit, so a photograph costs next to nothing.
    counted = Image.fromarray(side.image).getcolors(_LABEL_COLOURS)
    colours: Palette = None
    if counted and len(counted) <= MAX_PALETTE:
        colours = frozenset(cast(Colour, colour) for _, colour in counted)
    if resized is side.image and _is_plain(side.original):
        return side.original, colours
    lossless = not load_size or counted is not None
    return images.encode(cast(Array, resized), "png" if lossless else "jpeg"), colours


def _is_plain(data: bytes) -> bool:
    """Whether any reader makes the same RGB pixels of these bytes: no palette, alpha, depth or orientation to mind."""
    if not data.startswith((b"\xff\xd8\xff", b"\x89PNG")) or pixels.is_deep_png(data):
        return False
    try:
        image = images.open_image(data)
    except BadInputError:  # libjpeg decodes more than Pillow
        return False
    else:
        return image.mode == "RGB" and "transparency" not in image.info and not image.getexif()
