"""Painting a city on a canvas, from the ground up."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from p2p.synthetic.canvas import Canvas, inks
from p2p.synthetic.layout import SIDEWALK, City, Floats, Patch, Piece

BACKGROUND, ROAD, MAJOR_ROAD, BUILDING, PARK, WATER = range(6)

_COVERS: dict[str, tuple[tuple[int, int, int], int, int]] = {  # colour, texture strength, class
    "yard0": ((150, 146, 114), 34, BACKGROUND),
    "yard1": ((136, 140, 104), 38, BACKGROUND),
    "yard2": ((162, 152, 124), 30, BACKGROUND),
    "yard3": ((128, 134, 98), 40, BACKGROUND),
    "yard4": ((170, 160, 136), 26, BACKGROUND),
    "court": ((160, 160, 142), 22, BACKGROUND),
    "concrete": ((190, 186, 176), 14, BACKGROUND),
    "pool": ((96, 196, 210), 8, BACKGROUND),
    "parking": ((140, 139, 137), 16, BACKGROUND),
    "paint": ((216, 216, 210), 0, BACKGROUND),
    "lawn": ((100, 132, 72), 38, PARK),
    "path": ((194, 180, 152), 20, PARK),
    "field": ((110, 148, 78), 18, PARK),
    "pond": ((50, 84, 102), 8, WATER),
}
_GREEN = ("lawn", "field")
_PITCHED_ROOFS = np.array(
    [(172, 96, 70), (150, 84, 66), (124, 92, 74), (90, 98, 118), (68, 72, 84), (184, 152, 120), (136, 72, 62)]
)
_FLAT_ROOFS = np.array(
    [(206, 204, 200), (226, 224, 218), (194, 170, 140), (176, 150, 136), (96, 104, 124), (174, 116, 98)]
)
_CARS = np.array(
    [(228, 228, 226), (196, 198, 200), (60, 62, 66), (120, 124, 130), (150, 44, 40), (50, 72, 120), (30, 30, 32)]
)
_ASPHALT = np.array([118, 116, 116])
_MAJOR_ASPHALT = np.array([88, 87, 92])
_WATER = np.array([46, 82, 102])
_LEAF = np.array([66, 92, 46])
_BANK = inks([(172, 162, 138)], 34)
_PAINT = inks([(218, 218, 212)], 4)
_YELLOW = inks([(212, 176, 74)], 4)
_GLASS = inks([(44, 50, 58)], 0)
PAVEMENT = inks([(182, 177, 168)], 16)
"""The ground of the canvas: what no block, street or river covers."""

_CORNERS = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float64)
_RING = np.array([(-1, -1), (0, -1), (1, -1), (1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0)], np.float64)
_ROUND = np.array([(math.cos(t), math.sin(t)) for t in np.linspace(0, 2 * math.pi, 20, endpoint=False)])
_LINE_POINTS = 9  # a street bends little between two crossings
_ROOM_BEFORE_CROSSING = 2.0


@dataclass(frozen=True)
class Light:
    """The sun and the season: unit vector to the sun, shadow per metre of height, the colour shadows leave, dryness."""

    to_sun: Floats
    shadow: Floats
    shade: tuple[float, float, float]
    dryness: float  # how far lawns and crowns go from green to straw, about -0.5..1


def paint(canvas: Canvas, city: City, light: Light, rng: np.random.Generator) -> None:
    """Paint everything, in the order in which it lies on top of each other."""
    tone = rng.uniform(0.88, 1.12)
    water = _WATER + rng.uniform(-8, 14, 3)
    _paint_patches(canvas, city, light, rng)
    minor = [piece for piece in city.pieces if not piece.major]
    major = [piece for piece in city.pieces if piece.major]
    _paint_streets(canvas, city, minor, inks([_ASPHALT * tone], 18), ROAD)
    _paint_rivers(canvas, city, water)
    _paint_bridges(canvas, city, major)
    _paint_streets(canvas, city, major, inks([_MAJOR_ASPHALT * tone], 16), MAJOR_ROAD)
    corners, along = _footprints(city)
    trees = np.array(city.trees).reshape(-1, 3)
    trees[:, :2] = city.bend(trees[:, :2])
    heights = np.array([building.height for building in city.buildings]).reshape(-1, 1)
    crowns = trees + np.concatenate([light.shadow * trees[:, 2:] * 1.7, -0.05 * trees[:, 2:]], axis=1)
    canvas.cast_shadows(_swept(corners, heights * light.shadow), crowns[:, None], light.shade)
    _paint_cars(canvas, city)
    _paint_flat_roofs(canvas, city, corners, light, rng)
    _paint_pitched_roofs(canvas, city, (corners, along), light, rng)
    _paint_trees(canvas, trees, light, rng)


def _choose(colours: Floats, tones: Floats) -> Floats:
    """(K, 3) colours and (N,) tones, 0..1 -> (N, 3)."""
    return np.asarray(colours[(tones * 0.999 * len(colours)).astype(int)])


def _paint_patches(canvas: Canvas, city: City, light: Light, rng: np.random.Generator) -> None:
    if not city.patches:
        return
    places = np.array([patch[:4] for patch in city.patches])
    covers = [_COVERS[patch.cover] for patch in city.patches]
    green = np.array([patch.cover in _GREEN for patch in city.patches])[:, None]
    colours = np.array([cover[0] for cover in covers]) * (1 + rng.uniform(-0.07, 0.07, (len(covers), 1)))
    colours += green * np.array([26, 4, 8]) * light.dryness
    shapes = city.bend(places[:, None, :2] + _RING * places[:, None, 2:])
    all_inks = inks(colours, [cover[1] for cover in covers])
    classes = [cover[2] for cover in covers]
    ponds = [number for number, patch in enumerate(city.patches) if patch.cover == "pond"]
    for number in ponds:
        shapes[number] = shapes[number][:1]  # a point: the shore is painted below
    canvas.polygons(shapes, all_inks, classes)
    for number in ponds:
        _paint_pond(canvas, city, city.patches[number], colours[number])
    for number, patch in enumerate(city.patches):
        if patch.cover == "field":
            _paint_field(canvas, city, patch, colours[number])


def _paint_pond(canvas: Canvas, city: City, patch: Patch, colour: Floats) -> None:
    wobble = 1 + 0.12 * np.sin(3 * np.arange(len(_ROUND)) * math.pi / 10 + patch.u)
    shore = np.array(patch[2:4]) * _ROUND * wobble[:, None]
    rings = city.bend(np.array(patch[:2]) + np.stack([shore, shore * 0.8]))
    canvas.polygons(rings[:1], inks([colour * 1.08], 8), WATER)
    canvas.polygons(rings[1:], inks([colour], 8))


def _paint_field(canvas: Canvas, city: City, patch: Patch, colour: Floats) -> None:
    """Mowing stripes and white lines."""
    centre, half = np.array(patch[:2]), np.array(patch[2:4])
    stripes = (_CORNERS[None] * (0.125, 1) + np.array([[(k / 4 - 0.875, 0)] for k in range(0, 8, 2)])) * half
    canvas.polygons(city.bend(centre + stripes), inks([colour * 1.07], 18))
    for ring in (_RING * 0.92, _ROUND * 0.3 * (half[1] / half[0], 1), np.array([(0, -0.92), (0, 0.92)])):
        canvas.lines(city.bend(centre + np.concatenate([ring, ring[:1]]) * half)[None], _PAINT)


def _along(city: City, pieces: list[Piece], starts: Floats, stops: Floats) -> Floats:
    """The middle lines of P pieces, each from start to stop, as (P, `_LINE_POINTS`, 2)."""
    share = np.linspace(0, 1, _LINE_POINTS)
    at = np.array([[piece.at] for piece in pieces])
    uv = np.stack([starts[:, None] + (stops - starts)[:, None] * share, np.repeat(at, _LINE_POINTS, axis=1)], axis=-1)
    turned = np.array([piece.along_v for piece in pieces])
    uv[turned] = uv[turned][..., ::-1]
    return city.bend(uv)


def _ribbons(lines: Floats, low: Floats, high: Floats) -> Floats:
    """Bands (P, 2K, 2) between `low` and `high` (P,) metres beside P lines (P, K, 2)."""
    along = np.gradient(lines, axis=1)
    normals = np.stack([-along[..., 1], along[..., 0]], axis=-1)
    normals /= np.linalg.norm(along, axis=-1, keepdims=True) + 1e-9
    edges = [lines + side[:, None, None] * normals for side in (low, high)]
    return np.concatenate([edges[0], edges[1][:, ::-1]], axis=1)


def _paint_streets(canvas: Canvas, city: City, pieces: list[Piece], ink: list[int], map_class: int) -> None:
    if not pieces:
        return
    start, stop, room_start, room_stop, width = np.array([piece[1:6] for piece in pieces]).T
    lines = _along(city, pieces, start - room_start, stop + room_stop)
    canvas.polygons(_ribbons(lines, -width / 2, width / 2), ink, map_class)
    start, stop = start + room_start + _ROOM_BEFORE_CROSSING, stop - room_stop - _ROOM_BEFORE_CROSSING
    if map_class == MAJOR_ROAD:
        lines = _along(city, pieces, start + 4, stop - 4)
        for low in (-0.55, 0.2):
            canvas.polygons(_ribbons(lines, np.full(len(lines), low), np.full(len(lines), low + 0.35)), _YELLOW)
    stripes = [_stripes(piece, first, last) for piece, first, last in zip(pieces, start, stop, strict=True)]
    canvas.polygons(city.bend(np.concatenate(stripes)), _PAINT)


def _stripes(piece: Piece, start: float, stop: float) -> Floats:
    """Lane dashes and, on major streets, zebra crossings at both ends, as (N, 4, 2) in (u, v)."""
    dashes = np.arange(start + 5, max(start + 5, stop - 7), 7.5)
    lanes = (-piece.width / 4, piece.width / 4) if piece.major else (0.0,)
    boxes = [np.stack([dashes, dashes + 3.2, dashes * 0 + lane - 0.16, dashes * 0 + lane + 0.16], 1) for lane in lanes]
    if piece.major:
        bars = np.arange(-piece.width / 2 + 0.8, piece.width / 2 - 0.9, 1.7)
        boxes += [np.stack([bars * 0 + end, bars * 0 + end + 2.6, bars, bars + 0.8], 1) for end in (start, stop - 2.6)]
    box = np.concatenate(boxes)
    along, across = box[:, [0, 1, 1, 0]], piece.at + box[:, [2, 2, 3, 3]]
    return np.stack([across, along] if piece.along_v else [along, across], axis=-1)


def _paint_rivers(canvas: Canvas, city: City, water: Floats) -> None:
    """Banks of sand and stone, then water that darkens towards the middle; where two rivers meet, they join."""
    reach = 2 * math.hypot(*city.bend.centre) + 100
    lines = [(river.line(reach)[None], np.array([river.width / 2])) for river in city.rivers]
    for line, half in lines:
        canvas.polygons(_ribbons(line, -half - 4, half + 4), _BANK, BACKGROUND)
    for share, factor in ((1.0, 1.12), (0.82, 1.06), (0.5, 1.0)):
        for line, half in lines:
            canvas.polygons(_ribbons(line, -half * share, half * share), inks([water * factor], 8), WATER)


def _paint_bridges(canvas: Canvas, city: City, pieces: list[Piece]) -> None:
    """Pavements of the major streets where a river has covered the ground."""
    if not (pieces and city.rivers):
        return
    width = np.array([piece.width for piece in pieces])
    ends = []
    for end, room in ((1, 3), (2, 4)):
        crossings = _along(city, pieces, *(2 * (np.array([piece[end] for piece in pieces]),)))[:, 0]
        wet = np.any([river.distance(crossings) < river.width / 2 + 12 for river in city.rivers], axis=0)
        inset = np.where(wet, 0, [piece[room] for piece in pieces])  # a dry crossing has its own ground
        ends.append(np.array([piece[end] for piece in pieces]) + (inset if end == 1 else -inset))
    lines = _along(city, pieces, ends[0], ends[1])
    canvas.polygons(_ribbons(lines, -width / 2 - SIDEWALK, width / 2 + SIDEWALK), PAVEMENT, BACKGROUND)


def _footprints(city: City) -> tuple[Floats, Floats]:
    """Buildings -> corners (N, 4, 2), in turning order, and each one's unit vector along u (N, 2)."""
    places = np.array([building[:4] for building in city.buildings]).reshape(-1, 4)
    heading = city.bend.headings(places[:, :2])
    along = np.stack([np.cos(heading), np.sin(heading)], axis=1)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    steps_u = _CORNERS[None, :, :1] * (places[:, 2:3] * along)[:, None]
    steps_v = _CORNERS[None, :, 1:] * (places[:, 3:4] * across)[:, None]
    return city.bend(places[:, :2])[:, None] + steps_u + steps_v, along


