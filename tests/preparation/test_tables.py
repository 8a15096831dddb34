"""Pairs in Parquet, of which one file among others is not as the others are."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

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
    assert "its images are in jpg_1; those of the files before in jpg_0, jpg_1" in found.bad[1].message


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
