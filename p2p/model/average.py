"""An exponential moving average of a generator, which draws steadier images than the weights of any one step."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from p2p.model.networks import Generator

_RAMP = 0.05


class Average:
    """Follows a generator: `generator` is the averaged one, in evaluation mode.

    A step of n images keeps 0.5 ** (n / half_life) of what was, so the average means the same whatever the batch size
    and the number of workers. The half-life is `half_life` images, but never more than a twentieth of the images seen
    so far, so that the initial weights do not linger (both as in Karras et al., "Analyzing and improving the image
    quality of StyleGAN", 2020, and its code). Batch norm's running statistics are averaged like weights, since they
    describe what these weights make of images; counters are copied.
    """

    def __init__(self, source: Generator, half_life: int) -> None:
        self.half_life = half_life
        self.generator = copy.deepcopy(source).eval().requires_grad_(False)
        own, followed = self.generator.state_dict(), source.state_dict()
        self._smooth = _pairs(own, followed, floating=True)
        self._counters = _pairs(own, followed, floating=False)

    def kept(self, images: int, images_seen: int) -> float:
        """The share of the old average that a step of `images` images keeps, after `images_seen` before it."""
        half_life = min(float(self.half_life), _RAMP * images_seen)
        return 0.5 ** (images / half_life) if half_life else 0.0

    @torch.no_grad()
    def update(self, images: int, images_seen: int) -> None:
        """Take in the generator as it is after a step of `images` images (of all workers), `images_seen` before it."""
        averaged, followed = self._smooth
        torch._foreach_lerp_(averaged, followed, 1.0 - self.kept(images, images_seen))
        for own, source in zip(*self._counters, strict=True):
            own.copy_(source)


def _pairs(own: dict[str, Tensor], followed: dict[str, Tensor], *, floating: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Tensors of both networks by the same names; they share memory with them."""
    names = [name for name, tensor in own.items() if tensor.is_floating_point() == floating]
    return [own[name] for name in names], [followed[name] for name in names]
