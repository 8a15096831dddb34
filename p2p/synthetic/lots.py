"""What is built on a block: houses with gardens, flats around a court, a shop with its car park, or a park."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from p2p.synthetic.layout import Building, Car, City, CityBlock, Patch, Roof, Tree, Use

_MIN_LOT_WIDTH = 13.0
_MIN_FLATS_WIDTH = 9.0
_BAY = 2.7  # width of a parking bay


def _widths(start: float, stop: float, narrowest: float, spread: float, rng: np.random.Generator) -> list[float]:
    """Cut a street front into lots: the places of the cuts, both ends included."""
    cuts = [start]
    while cuts[-1] + narrowest < stop:
        cut = cuts[-1] + narrowest + 2 + spread * rng.random()
        cuts.append(stop if stop - cut < narrowest else cut)
    return cuts


def _houses(city: City, block: CityBlock, rng: np.random.Generator) -> None:
    """Two rows of lots, back to back."""
    depth = block.half[1]
    for inwards, front in ((1, block.v0), (-1, block.v1)):
        cuts = _widths(block.u0, block.u1, _MIN_LOT_WIDTH, 8, rng)
        for u0, u1 in pairwise(cuts):
            _house(city, _Lot(u0, u1, front, inwards, depth), rng)


class _Lot(NamedTuple):
    """Land from u0 to u1, reaching `depth` metres inwards (1 or -1 along v) from its front."""

    u0: float
    u1: float
    front: float
    inwards: int
    depth: float


def _house(city: City, lot: _Lot, rng: np.random.Generator) -> None:
    """Garden, drive, house, perhaps a wing, a pool, a car, trees."""
    u0, u1, front, inwards, depth = lot
    r = rng.random(16).tolist()
    middle, width = (u0 + u1) / 2, u1 - u0
    city.patches.append(Patch(middle, front + inwards * depth / 2, width / 2, depth / 2, f"yard{int(r[1] * 5)}"))
    half_u = min(width / 2 - 2, 4.5 + 3.5 * r[2])
    half_v = min(depth / 2 - 3.5, 4.5 + 3 * r[3])
    setback = 3.5 + 3 * r[4] + half_v
    if half_v > 2.5 and r[5] < 0.94:
        house, height = middle + (r[7] - 0.5) * 2, 4.5 + 3.5 * r[8]
        drive = u0 + 1.9 if r[9] < 0.5 else u1 - 1.9
        city.patches.append(Patch(drive, front + inwards * setback / 2, 1.5, setback / 2, "concrete"))
        if r[10] < 0.3:
            wing = house + (half_u - 3) * (1 if r[11] < 0.5 else -1)
            back = front + inwards * (setback + half_v)
            city.buildings.append(Building(wing, back, 3, 4.5, height - 1, "gable", r[12]))
        roof: Roof = "gable" if r[6] < 0.6 else "hip"
        city.buildings.append(Building(house, front + inwards * setback, half_u, half_v, height, roof, r[12]))
        if r[9] < 0.55 and r[11] < 0.7:
            city.cars.append(Car(drive, front + inwards * 3.2, True, r[13]))
    garden = setback + half_v + 2
    if r[14] < 0.08 and depth - garden > 7:
        city.patches.append(Patch(middle, front + inwards * (garden + 3.5), 3.6, 1.9, "pool"))
    for k, (size, along, back) in enumerate(rng.random((int(r[15] * 4), 3)).tolist()):
        radius = 1.6 + 2.2 * size
        u = u0 + radius + along * max(0.1, width - 2 * radius)
        v = garden + back * max(0.5, depth - garden - radius) if k else 2.0
        city.trees.append(Tree(u, front + inwards * v, radius))


def _flats(city: City, block: CityBlock, rng: np.random.Generator) -> None:
    """Blocks of flats along both long sides, a court between them."""
    (mid_u, mid_v), (half_u, half_v) = block.middle, block.half
    city.patches.append(Patch(mid_u, mid_v, half_u, half_v, "court" if rng.random() < 0.6 else "yard1"))
    for inwards, front in ((1, block.v0), (-1, block.v1)):
        cuts = _widths(block.u0 + 1.5, block.u1 - 1.5, _MIN_FLATS_WIDTH, 24, rng)
        for u0, u1 in pairwise(cuts):
            r = rng.random(5).tolist()
            depth = min(11 + 5 * r[0], half_v - 3)
            if depth > 5 and r[1] < 0.9:
                v = front + inwards * (1 + 2.5 * r[2] + depth / 2)
                half = (u1 - u0) / 2 - (0.0 if r[4] < 0.5 else 1.2)
                city.buildings.append(Building((u0 + u1) / 2, v, half, depth / 2, 8 + 10 * r[3], "flat", r[4]))
    inner = half_v - 20
    if inner > 3:
        for along, across, size in rng.random((int(half_u / 6), 3)).tolist():
            u, v = mid_u + (2 * along - 1) * (half_u - 4), mid_v + (2 * across - 1) * inner
            city.trees.append(Tree(u, v, 1.8 + 2 * size))


def _shops(city: City, block: CityBlock, rng: np.random.Generator) -> None:
    """One large hall at one end, its car park at the other."""
    (mid_u, mid_v), (half_u, half_v) = block.middle, block.half
    r = rng.random(4).tolist()
    city.patches.append(Patch(mid_u, mid_v, half_u, half_v, "parking"))
    cut = block.u0 + 2 * half_u * (0.42 + 0.2 * r[1])
    city.buildings.append(
        Building((block.u0 + cut) / 2, mid_v, (cut - block.u0) / 2 - 3, half_v - 4, 7 + 4 * r[2], "flat", r[3])
    )
    bays = np.arange(cut + 4, block.u1 - 4, _BAY)
    for v in np.arange(block.v0 + 6.4, block.v1 - 4.6, 11.5).tolist():
        for u, (taken, tone) in zip(bays.tolist(), rng.random((len(bays), 2)).tolist(), strict=True):
            city.patches.append(Patch(u, v, 0.14, 2.4, "paint"))
            if taken < 0.5 and u + _BAY < block.u1 - 4:
                city.cars.append(Car(u + _BAY / 2, v, True, tone))


def _park(city: City, block: CityBlock, rng: np.random.Generator) -> None:
    """Lawn with paths, groups of trees, at times a pond or a playing field."""
    (mid_u, mid_v), (half_u, half_v) = block.middle, block.half
    r = rng.random(6).tolist()
    city.patches.append(Patch(mid_u, mid_v, half_u, half_v, "lawn"))
    if r[0] < 0.75:
        city.patches.append(Patch(mid_u, mid_v + (r[1] - 0.5) * half_v, half_u, 1.2, "path"))
        city.patches.append(Patch(mid_u + (r[2] - 0.5) * half_u, mid_v, 1.2, half_v, "path"))
    open_space: Patch | None = None
    if r[3] < 0.34 and half_u > 22 and half_v > 16:
        size = (min(half_u * 0.5, 24), min(half_v * 0.5, 15))
        open_space = Patch(mid_u + (r[4] - 0.5) * half_u * 0.5, mid_v, *size, "pond")
    elif r[3] < 0.62 and half_u > 26 and half_v > 18:
        open_space = Patch(mid_u + (r[4] - 0.5) * half_u * 0.4, mid_v, 21.0, 13.0, "field")
    if open_space:
        city.patches.append(open_space)
    groups = rng.uniform(-1, 1, (1 + int(half_u * half_v / 320), 2))
    t = rng.random((int(half_u * half_v * (0.012 + 0.014 * r[5])), 4))
    around = np.clip(groups[(t[:, 0] * len(groups)).astype(int)] + (t[:, 1:3] - 0.5) * 0.7, -0.91, 0.91)
    places = np.array([mid_u, mid_v]) + around * np.array([half_u, half_v])
    if open_space:
        away = np.abs(places - open_space[:2]) > np.array(open_space[2:4]) + 4
        places, t = places[away.any(axis=1)], t[away.any(axis=1)]
    city.trees += [
        Tree(u, v, radius) for (u, v), radius in zip(places.tolist(), (2.0 + 2.6 * t[:, 3]).tolist(), strict=True)
    ]


FILL: dict[Use, Callable[[City, CityBlock, np.random.Generator], None]] = {
    "houses": _houses,
    "flats": _flats,
    "shops": _shops,
    "park": _park,
}
"""How each use fills a block."""
SHARES: dict[Use, float] = {"houses": 0.46, "flats": 0.25, "shops": 0.12, "park": 0.17}
"""How often each use is chosen."""
