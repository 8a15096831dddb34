"""Two pictures painted with the same strokes: colours with the strength of their texture, and class numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from p2p.synthetic.layout import Floats

METRES_PER_PIXEL = 0.7
FINE = 2
"""The photograph is painted at this multiple of its size and averaged down."""
BAND = 512
"""Rows worked on at once where a whole picture would take too much memory."""
_SCALE = FINE / METRES_PER_PIXEL  # canvas pixels per metre


def inks(colours: npt.ArrayLike, texture: npt.ArrayLike) -> list[int]:
    """(N, 3) red, green, blue, about 0..255, and texture strength 0..255 -> N inks for a `Canvas`."""
    rgb = np.asarray(colours, np.float64).reshape(-1, 3)
    packed = np.empty((len(rgb), 4), np.uint8)
    packed[:, :3] = np.clip(rgb, 0, 255)
    packed[:, 3] = texture
    return packed.view("<u4")[:, 0].tolist()  # type: ignore[no-any-return]


class Canvas:
    """Takes shapes in metres, top left is (0, 0), x to the right and y down; skips what lies outside."""

    def __init__(self, height: int, width: int, ground: int) -> None:
        """Pixels of the finished picture; `ground` is the ink it starts with. Class numbers start at 0."""
        self.size = (width * FINE, height * FINE)
        # Any mode of four bands serves to hold three colours and texture; RGBA would be weighted by its alpha.
        self.colours = Image.new("CMYK", self.size, ground)
        self.classes = Image.new("L", self.size, 0)
        self._paint = ImageDraw.Draw(self.colours)
        self._classify = ImageDraw.Draw(self.classes)

    def _visible(self, shapes: Floats) -> Iterator[tuple[int, list[float]]]:
        """(N, K, 2) metres -> number and flat canvas coordinates of those that touch the picture."""
        if len(shapes):
            points = shapes * _SCALE
            low, high = points.min(axis=1), points.max(axis=1)
            seen = np.flatnonzero(((high >= 0) & (low < np.array(self.size))).all(axis=1))
            yield from zip(seen.tolist(), points[seen].reshape(len(seen), 2 * shapes.shape[1]).tolist(), strict=True)

    def polygons(self, shapes: Floats, ink: list[int], map_class: list[int] | int | None = None) -> None:
        """Fill N polygons (N, K, 2) in order, with N inks or one; on the map too if they have a class."""
        for number, outline in self._visible(shapes):
            self._paint.polygon(outline, ink[number] if len(ink) > 1 else ink[0])
            if map_class is not None:
                self._classify.polygon(outline, map_class if isinstance(map_class, int) else map_class[number])

    def lines(self, shapes: Floats, ink: list[int]) -> None:
        """Draw N thin lines (N, K, 2), with N inks or one."""
        for number, line in self._visible(shapes):
            self._paint.line(line, ink[number] if len(ink) > 1 else ink[0], 1)

    def discs(self, groups: Floats, ink: list[int]) -> None:
        """Fill N groups of K discs (N, K, 3), as x, y, radius, group by group, with N * K inks."""
        count = groups.shape[1]
        for number, boxes in self._visible(_boxes(groups)):
            for place in range(count):
                self._paint.ellipse(boxes[4 * place : 4 * place + 4], ink[number * count + place])

    def cast_shadows(self, outlines: Floats, discs: Floats, shade: npt.ArrayLike) -> None:
        """Multiply the colours by `shade`, three shares 0..1, below polygons (N, K, 2) and discs (M, 1, 3)."""
        mask = Image.new("L", self.size, 0)
        draw = ImageDraw.Draw(mask)
        for _, outline in self._visible(outlines):
            draw.polygon(outline, 255)
        for _, box in self._visible(_boxes(discs)):
            draw.ellipse(box, 255)
        levels = np.arange(256)
        table = [*np.outer(np.asarray(shade), levels).astype(int).ravel().tolist(), *levels.tolist()]
        for top in range(0, self.size[1], BAND):
            band = (0, top, self.size[0], min(self.size[1], top + BAND))
            self.colours.paste(self.colours.crop(band).point(table), band, mask.crop(band))
        self._paint = ImageDraw.Draw(self.colours)


def _boxes(discs: Floats) -> Floats:
    """(N, K, 3) as x, y, radius -> (N, 2K, 2): the corners of each disc's box."""
    centres, radii = discs[..., :2], discs[..., 2:]
    return np.stack([centres - radii, centres + radii], axis=2).reshape(len(discs), 2 * discs.shape[1], 2)
