"""Wrong options are told in one line, with exit status 2, before Ray starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from p2p.errors import UsageError
from p2p.preparation import PrepareConfig, prepare
from p2p.preparation.config import SyntheticSource, parse_synthetic

CITY = "synthetic:city?pairs=2&size=16"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("synthetic:city", SyntheticSource()),
        ("synthetic:city?pairs=3&size=64&seed=9", SyntheticSource(pairs=3, height=64, width=64, seed=9)),
        ("synthetic:city?size=640x48", SyntheticSource(height=48, width=640)),
    ],
)
def test_synthetic_addresses(address: str, expected: SyntheticSource) -> None:
    assert parse_synthetic(address) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "synthetic:town"}, "there is no synthetic 'town'"),
        ({"source": "synthetic:city?pairs=0"}, "pairs=0 must be a whole number from 1"),
        ({"source": "synthetic:city?size=12x"}, "size= must be a whole number from 1 to 8192"),
        ({"source": "synthetic:city?colour=1"}, "unknown part 'colour'; use pairs, size and seed"),
        ({"source": CITY, "source_b": "x"}, "source_b .*: a synthetic source draws both sides"),
        ({"source": "x", "source_b": "y", "layout": "combined"}, "layout combined"),
        ({"pattern_a": "{id}.png"}, "pattern_a .*--pattern-b is missing"),
        ({"pattern_a": "x.png", "pattern_b": "{id}.png"}, r"pattern_a x.png: must hold \{id\} once"),
        ({"pattern_a": "{id}.png", "pattern_b": "{id}.png"}, "pattern_b .*no image can be both sides"),
        ({"pattern_a": "{id}a", "pattern_b": "{id}b", "layout": "folders"}, "pattern_a .*leave out --layout"),
        ({"load_size": -1}, "load_size -1: must be 0"),
        ({"max_bytes": 0}, "max_bytes 0: must be at least 1"),
        ({"val_fraction": 1.5}, r"val_fraction 1\.5: must be a share from 0 to 1"),
        ({"max_bad_fraction": float("nan")}, "max_bad_fraction nan"),
    ],
)
def test_wrong_values_are_refused_at_birth(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PrepareConfig(**{"source": "x", "output": "y", **options})


def refused(run_cli: Callable[..., Any], *words: object) -> str:
    was_running = ray.is_initialized()
    outcome = run_cli(PrepareConfig, prepare, *words)
    assert outcome.status == 2
    assert outcome.summary is None
    assert ray.is_initialized() == was_running
    assert "Traceback" not in outcome.stderr
    return str(outcome.stderr)


def test_a_source_that_holds_nothing_usable(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    out = tmp_path / "out"
    assert "nothing is there" in refused(run_cli, "--source", tmp_path / "absent", "--output", out)
    assert "holds no files" in refused(run_cli, "--source", tmp_path / "in", "--output", out)
    (tmp_path / "in/notes.txt").write_text("x")
    assert "holds no images, which end in .jpg" in refused(run_cli, "--source", tmp_path / "in", "--output", out)
    pq.write_table(pa.table({"caption": ["x"]}), tmp_path / "in/t.parquet")
    message = refused(run_cli, "--source", tmp_path / "in", "--output", out)
    assert "needs columns a and b" in message
    assert "caption" in message
    assert not out.exists()


def test_two_folders_without_one_common_name(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    for side, name in (("a", "1.png"), ("b", "2.png")):
        (tmp_path / side).mkdir()
        (tmp_path / side / name).write_bytes(b"")
    words = ("--source", tmp_path / "a", "--source-b", tmp_path / "b", "--output", tmp_path / "out")
    assert "0 of 1 names" in refused(run_cli, *words)


@pytest.mark.parametrize("strange", ["notes.txt", "train/photo.jpg", "errors/log.txt", "sub/x"])
def test_an_output_with_files_of_something_else_is_left_alone(
    run_cli: Callable[..., Any], strange: str, tmp_path: Path
) -> None:
    (tmp_path / strange).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / strange).write_text("mine")
    assert "holds files of something else" in refused(run_cli, "--source", CITY, "--output", tmp_path)
    assert (tmp_path / strange).read_text() == "mine"


def test_the_output_may_not_hold_the_source(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    pq.write_table(pa.table({"a": [b""], "b": [b""]}), tmp_path / "train/part-00000.parquet")
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(tmp_path)
    for source in (tmp_path, tmp_path / "train", link, link / "train"):
        assert "which would be replaced" in refused(run_cli, "--source", source, "--output", tmp_path)
    assert (tmp_path / "train/part-00000.parquet").exists()


@pytest.mark.parametrize("check", [(), ("--check",)])
def test_a_parquet_data_set_may_not_hold_the_output(
    run_cli: Callable[..., Any], tmp_path: Path, make_image: Callable[..., bytes], check: tuple[str, ...]
) -> None:
    """The next run would list its parts with the others. Of a folder of images it would not, so there it may."""
    (tmp_path / "in").mkdir()
    images = [make_image(8, 8, seed=seed) for seed in range(4)]
    pq.write_table(pa.table({"a": images[:2], "b": images[2:]}), tmp_path / "in/t.parquet")
    (tmp_path / "link").symlink_to(tmp_path / "in/out")
    (tmp_path / "in/out").mkdir()
    for output in (tmp_path / "in/out", tmp_path / "link"):
        message = refused(run_cli, "--source", tmp_path / "in", "--output", output, "--load-size", 0, *check)
        assert "every Parquet file is taken for pairs" in message
    assert not list((tmp_path / "in/out").iterdir())
