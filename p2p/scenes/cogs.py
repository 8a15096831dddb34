"""Cloud-optimised GeoTIFFs made of parts: rows of blocks that several processes encode, put together as they are.

GDAL encodes; no block is decoded again but those of the fourth level, of which the smaller overviews are made.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt

from p2p.errors import ConfigError, DamagedFileError, P2PError, StorageError
from p2p.scenes.sections import BLOCK
from p2p.scenes.validity import Array, Mask, halve, step_off
from p2p.storage import tiff_directories as tiff
from p2p.storage.error_mapping import storage_errors
from p2p.storage.filesystems import is_remote, open_filesystem
from p2p.storage.rasters import open_raster, rasterio

Compression = Literal["deflate", "zstd", "jpeg", "webp", "none"]
LOSSY: tuple[Compression, ...] = ("jpeg", "webp")
PART_LEVELS = 3
"""Levels that a part has files of, as far as the whole has them: itself, and its overviews of half and a quarter."""
_LOSSY_CHANNELS = {"jpeg": (1, 2, 3, 4), "webp": (3, 4)}
_DEFLATE_LEVEL = 1  # a third of the time of level 6, for a tenth more bytes
_ZSTD_LEVEL = 1
_CLASSIC_BYTES = 4_000_000_000
_COPY_BYTES = 16 * 2**20
_WRITTEN_COLUMNS = 8 * BLOCK  # at a time, since GDAL wants them in another order, which is a copy
_HALVED_ROWS = 16  # at a time, since sums take more memory than pixels; an even number


def check_compression(compression: Compression, channels: int, dtype: str) -> None:
    """Raise ConfigError unless pixels of so many channels, without alpha, can be compressed so."""
    if compression in LOSSY and (dtype != "uint8" or channels not in _LOSSY_CHANNELS[compression]):
        allowed = " or ".join(map(str, _LOSSY_CHANNELS[compression]))
        raise ConfigError(
            "compression",
            f"{compression}: the model's outputs have {channels} channels of {dtype}, and {compression} holds "
            f"{allowed} channels of uint8; use deflate, zstd or none",
        )


@dataclass(frozen=True)
class CogProfile:
    """What every pixel of a file is."""

    width: int
    height: int
    channels: int
    """Without alpha."""
    dtype: str
    validity: str
    """As `RasterFacts` has it."""
    nodata: float | None = None
    names: tuple[str, ...] = ()
    compression: Compression = "deflate"
    quality: int = 95

    @property
    def levels(self) -> int:
        """How many there are with the overviews, of which the smallest fits one block."""
        count = 1
        while max(self.size_of(count - 1)) > BLOCK:
            count += 1
        return count

    def size_of(self, level: int) -> tuple[int, int]:
        """Width and height, halved `level` times and rounded up."""
        return -(-self.width // 2**level), -(-self.height // 2**level)

    @property
    def is_large(self) -> bool:
        """Whether the file must be a BigTIFF, since nobody knows before how well its pixels can be compressed."""
        samples = self.channels + (self.validity in ("alpha", "mask"))
        return self.width * self.height * samples * np.dtype(self.dtype).itemsize * 4 / 3 > _CLASSIC_BYTES

    def creation_options(self, width: int, height: int) -> dict[str, Any]:
        """For rasterio, made from nothing: options of an input do not fit its output."""
        samples = self.channels + (self.validity == "alpha")
        options: dict[str, Any] = {
            **{"driver": "GTiff", "width": width, "height": height, "count": samples, "dtype": self.dtype},
            **{"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "interleave": "pixel", "bigtiff": "IF_SAFER"},
            **{"compress": self.compression, "endianness": "LITTLE"},
            "photometric": "RGB" if self.channels == 3 else "MINISBLACK",
        }
        if self.validity == "nodata":
            options["nodata"] = self.nodata
        if samples > 1 and self.channels != 3:
            options["alpha"] = "NO"  # GDAL would take the second of any bands for it
        if self.compression in ("deflate", "zstd"):
            options["predictor"] = 3 if np.dtype(self.dtype).kind == "f" else 2
            options |= {"zlevel": _DEFLATE_LEVEL} if self.compression == "deflate" else {"zstd_level": _ZSTD_LEVEL}
        if self.compression == "jpeg":
            options["jpeg_quality"] = self.quality
            if self.channels == 3:
                options["photometric"] = "YCBCR"
        if self.compression == "webp":
            options["webp_level"] = self.quality
        return options


class PartWriter:
    """Encodes rows of one part, from top to bottom, and its overviews with them.

    Args:
        paths: local files to write: for the part itself, then for each overview of it.
        profile: of the whole.
        rows: of the part.
        level: of the first file.

    Raises StorageError where the disk takes no more.

    """

    def __init__(self, paths: Sequence[str], profile: CogProfile, rows: int, level: int = 0) -> None:
        self._profile, self._rows, self._path = profile, rows, paths[0]
        self._width = profile.size_of(level)[0]
        with _write_errors(self._path):
            self._dataset = rasterio().open(paths[0], "w", **profile.creation_options(self._width, rows))
        if profile.validity == "alpha":
            kinds = rasterio().enums.ColorInterp
            colours = {1: [kinds.gray], 3: [kinds.red, kinds.green, kinds.blue]}
            self._dataset.colorinterp = [
                *colours.get(profile.channels, [kinds.undefined] * profile.channels),
                kinds.alpha,
            ]
        if level == 0:
            for band, name in enumerate(profile.names[: profile.channels], 1):
                self._dataset.set_band_description(band, name)
        self._next = PartWriter(paths[1:], profile, -(-rows // 2), level + 1) if len(paths) > 1 else None
        rows_at_once = min(BLOCK, rows)
        self._pixels = np.empty((rows_at_once, self._width, self._dataset.count), profile.dtype)
        self._valid: Mask | None = None
        self._waiting = self._written = 0

    def add(self, pixels: Array, valid: Mask | None) -> None:
        """Take (n, W, C) pixels, alpha as their last channel if the profile has it, and where they are valid.

        Valid pixels that equal nodata are moved off it, invalid ones get it.
        """
        if valid is not None and self._valid is None:
            self._valid = np.empty(self._pixels.shape[:2], bool)
        while len(pixels):
            end = min(BLOCK, self._rows - self._written)
            count = min(len(pixels), end - self._waiting)
            place = slice(self._waiting, self._waiting + count)
            self._pixels[place] = pixels[:count]
            if valid is not None and self._valid is not None:
                self._valid[place], valid = valid[:count], valid[count:]
            pixels, self._waiting = pixels[count:], self._waiting + count
            if self._waiting == end:
                self._write_blocks()

    def _write_blocks(self) -> None:
        pixels = self._pixels[: self._waiting]
        valid = None if self._valid is None else self._valid[: self._waiting]
        self._waiting = 0
        mark_invalid(pixels, valid, self._profile)
        with _write_errors(self._path):
            for left in range(0, self._width, _WRITTEN_COLUMNS):
                part = slice(left, min(left + _WRITTEN_COLUMNS, self._width))
                window = rasterio().windows.Window(left, self._written, part.stop - left, len(pixels))
                self._dataset.write(np.ascontiguousarray(np.moveaxis(pixels[:, part], 2, 0)), window=window)
                if self._profile.validity == "mask":
                    mask = np.ones((len(pixels), part.stop - left), bool) if valid is None else valid[:, part]
                    self._dataset.write_mask(mask.astype(np.uint8) * 255, window=window)
        self._written += len(pixels)
        for top in range(0, len(pixels) if self._next else 0, _HALVED_ROWS):
            assert self._next is not None
            part = slice(top, top + _HALVED_ROWS)
            self._next.add(*halve(pixels[part], None if valid is None else valid[part]))

    def close(self) -> None:
        """Finish the files. Raises ValueError if rows are missing."""
        if self._written < self._rows:
            raise ValueError(f"only {self._written} of {self._rows} rows were added")
        self.discard()

    def discard(self) -> None:
        """Close the files as they are."""
        with _write_errors(self._path):
            self._dataset.close()
        if self._next:
            self._next.discard()


@contextlib.contextmanager
def _write_errors(path: str) -> Iterator[None]:
    """What goes wrong while GDAL writes is the disk's fault, since options and pixels were checked."""
    try:
        yield
    except P2PError:
        raise
    except rasterio().errors.RasterioError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise StorageError(
            f"{path}: cannot be written: {reason}; is there room? TMPDIR names another folder for it"
        ) from error


