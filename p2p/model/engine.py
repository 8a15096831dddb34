"""Runs a generator over many tiles: pixels in, pixels out, in batches of one fixed shape."""

from __future__ import annotations

import copy
import hashlib
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p2p.errors import ConfigError
from p2p.model.config import Precision
from p2p.model.cuda import require_cuda
from p2p.model.cuda_graphs import CudaGraphStream, convolution_kernels, fits_float16
from p2p.model.inference_layers import KeyedDropout, PerSampleNorm, SignBitReLU, fold_batch_norm, pad_thin_layers
from p2p.model.networks import Generator, replace_modules
from p2p.model.packing import pack_weights
from p2p.model.tensors import InputEncoder, as_tensor, to_pixels
from p2p.storage.pixels import Depth, Pixels

log = logging.getLogger("p2p")

NormMode = Literal["running", "batch"]
PendingBatch = Callable[[], npt.NDArray[Any]]
"""Waits for a batch that was started and returns it: (B, H, W, C_out), in memory that later batches use again."""
_CUDA_STREAMS = 3  # two are queued on the device while the tiles of the third are put together
EnginePrecision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_TRIAL_SIDE = 256


def choose_device(gpu: str) -> torch.device:
    """`auto`, `true` or `false` -> the device. Raises ConfigError for `true` where there is no CUDA GPU."""
    if gpu == "true" and not torch.cuda.is_available():
        raise ConfigError("gpu", "true: no CUDA GPU is visible here; use auto or false")
    return torch.device("cuda" if gpu != "false" and torch.cuda.is_available() else "cpu")


def choose_precision(precision: str, device: str | torch.device, bits: int = 8) -> Precision:
    """`auto`, `fp32` or `bf16` -> what to use.

    `auto` is bf16 where the device computes in it natively, but not for images of 16 `bits`: bfloat16 keeps only 8.
    """
    if precision != "auto":
        return "bf16" if precision == "bf16" else "fp32"
    if bits == 16:
        return "fp32"
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if _cpu_has_bf16() else "fp32"


def choose_engine_precision(precision: str, device: str | torch.device, bits: int = 8) -> EnginePrecision:
    """As `choose_precision`, for translation alone: `auto` is fp16 on GPUs that compute in it, but not in bf16."""
    chosen = choose_precision(precision, device, bits)
    slow = precision == "auto" and chosen == "fp32" and bits == 8 and torch.device(device).type == "cuda"
    return "fp16" if slow else chosen


def _cpu_has_bf16() -> bool:
    # torch names these checks privately; a version without them runs in float32.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


