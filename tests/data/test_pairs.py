import numpy as np
import pyarrow as pa
import pytest

from p2p.data.augment import jitter
from p2p.data.pairs import PAIR_SCHEMA, open_pairs, part_name, read_rows
from p2p.errors import BadInputError, NotFoundError, UsageError
from p2p.storage.filesystems import write_table
from p2p.storage.images import encode


def picture(value: int, height: int = 10, width: int = 12) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def write_part(uri: str, first: int, count: int, height: int = 10, width: int = 12) -> None:
    """Pair n has A of value n and B of value 100 + n."""
    numbers = range(first, first + count)
    columns = {
        "pair_id": [f"pair/{n}" for n in numbers],
        "a": [encode(picture(n, height, width)) for n in numbers],
        "b": [encode(picture(100 + n, height, width)) for n in numbers],
        "width": [width] * count,
        "height": [height] * count,
        "source_uri": ["made"] * count,
    }
    write_table(uri, pa.table(columns, schema=PAIR_SCHEMA), row_group_size=4)


@pytest.fixture
def prepared(tmp_path):
    write_part(str(tmp_path / "train" / part_name(0)), 0, 10)
    write_part(str(tmp_path / "train" / part_name(1)), 10, 5)
    return str(tmp_path)


def test_a_prepared_split_is_indexed_by_row_groups_and_read_in_order(prepared):
    pairs = open_pairs(prepared, "train")
    assert pairs.group_rows.tolist() == [4, 4, 2, 4, 1]
    assert len(pairs) == 15
    assert pairs.smallest_side == 10
    found = list(read_rows(pairs, pairs.rows()))
    assert [pair["pair_id"] for pair in found] == [f"pair/{n}" for n in range(15)]
    assert all((pair["a"] == n).all() and (pair["b"] == 100 + n).all() for n, pair in enumerate(found))
    assert [pair["pair_id"] for pair in read_rows(pairs, pairs.rows(6))] == [f"pair/{n}" for n in range(6)]


def test_a_prepared_split_is_read_from_s3_without_fetching_more_than_asked(s3):
    import s3fs

    write_part(s3.uri("train", part_name(0)), 0, 10)
    pairs = open_pairs(s3.uri(), "train")
    assert [pair["pair_id"] for pair in read_rows(pairs, [(2, 1), (0, 3), (2, 1)])] == ["pair/9", "pair/3", "pair/9"]
    assert s3fs.S3FileSystem().exists(s3.uri("train", part_name(0)))


def test_rows_come_in_the_order_asked_for(prepared):
    pairs = open_pairs(prepared, "train")
    rows = [(4, 0), (0, 3), (1, 1), (0, 0)]
    assert [pair["pair_id"] for pair in read_rows(pairs, rows)] == ["pair/14", "pair/3", "pair/5", "pair/0"]


def test_a_raw_folder_of_combined_images_is_taken_too(tmp_path, make_pairs):
    make_pairs(tmp_path / "raw" / "train", 3, size=20)
    pairs = open_pairs(str(tmp_path / "raw"), "train", raw_load_size=16)
    assert (len(pairs), pairs.smallest_side) == (3, 16)
    assert [pair["a"].shape for pair in read_rows(pairs, pairs.rows())] == [(16, 16, 3)] * 3
    with pytest.raises(NotFoundError, match=r"val: no pairs there.*there are train"):
        open_pairs(str(tmp_path / "raw"), "val")


def test_a_combined_image_without_halves_is_named(tmp_path):
    for name, width in (("1", 24), ("2", 25)):
        (tmp_path / f"{name}.png").write_bytes(encode(picture(0, 12, width)))
    with pytest.raises(BadInputError, match=r"pair '2' in .*2\.png: .*even width, this one is 25 wide"):
        list(read_rows(open_pairs(str(tmp_path), "train", raw_load_size=16), [(1, 0)]))


