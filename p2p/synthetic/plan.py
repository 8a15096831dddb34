"""Laying out a city: the grid of streets, the use of each block, traffic, rivers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np

from p2p.synthetic.layout import (
    SIDEWALK,
    Bend,
    Building,
    Car,
    City,
    CityBlock,
    Floats,
    Piece,
    River,
    Street,
    Tree,
)
from p2p.synthetic.lots import FILL, SHARES

_MARGIN = 24.0  # metres beyond the picture in which things are still laid out: their shadows and crowns reach in
_RIVERS_PER_METRE = 0.0009
_MAJOR_SHARE = 0.27
_MINOR_WIDTHS = (8.0, 10.0)
_MAJOR_WIDTHS = (15.0, 19.0)
_MERGED_SHARE = 0.18
_LEAFY_SHARE = 0.5
_USES = tuple(SHARES)
_USE_STEPS = np.cumsum(list(SHARES.values()))

Thing = TypeVar("Thing", Building, Tree, Car)


def build_city(rng: np.random.Generator, height: float, width: float) -> City:
    """Lay out the city seen in a picture of height x width metres."""
    bend = Bend(
        centre=(width / 2, height / 2),
        theta=rng.uniform(0, math.pi),
        amplitudes=(rng.uniform(3, 16), rng.uniform(3, 16)),
        waves=(rng.uniform(0.006, 0.013), rng.uniform(0.006, 0.013)),
        phases=(rng.uniform(0, 2 * math.pi), rng.uniform(0, 2 * math.pi)),
    )
    reach = math.hypot(height, width) / 2 + _MARGIN
    rows, columns = _streets(rng, reach, (58, 92)), _streets(rng, reach, (70, 135))
    city = City(bend, rivers=_rivers(rng, reach, height, width))
    crossings = bend(np.stack(np.meshgrid([c.at for c in columns], [r.at for r in rows]), axis=-1))
    _lay_out(city, rows, columns, crossings, rng)
    for piece in city.pieces:
        _fill_street(city, piece, rng)
    _clear_rivers(city)
    return city


def _streets(rng: np.random.Generator, reach: float, spacing: tuple[float, float]) -> list[Street]:
    streets: list[Street] = []
    at = -reach - rng.uniform(0, spacing[1])
    while at < reach + spacing[1]:
        major = rng.random() < _MAJOR_SHARE and not (streets and streets[-1].major)
        streets.append(Street(at, rng.uniform(*(_MAJOR_WIDTHS if major else _MINOR_WIDTHS)), major))
        at += rng.uniform(*spacing)
    return streets


def _rivers(rng: np.random.Generator, reach: float, height: float, width: float) -> list[River]:
    # As River's fields: x, y, angle, swing, wave, phase, width.
    low, high = (0, 0, 0, 5, 0.008, 0, 24), (width, height, math.pi, 30, 0.02, 2 * math.pi, 52)
    return [River(*rng.uniform(low, high).tolist()) for _ in range(rng.poisson(_RIVERS_PER_METRE * reach * 2))]


def _in_view(points: Floats, extent: tuple[float, float]) -> bool:
    """Whether the box around the points (..., 2) reaches into the picture of (height, width), or its margin."""
    low, high = points.reshape(-1, 2).min(0) - _MARGIN, points.reshape(-1, 2).max(0) + _MARGIN
    return bool((low < extent[::-1]).all() and (high > 0).all())


def _lay_out(
    city: City, rows: list[Street], columns: list[Street], crossings: Floats, rng: np.random.Generator
) -> None:
    """Choose the use of every block and fill it, then open the streets; some neighbours share one large block."""
    height, width = 2 * city.bend.centre[1], 2 * city.bend.centre[0]
    closed: set[tuple[int, int]] = set()  # the pieces of columns, by (row, column), that a large block was built over
    for row, (below, above) in enumerate(pairwise(rows)):
        v0, v1 = below.at + below.width / 2 + SIDEWALK, above.at - above.width / 2 - SIDEWALK
        left = 0
        while left < len(columns) - 1:
            right = left + 1
            use = _USES[int(np.searchsorted(_USE_STEPS, rng.random() * _USE_STEPS[-1]))]
            if rng.random() < _MERGED_SHARE and right + 1 < len(columns) and not columns[right].major:
                closed.add((row, right))
                right += 1
            if _in_view(crossings[row : row + 2, left : right + 1], (height, width)):
                u0 = columns[left].at + columns[left].width / 2 + SIDEWALK
                u1 = columns[right].at - columns[right].width / 2 - SIDEWALK
                FILL[use](city, CityBlock(u0, u1, v0, v1), rng)
            left = right
    for row, street in enumerate(rows):
        for left, (start, stop) in enumerate(pairwise(columns)):
            if _in_view(crossings[row, left : left + 2], (height, width)):
                city.pieces.append(_piece(street, start, stop, along_v=False))
    for column, street in enumerate(columns):
        for row, (start, stop) in enumerate(pairwise(rows)):
            if (row, column) not in closed and _in_view(crossings[row : row + 2, column], (height, width)):
                city.pieces.append(_piece(street, start, stop, along_v=True))


def _piece(street: Street, start: Street, stop: Street, along_v: bool) -> Piece:
    room = (start.width / 2, stop.width / 2)
    return Piece(street.at, start.at, stop.at, *room, street.width, along_v, street.major)


def _fill_street(city: City, piece: Piece, rng: np.random.Generator) -> None:
    """Cars on the lanes and, along leafy streets, trees on the pavements."""

    def place(along: float, across: float) -> tuple[float, float]:
        return (piece.at + across, along) if piece.along_v else (along, piece.at + across)

    start, stop = piece.start + piece.room_start, piece.stop - piece.room_stop
    lane = piece.width / 8 if piece.major else piece.width / 4
    at = start + 8 * rng.random()
    while at < stop - 4:
        side, tone, gap = rng.random(3).tolist()
        outer = 3 if piece.major and gap < 0.5 else 1
        city.cars.append(Car(*place(at, lane * outer * (1 if side < 0.5 else -1)), piece.along_v, tone))
        at += 7 + 30 * gap
    density = rng.random()
    if density > _LEAFY_SHARE:
        return
    across = piece.width / 2 + SIDEWALK * 0.75
    count = max(0, int((stop - start - 6) / 9))
    for k, (left, right, size) in enumerate(rng.random((count, 3)).tolist()):
        for side, chance in ((-across, left), (across, right)):
            if chance < 0.4 + density:
                city.trees.append(Tree(*place(start + 4 + 9 * k, side), 1.5 + 1.1 * size))


def _clear_rivers(city: City) -> None:
    """Take away what would stand in the water."""
    for river in city.rivers:
        city.buildings = _dry(city.buildings, city.bend, river, 13)
        city.trees = _dry(city.trees, city.bend, river, 2)
        city.cars = _dry(city.cars, city.bend, river, 3)


def _dry(things: Sequence[Thing], bend: Bend, river: River, room: float) -> list[Thing]:
    if not things:
        return []
    points = bend(np.array([thing[:2] for thing in things]))
    keep: Iterable[bool] = (river.distance(points) > river.width / 2 + room).tolist()
    return [thing for thing, dry in zip(things, keep, strict=True) if dry]
