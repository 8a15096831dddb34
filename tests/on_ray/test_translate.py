"""Translation on Ray: every input once, whatever is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import descendants, read_process

from p2p.errors import P2PError, TooManyBadInputsError, UsageError
from p2p.storage.filesystems import arrow_filesystem, list_files, list_names, read_bytes, write_bytes
from p2p.translation import TranslateConfig, translate

pytestmark = pytest.mark.ray
PATIENCE = 120.0  # seconds until a test that waits for another process gives up


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    from p2p.model.checkpoint import save_checkpoint
    from p2p.model.config import ModelConfig
    from p2p.model.pix2pix import Pix2Pix

    folder = str(tmp_path_factory.mktemp("checkpoint"))
    config = ModelConfig(generator="unet_64", discriminator="patch_16", ngf=8, ndf=4, crop_size=64)
    save_checkpoint(folder, Pix2Pix(config, seed=0), {"epoch": 1}, {})
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, make_image: Callable[..., bytes]) -> Path:
    """200 good images of nine to sixteen tiles, a second or more of work for two actors, and a bad one."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(200):
        (folder / f"{number:03d}.png").write_bytes(make_image(128 + number % 64, 160, seed=number))
    (folder / "bad.jpg").write_bytes(b"no image")
    return folder


def config_of(checkpoint: str, source: object, output: object, **options: Any) -> TranslateConfig:
    options = {"workers": 2, "max_bad_fraction": 0.01, **options}
    return TranslateConfig(checkpoint=checkpoint, source=str(source), output=str(output), **options)


def rows_of(folder: str, columns: list[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for file in list_files(folder, (".parquet",)):
        filesystem, path = arrow_filesystem(file.uri)
        rows += pq.read_table(path, filesystem=filesystem, columns=columns).to_pylist()
    return rows


def assert_each_input_once(output: Path, source: Path) -> None:
    ledger = rows_of(str(output / "ledger"), ["image_id", "status"])
    assert Counter(row["image_id"] for row in ledger) == Counter(path.name for path in source.iterdir())
    translated = [row["image_id"] for row in rows_of(str(output / "data"), ["image_id"])]
    assert Counter(translated) == Counter(row["image_id"] for row in ledger if row["status"] == "translated")
    assert [row["image_id"] for row in ledger if row["status"] == "failed"] == ["bad.jpg"]
    assert not [path for path in output.rglob("*") if path.name.startswith(".p2p-")]


def wait_for_shards(output: Path, count: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while len(list_names(str(output / "ledger"))) < count and time.monotonic() < deadline:
        time.sleep(0.01)


def actors() -> list[int]:
    """The processes of this test's Ray that hold a model."""
    return [pid for pid in descendants(os.getpid()) if "ShardTranslator" in read_process(pid, "cmdline")]


@contextlib.contextmanager
def an_actor_dies_after(output: Path, shards: int, died: list[int]) -> Iterator[None]:
    """Kill -9 one of this process's actors once so many shards are done; notes how many were done then."""

    before = set(actors())  # of the test before, about to end

    def kill() -> None:
        deadline = time.monotonic() + PATIENCE
        # Looked up now, since on a busy machine that takes as long as the last shards do.
        while not (found := [pid for pid in actors() if pid not in before]) and time.monotonic() < deadline:
            time.sleep(0.01)
        wait_for_shards(output, shards)
        os.kill(found[0], signal.SIGKILL)
        died.append(len(list_names(str(output / "ledger"))))

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    yield
    thread.join()


def test_a_killed_actor_costs_nothing_and_a_second_run_does_nothing(
    ray_cluster: None, tmp_path: Path, checkpoint: str, corpus: Path
) -> None:
    output = tmp_path / "out"
    died: list[int] = []
    with an_actor_dies_after(output, 2, died):
        summary = translate(config_of(checkpoint, corpus, output))
    shards = len(list_names(str(output / "ledger")))
    assert died and died[0] < shards, "the actor was killed while there was work left"
    assert (summary["images"], summary["translated"], summary["failed"], summary["skipped"]) == (201, 200, 1, 0)
    assert_each_input_once(output, corpus)
    again = translate(config_of(checkpoint, corpus, output))
    assert (again["translated"], again["failed"], again["skipped"]) == (0, 1, 200)
    with pytest.raises(TooManyBadInputsError):
        translate(config_of(checkpoint, corpus, output, max_bad_fraction=0.0))


def test_a_gpu_that_no_node_has_is_waited_for_before_anything_is_begun(
    ray_cluster: None, tmp_path: Path, checkpoint: str, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2p.data.cluster._SECONDS_FOR_GPUS", 0.1)
    with pytest.raises(UsageError, match="gpu true: the cluster has no GPU"):
        translate(config_of(checkpoint, corpus, tmp_path / "out", gpu="true"))
    assert not (tmp_path / "out" / "manifest").exists()


def test_work_that_must_stop_is_told_in_a_line_and_leaves_no_actor(
    ray_cluster: None, tmp_path: Path, checkpoint: str
) -> None:
    nobody_listens = "".join(f"{number},http://127.0.0.1:1/{number}.png\n" for number in range(100))
    (tmp_path / "list.csv").write_text(f"image_id,uri\n{nobody_listens}")
    with pytest.raises(P2PError, match="reads in a row have failed") as caught:
        options = {"workers": 1, "allow_private_addresses": True}
        translate(config_of(checkpoint, tmp_path / "list.csv", tmp_path / "out", **options))
    assert "\n" not in str(caught.value)
    deadline = time.monotonic() + PATIENCE
    while actors() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert actors() == []


def test_a_bucket_to_a_bucket(ray_cluster: None, s3: Any, checkpoint: str, make_image: Callable[..., bytes]) -> None:
    names = ["a.png", "deep/b c.png", "deep/[d]?#.png"]
    for number, name in enumerate(names):
        write_bytes(s3.uri("in", name), make_image(64, 70, seed=number))
    for file in ("generator.safetensors", "meta.json"):
        write_bytes(s3.uri("checkpoint", file), read_bytes(f"{checkpoint}/{file}"))
    where = (s3.uri("checkpoint"), s3.uri("in"), s3.uri("out"))
    summary = translate(config_of(*where, format="jpeg", workers=1))
    assert summary["translated"] == 3
    found = sorted(file.path for file in list_files(s3.uri("out", "images")))
    assert found == sorted(name.replace(".png", ".jpg") for name in names)
    assert translate(config_of(*where, format="jpeg", workers=1))["skipped"] == 3
