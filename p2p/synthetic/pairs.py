"""The embedded data set: aerial photographs of cities that do not exist, each with its clean map.

One plan (`p2p.synthetic`) is painted twice with the same strokes: as an aerial photograph with roofs, shadows,
crowns, cars, haze and sensor noise under a light of its own, and as a map of flat colours without antialiasing.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from p2p.synthetic.canvas import BAND, FINE, METRES_PER_PIXEL, Canvas
from p2p.synthetic.painting import PAVEMENT, Light, paint
from p2p.synthetic.plan import build_city

Array = npt.NDArray[np.uint8]
_Noise = npt.NDArray[np.float32]

PALETTE: dict[str, tuple[int, int, int]] = {
    "background": (214, 207, 192),
    "road": (255, 255, 255),
    "major road": (246, 178, 54),
    "building": (152, 112, 106),
    "park": (128, 192, 104),
    "water": (96, 160, 224),
}
"""The map's colours by class, in the order of the class numbers."""
_HAZE = np.array([186, 196, 208])
_COARSE, _BROAD = 5, 48  # pixels per value of the two smooth kinds of noise


def city_pair(seed: int, index: int, height: int, width: int) -> tuple[Array, Array]:
    """Draw pair `index` of the data set `seed`.

    Returns the aerial photograph and the map, each (height, width, 3) uint8 RGB; the map has only
    colours of `PALETTE`.
    A pixel is 0.7 m wide whatever the size, so a larger picture shows more city. Equal arguments give equal pixels.
    """
    rng = np.random.default_rng([seed, index])
    light = _choose_light(rng)
    city = build_city(rng, height * METRES_PER_PIXEL, width * METRES_PER_PIXEL)
    canvas = Canvas(height, width, PAVEMENT[0])
    paint(canvas, city, light, rng)
    classes = np.asarray(canvas.classes)[::FINE, ::FINE]
    return _photograph(canvas.colours.reduce(FINE), rng), np.array(list(PALETTE.values()), np.uint8)[classes]


def _choose_light(rng: np.random.Generator) -> Light:
    azimuth = rng.uniform(0, 2 * math.pi)
    to_sun = np.array([math.cos(azimuth), math.sin(azimuth)])
    depth = rng.uniform(0.4, 0.5)
    shade = (depth, depth * 1.05, depth * 1.18)  # the sky lights shadows, bluishly
    return Light(to_sun, -to_sun * rng.uniform(0.45, 0.95), shade, dryness=rng.uniform(-0.2, 1))


def _photograph(scene: Image.Image, rng: np.random.Generator) -> Array:
    """Bands red, green, blue, strength of texture -> (H, W, 3) uint8, exposed, hazy and grainy."""
    width, height = scene.size
    warmth, haze = rng.normal(0, 0.035), rng.uniform(0, 0.16)
    gain = rng.uniform(0.94, 1.18) * np.array([1 + warmth, 1 + rng.normal(0, 0.012), 1 - warmth])
    gamma, grain = rng.uniform(0.9, 1.12), rng.uniform(1.5, 4.0)
    levels = np.arange(256)[None] * gain[:, None] * (1 - haze) + haze * _HAZE[:, None]
    exposed = 255 * (np.clip(levels, 0, 255) / 255) ** gamma
    scene = scene.point([*exposed.round().astype(int).ravel().tolist(), *range(256)])
    coarse = rng.standard_normal((height // _COARSE + 3, width // _COARSE + 3), np.float32)
    broad = rng.standard_normal((height // _BROAD + 3, width // _BROAD + 3), np.float32)
    photograph = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, BAND):
        rows = min(BAND, height - top)
        band = np.asarray(scene.crop((0, top, width, top + rows)))
        fine = rng.standard_normal((rows, width), np.float32)
        texture = 0.55 * fine
        texture += 0.7 * _spread(coarse, _COARSE, top, rows, width)
        texture *= band[..., 3].astype(np.float32) / 255
        texture += 0.03 * _spread(broad, _BROAD, top, rows, width)
        texture += 1
        colours = band[..., :3] * texture[..., None]
        # The grain is the texture's noise seen upside down: as good as new, at no cost.
        colours += (np.float32(grain) * fine[::-1, ::-1] + np.float32(0.5))[..., None]
        photograph[top : top + rows] = np.clip(colours, 0, 255, out=colours)
    return photograph


def _spread(noise: _Noise, cell: int, top: int, rows: int, width: int) -> _Noise:
    """Smooth noise, one value every `cell` pixels, for the rows from `top` on. -> (rows, width) float32."""
    box = (0.5, top / cell + 0.5, width / cell + 0.5, (top + rows) / cell + 0.5)
    return np.asarray(Image.fromarray(noise).resize((width, rows), Image.Resampling.BICUBIC, box))
