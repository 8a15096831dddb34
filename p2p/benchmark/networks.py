"""Rates of the bare networks on tensors that are in memory already: what the jobs are measured against."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from p2p.data.machine import worker_environment
from p2p.model.config import ModelConfig, Precision
from p2p.model.cuda_graphs import RecordedCall
from p2p.model.engine import Engine, EnginePrecision
from p2p.model.networks import Generator, build_discriminator, build_generator
from p2p.model.pix2pix import Pix2Pix
from p2p.model.tensors import to_model_range, to_pixels
from p2p.storage.images import decode, resize, split_halves
from p2p.storage.pixels import Pixels

SIZE = 256
_COMPARED = 8
_WARM_UP_CALLS = 4  # the last of which records a graph
_GPU_BATCHES = 16  # per call, so that copies and computing overlap as in the job
Result = TypeVar("Result")


def alone(measure: Callable[..., Result], *arguments: object) -> Result:
    """Run `measure` in a process of its own, with the environment of Ray's workers unless it measures the textbook."""
    before = dict(os.environ)
    os.environ.update({} if measure in (plain_update, plain_forward) else worker_environment())
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(measure, *arguments).result()
    finally:
        os.environ.clear()
        os.environ.update(before)


def rate(step: Callable[[], object], per_call: int, seconds: float, device: str) -> float:
    """Call `step` for `seconds` after some warm-up calls; returns `per_call` x calls per second."""

    def synchronise() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(_WARM_UP_CALLS):
        step()
    synchronise()
    started = time.perf_counter()
    calls = 0
    while time.perf_counter() - started < seconds:
        step()
        calls += 1
        if calls % 16 == 0:
            synchronise()  # launches run ahead of the clock otherwise
    synchronise()
    return per_call * calls / (time.perf_counter() - started)


def random_images(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """(count, SIZE, SIZE, 3) uint8 noise, always the same."""
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def choose_kernels(*, exact: bool) -> None:
    """CuDNN's settings as training has them, and as the original implementation has them where not `exact`."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = not exact


def plain_update(batch: int, seconds: float, device: str) -> float:
    """Pairs per second of the textbook step: float32 (on a GPU TF32, as torch has it), NCHW, Adam as it comes, the C
    library's own allocator.
    """
    choose_kernels(exact=False)
    config = ModelConfig()
    generator = build_generator(config, seed=0).to(device)
    discriminator = build_discriminator(config, seed=1).to(device)
    adams = [torch.optim.Adam(network.parameters(), 2e-4, (0.5, 0.999)) for network in (generator, discriminator)]
    inputs, targets = (to_model_range(random_images(batch)).contiguous().to(device) for _ in range(2))

    def cross_entropy(logits: torch.Tensor, label: float) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))

    def step() -> None:
        outputs = generator(inputs)
        discriminator.requires_grad_(True)
        adams[1].zero_grad()
        fake = cross_entropy(discriminator(torch.cat([inputs, outputs.detach()], 1)), 0.0)
        real = cross_entropy(discriminator(torch.cat([inputs, targets], 1)), 1.0)
        ((fake + real) * 0.5).backward()  # type: ignore[no-untyped-call]
        adams[1].step()
        discriminator.requires_grad_(False)
        adams[0].zero_grad()
        fooled = cross_entropy(discriminator(torch.cat([inputs, outputs], 1)), 1.0)
        (fooled + 100 * F.l1_loss(outputs, targets)).backward()  # type: ignore[no-untyped-call]
        adams[0].step()

    return rate(step, batch, seconds, device)


def bare_update(batch: int, seconds: float, device: str, precision: Precision) -> float:
    """Pairs per second of `Pix2Pix.update` as the training job runs it, on tensors in memory."""
    choose_kernels(exact=precision == "fp32")
    pix2pix = Pix2Pix(ModelConfig(precision=precision), device=device)
    inputs, targets = (to_model_range(random_images(batch)).to(device) for _ in range(2))
    update = RecordedCall(pix2pix.update, pix2pix.device)
    return rate(lambda: update(inputs, targets), batch, seconds, device)


@torch.inference_mode()
def plain_forward(batch: int, seconds: float, device: str) -> float:
    """Images per second of the textbook forward pass: as `plain_update`, nothing folded, evaluation mode."""
    choose_kernels(exact=False)
    generator = build_generator(ModelConfig(), seed=0).to(device).eval()
    inputs = to_model_range(random_images(batch)).contiguous().to(device)
    return rate(lambda: generator(inputs), batch, seconds, device)


def engine_rate(batch: int, seconds: float, device: str, precision: EnginePrecision, threads: int) -> float:
    """Images per second of the engine, uint8 in and out; `threads` 0 leaves torch's own choice."""
    if threads:
        torch.set_num_threads(threads)
    engine = Engine(
        build_generator(ModelConfig(), seed=0), tile_size=SIZE, batch_size=batch, device=device, precision=precision
    )
    images = random_images(batch * (_GPU_BATCHES if device == "cuda" else 1))
    return rate(lambda: engine(images), len(images), seconds, device)


@torch.inference_mode()
def stretched_generator(config: ModelConfig, images: Pixels) -> Generator:
    """A U-Net drawn at random, its outputs for `images` stretched over the whole range as a trained one's are: near the
    middle gray of fresh weights any precision would look exact.
    """
    generator = build_generator(config, seed=0).eval()
    last = next(layer for layer in reversed(list(generator.modules())) if isinstance(layer, nn.ConvTranspose2d))
    logits: list[torch.Tensor] = []
    hook = last.register_forward_hook(lambda layer, inputs, output: logits.append(output))
    generator(to_model_range(images))
    hook.remove()
    last.weight.mul_(1.0 / logits[0].std())
    return generator


@torch.inference_mode()
def fast_path_difference(folder: str, device: str, precision: EnginePrecision) -> float:
    """Mean absolute difference, in levels of 255, of the engine's outputs from the unfolded float32 network's.

    On the left halves of the images in `folder`.
    """
    paths = sorted(Path(folder).iterdir())[:_COMPARED]
    images = np.stack([resize(split_halves(decode(path.read_bytes()))[0], SIZE, SIZE) for path in paths])
    generator = stretched_generator(ModelConfig(), images)
    exact = to_pixels(generator(to_model_range(images))).numpy()
    engine = Engine(generator, tile_size=SIZE, batch_size=_COMPARED, device=device, precision=precision)
    return float(np.abs(exact.astype(np.int16) - engine(images)).mean())