class Engine:
    """Runs a generator on tiles, uint8 or uint16 as its model's `bits` say, in batches of one fixed size.

    precision "fp16" is float32 where that would exceed float16's range.
    norm_mode "running": batch norm uses its running statistics and is folded into the convolutions.
    norm_mode "batch": each tile is normalised by its own statistics (what the paper does at test time with batches of
    one). In both modes a tile's output depends on the tile alone: not on its place in the batch, on its neighbours or
    on how full the batch is. On a CPU that holds bit for bit; on a GPU for one place in the batch and one engine, whose
    kernels are deterministic ones, but chosen by measuring them.
    dropout: the paper's test-time noise, drawn for each tile from `seed` and the tile's key alone.
    tile_size: side of the tiles in pixels; None takes any shape whose sides are multiples of the generator's stride.
    A fixed tile size is quicker: bfloat16 weights are packed for the CPU, a GPU replays a recorded graph.
    threads: on a CPU, how many batches are computed at once, each in one thread; the number changes no bit. None: one
    batch at a time in all of torch's threads, which is quicker for a single batch; another number of threads, like
    another batch size, may make the processor's kernels round differently.
    The generator passed in is not changed. An engine must not be called from several threads at once.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        tile_size: int | None,
        batch_size: int,
        device: str | torch.device = "cpu",
        precision: EnginePrecision = "fp32",
        norm_mode: NormMode = "running",
        dropout: bool = False,
        seed: int = 0,
        threads: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError("batch_size", f"{batch_size}: must be at least 1")
        if tile_size is not None and (tile_size < 1 or tile_size % generator.stride):
            fitting = max(1, round(tile_size / generator.stride)) * generator.stride
            raise ConfigError(
                "tile_size", f"{tile_size}: this generator needs a multiple of {generator.stride}; use {fitting}"
            )
        self.stride = generator.stride
        self.input_channels = generator.config.input_image_channels
        self.output_channels = generator.config.output_channels
        self.dtype = np.dtype(np.uint16 if generator.config.bits == 16 else np.uint8)
        self.tile_size = tile_size
        self.batch_size = batch_size
        self.device = torch.device(device)
        if self.device.type == "cuda":
            require_cuda()
        self._encode = InputEncoder(generator.config, self.device)
        self._bits = generator.config.bits
        self._seed = seed
        network = copy.deepcopy(generator).cpu().eval().requires_grad_(False)
        if norm_mode == "batch":
            replace_modules(network, lambda layer: PerSampleNorm(layer) if isinstance(layer, nn.BatchNorm2d) else None)
        else:
            fold_batch_norm(network)
        self._noise: list[KeyedDropout] = []
        if dropout:
            replace_modules(network, lambda layer: KeyedDropout(layer) if isinstance(layer, nn.Dropout) else None)
            self._noise = [module for module in network.modules() if isinstance(module, KeyedDropout)]
        self._precision_fallback: str | None = None
        if precision == "fp16":
            side = tile_size or math.lcm(self.stride, _TRIAL_SIDE)
            if not fits_float16(network, (generator.config.input_channels, side, side)):
                precision = "fp32"
                self._precision_fallback = "the network's values are too large for float16, it runs slower in float32"
        self.precision: EnginePrecision = precision
        self._dtype = _DTYPES[precision]
        self._exact = precision == "fp32"
        if self.device.type == "cpu" and precision == "bf16":
            replace_modules(network, lambda layer: SignBitReLU(layer) if isinstance(layer, nn.ReLU) else None)
        self._more_planes = pad_thin_layers(network) if self.device.type == "cuda" else 0
        network.to(device=self.device, dtype=self._dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network = network
        self._streams: deque[CudaGraphStream] = deque()
        self._threads = threads if self.device.type == "cpu" else None
        self._pool: ThreadPoolExecutor | None = None
        if self._threads:  # torch computes with one thread in each, so that their number changes no sum's order
            self._pool = ThreadPoolExecutor(self._threads, "network", torch.set_num_threads, (1,))
        self._packing_fallback: str | None = None
        if self.device.type == "cpu" and precision == "bf16" and tile_size is not None:
            self._packing_fallback = pack_weights(network, batch_size, generator.config.input_channels, tile_size)
            if self._packing_fallback:
                log.info("%s", self._packing_fallback)

    def with_batch_size(self, batch_size: int) -> Engine:
        """The same engine, sharing its weights, with another batch size."""
        other = copy.copy(self)
        other.batch_size = batch_size
        other._streams = deque()
        return other

    def warm_up(self) -> None:
        """Compute blank tiles, so that no later batch pays for choosing kernels and allocating memory.

        Does nothing for an engine without a fixed tile size.
        """
        if self.tile_size is None:
            return
        blank = np.zeros((1, self.tile_size, self.tile_size, self.input_channels), self.dtype)
        pending = [self.start(blank, [""]) for _ in range(self._threads or self.in_flight)]
        for take in pending:
            take()

    @property
    def in_flight(self) -> int:
        """How many batches may be started before the first of them is taken; more would wait for each other."""
        if self._uses_graphs:
            return _CUDA_STREAMS
        return self._threads + 1 if self._threads else 1  # one waits while the others compute

    @property
    def fallbacks(self) -> list[str]:
        """Why the network runs slower than it could, in sentences for the log. Complete once a batch was taken."""
        found = [self._precision_fallback, self._packing_fallback, *(stream.fallback for stream in self._streams)]
        return [reason for reason in dict.fromkeys(found) if reason]

    @property
    def _uses_graphs(self) -> bool:
        # Noise is drawn on the CPU in the middle of the network, which no graph can hold.
        return self.device.type == "cuda" and self.tile_size is not None and not self._noise and self._bits == 8

    def start(
        self, tiles: Sequence[npt.NDArray[Depth]] | npt.NDArray[Depth], keys: Sequence[str] | None = None
    ) -> PendingBatch:
        """Start computing at most `batch_size` tiles; returns what waits for them and returns them.

        Pending batches must be taken in the order in which they were started, and at most `in_flight` may be pending.
        On a CPU without `threads` the tiles are computed when this returns.
        """
        if not isinstance(tiles, np.ndarray) and not self._uses_graphs:
            tiles = np.stack(tiles)
        self._check(tiles, keys)
        if len(tiles) > self.batch_size:
            raise ValueError(f"{len(tiles)} tiles are more than the batch size of {self.batch_size}")
        if self._uses_graphs:
            return self._start_on_gpu(tiles)
        assert isinstance(tiles, np.ndarray)
        if self._pool is not None:
            return self._pool.submit(self._run, tiles, keys or ()).result
        outputs = self._run(tiles, keys or ())
        return lambda: outputs

    def _start_on_gpu(self, tiles: Sequence[npt.NDArray[Any]] | npt.NDArray[Any]) -> PendingBatch:
        idle = self._streams and self._streams[-1].is_idle
        if not idle and len(self._streams) < _CUDA_STREAMS:
            shape = (self.batch_size, *tiles[0].shape)
            self._streams.append(CudaGraphStream(self._forward, shape, self.device, exact=self._exact))
        stream = self._streams[-1]
        self._streams.rotate(1)
        stream.start(tiles)
        return stream.take

    def __call__(self, tiles: npt.NDArray[Depth], keys: Sequence[str] | None = None) -> npt.NDArray[Depth]:
        """(B, T, T, C_in), any B -> (B, T, T, C_out) of the same depth. `keys`, one a tile, are needed with dropout."""
        self._check(tiles, keys)
        outputs = np.empty((*tiles.shape[:3], self.output_channels), self.dtype)
        pending: deque[tuple[slice, PendingBatch]] = deque()
        for start in range(0, len(tiles), self.batch_size):
            if len(pending) == self.in_flight:
                part, take = pending.popleft()
                outputs[part] = take()
            part = slice(start, start + self.batch_size)
            pending.append((part, self.start(tiles[part], keys[part] if keys else None)))
        for part, take in pending:
            outputs[part] = take()
        return outputs

    def _run(self, tiles: Pixels, keys: Sequence[str]) -> Pixels:
        count = len(tiles)
        if count < self.batch_size:  # kernels, and with them the rounding, are chosen by shape
            tiles = np.concatenate([tiles, np.zeros((self.batch_size - count, *tiles.shape[1:]), self.dtype)])
        for layer, module in enumerate(self._noise):
            module.seeds = [_noise_seed(self._seed, key, layer) for key in keys]
        if self.device.type == "cpu":
            return self._forward(as_tensor(tiles))[:count].numpy()
        with convolution_kernels(benchmark=False, exact=self._exact):
            return self._forward(as_tensor(tiles).to(self.device, non_blocking=True))[:count].cpu().numpy()

    @torch.inference_mode()
    def _forward(self, tiles: Tensor) -> Tensor:
        """(B, H, W, C_in) -> (B, H, W, C_out) of the same depth, on the engine's device."""
        planes = self._encode(tiles).to(self._dtype)
        if self._more_planes:
            planes = F.pad(planes, (0, 0, 0, 0, 0, self._more_planes))
        return to_pixels(self._network(planes)[:, : self.output_channels], self._bits)

    def _check(self, tiles: Sequence[Pixels] | Pixels, keys: Sequence[str] | None) -> None:
        wanted = self.tile_size or f"a multiple of {self.stride}"
        for shape, dtype in {(tile.shape, tile.dtype) for tile in tiles}:
            height, width = shape[:2] if len(shape) == 3 else (0, 0)
            size = self.tile_size
            fits = height == width == size if size else height % self.stride == width % self.stride == 0
            if not height or shape[2] != self.input_channels or dtype != self.dtype or not fits:
                raise ValueError(
                    f"tiles must be (H, W, {self.input_channels}) {self.dtype} with sides {wanted}, "
                    f"these are {shape} {dtype}"
                )
        if self._noise and keys is None:
            raise ValueError("dropout needs a key for each tile")
        if keys is not None and len(keys) != len(tiles):
            raise ValueError(f"{len(tiles)} tiles came with {len(keys)} keys")


def _noise_seed(seed: int, key: str, layer: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{layer}/{key}".encode()).digest()[:8], "big") >> 1
