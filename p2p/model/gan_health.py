"""Which losses show that generator or discriminator has won, or that the discriminator only guesses. Without torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Of mean losses, as `Pix2Pix.update` returns them."""

    near: float
    """A discriminator's losses this close to those of one that is always right count as right."""
    hopeless_g_gan: float
    """g_gan from which on the generator no longer fools it."""
    fooled_d_fake: float
    """d_fake from which on the discriminator takes outputs for targets ..."""
    fooling_g_gan: float
    """... if g_gan is at most this."""
    guess_within: float
    """Losses this close to those of guessing count as guessing."""


GAN_HEALTH_THRESHOLDS: Mapping[str, Thresholds] = {
    "vanilla": Thresholds(  # losses are -log of the probability of the right answer
        near=0.1,  # 90 % for the right answer
        hopeless_g_gan=3.0,  # outputs pass for targets with 5 %
        fooled_d_fake=3.0,  # outputs are recognised with 5 %
        fooling_g_gan=0.1,  # outputs pass for targets with 90 %
        guess_within=0.02,  # 49 to 51 % for either answer
    ),
    "lsgan": Thresholds(  # losses are squared distances from the labels, 1 for targets and 0 for outputs
        near=0.02,  # within 0.14 of the label
        hopeless_g_gan=0.8,  # outputs are judged 0.1
        fooled_d_fake=0.8,  # outputs are judged 0.9
        fooling_g_gan=0.02,  # outputs are judged within 0.14 of 1
        guess_within=0.01,  # judged 0.49 to 0.51
    ),
    "hinge": Thresholds(  # losses are distances to the margins, 1 for targets and -1 for outputs
        near=0.1,  # a tenth short of the margin
        hopeless_g_gan=1.0,  # outputs are at their margin, -1
        fooled_d_fake=1.8,  # outputs are at 0.8, almost at the targets' margin
        fooling_g_gan=-0.8,  # the same, as the generator sees it
        guess_within=0.03,  # within 0.03 of 0, the middle
    ),
}
"""By objective, for labels without smoothing. wgangp has none: its critic's losses have no zero and no scale."""


@dataclass(frozen=True, kw_only=True)
class Balance(Thresholds):
    """The thresholds of one objective with its label smoothing, and the losses they are compared with."""

    perfect_real: float
    """d_real of a discriminator that is always right; d_fake is then 0."""
    guess_real: float
    """d_real of a discriminator that can only guess ..."""
    guess_fake: float
    """... and its d_fake."""

    @property
    def guess_words(self) -> str:
        """What guessing costs, for a person: `log 2 = 0.693`."""
        if self.guess_real != self.guess_fake:
            return f"{self.guess_real:.3f} and {self.guess_fake:.3f}"
        return "log 2 = 0.693" if self.guess_real == math.log(2.0) else f"{self.guess_real:g}"


def balance_of(gan_mode: str, label_smoothing: float = 0.0) -> Balance | None:
    """What to compare an objective's losses with; None for wgangp.

    With the label of real pairs at 1 - s, a discriminator that sees both kinds alike does best to answer (1 - s) / 2
    (Goodfellow et al., 2014, proposition 1, with the smoothed label), and one that is always right answers 1 - s.

    Example:
        >>> balance = balance_of("vanilla")
        >>> balance.guess_words, round(balance.guess_fake, 3)
        ('log 2 = 0.693', 0.693)

    """
    if gan_mode not in GAN_HEALTH_THRESHOLDS:
        return None
    thresholds = GAN_HEALTH_THRESHOLDS[gan_mode]
    label = 1.0 - label_smoothing
    guess = label / 2
    perfect_real, guess_real, guess_fake = 0.0, 1.0, 1.0  # of hinge
    if gan_mode == "vanilla":
        entropy = label_smoothing * math.log(label_smoothing) if label_smoothing else 0.0
        perfect_real = -label * math.log(label) - entropy
        guess_real = -label * math.log(guess) - label_smoothing * math.log1p(-guess)
        guess_fake = -math.log1p(-guess)
    elif gan_mode == "lsgan":
        guess_real = guess_fake = guess**2
        thresholds = dataclasses.replace(
            thresholds,
            fooled_d_fake=thresholds.fooled_d_fake * label**2,  # judged 0.9 of the smoothed label
            fooling_g_gan=thresholds.fooling_g_gan + label_smoothing**2,  # what outputs at that label cost
        )
    return Balance(
        **dataclasses.asdict(thresholds), perfect_real=perfect_real, guess_real=guess_real, guess_fake=guess_fake
    )