def test_raw_sides_of_different_shapes_are_no_pair(tmp_path):
    for name, width in (("A/1", 12), ("B/1", 24), ("A/2", 12), ("B/2", 12)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.png").write_bytes(encode(picture(0, 12, width)))
    (tmp_path / "B/2.png").write_bytes(encode(picture(0, 24, 24)))
    pairs = open_pairs(str(tmp_path), "train", raw_load_size=16)
    [scaled] = read_rows(pairs, [(1, 0)])
    assert scaled["a"].shape == scaled["b"].shape == (16, 16, 3)
    with pytest.raises(BadInputError, match=r"pair '1': a is 12x12, b is 24x12; their .* differ.*prepare") as caught:
        list(read_rows(pairs, [(0, 0)]))
    assert caught.value.kind == "MismatchedSizes"


def test_a_raw_image_whose_name_is_no_text_is_read_like_any_other(tmp_path, make_pairs):
    make_pairs(tmp_path, 1, size=20)
    [image] = tmp_path.iterdir()
    image.rename(tmp_path / "caf\udce9.png")
    pairs = open_pairs(str(tmp_path), "train", raw_load_size=16)
    [pair] = read_rows(pairs, pairs.rows())
    assert pair["pair_id"] == r"caf\xe9"
    jitter(pair["a"], pair["b"], 16, seed=0, epoch=1, pair_id=pair["pair_id"])


def test_images_beside_no_split_folders_are_for_training(tmp_path, make_pairs):
    make_pairs(tmp_path / "raw", 3, size=20)
    assert len(open_pairs(str(tmp_path / "raw"), "train")) == 3
    with pytest.raises(NotFoundError):
        open_pairs(str(tmp_path / "raw"), "val")


def test_images_beside_the_folder_of_another_split_are_for_training(tmp_path, make_pairs):
    make_pairs(tmp_path / "raw", 3, size=20)
    make_pairs(tmp_path / "raw" / "test", 2, size=20)
    assert [len(open_pairs(str(tmp_path / "raw"), split)) for split in ("train", "test")] == [3, 2]


def test_a_raw_folder_of_two_sides_is_paired_by_its_layout_and_split(tmp_path, make_image):
    for name, height in (("train_label/1", 20), ("train_img/1", 40), ("val_label/2", 20), ("val_img/2", 20)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.png").write_bytes(make_image(height, height, seed=height))
    pairs = open_pairs(str(tmp_path), "val", raw_load_size=16)
    assert pairs.layout is not None and pairs.layout.is_certain
    [pair] = read_rows(pairs, pairs.rows())
    assert (pair["pair_id"], pair["a"].shape, pair["b"].shape) == ("2", (16, 16, 3), (16, 16, 3))
    [pair] = read_rows(open_pairs(str(tmp_path), "train", raw_load_size=16), [(0, 0)])
    assert not np.array_equal(pair["a"], pair["b"])


def test_images_of_a_raw_folder_that_become_no_pair_are_told(tmp_path, make_image, caplog):
    for name in ("A/1.png", "A/2.png", "A/3.png", "B/1.png", "B/1.jpg", "B/2.png", "AB/1.png", "val/A/7.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert len(open_pairs(str(tmp_path), "train")) == 2
    [record] = caplog.records
    assert record.levelname == "WARNING"
    found = "1 without a partner: A/ (1); 1 of a name that another has: B/ (1); 1 neither A nor B of a pair: AB/ (1)"
    assert f"{tmp_path}: train: left out: {found}" in record.getMessage()


def test_other_parquet_is_refused_by_the_column_it_lacks(tmp_path):
    write_table(str(tmp_path / "train" / part_name(0)), pa.table({"pair_id": ["x"], "a": [b""]}))
    with pytest.raises(UsageError, match="has no column 'b'"):
        open_pairs(str(tmp_path), "train")
    (tmp_path / "train" / part_name(0)).write_bytes(b"PAR1 cut off")
    with pytest.raises(UsageError, match="cannot be read as Parquet"):
        open_pairs(str(tmp_path), "train")


def test_a_damaged_image_is_named(tmp_path):
    columns = {"pair_id": ["x/1"], "a": [b"nonsense"], "b": [encode(picture(1))]}
    columns |= {"width": [12], "height": [10], "source_uri": ["made"]}
    write_table(str(tmp_path / "train" / part_name(0)), pa.table(columns, schema=PAIR_SCHEMA))
    with pytest.raises(
        BadInputError, match=r"pair 'x/1' in .*part-00000.parquet: this is text .*not one of the images"
    ):
        list(read_rows(open_pairs(str(tmp_path), "train"), [(0, 0)]))
