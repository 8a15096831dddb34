"""Every adversarial objective against its formula, written out here a second time, and so what a step descends."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from formula_weights import fill, images
from torch import Tensor, nn

from p2p.model.config import ModelConfig
from p2p.model.losses import GanObjective, gradient_penalty
from p2p.model.pix2pix import Pix2Pix

LOGITS = [-3.0, -1.0, -0.25, 0.0, 0.9, 1.0, 2.5, 4.0]
ENORMOUS = [-200.0, 200.0]


def cross_entropy(logit: float, label: float) -> float:
    """-label log(sigmoid) - (1 - label) log(1 - sigmoid), without overflow."""
    return max(logit, 0.0) - label * logit + math.log1p(math.exp(-abs(logit)))


# What is averaged over the logits x: for real pairs (labelled t), for generated ones, and in the generator's own loss.
FORMULAS = {
    "vanilla": (cross_entropy, lambda x: cross_entropy(x, 0.0), lambda x: cross_entropy(x, 1.0)),
    "lsgan": (lambda x, t: (x - t) ** 2, lambda x: x**2, lambda x: (x - 1) ** 2),
    "hinge": (lambda x, t: max(0.0, 1 - x), lambda x: max(0.0, 1 + x), lambda x: -x),
    "wgangp": (lambda x, t: -x, lambda x: x, lambda x: -x),
}


@pytest.mark.parametrize("mode, smoothing", [*((mode, 0.0) for mode in FORMULAS), ("vanilla", 0.1), ("lsgan", 0.3)])
def test_an_objective_is_the_mean_of_its_formula(mode, smoothing):
    """Smoothing moves the label of real pairs only."""
    objective = GanObjective(mode, smoothing)
    real, fake, fool = FORMULAS[mode]
    for logits in (torch.tensor(LOGITS), torch.tensor(ENORMOUS), torch.tensor(LOGITS, dtype=torch.bfloat16)):
        values = logits.double().tolist()
        found = [part(logits.reshape(1, 1, 2, -1)) for part in (objective.real, objective.fake, objective.fool)]
        expected = [
            np.mean([real(x, 1 - smoothing) for x in values]),
            *(np.mean(list(map(f, values))) for f in (fake, fool)),
        ]
        assert [loss.item() for loss in found] == pytest.approx(expected, rel=1e-5)
        assert all(loss.shape == () and loss.dtype == torch.float32 for loss in found)


class _Square(nn.Module):
    """A critic whose derivative is known: 2 a x at x."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.2))

    def forward(self, pairs: Tensor) -> Tensor:
        return self.a * pairs.square().sum(1, keepdim=True)


def test_the_gradient_penalty_and_its_derivative_are_those_of_the_formula():
    """At one point of its own for each pair, of whose length 1 is wanted; the mean is over pairs."""
    critic = _Square()
    torch.manual_seed(0)  # of some pairs the norm is so close to 1 that float32 has few digits of the difference
    real, fake = torch.rand(3, 2, 4, 4), torch.rand(3, 2, 4, 4) - 1
    torch.manual_seed(5)
    penalty = gradient_penalty(critic, real, fake)
    (slope,) = torch.autograd.grad(penalty, critic.a)
    torch.manual_seed(5)
    position = torch.rand(3, 1).double().numpy()
    points = (position * real.flatten(1).numpy() + (1 - position) * fake.flatten(1).numpy()).astype(float)
    norms = np.sqrt((points**2).sum(1))
    a = critic.a.item()
    assert penalty.item() == pytest.approx(10 * ((2 * a * norms - 1) ** 2).mean(), rel=1e-5)
    assert slope.item() == pytest.approx(10 * (2 * (2 * a * norms - 1) * 2 * norms).mean(), rel=1e-5)


@pytest.mark.parametrize("mode, smoothing", [("vanilla", 0.2), ("lsgan", 0.2), ("hinge", 0.0), ("wgangp", 0.0)])
def test_a_step_descends_half_the_discriminators_formula_and_the_whole_of_the_generators(mode, smoothing):
    """The penalty weighs 10 beside the critic's means, as published, so it is halved with them."""
    sizes = {"generator": "unet_64", "discriminator": "patch_16", "crop_size": 64, "ngf": 2, "ndf": 2}
    model = Pix2Pix(
        ModelConfig(**sizes, norm="none", dropout=False, gan_mode=mode, label_smoothing=smoothing, lambda_l1=3.0)
    )
    generator, discriminator = (
        copy.deepcopy(fill(network, "any")) for network in (model.generator, model.discriminator)
    )
    inputs, targets = images("inputs", 2, 3, 64), images("targets", 2, 3, 64)
    torch.manual_seed(1)
    model.update(inputs, targets)
    objective = GanObjective(mode, smoothing)

    outputs = generator(inputs)
    real, fake = torch.cat([inputs, targets], 1), torch.cat([inputs, outputs], 1)
    loss = objective.real(discriminator(real)) + objective.fake(discriminator(fake.detach()))
    if mode == "wgangp":
        torch.manual_seed(1)
        loss = loss + gradient_penalty(discriminator, real, fake.detach())
    expected = torch.autograd.grad(loss / 2, list(discriminator.parameters()))
    found = [parameter.grad for parameter in model.discriminator.parameters()]
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(found, expected, strict=True))

    whole = objective.fool(model.discriminator(fake)) + 3.0 * (outputs - targets).abs().mean()
    expected = torch.autograd.grad(whole, list(generator.parameters()))
    found = [parameter.grad for parameter in model.generator.parameters()]
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(found, expected, strict=True))
