"""What work is given of a cluster with GPUs, counted where the GPUs are."""

from __future__ import annotations

import io
import logging

import pytest

from p2p.data import cluster
from p2p.evaluation import pool as evaluation


def node(cpus: float, gpus: float = 0, alive: bool = True) -> dict[str, object]:
    return {"Alive": alive, "Resources": {"CPU": cpus} | ({"GPU": gpus} if gpus else {})}


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    monkeypatch.setattr(cluster, "is_private", lambda: False)
    monkeypatch.setattr("ray.nodes", lambda: found)
    return found


def test_cores_of_nodes_without_a_gpu_do_not_count(nodes: list[dict[str, object]]) -> None:
    nodes += [node(64), node(16, 2), node(40, 4), node(1, 8, alive=False)]
    assert cluster.cpus_per_gpu() == 8
    nodes.append(node(0, 1))
    assert cluster.cpus_per_gpu() == 1


def test_a_machine_of_its_own_shares_its_cores_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "is_private", lambda: True)
    monkeypatch.setattr(cluster, "available_cpus", lambda: 30)
    monkeypatch.setattr(cluster, "cluster_gpus", lambda: 4)
    assert cluster.cpus_per_gpu() == 7


@pytest.mark.parametrize(
    "gpus, cores, chunks, expected",
    [
        (0, 4, 100, (4, 0)),
        (0, 4, 2, (2, 0)),
        (2, 16, 100, (8, 1 / 4)),
        (2, 2, 100, (2, 1)),
        (2, 64, 100, (16, 1 / 8)),
        (2, 16, 5, (4, 1 / 2)),
        (8, 64, 3, (3, 1)),
    ],
)
def test_evaluation_shares_gpus_so_that_cores_can_feed_them(
    monkeypatch: pytest.MonkeyPatch, gpus: int, cores: int, chunks: int, expected: tuple[int, float]
) -> None:
    monkeypatch.setattr(cluster, "cluster_cpus", lambda: cores)
    monkeypatch.setattr(cluster, "cpus_per_gpu", lambda: cores // gpus)
    assert evaluation._size_pool(gpus, chunks) == expected


def test_a_program_that_collects_the_errors_of_ray_data_gets_them() -> None:
    logger, lines = logging.getLogger("ray.data"), io.StringIO()
    handler = logging.StreamHandler(lines)
    logger.addHandler(handler)
    try:
        cluster.quiet_data_context()
        logger.error("a task failed")
    finally:
        logger.removeHandler(handler)
    assert lines.getvalue() == "a task failed\n"
