"""Pairs in Parquet, of which one file among others is not as the others are."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from p2p.data.matching import LayoutChoice
from p2p.errors import UsageError
from p2p.preparation.tables import pair_tables


def test_a_file_of_another_kind_is_a_bad_row(tmp_path: Path) -> None:
    sides = {"a": [b"1", b"2"], "b": [b"3", b"4"]}
    pq.write_table(pa.table(sides), tmp_path / "good.parquet")
    pq.write_table(pa.table({"x": [b"1"], "y": [b"2"], "z": [b"3"]}), tmp_path / "many.parquet")
    pq.write_table(pa.table({"n": [1]}), tmp_path / "none.parquet")
    nothing = pa.nulls(1_000_000, pa.binary())
    pq.write_table(pa.table({"a": nothing, "b": nothing}), tmp_path / "nothing.parquet")
    found = pair_tables(str(tmp_path), "auto", 0.0)
    assert [pair.pair_id for pair in found.pairs] == ["good/0", "good/1"]
    kinds = {Path(row.source_uri).stem: row.error for row in found.bad}
    assert kinds == {"many": "WrongColumns", "none": "WrongColumns", "nothing": "DamagedFile"}
    (tmp_path / "good.parquet").unlink()
    with pytest.raises(UsageError, match="needs columns a and b"):
        pair_tables(str(tmp_path), "auto", 0.0)


def test_columns_of_several_pairs_are_refused(tmp_path: Path) -> None:
    columns = ("input_0", "target_0", "input_1", "target_1")
    pq.write_table(pa.table({name: [b"1"] for name in columns}), tmp_path / "several.parquet")
    with pytest.raises(UsageError, match="its columns are input_0, target_0, input_1, target_1"):
        pair_tables(str(tmp_path), "auto", 0.0)


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 4), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def test_columns_of_other_bytes_are_no_side(tmp_path: Path) -> None:
    columns = {"png": [png(1), png(2)], "json": [b"{}", b"{}"], "embedding": [b"1234", None]}
    pq.write_table(pa.table(columns), tmp_path / "shard.parquet")
    found = pair_tables(str(tmp_path), "auto", 0.0)
    assert found.layout.sides == ("left half of column png", "right half of column png")
    columns["left"] = [b"damaged", png(3)]
    pq.write_table(pa.table(columns), tmp_path / "shard.parquet")
    assert pair_tables(str(tmp_path), "auto", 0.0).layout.sides == ("column png", "column left")


def test_long_text_says_no_split(tmp_path: Path) -> None:
    columns = {"a": [b"1"] * 2, "b": [b"2"] * 2, "id": ["x", "y"], "split": ["val", "how it was split " * 100]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    found = pair_tables(str(tmp_path), "auto", 0.0)
    assert [(pair.pair_id, pair.split) for pair in found.pairs] == [("x", "train"), ("y", "train")] and not found.bad


def test_a_row_without_bytes_says_nothing_of_its_column(tmp_path: Path) -> None:
    columns = {"jpg_0": [None, png(2)], "jpg_1": [png(3), png(4)]}
    pq.write_table(pa.table(columns), tmp_path / "0.parquet")
    pq.write_table(pa.table({**columns, "json": [b"{}", b"{}"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({**columns, "mask": [None, png(1)]}), tmp_path / "2.parquet")
    pq.write_table(pa.table({"jpg_1": [png(5), png(6)]}), tmp_path / "3.parquet")
    found = pair_tables(str(tmp_path), "auto", 0.0)
    assert found.layout.sides == ("column jpg_0", "column jpg_1")
    assert [pair.pair_id for pair in found.pairs] == ["0/0", "0/1", "1/0", "1/1"]
    assert [(Path(row.source_uri).stem, row.error) for row in found.bad] == [(n, "WrongColumns") for n in ("2", "3")]
    assert "its images are in jpg_1; those of the other files in jpg_0, jpg_1" in found.bad[1].message


def test_a_single_column_may_have_another_name_in_each_file(tmp_path: Path) -> None:
    for name in ("image", "img"):
        pq.write_table(pa.table({name: [png(1), png(2)]}), tmp_path / f"{name}.parquet")
    found = pair_tables(str(tmp_path), "combined", 0.0)
    assert [pair.pair_id for pair in found.pairs] == ["image/0", "image/1", "img/0", "img/1"] and not found.bad


def test_a_column_says_the_split(tmp_path: Path) -> None:
    columns = {"a": [b"1"] * 4, "b": [b"2"] * 4, "id": list("wxyz"), "split": ["train", "validation", "test", None]}
    for left_out, ids in (((), list("wxyz")), (("id",), ["val-0/0", "val-0/1", "val-0/2", "val-0/3"])):
        table = pa.table({name: values for name, values in columns.items() if name not in left_out})
        pq.write_table(table, tmp_path / "val-0.parquet")
        pairs = pair_tables(str(tmp_path), "auto", 0.0).pairs
        assert [(pair.pair_id, pair.split) for pair in pairs] == list(
            zip(ids, ("train", "val", "test", "val"), strict=True)
        )


def test_ids_that_begin_anew_in_each_file_are_below_its_path(tmp_path: Path) -> None:
    for folder in ("year=1/split=train", "year=2/split=train", "year=2/split=val"):
        (tmp_path / folder).mkdir(parents=True)
        pq.write_table(pa.table({"a": [b"1"] * 2, "b": [b"2"] * 2, "id": ["7", None]}), tmp_path / folder / "p.parquet")
    found = pair_tables(str(tmp_path), "auto", 0.0)
    assert not found.bad
    assert [pair.pair_id for pair in found.pairs if pair.split == "train"] == [
        f"year={year}/split=train/p/{name}" for year in (1, 2) for name in ("7", "1")
    ]
    (tmp_path / "year=2/split=train/p.parquet").unlink()
    assert {pair.pair_id for pair in pair_tables(str(tmp_path), "auto", 0.0).pairs} >= {"7"}


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_sides(path: Path, image: list[bytes | None], mask: list[bytes | None], kind: pa.DataType) -> None:
    """Columns as Hugging Face writes them, or of plain bytes; null where there is no image."""

    def column(values: list[bytes | None]) -> pa.Array:
        wrap = pa.types.is_struct(kind)
        return pa.array([{"bytes": data, "path": None} if data and wrap else data for data in values], kind)

    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"image": column(image), "mask": column(mask)}), path)


@pytest.mark.parametrize("kind", [STRUCT, pa.binary()])
def test_a_split_whose_labels_are_not_public_is_left_out(tmp_path: Path, kind: pa.DataType) -> None:
    write_sides(tmp_path / "data/test-00000-of-00001.parquet", [png(1)] * 9, [None] * 9, kind)
    write_sides(tmp_path / "data/train-00000-of-00001.parquet", [png(2), png(3)], [png(4), png(5)], kind)
    write_sides(tmp_path / "data/validation-00000-of-00001.parquet", [png(6)], [png(7)], kind)
    found = pair_tables(str(tmp_path), "auto", 0.0)
    assert found.counts() == {"train": 2, "val": 1, "test": 0} and not found.bad
    assert found.layout.sides == ("column mask", "column image") and found.layout.is_certain
    assert found.left_out.endswith("test-00000-of-00001.parquet (9 rows without images in column mask)")
    pq.write_table(pa.table({"image": [png(1)] * 9}), tmp_path / "data/test-00000-of-00001.parquet")
    assert pair_tables(str(tmp_path), "auto", 0.0).left_out == found.left_out


def test_a_file_without_a_side_in_a_split_with_pairs_is_bad_for_the_true_reason(tmp_path: Path) -> None:
    write_sides(tmp_path / "data/train-00000-of-00002.parquet", [png(1)], [None], STRUCT)
    write_sides(tmp_path / "data/train-00001-of-00002.parquet", [png(2)], [png(3)], STRUCT)
    found = pair_tables(str(tmp_path), "auto", 0.0)
    assert len(found.pairs) == 1 and not found.left_out
    [bad] = found.bad
    assert bad.error == "WrongColumns" and "column 'mask' holds nothing in any row" in bad.message


def test_the_columns_of_most_rows_are_the_sides_whichever_file_comes_first(tmp_path: Path) -> None:
    pq.write_table(pa.table({"input": [png(1)], "preview": [png(1)]}), tmp_path / "0.parquet")
    for name in ("1", "2"):
        pq.write_table(pa.table({"input": [png(1)], "target": [png(2)]}), tmp_path / f"{name}.parquet")
    found = pair_tables(str(tmp_path), "auto", 0.0)
    assert [pair.pair_id for pair in found.pairs] == ["1/0", "2/0"]
    assert [Path(row.source_uri).stem for row in found.bad] == ["0"]


def test_two_columns_are_no_combined_images_of_the_other_files(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [png(1)] * 6}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"image": [png(1)] * 3, "thumb": [png(1)] * 3}), tmp_path / "2.parquet")
    found = pair_tables(str(tmp_path), "auto", 0.0)
    assert [(pair.pair_id.partition("/")[0], pair.b) for pair in found.pairs] == [("1", None)] * 6
    assert [(Path(row.source_uri).stem, row.error) for row in found.bad] == [("2", "WrongColumns")]


def test_what_a_second_column_holds_instead_of_images_is_said(tmp_path: Path) -> None:
    paths = pa.array([{"bytes": None, "path": "m/1.png"}], STRUCT)
    columns = {
        "paths": paths,
        "nothing": pa.array([None], STRUCT),
        "digest": [b"0123456789abcdef"],
        "url": ["http://x"],
    }
    pq.write_table(pa.table({"image": [png(1)], **columns}), tmp_path / "x.parquet")
    seen = pair_tables(str(tmp_path), "auto", 0.0).layout.seen
    assert seen.startswith("one column of images, image, in ")
    assert "column 'paths' holds paths and no bytes" in seen and "column 'nothing' holds nothing in any row" in seen
    assert "column 'digest' holds bytes that are no images" in seen and "url" not in seen


@pytest.mark.parametrize("layout", ["auto", "combined"])
def test_one_of_two_columns_may_hold_other_bytes(tmp_path: Path, layout: LayoutChoice) -> None:
    pq.write_table(pa.table({"digest": [b"0123456789abcdef"], "image": [png(1)]}), tmp_path / "x.parquet")
    found = pair_tables(str(tmp_path), layout, 0.0)
    assert found.layout.sides == ("left half of column image", "right half of column image")


def test_a_file_whose_first_rows_say_nothing_does_not_decide_for_the_others(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"image": [png(1)] * 9, "digest": [None] * 8 + [b"0123456789abcdef"]}), tmp_path / "0.parquet"
    )
    pq.write_table(pa.table({"image": [png(1)] * 10, "digest": [b"0123456789abcdef"] * 10}), tmp_path / "1.parquet")
    found = pair_tables(str(tmp_path), "combined", 0.0)
    assert found.layout.sides == ("left half of column image", "right half of column image")
    assert len(found.pairs) == 19


def test_two_columns_without_words_for_sides_must_look_like_pairs(tmp_path: Path) -> None:
    for names, are_certain in ((("image", "next"), False), (("a", "b"), True), (("image", "mask"), True)):
        pq.write_table(pa.table({name: [png(1)] for name in names}), tmp_path / "x.parquet")
        assert pair_tables(str(tmp_path), "auto", 0.0).layout.is_certain is are_certain
        assert pair_tables(str(tmp_path), "folders", 0.0).layout.is_certain
    pq.write_table(pa.table({"image": [png(1)], "next": [png(2)]}), tmp_path / "x.parquet")
    assert "pass --layout folders" in pair_tables(str(tmp_path), "auto", 0.0).layout.seen


def test_columns_of_images_that_are_no_side_are_told(tmp_path: Path) -> None:
    columns = {name: [png(1)] for name in ("source_img", "mask_img", "target_img")}
    for names, layout, left_out in (
        (columns, "auto", "column mask_img"),
        (
            {"a": [png(1)], "b": [png(2)], "preview": [png(3)], "digest": [b"0123456789abcdef"]},
            "auto",
            "column preview",
        ),
        ({"image": [png(1)], "thumb": [png(2)]}, "combined", "column thumb"),
        ({"input": [png(1)], "target": [png(2)]}, "auto", ""),
    ):
        pq.write_table(pa.table(names), tmp_path / "x.parquet")
        found = pair_tables(str(tmp_path), cast(LayoutChoice, layout), 0.0)
        assert found.left_out == left_out and len(found.pairs) == 1


def test_three_columns_of_images_are_named_and_what_to_do(tmp_path: Path) -> None:
    pq.write_table(pa.table({name: [png(1)] for name in ("image", "mask", "depth")}), tmp_path / "x.parquet")
    with pytest.raises(
        UsageError, match=r"3 .* \(image, mask, depth\), so call two of these a and b, or leave the oth"
    ):
        pair_tables(str(tmp_path), "auto", 0.0)


@pytest.mark.parametrize(
    "names, side_a", [(("pixel_values", "label"), "label"), (("image", "condition"), "condition")], ids=str
)
def test_columns_that_are_called_otherwise_than_folders(tmp_path: Path, names: tuple[str, ...], side_a: str) -> None:
    pq.write_table(pa.table({name: [png(1)] for name in names}), tmp_path / "x.parquet")
    layout = pair_tables(str(tmp_path), "auto", 0.0).layout
    assert layout.sides[0] == f"column {side_a}" and layout.is_certain


VALUES: dict[str, tuple[pa.Array, str]] = {
    "base64": (pa.array([None, base64.b64encode(png(1)).decode()]), "holds images in base64, as text; decode them"),
    "paths": (pa.array(["img/0.png", "img/1.png"]), "holds addresses and no bytes; give the folder of those images"),
    "addresses": (pa.array(["https://x/0?size=9"] * 2), "holds addresses and no bytes"),
    "padded": (pa.array([png(1).ljust(200, b"\0")] * 2, pa.binary(200)), "holds 200 bytes in every row, a PNG perhaps"),
    "raw": (pa.array([bytes(200)] * 2, pa.binary(200)), "holds 200 bytes in every row: raw pixels perhaps"),
}


@pytest.mark.parametrize("name", ["a", "image", "url"])
@pytest.mark.parametrize("kind", VALUES)
def test_a_value_says_why_a_column_holds_no_images_and_not_its_name(tmp_path: Path, kind: str, name: str) -> None:
    pq.write_table(pa.table({name: VALUES[kind][0]}), tmp_path / "x.parquet")
    with pytest.raises(UsageError, match=f"column '{name}' {VALUES[kind][1]}") as raised:
        pair_tables(str(tmp_path), "auto", 0.0)
    assert "if it is base64" not in str(raised.value)
