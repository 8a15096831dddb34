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


def test_photos_among_combined_pairs_are_bad_rows_and_other_folders_than_splits_are_reported(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    pairs = [city_pair(1, number, 64, 64) for number in range(10)]
    for number, pair in enumerate(pairs):
        save(tmp_path / f"in/{'train' if number < 8 else 'gallery'}/{number}.png", np.concatenate(pair, axis=1))
    save(tmp_path / "in/train/teaser.png", pairs[0][0])
    outcome = run("--source", tmp_path / "in")
    assert outcome.status == 3
    assert (
        "beside the folders of splits, so in train unless --val-fraction chooses them: gallery/ (2)" in outcome.stderr
    )
    [row] = pq.read_table(tmp_path / "out/errors").to_pylist()
    assert row["error"] == "OtherShape" and row["source_uri"].endswith("teaser.png")
    assert pq.read_table(tmp_path / "out/train").num_rows == 10


def test_classes_are_no_sides_by_their_names(run: Callable[..., Any], tmp_path: Path) -> None:
    for number in range(8):
        for side, name in enumerate(("real", "fake")):
            save(tmp_path / f"in/{name}/{number}.png", city_pair(1, number + 50 * side, 64, 64)[0])
            save(tmp_path / f"good/{name}/{number}.png", city_pair(1, number, 64, 64)[side])
    outcome = run("--source", tmp_path / "in")
    assert outcome.status == 2 and "--pattern-a 'real/{id}.png' --pattern-b 'fake/{id}.png'" in outcome.stderr
    (tmp_path / "in/real").rename(tmp_path / "in/night")
    (tmp_path / "in/fake").rename(tmp_path / "in/day")
    outcome = run("--source", tmp_path / "in")
    assert outcome.status == 0 and "in none of the 8 pairs looked at have night/ and day/" in outcome.stderr
    outcome = run("--source", tmp_path / "good")
    assert outcome.status == 0 and "real and fake layout: 8 train; A = real/, B = fake/" in outcome.stderr


def write_pairs(path: Path, count: int) -> None:
    pairs = [city_pair(1, number, 32, 32) for number in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    sides = {name: [images.encode(pair[side]) for pair in pairs] for side, name in enumerate("ab")}
    pq.write_table(pa.table(sides), path)


def test_pictures_beside_a_parquet_data_set_are_left_out_and_told(run: Callable[..., Any], tmp_path: Path) -> None:
    write_pairs(tmp_path / "in/data/train.parquet", 4)
    save(tmp_path / "in/assets/preview.png", city_pair(1, 9, 32, 32)[0])
    outcome = run("--source", tmp_path / "in")
    assert outcome.status == 0 and "two-column layout: 4 train" in outcome.stderr
    assert "a Parquet data set; left out beside it: 1 image (assets/ (1))" in outcome.stderr
    assert "1 .parquet" not in outcome.stderr


def test_more_images_than_a_parquet_data_set_has_are_another_data_set(run: Callable[..., Any], tmp_path: Path) -> None:
    write_pairs(tmp_path / "in/one.parquet", 1)
    for number in range(3):
        for side, name in enumerate("AB"):
            save(tmp_path / f"in/{name}/{number}.png", city_pair(1, number, 32, 32)[side])
    outcome = run("--source", tmp_path / "in")
    assert outcome.status == 2 and "images in 1 of its rows, and 6 images (A/ (3), B/ (3)) beside it" in outcome.stderr
    assert "Pass --pattern-a PATTERN --pattern-b PATTERN for the images" in outcome.stderr
    assert run("--source", tmp_path / "in", "--pattern-a", "A/{id}.png", "--pattern-b", "B/{id}.png").status == 0
    pq.write_table(pa.table({"caption": ["x"] * 9, "digest": [bytes(16)] * 9}), tmp_path / "in/one.parquet")
    outcome = run("--source", tmp_path / "in")
    assert outcome.status == 0 and "A/B layout: 3 train" in outcome.stderr and "1 .parquet" in outcome.stderr


def test_thumbnails_in_parquet_beside_images_that_pair_up_are_no_data_set(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    for number in range(3):
        for side, name in enumerate("AB"):
            save(tmp_path / f"in/{name}/{number}.png", city_pair(1, number, 32, 32)[side])
    thumb = images.encode(city_pair(1, 9, 16, 16)[0])
    for columns, count in (("x", 2), ("x", 30), ("xyz", 30)):
        pq.write_table(pa.table(dict.fromkeys(columns, [thumb] * count)), tmp_path / "in/thumbs.parquet")
        outcome = run("--source", tmp_path / "in")
        assert outcome.status == 0 and "A/B layout: 3 train" in outcome.stderr and "1 .parquet" in outcome.stderr
    write_pairs(tmp_path / "in/thumbs.parquet", 8)
    outcome = run("--source", tmp_path / "in", "--layout", "folders")
    assert outcome.status == 0 and "A/B layout: 3 train" in outcome.stderr


def test_a_preview_beside_a_parquet_data_set_of_one_column_is_left_out(run: Callable[..., Any], tmp_path: Path) -> None:
    pairs = [images.encode(np.concatenate(city_pair(1, number, 32, 32), axis=1)) for number in range(4)]
    save(tmp_path / "in/preview.png", city_pair(1, 9, 32, 32)[0])
    pq.write_table(pa.table({"image": pairs}), tmp_path / "in/train.parquet")
    outcome = run("--source", tmp_path / "in")
    assert outcome.status == 0 and "combined layout: 4 train" in outcome.stderr


def test_lists_of_splits_are_named_where_no_folder_says_one(run: Callable[..., Any], tmp_path: Path) -> None:
    for split in ("train", "val"):
        for side, name in enumerate("AB"):
            save(tmp_path / f"in/{split}/{name}/1.png", city_pair(1, 1, 32, 32)[side])
        (tmp_path / f"in/{split}.txt").write_text("1\n")
    told = "train.txt, val.txt may list which images belong to a split; lists are not read"
    assert told not in run("--source", tmp_path / "in").stderr
    (tmp_path / "in/val").rename(tmp_path / "in/more")
    (tmp_path / "in/readme.txt").write_text("")
    outcome = run("--source", tmp_path / "in")
    assert outcome.status == 0 and told in outcome.stderr


def test_a_partner_that_is_refused_is_there(run: Callable[..., Any], tmp_path: Path) -> None:
    for number in range(4):
        for side, name in enumerate("AB"):
            save(tmp_path / f"in/{name}/{number}.png", city_pair(1, number, 32, 32)[side])
    (tmp_path / "in/A/3.png").write_bytes(bytes(100_000))
    (tmp_path / "in/A/2.png").unlink()
    outcome = run("--source", tmp_path / "in", "--max-bytes", 50_000)
    assert outcome.status == 3
    rows = {Path(row["source_uri"]).name: row for row in pq.read_table(tmp_path / "out/errors").to_pylist()}
    messages = [row["message"] for row in rows.values() if row["error"] == "Unmatched"]
    assert sorted(messages) == [
        "pair '2' has no a: A/ holds no image of that name",
        "pair '3' has no a: A/ holds no image of that name but one that is refused, as another row says",
    ]
