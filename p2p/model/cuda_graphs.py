"""What is particular to CUDA: which kernels may be used, what its errors mean, and networks recorded as graphs."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Array = npt.NDArray[np.uint8]
Result = TypeVar("Result")
_WARM_UP_CALLS = 3  # before a graph is recorded, as in torch's documentation
_FLOAT16_HEADROOM = 16.0
_MEMORY_ERRORS = (
    "out of memory",
    "ALLOC_FAILED",
    "NOT_ENOUGH_WORKSPACE",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "can't allocate memory",  # of torch's for the host
    "not enough memory",  # likewise, on other systems
)


def convolution_kernels(*, benchmark: bool, exact: bool) -> contextlib.AbstractContextManager[None]:
    """Let cuDNN compute what is inside, with kernels that give the same bits each time.

    Args:
        benchmark: whether to measure which kernels are quickest for each shape, at its first use.
        exact: whether float32 means float32: otherwise its products may be rounded to TF32's 10 bits.

    """
    # `flags` switches off whatever it is not told to switch on.
    return torch.backends.cudnn.flags(enabled=True, benchmark=benchmark, deterministic=True, allow_tf32=not exact)


def exact_kernels(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Let each image's float32 results depend on the image alone, as on a CPU, whose threads share cuDNN's settings."""
    return convolution_kernels(benchmark=False, exact=True) if device.type == "cuda" else contextlib.nullcontext()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a device or of the machine. Drivers and libraries raise RuntimeErrors that say so.

    >>> is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"))
    True
    >>> is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    False
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _MEMORY_ERRORS)


def is_device_lost(error: BaseException) -> bool:
    """Whether the device's context is broken, so that this process can compute nothing more; another one can."""
    return isinstance(error, getattr(torch, "AcceleratorError", ())) and not is_out_of_memory(error)