def _swept(corners: Floats, shifts: Floats) -> Floats:
    """Convex outlines (N, K, 2) moved along `shifts` (N, 2) -> (N, 2K, 2), the hull of both ends."""
    edges = np.roll(corners, -1, axis=1) - corners
    outward = np.stack([edges[..., 1], -edges[..., 0]], axis=-1)
    leading = ((outward * shifts[:, None]).sum(-1) > 0)[..., None]
    before = corners + shifts[:, None] * np.roll(leading, 1, axis=1)
    after = corners + shifts[:, None] * leading
    return np.stack([before, after], axis=2).reshape(len(corners), 2 * corners.shape[1], 2)


def _paint_cars(canvas: Canvas, city: City) -> None:
    if not city.cars:
        return
    places = np.array(city.cars, np.float64)
    along_v = places[:, 2:3] > 0.5
    bodies = places[:, None, :2] + _CORNERS * np.where(along_v, (0.95, 2.2), (2.2, 0.95))[:, None]
    middle = places[:, :2] + np.where(along_v, (0, 0.55), (0.55, 0))
    windows = middle[:, None] + _CORNERS * np.where(along_v, (0.8, 0.5), (0.5, 0.8))[:, None]
    canvas.polygons(city.bend(bodies), inks(_choose(_CARS, places[:, 3]), 4))
    canvas.polygons(city.bend(windows), _GLASS)


