"""How good the generator is on pairs it does not train on, and what it draws for the same few of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from p2p.data.augment import centre_crop
from p2p.data.feed import Preparation
from p2p.data.pairs import Pairs, first_pairs
from p2p.model.metrics import Measured, Palette, Totals, default_metrics, find_metric, measure
from p2p.model.pix2pix import Pix2Pix
from p2p.model.tensors import to_pixels
from p2p.reports.sheets import contact_sheet
from p2p.storage.images import Array, encode
from p2p.training.run_folder import MetricsRow

_SAMPLES = 4


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
        outputs = pix2pix.generator(encoded)
    return to_pixels(outputs, pix2pix.config.bits)


def average_statistics(pix2pix: Pix2Pix, world: int) -> None:
    """Give every rank the mean of all ranks' running statistics, which each gathered on its own pairs."""
    for network in (pix2pix.generator, pix2pix.discriminator):
        for statistics in network.buffers():
            if world > 1 and statistics.is_floating_point():
                torch.distributed.all_reduce(statistics)
                statistics.div_(world)


def _gather(measured: list[Measured], world: int) -> list[Measured]:
    """Every rank's statistics, in the order of ranks."""
    if world == 1:
        return measured
    gathered: list[list[Measured]] = [[] for _ in range(world)]
    torch.distributed.all_gather_object(gathered, measured)
    return [one for of_rank in gathered for one in of_rank]


def _to_cpu(measured: Measured) -> Measured:
    counts = measured.confusion
    values = {name: tensor.cpu() for name, tensor in measured.values.items()}
    return Measured(values, None if counts is None else counts.sum(dim=0, keepdim=True).cpu())


def validate(
    pix2pix: Pix2Pix, batches: Iterable[tuple[Tensor, Tensor]], palette: Palette | None, world: int
) -> dict[str, float]:
    """Metrics (`val_l1`, ...) over every rank's `batches` of inputs and targets on the device; equal on all ranks.

    Inputs are (B, H, W, C) uint8 or uint16, targets (B, H, W, C') of the same depth.
    """
    names = default_metrics(has_palette=bool(palette))
    measured: list[Measured] = []
    with _evaluating(pix2pix):
        for inputs, targets in batches:
            measured.append(measure(_translate(pix2pix, inputs), targets, names, palette))
    totals = Totals(names, palette)
    for one in _gather([_to_cpu(one) for one in measured], world):
        totals.add(one)
    return {f"val_{name}": value for name, value in totals.result().items()}


def is_best(row: MetricsRow, best: MetricsRow | None, metric: str) -> bool:
    """Whether a checkpoint with `row`'s metrics is better than the `best` so far; without validation, the newest is."""
    if metric not in row:
        return True
    return find_metric(metric, "--best-metric").improves(row[metric], best.get(metric) if best else None)


def epochs_without_improvement(rows: Sequence[MetricsRow], metric: str) -> int:
    """Epochs since the best value of `metric`; 0 where it was not measured."""
    best: float | None = None
    since = 0
    for row in rows:
        if metric not in row:
            return 0
        if find_metric(metric, "--best-metric").improves(row[metric], best):
            best, since = row[metric], 0
        else:
            since += 1
    return since


class Samples:
    """The first few pairs of a split, drawn after each epoch: input, output and target side by side."""

    def __init__(self, pairs: Pairs, preparation: Preparation) -> None:
        sides = [
            centre_crop(pair["a"], pair["b"], preparation.crop_size)[:: -1 if preparation.swap else 1]
            for pair in first_pairs(pairs, _SAMPLES, preparation.formats)
        ]
        self._inputs = np.stack([side[0] for side in sides])
        self._targets = np.stack([side[1] for side in sides])

    def draw(self, pix2pix: Pix2Pix) -> tuple[Array, bytes]:
        """The sheet, (H, W, 3) uint8, and the same as PNG."""
        with _evaluating(pix2pix):
            # One by one: a large crop in a batch would need more memory than training does.
            outputs = [
                _translate(pix2pix, torch.from_numpy(image[None]).to(pix2pix.device))[0].cpu().numpy()
                for image in self._inputs
            ]
        sheet = contact_sheet(
            ("input", "output", "target"), list(zip(self._inputs, outputs, self._targets, strict=True))
        )
        return sheet, encode(sheet)
