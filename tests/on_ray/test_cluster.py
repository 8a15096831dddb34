"""A real cluster of several Ray nodes: jobs submitted to it over HTTP, nodes that are killed and others that join."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import descendants, in_this_process, pids, read_process
from safetensors.numpy import load_file

from p2p.data.augment import CropSettings
from p2p.data.order import EpochRange
from p2p.data.pairs import open_pairs, raw_load_size
from p2p.data.stream import PairStream
from p2p.model.pix2pix import Pix2Pix
from p2p.storage.filesystems import write_bytes
from p2p.training import TrainConfig
from p2p.training.position import Position
from p2p.training.trainer import Trainer
from p2p.translation import TranslateConfig
from p2p.translation.job import run as translate

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
KEY, TOLD = secrets.token_hex(20), secrets.token_hex(20)  # of the cluster's environment, and of one job alone
PATIENCE = 400.0  # seconds until a test that waits for another process gives up
IMAGES = 480
NODES = ("node1", "node2", "node3")


class Cluster:
    """`cluster/local.sh` with a folder of its own, whose path is short as Ray's sockets need it."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="p2p-", dir="/tmp")) / "c"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
        self.environment = {
            **clean,
            "P2P_CLUSTER_HOME": str(self.home),
            "P2P_CLUSTER_BIN": str(BIN),
            "P2P_CLUSTER_CPUS": "1",  # a process of a translation for each
            "AWS_ACCESS_KEY_ID": "AKIATESTSOFP2PONLY00",
            "AWS_SECRET_ACCESS_KEY": KEY,
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
        }

    def call(self, *words: object) -> subprocess.CompletedProcess[str]:
        return self.run("bash", "cluster/local.sh", *words)

    def up(self, nodes: int, **environment: str) -> subprocess.CompletedProcess[str]:
        done = self.run("bash", "cluster/local.sh", "up", nodes, **environment)
        assert done.returncode == 0, done.stderr
        return done

    def run(self, *words: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
        with self.start(*words, cwd=cwd, **environment) as process:
            stdout, stderr = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)

    def start(self, *words: object, cwd: Path = ROOT, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            list(map(str, words)),
            cwd=cwd,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def variables(self) -> dict[str, str]:
        lines = [line.removeprefix("export ") for line in self.call("env").stdout.splitlines()]
        return {name: value.strip("'") for name, _, value in (line.partition("=") for line in lines)}

    def submission(self, *words: object, working_dir: Path = ROOT, **environment: str) -> list[object]:
        """The command that submits a job: over HTTP, since it is told no other address."""
        told = ("--runtime-env-json", json.dumps({"env_vars": environment})) if environment else ()
        return [BIN / "ray", "job", "submit", "--working-dir", working_dir, *told, "--", "python", *words]

    def access(self) -> dict[str, str]:
        """What a submitter needs to know, and no more."""
        return {name: value for name, value in self.variables().items() if name != "RAY_ADDRESS"}

    def ask(self, path: str) -> Any:
        """What the dashboard answers."""
        access = self.access()
        token = Path(access["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
        address = f"{access['RAY_API_SERVER_ADDRESS']}{path}"
        request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)

    def running_jobs(self) -> list[str]:
        return [one["submission_id"] for one in self.ask("/api/jobs/") if one["status"] == "RUNNING"]

    @contextlib.contextmanager
    def no_job_left(self) -> Iterator[None]:
        """End the jobs that a test which failed has left: the next one has the same cluster."""
        try:
            yield
        finally:
            for job in self.running_jobs():
                self.run(BIN / "ray", "job", "stop", job, **self.access())

    def processes_of(self, node: str) -> list[int]:
        """`head` or `node1`…: all its processes, and those of the jobs on it."""
        roots = [pid for pid in pids() if f"P2P_CLUSTER_MARK={self.home};{node};" in read_process(pid, "environ")]
        return list(dict.fromkeys(pid for root in roots for pid in (root, *descendants(root))))

    def workers_of(self, node: str, title: str) -> list[int]:
        return [pid for pid in self.processes_of(node) if title in read_process(pid, "cmdline")]

    def kill(self, node: str) -> None:
        """As if its machine were gone: none of its processes is left, not even one that is still dying."""
        handles = []
        for pid in self.processes_of(node):
            with contextlib.suppress(ProcessLookupError):
                handles.append(os.pidfd_open(pid))
        for handle in handles:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        for handle in handles:
            ended, _, _ = select.select([handle], [], [], PATIENCE)
            assert ended, "killed, and still there"
            os.close(handle)

    def remains(self) -> list[int]:
        """Processes that carry this cluster's folder in their command line or environment."""
        return [pid for pid in pids() if str(self.home) in read_process(pid, "cmdline") + read_process(pid, "environ")]


def wait_until(condition: Callable[[], Any], job: subprocess.Popen[str]) -> Any:
    """What `condition` returns once it is true. Fails when the job is over before that."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        if job.poll() is not None or time.monotonic() > deadline:
            job.kill()
            pytest.fail("it never came to that:\n" + "\n".join(job.communicate()))
        time.sleep(0.05)
    return found


def finish(job: subprocess.Popen[str]) -> str:
    stdout, stderr = job.communicate(timeout=PATIENCE)
    assert job.returncode == 0, stdout + stderr
    assert "Traceback" not in stdout + stderr
    return stdout + stderr


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    assert cluster.call("env").returncode == 1, "nothing is up"
    yield cluster
    cluster.call("down")
    cluster.home.parent.rmdir()


class Source:
    """Images over HTTP, of which it gives as many at once as the test says, and each other one only after a while: a
    corpus that takes its time and no processor's.
    """

    def __init__(self, images: dict[str, bytes]) -> None:
        source = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with source.turn:
                    source.askers.add(self.client_address[1])
                    # Late, but given: the job takes a server that sends nothing for half a minute for a broken one.
                    if source.turn.wait_for(lambda: source.left > 0, timeout=15):
                        source.left -= 1
                data = images[self.path.lstrip("/")]
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.turn = threading.Condition()
        self.left = 0.0
        self.askers: set[int] = set()
        """The ports of those who have asked for an image."""
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a reader was killed
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def give(self, images: float) -> None:
        with self.turn:
            self.left = images
            self.turn.notify_all()

    def was_asked_by(self, pids: list[int]) -> bool:
        import psutil  # comes with Ray

        ports: set[int] = set()
        for pid in pids:
            with contextlib.suppress(psutil.Error):
                ports |= {place.laddr.port for place in psutil.Process(pid).net_connections("tcp")}
        return bool(ports & self.askers)


@pytest.fixture(scope="module")
def source(make_image: Callable[..., bytes]) -> Iterator[Source]:
    source = Source({f"{number:03d}.png": make_image(64, 64, seed=number) for number in range(IMAGES)})
    yield source
    source.give(math.inf)
    source.server.shutdown()
    source.server.server_close()


@pytest.fixture(scope="module")
def corpus(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    listed = tmp_path_factory.mktemp("corpus") / "list.csv"
    lines = "".join(f"{number:03d},{source.url}/{number:03d}.png\n" for number in range(IMAGES))
    listed.write_text("image_id,uri\n" + lines)
    return listed


def pixels(output: Path) -> dict[str, bytes]:
    """Every translated image by its id, as it was encoded; and that each input is in the ledger and the output once."""
    table = pa.concat_tables([pq.read_table(path) for path in sorted((output / "data").iterdir())])
    ledger = pa.concat_tables([pq.read_table(path) for path in sorted((output / "ledger").iterdir())])
    assert Counter(table["image_id"].to_pylist()) == Counter(ledger["image_id"].to_pylist())
    assert set(Counter(ledger["image_id"].to_pylist()).values()) == {1}
    assert not [path for path in output.rglob("*") if path.name.startswith(".p2p-")]
    return dict(zip(table["image_id"].to_pylist(), table["image"].to_pylist(), strict=True))


@pytest.fixture(scope="module")
def alone(source: Source, corpus: Path, checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes of the corpus."""
    source.give(math.inf)
    output = tmp_path_factory.mktemp("alone") / "out"
    where = {"checkpoint": checkpoint, "source": str(corpus), "output": str(output)}
    config = TranslateConfig(**where, allow_private_addresses=True)
    translate(config, lambda _: contextlib.nullcontext(in_this_process))
    return pixels(output)


def shards_done(output: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (output / "ledger").glob("shard-*.parquet")}


def test_a_translation_outlives_a_node_and_a_process_and_gives_work_to_one_that_joins(
    cluster: Cluster, source: Source, corpus: Path, checkpoint: str, alone: dict[str, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    cluster.kill("node3")  # which a test before this one may have started
    up = cluster.up(2)
    address = cluster.variables()["RAY_API_SERVER_ADDRESS"]
    assert f"ray job submit --address {address} --working-dir . -- python jobs/train.py" in up.stdout
    assert stat.S_IMODE((cluster.home / "token").stat().st_mode) == 0o600
    words = ("jobs/translate.py", "--checkpoint", checkpoint, "--source", corpus, "--output", output)
    words += ("--allow-private-addresses",)

    def works(node: str) -> bool:
        return source.was_asked_by(cluster.workers_of(node, "ShardTranslator"))

    source.give(100)
    with cluster.start(*cluster.submission(*words), **cluster.access()) as job:
        wait_until(lambda: works("node1") and works("node2"), job)
        assert not cluster.processes_of("node3")
        cluster.up(3)
        wait_until(lambda: works("node3"), job)
        os.kill(cluster.workers_of("node2", "ShardTranslator")[0], signal.SIGKILL)
        cluster.kill("node1")
        source.give(math.inf)
        finish(job)
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["images"], summary["translated"], summary["failed"]) == (IMAGES, IMAGES, 0)
    assert pixels(output) == alone


def tensors(checkpoint: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Every number of a checkpoint, by file and name."""
    files = sorted(checkpoint.glob("*.safetensors"))
    return {f"{file.stem}.{name}": value for file in files for name, value in load_file(file).items()}


def moments_of_a_step_alone(data: str, options: TrainConfig) -> dict[str, np.ndarray[Any, Any]]:
    """The optimisers' first moments after one step with both workers' first batches of two, taken in this process."""
    crop = CropSettings(64, options.seed, options.flip, swap=False)
    stream = PairStream(open_pairs(data, "train", raw_load_size=raw_load_size(64)), None, crop, 2, workers=2)
    listed = stream._list_blocks(vars(EpochRange(1, 0, 2, finishes_epoch=False)))
    blocks = [stream._read_block({name: np.array([value]) for name, value in row.items()}) for row in listed]
    batch = np.concatenate([block["pairs"][0].reshape(2, -1) for block in blocks])
    trainer = Trainer(options, Pix2Pix(options.model("fp32"), seed=options.seed), Position())
    trainer.start_epoch(1)
    trainer.update(*crop.sides(torch.from_numpy(batch)))
    state = trainer.pix2pix.state().trainer
    return {f"trainer.{name}": value.numpy() for name, value in state.items() if name.endswith(".exp_avg")}


def nodes_of(cluster: Cluster, kind: str, field: str, value: str) -> set[str]:
    """Where the `tasks` or `actors` of which a field has some value have been, by Ray's ids of nodes."""
    listed = cluster.ask(f"/api/v0/{kind}?limit=1000&detail=1")["data"]["result"]["result"]
    return {one["node_id"] for one in listed if one[field] == value and one["node_id"]}


def resume(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # its node was killed, or Ray has given it up
        os.kill(pid, signal.SIGCONT)


def test_a_training_on_two_nodes_takes_the_steps_of_one_process_and_outlives_a_node(
    cluster: Cluster, make_pairs: Callable[..., Path], tmp_path: Path
) -> None:
    data = str(make_pairs(tmp_path / "pairs" / "train", 8, size=72).parent)
    options: dict[str, Any] = {"generator": "unet_64", "ngf": 4, "discriminator": "patch_16", "ndf": 4}
    options |= {"crop_size": 64, "batch_size": 2, "epochs": 10, "epochs_decay": 0, "precision": "fp32", "gpu": "false"}
    options |= {"norm": "instance", "dropout": False, "workers": 2, "checkpoint_every_steps": 1, "keep_checkpoints": 0}
    words = [str(word).lower() for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    run = tmp_path / "run"
    # Of one CPU each, and at last a single one, for the workers and the tasks that read for them.
    cluster.up(3)
    submission = cluster.submission("jobs/train.py", "--data", data, "--output", run, *words)
    workers: dict[str, list[int]] = {}
    with cluster.start(*submission, **cluster.access()) as job, contextlib.ExitStack() as at_the_end:
        wait_until((run / "latest.json").exists, job)
        for node in NODES:
            if found := cluster.workers_of(node, "RayTrainWorker"):
                workers[node] = found
                for pid in found:  # at once, lest training ends before the dashboard has answered
                    os.kill(pid, signal.SIGSTOP)
                    at_the_end.callback(resume, pid)
        [training] = cluster.ask("/api/train/v2/runs/v1")["train_runs"]
        datasets = cluster.ask(f"/api/data/datasets/{training['job_id']}")["datasets"]
        trainers = nodes_of(cluster, "actors", "class_name", "RayTrainWorker")
        wait_until(lambda: nodes_of(cluster, "tasks", "name", "MapBatches(PairStream._read_block)") - trainers, job)
        kept = [*workers][-1]
        for node in {*NODES} - {kept}:
            cluster.kill(node)
        for pid in workers[kept]:
            resume(pid)
        said = finish(job)
    assert len(workers) == len(trainers) == 2, "the workers shared a node"
    assert (training["name"], training["status"]) == (str(run).strip("/").replace("/", "-")[-100:], "RUNNING")
    assert [dataset["state"] for dataset in datasets if dataset["dataset"].startswith("train")] == ["RUNNING"], datasets
    assert "starting the workers again (1 of 3)" in said
    assert json.loads((run / "latest.json").read_text())["step"] == 20
    printed = [json.loads(line) for line in said.splitlines() if line.startswith('{"')]
    assert printed == [json.loads((run / "summary.json").read_text())]

    # Two workers take the step that one takes with twice the batch. Adam's first moment is a tenth of half the
    # gradient; the step itself has only the gradient's sign.
    options |= {"batch_size": 4, "workers": 1}
    one = moments_of_a_step_alone(data, TrainConfig(data=data, output="-", **options))
    two = tensors(run / "checkpoints/epoch_0001_step_00000001")
    assert one
    for name in one:
        assert np.linalg.norm(one[name] - two[name]) <= 1e-3 * np.linalg.norm(one[name]) + 1e-5, name


def test_a_training_told_of_a_preemption_saves_and_goes_on_elsewhere(
    cluster: Cluster, make_pairs: Callable[..., Path], tmp_path: Path
) -> None:
    data = str(make_pairs(tmp_path / "pairs" / "train", 8, size=72).parent)
    words = "--generator unet_64 --ngf 4 --discriminator patch_16 --ndf 4 --crop-size 64 --batch-size 2 --workers 2"
    words += " --gpu false --epochs 100000 --checkpoint-every 100000"  # ends when it is stopped, and saves when told to
    run = tmp_path / "run"
    cluster.up(3)
    quick = {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.2"}  # not once in five seconds
    submission = cluster.submission("jobs/train.py", "--data", data, "--output", run, *words.split(), **quick)
    with cluster.start(*submission, **cluster.access()) as job, cluster.no_job_left():
        wait_until((run / "metrics.jsonl").exists, job)
        told = next(node for node in NODES if cluster.workers_of(node, "RayTrainWorker"))
        listed = cluster.ask("/api/v0/nodes?detail=1")["data"]["result"]["result"]
        alive = [node for node in listed if node["state"] == "ALIVE"]  # others of that name may have been killed before
        (node_id,) = [node["node_id"] for node in alive if node["labels"].get("p2p-node") == told.removeprefix("node")]
        reason = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot")
        drain = (BIN / "ray", "drain-node", "--node-id", node_id, *reason, "--deadline-remaining-seconds", 10)
        done = cluster.run(*drain, **cluster.variables())
        assert done.returncode == 0, done.stderr
        wait_until((run / "latest.json").exists, job)
        saved = json.loads((run / "latest.json").read_text())
        [running] = cluster.running_jobs()
        wait_until(lambda: "continuing after step" in cluster.ask(f"/api/jobs/{running}/logs")["logs"], job)
        assert not cluster.workers_of(told, "RayTrainWorker")
        cluster.run(BIN / "ray", "job", "stop", running, **cluster.access())
        stdout, stderr = job.communicate(timeout=PATIENCE)
    said = stdout + stderr
    assert "_step_" in saved["checkpoint"] and saved["step"] > 0
    assert f"a node is about to be taken away: saved step {saved['step']}; " in said and "(1 of 20)" in said
    assert f"continuing after step {saved['step']} from {saved['checkpoint']}" in said
    assert "Traceback" not in said and "was lost" not in said


def holding(folder: Path, text: str) -> set[str]:
    """Names of the files below `folder` that hold `text`."""
    found = set()
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # Ray renames and removes files of its own meanwhile
            if path.is_file() and not path.is_symlink() and text.encode() in path.read_bytes():
                found.add(path.name)
    return found


def test_a_head_is_lost_and_the_same_submission_does_the_rest_and_tells_no_key(
    cluster: Cluster,
    source: Source,
    corpus: Path,
    s3: Any,
    s3_server: Any,
    checkpoint: str,
    alone: dict[str, bytes],
    tmp_path: Path,
) -> None:
    output, folder = tmp_path / "the output", Path("a folder") / "with spaces"
    for name in ("jobs", "p2p"):
        shutil.copytree(ROOT / name, tmp_path / folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    write_bytes(s3.uri("list.csv"), corpus.read_bytes())
    words = ("jobs/translate.py", "--checkpoint", checkpoint, "--source", s3.uri("list.csv"), "--output", output)
    words += ("--workers", "2", "--allow-private-addresses")
    told = {"AWS_ENDPOINT_URL": s3_server.url, "AWS_SESSION_TOKEN": TOLD}
    command = cluster.submission(*words, working_dir=folder, **told)

    cluster.up(2)
    source.give(200)
    with cluster.start(*command, cwd=tmp_path, **cluster.access()) as job:
        wait_until(lambda: shards_done(output), job)
        cluster.kill("head")
        job.kill()
        said = "".join(job.communicate())
    assert KEY not in said and holding(cluster.home, KEY) == set()
    assert TOLD not in said
    assert "the head was lost" in cluster.up(2).stderr
    source.give(math.inf)
    done = shards_done(output)
    with cluster.start(*command, cwd=tmp_path, **cluster.access()) as job:
        said = finish(job)
    summary = json.loads((output / "summary.json").read_text())
    assert summary["skipped"] == 8 * len(done) and summary["translated"] == IMAGES - summary["skipped"]
    assert {path: path.stat().st_mtime_ns for path in done} == done, "finished work was done again"
    assert pixels(output) == alone
    assert KEY not in said and holding(output, KEY) | holding(cluster.home, KEY) == set()
    logged = holding(cluster.home, TOLD)
    assert all(name.startswith("runtime_env_agent") for name in logged), "Ray's own log has it, and nothing else"
    assert TOLD not in said and holding(output, TOLD) == set()


def test_mistakes_are_told_strangers_refused_and_nothing_is_left(cluster: Cluster, tmp_path: Path) -> None:
    cluster.up(2)
    words = ("jobs/train.py", "--data", tmp_path / "none", "--output", "x")
    wrong = cluster.run(*cluster.submission(*words), **cluster.access())
    said = wrong.stdout + wrong.stderr
    assert wrong.returncode == 1
    assert f"error: --data {tmp_path}/none: nothing is there" in said
    assert "Traceback" not in said and "exit code 2" in said
    assert "answers without a token" not in said

    (tmp_path / "other").write_text("f" * 64)
    uninvited = {**cluster.access(), "RAY_AUTH_TOKEN_PATH": str(tmp_path / "other")}
    assert cluster.run(*cluster.submission("-c", "print(1)"), **uninvited).returncode != 0

    ports = [int(port) for port in (cluster.home / "ports").read_text().split()]
    assert len(cluster.remains()) > 3
    assert cluster.call("down").returncode == 0
    assert cluster.remains() == []
    assert not cluster.home.exists()
    for port in ports:
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("127.0.0.1", port))