def _paint_flat_roofs(canvas: Canvas, city: City, corners: Floats, light: Light, rng: np.random.Generator) -> None:
    """Roof, parapet, and on top lift heads, air conditioners and skylights with short shadows."""
    flat = np.array([building.roof == "flat" for building in city.buildings], bool)
    corners = corners[flat]
    tones = np.array([building.tone for building in city.buildings])[flat]
    colours = _choose(_FLAT_ROOFS, tones) * rng.uniform(0.9, 1.1, (len(corners), 1))
    middle = corners.mean(axis=1, keepdims=True)
    canvas.polygons(corners, inks(colours * 1.14, 10), BUILDING)
    canvas.polygons(middle + (corners - middle) * 0.93, inks(colours * 0.97, 14))
    edges = np.stack([corners[:, 1] - corners[:, 0], corners[:, 3] - corners[:, 0]], axis=1)
    lengths = np.linalg.norm(edges, axis=2)
    counts = np.minimum(14, 1 + lengths.prod(axis=1) / 220).astype(int)
    owner = np.repeat(np.arange(len(corners)), counts)
    r = rng.random((len(owner), 5))
    places = corners[owner, 0] + ((0.15 + 0.7 * r[:, :2, None]) * edges[owner]).sum(axis=1)
    units = edges[owner] / lengths[owner][..., None]
    half = np.stack([0.6 + 1.4 * r[:, 2], 0.6 + r[:, 3]], axis=1)
    steps = (_CORNERS[None, :, :, None] * (half[..., None] * units)[:, None]).sum(axis=2)
    boxes = places[:, None] + steps
    canvas.polygons(boxes + light.shadow * 1.6, inks(colours[owner] * 0.55, 6))
    canvas.polygons(boxes, inks(np.array([206, 206, 204]) * (0.8 + 0.3 * r[:, 4:]), 8))


