"""The sample sheets of a run, as many and as large as fit into a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from markupsafe import Markup

from p2p.errors import BadInputError, NotFoundError
from p2p.model.checkpoint_names import parse_checkpoint_name
from p2p.reports.page import data_uri, number
from p2p.reports.thumbnails import shrink
from p2p.storage.filesystems import join, list_names, read_bytes
from p2p.storage.images import decode
from p2p.storage.pixels import Array

_MAX_SHEETS = 20
_MIN_SMOOTH_WIDTH = 480
_SIZES_AND_QUALITIES = ((1600, 88), (1600, 70), (1100, 70), (800, 70), (560, 60))
"""Largest side of a sheet and JPEG quality; the first that keeps the page small enough is taken."""
_MAX_CHARACTERS = 7_000_000
"""Of all sample sheets together; a page of this size still opens at once."""
_Ordered = TypeVar("_Ordered", int, tuple[int, float])


@dataclass(frozen=True)
class LoadedSheet:
    """A sample sheet, ready for a page."""

    label: str
    image: Markup
    width: int
    height: int
    small: bool
    """To be enlarged with its pixels visible."""


def choose_moments(moments: Sequence[_Ordered], best: _Ordered | None, max_count: int = _MAX_SHEETS) -> list[_Ordered]:
    """At most `max_count` (>= 3) of the ascending `moments`, evenly spread; first, last and `best` are among them."""
    if len(moments) <= max_count:
        return list(moments)
    places = [round(index * (len(moments) - 1) / (max_count - 1)) for index in range(max_count)]
    if best is not None and best in moments and (place := moments.index(best)) not in places:
        places[min(range(1, max_count - 1), key=lambda index: abs(places[index] - place))] = place
    return [moments[place] for place in sorted(places)]


def _load_sheet(uri: str) -> Array | None:
    try:
        return decode(read_bytes(uri))
    except (NotFoundError, BadInputError):
        return None


def _moment_of_checkpoint(entry: Mapping[str, Any] | None) -> tuple[int, float] | None:
    return None if entry is None else parse_checkpoint_name(str(entry["checkpoint"]).rpartition("/")[2])


def _label(moment: tuple[int, float], best: tuple[int, float] | None) -> str:
    epoch, step = moment
    words = f"epoch {epoch}" + ("" if step == math.inf else f", step {number(int(step))}")
    return words + (" · best" if moment == best else "")


def load_sheets(run_uri: str, best_checkpoint: Mapping[str, Any] | None) -> tuple[list[LoadedSheet], int]:
    """The sheets of RUN/samples to show, and how many there are."""
    folder = join(run_uri, "samples")
    stems = [name.removesuffix(".png") for name in list_names(folder) if name.endswith(".png")]
    names = {moment: f"{stem}.png" for stem in stems if (moment := parse_checkpoint_name(stem)) is not None}
    best = _moment_of_checkpoint(best_checkpoint)
    loaded = [
        (moment, sheet)
        for moment in choose_moments(sorted(names), best)
        if (sheet := _load_sheet(join(folder, names[moment]))) is not None
    ]
    images: list[Markup] = []
    for side, quality in _SIZES_AND_QUALITIES:
        images = [data_uri(shrink(sheet, side), quality) for _, sheet in loaded]
        if sum(map(len, images)) <= _MAX_CHARACTERS:
            break
    sheets = [
        LoadedSheet(
            _label(moment, best), image, sheet.shape[1], sheet.shape[0], small=sheet.shape[1] < _MIN_SMOOTH_WIDTH
        )
        for (moment, sheet), image in zip(loaded, images, strict=True)
    ]
    return sheets, len(names)
