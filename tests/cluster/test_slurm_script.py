"""What can be told of the script for Slurm without a Ray."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

SCRIPT = (Path(__file__).parent.parent.parent / "cluster" / "slurm" / "p2p.sbatch").read_text()
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
