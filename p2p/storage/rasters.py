"""GeoTIFFs read by windows, through p2p's own file systems, and guarded against what a file may ask of GDAL.

A GeoTIFF may name other files, on a network too, in its own metadata or in files beside it. So GDAL gets one driver and
one file: whatever else it asks for is not there. Overviews of a file that somebody else made are never used.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from p2p.errors import BadInputError, UsageError
from p2p.storage import tiff_directories as tiff
from p2p.storage.deadline import Deadline
from p2p.storage.watched_file import WatchedFile, file_errors

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Window = tuple[int, int, int, int]
"""column, row, width, height."""

MAX_BLOCK_BYTES = 64 * 2**20
"""Of one decoded strip or tile: whatever window is asked for, GDAL decodes whole ones."""
MAX_WIDTH = 131_072
"""Pixels. The memory that a scene takes grows with its width alone: 1.7 GB at this one."""
_JP2 = (b"\x00\x00\x00\x0cjP  ", b"\xff\x4f\xff\x51")
_ENVIRONMENT = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".none",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_TIFF_INTERNAL_MASK": "YES",
    "GDAL_CACHEMAX": "64",  # MB; its own is a share of the machine's memory for each process
    "PROJ_NETWORK": "OFF",
    "CPL_DEBUG": "OFF",
}
_OF_OTHER_INSTALLATIONS = ("PROJ_LIB", "PROJ_DATA", "GDAL_DATA", "GDAL_DRIVER_PATH")
_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
_HALF = "float16"  # rasterio reads it as float32 before its version 1.5
_CONVERT = "gdal_translate -of COG IN OUT.tif"
_NO_ROOM = "No space for data buffer"
"""What libtiff says, and GDAL passes on as any error, where there is no memory for the bytes of a block."""


@functools.cache
def rasterio() -> ModuleType:
    """The library, with GDAL configured before its first use. Raises UsageError where it is not installed.

    GDAL reads these settings from the environment of the process.
    """
    for name in _OF_OTHER_INSTALLATIONS:  # their tables do not fit the library that rasterio brings
        os.environ.pop(name, None)
    os.environ.update(_ENVIRONMENT)
    try:
        import rasterio
        import rasterio.enums
        import rasterio.errors
        import rasterio.session
        import rasterio.windows
    except ImportError:
        raise UsageError("scenes need rasterio: pip install 'p2p[geo]'") from None
    for harmless in (rasterio.errors.NotGeoreferencedWarning, rasterio.errors.NodataShadowWarning):
        warnings.simplefilter("ignore", harmless)
    logging.getLogger("rasterio").setLevel(logging.CRITICAL)  # what it logs it raises too
    return rasterio  # type: ignore[no-any-return]


@dataclass(frozen=True)
class RasterFacts:
    """What a raster is, by its header."""

    width: int
    height: int
    bands: int
    dtype: str
    """NumPy's name for the type of every band."""
    validity: str
    """How it says which pixels are valid: `none` (all are), `nodata` (a number), `alpha` or `mask` (a band)."""
    nodata: float | None
    alpha_band: int
    """Its number, from 1; 0 where there is none."""
    names: tuple[str, ...]
    """Descriptions of the bands; empty texts where they have none."""
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    bits: int
    """That are used of each value, where the file says so: 1, or 12 in 16."""
    is_palette: bool
    is_georeferenced: bool


