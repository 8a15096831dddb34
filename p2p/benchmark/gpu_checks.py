"""Whether p2p computes on a CUDA GPU what it computes on a CPU. Without Ray; tests/on_cuda runs the same checks."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from p2p.benchmark.networks import stretched_generator
from p2p.data.augment import CropSettings
from p2p.data.order import PairBlock
from p2p.data.stream import WholeBlock
from p2p.model.config import ModelConfig
from p2p.model.cuda_graphs import RecordedCall, convolution_kernels
from p2p.model.engine import Engine, choose_engine_precision
from p2p.model.metrics import default_metrics, measure
from p2p.model.pix2pix import Pix2Pix
from p2p.model.tensors import to_model_range
from p2p.storage.pixels import PixelFormat, Pixels
from p2p.training.pair_cache import PairCache
from p2p.training.upload import Upload

log = logging.getLogger("p2p")

_SMALL: dict[str, Any] = {"generator": "unet_64", "ngf": 8, "ndf": 8, "crop_size": 64}
_UPDATES: dict[str, dict[str, Any]] = {
    "vanilla": {},
    "lsgan, instance norm": {"gan_mode": "lsgan", "norm": "instance"},
    "hinge, pixel": {"gan_mode": "hinge", "discriminator": "pixel"},
    "resnet_6": {"generator": "resnet_6"},
}
_PALETTE = ((0, 0, 0), (255, 255, 255), (200, 30, 60))


@dataclass(frozen=True)
class GpuCheck:
    """A figure that must not be above its limit."""

    what: str
    found: float
    limit: float
    unit: str = ""

    @property
    def passed(self) -> bool:
        """False for NaN too."""
        return self.found <= self.limit


def check_updates(device: str) -> Iterator[GpuCheck]:
    """One update from the same weights: losses, and Adam's first moments, which are the gradients but for a factor."""
    for name, options in _UPDATES.items():
        exact = _updated("cpu", **options)
        for precision, limits in (("fp32", (1e-3, 1e-3)), ("bf16", (1e-2, 0.3))):
            found = _updated(device, precision=precision, **options)
            for what, ours, wanted, limit in zip(("losses", "gradients"), found, exact, limits, strict=True):
                yield GpuCheck(f"update, {name}, {precision}: {what}", _apart(ours, wanted), limit, "relative error")


def check_recorded_updates(device: str) -> Iterator[GpuCheck]:
    """A recorded update against one that is not: weights, noise by seed, and a learning rate that changes."""
    config = ModelConfig(**_SMALL, precision="bf16")
    recorded, plain = Pix2Pix(config, device=device), Pix2Pix(config, device=device)
    step, pair = RecordedCall(recorded.update, recorded.device), _pair(device, 4)
    with convolution_kernels(benchmark=False, exact=False):
        for seed in range(5):
            torch.manual_seed(seed)
            step(*pair)
        apart = []
        for seed in (5, 6):  # as the recorded one's, then another one
            plain.load_state(recorded.state())
            torch.manual_seed(5)
            step(*pair)
            torch.manual_seed(seed)
            plain.update(*pair)
            apart.append(_apart(_moments(recorded), _moments(plain)))
        before = [parameter.detach().clone() for parameter in recorded.generator.parameters()]
        recorded.set_learning_rate(0.0)
        step(*pair)
    yield GpuCheck("recorded update: could not be recorded", float(step.fallback is not None), 0)
    yield GpuCheck("recorded update: gradients", apart[0], 1e-2, "relative error")
    yield GpuCheck("recorded update: of that, with another seed's noise", apart[0] / apart[1], 0.1)
    after = recorded.generator.parameters()
    moved = sum(int(not torch.equal(new, old)) for new, old in zip(after, before, strict=True))
    yield GpuCheck("recorded update: weights that a learning rate of 0 moves", moved, 0)


def check_waiting(device: str) -> Iterator[GpuCheck]:
    """An update, its sums and its average never wait for the device."""
    pix2pix = Pix2Pix(ModelConfig(**_SMALL, precision="bf16", ema_images=1000), device=device)
    pair, sums = _pair(device, 2), torch.zeros(4, dtype=torch.float64, device=device)
    pix2pix.update(*pair)
    waits = 0
    try:
        with _waiting_refused() if device == "cuda" else contextlib.nullcontext():
            torch.manual_seed(3)
            sums += torch.stack(list(pix2pix.update(*pair).values()))
            pix2pix.update_average(2, 4)
    except RuntimeError as error:
        log.warning("%s", error)
        waits = 1
    yield GpuCheck("update: waits for the device", waits, 0)


