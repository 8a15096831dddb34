"""What holds on CUDA, as far as it can be seen without a card: the kernels that are chosen, and what errors mean."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from p2p.model import cuda_graphs
from p2p.model.config import ModelConfig
from p2p.model.cuda_graphs import (
    CudaGraphStream,
    RecordedCall,
    convolution_kernels,
    fits_float16,
    is_device_lost,
    is_out_of_memory,
)
from p2p.model.engine import Engine
from p2p.model.inception import Inception
from p2p.model.lpips import Lpips
from p2p.model.networks import build_generator

CUDNN = {torch._C._ConvBackend.Cudnn, torch._C._ConvBackend.CudnnTranspose}


def chosen_kernels(generator: str) -> set[Any]:
    """What torch would compute each convolution with, asked about tensors on a card that need not be there."""
    network = build_generator(ModelConfig(generator=generator, ngf=8))
    found = set()
    with FakeTensorMode():
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                weight = torch.empty(layer.weight.shape, device="cuda")
                pixels = torch.empty(2, layer.in_channels, 16, 16, device="cuda")
                geometry = (layer.stride, layer.padding, layer.dilation)
                transposed = isinstance(layer, nn.ConvTranspose2d)
                more = (transposed, layer.output_padding, layer.groups)
                found.add(torch._C._select_conv_backend(pixels, weight, None, *geometry, *more))  # type: ignore[call-arg, arg-type]
    return found


@pytest.mark.parametrize("generator", ["unet_128", "resnet_6"])
@pytest.mark.parametrize("benchmark", [True, False])
def test_every_convolution_is_cudnns(generator: str, benchmark: bool) -> None:
    with convolution_kernels(benchmark=benchmark, exact=True):
        assert chosen_kernels(generator) <= CUDNN
    with torch.backends.cudnn.flags(benchmark=True):  # what it would be with torch's defaults for this function
        assert not chosen_kernels(generator) & CUDNN


@pytest.mark.parametrize("exact", [True, False])
def test_float32_is_rounded_to_fewer_bits_only_where_that_is_allowed(exact: bool) -> None:
    before = torch.backends.cudnn.allow_tf32
    with convolution_kernels(benchmark=True, exact=exact):
        assert torch.backends.cudnn.allow_tf32 is not exact
        assert torch.backends.cudnn.deterministic and torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.allow_tf32 is before


OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."),
)
OTHER = (RuntimeError("shape mismatch"), ValueError("out of memory"), KeyError("x"))


def test_errors_of_memory_are_known_whoever_raises_them() -> None:
    assert all(map(is_out_of_memory, OUT_OF_MEMORY)) and not any(map(is_out_of_memory, OTHER))


def test_a_broken_device_is_told_from_a_full_one() -> None:
    kind = getattr(torch, "AcceleratorError", None)
    if kind is None:
        pytest.skip("this torch has no AcceleratorError")
    assert is_device_lost(kind("CUDA error: an illegal memory access was encountered"))
    assert not is_device_lost(kind("CUDA error: out of memory"))
    assert not any(map(is_device_lost, (*OUT_OF_MEMORY, *OTHER)))


class FakeGraph:
    """Stands in for a card: what is recorded runs at once, and `replay` does nothing."""

    def replay(self) -> None:
        pass


@contextlib.contextmanager
def fail_to_record(*_: object) -> Iterator[None]:
    yield
    raise cuda_graphs._NotRecordedError("not here")


def test_a_card_too_full_for_a_copy_of_the_inputs_computes_unrecorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    inputs = torch.ones(2)
    monkeypatch.setattr(inputs, "clone", lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")))
    call = RecordedCall(lambda tensor: tensor + 1, torch.device("cuda"))
    assert all(call(inputs).sum() == 4 for _ in range(6))
    assert call.fallback is not None and call.fallback.endswith("CUDA out of memory")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """torch.cuda as far as a stream needs it, on the CPU. Returns the options of each recording."""
    recordings: list[dict[str, Any]] = []

    class Stream:
        def __init__(self, *_: object, blocking: bool = True) -> None:
            assert blocking

        def wait_stream(self, _: object) -> None:
            pass

        synchronize = record = wait_stream

    @contextlib.contextmanager
    def graph(_: object, **options: Any) -> Iterator[None]:
        recordings.append(options)
        yield

    monkeypatch.setattr(Stream, "synchronize", lambda self: None)
    for name, value in {
        "Stream": Stream,
        "Event": Stream,
        "CUDAGraph": FakeGraph,
        "current_stream": lambda *_: None,
        "stream": lambda _: contextlib.nullcontext(),
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    current = [torch.device("meta")]

    @contextlib.contextmanager
    def on(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    def zeros(*shape: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        assert not pin_memory or current[-1].type != "meta", "pinned for the thread's device, which may be another"
        return torch.empty(*shape, **{**options, "device": "cpu"}).zero_()

    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch, "zeros", zeros)
    return recordings


def test_cudnn_computes_in_warm_up_and_recording(card: list[dict[str, Any]]) -> None:
    seen = []

    def compute(tiles: torch.Tensor) -> torch.Tensor:
        cudnn = torch.backends.cudnn
        seen.append((cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32))
        return 255 - tiles

    stream = CudaGraphStream(compute, (2, 4, 4, 3), torch.device("cpu"), exact=True)
    assert set(seen) == {(True, True, True, False)} and len(seen) == 4
    assert card[0]["capture_error_mode"] == "thread_local"
    assert stream.fallback is None


@pytest.mark.parametrize("bits, precision", [(8, "fp32"), (8, "bf16"), (8, "fp16"), (16, "fp32")])
def test_an_engine_rounds_float32_to_fewer_bits_nowhere(
    card: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, bits: int, precision: Any
) -> None:
    generator = build_generator(ModelConfig(generator="unet_64", ngf=4, bits=bits))
    engine = Engine(generator, tile_size=64, batch_size=1, precision=precision)
    seen = []

    def look(_: torch.Tensor) -> torch.Tensor:
        seen.append((torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32))
        raise StopIteration

    monkeypatch.setattr(engine, "_forward", look)
    engine.device = torch.device("cuda")
    with FakeTensorMode(), pytest.raises(StopIteration):
        engine.start(np.zeros((1, 64, 64, 3), engine.dtype))
    assert seen == [(True, precision != "fp32")]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_features_of_pretrained_networks_are_float32s(device: str) -> None:
    seen = []

    def look(*images: torch.Tensor) -> None:
        cudnn = torch.backends.cudnn
        assert all(image.device.type == device for image in images)
        seen.append((cudnn.enabled, cudnn.allow_tf32, cudnn.deterministic))
        raise StopIteration

    before = (torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic)
    inception, lpips = (kind.__new__(kind) for kind in (Inception, Lpips))
    inception.__dict__ |= {"network": look, "_device": torch.device(device)}
    lpips.__dict__ |= {"_network": look, "_device": torch.device(device)}
    with FakeTensorMode():
        images = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
        for compute in (lambda: inception(images), lambda: lpips(images, images)):
            with pytest.raises(StopIteration):
                compute()
    assert seen == [(True, False, True) if device == "cuda" else before] * 2


def test_a_network_that_cannot_be_recorded_runs_all_the_same(card: list[dict[str, Any]]) -> None:
    calls = []

    def compute(tiles: torch.Tensor) -> torch.Tensor:
        calls.append(torch.backends.cudnn.enabled)
        if len(calls) == 4:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return 255 - tiles

    stream = CudaGraphStream(compute, (2, 4, 4, 3), torch.device("cpu"))
    assert stream.fallback is not None and stream.fallback.endswith("operation not permitted when stream is capturing")
    stream.start(np.full((1, 4, 4, 3), 5, np.uint8))
    assert not stream.is_idle
    assert (stream.take() == 250).all() and all(calls)
    assert stream.is_idle


def test_tiles_are_copied_from_where_they_lie(card: list[dict[str, Any]]) -> None:
    stream = CudaGraphStream(lambda tiles: 255 - tiles, (3, 4, 4, 3), torch.device("cpu"))
    stream._graph = None  # what is recorded would not be computed again here
    image = np.random.default_rng(0).integers(0, 256, (4, 20, 3), np.uint8)
    stream.start([image[:, :4], image[:, 10:14], image[:, 5:9]])
    first = stream.take()
    assert (first[1] == 255 - image[:, 10:14]).all()
    stream.start([image[:, 16:]])
    (second,) = stream.take()
    assert (second == 255 - image[:, 16:]).all() and (first[0] == second).all(), "outputs lie where others were"
    assert not stream._device_in[1:].any()


def test_streams_are_used_in_turn_and_made_only_where_all_are_busy(
    card: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeGraph, "replay", lambda self: pytest.fail("replayed"))
    monkeypatch.setattr(cuda_graphs, "_recording", fail_to_record)
    engine = Engine(build_generator(ModelConfig(generator="unet_64", ngf=4)), tile_size=64, batch_size=2)
    engine.device = torch.device("cuda")
    monkeypatch.setattr(engine, "_forward", lambda tiles: 255 - tiles)
    tiles = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8)
    for _ in range(3):
        assert np.array_equal(engine(tiles[:2]), 255 - tiles[:2])
    assert len(engine._streams) == 1
    assert np.array_equal(engine(tiles), 255 - tiles)
    assert len(engine._streams) == engine.in_flight == 3
    takes = [engine.start([tile]) for tile in tiles[:3]]
    assert all((take() == 255 - tile).all() for take, tile in zip(takes, tiles, strict=False))


@pytest.mark.parametrize("context", [True, False])
def test_a_full_card_is_no_reason_to_run_slower(card: list[dict[str, Any]], context: bool) -> None:
    calls = []

    def compute(tiles: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) < 4:
            return tiles
        if not context:
            raise RuntimeError("CUDA error: out of memory")
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except torch.OutOfMemoryError:  # as torch does where the recording cannot be ended either
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")  # noqa: B904

    with pytest.raises(RuntimeError) as found:
        CudaGraphStream(compute, (2, 4, 4, 3), torch.device("cpu"))
    assert is_out_of_memory(found.value)


def test_a_network_with_large_values_does_not_fit_float16() -> None:
    network = build_generator(ModelConfig(generator="unet_64", ngf=4)).eval()
    assert fits_float16(network, (3, 64, 64))
    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    with torch.no_grad():
        first.weight.mul_(1e6)
    assert not fits_float16(network, (3, 64, 64))
    with torch.no_grad():
        first.weight.fill_(torch.nan)
    assert not fits_float16(network, (3, 64, 64))
    assert not any(layer._forward_hooks for layer in network.modules())
