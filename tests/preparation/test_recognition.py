"""What the job prints of a layout before it works, and what it refuses to cut in two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from p2p.preparation import PrepareConfig, prepare
from p2p.storage import images
from p2p.synthetic.pairs import city_pair

pytestmark = pytest.mark.usefixtures("jobs_share_a_process")

CITIES = ("gtFine/{}_gtFine_{}.png", "leftImg8bit/{}_leftImg8bit.png")


@pytest.fixture
def run(run_cli: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    return lambda *words: run_cli(PrepareConfig, prepare, "--output", tmp_path / "out", "--load-size", 0, *words)


def save(path: Path, image: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(images.encode(image))


def test_a_published_layout_is_printed_before_work_and_stored(run: Callable[..., Any], tmp_path: Path) -> None:
    for split, names in (("train", "abc"), ("val", "de")):
        for number, name in enumerate(names):
            photo, colours = city_pair(1, number, 32, 64)
            path = f"{split}/ulm/{name}"
            save(tmp_path / "in" / CITIES[1].format(path), photo)
            save(tmp_path / "in" / CITIES[0].format(path, "color"), colours)
            save(tmp_path / "in" / CITIES[0].format(path, "labelIds"), np.full((32, 64, 3), 7, np.uint8))
    outcome = run("--source", tmp_path / "in")
    assert outcome.status == 0, outcome.stderr
    printed = outcome.stderr.index("Cityscapes layout: 3 train, 2 val; A = gtFine color, B = leftImg8bit\n")
    left_out = outcome.stderr.index("left out, neither A nor B of a pair: …labelIds (5)\n")
    assert printed < left_out < outcome.stderr.index("preparing")
    [row] = pq.read_table(tmp_path / "out/val", filters=[("pair_id", "=", "ulm/d")]).to_pylist()
    assert np.array_equal(images.decode(row["a"]), city_pair(1, 0, 32, 64)[1])

    outcome = run("--source", tmp_path / "in", "--label-kind", "labelIds")
    assert "A = gtFine labelIds, B = leftImg8bit\n" in outcome.stderr
    [row] = pq.read_table(tmp_path / "out/val", filters=[("pair_id", "=", "ulm/d")]).to_pylist()
    assert (images.decode(row["a"]) == 7).all()


def test_what_is_no_pair_is_refused_with_the_options_that_would_do(run: Callable[..., Any], tmp_path: Path) -> None:
    photos = [city_pair(1, number, 48, 48)[0] for number in range(6)]
    for number, photo in enumerate(photos):
        save(tmp_path / f"photos/{number}.png", photo)
        save(tmp_path / f"run/samples/epoch_{number:04d}.png", np.concatenate([photo] * 3, axis=1))
    outcome = run("--source", tmp_path / "photos")
    assert outcome.status == 2
    assert "6 images and no pairs" in outcome.stderr and "two halves of 24x48" in outcome.stderr
    assert "--layout combined" in outcome.stderr and "--pattern-a" in outcome.stderr
    assert not (tmp_path / "out").exists()

    outcome = run("--source", tmp_path / "run")
    assert outcome.status == 2 and "the sample sheets of a training run" in outcome.stderr
    assert "--layout" not in outcome.stderr

    pq.write_table(pa.table({"image": [images.encode(photo) for photo in photos]}), tmp_path / "one.parquet")
    outcome = run("--source", tmp_path / "one.parquet")
    assert outcome.status == 2
    assert "one column of images, image" in outcome.stderr and "--pattern-a" not in outcome.stderr
    assert run("--source", tmp_path / "photos", "--layout", "combined").status == 0
