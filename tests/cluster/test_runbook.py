"""The page for operations people: the files, metrics and lines of Python it names (see tests/test_readme.py too)."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "cluster" / "README.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(re.findall(r"(?ms)^```\n(.*?)^```", TEXT)).replace("\\\n", " ")


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
