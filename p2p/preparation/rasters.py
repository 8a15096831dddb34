"""Pairs cut out of rasters that show the same places, pixel on pixel."""

from __future__ import annotations

import contextlib
import hashlib
import math
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from p2p.data.joining import FoundLayout
from p2p.data.layouts import split_name
from p2p.doctor.files import BadRow
from p2p.errors import BadInputError, ConfigError
from p2p.preparation.config import PrepareConfig
from p2p.preparation.pairing import Pairing, PairRef, goes_to_val
from p2p.preparation.windows import RasterWindow
from p2p.scenes.bands import RasterBands, find_bands, parse_bands, parse_scale
from p2p.storage.filesystems import is_file, list_files
from p2p.storage.names import printable
from p2p.storage.pixels import MAX_CHANNELS, PixelFormat
from p2p.storage.rasters import Raster, open_raster
from p2p.storage.tiff_directories import CONTROL_POINTS

ENDINGS = (".tif", ".tiff")
_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
_CELL = 4
"""Windows on a side of what goes into one split as a whole."""
_SAMPLED_WINDOWS, _SAMPLED_PIXELS = 256, 4096
_MAX_SIZE_DIFFERENCE, _MAX_OFFSET = 1e-6, 0.01
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RasterPairing:
    """The pairs, and what both sides are."""

    pairing: Pairing
    formats: tuple[PixelFormat, PixelFormat]
    bands: tuple[RasterBands, RasterBands]


@dataclass(frozen=True)
class _RasterPair:
    """Two rasters of one place: their addresses, and the first pixel that both have, in each."""

    path: str
    addresses: tuple[str, str]
    starts: tuple[tuple[int, int], tuple[int, int]]
    width: int
    height: int


def pair_rasters(config: PrepareConfig, source: str, source_b: str) -> RasterPairing:
    """Choose the windows of all rasters at `source` whose partners are at `source_b`. Reads every raster once.

    Raises ConfigError for rasters without a partner, on another grid, or of which nothing is learnt how to scale them.
    """
    scenes, sides = [], [_Side("a", config.bands_a, config.scale_a), _Side("b", config.bands_b, config.scale_b)]
    bad: list[BadRow] = []
    for path, addresses in _partners(source, source_b, bad):
        try:
            with contextlib.ExitStack() as stack:
                rasters = []
                for address in addresses:
                    rasters.append(stack.enter_context(open_raster(address)))
                scenes.append(_on_one_grid(path, *rasters))
                for side, raster in zip(sides, rasters, strict=True):
                    side.add(raster)
        except BadInputError as error:
            bad.append(BadRow(printable(address), error.kind, printable(str(error))))
    if not scenes:
        raise ConfigError("source", f"no raster and its partner can be read: {bad[-1].source_uri}: {bad[-1].message}")
    bands_read = [side.found.bands for side in sides if side.found is not None]
    kept = [w for scene in scenes for w in _valid(scene, list(_windows(scene, config)), config, bands_read)]
    if not kept:
        raise ConfigError(
            "window", f"{config.window}: no window of that size is valid all over in both of any two rasters"
        )
    bands = _learn(sides, kept, config.window)
    formats = [side.format(one) for side, one in zip(sides, bands, strict=True)]
    layout = FoundLayout("rasters", (f"windows of {source}", f"the same windows of {source_b}"))
    return RasterPairing(
        _pairing(kept, config.window, formats, bands, Pairing(layout, bad)), (formats[0], formats[1]), bands
    )


