"""Waiting for what a cluster is to have."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from p2p.data import cluster
from p2p.errors import ConfigError
from p2p.training import TrainConfig
from p2p.training.launch import resources


@pytest.fixture
def ray_with_gpus(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A Ray as far as it is asked for GPUs: it has `gpus`, and `coming` more for who waits for them."""
    ray = SimpleNamespace(gpus=0, coming=0, is_private=False, bundles=[], removed=0)

    class Group:
        def __init__(self, bundles: list[dict[str, int]]) -> None:
            ray.bundles = bundles

        def wait(self, seconds: float) -> bool:
            ray.gpus += ray.coming
            return ray.gpus >= len(ray.bundles)

    def remove(_: Group) -> None:
        ray.removed += 1

    monkeypatch.setattr(cluster.ray, "util", SimpleNamespace(placement_group=Group, remove_placement_group=remove))
    monkeypatch.setattr(cluster, "_cluster_resources", lambda: {"CPU": 8.0, "GPU": float(ray.gpus)})
    monkeypatch.setattr(cluster, "is_private", lambda: ray.is_private)
    monkeypatch.setattr("p2p.training.launch.smallest_node_cpus", lambda: 8.0)
    return ray


def test_a_training_waits_for_the_gpus_of_all_its_workers(ray_with_gpus: SimpleNamespace) -> None:
    config = TrainConfig(data="d", output="o", workers=4, gpu="true")
    ray_with_gpus.gpus, ray_with_gpus.coming = 1, 3
    scaling = resources(config)
    assert (scaling.use_gpu, scaling.num_workers, ray_with_gpus.bundles) == (True, 4, [{"GPU": 1}] * 4)
    assert ray_with_gpus.removed == 1, "what was asked for is no longer held when training asks"
    ray_with_gpus.bundles = []
    assert resources(config).use_gpu and not ray_with_gpus.bundles, "there is nothing to wait for"


@pytest.mark.parametrize("is_private", [True, False])
def test_gpus_that_never_come_are_a_mistake_of_the_options(ray_with_gpus: SimpleNamespace, is_private: bool) -> None:
    ray_with_gpus.is_private = is_private
    with pytest.raises(ConfigError, match="gpu true: 2 workers need one each, the cluster has 0 GPUs"):
        resources(TrainConfig(data="d", output="o", workers=2, gpu="true"))
    assert ray_with_gpus.removed == (not is_private), "only a cluster can start one"
    assert not resources(TrainConfig(data="d", output="o", workers=2)).use_gpu


def test_pairs_are_not_kept_on_gpus_that_are_not_there(ray_with_gpus: SimpleNamespace) -> None:
    with pytest.raises(ConfigError, match="cache device: no GPUs are used; use host, auto or none"):
        resources(TrainConfig(data="d", output="o", cache="device"))
    ray_with_gpus.gpus = 1
    assert resources(TrainConfig(data="d", output="o", cache="device")).use_gpu
