"""How fast p2p's networks are on a CUDA GPU, as a share of what the card's arithmetic and memory allow. Without Ray."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from p2p.benchmark.networks import SIZE, bare_update, engine_rate, random_images, rate
from p2p.benchmark.rows import Row, row
from p2p.model.config import ModelConfig
from p2p.model.engine import Engine, choose_engine_precision, choose_precision
from p2p.model.networks import build_generator

_THIN_BATCH = 64
_THIN = (3, 6, 8)


@dataclass(frozen=True)
class Cost:
    """What a batch of 256x256 takes of a card, counted for unet_256 and patch_70: each layer reads its input and writes
    its output once, in bf16; weights, gradients and Adam's moments pass once a call.
    """

    flops_each: float
    bytes_each: float
    bytes_once: float

    def roofline(self, batch: int, flops: float, bandwidth: float) -> float:
        """Images per second of a card of `flops` per second and `bandwidth` bytes per second."""
        return 1.0 / max(self.flops_each / flops, (self.bytes_each + self.bytes_once / batch) / bandwidth)


FORWARD = Cost(12.096e9, 20.88e6, 108.8e6)
UPDATE = Cost(86.94e9, 247e6, 2.2e9)


def speed_of_card(device: str, seconds: float, side: int = 8192) -> tuple[float, float]:
    """Floating-point operations per second of a product of bf16 matrices, and bytes per second read and written."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.ones(8 * side * side, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    flops = rate(partial(torch.mm, a, b), 2 * side**3, seconds, device)
    return flops, rate(partial(target.copy_, source), 2 * len(source), seconds, device)


def network_rows(device: str, seconds: float, batch: int) -> list[Row]:
    """Rates of the card, the generator and the update, each measured for `seconds`, up to batches of `batch`."""
    flops, bandwidth = speed_of_card(device, seconds)
    rows = [
        row("card, product of bf16 matrices", flops / 1e12, "TFLOP/s"),
        row("card, memory read and written", bandwidth / 1e12, "TB/s"),
    ]
    precision, training = choose_engine_precision("auto", device), choose_precision("auto", device)
    started = time.perf_counter()
    weights = build_generator(ModelConfig())
    engine = Engine(weights, tile_size=SIZE, batch_size=batch, device=device, precision=precision)
    engine(random_images(1))
    rows.append(row("engine, from weights to the first tile", time.perf_counter() - started, "s"))
    for size in sorted({1, 16, batch}):
        for what, cost, unit, measure in (
            ("generator", FORWARD, "images/s", partial(engine_rate, precision=precision, threads=0)),
            ("update", UPDATE, "pairs/s", partial(bare_update, precision=training)),
        ):
            limit = row(f"roofline of the {what}, batch {size}", cost.roofline(size, flops, bandwidth), unit)
            found = measure(size, seconds, device)
            rows += [limit, row(f"{what}, batch {size}", found, unit, limit)]
    return rows + _thin_layer_rows(device, seconds / 8)


def _thin_layer_rows(device: str, seconds: float) -> list[Row]:
    """Whether the first and the last layer would be quicker with channels that nobody needs."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)

    batch, rows = _THIN_BATCH, []
    deep = random(batch, 128, SIZE // 2, SIZE // 2)
    for channels in _THIN:
        images, first, last = (
            random(batch, channels, SIZE, SIZE),
            random(64, channels, 4, 4),
            random(128, channels, 4, 4),
        )
        down, up = partial(F.conv2d, images, first), partial(F.conv_transpose2d, deep, last)
        for what, layer in ((f"first layer, {channels} channels in", down), (f"last layer, {channels} out", up)):
            each = rate(partial(layer, stride=2, padding=1), 1, seconds, device)
            rows.append(row(f"{what}, batch {batch}", 1000 / each, "ms"))
    return rows
