"""Sources that were written anew after they were planned: what was made of them is stale."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from p2p.storage.filesystems import SECONDS_BETWEEN_CHECKS
from p2p.storage.lease import Fence
from p2p.storage.parquet import open_parquet
from p2p.translation.corpus.inputs import Input
from p2p.translation.plan.files import hash_id, plan_uris, read_inputs, read_plan_file, write_plan_file
from p2p.translation.plan.ledger import done_shards, finish_without, forget_shard, read_translated, reopen_changed
from p2p.translation.sinks.records import OutputNames

log = logging.getLogger("p2p")


def redo_changed(
    output: str,
    changed: Sequence[Input],
    containers: Mapping[str, int],
    names: OutputNames,
    fence: Fence | None,
    *,
    is_whole: bool,
    only_failed: bool,
) -> int:
    """Put `changed`, as they are listed now, in place of the planned inputs with their ids, and let their shards count
    as not done. What else these shards have translated is kept. Returns how many are done anew.

    containers: the tars and Parquet files that were listed, with their versions.
    is_whole: whether the whole corpus was listed. What a changed file held and is not listed any more then leaves the
        plan, unless it was translated.
    only_failed: leave alone what was translated, and shards that are done.
    """
    by_id = {item.image_id: item for item in changed}
    versions = {**containers, **{item.source_uri: item.version for item in changed}}
    hashes = pa.array([hash_id(image_id) for image_id in by_id], pa.uint64())
    done = done_shards(output) if only_failed else set()
    count = gone = 0

    def is_gone(item: Input) -> bool:
        # Others of its file may be in the plan as they are now: those that are new, or changed by an earlier attempt.
        now = versions.get(item.source_uri, item.version)
        return is_whole and item.image_id not in by_id and item.version not in (0, now)

    for uri in plan_uris(output):
        with open_parquet(uri) as file:
            if "version" not in file.schema_arrow.names:  # of an earlier version of p2p
                continue
            table = file.read(columns=["id_hash", "source_uri", "version"])
        sources = table.group_by(["source_uri", "version"]).aggregate([]).to_pylist()
        if not pc.any(pc.is_in(table["id_hash"], hashes)).as_py() and all(
            row["version"] in (0, versions.get(row["source_uri"], row["version"])) for row in sources
        ):
            continue
        groups: dict[int, list[Input]] = {}
        for shard in read_plan_file(uri).shards:
            planned = groups[shard.index] = read_inputs(shard)
            if shard.index in done or not any(item.image_id in by_id or is_gone(item) for item in planned):
                continue
            translated = read_translated(output, shard.index)
            kept = translated if only_failed else set()
            redone = {item.image_id for item in planned if item.image_id in by_id} - kept
            lost = {item.image_id for item in planned if is_gone(item)} - translated
            left = [item for item in planned if item.image_id not in lost]
            if fence:
                fence.check(SECONDS_BETWEEN_CHECKS)
            # Before the plan: whoever goes on after an interruption here finds the same changes in it.
            if translated and not redone and translated.issuperset(item.image_id for item in left):
                finish_without(output, shard.index, lost)
            else:
                reopen_changed(output, shard.index, redone | lost)
            groups[shard.index] = [by_id[item.image_id] if item.image_id in redone else item for item in left]
            count += len(redone)
            gone += len(lost)
        if fence:
            fence.check()
        empty = [index for index, group in groups.items() if not group]
        for index in empty:
            forget_shard(output, index)
            del groups[index]
        write_plan_file(uri, groups, names, only_new=False, fence=fence)
    if gone:
        log.warning("%d inputs are left out: the files that held them were written anew without them", gone)
    return count
