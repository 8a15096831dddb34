"""What every test may use: a private S3 server, one small Ray, tiny pairs, and a job run as its process would."""

from __future__ import annotations

import contextlib
import html
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from kept_worker import KeptWorker
from PIL import Image
from xdist.scheduler import LoadScopeScheduling

from p2p.data import local

# Ray's workers and the S3 clients copy the environment when they start, so all of it is set before either does.
# Nothing here may reach a cluster, a bucket or an account of the person who runs the tests.
for _name in ("RAY_ADDRESS", "AWS_PROFILE", "AWS_SESSION_TOKEN", "P2P_INCEPTION_WEIGHTS"):
    os.environ.pop(_name, None)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # hundreds of processes import p2p, each compiling all of it
os.environ.update(
    {
        "AWS_ACCESS_KEY_ID": "AKIATESTSOFP2PONLY00",
        "AWS_SECRET_ACCESS_KEY": "s3cr3t-of-the-p2p-tests-never-printed",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",  # nothing listens there; the fixture `s3_server` replaces it
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",  # two test processes and Ray's share the cores, and threads that spin take them away
        "GOMP_SPINCOUNT": "1000",  # as p2p has it in Ray's workers; here a training may run in the test's process
        "RAY_AUTH_MODE": "disabled",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        # Nobody reads what Ray's log monitor follows, and it looks for new files ten times a second.
        "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
        "LOG_NAME_UPDATE_INTERVAL_S": "86400",
    }
)

# The same examples every time, and no judgement of how long one takes: machines that run tests are busy.
hypothesis.settings.register_profile(
    "p2p",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=25,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("p2p")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in tests/on_ray is marked, so that `pytest -m "not ray"` is the quick part of the suite."""
    for item in items:
        if "on_ray" in item.path.parts:
            item.add_marker(pytest.mark.ray)


class OneRay(LoadScopeScheduling):
    """Gives one test process all tests that share a Ray, another those that start clusters, and shares out the rest."""

    def _split_scope(self, nodeid: str) -> str:
        if "/on_ray/" not in nodeid:
            return nodeid
        return "clusters" if "/test_cluster.py" in nodeid else "ray"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return OneRay(config, log)


DEFECTS = Path(__file__).parent / "fatal"

# The server is a process of its own, since a thread would share the interpreter lock with the test, and it ends when
# its standard input closes, so that even a killed test run leaves nothing behind.
_S3_SERVER = """
import logging, sys, threading
logging.getLogger("werkzeug").setLevel(logging.ERROR)
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

put, one_at_a_time = S3Response.put_object, threading.Lock()

def put_object(self):
    with one_at_a_time:  # moto looks whether an object is there and writes it later; in S3 that is one act
        return put(self)

S3Response.put_object = put_object
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(*server.get_host_and_port(), flush=True)
sys.stdin.read()
"""


class S3Server:
    """An S3 server on a free loopback port; `url` is its endpoint."""

    def __init__(self, **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _S3_SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **environment},
        )
        assert self._process.stdout is not None
        host, port = self._process.stdout.readline().split()
        self.url = f"http://{host}:{port}"

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@dataclass(frozen=True)
class S3Place:
    """A clean prefix in a bucket."""

    bucket: str
    prefix: str

    def uri(self, *parts: str) -> str:
        return "/".join([f"s3://{self.bucket}", self.prefix, *(part.strip("/") for part in parts)])


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """The server that AWS_ENDPOINT_URL names, in this process and in Ray's workers, with the bucket `p2p-tests`."""
    import s3fs

    server = S3Server()
    os.environ["AWS_ENDPOINT_URL"] = server.url
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir("p2p-tests")
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: S3Server, request: pytest.FixtureRequest, tmp_path: Path) -> S3Place:
    """`s3.uri("pairs", "train")` is an address below a prefix that only this test uses."""
    return S3Place("p2p-tests", re.sub(r"[^\w]+", "-", request.node.name)[:60].strip("-") + "-" + tmp_path.name)


def pids() -> list[int]:
    """All processes but this one."""
    return [pid for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()) if pid != os.getpid()]


def read_process(pid: int, what: str) -> str:
    """A file of /proc, such as `cmdline`; empty for a process that has ended."""
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(pid) / what).read_text(errors="replace")
    return ""


def descendants(pid: int) -> Iterator[int]:
    """The processes that `pid` started, and theirs."""
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield int(child)
                yield from descendants(int(child))


