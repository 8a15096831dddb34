"""How many processes a translation gets: exactly so many on a machine of its own, as many as join on a cluster."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from p2p.translation import TranslateConfig
from p2p.translation import ray_pool as pool
from p2p.translation.pool import collect
from p2p.translation.work import Work


def sized(monkeypatch: pytest.MonkeyPatch, *, private: bool, cores: int, gpus: int, shards: int, **options: Any) -> Any:
    facts = {"is_private": private, "cluster_cpus": cores, "cluster_gpus": gpus, "cpus_per_gpu": 8}
    for name, value in facts.items():
        monkeypatch.setattr(pool, name, lambda value=value: value)
    monkeypatch.setattr(pool, "available_cpus", lambda: 8)
    settings: Any = SimpleNamespace(size_mode="tile", tile_size=64)
    work = Work(settings=settings, generator_uri="", batch_size=8)
    return pool._size_pool(TranslateConfig(checkpoint="c", source="s", output="o", **options), work, shards)


@pytest.mark.parametrize(
    "private, workers, shards, actors, most",
    [
        (True, 0, 1000, 4, 4),
        (True, 9, 1000, 9, 9),
        (False, 0, 1000, 4, 256),
        (False, 2, 1000, 2, 2),
        (False, 9, 1000, 4, 9),
        (False, 0, 3, 3, 3),
        (False, 9, 6, 4, 6),
    ],
)
def test_processes_of_four_cores(
    monkeypatch: pytest.MonkeyPatch, private: bool, workers: int, shards: int, actors: int, most: int
) -> None:
    found = sized(monkeypatch, private=private, cores=4, gpus=0, shards=shards, workers=workers)
    assert (found.actors, found.max_actors) == (actors, most)
    assert found.initial_actors == (most if workers else actors)
    assert found.work.threads == max(1, 4 // actors) + 1


@pytest.mark.parametrize(
    "private, workers, actors, most, per_gpu",
    [
        (True, 0, 4, 4, 2),
        (True, 2, 2, 2, 1),
        (True, 6, 6, 6, 3),
        (True, 5, 4, 4, 2),  # Ray would give one of them a GPU that two others share
        (True, 3, 2, 2, 1),
        (False, 0, 4, 256, 2),
        (False, 2, 2, 2, 1),
        (False, 64, 4, 64, 2),
    ],
)
def test_processes_of_two_gpus(
    monkeypatch: pytest.MonkeyPatch, private: bool, workers: int, actors: int, most: int, per_gpu: int
) -> None:
    found = sized(monkeypatch, private=private, cores=1000, gpus=2, shards=1000, workers=workers)
    assert (found.actors, found.max_actors, 1 / found.resources["num_gpus"]) == (actors, most, per_gpu)
    assert found.work.codec_threads == max(2, 8 // per_gpu), "of the cores beside a GPU, not of all nodes"


def test_why_a_network_runs_slower_than_it_could_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    reports = [{"at": 1.0, "fallbacks": ["no graph: refused"]}, {"at": 2.0, "fallbacks": ["no graph: refused"]}]
    progress: Any = SimpleNamespace()
    with caplog.at_level("WARNING", "p2p"):
        outcome = collect(({"report": json.dumps(report)} for report in reports), progress)
    assert caplog.messages == outcome.fallbacks == ["no graph: refused"]
