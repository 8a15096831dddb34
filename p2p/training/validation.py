"""Validation: metrics of the generator on pairs it does not train on, and its outputs for the same few of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from p2p.data.augment import CropSettings
from p2p.data.pairs import Pairs
from p2p.data.stream import read_first
from p2p.model.distributed import sum_over_ranks, world_size
from p2p.model.metrics import Measured, MetricTotals, default_metrics, measure
from p2p.model.pix2pix import Pix2Pix
from p2p.model.pixel_metrics import Palette
from p2p.model.tensors import to_levels, to_pixels
from p2p.reports.sheets import contact_sheet
from p2p.storage.images import encode
from p2p.storage.pixels import Array

_SAMPLE_PAIRS = 4


@contextlib.contextmanager
def _evaluating(pix2pix: Pix2Pix) -> Iterator[None]:
    """As in translation: no dropout, running statistics."""
    pix2pix.train(False)
    try:
        with torch.inference_mode():
            yield
    finally:
        pix2pix.train()


def _translate(pix2pix: Pix2Pix, inputs: Tensor) -> Tensor:
    """(B, H, W, C) uint8 or uint16 -> (B, H, W, C') of the same depth."""
    encoded, bf16 = pix2pix.encode(inputs), pix2pix.config.precision == "bf16"
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=bf16):
        outputs = pix2pix.eval_generator(encoded)
    return to_pixels(outputs, pix2pix.config.bits)


def average_statistics(pix2pix: Pix2Pix) -> None:
    """Give every rank the mean of all ranks' running statistics, which each gathered on its own pairs."""
    for network in {pix2pix.generator: None, pix2pix.eval_generator: None, pix2pix.discriminator: None}:
        for statistics in network.buffers():
            if statistics.is_floating_point():
                sum_over_ranks(statistics).div_(world_size())


def _gather(measured: list[Measured]) -> list[Measured]:
    """Every rank's statistics, in the order of ranks."""
    if world_size() == 1:
        return measured
    gathered: list[list[Measured]] = [[] for _ in range(world_size())]
    torch.distributed.all_gather_object(gathered, measured)
    return [one for of_rank in gathered for one in of_rank]


def _to_cpu(measured: Measured) -> Measured:
    counts = measured.confusion
    values = {name: tensor.cpu() for name, tensor in measured.values.items()}
    return Measured(values, None if counts is None else counts.sum(dim=0, keepdim=True).cpu())


def variety(images: Tensor) -> Tensor:
    """(B, H, W, C) images -> how much each differs from the one before it, (B - 1,) float, 0 (equal) to 1."""
    images = to_levels(images).float()
    return (images[1:] - images[:-1]).abs().mean(dim=(1, 2, 3)) / 255.0


class _Varieties:
    """Mean `variety` of outputs and of their targets over batches."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        self._sums[0] += variety(outputs).sum()
        self._sums[1] += variety(targets).sum()
        self._sums[2] += len(outputs) - 1

    def over_ranks(self) -> _Varieties:
        sum_over_ranks(self._sums)
        return self

    def result(self) -> dict[str, float]:
        """Nothing where no batch had two images."""
        of_outputs, of_targets, count = self._sums.tolist()
        return {"output_variety": of_outputs / count, "target_variety": of_targets / count} if count else {}


def validate(pix2pix: Pix2Pix, batches: Iterable[tuple[Tensor, Tensor]], palette: Palette | None) -> dict[str, float]:
    """Measure the generator on every rank's `batches` of inputs and targets on the device; equal on all ranks.

    Inputs are (B, H, W, C) uint8 or uint16, targets (B, H, W, C') of the same depth. Returns metrics (`val_l1`, ...),
    and how much outputs and targets differ among themselves: `output_variety` and `target_variety`, 0 to 1.
    """
    names = default_metrics(has_palette=bool(palette))
    measured: list[Measured] = []
    varieties = _Varieties(pix2pix.device)
    with _evaluating(pix2pix):
        for inputs, targets in batches:
            outputs = _translate(pix2pix, inputs)
            measured.append(measure(outputs, targets, names, palette))
            varieties.add(outputs, targets)
    totals = MetricTotals()
    for one in _gather([_to_cpu(one) for one in measured]):
        totals.add(one)
    return {f"val_{name}": value for name, value in totals.result().items()} | varieties.over_ranks().result()


@dataclass(frozen=True)
class SampleSheet:
    """Validation samples, drawn at one step."""

    image: Array
    """(H, W, 3) uint8."""
    png: bytes
    """The same, encoded."""
    varieties: dict[str, float]
    """`output_variety` and `target_variety`, as `validate` measures them, of these few."""


class ValidationSamples:
    """The first few pairs of a split, to be drawn again and again: input, output and target side by side."""

    def __init__(self, pairs: Pairs, crop: CropSettings) -> None:
        cropped = np.stack([crop.crop(pair) for pair in read_first(pairs, _SAMPLE_PAIRS, crop.formats)])
        self._inputs, self._targets = crop.sides(cropped)

    def draw(self, pix2pix: Pix2Pix) -> SampleSheet:
        """Translate the inputs with the generator as it is."""
        with _evaluating(pix2pix):
            # One by one: a large crop in a batch would need more memory than training does.
            outputs = [
                _translate(pix2pix, torch.from_numpy(image[None]).to(pix2pix.device))[0].cpu().numpy()
                for image in self._inputs
            ]
        image = contact_sheet(
            ("input", "output", "target"), list(zip(self._inputs, outputs, self._targets, strict=True))
        )
        varieties = _Varieties(torch.device("cpu"))
        varieties.add(torch.from_numpy(np.stack(outputs)), torch.from_numpy(self._targets))
        return SampleSheet(image, encode(image), varieties.result())
