"""Contact sheets: a labelled grid of images as one image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from p2p.storage.pixels import Array, Pixels

_GAP = 8
_PAPER, _INK = (255, 255, 255), (40, 44, 52)
_FONT_SHARE, _MIN_FONT, _MAX_FONT = 0.075, 11, 22


def as_rgb(image: Pixels) -> Array:
    """(H, W) or (H, W, C) uint8 or uint16 -> (H, W, 3) uint8, to look at.

    Gray is repeated (and the second of two channels left out), of more than three channels the first are
    shown, of 16 bits the upper eight: black is 0 and white 65535.
    """
    planes = image if image.ndim == 3 else image[:, :, None]
    planes = planes[:, :, :3] if planes.shape[2] >= 3 else np.repeat(planes[:, :, :1], 3, axis=2)
    return np.ascontiguousarray(planes >> 8 if planes.dtype == np.uint16 else planes).astype(np.uint8, copy=False)


def contact_sheet(columns: Sequence[str], rows: Sequence[Sequence[Pixels]]) -> Array:
    """Lay out `rows` of images (as `as_rgb` takes them) under `columns` labels -> (H, W, 3) uint8 RGB.

    Every cell is as large as the largest image; smaller ones are centred, none is scaled. ValueError for an empty
    sheet or a row of another length than `columns`.
    """
    if not columns or not rows or any(len(row) != len(columns) for row in rows):
        raise ValueError(
            f"each row needs {len(columns)} images ({', '.join(columns)}), got {[len(row) for row in rows]}"
        )
    cells = [[as_rgb(image) for image in row] for row in rows]
    height = max(image.shape[0] for row in cells for image in row)
    width = max(image.shape[1] for row in cells for image in row)
    font = ImageFont.load_default(min(_MAX_FONT, max(_MIN_FONT, round(width * _FONT_SHARE))))
    width = max(width, *(int(np.ceil(font.getlength(label))) for label in columns))
    label_height = sum(font.getmetrics()) if isinstance(font, ImageFont.FreeTypeFont) else _MIN_FONT
    top = _GAP + label_height + _GAP // 2
    size = (_GAP + len(columns) * (width + _GAP), top + len(rows) * (height + _GAP))
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(columns):
        draw.text((_GAP + column * (width + _GAP) + width / 2, _GAP), label, fill=_INK, font=font, anchor="ma")
        for row, images in enumerate(cells):
            image = images[column]
            left = _GAP + column * (width + _GAP) + (width - image.shape[1]) // 2
            sheet.paste(Image.fromarray(image), (left, top + row * (height + _GAP) + (height - image.shape[0]) // 2))
    return np.asarray(sheet)
