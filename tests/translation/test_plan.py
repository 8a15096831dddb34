"""The work plan: whole, stable, and extended only by what is new."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from p2p.errors import ConfigError, LeaseLostError, UsageError
from p2p.storage.filesystems import write_json
from p2p.storage.lease import Fence, Lease
from p2p.translation.corpus.inputs import Input
from p2p.translation.plan import plan
from p2p.translation.plan.files import plan_uris, read_inputs
from p2p.translation.plan.ledger import LedgerRow, write_ledger
from p2p.translation.plan.plan import checked_uri, extend_plan, load_plan
from p2p.translation.sinks.images import ImagesSink


@dataclass(frozen=True)
class Listing:
    """A corpus that is only a list."""

    inputs: list[Input]
    min_shard_rows: int = 1
    image_column: str = ""

    def items(self) -> Iterator[Input]:
        return iter(self.inputs)


class Ids:
    """Outputs whose names are the ids, as in Parquet."""

    is_tree = False
    max_shard_rows = 256

    def name_of(self, image_id: str) -> str:
        return image_id


def numbered(start: int, stop: int, size: int = 0) -> list[Input]:
    return [Input(f"{number:06d}.png", f"/x/{number:06d}.png", size) for number in range(start, stop)]


def planned(output: Path, inputs: list[Input], limit: int = 0, smallest: int = 1) -> list[list[Input]]:
    made = extend_plan(str(output), Listing(inputs, smallest), Ids(), limit)
    assert load_plan(str(output)) == made
    assert [shard.index for shard in made.shards] == list(range(len(made.shards)))
    shards = [read_inputs(shard) for shard in made.shards]
    assert [len(shard) for shard in shards] == [shard.rows for shard in made.shards]
    return shards


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100, 1000, 20_000])
def test_every_input_is_in_one_shard_in_order(tmp_path: Path, count: int) -> None:
    shards = planned(tmp_path, numbered(0, count))
    assert [item for shard in shards for item in shard] == numbered(0, count)
    assert max(map(len, shards)) <= 256
    assert len(shards) >= min(count // 8, 32)


def test_large_inputs_and_large_row_groups_decide_the_size_of_a_shard(tmp_path: Path) -> None:
    assert max(map(len, planned(tmp_path / "b", numbered(0, 100, size=30 * 2**20)))) == 2
    assert min(map(len, planned(tmp_path / "c", numbered(0, 100), smallest=50))) == 50


def test_new_inputs_are_appended_and_old_shards_never_change(tmp_path: Path) -> None:
    before = planned(tmp_path, numbered(100, 200))
    assert planned(tmp_path, numbered(100, 200)) == before
    after = planned(tmp_path, numbered(50, 260))
    assert after[: len(before)] == before
    assert sorted(item for shard in after for item in shard) == numbered(50, 260)


@pytest.mark.parametrize("is_taken_over", [False, True])
def test_an_attempt_that_is_interrupted_leaves_no_plan_unless_it_is_another_jobs_by_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_taken_over: bool
) -> None:
    """The other goes on from what it found; losing the lease interrupts as Control-C does."""
    monkeypatch.setattr(plan, "_SHARDS_PER_PART", 2)
    monkeypatch.setattr(plan, "_CHUNK_ROWS", 16)
    fence = Fence(str(tmp_path), Lease(job="translate", host="", pid=1, attempt=1, started=1.0, renewed=1.0))
    write_json(f"{tmp_path}/lease.json", vars(fence.lease))
    seen: list[str] = []

    class Interrupted(Listing):
        def items(self) -> Iterator[Input]:
            yield from self.inputs
            seen.extend(plan_uris(str(tmp_path)))
            if is_taken_over:
                write_json(f"{tmp_path}/lease.json", vars(dataclasses.replace(fence.lease, attempt=2, started=2.0)))
            raise KeyboardInterrupt

    with pytest.raises(LeaseLostError if is_taken_over else KeyboardInterrupt):
        extend_plan(str(tmp_path), Interrupted(numbered(0, 100)), Ids(), fence=fence)
    assert seen and plan_uris(str(tmp_path)) == (seen if is_taken_over else [])


def test_a_file_that_an_older_attempt_adds_meanwhile_stands_in_the_way(tmp_path: Path) -> None:
    """It was about to write it when it was stopped, and the next attempt has begun its listing before it went on."""

    class Late(Listing):
        def items(self) -> Iterator[Input]:
            extend_plan(str(tmp_path), Listing(numbered(0, 5)), Ids())
            yield from self.inputs

    with pytest.raises(LeaseLostError, match="another job has written it meanwhile"):
        extend_plan(str(tmp_path), Late(numbered(0, 9)), Ids())
    assert [item for shard in load_plan(str(tmp_path)).shards for item in read_inputs(shard)] == numbered(0, 5)
    assert len(planned(tmp_path, numbered(0, 9))) == 2


def test_a_plan_of_which_a_file_is_lost_goes_on_after_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_SHARDS_PER_PART", 2)
    planned(tmp_path, numbered(0, 100))
    uris = plan_uris(str(tmp_path))
    Path(uris[0]).unlink()
    lost = numbered(0, 100)[:16]
    found = [item for shard in extend_plan(str(tmp_path), Listing(lost), Ids()).shards for item in read_inputs(shard)]
    assert sorted(found) == numbered(0, 100)
    assert len(plan_uris(str(tmp_path))) == len(uris) and uris[0] not in plan_uris(str(tmp_path))


def test_a_limit_takes_the_first_of_the_listing(tmp_path: Path) -> None:
    first = planned(tmp_path, numbered(0, 100), limit=10)
    assert [item for shard in first for item in shard] == numbered(0, 10)
    everything = planned(tmp_path, numbered(0, 100))
    assert [item for shard in everything for item in shard] == numbered(0, 100)


def test_inputs_that_would_share_an_output_are_found_and_leave_no_plan(tmp_path: Path) -> None:
    sink = ImagesSink(str(tmp_path), "png")
    clash = Listing([Input("x/a.jpg", "/x/a.jpg"), Input("b.jpg", "/b.jpg"), Input("x/a.png", "/x/a.png")])
    with pytest.raises(UsageError, match=r"'x/a.jpg' and 'x/a.png', which would both be written as 'x/a.png'"):
        extend_plan(str(tmp_path), clash, sink)
    assert not load_plan(str(tmp_path)).shards
    twice = Listing([Input("a", "/1"), Input("b", "/2"), Input("a", "/3")])
    with pytest.raises(UsageError, match=r"two inputs with the id 'a' \(/1 and /3\)"):
        extend_plan(str(tmp_path), twice, Ids())
    assert not load_plan(str(tmp_path)).shards
    extend_plan(str(tmp_path), Listing(clash.inputs[:2]), sink)
    with pytest.raises(UsageError, match="would both be written"):
        extend_plan(str(tmp_path), clash, sink)
    assert [shard.rows for shard in load_plan(str(tmp_path)).shards] == [2]


_KILLED = """
import os, signal
from test_plan import ImagesSink, Input, Listing, extend_plan, plan
plan._require_unique = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
extend_plan({output!r}, Listing([Input(name, name) for name in {names!r}]), ImagesSink({output!r}, "png"))
"""


@pytest.mark.parametrize("done", [0, 1, 2])
def test_names_are_compared_though_the_attempt_that_planned_them_was_killed_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    """Also where it was to add a few to what is done."""
    sink, names = ImagesSink(str(tmp_path), "png"), ["a.png", "b.png"][:done]
    if done:
        extend_plan(str(tmp_path), Listing([Input(name, name) for name in names]), sink)
        write_ledger(str(tmp_path), 0, [LedgerRow(name, "translated") for name in names])
    before = load_plan(str(tmp_path))
    names += ["x.jpg", "x.png"]
    code = _KILLED.format(output=str(tmp_path), names=names)
    ended = subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parent)
    assert ended.returncode == -signal.SIGKILL and len(load_plan(str(tmp_path)).shards) > len(before.shards)
    with pytest.raises(ConfigError, match=r"'x.jpg' and 'x.png', which would both be written as 'x.png'"):
        extend_plan(str(tmp_path), Listing([Input(name, name) for name in names]), sink)
    assert load_plan(str(tmp_path)) == before
    renamed = Listing([Input(name, name) for name in (*names[:-1], "y.png")])
    extend_plan(str(tmp_path), renamed, sink)
    monkeypatch.setattr(plan, "_require_unique", None)  # once is enough
    extend_plan(str(tmp_path), renamed, sink)


def test_a_plan_of_an_earlier_version_is_compared_once_and_stays(tmp_path: Path) -> None:
    extend_plan(str(tmp_path), Listing([Input(name, name) for name in ("x.jpg", "x.png")]), Ids())
    Path(checked_uri(str(tmp_path))).unlink()
    write_ledger(str(tmp_path), 0, [LedgerRow(name, "translated") for name in ("x.jpg", "x.png")])
    before = load_plan(str(tmp_path))
    extend_plan(str(tmp_path), Listing([]), Ids())
    assert load_plan(str(tmp_path)) == before and Path(checked_uri(str(tmp_path))).exists()


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4, 5])
def test_a_repeated_input_is_reported_whatever_an_earlier_attempt_has_planned(tmp_path: Path, limit: int) -> None:
    inputs = [Input("a", "/list"), Input("b", "/list"), Input("c", "/list"), Input("a", "/list"), Input("d", "/d")]
    if limit in (1, 2, 3):
        extend_plan(str(tmp_path), Listing(inputs), Ids(), limit)
    elif limit == 5:  # every id is in the plan
        extend_plan(str(tmp_path), Listing([*inputs[:3], inputs[4]]), Ids())
    before = load_plan(str(tmp_path))
    with pytest.raises(UsageError, match=r"two inputs with the id 'a' \(/list\).*remove one of the lines"):
        extend_plan(str(tmp_path), Listing(inputs), Ids())
    assert load_plan(str(tmp_path)) == before


def test_a_repeat_is_reported_with_its_way_out(tmp_path: Path) -> None:
    for first, second, way_out in (
        (Input("a", "/1"), Input("a", "/2"), "(/1 and /2); ids must be unique: name them apart in a column image_id"),
        (Input("a", "/x", 0, 1, 0, 1), Input("a", "/x", 0, 1, 2, 3), "--id-column none"),
        (Input("a", "/x.tar", 9, 512), Input("a", "/x.tar", 9, 2048), "packed again"),
    ):
        with pytest.raises(UsageError) as caught:
            extend_plan(str(tmp_path), Listing([first, second]), Ids())
        assert way_out in str(caught.value)


@pytest.mark.parametrize("first", [["x.jpg"], ["x.png/sub/y.png"], []])
def test_an_output_cannot_lie_where_another_needs_a_folder(tmp_path: Path, first: list[str]) -> None:
    names = ["x.jpg", "2024.06/a.png", "x.png/sub/y.png", "x.png/z.png"]
    listing = Listing([Input(name, f"/{name}") for name in names])
    sink = ImagesSink(str(tmp_path), "png")
    if first:
        extend_plan(str(tmp_path), Listing([Input(first[0], "/")]), sink)
    before = load_plan(str(tmp_path))
    with pytest.raises(UsageError, match=r"'x.jpg', which would be written as 'x.png', which must be a folder"):
        extend_plan(str(tmp_path), listing, sink)
    assert load_plan(str(tmp_path)) == before
    extend_plan(str(tmp_path), listing, ImagesSink(str(tmp_path), "webp"))
    extend_plan(str(tmp_path / "parquet"), listing, Ids())
