"""Decoded pairs that a worker keeps in memory: whether and where, and the same crops of them as of pairs just read."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from p2p.data.augment import CropSettings
from p2p.data.cluster import gpu_node_memory
from p2p.data.order import Row
from p2p.data.pairs import Pair
from p2p.data.stream import Cache, PairStream, WholeBlock
from p2p.data.tasks import run_as_task
from p2p.errors import TaskFailedError
from p2p.model.cuda import require_cuda
from p2p.model.tensors import as_tensor
from p2p.storage.pixels import Pixels
from p2p.training.config import TrainConfig
from p2p.training.upload import Upload

MAX_SHARE = 0.25
"""Of a GPU's memory that is free before the training, or of a machine's, that is taken unasked."""

_SECONDS_TO_ASK = 120.0  # starting a process that loads torch takes half a minute on a busy machine


def choose_cache(config: TrainConfig, stream: PairStream, *, use_gpu: bool) -> tuple[Cache, str]:
    """Where the workers of `stream` keep their pairs, and why, for the log. Needs Ray."""
    if config.cache != "auto":
        kept = f"{_gib(cache_bytes(stream))} of pairs at most, as asked for"
        return config.cache, kept if config.cache != "none" else ""
    if not use_gpu:
        return "none", ""
    if not stream.whole_pair_bytes:
        return "none", "the parts do not say how large the pairs are"
    try:  # no CPU is asked for, since all may be taken
        device_memory = run_as_task(_free_device_memory, num_cpus=0, num_gpus=1, seconds=_SECONDS_TO_ASK)
    except TaskFailedError as error:
        return "none", f"no GPU says how much memory it has: {error}"
    return place_cache(cache_bytes(stream), config.workers, device_memory, gpu_node_memory())


def cache_bytes(stream: PairStream) -> int:
    """What the pairs of all workers take at most: those to train on whole, those to validate on cropped."""
    held_out = len(stream.val) if stream.val is not None else 0
    return len(stream.train) * stream.whole_pair_bytes + held_out * stream.crop.pair_bytes


def place_cache(needed: int, workers: int, device_memory: int, host_memory: int) -> tuple[Cache, str]:
    """Where so many bytes of pairs go, and why.

    Each worker has a GPU with so much free memory, and they all may share one machine with `host_memory`.

    >>> place_cache(60 * 2**30, 8, 140 * 2**30, 1000 * 2**30)
    ('device', 'each GPU keeps 7.5 GiB of pairs, at most 25 % of 140.0 GiB')
    >>> place_cache(300 * 2**30, 8, 140 * 2**30, 1000 * 2**30)[0], place_cache(250 * 2**30, 1, 0, 1000 * 2**30)[0]
    ('none', 'host')

    """
    share, part = f"{MAX_SHARE:.0%}".replace("%", " %"), needed / workers
    if part <= MAX_SHARE * device_memory:
        return "device", f"each GPU keeps {_gib(part)} of pairs, at most {share} of {_gib(device_memory)}"
    if needed <= MAX_SHARE * host_memory:
        return "host", f"{_gib(needed)} of pairs, at most {share} of a machine's {_gib(host_memory)}"
    return "none", f"{_gib(needed)} of pairs are more than {share} of the memory of GPU or machine"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _free_device_memory() -> int:
    require_cuda()
    return int(torch.cuda.mem_get_info()[0])


class PairCache:
    """Whole pairs, decoded, by their row: on a device, which crops them, or on its host.

    A GPU fetches pairs from its host and crops them as if they were its own; a CPU does that quicker with views.

    Args:
        crop: how they are cropped.
        pixels: how many the images of a side have together, at most.
        device: where batches are needed.
        on_host: whether pairs are kept in memory of the host.

    """

    def __init__(self, crop: CropSettings, pixels: int, device: torch.device, *, on_host: bool) -> None:
        self._crop, self._device, self._on_host = crop, device, on_host
        place = torch.device("cpu") if on_host else device
        self._sides = [  # in bytes, since few of torch's functions take uint16
            torch.empty((pixels, wanted.bytes_per_pixel), dtype=torch.uint8, device=place) for wanted in crop.formats
        ]
        if on_host and device.type == "cuda":
            for side in self._sides:
                self._pin(side)
        self.clear()

    def _pin(self, side: Tensor) -> None:
        """Let the GPU read memory of the host by itself. Where that is refused, its copies take longer."""
        # torch's own pinned memory would be rounded up to a power of two.
        cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        if int(cudart.cudaHostRegister(side.data_ptr(), side.nbytes, 0)):
            with contextlib.suppress(RuntimeError):  # the error is raised once more, by what the GPU computes next
                torch.ones(1, device=self._device)
        else:
            weakref.finalize(self, cudart.cudaHostUnregister, side.data_ptr()).atexit = False

    def clear(self) -> None:
        """Forget all pairs."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # it may still copy some
        self._places: dict[Row, tuple[int, str, int, int]] = {}
        self._filled = 0

    def add(self, rows: Sequence[Row], block: WholeBlock) -> None:
        """Keep the pairs of a block, which are those of `rows`."""
        first = self._filled
        for row, (pair_id, height, width) in zip(rows, block.sizes, strict=True):
            self._places[row] = (self._filled, pair_id, height, width)
            self._filled += height * width
        values = block.values.view(np.uint8)
        for side in self._sides:
            size = (self._filled - first) * side.shape[1]
            side[first : self._filled] = as_tensor(values[:size].reshape(-1, side.shape[1]))
            values = values[size:]

    def batch(self, rows: Sequence[Row], epoch: int, upload: Upload) -> tuple[Tensor, Tensor]:
        """Inputs (B, crop, crop, C) and targets (B, crop, crop, C') on the device, as `CropSettings.crop` has them."""
        if self._on_host and self._device.type == "cpu":
            inputs, targets = self._crop.sides(upload(self.crops(rows, epoch)))
            return inputs, targets
        return self.crop_on_device(rows, epoch, upload)

    def crops(self, rows: Sequence[Row], epoch: int) -> list[Pixels]:
        """Of a cache on the host: input and target of each pair, joined as `CropSettings.crop` does."""
        return [self._crop.crop(self._pair(row), epoch) for row in rows]

    def _pair(self, row: Row) -> Pair:
        first, pair_id, height, width = self._places[row]
        a, b = (
            side[first : first + height * width].numpy().view(wanted.dtype).reshape(height, width, wanted.channels)
            for side, wanted in zip(self._sides, self._crop.formats, strict=True)
        )
        return Pair(pair_id=pair_id, a=a, b=b)

    def crop_on_device(self, rows: Sequence[Row], epoch: int, upload: Upload) -> tuple[Tensor, Tensor]:
        """As `batch`. Of pairs on the host, the lines that a crop is in are uploaded, each in its whole width."""
        lines, windows, uploaded = [], [], 0
        for row in rows:
            first, pair_id, height, width = self._places[row]
            top, left, mirrored = self._crop.window(height, width, epoch, pair_id)
            start, pixels = first + top * width, self._crop.crop_size * width
            lines.append(slice(start, start + pixels))
            windows.append(np.array([(uploaded if self._on_host else start) + left, width, mirrored]))
            uploaded += pixels
        corners, widths, mirrors = upload(windows).unbind(1)
        sides = self._sides
        if self._on_host:
            sides = upload.beside([[side[part] for part in lines] for side in sides])
        steps = torch.arange(self._crop.crop_size, device=corners.device)
        columns = torch.where(mirrors[:, None] > 0, steps.flip(0), steps)
        places = (corners[:, None] + widths[:, None] * steps)[:, :, None] + columns[:, None, :]
        a, b = (
            side[places].view(torch.uint16 if wanted.bits == 16 else torch.uint8)
            for side, wanted in zip(sides, self._crop.formats, strict=True)
        )
        return (b, a) if self._crop.swap else (a, b)
