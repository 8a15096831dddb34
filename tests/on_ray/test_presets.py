"""Every preset, trained for a few steps on made data of the shape and layout that its comment asks for."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from p2p.model.checkpoint import load_generator
from p2p.preparation import PrepareConfig, prepare
from p2p.training import TrainConfig, train

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

PRESETS = sorted((Path(__file__).parents[2] / "jobs" / "presets").glob("*.yaml"))
SMALL = {"load-size": {"286": "72", "256": "64"}, "generator": "unet_64", "crop-size": 64, "ngf": 4, "ndf": 4}
STEPS, PAIRS = 2, 5

Picture = np.ndarray[Any, np.dtype[np.uint8]]


def photo(rng: np.random.Generator, height: int, width: int) -> Picture:
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def labels(rng: np.random.Generator, height: int, width: int) -> Picture:
    classes = np.kron(rng.integers(0, 12, (4, 4)), np.ones((height // 4, width // 4), np.intp))
    return np.random.default_rng(9).integers(0, 256, (12, 3), dtype=np.uint8)[classes]


def edges(rng: np.random.Generator, height: int, width: int) -> Picture:
    gray = photo(rng, height, width)[..., :1]
    return np.where(np.abs(np.diff(gray.astype(int), axis=1, append=0)) > 2, 0, 255).astype(np.uint8).repeat(3, axis=2)


Draw = Callable[[np.random.Generator, int, int], Picture]
# What the preset's comment calls --source: how many pixels high and wide, and what it shows, left and right.
SOURCES: dict[str, tuple[int, int, tuple[Draw, ...]]] = {
    "facades": (256, 256, (photo, labels)),
    "cityscapes": (256, 256, (labels, photo)),
    "maps": (600, 600, (photo, labels)),
    "edges2shoes": (256, 256, (edges, photo)),
    "night2day": (256, 256, (photo, photo)),
    "street": (354, 354, (photo,)),
    "aerial": (354, 354, (photo,)),
    "photos": (375, 500, (photo,)),
}


# Where each side lies in sources that are not combined images.
PLACES = {
    "cityscapes": (
        "gtFine/{split}/ulm/ulm_{index}_gtFine_color.png",
        "leftImg8bit/{split}/ulm/ulm_{index}_leftImg8bit.png",
    )
}


def make_source(folder: Path, name: str) -> Path:
    height, width, sides = SOURCES[name]
    for split, count in (("train", PAIRS), ("val", 2)):
        for index in range(count):
            rng = np.random.default_rng([index, len(name)])
            drawn = [draw(rng, height, width) for draw in sides]
            places = PLACES.get(name, ("{split}/{index}.jpg",))
            for place, image in zip(places, drawn if len(places) > 1 else [np.concatenate(drawn, axis=1)], strict=True):
                path = folder / name / place.format(split=split, index=index)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path, quality=95)
    return folder / name


def prepare_command(preset: Path) -> list[str]:
    """The options of jobs/prepare.py that the comment gives, perhaps by way of another preset."""
    comment = " ".join(line.lstrip("# ") for line in preset.read_text().splitlines() if line.startswith("#"))
    other = re.search(r"Needs what (\S+\.yaml) needs", comment)
    if other:
        return prepare_command(preset.with_name(other[1]))
    found = re.search(r"Needs: jobs/prepare\.py (.+?)\.(?: |$)", comment)
    assert found, f"{preset.name} does not say how its data is prepared"
    return shlex.split(found[1])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str]], str]:
    """Runs such a command on made sources, at a quarter of the size; each once."""
    folder = tmp_path_factory.mktemp("presets")
    done: dict[str, str] = {}

    def run(words: list[str]) -> str:
        from p2p.cli import parse

        key = " ".join(words)
        if key not in done:
            done[key] = str(folder / f"pairs-{len(done)}")
            small = [SMALL["load-size"].get(word, word) for word in words]  # type: ignore[attr-defined]
            placed = [str(make_source(folder, word)) if word in SOURCES else word for word in small]
            prepare(parse(PrepareConfig, [*placed, "--output", done[key]]))
        return done[key]

    return run


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_trains_on_what_its_comment_asks_for(
    preset: Path,
    prepared: Callable[[list[str]], str],
    train_in_this_process: None,
    run_cli: Callable[..., Any],
    tmp_path: Path,
) -> None:
    data = prepared(prepare_command(preset))
    small = {name: value for name, value in SMALL.items() if name != "load-size"} | {"max-steps": STEPS}
    overrides = [word for name, value in small.items() for word in (f"--{name}", value)]
    words = ["--config", preset, "--data", data, "--output", tmp_path / "run", *overrides]
    outcome = run_cli(TrainConfig, train, *words)
    assert outcome.status == 0, outcome.stderr
    assert outcome.summary["steps"] == STEPS
    used = json.loads((tmp_path / "run" / "config.json").read_text())
    written = yaml.safe_load(preset.read_text())
    assert {name: used[name.replace("-", "_")] for name in written if name not in small} == {
        name: value for name, value in written.items() if name not in small
    }
    model = load_generator(str(tmp_path / "run")).config
    assert model.input_channels == written.get("input-channels", 3)
    assert (model.direction, model.lambda_l1) == (written["direction"], written.get("lambda-l1", 100))
    assert list((tmp_path / "run" / "samples").iterdir())