def mark_invalid(pixels: Array, valid: Mask | None, profile: CogProfile) -> None:
    """Give invalid pixels the value that says so, or zeros, and no valid one that value; in place."""
    if valid is not None and not valid.all():
        pixels[~valid] = profile.nodata if profile.validity == "nodata" else 0
    if profile.validity == "nodata" and profile.nodata is not None and not np.isnan(profile.nodata):
        good = pixels[valid] if valid is not None else pixels
        step_off(good, profile.nodata)
        if valid is not None:
            pixels[valid] = good


def assemble(
    file: IO[bytes],
    profile: CogProfile,
    parts: Sequence[Sequence[str]],
    georeference: Mapping[int, tiff.TagValue],
    scratch: str,
) -> None:
    """Put parts together, from top to bottom, and write the whole to `file`.

    Args:
        file: empty.
        profile: of the whole.
        parts: the addresses of each part's files, as many as `profile.levels`, and at most `PART_LEVELS`.
        georeference: tags of the input that say where it lies.
        scratch: a local folder for small overviews.

    Raises DamagedFileError for parts that do not fit together.

    """
    levels = [list(files) for files in zip(*parts, strict=True)]
    levels += [[path] for path in _small_overviews(profile, levels[-1], scratch)]
    with contextlib.ExitStack() as stack:
        images = [_read_image(files, *profile.size_of(level), stack) for level, files in enumerate(levels)]
        images[0].directory.pop(tiff.SUBFILE_TYPE, None)
        images[0].directory.update(georeference)
        for image in images[1:]:
            image.directory.pop(tiff.METADATA, None)
        _write(file, images, profile.is_large)


