"""A scene as the network sees it: the bands that it wants, at its depth, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from p2p.errors import BadInputError
from p2p.scenes.bands import RasterBands, find_bands
from p2p.storage.pixels import to_gray
from p2p.storage.rasters import Raster, Window

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

_WIDEN = 257  # 255 * 257 = 65535


class SceneReader:
    """Reads rows of a raster as inputs of a network.

    Args:
        raster: an open one.
        channels: of the network's inputs.
        dtype: likewise, uint8 or uint16.
        trained_on: the bands of the model's inputs, where they came from rasters.
        bands: those to use instead; empty for none.
        keep_holes: whether blocks that cannot be decoded become invalid pixels; else they are errors.

    Raises BadInputError: WrongBands, NeedsScaling.

    """

    def __init__(
        self,
        raster: Raster,
        channels: int,
        dtype: np.dtype[Any],
        trained_on: RasterBands | None = None,
        bands: tuple[int | str, ...] = (),
        *,
        keep_holes: bool = False,
    ) -> None:
        self._raster, self._channels, self._dtype, self._keep_holes = raster, channels, dtype, keep_holes
        self._scaled = trained_on if trained_on is not None and trained_on.is_scaled else None
        self._bands = _choose_bands(raster, channels, trained_on, bands)
        self._colours = raster.colours if raster.facts.is_palette else None
        self._check_type()
        self.holes: list[Window] = []
        """Blocks that could not be decoded so far."""

    @property
    def has_validity(self) -> bool:
        """Whether some pixel may be invalid."""
        facts = self._raster.facts
        return self._keep_holes or facts.validity != "none" or np.dtype(facts.dtype).kind == "f"

    def read(
        self, top: int, bottom: int, left: int = 0, right: int | None = None
    ) -> tuple[Array, Mask | None, Array | None]:
        """(h, w, C) at the network's depth, where they are valid (None: everywhere), and alpha as in the raster.

        Rows from `top` to before `bottom`, and columns likewise. Raises StorageError, and BadInputError (DamagedBlock).
        """
        window = (left, top, (self._raster.facts.width if right is None else right) - left, bottom - top)
        try:
            pixels, valid, alpha = self._raster.read(self._bands, window)
        except BadInputError:
            pixels, valid, alpha = self._read_blocks(window)
        return self._convert(pixels), valid, alpha

    def _read_blocks(self, window: Window) -> tuple[Array, Mask, Array | None]:
        """Block by block, for one at least cannot be decoded."""
        facts = self._raster.facts
        shape = (window[3], window[2])
        pixels = np.zeros((*shape, len(self._bands)), facts.dtype)
        valid = np.ones(shape, bool)
        alpha = np.zeros(shape, facts.dtype) if facts.alpha_band else None
        for left, top, width, height in self._raster.blocks(window):
            x = left - window[0]
            area = slice(top - window[1], top - window[1] + height), slice(x, x + width)
            try:
                part, good, alpha_part = self._raster.read(self._bands, (left, top, width, height))
            except BadInputError:
                whole = self._raster.whole_block((left, top, width, height))
                if not self._keep_holes:
                    self._raster.read(self._bands, whole)  # raises what names the whole block
                    raise
                valid[area] = False
                if whole not in self.holes:
                    self.holes.append(whole)
                continue
            pixels[area] = part
            if good is not None:
                valid[area] = good
            if alpha is not None:
                alpha[area] = alpha_part
        return pixels, valid, alpha

    def _check_type(self) -> None:
        facts = self._raster.facts
        if self._scaled is not None or self._colours is not None:
            return
        readable = ("uint8", "uint16") if self._dtype == np.uint16 else ("uint8",)
        if facts.dtype not in readable:
            raise BadInputError(
                "NeedsScaling",
                f"its pixels are {facts.dtype}, and the checkpoint carries no scaling for them: prepare pairs of such "
                f"rasters (layout rasters, with scale_a or scale_b), and train on those",
            )

    def _convert(self, pixels: Array) -> Array:
        """Bands as stored -> (n, W, C) at the network's depth."""
        facts, channels = self._raster.facts, self._channels
        if self._colours is not None:
            pixels = self._colours[pixels[..., 0]]
            if channels == 1:
                pixels = to_gray(pixels)
        elif self._scaled is not None:
            pixels = self._scaled.to_shares(pixels)
        elif facts.bits < 8:
            pixels = (pixels.astype(np.uint16) * 255 // (2**facts.bits - 1)).astype(np.uint8)
        if pixels.shape[2] == 1 and channels > 1:
            pixels = np.repeat(pixels, channels, axis=2)
        if pixels.dtype == np.uint8 and self._dtype == np.uint16:
            return np.multiply(pixels, _WIDEN, dtype=np.uint16)
        return pixels


def _choose_bands(
    raster: Raster, channels: int, trained_on: RasterBands | None, wanted: tuple[int | str, ...]
) -> list[int]:
    """The numbers of the bands to read: as many as `channels`, or one to repeat, or an index of a palette."""
    facts = raster.facts
    if facts.is_palette and not wanted:
        if channels not in (1, 3):
            raise BadInputError("WrongBands", f"it has a palette of colours, the model takes {channels} bands")
        return [1]
    if not wanted and trained_on is not None:
        are_named = trained_on.names and all(name in facts.names for name in trained_on.names)
        wanted = trained_on.names if are_named else trained_on.bands
    colours = [band for band in range(1, facts.bands + 1) if band != facts.alpha_band]
    if not wanted:
        if len(colours) == 1 and channels == 3:
            return colours
        if len(colours) < channels:
            raise BadInputError("WrongBands", f"it has {len(colours)} bands, the model takes {channels}")
        return colours[:channels]
    try:
        found = find_bands(wanted, facts.names)
    except KeyError as error:
        named = ", ".join(name for name in facts.names if name)
        raise BadInputError(
            "WrongBands", f"it has no band {error.args[0]}; it has {facts.bands}" + (f": {named}" if named else "")
        ) from None
    if len(found) != channels and (len(found), channels) != (1, 3):
        raise BadInputError("WrongBands", f"{len(found)} bands are chosen, the model takes {channels}")
    return found
