"""The formats of image files: how they are named, how they begin, what reads them. One list for every job."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import posixpath
import re
from collections import Counter
from dataclasses import dataclass

from p2p.errors import BadInputError
from p2p.storage.names import printable

log = logging.getLogger("p2p")

_MAX_ENDING, _MAX_ENDINGS, _MAX_SHOWN = 12, 1000, 8  # characters of one; kinds that are counted apart, and told


@dataclass(frozen=True)
class ImageFileType:
    """A format of image files. `start` matches how its files begin; `plugin` is Pillow's name of what reads it."""

    name: str
    endings: tuple[str, ...]
    start: re.Pattern[bytes]
    plugin: str
    package: str = ""
    """What to install for it, empty where Pillow reads it by itself."""
    module: str = ""
    """That package's module, and the function in it that announces the plug-in to Pillow."""
    announce: str = ""

    @property
    def is_readable(self) -> bool:
        """Whether it can be read here, with what is installed."""
        return not self.module or _is_installed(self.module)

    def load_plugin(self) -> None:
        """Make sure that Pillow knows the plug-in. Raises BadInputError where it is not installed."""
        if not self.is_readable:
            raise BadInputError(
                "MissingPlugin", f"{self.name} is read where its plug-in is: pip install {self.package}"
            )
        if self.module:
            _announce(self.module, self.announce)


def _type(name: str, endings: str, start: bytes, plugin: str, **package: str) -> ImageFileType:
    return ImageFileType(name, tuple(endings.split()), re.compile(start, re.DOTALL), plugin, **package)