def _partners(source: str, source_b: str, bad: list[BadRow]) -> list[tuple[str, tuple[str, str]]]:
    """Rasters of both sides by their path without ending; two files are partners whatever they are called."""
    if is_file(source) and is_file(source_b):
        return [(posixpath.basename(source), (source, source_b))]
    found: list[dict[str, tuple[str, str]]] = []
    for field, uri in (("source", source), ("source_b", source_b)):
        files: dict[str, tuple[str, str]] = {}
        for file in list_files(uri, ENDINGS):
            name = posixpath.splitext(file.path)[0]
            if files.setdefault(name, (file.path, file.uri)) != (file.path, file.uri):
                message = f"raster {printable(name)!r} is there more than once; give each file a name of its own"
                bad.append(BadRow(printable(file.uri), "DuplicateName", message))
        if not files:
            raise ConfigError(field, f"{uri}: holds no GeoTIFF ({', '.join(ENDINGS)})")
        found.append(files)
    a, b = found
    alone = sorted(a.keys() ^ b.keys())
    if alone:
        raise ConfigError("source_b", f"{source_b}: {len(alone)} rasters have no partner, {alone[0]} for one")
    return [(a[name][0], (a[name][1], b[name][1])) for name in sorted(a)]


def _control_points(raster: Raster) -> dict[int, bytes]:
    """The GCPs and RPCs of a raster, which say where it lies in place of a transform."""
    return {tag: value.values.tobytes() for tag, value in raster.georeference.items() if tag in CONTROL_POINTS}


def _on_one_grid(path: str, a: Raster, b: Raster) -> _RasterPair:
    """Raises ConfigError unless B's pixels lie on A's."""
    if a.crs != b.crs:
        raise _not_alike(a, b, "CrsDiffers", "their coordinate systems differ")
    t, u = a.transform, b.transform
    if t == u == _IDENTITY and _control_points(a) != _control_points(b):
        raise ConfigError(
            "source_b",
            f"{b.uri}: has other control points (GCPs or RPCs) than {a.uri}; put both on one grid with gdalwarp first",
        )
    size = max(abs(value) for value in (t[0], t[1], t[3], t[4])) or 1.0
    if any(abs(t[place] - u[place]) > _MAX_SIZE_DIFFERENCE * size for place in (0, 1, 3, 4)):
        raise _not_alike(a, b, "GridsDiffer", f"their pixels differ: {t[0]:g} x {t[4]:g} and {u[0]:g} x {u[4]:g}")
    determinant = t[0] * t[4] - t[1] * t[3]
    if not math.isfinite(determinant) or not determinant:
        raise ConfigError("source", f"{a.uri}: its pixels have no area on the ground: its transform is {t}")
    dx, dy = u[2] - t[2], u[5] - t[5]
    column, row = (t[4] * dx - t[1] * dy) / determinant, (t[0] * dy - t[3] * dx) / determinant
    x, y = round(column), round(row)
    if max(abs(column - x), abs(row - y)) > _MAX_OFFSET:
        raise _not_alike(a, b, "GridsDiffer", f"they are {column:.2f} and {row:.2f} pixels apart, which is not whole")
    left, top = max(0, x), max(0, y)
    width = min(a.facts.width, x + b.facts.width) - left
    height = min(a.facts.height, y + b.facts.height) - top
    if min(width, height) < 1:
        raise ConfigError("source_b", f"{b.uri}: NoOverlap: it shows no place that {a.uri} shows")
    return _RasterPair(path, (a.uri, b.uri), ((left, top), (left - x, top - y)), width, height)


def _not_alike(a: Raster, b: Raster, kind: str, problem: str) -> ConfigError:
    t, facts = a.transform, a.facts
    corners = (t[2], t[5] + t[4] * facts.height, t[2] + t[0] * facts.width, t[5])
    where = f"-t_srs {a.crs_name} -tr {abs(t[0])!r} {abs(t[4])!r} -te {' '.join(map(repr, corners))}"
    command = f"gdalwarp {where} B.tif B_ON_A.tif"
    return ConfigError("source_b", f"{b.uri}: {kind}: {problem} ({a.uri}); put it on the grid of A first: {command}")


@dataclass(frozen=True)
class _Window:
    scene: _RasterPair
    column: int
    row: int
    """Within what both rasters show."""
    split: str


