"""The colours of a rendered map, found in what JPEG has made of it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from p2p.preparation import PrepareConfig, prepare
from p2p.preparation.palettes import find_palette, in_palette, parse_palette, pixels_per_pair, sample_pixels, to_lab
from p2p.synthetic.pairs import PALETTE, city_pair

pytestmark = pytest.mark.usefixtures("jobs_share_a_process")

COLOURS = tuple(PALETTE.values())
PAIRS = 12


def as_jpeg(image: np.ndarray[Any, Any], quality: int = 75) -> np.ndarray[Any, Any]:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


@pytest.fixture(scope="module")
def city() -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Aerial photographs and maps, both lossy: the maps have thousands of colours."""
    pairs = [tuple(as_jpeg(side) for side in city_pair(0, index, 256, 256)) for index in range(PAIRS)]
    assert all(Image.fromarray(b).getcolors(1000) is None for _, b in pairs)
    return pairs  # type: ignore[return-value]


@pytest.fixture(scope="module")
def samples(city: list[Any]) -> tuple[list[Any], list[Any]]:
    count = pixels_per_pair(PAIRS)[1]
    a, b = (
        [sample_pixels(side, str(index), count) for index, side in enumerate(sides)]
        for sides in zip(*city, strict=True)
    )
    return a, b


def nearest_distances(wanted: Any, found: Any) -> np.ndarray[Any, Any]:
    """Of each colour wanted, in CIELAB, from the nearest one found."""
    apart = to_lab(np.array(wanted))[:, None] - to_lab(np.array(found))[None]
    return np.sqrt((apart**2).sum(axis=2)).min(axis=1)


def test_the_colours_of_the_map_are_found_and_not_those_of_the_photograph(samples: Any, city: Any) -> None:
    exact = [city_pair(0, index, 256, 256)[1].reshape(-1, 3) for index in range(PAIRS)]
    drawn, counts = np.unique(np.concatenate(exact), axis=0, return_counts=True)
    palette = find_palette(len(drawn), samples)
    assert palette is not None and palette.side == "b"
    assert nearest_distances(drawn, palette.colours).max() < 2.5  # which can hardly be seen
    assert palette.shares == sorted(palette.shares, reverse=True) and sum(palette.shares) == pytest.approx(1)
    order = [np.abs(np.array(palette.colours) - colour).sum(axis=1).argmin() for colour in drawn]
    assert np.array(palette.shares)[order] == pytest.approx(counts / counts.sum(), abs=0.03)
    # So nearly every pixel of the lossy map gets its class back.
    right = in_palette(city[0][1], palette.colours) == in_palette(exact[0].reshape(256, 256, 3), palette.colours)
    assert right.all(axis=2).mean() > 0.97


def test_a_palette_depends_on_the_pixels_alone(samples: Any) -> None:
    turned = ([*reversed(samples[0])], [*reversed(samples[1])])
    assert find_palette(6, samples) == find_palette(6, turned)
    assert find_palette(6, ([], samples[1])) == find_palette(6, samples)
    assert find_palette(6, ([], [])) is None


def test_fewer_colours_than_asked_for_are_all_there_are() -> None:
    pixels = np.array([[0, 0, 0], [255, 0, 0], [250, 250, 250]], np.uint8).repeat(50, axis=0)
    palette = find_palette(8, ([], [pixels]))
    assert palette is not None and sorted(palette.colours) == [(0, 0, 0), (250, 250, 250), (255, 0, 0)]
    assert palette.distance == 0


def test_a_photograph_is_said_to_be_no_map(samples: Any, caplog: pytest.LogCaptureFixture) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20_000, 3), dtype=np.uint8)
    with caplog.at_level("INFO", "p2p"):
        find_palette(8, ([], [noise]))
        assert "photographs have no palette" in caplog.text
        caplog.clear()
        find_palette(len(COLOURS), samples)
        assert "photographs" not in caplog.text


def test_lab_is_that_of_the_standard() -> None:
    # Of sRGB primaries under D65: Lindbloom's calculator.
    expected = [[53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86], [53.59, 0, 0]]
    given = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [128, 128, 128]])
    assert to_lab(given) == pytest.approx(np.array(expected), abs=0.02)


def test_a_file_of_colours(tmp_path: Path) -> None:
    path = tmp_path / "colours.txt"
    path.write_text("#ffaa00 road\n\n00FF10\twater\n#000000\n")
    assert parse_palette(str(path)) == ((255, 170, 0), (0, 255, 16), (0, 0, 0))


@pytest.mark.parametrize(
    "written, words",
    [
        ("1", "must be 2 to 32"),
        ("33", "must be 2 to 32"),
        ("no-file", "neither a number of colours nor a file"),
        ("#ffaa00\nroad", "line 2 does not begin with a colour"),
        ("#ffaa00", "needs 2 to 32 colours, each once"),
        ("#ffaa00\nFFAA00", "needs 2 to 32 colours, each once"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, run_cli: Callable[..., Any], written: str, words: str, city: list[Any]
) -> None:
    (tmp_path / "raw").mkdir()
    Image.fromarray(np.hstack(city[0])).save(tmp_path / "raw" / "pair.png")
    if written.startswith("#"):
        (tmp_path / "colours").write_text(written)
        written = str(tmp_path / "colours")
    outcome = run_cli(
        PrepareConfig, prepare, "--source", tmp_path / "raw", "--output", tmp_path / "out", "--palette", written
    )
    assert outcome.status == 2 and words in outcome.stderr and len(outcome.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_data_set_has_the_palette_and_the_doctor_shows_it(
    tmp_path: Path, run_cli: Callable[..., Any], browse: Callable[..., dict[str, Any]], city: list[Any]
) -> None:
    (tmp_path / "raw").mkdir()
    for index, sides in enumerate(city):
        Image.fromarray(np.hstack(sides)).save(tmp_path / "raw" / f"{index}.jpg", quality=95)
    words = ("--source", tmp_path / "raw", "--output", tmp_path / "data", "--load-size", 64)
    assert run_cli(PrepareConfig, prepare, *words).status == 0
    assert json.loads((tmp_path / "data" / "dataset.json").read_text())["palette_b"] is None
    assert run_cli(PrepareConfig, prepare, *words, "--palette", len(COLOURS)).status == 0
    described = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert described["palette_a"] is None and 5 <= len(described["palette_b"]) <= len(COLOURS)
    found = json.loads((tmp_path / "data" / "doctor.json").read_text())["palette"]
    assert found["side"] == "b" and len(found["colours"]) == len(described["palette_b"])
    for width in (1280, 400):
        seen = browse(
            tmp_path / "data" / "doctor.html",
            """() => ({
                colours: [...document.querySelectorAll(".swatches code")].map(one => one.innerText),
                painted: getComputedStyle(document.querySelector(".swatches .swatch")).backgroundColor,
                labels: [...document.querySelectorAll(".figure:last-of-type .row span")].map(one => one.innerText),
                overflow: document.documentElement.scrollWidth - innerWidth,
            })""",
            width=width,
        )
        assert seen["colours"] == [one["colour"] for one in found["colours"]]
        red, green, blue = bytes.fromhex(found["colours"][0]["colour"][1:])
        assert seen["painted"] == f"rgb({red}, {green}, {blue})"
        assert f"b in {len(found['colours'])} colours" in seen["labels"] and seen["overflow"] <= 0
