"""Whether images are pairs at all: what real kinds of pictures, drawn here, show."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from p2p.data.joining import FoundLayout
from p2p.doctor.evidence import examine, open_examined_pairs, warn_of_strangers
from p2p.errors import UsageError
from p2p.synthetic.pairs import city_pair

pytestmark = pytest.mark.usefixtures("jobs_share_a_process")

Picture = np.ndarray
SIZE = 64


@functools.cache
def city(index: int) -> tuple[Picture, Picture]:
    return city_pair(5, index, SIZE, SIZE)


def halves(whole: Picture) -> tuple[Picture, Picture]:
    middle = whole.shape[1] // 2
    return whole[:, :middle], whole[:, middle:]


def edges_on_white(index: int) -> tuple[Picture, Picture]:
    """Outlines, and what they are of, both on white: nothing breaks off between them."""
    drawn = np.pad(city(index)[1], ((20, 20), (20, 20), (0, 0)), constant_values=255)
    gray = drawn.mean(2)
    steps = np.abs(np.diff(gray, axis=0, append=255)) + np.abs(np.diff(gray, axis=1, append=255))
    return np.repeat(np.where(steps > 6, 0, 255).astype(np.uint8)[..., None], 3, 2), drawn


COMBINED: dict[str, Callable[[int], tuple[Picture, Picture]]] = {
    "photo and map": city,
    "map and photo": lambda index: city(index)[::-1],
    "day and night": lambda index: (city(index)[0], city(index)[0] // 3),
    "edges on white": edges_on_white,
    "of other places": lambda index: (city(index)[0], city(index + 50)[1]),
}
SINGLE: dict[str, Callable[[int], Picture]] = {
    "photographs": lambda index: city(index)[0],
    "label maps": lambda index: city(index)[1],
    "panoramas": lambda index: city_pair(5, index, SIZE, 2 * SIZE)[0],
    "sample sheets": lambda index: np.concatenate([*city(index), city(index)[1]], 1),
}


@pytest.mark.parametrize("kind", COMBINED)
def test_halves_of_combined_images_look_like_pairs(kind: str) -> None:
    for count in (8, 1):
        if (kind, count) != ("edges on white", 1):
            assert examine(COMBINED[kind](index) for index in range(count)).shows_pairs(is_combined=True)


@pytest.mark.parametrize("kind", SINGLE)
def test_halves_of_one_picture_do_not(kind: str) -> None:
    evidence = examine(halves(SINGLE[kind](index)) for index in range(8))
    assert not evidence.shows_pairs(is_combined=True), evidence
    assert not examine([]).shows_pairs(is_combined=True)


def test_two_folders_of_the_same_names_must_have_something_in_common() -> None:
    for kind in ("photo and map", "edges on white", "of other places"):
        assert examine(COMBINED[kind](index) for index in range(8)).shows_pairs(is_combined=False)
    strangers = examine((city(index)[0], city(index + 50)[0]) for index in range(8))
    assert not strangers.shows_pairs(is_combined=False), strangers


def test_sides_that_differ_in_their_light_alone_are_strangers() -> None:
    storms = [(city(index)[0] // 2, city(index + 50)[0]) for index in range(12)]
    assert not examine(storms).shows_pairs(is_combined=False)
    nights = [(city(index)[0] // 2, city(index)[0]) for index in range(12)]
    assert examine(nights).shows_pairs(is_combined=False)


def test_the_usual_shape_is_that_of_most() -> None:
    pictures = [city_pair(1, index, 32, width) for index, width in enumerate((32, 32, 33, 16))]
    assert 1 <= examine(pictures).usual_shape < 1.04
    assert examine(pictures[2:]).usual_shape == 0 == examine([]).usual_shape


def test_sides_without_common_outlines_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    layout = FoundLayout("A/B", ("A/", "B/"))
    for kind, count in (("of other places", 8), ("of other places", 3), ("photo and map", 8)):
        warn_of_strangers("here", layout, examine(COMBINED[kind](index) for index in range(count)))
    small = (tuple(side[::2, ::2] for side in COMBINED["of other places"](index)) for index in range(8))
    warn_of_strangers("there", layout, examine(small))
    [message] = caplog.messages
    assert message.startswith("here: in none of the 8 pairs looked at have A/ and B/ their outlines in the same places")
    assert "or too dark, blurred or small to tell" in message


def save(folder: Path, pictures: list[Picture]) -> str:
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number}.png")
    return str(folder)


def test_raw_folders_are_looked_at_before_training(tmp_path: Path) -> None:
    pairs = [city(index) for index in range(4)]
    raw = save(tmp_path / "combined", [np.concatenate(pair, 1) for pair in pairs])
    assert len(open_examined_pairs(raw, "train", 72)) == 4
    for side, name in enumerate(("oil", "paint")):
        save(tmp_path / "two" / name, [pair[side] for pair in pairs])
    found = open_examined_pairs(str(tmp_path / "two"), "train", 72)
    assert found.layout is not None
    assert found.layout.summary({"train": len(found)}) == "two-folder layout: 4 train; A = oil/, B = paint/"
    photos = save(tmp_path / "photos", [photo for photo, _ in pairs])
    with pytest.raises(UsageError, match=r"4 images and no pairs.*prepare.py --source .*--layout comb"):
        open_examined_pairs(photos, "train", 72)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/1.png").write_bytes(b"nonsense")
    with pytest.raises(UsageError, match=r"1\.png.*jobs/prepare\.py leaves bad images out"):
        open_examined_pairs(str(tmp_path / "bad"), "train", 72)
