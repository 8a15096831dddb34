"""Ray Data streams one rank's pairs, decoded and cropped, in an exact order; a thread keeps batches ready.

Ray's own shuffles cannot be repeated after a restart, so the order is made here: each Ray Data task reads one lane of a
window (see `order`), and the rank takes rows from the lanes in turn. What follows (validation, the next epoch) is read
while the present is still being consumed, so an epoch's end costs no waiting.

Each Ray Data execution is small enough to be read to its end at once. One that had to wait for the training would take
half a core for it, in the training's own process: Ray Data's scheduling loop does not sleep while it holds finished
tasks back.
"""

from __future__ import annotations

import functools
import itertools
import json
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray.data
from ray.data import ExecutionResources

from p2p.data.augment import centre_crop, jitter, join_sides
from p2p.data.order import LANE_ROWS, Row, Window, epoch_order, stored_order
from p2p.data.pairs import Formats, Pair, Pairs, RowGroup, read_rows, try_rows
from p2p.data.session import is_private, physical_cores, quiet_data_context, reader_cpus
from p2p.data.tasks import MAX_ATTEMPTS, is_repeat, memory_reported, run_as_task
from p2p.errors import BadInput, TaskFailedError
from p2p.storage.images import Pixels
from p2p.storage.pixels import RGB

_MOST_LANES = 24
"""Divisible by 2, 3, 4, 6, 8 and 12 ranks, which then share no row group."""
_WINDOW_BYTES = 320 * 2**20
_READ_AHEAD = 2
"""Executions under way or read while another is consumed: together they hide the 0.2 s that each takes to start.

Each holds up to a third of a gigabyte in this process.
"""
_FIRST_LANES, _LANES_AT_ONCE = 4, 48
"""Lanes of the first execution where its windows are small, and of any: training starts before much has been read."""
_READY_BYTES = 96 * 2**20
_MOST_READY = 256


@dataclass(frozen=True)
class Preparation:
    """How a decoded pair becomes a training pair."""

    crop_size: int
    seed: int
    flip: bool
    swap: bool
    """True puts B first: the input is B, the target A (direction BtoA)."""
    formats: Formats = (RGB, RGB)
    """Channels and depth in which A and B are read; one depth for both."""

    @property
    def pair_bytes(self) -> int:
        """Of one training pair in memory."""
        return self.crop_size**2 * sum(wanted.bytes_per_pixel for wanted in self.formats)

    def sides(self, batch: Any) -> tuple[Any, Any]:
        """(N, values) array or tensor of pairs -> inputs (N, crop, crop, C) and targets (N, crop, crop, C'), views."""
        channels = [wanted.channels for wanted in self.formats][:: -1 if self.swap else 1]
        size = self.crop_size
        inputs = size * size * channels[0]
        shapes = [(len(batch), size, size, count) for count in channels]
        return batch[:, :inputs].reshape(shapes[0]), batch[:, inputs:].reshape(shapes[1])


@dataclass(frozen=True)
class Part:
    """One pass over a split: a training epoch (shuffled, jittered), or with epoch 0 a validation (stored order)."""

    pairs: Pairs
    epoch: int
    batch_size: int
    """Pairs per batch; the last one may be smaller."""
    skip: int = 0
    """Pairs at the front of this rank's share to leave out: an earlier attempt has seen them."""
    stop: int | None = None
    """Pairs of this rank's share after which to end."""


@dataclass(frozen=True)
class _End:
    """Stands in the queue behind the last batch of a part, or behind everything (with `error`, if it broke)."""

    error: BaseException | None = None


def window_lanes(pair_bytes: int) -> int:
    """Lanes of a window: as many as keep its decoded pairs, which wait in memory, below a third of a gigabyte."""
    lane_bytes = LANE_ROWS * pair_bytes
    return next((n for n in (_MOST_LANES, 12, 8, 6, 4, 2) if n * lane_bytes <= _WINDOW_BYTES), 1)


