"""A network recorded as a CUDA graph: a batch is copied in, computed and copied out without waiting in between."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from p2p.model.tensors import as_tensor

Array = npt.NDArray[np.uint8]
_WARM_UP_CALLS = 3  # before a graph is recorded, as in torch's documentation


class CudaGraphStream:
    """Computes one batch at a time on a CUDA stream of its own, beside which the copies of another stream may run.

    `compute` maps the (B, H, W, C) uint8 batch on the device to a (B, H, W, C') uint8 one. It is recorded as a CUDA
    graph, with the kernels that are quickest for this shape, and then started by a single call. Which are quickest is
    measured, so another process may choose others, which round differently.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor], shape: tuple[int, ...], device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._finished = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._host_in = torch.zeros(shape, dtype=torch.uint8, pin_memory=True)
        self._device_in = torch.zeros(shape, dtype=torch.uint8, device=device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream), torch.backends.cudnn.flags(benchmark=True):
            for _ in range(_WARM_UP_CALLS):
                outputs = compute(self._device_in)
        self._stream.synchronize()
        self._graph: torch.cuda.CUDAGraph | None = torch.cuda.CUDAGraph()
        self.fallback: str | None = None
        """Why the network runs slower than it could, for the log."""
        self._compute = compute
        try:
            with torch.cuda.graph(self._graph, stream=self._stream), torch.backends.cudnn.flags(benchmark=True):
                outputs = compute(self._device_in)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).split("\n")[0]
            self.fallback = f"the network is not recorded as a CUDA graph, it runs slower: {reason}"
            self._graph = None
        self._device_out = outputs
        self._host_out = torch.empty(outputs.shape, dtype=torch.uint8, pin_memory=True)
        self._count = 0

    def start(self, tiles: Array) -> None:
        """Start computing up to B tiles. The batch before must have been taken."""
        self._count = len(tiles)
        self._host_in[: self._count] = as_tensor(tiles)
        self._host_in[self._count :] = 0
        with torch.cuda.stream(self._stream):
            self._device_in.copy_(self._host_in, non_blocking=True)
            if self._graph is not None:
                self._graph.replay()
            else:
                self._device_out = self._compute(self._device_in)
            self._host_out.copy_(self._device_out, non_blocking=True)
            self._finished.record(self._stream)

    def take(self) -> Array:
        """Wait for the batch: as many (H, W, C') uint8 tiles as were started, in memory of their own."""
        self._finished.synchronize()
        return self._host_out[: self._count].numpy().copy()
