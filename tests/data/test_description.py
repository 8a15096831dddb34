"""What a data set says of itself, and what can be read of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2p.data.description import Description, SideDescription, formats_for, read_description, write_description
from p2p.errors import UsageError
from p2p.model.config import ModelConfig
from p2p.storage.pixels import RGB, PixelFormat

PALETTE = ((0, 0, 0), (255, 0, 0))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    written = Description(str(tmp_path), SideDescription(RGB, PALETTE), SideDescription(PixelFormat(12, 16)), 286)
    write_description(written, layout="folders")
    assert read_description(str(tmp_path)) == written


def test_a_raw_folder_is_rgb_without_palettes(tmp_path: Path) -> None:
    assert read_description(str(tmp_path)) == Description(str(tmp_path), SideDescription(RGB), SideDescription(RGB))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "[" * 100_000,
        '{"pixels_a": "0x8"}',
        '{"pixels_a": 3}',
        '{"pixels_a": ["3x8"]}',
        '{"palette_b": [[1, 2]]}',
        '{"palette_b": [[1, 2, 256]]}',
        '{"palette_b": [[1, 2, Infinity]]}',
        '{"palette_b": [["1", "2", "3"]]}',
        '{"palette_b": 5}',
        '{"load_size": "286"}',
        '{"load_size": 1e400}',
    ],
)
def test_a_damaged_description_is_the_users_to_mend(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(UsageError, match=r"data .*prepare the data set again"):
        read_description(str(tmp_path))


def test_gray_and_colour_can_be_had_of_each_other_and_nothing_else_is_invented() -> None:
    data = Description("pairs", SideDescription(PixelFormat(12, 16)), SideDescription(RGB))
    data.require("AtoB", 12, 3)
    data.require("AtoB", 12, 1)
    data.require("BtoA", 1, 12)
    with pytest.raises(UsageError, match=r"input_channels 3: .* in pairs have 12; .* pixels_a 3x16"):
        data.require("AtoB", 3, 3)
    with pytest.raises(UsageError, match=r"output_channels 4: .* have 3; .* pixels_b 4x8"):
        data.require("AtoB", 12, 4)


def test_a_model_says_how_its_pairs_are_read() -> None:
    onehot = ModelConfig(input_channels=5, input_encoding="onehot:5", input_palette=PALETTE, output_channels=1, bits=16)
    assert formats_for(onehot, swap=False) == (PixelFormat(3, 16), PixelFormat(1, 16))
    assert formats_for(onehot, swap=True) == (PixelFormat(1, 16), PixelFormat(3, 16))
