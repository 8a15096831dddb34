"""What the doctor keeps of a pair: 700 bytes computed while its pixels are in memory, and 2 KiB more of a sample."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from p2p.reports.sheets import as_rgb

Plane = npt.NDArray[np.float32]
Records = np.ndarray[Any, Any]
"""Of the type `FEATURES` or `DETAILS`."""

MAX_DETAILED = 8192
"""Pairs of a data set of which details are computed; of more, as many are drawn by a hash of their ids."""
CELLS = 16
FINE = 256
"""Side, in pixels, to which both sides are scaled before their shift is measured; shifts are counted in these."""
REACH = 24
"""The longest shift that is found, of `FINE`."""
PEAKS = 4
_SIDE = 144  # 16 cells of 9 pixels; 8 rows of 18 and 9 columns of 16
_MIN_SLOPE = 2.0  # brightness levels: flat areas must not hash their noise
_FLAT_STEP = 2.0
_PEAK_RADIUS = 3
_MAX_EDGE = 60.0
_BLUR = 0.125  # cycles per pixel: where the correlation's spectrum has faded
STYLE = ("red", "green", "blue", "contrast", "edges", "flatness", "saturation", "colours")

FEATURES = np.dtype(
    [
        ("content", np.uint64, 2),
        ("hash", np.uint64, 2),
        ("small", np.uint8, (2, CELLS * CELLS)),
        ("style", np.float32, (2, len(STYLE))),
        ("range", np.float32, 2),
        ("size", np.int32, (2, 2)),
        ("mode", "S12", 2),
    ]
)
"""Of every pair, side A first: digest of the pixels; 64-bit difference hash; 16x16 gray picture; `STYLE`; brightness
levels between the darkest and the lightest half per cent of 48x48 cells; height and width; the file's mode."""
DETAILS = np.dtype(
    [("row", np.int64), ("cells", np.uint8, (2, CELLS, CELLS, 4)), ("peaks", np.float32, (PEAKS, 3))],
)
"""Of a sample: the row of its features; red, green, blue and edges in 16x16 cells of each side; the places (x and y in
pixels of `FINE`, height in standard deviations) where the edges of B fit those of A best."""


@dataclass(frozen=True)
class PairFeatures:
    """Of some pairs: `ids[k]` is the pair of `features[k]`."""

    ids: list[str]
    features: Records
    details: Records


def collect(pairs: Sequence[tuple[str, Records, Records | None]]) -> PairFeatures:
    """Put together what `compute_features` returned for each pair id."""
    sampled = [(row, details) for row, (_, _, details) in enumerate(pairs) if details is not None]
    all_details = np.array([details for _, details in sampled], DETAILS)
    all_details["row"] = [row for row, _ in sampled]
    features = np.array([features for _, features, _ in pairs], FEATURES)
    return PairFeatures([pair_id for pair_id, _, _ in pairs], features, all_details)


def is_sampled(pair_id: str, share: float) -> bool:
    """Whether the pair is in the share, 0..1, of all whose details are computed; the same in every run."""
    return zlib.crc32(pair_id.encode("utf-8", "surrogateescape")) < share * 2**32


def _scaled(image: Image.Image, side: int) -> npt.NDArray[np.uint8]:
    return np.asarray(image.resize((side, side), Image.Resampling.BOX))


def _edges(gray: Plane) -> Plane:
    """(H, W) brightness -> (H, W) length of its gradient, 0 at the border."""
    x, y = np.zeros_like(gray), np.zeros_like(gray)
    np.subtract(gray[:, 2:], gray[:, :-2], out=x[:, 1:-1])
    np.subtract(gray[2:], gray[:-2], out=y[1:-1])
    return np.hypot(x, y)


