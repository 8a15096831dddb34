"""What can be told of the script for Slurm without a Ray."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

PATH = Path(__file__).parent.parent.parent / "cluster" / "slurm" / "p2p.sbatch"
SCRIPT = PATH.read_text()
STOPS_EARLY = re.compile(r"head\b|awk\b.*\bexit\b|sed\b.*\bq\b|grep\b.* -\w*[qm]")


def pipes() -> list[str]:
    """What stands behind each `|` of the script, up to the end of its line."""
    code = re.sub(r"(?m)(^|\s)#.*", "", SCRIPT)
    return re.findall(r"(?<!\|)\|(?!\|)&?\s*(.*)", code)


def test_every_pipe_is_read_to_its_end() -> None:
    # What writes into one that is not may die of SIGPIPE, and by `pipefail` the job with it.
    assert "pipefail" in SCRIPT and len(pipes()) == 2
    assert not [command for command in pipes() if STOPS_EARLY.match(command)]


def test_the_head_is_the_first_address_that_others_reach() -> None:
    (program,) = [match[1] for command in pipes() if (match := re.match(r"awk '(.*\$1.*)'\)", command))]
    lines = "127.0.1.1 STREAM node1\n10.0.0.5 STREAM\n10.0.0.6 DGRAM\n172.17.0.1 10.0.0.5\n"
    done = subprocess.run(["awk", program], input=lines, capture_output=True, text=True, check=True)
    assert done.stdout == "10.0.0.5\n"


def test_a_job_that_is_requeued_knows_nothing_of_its_last_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, does in {"scontrol": "echo node1", "ray": "true", "srun": 'test ! -e "$P2P_STOP"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does} || touch is-stopped\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "p2p-7.status").write_text("0\n")
    (tmp_path / "p2p-7.stop").touch()
    slurm = {"SUBMIT_DIR": str(tmp_path), "JOB_NODELIST": "node1", "NNODES": "1", "JOB_ID": "7"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("P2P_BIN", str(tmp_path))
    done = subprocess.run(["bash", PATH, "job.py"], capture_output=True, check=False)
    assert done.returncode == 1, "of a job that wrote no status"
    assert {path.name for path in tmp_path.iterdir()} == {"scontrol", "ray", "srun"}
