"""The pages for operations people: the files and metrics it names (see tests/test_readme.py too)."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import yaml

from p2p.cli import parse
from p2p.training import TrainConfig

ROOT = Path(__file__).parent.parent.parent
TEXT = "".join(
    (ROOT / "cluster" / name).read_text(encoding="utf-8") for name in ("README.md", "RUNBOOK.md", "SECURITY.md")
)


def test_every_manifest_that_is_named_exists() -> None:
    for path in re.findall(r"cluster/kuberay/[\w/{},.-]+\w", TEXT):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`([\w/-]+\.(?:ya?ml|json|sh))`", TEXT):
        if name not in ("summary.json", "ray-cluster.fluentbit.yaml"):
            assert list((ROOT / "cluster").rglob(name)), name
    components = {path.name for path in (ROOT / "cluster" / "kuberay" / "components").iterdir()}
    table = re.findall(
        r"(?m)^\| (`.+`) \| .+ \|$", TEXT[TEXT.index("| component | adds |") : TEXT.index("**On a laptop.**")]
    )
    named = {name for row in table for name in re.findall(r"`([\w-]+)`", row)}
    assert named == components - {"gpu", "small", "fixed-size"}


def test_skypilot_starts_a_job_of_p2p() -> None:
    """SkyPilot itself is not at hand; its schema has been asked by hand."""
    task = yaml.safe_load((ROOT / "cluster" / "skypilot.yaml").read_text(encoding="utf-8"))
    assert task["resources"]["use_spot"] and task["resources"]["job_recovery"] == {"max_restarts_on_errors": 0}
    line = re.sub(r"\\\n", " ", task["run"])
    assert "ray stop" not in re.sub(r"(?m)^#.*$", "", line)
    (words,) = re.findall(r"python jobs/train.py (.*)", line)
    config = parse(TrainConfig, shlex.split(words))
    assert config.workers == task["num_nodes"] * task["resources"]["accelerators"]["L4"] and config.gpu == "true"
    assert set(task["secrets"].values()) == {None}, "given when it is launched, never written"


def test_rights_are_no_wider_than_jobs_need() -> None:
    names = ("bucket", "launcher-head")
    bucket, head = (json.loads((ROOT / "cluster" / "iam" / f"{name}.json").read_text())["Statement"] for name in names)
    for statement in (*bucket, *head):
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert statement["Effect"] == "Allow" and not any(re.search(r"^\*|:\*", action) for action in actions)
    resources = [one["Resource"] if isinstance(one["Resource"], list) else [one["Resource"]] for one in bucket]
    assert all(name.startswith("arn:aws:s3:::BUCKET") for found in resources for name in found)
    (passes,) = [one for one in head if one["Action"] == "iam:PassRole"]
    assert passes["Resource"].endswith(":role/WORKER-ROLE")
