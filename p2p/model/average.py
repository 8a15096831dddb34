"""An exponential moving average (EMA) of a generator, whose images vary less than those of any one step."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from p2p.model.networks import Generator

_RAMP_UP = 0.05  # longest half-life as a share of the images seen so far


class Average:
    """The moving average of a `source` generator: `generator`, in evaluation mode.

    A step of n images keeps 0.5 ** (n / half_life) of the old average, so it depends neither on the batch size nor on
    the number of workers. The half-life is `half_life` images, but at most a twentieth of the images seen so far, so
    that the initial weights are soon forgotten (both as in Karras et al., "Analyzing and improving the image quality of
    StyleGAN", 2020, and its code). Batch norm's running statistics are averaged like weights, since they describe the
    activations of these weights; counters are copied.
    """

    def __init__(self, source: Generator, half_life: int) -> None:
        self.half_life = half_life
        self.generator = copy.deepcopy(source).eval().requires_grad_(False)
        own, other = self.generator.state_dict(), source.state_dict()
        self._smooth = _pairs(own, other, floating=True)
        self._counters = _pairs(own, other, floating=False)

    def kept(self, images: int, images_seen: int) -> float:
        """The share of the old average that a step of `images` images keeps, after `images_seen` before it."""
        half_life = min(float(self.half_life), _RAMP_UP * images_seen)
        return 0.5 ** (images / half_life) if half_life else 0.0

    @torch.no_grad()
    def update(self, images: int, images_seen: int) -> None:
        """Include the source's weights after a step of `images` images (of all workers), `images_seen` before it."""
        averaged, current = self._smooth
        torch._foreach_lerp_(averaged, current, 1.0 - self.kept(images, images_seen))
        for own, source in zip(*self._counters, strict=True):
            own.copy_(source)


def _pairs(own: dict[str, Tensor], other: dict[str, Tensor], *, floating: bool) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors of the same names in both networks, sharing memory with them."""
    names = [name for name, tensor in own.items() if tensor.is_floating_point() == floating]
    return [own[name] for name in names], [other[name] for name in names]
