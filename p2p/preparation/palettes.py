"""The colours of a rendered map whose pixels are no longer exact, since they went through JPEG or a resize."""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from p2p.errors import ConfigError, P2PError
from p2p.model.config import MAX_PALETTE, Palette
from p2p.storage.filesystems import read_bytes
from p2p.storage.pixels import Array

log = logging.getLogger("p2p")

Floats = npt.NDArray[np.float64]

MIN_PALETTE = 2
_SAMPLE_PAIRS = 4096
_SAMPLE_PIXELS = 600_000
_MAX_PIXELS_OF_PAIR = 16_384
_BIN_BITS = 2  # of each channel that are left out, so that k-means has thousands of points and not millions
_RESTARTS, _ITERATIONS = 8, 60
_MIN_SHIFT = 1e-3
_MAX_FILE_BYTES = 2**16
_COLOUR_LINE = re.compile(r"#?([0-9a-fA-F]{6})(?:\s.*)?")
_MAX_MAP_DISTANCE = 4.0
"""Mean distance in CIELAB above which the colours describe no rendered map: photographs come to 4 to 6 with eight
colours, maps that went through JPEG to 2."""


@dataclass(frozen=True)
class FoundPalette:
    """The colours of one side, the commonest first."""

    side: Literal["a", "b"]
    colours: Palette
    shares: Sequence[float]
    """Of the sampled pixels that are nearest to each (in RGB, as the metrics take it), 0..1."""
    distance: float
    """Mean distance of the pixels from their colour, CIELAB units: 2 is just visible."""

    def to_json(self) -> dict[str, Any]:
        """What doctor.json says of it."""
        colours = [
            {"colour": "#{:02x}{:02x}{:02x}".format(*colour), "share": share}
            for colour, share in zip(self.colours, self.shares, strict=True)
        ]
        return {"side": self.side, "distance": self.distance, "colours": colours}