@pytest.fixture(scope="session")
def ray_cluster(s3_server: S3Server) -> Iterator[None]:
    """One Ray for the whole test run, with more logical CPUs than a small machine has.

    Its workers have decoders with the defects of tests/fatal, which harm nobody but inputs that ask for it.
    """
    from p2p.data.session import ray  # with the settings that Ray reads when it is imported

    folder = tempfile.mkdtemp(prefix="p2p-ray-", dir="/tmp")  # short, since the paths of Ray's sockets are limited
    path = os.pathsep.join(filter(None, (str(DEFECTS), os.environ.get("PYTHONPATH"))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.setenv("RAY_worker_niceness", "0")  # else they starve beside the tests' other process
        ray.init(
            address="local",
            _temp_dir=folder,
            num_cpus=8,
            object_store_memory=256 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def kept_worker() -> Iterator[KeptWorker]:
    worker = KeptWorker()
    yield worker
    worker.end()


@pytest.fixture
def jobs_share_a_process(kept_worker: KeptWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of jobs that need a child process and are not about it: importing torch takes longer than they do."""
    monkeypatch.setattr(local, "LocalWorker", lambda: kept_worker)


@pytest.fixture
def torch_threads() -> Iterator[None]:
    """For a test that computes what sets them for its thread: as many are there afterwards as were before."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def as_in_a_new_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What earlier tests of the same process left is not seen: how jobs log and, outside tests/on_ray, their Ray."""
    ray = sys.modules.get("ray")
    if ray is not None and "ray" not in request.keywords:
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
    logger = logging.getLogger("p2p")  # a fixture of a whole module may have run a job before this one is set up
    logger.handlers[:], logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def train_in_this_process(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Train's local mode: the same job and training loop, without the seconds that a worker process costs."""
    import ray.train

    from p2p.training import launch

    monkeypatch.setattr(launch, "resources", lambda config: ray.train.ScalingConfig(num_workers=0))


def _drawing(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Aligned A, noisy and shaded, and B, flat colours: something a generator can learn in a few steps."""
    palette = np.array([[242, 239, 233], [170, 211, 223], [200, 220, 170], [255, 255, 255]], np.uint8)
    labels = np.zeros((size, size), np.int64)
    for label in (1, 2, 3):
        y, x = rng.integers(0, max(1, size * 3 // 4), 2)
        height, width = rng.integers(max(1, size // 8), max(2, size // 2), 2)
        labels[y : y + height, x : x + width] = label
    b = palette[labels]
    a = np.clip(b * 0.6 + rng.normal(0, 8, b.shape), 0, 255).astype(np.uint8)
    return a, b


@pytest.fixture(scope="session")
def make_pairs() -> Callable[..., Path]:
    """`make_pairs(folder, n, size, seed=0)` writes `n` combined images (A left, B right), 2*size by size, as PNG."""

    def make(folder: Path | str, n: int, size: int = 32, seed: int = 0) -> Path:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(n):
            halves = _drawing(np.random.default_rng([seed, index]), size)
            Image.fromarray(np.concatenate(halves, axis=1)).save(folder / f"{index:04d}.png")
        return folder

    return make


@pytest.fixture(scope="session")
def make_image() -> Callable[..., bytes]:
    """`make_image(height, width, format="PNG", seed=0, **save_options)` -> the encoded bytes of an RGB drawing."""

    def make(height: int, width: int, format: str = "PNG", seed: int = 0, **options: Any) -> bytes:
        image = _drawing(np.random.default_rng(seed), max(height, width))[0][:height, :width]
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format, **options)
        return buffer.getvalue()

    return make


@pytest.fixture(params=["disk", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a job writes: a local folder, and a prefix of a bucket."""
    if request.param == "disk":
        return str(tmp_path / "out")
    uri: str = request.getfixturevalue("s3").uri("out")
    return uri


@dataclass(frozen=True)
class Outcome:
    """What a job's process leaves: its exit status, the JSON in its last stdout line (if any), and its output."""

    status: int
    summary: dict[str, Any] | None
    stderr: str
    stdout: str


@pytest.fixture
def run_cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """`run_cli(TrainConfig, train, "--data", …)` runs a job in this process and reads its real file descriptors."""
    from p2p.cli import run_job

    def run(config_class: type, job: Callable[[Any], Any], *words: object) -> Outcome:
        capfd.readouterr()
        status = run_job(config_class, job, [str(word) for word in words])
        stdout, stderr = capfd.readouterr()
        lines = stdout.splitlines()
        summary = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None
        return Outcome(status, summary, stderr, stdout)

    return run


BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`browse(page, function, width=1200)`: what a JavaScript function returns, or promises, in Chromium."""
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.fail(f"no browser ({', '.join(BROWSERS)}); install Debian's package chromium")

    def run(page: Path, function: str, width: int = 1200) -> dict[str, Any]:
        probe = f"""<script>addEventListener("load", async () => {{
            const element = document.createElement("pre");
            element.id = "probe";
            try {{ element.textContent = JSON.stringify(await ({function})()); }}
            catch (error) {{ element.textContent = JSON.stringify({{error: String(error)}}); }}
            document.body.append(element);
        }});</script>"""
        copy = tmp_path / "probed.html"
        copy.write_text(page.read_text(encoding="utf-8") + probe, encoding="utf-8")
        done = subprocess.run(
            [
                program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--no-first-run",
                f"--user-data-dir={tmp_path / 'browser'}",
                f"--window-size={width},1000",
                "--virtual-time-budget=5000",
                "--dump-dom",
                copy.as_uri(),
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
        assert found, done.stderr[-2000:]
        values: dict[str, Any] = json.loads(html.unescape(found[1]))
        assert "error" not in values, values
        return values

    return run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small untrained generator for tiles of 64 pixels."""
    from p2p.model.checkpoint import save_checkpoint
    from p2p.model.config import ModelConfig
    from p2p.model.pix2pix import Pix2Pix

    folder = str(tmp_path_factory.mktemp("checkpoint"))
    config = ModelConfig(generator="unet_64", discriminator="patch_16", ngf=4, ndf=4, crop_size=64)
    save_checkpoint(folder, Pix2Pix(config, seed=0), {"epoch": 1}, {})
    return folder


class _Quiet:
    """Progress that nobody looks at."""

    def advance(self, count: int, note: str = "") -> None:
        pass


def in_this_process(work: Any, left: Any) -> Any:
    """Do a translation's shards without Ray, by the class that Ray's actors run."""
    from p2p.translation.actor import ShardTranslator
    from p2p.translation.pool import SHARD_COLUMNS, collect

    batch = {name: np.array([getattr(shard, name) for shard in left.units]) for name in SHARD_COLUMNS}
    rows = ({"report": report} for told in ShardTranslator(work)(batch) for report in told["report"])
    return collect(rows, _Quiet())  # type: ignore[arg-type]