def _small_overviews(profile: CogProfile, above: Sequence[str], scratch: str) -> list[str]:
    """Write the overviews that parts have no files of, from the smallest level that they have."""
    if profile.levels <= PART_LEVELS:
        return []
    paths = [os.path.join(scratch, f"overview-{level}.tif") for level in range(PART_LEVELS, profile.levels)]
    writer = PartWriter(paths, profile, profile.size_of(PART_LEVELS)[1], PART_LEVELS)
    for uri in above:
        with open_raster(uri) as raster:
            facts = raster.facts
            bands = list(range(1, facts.bands + 1))
            for top in range(0, facts.height, BLOCK):
                rows = min(BLOCK, facts.height - top)
                pixels, valid, _ = raster.read(bands, (0, top, facts.width, rows))
                writer.add(*halve(pixels, valid))
    writer.close()
    return paths


@dataclass
class _Image:
    """One level, its mask perhaps with it: the directories, and where their blocks are."""

    directory: dict[int, tiff.TagValue]
    mask: dict[int, tiff.TagValue] | None
    blocks: list[tuple[IO[bytes], npt.NDArray[np.int64], npt.NDArray[np.int64]]]
    """File, offsets and counts; those of the mask in `mask_blocks`."""
    mask_blocks: list[tuple[IO[bytes], npt.NDArray[np.int64], npt.NDArray[np.int64]]]


