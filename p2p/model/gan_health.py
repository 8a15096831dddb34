"""Which losses show that generator or discriminator has won, or that the discriminator only guesses. Without torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GanThresholds:
    """Compared with mean losses, as `Pix2Pix.update` returns them."""

    perfect_d_real: float = 0.0
    """d_real of a discriminator that is always right; its d_fake is 0."""
    perfect_within: float
    """A discriminator's losses this close to those count as always right ..."""
    lost_g_gan: float
    """... if g_gan is at least this: the generator no longer fools it."""
    fooled_d_fake: float
    """From this d_fake on the discriminator takes outputs for targets ..."""
    fooled_g_gan: float
    """... if g_gan is at most this."""
    chance_d_real: float
    """d_real of a discriminator that can only guess ..."""
    chance_d_fake: float
    """... and its d_fake."""
    chance_within: float
    """Losses this close to those count as guessing."""

    def describe_chance(self) -> str:
        """The loss of guessing, as text: `log 2 = 0.693`."""
        if self.chance_d_real != self.chance_d_fake:
            return f"{self.chance_d_real:.3f} and {self.chance_d_fake:.3f}"
        return "log 2 = 0.693" if self.chance_d_real == math.log(2.0) else f"{self.chance_d_real:g}"


GAN_HEALTH_THRESHOLDS: Mapping[str, GanThresholds] = {
    "vanilla": GanThresholds(  # losses are -log of the probability of the right answer
        perfect_within=0.1,  # 90 % for the right answer
        lost_g_gan=3.0,  # outputs pass for targets with 5 %
        fooled_d_fake=3.0,  # outputs are recognised with 5 %
        fooled_g_gan=0.1,  # outputs pass for targets with 90 %
        chance_d_real=math.log(2.0),
        chance_d_fake=math.log(2.0),
        chance_within=0.02,  # 49 to 51 % for either answer
    ),
    "lsgan": GanThresholds(  # losses are squared distances from the labels, 1 for targets and 0 for outputs
        perfect_within=0.02,  # within 0.14 of the label
        lost_g_gan=0.8,  # logits of outputs are 0.1
        fooled_d_fake=0.8,  # logits of outputs are 0.9
        fooled_g_gan=0.02,  # logits of outputs are within 0.14 of 1
        chance_d_real=0.25,
        chance_d_fake=0.25,
        chance_within=0.01,  # logits are 0.49 to 0.51
    ),
    "hinge": GanThresholds(  # losses are distances to the margins, 1 for targets and -1 for outputs
        perfect_within=0.1,  # a tenth short of the margin
        lost_g_gan=1.0,  # outputs are at their margin, -1
        fooled_d_fake=1.8,  # outputs are at 0.8, almost at the targets' margin
        fooled_g_gan=-0.8,  # the same, as the generator sees it
        chance_d_real=1.0,
        chance_d_fake=1.0,
        chance_within=0.03,  # within 0.03 of 0, the middle
    ),
}
"""By objective, for labels without smoothing. wgangp has none: its critic's losses have no zero and no scale."""


def gan_thresholds(gan_mode: str, label_smoothing: float = 0.0) -> GanThresholds | None:
    """The thresholds of an objective whose labels of real pairs are 1 - s; None for wgangp.

    A discriminator that is always right then answers 1 - s, and one that sees both kinds alike does best to answer
    (1 - s) / 2 (Goodfellow et al., 2014, proposition 1, with the smoothed label).

    Example:
        >>> thresholds = gan_thresholds("lsgan", 0.2)
        >>> thresholds.describe_chance()
        '0.16'

    """
    thresholds = GAN_HEALTH_THRESHOLDS.get(gan_mode)
    if thresholds is None or not label_smoothing:
        return thresholds
    label = 1.0 - label_smoothing
    chance = label / 2
    if gan_mode == "vanilla":
        return dataclasses.replace(
            thresholds,
            perfect_d_real=-label * math.log(label) - label_smoothing * math.log(label_smoothing),
            chance_d_real=-label * math.log(chance) - label_smoothing * math.log1p(-chance),
            chance_d_fake=-math.log1p(-chance),
        )
    return dataclasses.replace(
        thresholds,
        chance_d_real=chance**2,
        chance_d_fake=chance**2,
        fooled_d_fake=thresholds.fooled_d_fake * label**2,  # logits at 0.9 of the smoothed label
        fooled_g_gan=thresholds.fooled_g_gan + label_smoothing**2,  # what outputs at that label cost
    )
