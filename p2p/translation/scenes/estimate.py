"""What a dry run finds out of scenes: their headers, and how long a window of some of them takes. Writes nothing."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from p2p.errors import BadInputError
from p2p.scenes.cogs import CogProfile
from p2p.scenes.reading import Array, Mask, SceneReader
from p2p.scenes.sections import section_count
from p2p.scenes.tiling import RowStitcher, TilePlan, reflect_to
from p2p.scenes.validity import fill_invalid
from p2p.storage.rasters import Raster, open_raster
from p2p.translation.corpus.inputs import Input
from p2p.translation.scenes.flow import values_of
from p2p.translation.scenes.store import SectionWriter
from p2p.translation.scenes.translator import SceneTranslator, address_of

_TIMED_TILES = 64


@dataclass
class SceneCounts:
    """Of scenes that can be read."""

    scenes: int = 0
    pixels: int = 0
    sections: int = 0
    tiles: int = 0
    """Those without a valid pixel among them, which take no time."""


def measure_scenes(translator: SceneTranslator, items: Sequence[Input]) -> tuple[float, SceneCounts]:
    """Open the scenes, and translate windows of the first ones. Returns the seconds that all would take, and what they
    are. Raises StorageError.
    """
    settings, found = translator.settings, SceneCounts()
    started, timed, window_seconds = time.perf_counter(), 0, 0.0
    for item in items:
        try:
            with open_raster(address_of(item), translator.deadline) as raster:
                reader, profile = translator.examine(raster)
                height, width = raster.facts.height, raster.facts.width
                plan = TilePlan(height, width, settings.tile_size, settings.overlap)
                if timed < _TIMED_TILES:
                    before = time.perf_counter()
                    timed += _translate_window(translator, raster, reader, profile, plan)
                    window_seconds += time.perf_counter() - before
        except BadInputError:
            continue
        found.scenes += 1
        found.pixels += height * width
        found.sections += section_count(height)
        found.tiles += len(plan)
    opening = time.perf_counter() - started - window_seconds
    return opening + window_seconds / max(timed, 1) * found.tiles, found


def _translate_window(
    translator: SceneTranslator, raster: Raster, reader: SceneReader, profile: CogProfile, plan: TilePlan
) -> int:
    """Read, compute, blend and encode some tiles in the middle of a scene. Returns how many. Raises BadInputError."""
    network, size = translator.network, plan.tile_size
    columns = plan.columns[max(0, (len(plan.columns) - _TIMED_TILES) // 2) :][:_TIMED_TILES]
    top, left = plan.rows[len(plan.rows) // 2], columns[0]
    bottom, right = min(top + size, plan.height), min(columns[-1] + size, plan.width)
    pixels, valid, _ = reader.read(top, bottom, left, right)
    window = TilePlan(bottom - top, right - left, size, plan.overlap)
    kind = "mask" if profile.validity == "alpha" else profile.validity
    profile = dataclasses.replace(profile, width=window.width, height=window.height, validity=kind)
    writer = SectionWriter(profile, window.height)

    def write(row: int, rows: Array) -> None:
        good = None if valid is None else valid[row : row + len(rows)]
        writer.add(values_of(rows, translator.output_bands), good)

    stitcher = RowStitcher(window, network.output_channels, network.dtype, write)
    try:
        for start in range(0, len(window), network.batch_size):
            tiles = [_tile(pixels, valid, x, size) for x in window.columns[start : start + network.batch_size]]
            take = network.start(np.stack(tiles), [""] * len(tiles))
            for index, output in zip(itertools.count(start), take()):
                stitcher.add(index, output)
        writer.close()
    finally:
        writer.remove()
    return len(window)


def _tile(pixels: Array, valid: Mask | None, left: int, size: int) -> Array:
    tile = pixels[:, left : left + size]
    if valid is not None and (good := valid[:, left : left + size]).any():
        tile = fill_invalid(tile, good)
    return reflect_to(tile, size, size)