@torch.inference_mode()
def fits_float16(network: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Whether `network`, in float32 on the CPU, computes numbers well within float16's range for (C, H, W) inputs.

    The inputs tried are noise and stripes of -1 and 1; others may give values sixteen times as large.
    """
    largest = [float(parameter.abs().max()) for parameter in network.parameters()]

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        largest.append(float(output.abs().max()))

    hooks = [module.register_forward_hook(note) for module in network.modules()]
    noise = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    network(torch.cat([noise, noise.sign(), torch.ones_like(noise)]))
    for hook in hooks:
        hook.remove()
    return max(largest) * _FLOAT16_HEADROOM <= torch.finfo(torch.float16).max  # false for NaN too


class _NotRecordedError(Exception):
    """A graph could not be recorded; says why. Nothing of it was computed."""


@contextlib.contextmanager
def _recording(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream | None = None) -> Iterator[None]:
    """Record in `graph` what is computed inside. Raises _NotRecordedError, or what a full or lost device raises."""
    try:
        # In the default mode what other threads ask of CUDA meanwhile, such as pinned memory, breaks it. In torch 2.11
        # a recording that cannot be ended leaves its stream the current one.
        mode, current = "thread_local", torch.cuda.current_stream()
        with torch.cuda.stream(current), torch.cuda.graph(graph, stream=stream, capture_error_mode=mode):
            yield
    except RuntimeError as error:
        if is_out_of_memory(error) or is_device_lost(error):
            raise
        if error.__context__ is not None and is_out_of_memory(error.__context__):  # ending the recording failed too
            raise error.__context__ from None
        raise _NotRecordedError(str(error).split("\n")[0]) from error


class RecordedCall(Generic[Result]):
    """`compute`, which on a CUDA device is recorded as a graph at its fourth call with inputs of the same shapes.

    From then on such a call is a single start of the graph. Calls with other shapes compute as before, and so do all on
    other devices. `compute` must read nothing back, and what it changes it must change in place, in tensors that stay
    where they are: a graph knows addresses only. Noise follows `torch.manual_seed` in a graph too.
    A graph keeps memory of its own; where the device has none left for that, calls compute as before. `clear` then lets
    go of tensors that `compute` has left behind.
    """

    def __init__(
        self, compute: Callable[..., Result], device: torch.device, clear: Callable[[], None] = lambda: None
    ) -> None:
        self._compute, self._device, self._clear = compute, device, clear
        self._calls: Counter[tuple[torch.Size, ...]] = Counter()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self.fallback: str | None = None
        """Why it runs slower than it could, for the log."""

    def __call__(self, *inputs: Tensor) -> Result:
        """What `compute(*inputs)` returns; on a CUDA device its tensors are overwritten by the next call."""
        if self._device.type != "cuda" or self.fallback:
            return self._compute(*inputs)
        shapes = tuple(tensor.shape for tensor in inputs)
        self._calls[shapes] += 1
        if self._graph is None and self._calls[shapes] > _WARM_UP_CALLS:
            self._record(inputs)
        if self._graph is None or shapes != tuple(tensor.shape for tensor in self._inputs):
            return self._compute(*inputs)
        for own, tensor in zip(self._inputs, inputs, strict=True):
            own.copy_(tensor, non_blocking=True)
        self._graph.replay()
        return self._outputs

    def _record(self, inputs: Sequence[Tensor]) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            self._inputs = [tensor.clone() for tensor in inputs]
            with _recording(graph):
                self._outputs = self._compute(*self._inputs)
            self._graph = graph
        except (_NotRecordedError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            reason = str(error).split("\n")[0].split(". ")[0]
            self.fallback = f"not recorded as a CUDA graph, it runs slower: {reason}"
        if self._graph is None:  # out here, where no error holds the recording's tensors any more
            self._inputs = []
            self._clear()
            # After a recording that could not be ended, torch 2.11 refuses to draw noise until another one was.
            with contextlib.suppress(_NotRecordedError, RuntimeError), _recording(torch.cuda.CUDAGraph()):
                inputs[0].clone()
            del graph
            torch.cuda.empty_cache()


class CudaGraphStream:
    """Computes one batch at a time on a CUDA stream of its own, beside which the copies of another stream may run.

    `compute` maps the (B, H, W, C) uint8 batch on the device to a (B, H, W, C') uint8 one. It is recorded as a CUDA
    graph, with the kernels that are quickest for this shape, and then started by a single call. Which are quickest is
    measured, so another process may choose others, which round differently. `exact` as in `convolution_kernels`.
    """

    def __init__(
        self, compute: Callable[[Tensor], Tensor], shape: tuple[int, ...], device: torch.device, *, exact: bool = False
    ) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # Who waits sleeps meanwhile, instead of keeping a core from the codecs.
        self._finished = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        # The current device is a thread's own, and pinned memory belongs to the current device.
        self._device = device
        self._host_in = self._pinned(shape)
        self._device_in = torch.zeros(shape, dtype=torch.uint8, device=device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream), convolution_kernels(benchmark=True, exact=exact):
            for _ in range(_WARM_UP_CALLS):
                outputs = compute(self._device_in)
        self._stream.synchronize()
        self._graph: torch.cuda.CUDAGraph | None = torch.cuda.CUDAGraph()
        self.fallback: str | None = None
        """Why the network runs slower than it could, for the log."""
        self._compute, self._exact = compute, exact
        try:
            with _recording(self._graph, self._stream), convolution_kernels(benchmark=True, exact=exact):
                outputs = compute(self._device_in)
        except _NotRecordedError as error:
            self.fallback = f"the network is not recorded as a CUDA graph, it runs slower: {error}"
            self._graph = None
        self._device_out = outputs
        self._host_out = self._pinned(outputs.shape)
        self._count = 0
        self.is_idle = True
        """Whether no batch waits to be taken."""

    def start(self, tiles: Sequence[npt.NDArray[Any]] | npt.NDArray[Any]) -> None:
        """Start computing up to B tiles. The batch before must have been taken."""
        self._count, self.is_idle = len(tiles), False
        rows = self._host_in.numpy()
        for row, tile in zip(rows, tiles, strict=False):  # each tile is copied once, to where the device reads it
            row[...] = tile
        rows[self._count :] = 0
        with torch.cuda.stream(self._stream):
            self._device_in.copy_(self._host_in, non_blocking=True)
            if self._graph is not None:
                self._graph.replay()
            else:
                with convolution_kernels(benchmark=True, exact=self._exact):
                    self._device_out = self._compute(self._device_in)
            self._host_out.copy_(self._device_out, non_blocking=True)
            self._finished.record(self._stream)

    def take(self) -> Array:
        """Wait for the batch: as many (H, W, C') uint8 tiles as were started, in memory that `start` uses again."""
        self._finished.synchronize()
        self.is_idle = True
        return self._host_out[: self._count].numpy()

    def _pinned(self, shape: tuple[int, ...]) -> Tensor:
        """Memory of the host from which, and to which, the device copies by itself."""
        with torch.cuda.device(self._device):
            return torch.zeros(shape, dtype=torch.uint8, pin_memory=True)