def pixels_per_pair(pairs: int) -> tuple[float, int]:
    """How much is looked at: the share of the pairs, and how many pixels of each side of those."""
    share = min(1.0, _SAMPLE_PAIRS / max(1, pairs))
    return share, min(_MAX_PIXELS_OF_PAIR, -(-_SAMPLE_PIXELS // max(1, min(pairs, _SAMPLE_PAIRS))))


def sample_pixels(image: Array, pair_id: str, count: int) -> Array:
    """(H, W, 3) -> (count, 3) pixels at places that depend on the pair's id and the size alone."""
    flat = image.reshape(-1, image.shape[2])
    places = np.random.default_rng(zlib.crc32(pair_id.encode("utf-8", "surrogateescape"))).integers(
        len(flat), size=count
    )
    return flat[places]


def parse_palette(written: str) -> int | Palette:
    """`8`, or a file with a colour a line (`#ffaa00`, and anything after it). Raises ConfigError about `palette`."""
    if written.isdecimal():
        count = int(written)
        if not MIN_PALETTE <= count <= MAX_PALETTE:
            raise ConfigError(
                "palette", f"{written}: must be {MIN_PALETTE} to {MAX_PALETTE} colours, or a file of them"
            )
        return count
    try:
        lines = read_bytes(written, _MAX_FILE_BYTES).decode("utf-8").splitlines()
    except (P2PError, UnicodeDecodeError) as error:
        raise ConfigError("palette", f"{written}: neither a number of colours nor a file of them: {error}") from None
    colours = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found = _COLOUR_LINE.fullmatch(line.strip())
        if not found:
            raise ConfigError("palette", f"{written}: line {number} does not begin with a colour such as #ffaa00")
        red, green, blue = bytes.fromhex(found[1])
        colours.append((red, green, blue))
    if not MIN_PALETTE <= len(set(colours)) <= MAX_PALETTE or len(set(colours)) < len(colours):
        raise ConfigError("palette", f"{written}: needs {MIN_PALETTE} to {MAX_PALETTE} colours, each once")
    return tuple(colours)


def find_palette(wanted: int | Palette, samples: tuple[list[Array], list[Array]], seed: int = 0) -> FoundPalette | None:
    """The colours of the side that they describe better: of a map and a photograph, the map. None without a sample.

    k-means (Lloyd 1982, k-means++ starts) in CIELAB over the sampled pixels; of each cluster the commonest colour,
    since a mean would be pulled away from it by the blurred borders of areas. The order of the batches is free.

    Args:
        wanted: how many colours, or which.
        samples: batches of (n, 3) uint8 pixels of A and of B; none of a side that has no RGB.
        seed: of the starts.

    """
    found = []
    for side, batches in zip(("a", "b"), samples, strict=True):
        if batches:
            pixels = np.concatenate(batches)
            found.append(
                _describe(side, wanted if isinstance(wanted, tuple) else _cluster(pixels, wanted, seed), pixels)
            )
    if not found:
        return None
    palette = min(found, key=lambda one: one.distance)
    words = (
        f"the pixels of side {palette.side} are {palette.distance:.1f} (CIELAB) from its {len(palette.colours)} colours"
    )
    if palette.distance > _MAX_MAP_DISTANCE:
        log.warning("palette: %s, further than those of a rendered map; photographs have no palette", words)
    else:
        log.info("palette: %s, which are in dataset.json and on the doctor's page", words)
    return palette


def _describe(side: Any, colours: Palette, pixels: Array) -> FoundPalette:
    points, counts = _bins(pixels)
    nearest = _square_distances(points, np.array(colours, np.float64)).argmin(axis=1)
    distances = np.sqrt(((to_lab(points) - to_lab(np.array(colours))[nearest]) ** 2).sum(axis=1))
    shares = np.bincount(nearest, counts, minlength=len(colours)) / counts.sum()
    order = np.argsort(-shares, kind="stable")
    distance = float((distances * counts).sum() / counts.sum())
    return FoundPalette(side, tuple(colours[place] for place in order), shares[order].tolist(), distance)


def _bins(pixels: Array) -> tuple[Floats, Floats]:
    """(n, 3) -> the mean colours of the cells of a grid that hold pixels, and how many each has."""
    coarse = (pixels >> _BIN_BITS).astype(np.int64)
    bits = 8 - _BIN_BITS
    cells = (coarse[:, 0] << 2 * bits) | (coarse[:, 1] << bits) | coarse[:, 2]
    _, places, counts = np.unique(cells, return_inverse=True, return_counts=True)
    means = np.stack([np.bincount(places, pixels[:, channel]) / counts for channel in range(3)], axis=1)
    return means, counts.astype(np.float64)


def _cluster(pixels: Array, count: int, seed: int) -> Palette:
    points, counts = _bins(pixels)
    lab = to_lab(points)
    best: tuple[float, npt.NDArray[np.intp]] | None = None
    for restart in range(_RESTARTS):
        inertia, nearest = _kmeans(lab, counts, count, np.random.default_rng([seed, restart]))
        if best is None or inertia < best[0]:
            best = inertia, nearest
    assert best is not None
    commonest = {}
    for place in np.argsort(counts, kind="stable"):  # the last one of each cluster is its commonest
        commonest[int(best[1][place])] = points[place].tolist()
    colours = {
        (round(red), round(green), round(blue)) for red, green, blue in np.array(list(commonest.values())).tolist()
    }
    return tuple(sorted(colours))


def _kmeans(
    points: Floats, weights: Floats, count: int, rng: np.random.Generator
) -> tuple[float, npt.NDArray[np.intp]]:
    """Weighted sum of square distances, and the cluster of each point."""
    centres = points[[rng.choice(len(points), p=weights / weights.sum())]]
    for _ in range(min(count, len(points)) - 1):
        chances = weights * _square_distances(points, centres).min(axis=1)
        if not chances.sum() > 0:
            break
        centres = np.vstack([centres, points[rng.choice(len(points), p=chances / chances.sum())]])
    for _ in range(_ITERATIONS):
        nearest = _square_distances(points, centres).argmin(axis=1)
        total = np.bincount(nearest, weights, minlength=len(centres))
        sums = np.stack([np.bincount(nearest, weights * axis, minlength=len(centres)) for axis in points.T], axis=1)
        moved = np.where(total[:, None] > 0, sums / np.maximum(total, 1e-9)[:, None], centres)
        done = np.abs(moved - centres).max() < _MIN_SHIFT
        centres = moved
        if done:
            break
    distances = _square_distances(points, centres)
    return float((distances.min(axis=1) * weights).sum()), distances.argmin(axis=1)


def _square_distances(points: Floats, centres: Floats) -> Floats:
    return np.asarray(((points[:, None] - centres[None]) ** 2).sum(axis=2))


_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
"""Linear sRGB to CIE XYZ, white point D65 (IEC 61966-2-1)."""


def to_lab(colours: npt.NDArray[Any]) -> Floats:
    """(n, 3) sRGB, 0..255 -> (n, 3) CIELAB (CIE 15:2004), where equal distances look about equally large.

    >>> to_lab(np.array([[255, 255, 255], [0, 0, 0]])).round(3).tolist()
    [[100.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    values = np.asarray(colours, np.float64) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    relative = linear @ (_TO_XYZ / _TO_XYZ.sum(axis=1, keepdims=True)).T
    edge = 6 / 29
    x, y, z = np.where(relative > edge**3, np.cbrt(relative), relative / (3 * edge**2) + 4 / 29).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def in_palette(image: Array, colours: Palette) -> Array:
    """(H, W, 3) -> the same with each pixel in its nearest colour (in RGB, as the metrics take it)."""
    values = image.astype(np.int32)
    distances = np.stack([((values - np.array(colour)) ** 2).sum(axis=2) for colour in colours])
    return np.asarray(np.array(colours, np.uint8)[distances.argmin(axis=0)])
