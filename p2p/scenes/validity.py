"""Pixels that hold nothing: filled for the network, kept apart from valid ones in what comes out. NumPy only."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


def fill_invalid(pixels: Array, valid: Mask) -> Array:
    """(H, W, C) with (H, W) `valid`, of which one pixel at least is -> the same with each other pixel replaced.

    It gets the value of the nearest valid pixel of its row; in a row without any, of the nearest row that has some.

    Example:
        >>> pixels = np.array([[[7], [0], [0], [9]], [[0], [0], [0], [0]]], np.uint8)
        >>> fill_invalid(pixels, pixels[..., 0] > 0)[..., 0].tolist()
        [[7, 7, 9, 9], [7, 7, 9, 9]]

    """
    if valid.all():
        return pixels
    columns = _nearest(valid)
    rows = _nearest(np.asarray(valid.any(1))[None])[0]
    filled: Array = pixels[rows[:, None], columns[rows]]
    return filled


def _nearest(valid: Mask) -> npt.NDArray[np.intp]:
    """(H, W) -> the column of the nearest valid pixel in each row, the left one of two; anything in rows without."""
    width = valid.shape[1]
    places = np.arange(width)
    before = np.maximum.accumulate(np.where(valid, places, -width), axis=1)
    after = np.minimum.accumulate(np.where(valid, places, 2 * width)[:, ::-1], axis=1)[:, ::-1]
    return np.clip(np.where(places - before <= after - places, before, after), 0, width - 1)


def step_off(pixels: Array, nodata: float) -> None:
    """Move pixels, (..., C) and all of them valid, that equal `nodata` in all channels one level off, in place."""
    equal = (pixels == nodata).all(-1)
    if not equal.any():
        return
    if pixels.dtype.kind == "f":
        pixels[equal] = np.nextafter(pixels.dtype.type(nodata), pixels.dtype.type(np.inf))
    else:
        pixels[equal] = int(nodata) + (1 if nodata < np.iinfo(pixels.dtype).max else -1)


def halve(pixels: Array, valid: Mask | None) -> tuple[Array, Mask | None]:
    """(H, W, C) -> its overview of half the size, rounded up: means over the valid ones of each 2x2 pixels.

    An overview pixel is valid where one of its four is. Depends on those four alone, so a band of an even number of
    rows has the overview that it has as part of a whole.

    Example:
        >>> halve(np.array([[[10], [13], [50]]], np.uint8), None)[0].tolist()
        [[[12], [50]]]

    """
    height, width, channels = pixels.shape
    shape = (-(-height // 2), -(-width // 2))
    wide: Any = np.float64 if pixels.dtype.kind == "f" or pixels.dtype.itemsize > 2 else np.int32
    if valid is None and not height % 2 and not width % 2:
        total = pixels[0::2, 0::2].astype(wide)
        for part in (pixels[0::2, 1::2], pixels[1::2, 0::2], pixels[1::2, 1::2]):
            total += part
        return _rounded(total, np.full((1, 1, 1), 4, np.int32), pixels.dtype), None
    total = np.zeros((*shape, channels), wide)
    count = np.zeros((*shape, 1), np.int32)
    for y in (0, 1):
        for x in (0, 1):
            part = pixels[y::2, x::2]
            area = slice(part.shape[0]), slice(part.shape[1])
            if valid is None:
                total[area] += part
                count[area] += 1
            else:
                good = valid[y::2, x::2, None]
                total[area] += np.where(good, part, 0)
                count[area] += good
    return _rounded(total, count, pixels.dtype), None if valid is None else count[..., 0] > 0


def _rounded(total: Array, count: npt.NDArray[np.int32], dtype: np.dtype[Any]) -> Array:
    count = np.maximum(count, 1)
    if total.dtype.kind == "f":
        mean = total / count
        return (mean if dtype.kind == "f" else np.rint(mean)).astype(dtype)
    return ((2 * total + count) // (2 * count)).astype(dtype)
