from __future__ import annotations

import numpy as np
import pytest

from p2p.scenes.tiling import TilePlan
from p2p.translation.seams import Seams, measure_seams

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


def test_large_images_are_measured_in_strips_without_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    from p2p.translation import seams

    whole = measure_seams(texture(700, 90), TILING)
    monkeypatch.setattr(seams, "_STRIP", 33)
    assert measure_seams(texture(700, 90), TILING) == whole