def _read_image(files: Sequence[str], width: int, height: int, stack: contextlib.ExitStack) -> _Image:
    found: list[list[dict[int, tiff.TagValue]]] = []
    blocks: list[list[tuple[IO[bytes], npt.NDArray[np.int64], npt.NDArray[np.int64]]]] = [[], []]
    for uri in files:
        with storage_errors(uri):
            filesystem, path = open_filesystem(uri)
            options = {"block_size": _COPY_BYTES, "cache_type": "readahead"} if is_remote(uri) else {}
            file = stack.enter_context(filesystem.open(path, "rb", **options))
            directories = tiff.read_directories(file, int(filesystem.info(path)["size"]))
        for directory, into in zip(directories, blocks, strict=False):
            offsets, counts = (directory[tag].values.astype("i8") for tag in (tiff.TILE_OFFSETS, tiff.TILE_COUNTS))
            into.append((file, offsets, counts))
        found.append(directories)
    first = found[0]
    for uri, directories in zip(files, found, strict=True):
        if len(directories) != len(first) or any(
            not _is_alike(one, other) for one, other in zip(directories, first, strict=True)
        ):
            raise DamagedFileError(f"{uri}: it does not fit {files[0]}, so they are not parts of one scene")
    for number, directory in enumerate(first):
        expected = -(-width // BLOCK) * -(-height // BLOCK)
        count = sum(len(offsets) for _, offsets, _ in blocks[number])
        if count != expected:
            raise DamagedFileError(f"{files[0]}: the parts have {count} blocks instead of {expected}")
        directory[tiff.WIDTH], directory[tiff.HEIGHT] = tiff.TagValue.longs(width), tiff.TagValue.longs(height)
    return _Image(first[0], first[1] if len(first) > 1 else None, blocks[0], blocks[1])


def _is_alike(one: tiff.Directory, other: tiff.Directory) -> bool:
    """Whether blocks of both can be read with the tags of either."""
    ignored = {tiff.HEIGHT, tiff.TILE_OFFSETS, tiff.TILE_COUNTS}
    if one.keys() - ignored != other.keys() - ignored:
        return False
    return all(np.array_equal(one[tag].values, other[tag].values) for tag in one.keys() - ignored)


def _write(file: IO[bytes], images: Sequence[_Image], large: bool) -> None:
    """Directories first, the whole before its overviews; then the blocks, those of the smallest overview first."""
    directories, blocks = [], []
    for level, image in enumerate(images):
        kinds = [(image.directory, image.blocks, 0)]
        if image.mask is not None:
            kinds.append((image.mask, image.mask_blocks, tiff.IS_MASK))
        for directory, where, is_mask in kinds:
            kind = is_mask | (tiff.IS_OVERVIEW if level else 0)
            if kind:
                directory[tiff.SUBFILE_TYPE] = tiff.TagValue.longs(kind)
            counts = np.concatenate([counts for _, _, counts in where])
            directory[tiff.TILE_COUNTS] = tiff.TagValue(4, counts.astype("u4"))
            directory[tiff.TILE_OFFSETS] = tiff.offsets_tag(np.zeros(len(counts), "i8"), large)
            directories.append(directory)
            blocks.append((where, counts))
    position = len(tiff.layout(directories, large))
    for directory, (_, counts) in zip(directories[::-1], blocks[::-1], strict=True):
        offsets = position + np.cumsum(counts) - counts
        directory[tiff.TILE_OFFSETS] = tiff.offsets_tag(np.where(counts > 0, offsets, 0), large)
        position += int(counts.sum())
    file.write(tiff.layout(directories, large))
    for where, _ in blocks[::-1]:
        for source, offsets, counts in where:
            for start, length in _runs(offsets, counts):
                source.seek(start)
                data = source.read(length)
                if len(data) < length:
                    raise DamagedFileError("a part of the scene is cut off")
                file.write(data)


def _runs(offsets: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Blocks -> (offset, bytes) of pieces to copy, blocks that follow one another in one piece."""
    start = length = 0
    for offset, count in itertools.chain(zip(offsets.tolist(), counts.tolist(), strict=True), [(-1, 1)]):
        if not count:
            continue
        if length and (offset != start + length or length + count > _COPY_BYTES):
            yield start, length
            length = 0
        if not length:
            start = offset
        length += count
