"""The script for Slurm, run whole on two nodes of this machine that an srun of the tests starts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "cluster" / "slurm" / "p2p.sbatch"
BIN = Path(sys.executable).parent

# A training to its end, where its workers were, and another one that has to be stopped. The status of each is noted,
# and the job's own is one that nothing else ends with.
_JOB = """
import json, runpy, sys
import ray
from ray.util.state import list_actors

place, train, *trainings = sys.argv[1:]
found = {"statuses": []}
for words in map(json.loads, trainings):
    sys.argv = [train, *words]
    try:
        runpy.run_path(train, run_name="__main__")
    except SystemExit as stop:
        found["statuses"].append(stop.code)
    if "nodes" not in found:
        ray.init(log_to_driver=False)
        actors = list_actors(filters=[("class_name", "=", "RayTrainWorker")], detail=True)
        alive = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
        found |= {"nodes": sorted(alive.values()), "workers": [alive[actor.node_id] for actor in actors]}
        ray.shutdown()
with open(place, "w") as file:
    json.dump(found, file)
sys.exit(7)
"""


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Ray's sockets need a short path."""
    folder = Path(tempfile.mkdtemp(prefix="p2p-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def start(script: Path, *words: object, **environment: str) -> subprocess.Popen[str]:
    """In the folder `HOME`, as if the repository were there: jobs are named by their whole path."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "SLURM_"))}
    slurm = {
        "SLURM_SUBMIT_DIR": environment["HOME"],
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "7",
    }
    fakes = f"{Path(__file__).parent / 'slurm'}:{clean['PATH']}"
    return subprocess.Popen(
        ["bash", script, *map(str, words)],
        env={**clean, **slurm, "PATH": fakes, "P2P_BIN": str(BIN), "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def can_make_namespaces() -> bool:
    command = ["unshare", "--user", "--map-root-user", "--net", "--mount", "ip", "link", "add", "left", "type", "veth"]
    return bool(shutil.which("ip")) and subprocess.run(command, capture_output=True, check=False).returncode == 0


TRAIN = (
    "--generator unet_64 --ngf 4 --discriminator patch_16 --ndf 4 --crop-size 64 --batch-size 2 --workers 2 --gpu false"
)


@pytest.mark.skipif(not can_make_namespaces(), reason="this machine lets nobody make namespaces")
def test_two_nodes_train_on_one_ray_and_a_training_saves_before_its_time_is_up(
    make_pairs: Callable[..., Path], tmp_path: Path, short_folder: Path
) -> None:
    shutil.copy(SCRIPT, tmp_path / "slurm_script")  # Slurm runs a copy that lies elsewhere
    (tmp_path / "job.py").write_text(_JOB)
    data = make_pairs(tmp_path / "pairs" / "train", 8, size=72).parent
    place, whole, stopped = tmp_path / "place", tmp_path / "whole", tmp_path / "stopped"
    trainings = [
        json.dumps(["--data", str(data), "--output", str(output), *TRAIN.split(), *options.split()])
        for output, options in ((whole, "--epochs-decay 0 --epochs 2"), (stopped, "--epochs 10000"))
    ]
    # At Ray's niceness both nodes would starve beside other tests.
    environment = {"HOME": str(tmp_path), "RAY_TMPDIR": str(short_folder), "RAY_worker_niceness": "0"}
    job = (tmp_path / "job.py", place, ROOT / "jobs" / "train.py", *trainings)
    script = start(tmp_path / "slurm_script", *job, **environment)
    deadline = time.monotonic() + 600
    while not (stopped / "metrics.jsonl").exists() and script.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    has_begun = (stopped / "metrics.jsonl").exists()
    script.terminate()  # to the shell alone, as `--signal=B:TERM` does
    out, err = script.communicate(timeout=180)
    assert has_begun and script.returncode == 7 and "interrupted" in err, out + err
    found = json.loads(place.read_text())
    assert found["statuses"] == [0, 1]
    assert found["nodes"] == sorted(found["workers"]) == ["node1", "node2"]
    summary = json.loads((whole / "summary.json").read_text())
    assert (summary["epochs"], summary["images_seen"]) == (2, 16)
    assert (stopped / "latest.json").exists() and not (stopped / "summary.json").exists()
    assert not list(tmp_path.glob("p2p-*"))
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o077 == 0


def test_scripts_are_clean() -> None:
    shellcheck = shutil.which("shellcheck", path=f"{BIN}:{os.environ['PATH']}")
    assert shellcheck, "no shellcheck; make install"
    scripts = [SCRIPT, ROOT / "cluster" / "local.sh", *(Path(__file__).parent / "slurm").iterdir()]
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_script_without_a_job_says_how(tmp_path: Path) -> None:
    script = start(SCRIPT, HOME=str(tmp_path))
    assert "usage: sbatch" in script.communicate()[1] and script.returncode == 2
