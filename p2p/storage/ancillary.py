"""What lies beside the pixels in a file (text, profiles, thumbnails, EXIF) decides nothing but the orientation.

Decoders are given the parts that pixels need. Otherwise a megabyte of text, a profile that is cut off or one wrong
checksum would decide whether an image can be read, and Pillow, libjpeg and browsers would disagree on it.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from p2p.errors import BadInputError
from p2p.storage import limits
from p2p.storage.formats import GIF, JPEG, PNG, TIFF, ImageFileType
from p2p.storage.tiff_tags import Tags

_ORIENTATION = 274
_EXIF = b"Exif\0\0"
_APP0, _APP1, _APP2, _APP14, _APP15, _COMMENT = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF, 0xFE
_JPEG_LS = 0xF7
_SCAN = b"\xff\xda"
_MIN_BYTES = {_APP0: 14, _APP2: 14, _APP14: 12}  # of JFIF, a profile's part, Adobe: libjpeg passes shorter ones by
_NAMES = {_APP0: b"JFIF\0", _APP14: b"Adobe"}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_COLOUR = 25  # place of the colour type
_PNG_CHUNK = struct.Struct(">I4s")  # length and name


class EssentialParts(NamedTuple):
    """An encoded image without what decoders do not need."""

    data: bytes
    exif: bytes = b""
    """The first EXIF block, empty without."""
    has_metadata: bool = False
    """Whether there are texts or EXIF, which other programs may act on, or parts that these refuse."""


def essential_parts(data: bytes, format: ImageFileType) -> EssentialParts:
    """Leave out of a JPEG, PNG or GIF what its pixels do not need; images of other formats stay as they are.

    Raises BadInputError as `limits.jpeg_segments` does, and for PNGs that decoders make other pixels of.
    """
    if format is PNG:
        return _of_png(data)
    if format is JPEG:
        return _of_jpeg(data, limits.jpeg_segments(data))
    return EssentialParts(_of_gif(data) if format is GIF else data)


def orientation_of(exif: bytes) -> int:
    """Orientation 1 to 8 of an EXIF block; 1 where it has none, or is none. XMP's is not asked for: viewers do not."""
    block = exif.removeprefix(_EXIF)
    if not TIFF.start.match(block):
        return 1
    try:
        return Tags(block).number(_ORIENTATION, 1)
    except (BadInputError, struct.error, OverflowError, ValueError):
        return 1


def unusual_jpeg(data: bytes) -> str:
    """Which kind of JPEG it is that common decoders do not read; empty for none of these."""
    for segment in limits.jpeg_segments(data):
        if segment.marker == _JPEG_LS:
            return "JPEG-LS"
        if segment.marker in limits.JPEG_FRAMES:
            bits = segment.body(data)[:1]
            return f"a JPEG of {bits[0]} bits a sample" if bits and bits != b"\x08" else ""
    return ""


def exif_of_jpeg(data: bytes, segments: list[limits.Segment]) -> bytes:
    """The first EXIF block of a JPEG; empty without."""
    for segment in segments:
        if segment.marker == _APP1 and data.startswith(_EXIF, segment.start + 4):
            return segment.body(data)
    return b""


def has_metadata(data: bytes, segments: list[limits.Segment]) -> bool:
    """Whether a JPEG has EXIF or XMP, or a segment so short that some programs do not open it."""
    return any(
        segment.marker == _APP1 or segment.end - segment.start - 4 < _MIN_BYTES.get(segment.marker, 0)
        for segment in segments
    )


def lacks_scans(data: bytes, segments: list[limits.Segment]) -> bool:
    """Whether a JPEG without an end marker was cut off between two scans: decoders draw what there is, and say nothing.
    Each component has 64 coefficients, and of each some scan brings the last bit.
    """
    frames = [segment.body(data) for segment in segments if segment.marker in limits.JPEG_FRAMES]
    missing = {component: set(range(64)) for frame in frames for component in frame[6::3]}
    start = segments[-1].end if segments else len(data)
    while (start := data.find(_SCAN, start) + 4) >= 4:
        components = data[start + 1 : start + 1 + 2 * sum(data[start : start + 1])]
        parameters = data[start + 1 + len(components) : start + 4 + len(components)]
        if len(parameters) == 3 and parameters[2] & 15 == 0:  # none of the bits are left to a later scan
            for component in components[::2]:
                missing.get(component, set()).difference_update(range(parameters[0], parameters[1] + 1))
    return any(missing.values())


def _of_jpeg(data: bytes, segments: list[limits.Segment]) -> EssentialParts:
    if not segments:
        return EssentialParts(data)
    kept = [data[segment.start : segment.end] for segment in segments if _is_needed(segment, data)]
    exif = exif_of_jpeg(data, segments)
    return EssentialParts(b"".join([data[:2], *kept, data[segments[-1].end :]]), exif)


def _is_needed(segment: limits.Segment, data: bytes) -> bool:
    """Whether a segment of a JPEG says how its pixels are coded, or which colours they are."""
    if segment.marker in _NAMES:
        is_whole = segment.end - segment.start - 4 >= _MIN_BYTES[segment.marker]
        return is_whole and data.startswith(_NAMES[segment.marker], segment.start + 4)
    return segment.marker != _COMMENT and not _APP0 <= segment.marker <= _APP15


def _of_png(data: bytes) -> EssentialParts:
    if data[12:16] == b"CgBI":
        raise BadInputError(
            "UnsupportedPixels", "a PNG in the form of Apple's programs (CgBI), which others do not read; save it anew"
        )
    kept, exif, has_metadata = [], b"", False
    lacks_palette = data[_PNG_COLOUR : _PNG_COLOUR + 1] == b"\3"
    begin, start = 0, len(PNG_SIGNATURE)
    while start + 12 <= len(data):
        length, name = _PNG_CHUNK.unpack_from(data, start)
        end = start + 12 + length
        if end > len(data) or name == b"IEND" or not name.isalpha():
            break
        lacks_palette = lacks_palette and name != b"PLTE"
        if name == b"IDAT" and lacks_palette:
            raise BadInputError("DamagedImage", "a PNG whose palette is missing")
        if name[0] & 0x20 and not (name == b"tRNS" and _is_whole(data, start, end)):
            kept.append(memoryview(data)[begin:start])
            begin = end
            is_text = name in (b"eXIf", b"iTXt", b"zTXt", b"tEXt")
            has_metadata = has_metadata or is_text or not _is_whole(data, start, end)
            if name == b"eXIf" and not exif:
                exif = data[start + 8 : end - 4]
        start = end
    if not kept:
        return EssentialParts(data)
    return EssentialParts(b"".join([*kept, memoryview(data)[begin:]]), exif, has_metadata)


def _is_whole(data: bytes, start: int, end: int) -> bool:
    """Whether a chunk of a PNG has the checksum of its content."""
    return zlib.crc32(memoryview(data)[start + 4 : end - 4]).to_bytes(4, "big") == data[end - 4 : end]


def _of_gif(data: bytes) -> bytes:
    """A GIF without comments and other extensions before its first frame, but for that frame's own."""
    if len(data) < 13:
        return data
    start = position = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    control = b""
    while data[position : position + 1] == b"!":
        begin, position = position, position + 2
        while position < len(data) and data[position]:
            position += 1 + data[position]
        position += 1
        if data[begin + 1 : begin + 2] == b"\xf9":
            control = data[begin:position]
    return b"".join([data[:start], control, memoryview(data)[position:]]) if position > start + len(control) else data
