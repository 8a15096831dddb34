"""What one process does with the sections of scenes that it is given."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from p2p.data.local import MAX_ATTEMPTS
from p2p.errors import BadInputError, NotFoundError, TaskFailedError
from p2p.scenes.bands import RasterBands, parse_bands
from p2p.scenes.cogs import CogProfile
from p2p.scenes.reading import SceneReader
from p2p.scenes.sections import consecutive, section_rows
from p2p.storage.deadline import DECODE_SECONDS, Deadline
from p2p.storage.filesystems import exists, remove, remove_file
from p2p.storage.lease import Fence
from p2p.storage.rasters import Raster, Window, file_identity, open_raster, place_of
from p2p.storage.trial import find_fatal_item, process_ended
from p2p.translation.config import Settings
from p2p.translation.corpus.addresses import is_web
from p2p.translation.corpus.inputs import SIGNED, Input, on_disk
from p2p.translation.pipeline.tasks import ShardReport
from p2p.translation.plan.files import Shard, read_inputs
from p2p.translation.plan.ledger import LedgerRow, ledger_uri, write_ledger
from p2p.translation.scenes.flow import Scene, TileNetwork
from p2p.translation.scenes.store import SceneStore, SceneVersion, sections_folder
from p2p.translation.sinks.geotiff import output_profile, scene_uri

Array = npt.NDArray[Any]

_TRIES_BEFORE_TRIAL = 2


class _SceneOverError(Exception):
    """Another process has finished the scene, or found that it cannot be read."""


@dataclass
class SceneTranslator:
    """Translates sections of scenes with one network, one scene after another.

    input_bands and output_bands are the model's, where it was trained on rasters.
    """

    settings: Settings
    network: TileNetwork
    fence: Fence | None = None
    input_bands: RasterBands | None = None
    output_bands: RasterBands | None = None
    deadline: Deadline = field(default_factory=lambda: Deadline(DECODE_SECONDS))

    def run(self, units: Sequence[Shard]) -> Iterator[ShardReport]:
        """Yield a report for each section, and one that is `finished` for each scene that this process ends.

        Raises StorageError where storage does not answer. What is bad about a scene goes into the ledger.
        """
        wanted: dict[Shard, set[int]] = {}
        for unit in units:
            wanted.setdefault(unit.scene, set()).add(unit.section)
        for shard, sections in wanted.items():
            with contextlib.suppress(_SceneOverError):
                yield from self._translate(shard, sections)

    def _translate(self, shard: Shard, sections: set[int]) -> Iterator[ShardReport]:
        self._require_open(shard)
        (item,) = read_inputs(shard)
        try:
            with open_raster(address_of(item), self.deadline) as raster:
                task = self._open_scene(shard, item, raster)
                missing = task.store.missing() & sections
                begun = task.store.begun() & missing
                for section in sorted(begun):  # by itself: a process that ends had read rows of the next one too
                    self._require_harmless(task, section)
                    yield from task.translate(section, section + 1)
                for first, last in consecutive(missing - begun):
                    yield from task.translate(first, last)
                if not task.store.missing():
                    yield self._finish(task)
        except BadInputError as error:
            yield self._fail(shard, item, error)
        except NotFoundError:
            self._require_open(shard)  # the sections of a scene that another process has finished are gone
            raise

    def _open_scene(self, shard: Shard, item: Input, raster: Raster) -> Scene:
        reader, profile = self.examine(raster)
        store = SceneStore(
            self.settings.output, shard.index, profile, SceneVersion.of(raster, self.settings), self.fence
        )
        self.check(shard)  # the header was read meanwhile
        store.require_same(raster.size, raster.modified)
        check = functools.partial(self.check, shard)
        return Scene(self.settings, self.network, self.output_bands, check, shard, item, raster, reader, store)

    def _require_harmless(self, task: Scene, section: int) -> None:
        """After every second process that ended at a section, which may have been killed from outside, try it in
        another one. Raises BadInputError if that ends too, TaskFailedError after too many trials that did not.
        """
        tries = task.store.tries(section)
        if not tries or tries % _TRIES_BEFORE_TRIAL:
            return
        top, bottom = section_rows(section, task.raster.facts.height)
        if tries >= _TRIES_BEFORE_TRIAL * MAX_ATTEMPTS:
            raise TaskFailedError(
                f"{tries} processes have ended while they worked on {task.item.image_id}, rows {top}..{bottom - 1}, "
                f"though reading and writing them does no harm; if memory is short, pass fewer --workers or a smaller "
                f"--tile-size. The same command tries again"
            )
        unit = dataclasses.replace(task.shard, section=section)
        network = _NoNetwork.like(self.network)
        with tempfile.TemporaryDirectory(prefix="p2p-trial-") as output:
            settings = dataclasses.replace(self.settings, output=output)
            found = find_fatal_item(_translate_section, unit, settings, network, self.input_bands, self.output_bands)
        if found is not None:
            raise process_ended(f"rows {top}..{bottom - 1}: ")

    def examine(self, raster: Raster) -> tuple[SceneReader, CogProfile]:
        """How a scene is read, and what its output is. Raises BadInputError where the model cannot take it."""
        settings, network, made = self.settings, self.network, self.output_bands
        reader = SceneReader(
            raster,
            network.input_channels,
            network.dtype,
            self.input_bands,
            parse_bands(settings.bands, "bands") if settings.bands else (),
            keep_holes=settings.on_bad_window == "nodata",
        )
        dtype = made.dtype if made is not None and made.is_scaled else network.dtype.name
        profile = output_profile(
            settings, raster.facts, network.output_channels, dtype, made, has_validity=reader.has_validity
        )
        return reader, profile

    def _require_open(self, shard: Shard) -> None:
        if exists(ledger_uri(self.settings.output, shard.index)):
            raise _SceneOverError

    def check(self, shard: Shard, seconds: float = 0.0) -> None:
        """Before something of a scene is written. Raises LeaseLostError, or leaves the scene if it is over."""
        if self.fence:
            self.fence.check(seconds)
        self._require_open(shard)

    def _finish(self, task: Scene) -> ShardReport:
        """Put the scene together and declare it done."""
        started = time.perf_counter()
        uri = scene_uri(self.settings.output, task.item.image_id)
        task.store.require_same(*file_identity(task.raster.uri))  # what lies there now
        staged, facts = task.store.assemble(uri, task.raster)
        try:
            self.check(task.shard)
            size = staged.publish()
        except BaseException:
            staged.discard()
            raise
        self.check(task.shard)  # that has taken a while
        task.store.keep_preview(facts)
        row = LedgerRow(task.item.image_id, "translated", message=_describe(facts.holes), output_uri=uri)
        is_first = write_ledger(self.settings.output, task.shard.index, [row], self.fence)
        task.store.remove()
        if not is_first:
            raise _SceneOverError
        report = ShardReport(task.shard.index, finished=True, translated=1, output_bytes=size)
        report.seconds["assemble"] = time.perf_counter() - started
        return report

    def _fail(self, shard: Shard, item: Input, error: BadInputError) -> ShardReport:
        self.check(shard)
        output = self.settings.output
        remove_file(scene_uri(output, item.image_id))  # of an earlier attempt
        write_ledger(output, shard.index, [LedgerRow(item.image_id, "failed", error.kind, str(error))], self.fence)
        remove(sections_folder(output, shard.index))
        return ShardReport(shard.index, finished=True, failed=1)


@dataclass
class _NoNetwork:
    """Takes and gives what a network does, and computes nothing."""

    batch_size: int
    in_flight: int
    input_channels: int
    output_channels: int
    dtype: np.dtype[Any]
    fallbacks: list[str] = field(default_factory=list)

    @classmethod
    def like(cls, network: TileNetwork) -> _NoNetwork:
        return cls(
            network.batch_size, network.in_flight, network.input_channels, network.output_channels, network.dtype
        )

    def start(self, tiles: Array, keys: Sequence[str]) -> Callable[[], Array]:
        return lambda: np.zeros((*tiles.shape[:3], self.output_channels), self.dtype)


def _translate_section(
    unit: Shard,
    settings: Settings,
    network: _NoNetwork,
    input_bands: RasterBands | None,
    output_bands: RasterBands | None,
) -> Iterator[ShardReport]:
    yield from SceneTranslator(settings, network, None, input_bands, output_bands).run([unit])


def address_of(item: Input) -> str:
    """Where a scene lies. Raises BadInputError for what cannot be read, and for what is not read by windows."""
    if item.reason:
        kind, _, message = item.reason.partition(": ")
        raise BadInputError(kind, message)
    if item.row == SIGNED or is_web(item.source_uri):
        raise BadInputError(
            "AddressRefused", "scenes are read by windows from disks and buckets, not from web servers; copy it first"
        )
    return on_disk(item.source_uri)


def _describe(holes: Sequence[Window]) -> str:
    if not holes:
        return ""
    places = map(place_of, sorted(holes, key=lambda hole: (hole[1], hole[0])))
    return "holes where the input could not be read: " + "; ".join(places)
