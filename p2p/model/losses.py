"""Adversarial objectives on (B, 1, h, w) logits. All return 0-d float32 tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p2p.model.config import GanMode

_PENALTY_WEIGHT = 10.0
_TINY = 1e-16  # keeps the norm's derivative finite where the gradient is zero


@dataclass(frozen=True)
class GanObjective:
    """What discriminator and generator minimise.

    vanilla: binary cross-entropy on logits (Goodfellow et al., 2014, non-saturating); lsgan: squared distance to the
    labels 1 and 0 (Mao et al., 2017); hinge (Lim and Ye, 2017); wgangp: the critic's mean with a gradient penalty
    (Gulrajani et al., 2017). wgangp differs from its paper in two points: the critic makes one step for each step
    of the generator, as in the other modes, and may have batch norm, which the paper advises against since it makes the
    penalty of one pair depend on the others (use norm "instance" or "none").

    `label_smoothing` s lowers the discriminator's target for real pairs to 1 - s (Salimans et al., 2016, one-sided);
    the generator still aims at 1.
    """

    mode: GanMode = "vanilla"
    label_smoothing: float = 0.0

    def real(self, logits: Tensor) -> Tensor:
        """The discriminator's loss on real pairs."""
        if self.mode == "hinge":
            return F.relu(1.0 - logits.float()).mean()
        return self._towards(logits.float(), 1.0 - self.label_smoothing)

    def fake(self, logits: Tensor) -> Tensor:
        """The discriminator's loss on generated pairs."""
        if self.mode == "hinge":
            return F.relu(1.0 + logits.float()).mean()
        return self._towards(logits.float(), 0.0)

    def fool(self, logits: Tensor) -> Tensor:
        """The generator's loss on generated pairs."""
        return -logits.float().mean() if self.mode == "hinge" else self._towards(logits.float(), 1.0)

    def _towards(self, logits: Tensor, label: float) -> Tensor:
        if self.mode == "wgangp":
            return -logits.mean() if label else logits.mean()
        labels = torch.full_like(logits, label)
        if self.mode == "lsgan":
            return F.mse_loss(logits, labels)
        return F.binary_cross_entropy_with_logits(logits, labels)


def gradient_penalty(discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """10 * (|gradient| - 1)^2 at points drawn between (B, C, H, W) `real` and `fake` pairs, averaged over the batch.

    One point for each pair, from torch's global generator (Gulrajani et al., 2017, algorithm 1).
    """
    position = torch.rand(real.shape[0], 1, device=real.device)[..., None, None]
    between = (position * real + (1.0 - position) * fake).requires_grad_(True)
    logits = discriminator(between)
    (gradient,) = torch.autograd.grad(logits, between, torch.ones_like(logits), create_graph=True)
    length = torch.linalg.vector_norm(gradient.float().flatten(1) + _TINY, dim=1)
    penalty: Tensor = (length - 1.0).square().mean() * _PENALTY_WEIGHT
    return penalty
