"""Where the losses of generator and discriminator lie when one of them has won, and when neither can. Without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Balance:
    """Marks on the scale of one adversarial objective, of mean losses."""

    perfect_real: float
    """d_real of a discriminator that is always right; d_fake is then 0."""
    near: float
    """A discriminator's loss this close to always right counts as right."""
    hopeless_g_gan: float
    """g_gan from which on the generator no longer fools it."""
    fooled_d_fake: float
    """d_fake from which on the discriminator takes outputs for targets ..."""
    fooling_g_gan: float
    """... and g_gan up to which the generator is believed."""
    guess_real: float
    """d_real of a discriminator that can only guess ..."""
    guess_fake: float
    """... and its d_fake."""
    guess_within: float
    """Losses this close to the guess count as guessing."""

    @property
    def guess_words(self) -> str:
        """What guessing costs, for a person: `log 2 = 0.693`."""
        if self.guess_real != self.guess_fake:
            return f"{self.guess_real:.3f} and {self.guess_fake:.3f}"
        return "log 2 = 0.693" if self.guess_real == math.log(2.0) else f"{self.guess_real:g}"


def balance_of(gan_mode: str, label_smoothing: float = 0.0) -> Balance | None:
    """The marks of an objective; None for wgangp, whose critic has no zero and no scale.

    With the label of real pairs at 1 - s, a discriminator that sees both kinds alike does best to answer (1 - s) / 2
    (Goodfellow et al., 2014, proposition 1, with the smoothed label), and one that is always right answers 1 - s.
    """
    label = 1.0 - label_smoothing
    guess = label / 2
    if gan_mode == "vanilla":
        cross_entropy = -label * math.log(label) - (label_smoothing * math.log(label_smoothing) if label < 1 else 0.0)
        return Balance(
            perfect_real=cross_entropy,
            near=0.1,
            hopeless_g_gan=3.0,
            fooled_d_fake=3.0,
            fooling_g_gan=0.1,
            guess_real=-label * math.log(guess) - label_smoothing * math.log1p(-guess),
            guess_fake=-math.log1p(-guess),
            guess_within=0.02,
        )
    if gan_mode == "lsgan":
        return Balance(
            perfect_real=0.0,
            near=0.02,
            hopeless_g_gan=0.8,
            fooled_d_fake=0.8 * label**2,
            fooling_g_gan=0.02 + label_smoothing**2,
            guess_real=guess**2,
            guess_fake=guess**2,
            guess_within=0.01,
        )
    if gan_mode == "hinge":
        return Balance(
            perfect_real=0.0,
            near=0.1,
            hopeless_g_gan=1.0,
            fooled_d_fake=1.8,
            fooling_g_gan=-0.8,
            guess_real=1.0,
            guess_fake=1.0,
            guess_within=0.03,
        )
    return None