class Raster:
    """An open GeoTIFF. Not for several threads at once. Bands are numbered from 1."""

    def __init__(self, uri: str, dataset: Any, file: WatchedFile, directories: list[dict[int, tiff.TagValue]]) -> None:
        self.uri, self._dataset, self._file = uri, dataset, file
        self._directory = directories[0]
        self.facts = _facts(dataset, self._directory)
        self.size, self.modified = file.size, file.modified

    @property
    def crs(self) -> str:
        """The coordinate system as WKT; empty where there is none."""
        return str(self._dataset.crs.to_wkt()) if self._dataset.crs else ""

    @property
    def crs_name(self) -> str:
        """The coordinate system for a command line, such as `EPSG:32633`; empty where there is none."""
        return str(self._dataset.crs.to_string()) if self._dataset.crs else ""

    @property
    def transform(self) -> tuple[float, ...]:
        """Six numbers: x = a * column + b * row + c, y = d * column + e * row + f."""
        return tuple(self._dataset.transform)[:6]

    @property
    def georeference(self) -> dict[int, tiff.TagValue]:
        """The tags that say where the raster lies, as they are."""
        return {tag: self._directory[tag] for tag in tiff.GEOREFERENCE if tag in self._directory}

    @property
    def colours(self) -> npt.NDArray[np.uint8]:
        """(256 or more, 3): the colour of each index of a palette."""
        table = self._dataset.colormap(1)
        colours = np.zeros((max(256, max(table) + 1), 3), np.uint8)
        for index, colour in table.items():
            colours[index] = colour[:3]
        return colours

    def read(self, bands: list[int], window: Window) -> tuple[Array, Mask | None, Array | None]:
        """(h, w, C) pixels of `bands`, where they are valid (None: everywhere), and (h, w) alpha if there is one.

        Raises StorageError, MemoryError, and BadInputError (DamagedBlock) for a block that cannot be decoded.
        """
        where = rasterio().windows.Window(*window)
        try:
            with self._file.decoding():
                pixels = self._dataset.read(bands, window=where, out_dtype=self.facts.dtype)
                alpha = self._dataset.read(self.facts.alpha_band, window=where) if self.facts.alpha_band else None
                if alpha is not None:
                    valid = alpha > 0
                    if self.facts.nodata is not None:  # as well: GDAL and viewers leave out what either says
                        valid &= self._dataset.read_masks(bands, window=where).any(0)
                elif self.facts.validity == "none":
                    valid = None
                elif self.facts.validity == "nodata":  # a pixel is invalid where every band that is read says so
                    valid = self._dataset.read_masks(bands, window=where).any(0)
                else:
                    valid = self._dataset.dataset_mask(window=where) > 0
        except Exception as error:
            _raise_fault(self._file, error)
            raise BadInputError("DamagedBlock", f"{place_of(window)}: {_reason(error)}") from None
        if pixels.dtype.kind == "f":
            finite = np.isfinite(pixels).all(0)
            if not finite.all():
                valid = finite if valid is None else valid & finite
        return np.moveaxis(pixels, 0, 2), valid, alpha

    def blocks(self, window: Window) -> Iterator[Window]:
        """The blocks of the file that touch a window, cut to it."""
        left, top, width, height = window
        high, wide = self._dataset.block_shapes[0]
        for y in range(top // high * high, top + height, high):
            for x in range(left // wide * wide, left + width, wide):
                x0, y0 = max(x, left), max(y, top)
                yield x0, y0, min(x + wide, left + width) - x0, min(y + high, top + height) - y0

    def whole_block(self, window: Window) -> Window:
        """The block around a window that `blocks` has cut."""
        high, wide = self._dataset.block_shapes[0]
        x, y = window[0] // wide * wide, window[1] // high * high
        return x, y, min(wide, self.facts.width - x), min(high, self.facts.height - y)


def file_identity(uri: str) -> tuple[int, str]:
    """Size and time (or ETag) of the file at `uri`, as `Raster` has them. Raises StorageError, BadInputError."""
    file = WatchedFile(uri)
    return file.size, file.modified


@contextlib.contextmanager
def open_raster(uri: str, deadline: Deadline | None = None) -> Iterator[Raster]:
    """Open the GeoTIFF at `uri`; nothing is decoded before its tags were looked at.

    Where there is a `deadline`, it holds for what GDAL does, and not while the storage is waited for.

    Raises StorageError where the storage fails, MemoryError, UsageError without rasterio, and BadInputError: NotFound,
    Refused, EmptyFile, NotAnImage, UnsupportedDriver, UnsupportedPixels, UnsupportedCompression, ForeignReference,
    BlockTooLarge, TooWide, DamagedImage.
    """
    library = rasterio()
    file = WatchedFile(uri, deadline)
    try:
        directories = _check_tags(file)
        try:
            # GDAL opens the name that it was given, and is told of no other file, nor of anybody's keys.
            with library.Env(session=library.session.DummySession()):
                dataset = library.open("scene.tif", driver="GTiff", opener=file.opener)
        except Exception as error:
            _raise_fault(file, error)
            raise _refusal(directories[0], error) from None
        with dataset:
            try:
                _check_dataset(dataset)
                raster = Raster(uri, dataset, file, directories)
            except BadInputError:
                raise
            except Exception as error:  # of metadata that rasterio cannot take
                _raise_fault(file, error)
                raise BadInputError("DamagedImage", f"its metadata cannot be read: {_reason(error)}") from None
            yield raster
    finally:
        file.close()


def _check_tags(file: WatchedFile) -> list[dict[int, tiff.TagValue]]:
    """The file's directories. Raises BadInputError where one is cut off, or has blocks that are too large."""
    if not file.size:
        raise BadInputError("EmptyFile", "zero bytes")
    with file_errors(file.uri):
        handle = file.open()
        head = handle.read(16)
        if head.startswith(_JP2):
            raise BadInputError(
                "UnsupportedDriver",
                f"JPEG 2000 cannot be read by windows without decoding it many times; convert it first: {_CONVERT}",
            )
        directories = tiff.read_directories(handle, file.size)
    for directory in directories:
        _check_blocks(directory, file.size)
    return directories


def _check_dataset(dataset: Any) -> None:
    """Raise BadInputError for what GDAL opens and this is not made for."""
    if any("FILE" in name.upper() for name in dataset.tags(ns="OVERVIEWS")):
        raise BadInputError("ForeignReference", "its metadata names another file for its overviews")
    if len(set(dataset.dtypes)) > 1:
        raise BadInputError("UnsupportedPixels", f"its bands are of several types: {', '.join(dataset.dtypes)}")
    if dataset.dtypes[0] not in (*_DTYPES, _HALF):
        raise BadInputError(
            "UnsupportedPixels", f"pixels of {dataset.dtypes[0]} are not read; {', '.join(_DTYPES)} are"
        )
    if dataset.width > MAX_WIDTH:
        raise BadInputError(
            "TooWide",
            f"{dataset.width} columns, {MAX_WIDTH} are allowed; cut it: gdal_translate -srcwin 0 0 {MAX_WIDTH} "
            f"{dataset.height} -of COG IN OUT.tif",
        )


def _check_blocks(directory: tiff.Directory, size: int) -> None:
    width, height = tiff.number(directory, tiff.WIDTH), tiff.number(directory, tiff.HEIGHT)
    if min(width, height) < 1:
        raise BadInputError("DamagedImage", "the TIFF has an image without pixels")
    samples = tiff.number(directory, tiff.SAMPLES, 1)
    bits = max((int(value) for value in directory[tiff.BITS].values), default=1) if tiff.BITS in directory else 1
    is_tiled = tiff.TILE_WIDTH in directory
    if is_tiled:
        wide, high = tiff.number(directory, tiff.TILE_WIDTH), tiff.number(directory, tiff.TILE_HEIGHT)
    else:
        wide, high = width, min(tiff.number(directory, tiff.ROWS_PER_STRIP) or height, height)
    together = samples if tiff.number(directory, tiff.PLANAR, 1) == 1 else 1
    if wide * high * together * bits > MAX_BLOCK_BYTES * 8:
        raise BadInputError(
            "BlockTooLarge",
            f"its blocks are {wide}x{high} pixels, {wide * high * together * bits / 8e6:.0f} MB each, of which any "
            f"window decodes all; {MAX_BLOCK_BYTES / 1e6:.0f} MB are allowed; convert it first: {_CONVERT}",
        )
    offsets = directory.get(tiff.TILE_OFFSETS if is_tiled else tiff.STRIP_OFFSETS)
    counts = directory.get(tiff.TILE_COUNTS if is_tiled else tiff.STRIP_COUNTS)
    if offsets is None or counts is None or not len(offsets.values) or len(offsets.values) != len(counts.values):
        return  # GDAL knows how to do without, or says that it does not
    ends = offsets.values.astype(np.float64) + counts.values.astype(np.float64)
    beyond = int(np.count_nonzero(ends > size))
    if beyond:
        raise BadInputError(
            "DamagedImage", f"the file is cut off: {beyond} of its {len(ends)} blocks lie beyond its {size} bytes"
        )


def _refusal(directory: tiff.Directory, error: Exception) -> BadInputError:
    reason = _reason(error)
    if "ompression" in reason or "codec" in reason:
        code = tiff.number(directory, tiff.COMPRESSION, 1)
        return BadInputError(
            "UnsupportedCompression",
            f"compression {code} is not read here; convert it where it is: gdal_translate -of COG -co COMPRESS=DEFLATE "
            f"IN OUT.tif",
        )
    return BadInputError("DamagedImage", f"GDAL cannot open it: {reason}")


def _facts(dataset: Any, directory: tiff.Directory) -> RasterFacts:
    flags = {flag.name for flag in dataset.mask_flag_enums[0]}
    alpha = next((band for band, kind in enumerate(dataset.colorinterp, 1) if kind.name == "alpha"), 0)
    if alpha and dataset.count == 1:
        alpha = 0
    validity = "none"
    if alpha:
        validity = "alpha"
    elif "nodata" in flags or dataset.nodata is not None:
        validity = "nodata"
    elif "per_dataset" in flags:
        validity = "mask"
    bits = int(dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 0))
    return RasterFacts(
        width=dataset.width,
        height=dataset.height,
        bands=dataset.count,
        dtype="float32" if dataset.dtypes[0] == _HALF else dataset.dtypes[0],
        validity=validity,
        nodata=dataset.nodata,
        alpha_band=alpha,
        names=_names(dataset),
        scales=tuple(dataset.scales),
        offsets=tuple(dataset.offsets),
        bits=bits or 8 * np.dtype(dataset.dtypes[0]).itemsize,
        is_palette=dataset.colorinterp[0].name == "palette" and dataset.count == 1,
        is_georeferenced=any(tag in directory for tag in tiff.GEOREFERENCE),
    )


def _names(dataset: Any) -> tuple[str, ...]:
    try:
        return tuple(name or "" for name in dataset.descriptions)
    except UnicodeDecodeError:  # of one band, and rasterio tells none then
        return ("",) * int(dataset.count)


def place_of(window: Window) -> str:
    """A window in words."""
    left, top, width, height = window
    return f"columns {left}..{left + width - 1}, rows {top}..{top + height - 1}"


def _raise_fault(file: WatchedFile, error: Exception) -> None:
    """Raise what is no fault of the raster: what the storage raised, or MemoryError."""
    file.raise_fault()
    for cause in _causes(error):
        is_gdals = type(cause).__name__ == "CPLE_OutOfMemoryError" or _NO_ROOM in str(cause)
        if is_gdals or isinstance(cause, MemoryError):
            raise MemoryError(f"{file.uri}: out of memory: {_reason(cause)}") from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """`error`, which is rasterio's, and then what GDAL says, the first message last."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def _reason(error: BaseException) -> str:
    """What GDAL says, of which rasterio's own sentence is the least telling part."""
    *_, first = _causes(error)
    return " ".join(str(first).replace("scene.tif", "the file").split()) or type(first).__name__
