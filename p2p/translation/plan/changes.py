"""Sources that were written anew after they were planned: what was made of them is stale."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from p2p.storage.lease import Fence
from p2p.storage.parquet import open_parquet
from p2p.translation.corpus.inputs import DAMAGED, WHOLE_FILE, Input
from p2p.translation.plan.files import hash_id, plan_uris, read_inputs, read_plan_file, write_plan_file
from p2p.translation.plan.ledger import done_shards, read_kept, reopen_changed
from p2p.translation.sinks.records import OutputNames

_GONE = "SourceChanged: the file that held it has been written anew since it was planned, without it"


def redo_changed(
    output: str, changed: Sequence[Input], sink: OutputNames, fence: Fence | None, *, is_whole: bool, only_failed: bool
) -> int:
    """Put `changed`, as they are listed now, in place of the planned inputs with their ids, and let their shards count
    as not done. What else these shards have translated is kept. Returns how many are done anew.

    is_whole: whether the whole corpus was listed, so that what a changed file held and is not listed is gone.
    only_failed: leave alone what was translated, and shards that are done.
    """
    by_id = {item.image_id: item for item in changed}
    hashes = pa.array([hash_id(image_id) for image_id in by_id], pa.uint64())
    rewritten = {item.source_uri for item in changed}
    files = pa.array(sorted(rewritten), pa.string())
    done = done_shards(output) if only_failed else set()
    count = 0

    def updated(item: Input, kept: Collection[str]) -> Input:
        if item.image_id in by_id:
            return item if item.image_id in kept else by_id[item.image_id]
        in_container = item.offset != WHOLE_FILE or item.row_group != WHOLE_FILE
        if is_whole and in_container and item.source_uri in rewritten:
            return Input(item.image_id, item.source_uri, row=DAMAGED, reason=_GONE, version=item.version)
        return item

    for uri in plan_uris(output):
        with open_parquet(uri) as file:
            table = file.read(columns=["id_hash", "source_uri"])
        concerned = pc.or_(pc.is_in(table["id_hash"], hashes), pc.is_in(table["source_uri"], files))
        if not pc.any(concerned).as_py():
            continue
        groups, shards = [], read_plan_file(uri).shards
        if fence:
            fence.check()
        for shard in shards:
            groups.append(read_inputs(shard))
            if shard.index in done:
                continue
            kept = read_kept(output, shard.index) if only_failed else {}
            redone = [item.image_id for item in groups[-1] if item.image_id in by_id and item.image_id not in kept]
            # Before the plan: whoever goes on after an interruption here finds the same changes in it.
            reopen_changed(output, shard.index, redone)
            groups[-1] = [updated(item, kept) for item in groups[-1]]
            count += len(redone)
        write_plan_file(uri, shards[0].index, groups, sink, only_new=False)
    return count