def prepare_lane(batch: dict[str, Pixels], preparation: Preparation) -> dict[str, Pixels]:
    """Read, decode and crop the rows that each lane in `batch` names.

    Returns:
        `pairs`, (N, values): the input's crop and then the target's, which `Preparation.sides` takes apart, and
        `problem`, N texts: empty, or what is wrong with a pair. Bad pairs are told and not raised, since Ray keeps only
        the text of what a task raises.

    """
    prepared: list[Pixels] = []
    problem = ""
    for text in batch["lane"]:
        lane = json.loads(str(text))
        groups = [RowGroup(**group) for group in lane["groups"]]
        wanted = (groups, lane["rows"], lane["load_size"], preparation.formats)
        try:
            with memory_reported(f"reading {groups[0].uri}"):
                if is_repeat(f"pairs of {groups[0].uri}"):
                    try_rows(*wanted)
                for pair in read_rows(*wanted):
                    prepared.append(_crop(pair, lane["epoch"], preparation))
        except (BadInput, TaskFailedError) as error:
            problem = str(error)
            if isinstance(error, BadInput):
                problem += "; jobs/prepare.py leaves bad pairs out and lists them"
            dtype = preparation.formats[0].dtype
            blank = np.zeros(preparation.pair_bytes // dtype.itemsize, dtype)
            prepared += [blank] * len(lane["rows"])
    return {"pairs": np.stack(prepared), "problem": np.full(len(prepared), problem, dtype=object)}


def read_first(pairs: Pairs, count: int, formats: Formats) -> list[Pair]:
    """The first `count` pairs, decoded by a task as all others are. Raises BadInput that names a bad pair."""
    every = ((number, row) for number, group in enumerate(pairs.groups) for row in range(group.rows))
    rows = list(itertools.islice(every, count))
    groups = pairs.groups[: 1 + max(number for number, _ in rows)]
    wanted = (groups, rows, pairs.load_size, formats)
    # A node that takes work has room for so little, whatever else reads there.
    return run_as_task(_read_rows, *wanted, num_cpus=0.1, retries=MAX_ATTEMPTS)


def _read_rows(groups: Sequence[RowGroup], rows: Sequence[Row], load_size: int, formats: Formats) -> list[Pair]:
    if is_repeat(f"pairs of {groups[0].uri}"):
        try_rows(groups, rows, load_size, formats)
    return list(read_rows(groups, rows, load_size, formats))


def _crop(pair: Pair, epoch: int, preparation: Preparation) -> Pixels:
    sides = (pair["b"], pair["a"]) if preparation.swap else (pair["a"], pair["b"])
    size, pair_id = preparation.crop_size, pair["pair_id"]
    try:
        if not epoch:
            return join_sides(*centre_crop(*sides, size))
        seed, flip = preparation.seed, preparation.flip
        return join_sides(*jitter(*sides, size, seed=seed, epoch=epoch, pair_id=pair_id, flip=flip))
    except BadInput as error:
        raise BadInput(error.kind, f"pair {pair_id!r}: {error}") from None


def describe_lane(part: Part, rows: tuple[Row, ...]) -> str:
    """A task's text: the row groups it reads, and its rows counted into them."""
    places = {group: place for place, group in enumerate(dict.fromkeys(group for group, _ in rows))}
    groups = [vars(part.pairs.groups[group]) for group in places]
    own_rows = [(places[group], row) for group, row in rows]
    return json.dumps({"epoch": part.epoch, "groups": groups, "rows": own_rows, "load_size": part.pairs.load_size})


def _tasks_at_once() -> int | None:
    """Of one execution: on a private Ray no more than keep its cores busy, since their processes stay and disturb."""
    return max(1, physical_cores() // _READ_AHEAD) if is_private() else None


@dataclass(frozen=True)
class _Reading:
    """What one Ray Data execution reads: windows of one part after the other; None ends a part."""

    windows: list[tuple[Part, Window | None]]
    arrays: Future[list[Pixels]]
    """(n, values) each, their rows in the order of the windows' lanes."""


class Feed:
    """Batches of the parts in `plan`, one after the other, for one rank. Use as a context manager.

    Args:
        plan: the passes to come; drawn from another thread, one ahead of consumption.
        preparation: how pairs are cropped.
        largest_batch: the largest batch size in `plan`; decides how many batches are kept ready.
        rank: this worker's number.
        world: number of workers.
        convert: applied to each (n, values) batch in the feeding thread, such as pinning it.

    """

    def __init__(
        self,
        plan: Iterator[Part],
        preparation: Preparation,
        *,
        largest_batch: int,
        rank: int = 0,
        world: int = 1,
        convert: Callable[[Pixels], Any] = lambda batch: batch,
    ) -> None:
        self._plan, self._preparation, self._convert = plan, preparation, convert
        self._rank, self._world = rank, world
        batch_bytes = largest_batch * preparation.pair_bytes
        self._ready: queue.Queue[Any] = queue.Queue(max(2, min(_MOST_READY, _READY_BYTES // batch_bytes)))
        self._batch: list[Pixels] = []
        self._started, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._fill, name="p2p-feed", daemon=True)

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def batches(self) -> Iterator[Any]:
        """Yield the batches of the next part, converted; waits where none is ready."""
        while True:
            item = self._ready.get()
            if not isinstance(item, _End):
                yield item
            elif item.error is not None:
                raise item.error
            else:
                return

    def wait(self) -> None:
        """Return once the first batch is ready, so that starting Ray Data is not taken for an epoch's waiting."""
        self._started.wait()

    def _put(self, item: Any) -> bool:
        self._started.set()
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False

    def _fill(self) -> None:
        coming: deque[_Reading] = deque()
        try:
            with ThreadPoolExecutor(_READ_AHEAD, "p2p-read") as readers:
                for windows in self._executions():
                    coming.append(_Reading(windows, readers.submit(self._read, windows)))
                    if len(coming) > _READ_AHEAD and not self._deal(coming.popleft()):
                        return
                while coming and self._deal(coming.popleft()):
                    pass
        except BaseException as error:  # the training thread must hear of it
            self._put(_End(error))
        finally:
            self._started.set()  # nothing to feed is an answer too

    def _windows_of(self, part: Part) -> Iterator[Window]:
        rank, world = self._rank, self._world
        if not part.epoch:
            return stored_order(part.pairs.group_rows, rank=rank, world=world)
        return epoch_order(
            part.pairs.group_rows,
            seed=self._preparation.seed,
            epoch=part.epoch,
            lanes=window_lanes(self._preparation.pair_bytes),
            rank=rank,
            world=world,
            skip=part.skip,
            stop=part.stop,
        )

    def _executions(self) -> Iterator[list[tuple[Part, Window | None]]]:
        """Gather windows for one Ray Data execution each: at least one, more where they are small."""
        gathered: list[tuple[Part, Window | None]] = []
        lanes, size, most = 0, 0, _FIRST_LANES
        for part in self._plan:
            for window in self._windows_of(part):
                window_size = len(window.turns) * self._preparation.pair_bytes
                if lanes and (lanes + len(window.lanes) > most or size + window_size > _WINDOW_BYTES):
                    yield gathered
                    gathered, lanes, size, most = [], 0, 0, min(4 * most, _LANES_AT_ONCE)
                gathered.append((part, window))
                lanes, size = lanes + len(window.lanes), size + window_size
            gathered.append((part, None))
        if gathered:
            yield gathered

    def _read(self, windows: list[tuple[Part, Window | None]]) -> list[Pixels]:
        """Run one Ray Data execution to its end; what it returns is of no use once the feed is closed."""
        lanes = [(part, lane) for part, window in windows if window for lane in window.lanes]
        if not lanes:
            return []
        context = quiet_data_context()
        context.execution_options.preserve_order = True
        context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=_WINDOW_BYTES)
        items = [{"lane": describe_lane(part, rows)} for part, rows in lanes]
        prepare = functools.partial(prepare_lane, preparation=self._preparation)
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            prepare, batch_size=None, num_cpus=reader_cpus(), compute=ray.data.TaskPoolStrategy(size=_tasks_at_once())
        )
        arrays: list[Pixels] = []
        for batch in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2):
            problem = next(filter(None, batch["problem"]), None)
            if problem is not None:
                raise BadInput("BadPair", problem)
            # A copy, since arrays in Ray's object store stay there for as long as they are looked at: windows that wait
            # for the training would fill a small store, and then no task could go on.
            arrays.append(batch["pairs"].copy())
            if self._closed.is_set():
                break
        return arrays

    def _deal(self, reading: _Reading) -> bool:
        """Deal the rows of the lanes in turn, and queue the batches. False once closed."""
        arrays = reading.arrays.result()
        if self._closed.is_set():
            return False
        rows = (row for array in arrays for row in array)
        for part, window in reading.windows:
            if window is None:
                if not (self._flush() and self._put(_End())):
                    return False
                continue
            waiting = [deque(next(rows) for _ in lane) for lane in window.lanes]
            for lane in window.turns:
                self._batch.append(waiting[lane].popleft())
                if len(self._batch) == part.batch_size and not self._flush():
                    return False
        return True

    def _flush(self) -> bool:
        batch, self._batch = self._batch, []
        return not batch or self._put(self._convert(np.stack(batch)))