def _paint_pitched_roofs(
    canvas: Canvas, city: City, footprints: tuple[Floats, Floats], light: Light, rng: np.random.Generator
) -> None:
    """Two or four faces around a ridge, each as bright as it turns to the sun."""
    chosen = [number for number, building in enumerate(city.buildings) if building.roof != "flat"]
    if not chosen:
        return
    corners, along = (part[chosen] for part in footprints)
    buildings = [city.buildings[number] for number in chosen]
    half = np.array([building[2:4] for building in buildings])
    # Turn each so that its ridge runs from the middle of edge 3-0 to the middle of edge 1-2.
    turned = half[:, 0] < half[:, 1]
    corners[turned] = np.roll(corners[turned], -1, axis=1)
    along[turned] = np.stack([-along[turned, 1], along[turned, 0]], axis=1)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    hipped = np.array([building.roof == "hip" for building in buildings])[:, None]
    inset = hipped * half.min(axis=1, keepdims=True) / (2 * half.max(axis=1, keepdims=True))
    ends = (corners[:, 3] + corners[:, 0]) / 2, (corners[:, 1] + corners[:, 2]) / 2
    ridge = ends[0] + (ends[1] - ends[0]) * inset, ends[1] + (ends[0] - ends[1]) * inset
    tones = np.array([building.tone for building in buildings])
    colours = _choose(_PITCHED_ROOFS, tones) * rng.uniform(0.9, 1.1, (len(corners), 1))
    canvas.polygons(corners, inks(colours, 22), BUILDING)
    c0, c1, c2, c3 = corners.transpose(1, 0, 2)
    r0, r1 = ridge
    corners_of_faces = [(c0, c1, r1, r0), (c2, c3, r0, r1), (c3, c0, r0, r0), (c1, c2, r1, r1)]
    faces = np.stack([np.stack(points, axis=1) for points in corners_of_faces], axis=1)
    lit = np.stack([-(across @ light.to_sun), across @ light.to_sun, -(along @ light.to_sun), along @ light.to_sun], 1)
    shades = colours[:, None] * (0.96 + 0.22 * lit)[..., None]
    canvas.polygons(faces.reshape(-1, 4, 2), inks(shades, 22))
    canvas.lines(np.stack(ridge, axis=1), inks(colours * 1.22, 10))


def _paint_trees(canvas: Canvas, trees: Floats, light: Light, rng: np.random.Generator) -> None:
    """Each crown is a dark disc under three lighter ones towards the sun."""
    centres, radii = trees[:, :2], trees[:, 2:]
    wobble = rng.uniform(-0.35, 0.35, (len(trees), 2, 2)) * radii[:, None]
    lit = centres + light.to_sun * radii * 0.22
    middles = [centres, centres + wobble[:, 0], lit + wobble[:, 1] * 0.8, lit + wobble[:, 0] * 0.3]
    sizes = [radii, radii * 0.66, radii * 0.6, radii * 0.34]
    discs = np.concatenate([np.stack(middles, axis=1), np.stack(sizes, axis=1)], axis=2)
    tone, hue = rng.uniform(-1, 1, (2, len(trees), 1))
    leaves = _LEAF * (1 + 0.14 * tone) + hue * (10, 3, 4) + light.dryness * np.array([14, 4, 0])
    shades = leaves[:, None] * np.array([0.72, 0.92, 1.13, 1.3])[:, None]
    canvas.discs(discs, inks(shades, 60))
