"""What a city is made of: streets, blocks, buildings, patches of ground, trees, cars and rivers. Metres throughout.

The city is a grid of streets in its own coordinates (u, v), turned and gently bent into the plane of the picture:

    (x, y) = centre + R(theta) (u + A1 sin(k1 v + p1), v + A2 sin(k2 u + p2))

Everything is laid out in (u, v), so houses line up with their street however it bends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Use = Literal["houses", "flats", "shops", "park"]
Roof = Literal["gable", "hip", "flat"]
SIDEWALK = 2.6


class Street(NamedTuple):
    """A line of the grid: where it lies on the other axis, its width, and its rank."""

    at: float
    width: float
    major: bool


class Piece(NamedTuple):
    """A street between two crossings: along v or u at `at`, from crossing to crossing, and half their widths."""

    at: float
    start: float
    stop: float
    room_start: float
    room_stop: float
    width: float
    along_v: bool
    major: bool


class Building(NamedTuple):
    """A rectangle around (u, v) with half sizes along u and v, a height and a roof."""

    u: float
    v: float
    half_u: float
    half_v: float
    height: float
    roof: Roof
    tone: float  # 0..1, picks the roof's colour


class Patch(NamedTuple):
    """A flat rectangle on the ground; `cover` is a name that the painter knows."""

    u: float
    v: float
    half_u: float
    half_v: float
    cover: str


class Tree(NamedTuple):
    """A crown of that radius."""

    u: float
    v: float
    radius: float


class Car(NamedTuple):
    """A car, parallel to u or to v."""

    u: float
    v: float
    along_v: bool
    tone: float  # 0..1, picks its colour


class River(NamedTuple):
    """A band along the line (x, y) + s (cos, sin) of `angle`, swinging by `swing` to both sides."""

    x: float
    y: float
    angle: float
    swing: float
    wave: float
    phase: float
    width: float

    def line(self, reach: float) -> Floats:
        """Its middle, from `reach` before (x, y) to `reach` behind, as (N, 2) points 8 m apart."""
        s = np.arange(-reach, reach, 8.0)
        across = self.swing * np.sin(self.wave * s + self.phase)
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return np.stack([self.x + s * cos - across * sin, self.y + s * sin + across * cos], axis=1)

    def distance(self, points: Floats) -> Floats:
        """(N, 2) points -> (N,) distances from its middle, to first order."""
        dx, dy = points[:, 0] - self.x, points[:, 1] - self.y
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        s, across = dx * cos + dy * sin, dy * cos - dx * sin
        slope = self.swing * self.wave * np.cos(self.wave * s + self.phase)
        return np.abs(across - self.swing * np.sin(self.wave * s + self.phase)) / np.sqrt(1 + slope**2)


class CityBlock(NamedTuple):
    """The land between four streets, pavements excluded, in (u, v)."""

    u0: float
    u1: float
    v0: float
    v1: float

    @property
    def middle(self) -> tuple[float, float]:
        """Its centre (u, v)."""
        return (self.u0 + self.u1) / 2, (self.v0 + self.v1) / 2

    @property
    def half(self) -> tuple[float, float]:
        """Half its size along u and v."""
        return (self.u1 - self.u0) / 2, (self.v1 - self.v0) / 2


@dataclass(frozen=True)
class Bend:
    """The map from city coordinates (u, v) to picture coordinates (x, y)."""

    centre: tuple[float, float]
    theta: float
    amplitudes: tuple[float, float]
    waves: tuple[float, float]
    phases: tuple[float, float]

    def __call__(self, uv: Floats) -> Floats:
        """(..., 2) -> (..., 2)."""
        u, v = uv[..., 0], uv[..., 1]
        bent_u = u + self.amplitudes[0] * np.sin(self.waves[0] * v + self.phases[0])
        bent_v = v + self.amplitudes[1] * np.sin(self.waves[1] * u + self.phases[1])
        cos, sin = math.cos(self.theta), math.sin(self.theta)
        xy = np.empty(uv.shape)
        xy[..., 0] = self.centre[0] + cos * bent_u - sin * bent_v
        xy[..., 1] = self.centre[1] + sin * bent_u + cos * bent_v
        return xy

    def headings(self, uv: Floats) -> Floats:
        """(N, 2) -> (N,) angle in the picture of the street that runs along u there."""
        slope = self.amplitudes[1] * self.waves[1] * np.cos(self.waves[1] * uv[..., 0] + self.phases[1])
        return self.theta + np.arctan(slope)


@dataclass
class City:
    """All there is to draw, in the order of drawing within each list."""

    bend: Bend
    pieces: list[Piece] = field(default_factory=list)
    patches: list[Patch] = field(default_factory=list)
    buildings: list[Building] = field(default_factory=list)
    trees: list[Tree] = field(default_factory=list)
    cars: list[Car] = field(default_factory=list)
    rivers: list[River] = field(default_factory=list)
