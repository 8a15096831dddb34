"""Sections of one scene on their way through the network, in one flow."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from p2p.scenes.bands import RasterBands
from p2p.scenes.reading import SceneReader
from p2p.scenes.rows import RowBuffer
from p2p.scenes.sections import section_rows, tile_rows_between
from p2p.scenes.tiling import RowStitcher, TilePlan, reflect_to
from p2p.scenes.validity import fill_invalid
from p2p.storage.filesystems import SECONDS_BETWEEN_CHECKS
from p2p.storage.rasters import Raster
from p2p.translation.config import Settings
from p2p.translation.corpus.inputs import Input
from p2p.translation.pipeline.tasks import ShardReport
from p2p.translation.plan.files import Shard
from p2p.translation.scenes.store import SceneStore, SectionFacts, SectionWriter
from p2p.translation.seams import SeamMeter

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

_PREVIEW_SIDE = 320
_SHOWN_CHANNELS = 3


class TileNetwork(Protocol):
    """The part of `p2p.model.engine.Engine` that is used here."""

    batch_size: int
    input_channels: int
    output_channels: int
    dtype: np.dtype[Any]

    @property
    def in_flight(self) -> int:
        """Batches that may be started before the first is taken."""

    @property
    def fallbacks(self) -> list[str]:
        """What the device could not do, so that something slower is done instead."""

    def start(self, tiles: Array, keys: Sequence[str]) -> Callable[[], Array]:
        """(B, T, T, C) -> a function that waits for its (B, T, T, C')."""


@dataclass
class Scene:
    """One scene, open, and what is done with it."""

    settings: Settings
    network: TileNetwork
    made: RasterBands | None
    """The bands of the model's outputs, where it was trained on rasters."""
    check: Callable[[float], None]
    """Raises where nothing of it may be written any more; looks no more often than after so many seconds."""
    shard: Shard
    item: Input
    raster: Raster
    reader: SceneReader
    store: SceneStore

    def translate(self, first: int, last: int) -> Iterator[ShardReport]:
        """Sections from `first` to before `last`, in one flow: no tile between them is computed twice."""
        flow = _Flow(self, first, last)
        try:
            yield from flow.run()
        finally:
            flow.close()


class _Flow:
    """Rows of tiles go into the network from above, finished rows come out below and fill section after section."""

    def __init__(self, scene: Scene, first: int, last: int) -> None:
        settings, facts = scene.settings, scene.raster.facts
        self._scene, self._network = scene, scene.network
        self._plan = TilePlan(facts.height, facts.width, settings.tile_size, settings.overlap)
        self._section, self._last = first, last
        self._top = section_rows(first, facts.height)[0]
        self._bottom = section_rows(last - 1, facts.height)[1]
        self._tile_rows = tile_rows_between(self._plan, self._top, self._bottom)
        self._stitcher = RowStitcher(
            self._plan, self._network.output_channels, self._network.dtype, self._take_rows, self._tile_rows[0]
        )
        start = self._plan.rows[self._tile_rows[0]]
        self._pixels = RowBuffer(start)
        self._valid, self._alpha = RowBuffer(start), RowBuffer(start)
        self._step = max(1, -(-max(facts.height, facts.width) // _PREVIEW_SIDE))
        self._before: dict[int, Array] = {}
        self._pending: deque[tuple[list[int], Callable[[], Array]]] = deque()
        self._writer: SectionWriter | None = None
        self._reports: list[ShardReport] = []
        self._seconds = dict.fromkeys(("decode", "network", "encode", "publish"), 0.0)

    def run(self) -> Iterator[ShardReport]:
        """Yield a report for each section that is done."""
        waiting: list[tuple[int, Array]] = []
        self._begin_section()
        for index, tile in self._tiles():
            if tile is None:
                self._stitch(index, None)
            else:
                waiting.append((index, tile))
            if len(waiting) == self._network.batch_size:
                self._start(waiting)
                waiting = []
            yield from self._take_reports()
        if waiting:
            self._start(waiting)
        while self._pending:
            self._take()
        yield from self._take_reports()

    def close(self) -> None:
        """Drop what is not finished."""
        while self._pending:
            with contextlib.suppress(Exception):
                self._pending.popleft()[1]()
        if self._writer is not None:
            self._writer.remove()
        del (
            self._stitcher
        )  # it refers to this object, and both would stay in memory until Python looks for such circles

    def _tiles(self) -> Iterator[tuple[int, Array | None]]:
        """Inputs of the network by their number; None for a tile without a valid pixel."""
        plan, size = self._plan, self._plan.tile_size
        for row in range(*self._tile_rows):
            top = plan.rows[row]
            bottom = min(top + size, plan.height)
            started = time.perf_counter()
            self._read_to(bottom)
            self._pixels.drop_before(top)
            pixels = self._pixels.take(top, bottom)
            valid = self._valid.take(top, bottom) if self._scene.reader.has_validity else None
            self._seconds["decode"] += time.perf_counter() - started
            for column, left in enumerate(plan.columns):
                index = row * len(plan.columns) + column
                tile = pixels[:, left : left + size]
                if valid is not None:
                    good = valid[:, left : left + size]
                    if not good.any():
                        yield index, None
                        continue
                    tile = fill_invalid(tile, good)
                yield index, reflect_to(tile, size, size)

    def _read_to(self, bottom: int) -> None:
        top = self._pixels.end
        if top >= bottom:
            return
        pixels, valid, alpha = self._scene.reader.read(top, bottom)
        self._pixels.append(pixels)
        if self._scene.reader.has_validity:
            self._valid.append(np.ones(pixels.shape[:2], bool) if valid is None else valid)
        if self._scene.store.profile.validity == "alpha":
            assert alpha is not None
            self._alpha.append(alpha)
        for y in range(-(-top // self._step) * self._step, bottom, self._step):
            self._before[y] = self._preview_row(pixels, valid, y - top)

    def _start(self, batch: list[tuple[int, Array]]) -> None:
        while len(self._pending) >= self._network.in_flight:
            self._take()
        started = time.perf_counter()
        indices = [index for index, _ in batch]
        image_id = self._scene.item.image_id
        tiles = np.stack([tile for _, tile in batch])
        self._pending.append((indices, self._network.start(tiles, [f"{image_id}#{index}" for index in indices])))
        self._seconds["network"] += time.perf_counter() - started

    def _take(self) -> None:
        indices, take = self._pending.popleft()
        started = time.perf_counter()
        outputs = take()
        self._seconds["network"] += time.perf_counter() - started
        for index, output in zip(indices, outputs, strict=True):
            self._stitch(index, output)

    def _stitch(self, index: int, output: Array | None) -> None:
        started, others = time.perf_counter(), self._seconds["publish"]
        self._stitcher.add(index, output)
        self._seconds["encode"] += time.perf_counter() - started - (self._seconds["publish"] - others)

    def _take_rows(self, top: int, rows: Array) -> None:
        """Finished rows; those above the first section are not, for tiles above were not computed."""
        finished = top + len(rows)
        rows = rows[: max(0, self._bottom - top)]
        if top < self._top:
            rows = rows[self._top - top :]
            top = self._top
        while len(rows):
            end = section_rows(self._section, self._plan.height)[1]
            count = min(len(rows), end - top)
            self._write_rows(top, rows[:count])
            rows, top = rows[count:], top + count
            if top == end:
                self._end_section()
        self._valid.drop_before(finished)
        self._alpha.drop_before(finished)

    def _preview_row(self, pixels: Array, valid: Mask | None, row: int) -> npt.NDArray[np.uint8]:
        """(1, columns, 3): what the report shows of a row, white like its page where the scene holds nothing."""
        shown = _shown(pixels[row : row + 1, :: self._step])
        if valid is not None:
            shown[~valid[row : row + 1, :: self._step]] = 255
        return shown

    def _write_rows(self, top: int, rows: Array) -> None:
        bottom, scene = top + len(rows), self._scene
        valid = self._valid.take(top, bottom) if scene.reader.has_validity else None
        self._meter.add(top, rows, valid)
        for y in range(-(-top // self._step) * self._step, bottom, self._step):
            self._facts.after.append(self._preview_row(rows, valid, y - top))
            self._facts.before.append(self._before.pop(y))
        values = values_of(rows, scene.made)
        if scene.store.profile.validity == "alpha":
            values = np.concatenate([values, self._alpha.take(top, bottom)[..., None]], axis=2)
        assert self._writer is not None
        self._writer.add(values, valid)

    def _begin_section(self) -> None:
        height = self._plan.height
        self._scene.check(SECONDS_BETWEEN_CHECKS)
        self._scene.store.start(self._section)
        top, bottom = section_rows(self._section, height)
        self._writer = SectionWriter(self._scene.store.profile, bottom - top)
        self._meter = SeamMeter(self._plan, self._network.output_channels)
        self._facts = SectionFacts()

    def _end_section(self) -> None:
        started = time.perf_counter()
        scene, section = self._scene, self._section
        assert self._writer is not None
        self._writer.close()
        top, bottom = section_rows(section, self._plan.height)
        self._facts.seams = self._meter.result()
        self._facts.holes = [hole for hole in scene.reader.holes if hole[1] < bottom and hole[1] + hole[3] > top]
        scene.store.publish(section, self._writer.paths, self._facts, functools.partial(scene.check, 0.0))
        self._writer.remove()
        self._writer = None
        self._seconds["publish"] += time.perf_counter() - started
        report = ShardReport(scene.shard.index, section=section, pixels=(bottom - top) * self._plan.width)
        report.seconds.update(self._seconds)
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        self._reports.append(report)
        self._section += 1
        if self._section < self._last:
            self._begin_section()

    def _take_reports(self) -> Iterator[ShardReport]:
        reports, self._reports = self._reports, []
        yield from reports


def values_of(rows: Array, made: RasterBands | None) -> Array:
    """(n, W, C) outputs of a network, whose bands are `made` -> what is stored."""
    return made.from_shares(rows) if made is not None and made.is_scaled else rows


def _shown(pixels: Array) -> npt.NDArray[np.uint8]:
    """(n, m, C) at the network's depth -> (n, m, 3) uint8 to look at."""
    shown = pixels[..., :_SHOWN_CHANNELS] if pixels.shape[2] >= _SHOWN_CHANNELS else pixels[..., :1].repeat(3, 2)
    return (shown >> 8).astype(np.uint8) if shown.dtype == np.uint16 else shown.copy()
