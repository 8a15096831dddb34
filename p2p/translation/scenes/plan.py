"""Which sections of which scenes are left to be done."""

from __future__ import annotations

import dataclasses
import logging
from concurrent.futures import ThreadPoolExecutor

from p2p.errors import BadInputError
from p2p.storage.lease import Fence
from p2p.storage.rasters import open_raster
from p2p.translation.config import Settings
from p2p.translation.plan.files import Shard, read_inputs
from p2p.translation.plan.resume import RemainingWork
from p2p.translation.scenes.store import SceneVersion, done_sections, forget_earlier
from p2p.translation.scenes.translator import address_of

log = logging.getLogger("p2p")
_READERS = 16


def cut_into_sections(settings: Settings, left: RemainingWork, fence: Fence | None) -> RemainingWork:
    """Read the header of every scene that is not done, and list the sections that are missing.

    A scene whose header cannot be read, and one of which only the end is missing, get one section, so that a process
    looks at them. Raises StorageError, LeaseLostError.
    """

    def missing(shard: Shard) -> list[Shard]:
        (item,) = read_inputs(shard)
        try:
            with open_raster(address_of(item)) as raster:
                version = SceneVersion.of(raster, settings)
                if fence:
                    fence.check()
                forget_earlier(settings.output, shard.index, version)
                if not raster.facts.is_georeferenced:
                    log.warning("%s: nothing says where it lies, and nothing will in its output", item.image_id)
            done = done_sections(settings.output, shard.index, version)
            todo = sorted(set(range(version.sections)) - done) or [version.sections - 1]
        except BadInputError:
            todo = [0]
        return [dataclasses.replace(shard, section=section) for section in todo]

    with ThreadPoolExecutor(_READERS) as pool:
        return dataclasses.replace(
            left, sections=tuple(one for found in pool.map(missing, left.shards) for one in found)
        )
