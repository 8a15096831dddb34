"""The page for operations people: its commands are commands, its files and sections are there."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from p2p.benchmark import BenchmarkConfig
from p2p.cli import parse
from p2p.training import TrainConfig
from p2p.translation import TranslateConfig
from p2p.translation.status import StatusConfig

ROOT = Path(__file__).parent.parent.parent
CONFIGS: dict[str, type] = {
    "benchmark": BenchmarkConfig,
    "status": StatusConfig,
    "train": TrainConfig,
    "translate": TranslateConfig,
}
TEXT = (ROOT / "cluster" / "README.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(re.findall(r"(?ms)^```\n(.*?)^```", TEXT)).replace("\\\n", " ")
COMMANDS = [line for line in BLOCKS.splitlines() if re.search(r"python jobs/\w+\.py [^…]+$", line)]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_one_that_its_job_understands(line: str) -> None:
    job, words = re.findall(r"python jobs/(\w+)\.py (.*)", line)[0]
    assert parse(CONFIGS[job], shlex.split(words, comments=True))


def test_there_are_such_commands() -> None:
    assert {re.findall(r"jobs/(\w+)\.py", line)[0] for line in COMMANDS} == set(CONFIGS)


def test_every_option_named_in_the_text_exists() -> None:
    options = {"--" + name.replace("_", "-") for config in CONFIGS.values() for name in config.__dataclass_fields__}
    prose = re.sub(r"(?ms)^```\n.*?^```", "", TEXT)
    named = set(re.findall(r"`(--[a-z][a-z0-9-]*)", prose)) - {"--working-dir", "--runtime-env-json"}
    assert len(named) > 10 and named <= options, named - options


def anchor(title: str) -> str:
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def test_every_link_leads_somewhere() -> None:
    titles = {anchor(title) for title in re.findall(r"(?m)^#+ (.+)$", TEXT)}
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert len(links) >= 9
    for link in links:
        path, _, section = link.partition("#")
        if path.startswith("https://"):
            continue
        target = ROOT / "cluster" / path
        assert target.exists(), link
        if section:
            found = titles if not path else {anchor(t) for t in re.findall(r"(?m)^#+ (.+)$", target.read_text())}
            assert section in found, link


def test_every_manifest_that_is_named_exists() -> None:
    for path in re.findall(r"cluster/kuberay/[\w/{},.-]+\w", TEXT):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`((?:kuberay/)?[\w/-]+\.(?:ya?ml|json))`", TEXT):
        if name != "summary.json":
            assert list((ROOT / "cluster").rglob(name)), name


def test_every_metric_that_is_named_is_one_of_the_dashboard() -> None:
    board = (ROOT / "cluster" / "grafana.json").read_text()
    named = set(re.findall(r"ray_p2p_\w+", TEXT))
    assert named == set(re.findall(r"ray_p2p_\w+", board))


def test_the_lines_that_call_nodes_are_python() -> None:
    (line,) = [line for line in BLOCKS.splitlines() if "request_resources" in line]
    assert ast.parse(shlex.split(line)[-1])
