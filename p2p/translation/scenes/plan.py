"""Which sections of which scenes are left to be done."""

from __future__ import annotations

import dataclasses
import logging
from concurrent.futures import ThreadPoolExecutor

from p2p.errors import BadInputError
from p2p.scenes.sections import section_count
from p2p.storage.lease import Fence
from p2p.storage.rasters import open_raster
from p2p.translation.plan.files import Shard, read_inputs
from p2p.translation.plan.resume import RemainingWork
from p2p.translation.scenes.store import done_sections, forget_earlier
from p2p.translation.scenes.translator import address_of

log = logging.getLogger("p2p")
_READERS = 16


def cut_into_sections(output: str, left: RemainingWork, fence: Fence | None) -> RemainingWork:
    """Read the header of every scene that is not done, and list the sections that are missing.

    A scene whose header cannot be read, and one of which only the end is missing, get one section, so that a process
    looks at them. Raises StorageError, LeaseLostError.
    """

    def missing(shard: Shard) -> list[Shard]:
        (item,) = read_inputs(shard)
        try:
            with open_raster(address_of(item)) as raster:
                if fence:
                    fence.check()
                forget_earlier(output, shard.index, raster)
                if not raster.facts.is_georeferenced:
                    log.warning("%s: nothing says where it lies, and nothing will in its output", item.image_id)
                sections = set(range(section_count(raster.facts.height)))
        except BadInputError:
            sections = {0}
        todo = sorted(sections - done_sections(output, shard.index)) or [max(sections)]
        return [dataclasses.replace(shard, section=section) for section in todo]

    with ThreadPoolExecutor(_READERS) as pool:
        return dataclasses.replace(
            left, sections=tuple(one for found in pool.map(missing, left.shards) for one in found)
        )