def _means(plane: Plane, rows: int, columns: int) -> Plane:
    """(H, W) -> means of rows x columns equal blocks."""
    height, width = plane.shape
    strips = plane.reshape(rows, height // rows, width).sum(1)
    sums = strips.reshape(rows, columns, width // columns).sum(2)
    return np.asarray(sums / (height // rows * (width // columns)), np.float32)


def _style(planes: Sequence[Plane], gray: Plane) -> Plane:
    """What a side looks like wherever it was taken: the values of `STYLE`, each in 0..1 or near it."""
    red, green, blue = planes
    steps = np.abs(np.diff(gray, axis=1))
    coarse = [np.right_shift(plane.astype(np.int32), 4) for plane in planes]
    colours = np.bincount((coarse[0] * 256 + coarse[1] * 16 + coarse[2]).ravel(), minlength=4096)
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    values = [plane.mean() / 255 for plane in planes]
    values += [gray.std() / 255, np.sqrt(steps).mean() / 255**0.5, (steps < _FLAT_STEP).mean()]
    values += [spread.mean() / 255, np.log2(np.count_nonzero(colours)) / 12]
    return np.array(values, np.float32)


def compute_features(
    a: npt.NDArray[Any], b: npt.NDArray[Any], modes: tuple[str, str], *, detailed: bool
) -> tuple[Records, Records | None]:
    """Two sides as decoded, (H, W, C), and their files' modes -> a record of `FEATURES`, and with `detailed` one of
    `DETAILS`.
    """
    features, details = np.zeros((), FEATURES), np.zeros((), DETAILS)
    spectra = []
    for side, pixels in enumerate((np.ascontiguousarray(a), np.ascontiguousarray(b))):
        image = Image.fromarray(as_rgb(pixels))
        small = _scaled(image, _SIDE)
        planes = [small[..., channel].astype(np.float32) for channel in range(3)]
        gray = np.asarray((planes[0] + planes[1] + planes[2]) / 3, np.float32)
        slopes = np.diff(_means(gray, 8, 9), axis=1) > _MIN_SLOPE
        # In cells, so without a camera's noise.
        low, high = np.percentile(_means(gray, _SIDE // 3, _SIDE // 3), (0.5, 99.5))
        features["content"][side] = int.from_bytes(hashlib.sha256(pixels.data).digest()[:8], "little")
        features["hash"][side] = np.packbits(slopes).view(np.uint64)[0]
        features["small"][side] = _means(gray, CELLS, CELLS).ravel()
        features["style"][side] = _style(planes, gray)
        features["range"][side] = high - low
        features["size"][side] = pixels.shape[:2]
        features["mode"][side] = modes[side].encode()
        if detailed:
            for channel, plane in enumerate(planes):
                details["cells"][side, :, :, channel] = _means(plane, CELLS, CELLS)
            details["cells"][side, :, :, 3] = np.minimum(255, 16 * np.sqrt(_means(_edges(gray), CELLS, CELLS)))
            spectra.append(_edge_spectrum(_scaled(image.convert("L"), FINE)))
    if not detailed:
        return features, None
    details["peaks"] = _peaks(spectra[0], spectra[1])
    return features, details


def _edge_spectrum(gray: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    edges = np.sqrt(np.minimum(_edges(gray.astype(np.float32)), _MAX_EDGE))
    edges -= np.vdot(edges, _WINDOW) / _WINDOW.sum()
    return np.fft.rfft2(edges * _WINDOW)


_HANN = np.hanning(FINE).astype(np.float32)
_WINDOW = _HANN[:, None] * _HANN[None]
_FREQUENCIES = np.fft.fftfreq(FINE)[:, None] ** 2 + np.fft.rfftfreq(FINE)[None] ** 2
_FADE = np.exp(-_FREQUENCIES / (2 * _BLUR**2)).astype(np.float32)


def _peaks(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> Plane:
    """Phase correlation (Kuglin and Hines 1975) of two spectra -> its `PEAKS` highest places, highest first.

    Each row is x, y and height in standard deviations; x > 0: B lies to the right of A. No structure: all zero.
    """
    cross = b * np.conj(a)
    power = np.abs(cross)
    if not power.max() > 0:
        return np.zeros((PEAKS, 3), np.float32)
    surface = np.fft.irfft2(cross / (power + 1e-3 * power.mean()) * _FADE, s=(FINE, FINE))
    surface = np.roll(surface, (REACH, REACH), (0, 1))[: 2 * REACH + 1, : 2 * REACH + 1]
    rest, found = surface.copy(), []
    for _ in range(PEAKS):
        y, x = divmod(int(rest.argmax()), rest.shape[1])
        found.append((x - REACH, y - REACH, rest[y, x]))
        top, left = max(0, y - _PEAK_RADIUS), max(0, x - _PEAK_RADIUS)
        rest[top : y + _PEAK_RADIUS + 1, left : x + _PEAK_RADIUS + 1] = -np.inf
    noise = rest[np.isfinite(rest)]
    peaks = np.array(found, np.float32)
    peaks[:, 2] = (peaks[:, 2] - noise.mean()) / max(float(noise.std()), 1e-12)
    return peaks
