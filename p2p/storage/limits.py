"""Limits on the cost of decoding an image, checked by its header and markers before a decoder runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from p2p.errors import BadInputError

MAX_PIXELS = 100_000_000
"""10,000 x 10,000. Decoding takes up to 16 bytes a pixel (JPEG and PNG up to 12), so eight processes that each
decode the largest image take 13 GB at most."""
MAX_SIDE = 1_000_000
"""Pixels, whatever the other side is: libpng's own limit."""
MAX_JPEG_SCANS = 100
"""Passes over all of the image, which take a few bytes each in a JPEG. Encoders write up to a dozen."""
MAX_JPEG_SEGMENTS = 1000
"""Before the first scan. A colour profile has up to 255, everything else a few, or a few hundred with depth maps."""
_MAX_EXIF_SEGMENTS = 64  # readers put them together one by one
_MAX_JPEG_JUNK = 2**16  # bytes between segments, which readers look at one by one

_SCAN, _END = 0xDA, 0xD9
_SCAN_WORD = 0xDAFF  # the scan's marker as a little-endian number
# Among coded pixels FF is followed by 00, or by the D0 to D7 of a restart.
_NEXT_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])", re.DOTALL)
_NO_MARKER = b"\x00\xd0\xd1\xd2\xd3\xd4\xd5\xd6\xd7\xff"
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Start-of-frame markers: SOF0 to SOF15."""
_SEQUENTIAL = (0xC0, 0xC1)
_CHANNELS = 8  # of 16 bits take as much memory as decoding a WebP


def check_size(width: int, height: int, max_pixels: int, channels: int = 3) -> None:
    """Raise BadInputError for an image of more than `max_pixels` pixels, fewer where it has more than 8 channels."""
    if max(width, height) > MAX_SIDE:
        problem = f"{width}x{height} has a side of more than {MAX_SIDE} pixels; cut it into smaller images"
        raise BadInputError("SideTooLong", problem)
    limit = max_pixels * _CHANNELS // max(_CHANNELS, channels)
    if width * height > limit:
        with_channels = f" with {channels} channels" if channels > _CHANNELS else ""
        raise BadInputError(
            "TooManyPixels",
            f"{width}x{height}{with_channels} is more than the {limit} pixels allowed; cut it into smaller images, "
            "or let translate take more with max_pixels",
        )


class Segment(NamedTuple):
    """A segment of a JPEG before its pixels: its marker's code, and where it and what follows it begin."""

    marker: int
    start: int
    end: int

    def body(self, data: bytes) -> bytes:
        """What it holds."""
        return data[self.start + 4 : self.end]


def jpeg_segments(data: bytes) -> list[Segment]:
    """The segments before a JPEG's first scan.

    Raises BadInputError for more scans or larger headers than any encoder writes.
    """
    segments, scan = _read_header(data)
    if _is_all_in_first(data, segments, scan):
        return segments
    # Thumbnails and further pictures count here too, so this only accepts; it takes a 200th of the decoding.
    words = (np.frombuffer(data, "<u2", (len(data) - start) // 2, start) for start in (0, 1))
    if sum(np.count_nonzero(word == _SCAN_WORD) for word in words) <= MAX_JPEG_SCANS:
        return segments
    scans = _count_scans(data)
    if scans > MAX_JPEG_SCANS:
        raise BadInputError(
            "TooManyScans", f"the JPEG has {scans} scans, {MAX_JPEG_SCANS} are allowed; save it anew without them"
        )
    return segments


def _read_header(data: bytes) -> tuple[list[Segment], int]:
    """The segments before the first scan, and where that begins; without one, the end of the data."""
    segments: list[Segment] = []
    exif = junk = 0
    position, size = 2, len(data)
    while position < size:
        start = position
        if data[start] != 0xFF or start + 1 == size or data[start + 1] in _NO_MARKER:
            found = _NEXT_MARKER.search(data, position, position + _MAX_JPEG_JUNK + 2)
            start = found.start() if found else min(position + _MAX_JPEG_JUNK + 2, size)
            junk += start - position
            if junk > _MAX_JPEG_JUNK:
                raise BadInputError(
                    "DamagedImage", f"more than {_MAX_JPEG_JUNK} bytes between the segments of the JPEG"
                )
            if found is None:
                break
        marker = data[start + 1]
        if marker == _END:  # Pillow would go on with what follows
            raise BadInputError("DamagedImage", "the JPEG ends before its pixels")
        if marker == _SCAN:
            return segments, start
        exif += data.startswith(b"Exif", start + 4)
        if len(segments) >= MAX_JPEG_SEGMENTS or exif > _MAX_EXIF_SEGMENTS:
            raise BadInputError(
                "TooManySegments",
                f"the JPEG has more than {MAX_JPEG_SEGMENTS} segments before its pixels, or {_MAX_EXIF_SEGMENTS} of "
                "EXIF; save it anew without them",
            )
        position = start + 2
        if marker != 1:  # the only one left without a length
            position += max(2, int.from_bytes(data[position : position + 2], "big"))
        segments.append(Segment(marker, start, position))
    return segments, size


def _is_all_in_first(data: bytes, segments: Sequence[Segment], scan: int) -> bool:
    """Whether a JPEG's first scan, at `scan`, has all components of a sequential frame: libjpeg takes no other then."""
    frames = [segment for segment in segments if segment.marker in JPEG_FRAMES]
    if len(frames) != 1 or frames[0].marker not in _SEQUENTIAL:
        return False
    components = frames[0].start + 9
    return max(components, scan + 4) < len(data) and data[components] == data[scan + 4]


def _count_scans(data: bytes) -> int:
    """Walk a JPEG's markers as libjpeg does, up to the end of its first picture."""
    scans, position = 0, 2
    while found := _NEXT_MARKER.search(data, position):
        position = found.end()
        marker = found[1][0]
        if marker == _END:
            break
        scans += marker == _SCAN
        if marker != 1:  # the only one left without a length
            position += max(2, int.from_bytes(data[position : position + 2], "big"))
    return scans
