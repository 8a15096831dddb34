"""A real head with its dashboard and token, a job submitted to it, and nothing left when it is taken down."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2p.data.pairs import PAIR_SCHEMA, part_name

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
TINY = ("--generator", "unet_64", "--ngf", 4, "--discriminator", "patch_16", "--ndf", 4, "--crop-size", 64)


def prepare_by_hand(folder: Path, make_image: Any) -> Path:
    """A prepared data set of four pairs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "pair_id": f"{index}",
            "a": make_image(72, 72, seed=index),
            "b": make_image(72, 72, seed=index + 9),
            "width": 72,
            "height": 72,
            "source_uri": f"{index}.png",
        }
        for index in range(4)
    ]
    (folder / "train").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, PAIR_SCHEMA), folder / "train" / part_name(0))
    described = {"load_size": 72, "palette_a": None, "palette_b": None, "layout": "combined", "source": "by hand"}
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


class Cluster:
    """`cluster/local.sh` with a folder of its own, whose path is short as Ray's sockets need it."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="p2p-", dir="/tmp")) / "c"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment = {**clean, "P2P_CLUSTER_HOME": str(self.home), "P2P_CLUSTER_BIN": str(BIN)}

    def call(self, verb: str) -> subprocess.CompletedProcess[str]:
        return self.run("bash", "cluster/local.sh", verb)

    def run(self, *words: Any, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(word) for word in words],
            cwd=ROOT,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )

    def variables(self) -> dict[str, str]:
        lines = [line.removeprefix("export ") for line in self.call("env").stdout.splitlines()]
        return {name: value.strip("'") for name, _, value in (line.partition("=") for line in lines)}

    def submit(self, *words: Any, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run(BIN / "ray", "job", "submit", "--working-dir", ".", "--", "python", *words, **environment)

    def processes(self) -> set[int]:
        """Processes that carry this cluster's folder in their command line or environment."""
        found = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                    state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                except OSError:
                    continue  # it has just ended
                if str(self.home).encode() in words and state != "Z":
                    found.add(int(entry.name))
        return found


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.call("down")
    cluster.home.parent.rmdir()


@pytest.mark.timeout(900)
def test_a_submitted_job_trains_and_a_mistake_fails_it(cluster: Cluster, make_image: Any, tmp_path: Path) -> None:
    assert cluster.call("env").returncode == 1
    up = cluster.call("up")
    assert up.returncode == 0, up.stderr
    assert stat.S_IMODE((cluster.home / "token").stat().st_mode) == 0o600
    address = cluster.variables()["RAY_API_SERVER_ADDRESS"]
    assert f"ray job submit --address {address} --working-dir . -- python jobs/train.py" in up.stdout

    data = prepare_by_hand(tmp_path / "pairs", make_image)
    words = ("jobs/train.py", "--data", data, "--output", tmp_path / "run", *TINY, "--max-steps", 2)
    done = cluster.submit(*words, **cluster.variables())
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 2
    printed = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    assert printed == [summary]

    wrong = cluster.submit("jobs/train.py", "--data", tmp_path / "none", "--output", "x", **cluster.variables())
    assert wrong.returncode == 1
    assert f"error: --data {tmp_path}/none: nothing is there" in wrong.stdout + wrong.stderr
    assert "Traceback" not in wrong.stdout + wrong.stderr
    assert "exit code 2" in wrong.stdout + wrong.stderr

    uninvited = {**cluster.variables(), "RAY_AUTH_TOKEN_PATH": str(tmp_path / "other")}
    (tmp_path / "other").write_text("f" * 64)
    refused = cluster.submit("-c", "print(1)", **uninvited)
    assert refused.returncode != 0

    assert len(cluster.processes()) > 3
    assert cluster.call("down").returncode == 0
    assert cluster.processes() == set()
    assert not cluster.home.exists()
