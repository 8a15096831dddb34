from __future__ import annotations

import numpy as np
import pytest

from p2p.scenes.tiling import TilePlan
from p2p.translation.seams import SeamMeter, Seams, measure_seams

TILING = (64, 16)


def texture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(60, 180, (height, width, 3), dtype=np.uint8)


def test_a_texture_without_borders_scores_one() -> None:
    score = measure_seams(texture(700, 600), TILING).score
    assert score == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("axis", [0, 1])
def test_tiles_of_unlike_brightness_score_more(axis: int) -> None:
    image = texture(300, 400)
    plan = TilePlan(300, 400, *TILING)
    for number, start in enumerate(plan.rows if axis == 0 else plan.columns):
        window = (slice(start, None), slice(None)) if axis == 0 else (slice(None), slice(start, None))
        image[window] = texture(300, 400)[window] + 70 * (number % 2)
    assert measure_seams(image, TILING).score > 1.1


def test_an_image_of_one_tile_or_one_colour_has_no_score() -> None:
    assert measure_seams(texture(64, 50), TILING).score is None
    assert measure_seams(texture(1, 1), TILING).score is None
    assert measure_seams(np.full((200, 200, 3), 7, np.uint8), TILING).score is None
    assert Seams().score is None


@pytest.mark.parametrize("has_holes", [False, True])
def test_rows_in_any_portions_are_measured_without_a_difference(has_holes: bool) -> None:
    image, plan = texture(300, 200), TilePlan(300, 200, *TILING)
    valid = np.random.default_rng(1).random((300, 200)) < 0.9 if has_holes else None
    found = []
    for portion in (300, 1, 33, 48):
        meter = SeamMeter(plan, 3)
        for top in range(0, 300, portion):
            area = slice(top, top + portion)
            meter.add(top, image[area], None if valid is None else valid[area])
        found.append(meter.result())
    good = np.ones((300, 200), bool) if valid is None else valid
    across = 0
    for axis, (starts, size) in enumerate([(plan.rows, 300), (plan.columns, 200)]):
        steps = np.abs(np.diff(image.astype(int), axis=axis)).sum(2).swapaxes(0, axis)
        turned = good.swapaxes(0, axis)
        places = {place - 1 for start in starts for place in (start, start + 64) if 0 < place < size}
        across += sum((steps[place] * (turned[place] & turned[place + 1])).sum() for place in places)
    assert found[0].across == across and all(one == found[0] for one in found)
    if has_holes:
        assert found[0].across_count < measure_seams(image, TILING).across_count
