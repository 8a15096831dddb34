"""What a worker sets up before it trains and what it makes of errors, without Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from p2p.errors import TrainingStoppedError
from p2p.training import TrainConfig, worker


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_convolutions_in_float32_are_not_rounded_to_tf32(monkeypatch, precision):
    context: Any = SimpleNamespace(get_local_world_size=lambda: 1, get_world_size=lambda: 1)
    no_gpu: Any = SimpleNamespace(get_accelerator_ids=lambda: {})
    monkeypatch.setattr(worker.ray, "get_runtime_context", lambda: no_gpu)
    monkeypatch.setattr(worker.ray.train.torch, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    for name in ("benchmark", "allow_tf32"):
        monkeypatch.setattr(torch.backends.cudnn, name, precision == "fp32")
    small: Any = {"generator": "unet_64", "discriminator": "patch_16", "ngf": 4, "ndf": 4, "crop_size": 64}
    config = TrainConfig(data="pairs", output="run", precision=precision, **small)
    data = SimpleNamespace(bits=8, input_palette=None, bands=(None, None))
    pix2pix = worker._build_networks(SimpleNamespace(config=config, data=data), context)
    assert pix2pix.config.precision == precision
    assert torch.backends.cudnn.enabled and torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.allow_tf32 == (precision == "bf16")


@pytest.mark.parametrize(
    "error, said",
    [
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "ALLOC_FAILED; lower batch_size or crop_size, or set"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to"), "^CUDA out of memory; lower batch_size or crop_size"),
    ],
)
def test_a_full_gpu_ends_training_with_advice_whoever_notices(monkeypatch, error, said):
    def fail(_: object) -> None:
        raise error

    reported: list[Exception] = []
    reporter = SimpleNamespace(
        failure=SimpleNamespace(remote=lambda: None), fail=SimpleNamespace(remote=reported.append)
    )
    monkeypatch.setattr(worker, "_train", fail)
    monkeypatch.setattr(worker.ray, "get", lambda answer: answer)
    task = SimpleNamespace(reporter=reporter, stream=SimpleNamespace(cache="device"))
    with pytest.raises(TrainingStoppedError, match=said) as stopped:
        worker.train_worker({"task": task})
    assert reported == [stopped.value], "else Ray Train would try the same again"
