"""Files that no job wrote, given to the jobs: one line, exit status 2, no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import Outcome

from p2p.evaluation import EvaluateConfig, evaluate
from p2p.model.config import ModelConfig
from p2p.model.networks import build_generator
from p2p.translation import TranslateConfig, translate

pytestmark = pytest.mark.usefixtures("jobs_share_a_process")

ROOT = Path(__file__).parent.parent
CONFIG = ModelConfig(generator="unet_64", crop_size=64, ngf=4)


def run_job(job: str, *words: object) -> str:
    """The one line that the job says before it exits with status 2."""
    done = subprocess.run(
        [sys.executable, ROOT / "jobs" / f"{job}.py", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    [line] = done.stderr.splitlines()
    return line


def with_description(folder: Path, description: str) -> Path:
    weights = {name: tensor.contiguous() for name, tensor in build_generator(CONFIG).state_dict().items()}
    safetensors.torch.save_file(weights, folder / "g.safetensors", {"p2p.model": description})
    return folder / "g.safetensors"


def with_one_number(folder: Path) -> Path:
    weights = build_generator(CONFIG).state_dict()
    tensors = {name: torch.zeros([1] * value.ndim).half().expand(value.shape) for name, value in weights.items()}
    torch.save(tensors, folder / "g.pth")
    return folder / "g.pth"


def with_pointer(folder: Path, content: str) -> Path:
    (folder / "best.json").write_text(content)
    return folder


CHECKPOINTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no JSON": (lambda folder: with_description(folder, "{not json"), "its p2p.model: not valid JSON"),
    "a fraction": (lambda folder: with_description(folder, json.dumps(CONFIG.to_dict() | {"ngf": 1.5})), "ngf is 1.5"),
    "one number": (with_one_number, "bytes and share"),
    "elsewhere": (lambda folder: with_pointer(folder, '{"checkpoint": "../other"}'), "names no checkpoint of its run"),
    "deep": (lambda folder: with_pointer(folder, '{"a":' * 100_000), "nested too deeply"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_an_odd_checkpoint(
    tmp_path: Path, make_pairs: Callable[..., Path], run_cli: Callable[..., Outcome], case: str
) -> None:
    make, said = CHECKPOINTS[case]
    data = make_pairs(tmp_path / "data" / "test", 1, 80)
    words = ("--checkpoint", make(tmp_path), "--output", tmp_path / "out")
    translated = run_cli(TranslateConfig, translate, *words, "--source", data)
    judged = run_cli(EvaluateConfig, evaluate, *words, "--data", data.parent)
    for outcome in (translated, judged):
        assert (outcome.status, outcome.stdout) == (2, ""), outcome.stderr
        [line] = outcome.stderr.splitlines()
        assert line.startswith("error: --checkpoint ") and said in line
    assert not (tmp_path / "out").exists()


def test_an_odd_checkpoint_as_a_process_meets_it(tmp_path: Path) -> None:
    """What torch says of a file, it says once in a process."""
    source = tmp_path / "in"
    source.mkdir()
    words = ("--checkpoint", with_one_number(tmp_path), "--source", source, "--output", tmp_path / "out")
    assert CHECKPOINTS["one number"][1] in run_job("translate", *words)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("dataset.json", '{"a":' * 100_000, "nested too deeply"),
        ("dataset.json", '{"palette_a": [[1, 2, Infinity]]}', "palette_a is"),
        ("dataset.json", '{"load_size": "286"}', "load_size is '286'"),
    ],
)
def test_an_odd_data_set(tmp_path: Path, make_pairs: Callable[..., Path], name: str, content: str, said: str) -> None:
    data = make_pairs(tmp_path / "data" / "train", 1, 80).parent
    (data / name).write_text(content)
    line = run_job("train", "--data", data, "--output", tmp_path / "out")
    assert line.startswith("error: --data ") and said in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [x,x]\nb: &b [*a,*a]\nsource: *b\n", "line 1: an anchor or alias"),
        ("[" * 100_000, "line 1: nested too deeply"),
        ("source: !!binary aGVsbG8=", "line 1: the type tag:yaml.org,2002:binary"),
    ],
)
def test_an_odd_config_file(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "options.yaml").write_text(text)
    line = run_job("translate", "--config", tmp_path / "options.yaml")
    assert line.startswith("error: --config ") and said in line


def test_a_name_that_commands_a_terminal(tmp_path: Path) -> None:
    line = run_job("status", f"{tmp_path}/\x1b]0;owned\x07\nerror: all is lost")
    assert r"/\x1b]0;owned\x07\nerror: all is lost: nothing is there" in line