def _windows(scene: _RasterPair, config: PrepareConfig) -> Iterator[_Window]:
    """All windows of a scene: side by side, but for a gap of half a window around the cells of val."""
    size = config.window
    by_folder = next((split for folder in scene.path.split("/")[:-1] if (split := split_name(folder))), "")
    for y in range(0, scene.height, _CELL * size):
        for x in range(0, scene.width, _CELL * size):
            is_val = not by_folder and goes_to_val(f"{scene.path}#{x},{y}", config.val_fraction)
            gap, count = (size // 2, _CELL - 1) if is_val else (0, _CELL)
            for row in range(y + gap, y + gap + count * size, size):
                for column in range(x + gap, x + gap + count * size, size):
                    if row + size <= scene.height and column + size <= scene.width:
                        yield _Window(scene, column, row, by_folder or ("val" if is_val else "train"))


def _valid(
    scene: _RasterPair, windows: Sequence[_Window], config: PrepareConfig, bands: Sequence[Sequence[int]]
) -> list[_Window]:
    """Those of a scene that hold no invalid pixel in the `bands` of either side, and damaged ones: bad rows later."""
    kept = list(windows)
    for address, (left, top), chosen in zip(scene.addresses, scene.starts, bands, strict=True):
        with open_raster(address) as raster:
            if raster.facts.validity == "none" and not raster.facts.dtype.startswith("float"):
                continue
            good = []
            for window in kept:
                place = (left + window.column, top + window.row, config.window, config.window)
                try:
                    _, valid, _ = raster.read(list(chosen), place)
                except BadInputError:
                    valid = None
                if valid is None or valid.all():
                    good.append(window)
            kept = good
    return kept


class _Side:
    """What is found out of the rasters of one side."""

    def __init__(self, letter: str, bands: str, scale: str) -> None:
        self._letter, self._scale = letter, parse_scale(scale, f"scale_{letter}")
        self._wanted = parse_bands(bands, f"bands_{letter}") if bands else ()
        self.found: RasterBands | None = None
        self._channels = 0

    def add(self, raster: Raster) -> None:
        """Look at one of them. Raises ConfigError if it is of another kind than those before."""
        facts, field = raster.facts, f"bands_{self._letter}"
        numbers = [band for band in range(1, facts.bands + 1) if band != facts.alpha_band][:MAX_CHANNELS]
        if self._wanted:
            try:
                numbers = find_bands(self._wanted, facts.names)
            except KeyError as error:
                raise ConfigError(field, f"{raster.uri} has no band {error.args[0]}") from None
        if facts.is_palette and self._scale not in (None, ("none",)):
            raise ConfigError(
                f"scale_{self._letter}", f"{raster.uri} has a palette of colours, which are not scaled; leave it out"
            )
        names = tuple(facts.names[number - 1] for number in numbers)
        found = RasterBands(tuple(numbers), facts.dtype, names if all(names) else ())
        channels = 3 if facts.is_palette else len(numbers)
        if self.found is None:
            self.found, self._channels = found, channels
        elif (found, channels) != (self.found, self._channels):
            raise ConfigError(field, f"{raster.uri} has bands {found}, the rasters before it {self.found}")

    @property
    def needs_scaling(self) -> bool:
        """Whether its values are numbers that no image holds. Raises ConfigError if nothing says how to scale them."""
        assert self.found is not None
        if self._scale is None and self.found.dtype != "uint8":
            raise ConfigError(
                f"scale_{self._letter}",
                f"side {self._letter.upper()} is {self.found.dtype}: say what becomes black and white, percentile:2,98 "
                f"or range:LO,HI, or none to keep the numbers of uint16",
            )
        if self._scale == ("none",) and self.found.dtype not in ("uint8", "uint16"):
            raise ConfigError(f"scale_{self._letter}", f"none: {self.found.dtype} must be scaled")
        return self._scale is not None and self._scale != ("none",)

    def learn(self, samples: Sequence[Any]) -> RasterBands:
        """The bands with their scaling. `samples` yields (n, C) values."""
        assert self.found is not None and self._scale is not None
        kind, low, high = self._scale
        count = len(self.found.bands)
        if kind == "range":
            return self._scaled([low] * count, [high] * count)
        values = np.concatenate([np.asarray(sample, np.float64) for sample in samples])
        lows, highs = np.percentile(values, [low, high], axis=0)
        return self._scaled(lows.tolist(), highs.tolist())

    def _scaled(self, low: Sequence[float], high: Sequence[float]) -> RasterBands:
        assert self.found is not None
        if any(one >= other for one, other in zip(low, high, strict=True)):
            raise ConfigError(f"scale_{self._letter}", "a band has one value only, so there is nothing to scale")
        return RasterBands(self.found.bands, self.found.dtype, self.found.names, tuple(low), tuple(high))

    def widened(self) -> RasterBands:
        """For a side of 8 bits whose partner has 16: outputs become 8 bits again."""
        assert self.found is not None
        return self._scaled([0.0] * self._channels, [255.0] * self._channels)

    def format(self, bands: RasterBands) -> PixelFormat:
        """How its windows are stored."""
        is_deep = (bands.is_scaled and bands.dtype != "uint8") or bands.dtype == "uint16" or self.needs_scaling
        return PixelFormat(self._channels, 16 if is_deep else 8)


def _learn(sides: Sequence[_Side], windows: Sequence[_Window], size: int) -> tuple[RasterBands, RasterBands]:
    """What the bands of both sides are, and how they are scaled: by some windows of train, chosen by hash."""
    chosen = [window for window in windows if window.split == "train"] or list(windows)
    chosen = sorted(chosen, key=lambda window: _digest(f"{window.scene.path}#{window.column},{window.row}"))
    chosen = sorted(chosen[:_SAMPLED_WINDOWS], key=lambda window: (window.scene.path, window.row, window.column))
    found = []
    for number, side in enumerate(sides):
        assert side.found is not None
        if side.needs_scaling:
            samples = list(_samples(number, chosen, list(side.found.bands), size))
            if not samples:
                problem = f"{chosen[0].scene.addresses[number]}: no window to learn the scaling from can be decoded"
                raise ConfigError(("source", "source_b")[number], problem)
            found.append(side.learn(samples))
        else:
            found.append(side.found)
    is_deep = [side.format(bands).bits == 16 for side, bands in zip(sides, found, strict=True)]
    for number, side in enumerate(sides):
        if not is_deep[number] and is_deep[1 - number]:
            found[number] = side.widened()
    return found[0], found[1]


def _samples(number: int, windows: Sequence[_Window], bands: list[int], size: int) -> Iterator[Floats]:
    step = max(1, size * size // _SAMPLED_PIXELS)
    for window in windows:
        left, top = window.scene.starts[number]
        place = (left + window.column, top + window.row, size, size)
        try:
            with open_raster(window.scene.addresses[number]) as raster:
                pixels, _, _ = raster.read(bands, place)
        except BadInputError:
            continue  # a bad row later
        yield pixels.reshape(-1, pixels.shape[2])[::step]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _pairing(
    windows: Sequence[_Window],
    size: int,
    formats: Sequence[PixelFormat],
    bands: Sequence[RasterBands],
    pairing: Pairing,
) -> Pairing:
    places: dict[str, tuple[str, tuple[float, ...]]] = {}
    for window in windows:
        sides = []
        for address, (left, top), pixels, one in zip(
            window.scene.addresses, window.scene.starts, formats, bands, strict=True
        ):
            if address not in places:
                with open_raster(address) as raster:
                    places[address] = raster.crs, raster.transform
            crs, (a, b, c, d, e, f) = places[address]
            x, y = left + window.column, top + window.row
            transform = (a, b, a * x + b * y + c, d, e, d * x + e * y + f)
            sides.append(RasterWindow(address, x, y, size, pixels, one, crs, transform))
        pair_id = f"{window.scene.path}#{sides[0].column},{sides[0].row}"
        weight = size * size * (formats[0].bytes_per_pixel + formats[1].bytes_per_pixel)
        pairing.add(PairRef(pair_id, window.split, sides[0], sides[1], weight))
    return pairing
