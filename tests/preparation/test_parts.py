"""One part, without Ray: what is stored, in which form, and which rows are bad."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from p2p.data.pairs import PAIR_SCHEMA, ROW_GROUP_PAIRS
from p2p.preparation.locations import Drawing, File, SourceReader
from p2p.preparation.pairing import PairRef
from p2p.preparation.parts import MAX_PART_PAIRS, Part, PartReport, cut_into_parts, write_part
from p2p.storage import images
from p2p.synthetic.pairs import PALETTE, city_pair

MakeImage = Callable[..., bytes]


def store(tmp_path: Path, load_size: int, *pairs: tuple[bytes, bytes | None]) -> tuple[PartReport, list[dict]]:
    refs = []
    for index, sides in enumerate(pairs):
        files = []
        for name, data in zip("ab", sides, strict=True):
            if data is not None:
                (tmp_path / f"{index}.{name}").write_bytes(data)
                files.append(File(str(tmp_path / f"{index}.{name}")))
        refs.append(PairRef(f"p{index}", "train", files[0], files[1] if files[1:] else None, 1))
    report = write_part(Part("train", 3, tuple(refs)), str(tmp_path / "out"), load_size, SourceReader())
    path = tmp_path / "out/train/part-00003.parquet"
    return report, pq.read_table(path).to_pylist() if path.exists() else []


def label_png(height: int, width: int, mode: str = "P") -> bytes:
    labels = (np.arange(height * width).reshape(height, width) // 7 % 5).astype(np.uint8)
    image = Image.fromarray(labels, "P")
    image.putpalette([c for k in range(5) for c in (k * 50, 255 - k * 50, k * 20)])
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_a_combined_image_is_halved_before_anything_else(tmp_path: Path) -> None:
    whole = photograph(10, 24)
    report, rows = store(tmp_path, 0, (images.encode(whole), None))
    assert report.pairs == 1
    assert np.array_equal(images.decode(rows[0]["a"]), whole[:, :12])
    assert np.array_equal(images.decode(rows[0]["b"]), whole[:, 12:])
    assert (rows[0]["pair_id"], rows[0]["width"], rows[0]["height"]) == ("p0", 12, 10)
    assert rows[0]["source_uri"] == str(tmp_path / "0.a")


def test_a_picture_of_another_shape_than_the_combined_pairs_must_look_like_one(tmp_path: Path) -> None:
    photo, plan = city_pair(1, 0, 64, 64)
    wholes = [photo, np.concatenate([photo, plan], 1)[:60], np.concatenate([photo, plan], 1)[:40], photo[:36]]
    refs = []
    for index, whole in enumerate(wholes):
        (tmp_path / f"{index}.png").write_bytes(images.encode(whole))
        refs.append(PairRef(str(index), "train", File(str(tmp_path / f"{index}.png")), None, 1, shape=1.0))
    report = write_part(Part("train", 0, tuple(refs)), None, 0, SourceReader())
    assert [Path(row.source_uri).stem for row in report.bad] == ["0", "3"]
    assert {row.error for row in report.bad} == {"OtherShape"}
    assert report.bad[0].message.startswith("64x64 is no combined pair: most here are 2.00 times as wide as high")


def test_resized_sides_are_bicubic_squares_and_no_colour_crosses_the_seam(tmp_path: Path) -> None:
    whole = np.zeros((40, 80, 3), np.uint8)
    whole[:, 40:] = 255
    _, rows = store(tmp_path, 16, (images.encode(whole), None))
    assert images.decode(rows[0]["a"]).max() == 0
    assert images.decode(rows[0]["b"]).min() == 255
    side = photograph(30, 30)
    _, rows = store(tmp_path, 16, (images.encode(side), label_png(30, 30)))
    assert images.decode(rows[0]["a"]).shape == (16, 16, 3)
    expected = images.resize(images.decode(label_png(30, 30)), 16, 16)
    assert np.array_equal(images.decode(rows[0]["b"]), expected), "drawn pictures are stored losslessly"
    assert rows[0]["a"][:2] == b"\xff\xd8", "photographs are stored as JPEG"


def test_pairs_of_their_own_size_keep_their_bytes_if_any_reader_sees_the_same(
    tmp_path: Path, make_image: MakeImage
) -> None:
    jpeg = make_image(12, 20, "JPEG", quality=80)
    _, rows = store(tmp_path, 0, (label_png(12, 20, "RGB"), jpeg), (label_png(12, 20, "P"), make_image(12, 20, "WEBP")))
    assert (rows[0]["a"], rows[0]["b"]) == (label_png(12, 20, "RGB"), jpeg)
    assert np.array_equal(images.decode(rows[1]["a"]), images.decode(label_png(12, 20)))
    with Image.open(io.BytesIO(rows[1]["a"])) as stored:
        assert (stored.format, stored.mode) == ("PNG", "RGB")
    assert np.array_equal(images.decode(rows[1]["b"]), images.decode(make_image(12, 20, "WEBP")))


def test_the_colours_of_a_drawn_side_are_its_palette_measured_before_resizing(tmp_path: Path) -> None:
    report, _ = store(tmp_path, 9, (label_png(30, 30), images.encode(photograph(30, 30))))
    assert report.colours_a == {(k * 50, 255 - k * 50, k * 20) for k in range(5)}
    assert report.colours_b is None


BAD = {
    "cut off": ("DamagedImage", lambda good: good[: len(good) // 2]),
    "text": ("NotAnImage", lambda good: b"hello, I am text"),
    "empty": ("EmptyFile", lambda good: b""),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("side", [0, 1])
def test_a_bad_side_becomes_a_row_that_names_its_file_and_the_others_are_stored(
    case: str, side: int, tmp_path: Path, make_image: MakeImage
) -> None:
    good = make_image(16, 16, "JPEG")
    error, spoil = BAD[case]
    spoiled = [good, good]
    spoiled[side] = spoil(good)
    report, rows = store(tmp_path, 8, (good, good), (spoiled[0], spoiled[1]), (good, good))
    assert [row["pair_id"] for row in rows] == ["p0", "p2"]
    assert [(row.source_uri, row.error) for row in report.bad] == [(str(tmp_path / f"1.{'ab'[side]}"), error)]


def test_sizes_that_do_not_match_are_told_with_both_sizes_and_the_way_out(
    tmp_path: Path, make_image: MakeImage
) -> None:
    report, rows = store(tmp_path, 0, (make_image(60, 60), make_image(51, 51)))
    assert not rows
    assert not (tmp_path / "out").exists(), "a part without pairs leaves no file"
    assert report.bad[0].error == "MismatchedSizes"
    expected = "pair 'p0': a is 60x60, b is 51x51; pass --load-size 286, or pass --max-bad-fraction 0.01"
    assert report.bad[0].message == expected


def test_when_resizing_sizes_may_differ_but_shapes_may_not(tmp_path: Path, make_image: MakeImage) -> None:
    report, rows = store(
        tmp_path, 8, (make_image(60, 60), make_image(30, 30)), (make_image(60, 60), make_image(60, 50))
    )
    assert [row["pair_id"] for row in rows] == ["p0"]
    assert [row.error for row in report.bad] == ["MismatchedSizes"]
    assert "--load-size" not in report.bad[0].message


def test_an_odd_combined_width_and_a_vanished_file_are_bad_rows(tmp_path: Path, make_image: MakeImage) -> None:
    report, _ = store(tmp_path, 0, (make_image(8, 15), None))
    assert report.bad[0].error == "OddWidth"
    gone = PairRef("x", "val", File(str(tmp_path / "gone.png")), None, 1)
    assert write_part(Part("val", 0, (gone,)), str(tmp_path), 0, SourceReader()).bad[0].error == "Missing"


def test_drawings_are_stored_as_drawn(tmp_path: Path) -> None:
    drawing = PairRef("city", "test", Drawing(3, 5, 40, 50), None, 1)
    write_part(Part("test", 0, (drawing,)), str(tmp_path), 0, SourceReader())
    row = pq.read_table(tmp_path / "test/part-00000.parquet").to_pylist()[0]
    aerial, city_map = city_pair(3, 5, 40, 50)
    assert np.array_equal(images.decode(row["a"]), aerial)
    assert np.array_equal(images.decode(row["b"]), city_map)
    assert len(PALETTE) == 6


def test_files_have_the_schema_and_row_groups_that_readers_expect(tmp_path: Path, make_image: MakeImage) -> None:
    pair = (make_image(4, 4), make_image(4, 4))
    store(tmp_path, 0, *[pair] * (ROW_GROUP_PAIRS + 3))
    with pq.ParquetFile(tmp_path / "out/train/part-00003.parquet") as file:
        assert file.schema_arrow.equals(PAIR_SCHEMA)
        assert [file.metadata.row_group(k).num_rows for k in range(2)] == [ROW_GROUP_PAIRS, 3]
        assert file.metadata.row_group(0).column(1).compression == "UNCOMPRESSED"


@given(
    st.lists(st.tuples(st.sampled_from(["train", "val"]), st.sampled_from([1, 10**6, 2 * 10**8])), max_size=300),
    st.sampled_from([1, 300]),
)
def test_parts_hold_every_pair_once_in_order_within_their_limits(kinds: list[tuple[str, int]], copies: int) -> None:
    pairs = [PairRef(str(i), split, File("x"), None, size) for i, (split, size) in enumerate(kinds * copies)]
    parts = cut_into_parts(pairs)
    for split in ("train", "val"):
        own = [part for part in parts if part.split == split]
        assert [part.number for part in own] == list(range(len(own)))
        assert [pair for part in own for pair in part.pairs] == [pair for pair in pairs if pair.split == split]
    for part in parts:
        assert 1 <= len(part.pairs) <= MAX_PART_PAIRS
        assert len(part.pairs) == 1 or sum(pair.weight for pair in part.pairs) <= 128 * 2**20


def test_a_file_that_pillow_does_not_know_is_a_pair_like_any_other(tmp_path: Path) -> None:
    """libjpeg passes over short segments, and p2p reads TIFFs of 16 bits in three channels itself."""
    plain = images.encode(photograph(16, 16), "jpeg")
    short = [plain[:2] + b"\xff" + marker + plain[2:] for marker in (b"\xe0\x00\x06JFIF", b"\xee\x00\x08Adobe\0")]
    short.append(plain[:2] + b"\xff\xe2\x00\x0eICC_PROFILE\0" + plain[2:])
    deep = images.encode_exactly(photograph(16, 16).astype(np.uint16) * 257)
    for load_size in (0, 16):
        report, rows = store(tmp_path, load_size, *[(data, plain) for data in (*short, deep)])
        assert (report.pairs, report.bad) == (4, [])
        for row in rows:
            with Image.open(io.BytesIO(row["a"])) as stored:  # by any reader
                stored.load()
