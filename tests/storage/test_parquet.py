"""Parquet of unknown origin: what could run code is refused before a value is read, everything plain is read."""

from __future__ import annotations

import base64
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import PICKLE_VARIANTS, pickled_table

from p2p.errors import DamagedFileError, UnsafeFileError
from p2p.storage.parquet import open_parquet, read_parquet


@pytest.mark.parametrize("variant", PICKLE_VARIANTS)
@pytest.mark.parametrize("ray_is_imported", [False, True])
def test_a_column_that_could_run_code_is_refused_unread(tmp_path: Path, variant: str, ray_is_imported: bool) -> None:
    if ray_is_imported:
        import ray.data  # noqa: F401
    ran = tmp_path / "ran"
    pq.write_table(pickled_table(variant, ran), tmp_path / "x.parquet")
    with pytest.raises(UnsafeFileError, match="could run code"), open_parquet(str(tmp_path / "x.parquet")):
        pass
    assert not ran.exists()


def test_importing_p2ps_session_leaves_no_type_of_ray_registered(tmp_path: Path) -> None:
    import p2p.data.session  # noqa: F401

    ran = tmp_path / "ran"
    pq.write_table(pickled_table("plain", ran), tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet")  # by any reader of this process, ours or not
    assert table.to_pylist() and not ran.exists()


def test_plain_values_of_every_kind_are_read(tmp_path: Path) -> None:
    name = uuid.uuid4()
    table = pa.table(
        {
            "id": pa.array([name.bytes], pa.uuid()),
            "json": pa.array(['{"a": 1}'], pa.json_()),
            "flag": pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1], pa.int8())),
            "nested": pa.array([[{"bytes": b"x", "names": {"a": "b"}}]]),
            "kind": pa.array(["b"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    (row,) = read_parquet(str(tmp_path / "x.parquet"), ["id", "json", "flag", "nested", "kind"]).to_pylist()
    assert row == {
        "id": name,
        "json": '{"a": 1}',
        "flag": True,
        "nested": [{"bytes": b"x", "names": {"a": "b"}}],
        "kind": "b",
    }


def test_an_extension_type_whose_own_description_is_broken_is_damage(tmp_path: Path) -> None:
    class Fussy(pa.ExtensionType):
        def __init__(self) -> None:
            super().__init__(pa.binary(), "test.fussy")

        def __arrow_ext_serialize__(self) -> bytes:
            return b"broken"

        @classmethod
        def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> Fussy:
            raise KeyError(serialized)

    column = pa.ExtensionArray.from_storage(Fussy(), pa.array([b"x"]))
    pq.write_table(pa.table({"a": column}), tmp_path / "x.parquet")
    pa.register_extension_type(Fussy())
    try:
        with pytest.raises(DamagedFileError), open_parquet(str(tmp_path / "x.parquet")):
            pass
    finally:
        pa.unregister_extension_type("test.fussy")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all", b"PAR1" + bytes(100) + b"PAR1"])
def test_what_is_no_parquet_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(DamagedFileError, match="cannot be read as Parquet"), open_parquet(str(tmp_path / "x.parquet")):
        pass


def test_a_damaged_page_is_told_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": [b"x" * 1000] * 100}), path, use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[20:60] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(DamagedFileError):
        read_parquet(str(path), ["a"])
    with pytest.raises(DamagedFileError, match="has no column 'b'"):
        read_parquet(str(path), ["b"])


def test_text_that_is_no_utf8_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    text = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"]).buffers())
    pq.write_table(pa.table({"id": text}), path)
    with pytest.raises(DamagedFileError), open_parquet(str(path)) as file:
        file.read(columns=["id"])["id"].to_pylist()


def test_an_arrow_schema_that_lies_about_the_file_is_harmless(tmp_path: Path) -> None:
    """The file's own columns are plain; the Arrow schema beside them claims an extension type."""
    ran = tmp_path / "ran"
    claimed = pickled_table("plain", ran).schema
    honest = pa.table({"image": pa.array([b"x"], pa.large_binary())})
    path = tmp_path / "x.parquet"
    with pq.ParquetWriter(path, honest.schema, store_schema=False) as writer:
        writer.write_table(honest)
        writer.add_key_value_metadata({"ARROW:schema": base64.b64encode(claimed.serialize()).decode()})
    with pytest.raises(UnsafeFileError), open_parquet(str(path)):
        pass
    assert not ran.exists()