def check_engine(device: str) -> Iterator[GpuCheck]:
    """Levels of 255 by which the engine's pixels differ from the CPU's, and from its own."""
    generator, tiles = stretched_generator(ModelConfig(**_SMALL), _images(6)), _images(6, seed=3)
    keys = [f"tile {index}" for index in range(len(tiles))]

    def engine(where: str, **options: Any) -> Engine:
        return Engine(generator, **{"tile_size": 64, "batch_size": 4, "device": where, **options})

    precisions = {"fp32": 0.05, "bf16": 2.0, choose_engine_precision("auto", device): 2.0}
    for norm_mode in ("running", "batch"):
        exact = engine("cpu", norm_mode=norm_mode)(tiles)
        for precision, limit in precisions.items():
            name = f"engine, {norm_mode} statistics, {precision}"
            run = engine(device, norm_mode=norm_mode, precision=precision)
            outputs = run(tiles)
            yield GpuCheck(f"{name}: mean difference", _levels(outputs, exact).mean(), limit, "levels")
            yield GpuCheck(f"{name}: the same again", _levels(outputs, run(tiles)).max(), 0, "levels")
            yield GpuCheck(
                f"{name}: elsewhere in the batch", _levels(outputs, run(tiles[::-1])[::-1]).max(), 1, "levels"
            )
            yield GpuCheck(f"{name}: slower than it could be", len(run.fallbacks), 0)
    for name, options in (("noise", {"dropout": True, "seed": 1}), ("any size", {"tile_size": None})):
        apart = _levels(engine(device, **options)(tiles, keys), engine("cpu", **options)(tiles, keys))
        yield GpuCheck(f"engine, {name}: mean difference", apart.mean(), 0.05, "levels")
    deep = stretched_generator(ModelConfig(**_SMALL, bits=16), _images(6, dtype=np.uint16))
    sixteen = _images(4, seed=5, dtype=np.uint16)
    outputs, exact = (Engine(deep, tile_size=64, batch_size=4, device=where)(sixteen) for where in (device, "cpu"))
    yield GpuCheck("engine, 16 bits: mean difference", _levels(outputs, exact).mean(), 4, "levels of 65535")


def check_metrics(device: str) -> Iterator[GpuCheck]:
    """Metrics of the same images."""
    outputs, targets = (torch.from_numpy(_images(3, seed)) for seed in (1, 2))
    names = default_metrics(has_palette=True)
    ours = measure(outputs.to(device), targets.to(device), names, _PALETTE).values
    for name, values in measure(outputs, targets, names, _PALETTE).values.items():
        limit = 1e-6 if name == "ssim" else 1e-9  # which is computed in float32
        yield GpuCheck(f"metric {name}", float((ours[name].cpu() - values).abs().max()), limit)


def check_kept_pairs(device: str) -> Iterator[GpuCheck]:
    """Crops of pairs that the device or its host keeps, and of others as they reach it, against a CPU's."""
    count, size = 8, 8 if device == "cpu" else 4096
    uploads = [Upload(torch.device(device)) for _ in range(3)]
    slow = torch.ones(2, size, size, device=device)
    rows, sizes = [(0, row) for row in range(count)], [(str(row), 64, 64) for row in range(count)]
    for bits, dtype in ((8, np.uint8), (16, np.uint16)):
        crop = CropSettings(48, flip=True, formats=(PixelFormat(3, bits), PixelFormat(3, bits)))
        values = np.concatenate([_images(count, seed, dtype) for seed in (1, 2)], axis=None)
        here, there, beside = (
            PairCache(crop, count * 64 * 64, torch.device(where), on_host=on_host)
            for where, on_host in (("cpu", True), (device, False), (device, True))
        )
        for cache in (here, there, beside):
            cache.add(rows, WholeBlock(PairBlock(1, 0, count), sizes, values))
        wrong, found = {"kept": 0, "kept on the host": 0, "uploaded": 0}, []
        for epoch in range(1, 9):  # memory for uploads is used again, while what reads it still waits for slow work
            crops = here.crops(rows, epoch)
            torch.mm(slow[0], slow[0], out=slow[1])
            kept = there.crop_on_device(rows, epoch, uploads[0])
            fetched = beside.crop_on_device(rows, epoch, uploads[1])
            uploaded = [side.clone() for side in crop.sides(uploads[2](crops))]
            sides = {"kept": kept, "kept on the host": fetched, "uploaded": uploaded}
            found.append((crop.sides(np.stack(crops)), sides))
        for wanted, sides in found:
            for what, ours in sides.items():
                pairs = zip(ours, wanted, strict=True)
                wrong[what] += sum(int((side.cpu().numpy() != exact).sum()) for side, exact in pairs)
        for what, different in wrong.items():
            yield GpuCheck(f"pairs, {what}, {bits} bits: values that differ", different, 0)


CHECKS: tuple[Callable[[str], Iterator[GpuCheck]], ...] = (
    check_updates,
    check_recorded_updates,
    check_waiting,
    check_engine,
    check_metrics,
    check_kept_pairs,
)


@contextlib.contextmanager
def _waiting_refused() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _images(count: int, seed: int = 0, dtype: type[np.uint8] | type[np.uint16] = np.uint8) -> Pixels:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, (count, 64, 64, 3), dtype=dtype)


def _pair(device: str, count: int) -> list[Tensor]:
    return [to_model_range(torch.from_numpy(_images(count, seed)).to(device)) for seed in (1, 2)]


def _updated(device: str, **options: Any) -> tuple[Tensor, Tensor]:
    config = ModelConfig(**{**_SMALL, "dropout": False, **options})
    pix2pix = Pix2Pix(config, device=device)
    with convolution_kernels(benchmark=False, exact=config.precision == "fp32"):
        losses = pix2pix.update(*_pair(device, 4))
    return torch.stack([losses[name] for name in sorted(losses)]).cpu(), _moments(pix2pix)


def _moments(pix2pix: Pix2Pix) -> Tensor:
    tensors = sorted(pix2pix.state().trainer.items())
    return torch.cat([tensor.float().cpu().flatten() for name, tensor in tensors if name.endswith("exp_avg")])


def _apart(ours: Tensor, wanted: Tensor) -> float:
    return float((ours - wanted).norm() / wanted.norm())


def _levels(a: Pixels, b: Pixels) -> Any:
    return np.abs(a.astype(np.int32) - b.astype(np.int32))