JPEG = _type("JPEG", ".jpg .jpeg .jpe .jfif .pjpeg .mpo", rb"\xff\xd8\xff", "JPEG")
PNG = _type("PNG", ".png", rb"\x89PNG\r\n\x1a\n", "PNG")
TIFF = _type("TIFF", ".tif .tiff", rb"(II|MM)(\0[*+]|[*+]\0)", "TIFF")
GIF = _type("GIF", ".gif", rb"GIF8[79]a", "GIF")
FORMATS = (
    JPEG,
    PNG,
    _type("WebP", ".webp", rb"RIFF....WEBP", "WEBP"),
    _type("BMP", ".bmp", rb"BM", "BMP"),
    TIFF,
    GIF,
    _type("AVIF", ".avif", rb"....ftyp(avi[fs]|(mif1|msf1|miaf).{,60}avif)", "AVIF"),
    _type("JPEG 2000", ".jp2 .j2k .j2c .jpc .jpx", rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "JPEG2000"),
    _type("PPM", ".ppm .pgm .pbm .pnm", rb"P[1-6][\s#]", "PPM"),
    _type(
        *("HEIC", ".heic .heif", rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", "HEIF"),
        package="pillow-heif",
        module="pillow_heif",
        announce="register_heif_opener",
    ),
    _type(
        *("JPEG XL", ".jxl", rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", "JXL"),
        package="pillow-jxl-plugin",
        module="pillow_jxl",
    ),
)
_NOT_IMAGES = {
    "a web page or XML": rb"\s*<|\xef\xbb\xbf\s*<",
    "a PDF": rb"%PDF",
    "compressed by gzip": rb"\x1f\x8b",
    "a zip archive": rb"PK\x03\x04",
    "a Photoshop file": rb"8BPS",
    "a pointer of git LFS, whose file was not fetched": rb"version https://git-lfs",
    "a PNG that was copied as text, which changes its line ends": rb"[\x89\t]PNG\r?\n",
    "JSON": rb"\s*[{\[]",
    "a video": rb"....ftyp(isom|iso\d|mp4|qt  |avc1|M4V|3gp)|\x1aE\xdf\xa3",
    "an image in base64, which must be decoded first": rb"data:image/|/9j/|iVBORw0KGgo|UklGR|R0lGOD",
    "a NumPy array": rb"\x93NUMPY",
    "a pickle": rb"\x80[\x02-\x05]",
    "DICOM": rb".{128}DICM",
    "OpenEXR": rb"v/1\x01",
    "a DDS texture": rb"DDS ",
    "a Windows icon": rb"\0\0[\1\2]\0[^\0]",
    "Radiance HDR": rb"#\?(RADIANCE|RGBE)",
    "PFM, whose numbers are floating-point": rb"P[fF]\s",
    "PAM": rb"P7\n",
    "FITS": rb"SIMPLE  =",
    "HDF5 or MATLAB": rb"\x89HDF|MATLAB",
    "nothing but zeros, at its start": rb"\0{16}",
}
_TEXT = re.compile(rb"[\t\r\n -~]+")
_MAX_TEXT, _MAX_WORDS = 200, 40  # bytes that must all be of text; characters of it that are shown
_BY_ENDING = {ending: format for format in FORMATS for ending in format.endings}


@functools.cache
def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@functools.cache
def _announce(module: str, function: str) -> None:
    plugin = importlib.import_module(module)
    if function:
        getattr(plugin, function)()


ENDINGS = tuple(_BY_ENDING)
"""Endings, in lower case, of image files."""
SUFFIXES = tuple(ending for ending, format in _BY_ENDING.items() if format.is_readable)
"""Endings of those that can be read here: such files are taken for images."""


def format_of(data: bytes) -> ImageFileType:
    """The format of an encoded image by its first bytes. Raises BadInputError for what is none of `FORMATS`."""
    if not data:
        raise BadInputError("EmptyFile", "the file has zero bytes")
    for format in FORMATS:
        if format.start.match(data):
            return format
    known = ", ".join(format.name for format in FORMATS)
    what = next((what for what, start in _NOT_IMAGES.items() if re.match(start, data, re.DOTALL)), "")
    if not what and _TEXT.fullmatch(data[:_MAX_TEXT]):
        words = " ".join(data[:_MAX_TEXT].decode("ascii").split())
        what = f'text ("{words[:_MAX_WORDS]}{"…" if len(words) > _MAX_WORDS else ""}")'
    raise BadInputError("NotAnImage", f"{f'this is {what}: ' if what else ''}not one of the images read here ({known})")


class LeftOut:
    """Counts files of a listing that are not read, by their endings.

    >>> left_out = LeftOut()
    >>> for name in ("a.cr2", "b.cr2", "notes"):
    ...     left_out.add(name)
    >>> print(left_out)
    3 files left out: 2 .cr2, 1 without ending
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self._counts)

    def add(self, name: str) -> None:
        """Count a file."""
        ending = printable(posixpath.splitext(name)[1].lower()[:_MAX_ENDING])
        self._counts[ending if len(self._counts) < _MAX_ENDINGS else ""] += 1

    @property
    def found(self) -> str:
        """The counts: those of images first, then the most frequent."""
        order = sorted(self._counts.items(), key=lambda item: (item[0] not in _BY_ENDING, -item[1], item[0]))
        shown = [f"{count} {ending or 'without ending'}{_advice(ending)}" for ending, count in order[:_MAX_SHOWN]]
        rest = sum(count for _, count in order[_MAX_SHOWN:])
        return ", ".join([*shown, *([f"{rest} others"] if rest else [])])

    def log(self, uri: str, reported: set[str] | None = None) -> None:
        """Report them, unless the same is `reported` already: a source may be listed several times."""
        reported = set() if reported is None else reported
        if self and str(self) not in reported:
            reported.add(str(self))
            is_warning = any(_advice(ending) for ending in self._counts)
            log.log(logging.WARNING if is_warning else logging.INFO, "%s: %s", uri, self)

    def __str__(self) -> str:
        total = sum(self._counts.values())
        return f"{total} file{'s' if total > 1 else ''} left out: {self.found}"


def _advice(ending: str) -> str:
    format = _BY_ENDING.get(ending)
    return f" (pip install {format.package})" if format and not format.is_readable else ""
