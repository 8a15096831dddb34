from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p.reports.sheets import as_rgb, contact_sheet

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@given(sizes=st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_every_pixel_of_every_image_is_on_the_sheet(sizes: list[tuple[tuple[int, int], tuple[int, int]]]) -> None:
    rows = [
        [np.full((*size, 3), (200, 10 + 2 * r, c), np.uint8) for c, size in enumerate(row)]
        for r, row in enumerate(sizes)
    ]
    sheet = contact_sheet(("input", "output"), rows)
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3
    for r, row in enumerate(sizes):
        for c, (height, width) in enumerate(row):
            assert (sheet == (200, 10 + 2 * r, c)).all(axis=2).sum() == height * width


def test_labels_stand_above_and_columns_are_as_wide_as_them() -> None:
    dot = np.zeros((1, 1, 3), np.uint8)
    narrow, wide = (contact_sheet((label,), [(dot,)]) for label in ("a", "a much longer label"))
    assert wide.shape[1] > narrow.shape[1] and wide.shape[0] == narrow.shape[0]


def test_gray_and_many_channels_become_rgb() -> None:
    gray = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert (as_rgb(gray) == gray[:, :, None]).all() and (as_rgb(gray[:, :, None]) == gray[:, :, None]).all()
    many = np.arange(30, dtype=np.uint8).reshape(2, 3, 5)
    assert (as_rgb(many) == many[:, :, :3]).all()
    two = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    assert (as_rgb(two) == two[:, :, :1]).all()


def test_16_bits_are_shown_by_their_upper_eight() -> None:
    deep = np.array([0, 255, 256, 32768, 65535], np.uint16).reshape(1, 5)
    shown = as_rgb(deep)
    assert shown.dtype == np.uint8 and shown.shape == (1, 5, 3)
    assert shown[0, :, 0].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize("rows", [[], [[]], [[np.zeros((2, 2, 3), np.uint8)]]])
def test_a_row_must_fill_the_columns(rows: list[list[np.ndarray]]) -> None:
    with pytest.raises(ValueError, match=r"each row needs 2 images \(input, output\)"):
        contact_sheet(("input", "output"), rows)
