"""Which bands of a raster a model was trained on, and how their values became the numbers that it sees. NumPy only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from p2p.errors import ConfigError

Array = npt.NDArray[Any]
_TOP = 65535


@dataclass(frozen=True)
class RasterBands:
    """One side of pairs that were cut out of rasters. Written into the data set's description and every checkpoint.

    Where `low` and `high` hold a number for each band, values became shares of 65535: `low` is 0, `high` is 65535, and
    what lies outside is cut off. Elsewhere they are empty, and values are as they were.

    Example:
        >>> bands = RasterBands(bands=(1,), dtype="int16", low=(-100.0,), high=(900.0,))
        >>> shares = bands.to_shares(np.array([[[-500], [-100], [400], [900]]], np.int16))
        >>> shares[0, :, 0].tolist()
        [0, 0, 32768, 65535]
        >>> bands.from_shares(shares)[0, :, 0].tolist()
        [-100, -100, 400, 900]

    """

    bands: tuple[int, ...]
    """Their numbers, from 1."""
    dtype: str
    """NumPy's name for their type."""
    names: tuple[str, ...] = ()
    """Their descriptions, where the rasters have some."""
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def is_scaled(self) -> bool:
        """Whether values became shares of 65535."""
        return bool(self.low)

    def to_shares(self, values: Array) -> npt.NDArray[np.uint16]:
        """(..., C) values, NaN among them perhaps -> shares of 65535; of NaN some number."""
        low, high = np.array(self.low), np.array(self.high)
        shares: npt.NDArray[np.float64] = (np.nan_to_num(values.astype(np.float64)) - low) * (_TOP / (high - low))
        return np.rint(shares).clip(0, _TOP).astype(np.uint16)

    def from_shares(self, shares: Array) -> Array:
        """(..., C) shares of 65535 -> values of the bands' type."""
        low, high = np.array(self.low), np.array(self.high)
        values: npt.NDArray[np.float64] = low + shares * ((high - low) / _TOP)
        dtype = np.dtype(self.dtype)
        if dtype.kind == "f":
            return values.astype(dtype)
        limits = np.iinfo(dtype)
        return np.rint(values).clip(limits.min, limits.max).astype(dtype)


def parse_bands(text: str, field: str) -> tuple[int | str, ...]:
    """`4,3,2` -> numbers, `B04,B03` -> names of bands. Raises ConfigError about `field`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts) or len(set(parts)) < len(parts):
        raise ConfigError(field, f"{text}: give numbers from 1 or names of bands, each once: 4,3,2 or B04,B03,B02")
    numbers = [int(part) for part in parts if part.isdecimal()]
    if any(number < 1 for number in numbers):
        raise ConfigError(field, f"{text}: bands are counted from 1")
    return tuple(int(part) if part.isdecimal() else part for part in parts)


def find_bands(wanted: tuple[int | str, ...], names: tuple[str, ...]) -> list[int]:
    """The numbers of `wanted` in a raster whose bands are described by `names`. Raises KeyError for another."""
    found = []
    for band in wanted:
        if isinstance(band, int):
            if band > len(names):
                raise KeyError(band)
            found.append(band)
        elif band in names:
            found.append(names.index(band) + 1)
        else:
            raise KeyError(band)
    return found


def parse_scale(text: str, field: str) -> tuple[Any, ...] | None:
    """`percentile:2,98`, `range:0,4000`, `none`, or nothing -> its parts. Raises ConfigError about `field`."""
    kind, _, numbers = text.partition(":")
    if text in ("", "none"):
        return ("none",) if text else None
    try:
        low, high = (float(number) for number in numbers.split(","))
        is_possible = math.isfinite(low) and math.isfinite(high) if kind == "range" else low >= 0 and high <= 100
        if kind in ("percentile", "range") and low < high and is_possible:
            return kind, low, high
    except ValueError:
        pass
    raise ConfigError(field, f"{text}: use percentile:2,98 or range:LO,HI (with LO below HI) or none")
