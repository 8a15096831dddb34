"""One optimisation step of pix2pix (Isola et al., 2017, section 3), discriminator first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p2p.model.average import Average
from p2p.model.config import ModelConfig
from p2p.model.losses import GanObjective, gradient_penalty
from p2p.model.networks import Discriminator, Generator, build_discriminator, build_generator
from p2p.model.tensors import InputEncoder

_BETA2 = 0.999
_FUSED_ADAM = ("cpu", "cuda")
_CANCELLING_MODES = ("hinge", "wgangp")
"""Objectives in which generated and real pairs can give the last bias opposite gradients (hinge: while no logit is past
its margin). Computed separately they cancel exactly; in one batch rounding would leave a tiny gradient, which Adam
turns into a full step."""
Wrap = Callable[[nn.Module], nn.Module]


class State(NamedTuple):
    """Everything that training changes: parameters and running statistics by name, Adam's moments, the average."""

    generator: dict[str, Tensor]
    discriminator: dict[str, Tensor]
    trainer: dict[str, Tensor]
    average: dict[str, Tensor]
    """The averaged generator; empty where none is kept."""


class _DiscriminatorLoss(nn.Module):
    """The discriminator's whole objective as one forward pass, which is what a data-parallel wrapper needs.

    Generated and real pairs have separate batch statistics. The sum is halved, as in the paper, to slow the
    discriminator down; so is the gradient penalty, which keeps its weight relative to the critic's means.
    """

    def __init__(self, discriminator: Discriminator, objective: GanObjective) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.objective = objective

    def forward(self, fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.objective.mode in _CANCELLING_MODES:
            fake_logits, real_logits = self.discriminator(fake), self.discriminator(real)
        else:
            fake_logits, real_logits = self.discriminator.logits_of_each(fake, real)
        d_fake, d_real = self.objective.fake(fake_logits), self.objective.real(real_logits)
        loss = d_fake + d_real
        if self.objective.mode == "wgangp":
            loss = loss + gradient_penalty(self.discriminator, real, fake)
        return loss * 0.5, d_fake, d_real


class _Adam(torch.optim.Adam):
    """Adam over views in memory order; otherwise the fused step on CPUs would copy each channels-last gradient."""

    def _init_group(self, group: dict[str, Any], params: list[Tensor], *lists: list[Tensor]) -> bool:
        sparse_or_complex: bool = super()._init_group(group, params, *lists)  # type: ignore[no-untyped-call]
        grads, first_moments, second_moments, *_ = lists
        for index, parameter in enumerate(params):
            if parameter.is_contiguous():
                continue
            for tensors in (params, grads, first_moments, second_moments):
                tensors[index] = tensors[index].permute(0, 2, 3, 1)
            grads[index] = grads[index].contiguous()  # a copy only where backward used another layout
        return sparse_or_complex


class Pix2Pix:
    """Generator, discriminator and their optimisers.

    seed: decides the initial weights. Dropout and the gradient penalty draw from torch's global generator instead; seed
    it with `torch.manual_seed` for reproducible noise.
    wrap: applied to the modules that take part in a backward pass (for example DistributedDataParallel); `generator`
    and `discriminator` stay the plain networks.
    With `config.ema_images`, call `update_average` after each `update`.

    Example:
        >>> import torch
        >>> from p2p import ModelConfig, Pix2Pix
        >>> pix2pix = Pix2Pix(ModelConfig(generator="unet_64", ngf=4, ndf=4, crop_size=64), seed=1)
        >>> inputs, targets = torch.zeros(2, 3, 64, 64), torch.ones(2, 3, 64, 64)
        >>> losses = pix2pix.update(inputs, targets)
        >>> sorted(losses)
        ['d_fake', 'd_real', 'g_gan', 'g_l1']

    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        seed: int = 0,
        device: str | torch.device = "cpu",
        wrap: Wrap | None = None,
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self.encode = InputEncoder(config, self.device)
        """Images (B, H, W, C) uint8 or uint16 -> the `inputs` of `update`."""
        self.generator = build_generator(config, seed=seed)
        self.discriminator = build_discriminator(config, seed=seed + 1)
        for network in (self.generator, self.discriminator):
            network.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._objective = GanObjective(config.gan_mode, config.label_smoothing)
        self.average = Average(self.generator, config.ema_images) if config.ema_images else None
        wrap = wrap or (lambda module: module)
        self._generate = wrap(self.generator)
        self._discriminator_loss = wrap(_DiscriminatorLoss(self.discriminator, self._objective))
        self._generator_adam = self._adam(self.generator)
        self._discriminator_adam = self._adam(self.discriminator)

    def _adam(self, network: nn.Module) -> torch.optim.Adam:
        betas = (self.config.beta1, _BETA2)
        fused, on_gpu = self.device.type in _FUSED_ADAM, self.device.type == "cuda"
        adam = _Adam(network.parameters(), lr=self.config.lr, betas=betas, fused=fused, capturable=on_gpu)
        if on_gpu:  # a step that is recorded as a graph reads its learning rate, like all else, from the device
            adam.param_groups[0]["lr"] = torch.tensor(self.config.lr, device=self.device)
        return adam

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        # One context for each pass: autocast caches the weights it has cast until the context ends.
        if self.config.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def clear_gradients(self) -> None:
        """Let go of the memory of gradients until the next update."""
        for adam in (self._generator_adam, self._discriminator_adam):
            adam.zero_grad(set_to_none=True)

    def update(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """One step on (B, C, H, W) float `inputs` and `targets` in [-1, 1] (class planes: 0 and 1).

        Returns `g_gan`, `g_l1` (weighted by lambda_l1), `d_real` and `d_fake` as detached 0-d float32 tensors on the
        device, without waiting for it. Does not change the networks' mode (train or eval).
        """
        inputs = inputs.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        targets = targets.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        with self._autocast():
            outputs = self._generate(inputs)
        outputs = outputs.float()
        generated = torch.cat([inputs, outputs], 1)

        self.discriminator.requires_grad_(True)
        self._discriminator_adam.zero_grad()
        with self._autocast():
            d_loss, d_fake, d_real = self._discriminator_loss(generated.detach(), torch.cat([inputs, targets], 1))
        torch.autograd.backward(d_loss)
        self._discriminator_adam.step()

        self.discriminator.requires_grad_(False)
        self._generator_adam.zero_grad()
        with self._autocast():
            g_gan = self._objective.fool(self.discriminator(generated))
        g_l1 = F.l1_loss(outputs, targets) * self.config.lambda_l1
        torch.autograd.backward(g_gan + g_l1)
        self._generator_adam.step()
        losses = {"g_gan": g_gan, "g_l1": g_l1, "d_real": d_real, "d_fake": d_fake}
        return {name: loss.detach() for name, loss in losses.items()}

    def update_average(self, images: int, images_seen: int) -> None:
        """Update the moving average after a step of `images` images (of all workers), `images_seen` before it."""
        if self.average is not None:
            self.average.update(images, images_seen)

    @property
    def eval_generator(self) -> Generator:
        """The generator for validation, samples and translation: the averaged one if there is one."""
        return self.generator if self.average is None else self.average.generator

    def set_learning_rate(self, lr: float) -> None:
        """Use `lr` in both optimisers from the next step on."""
        for adam in (self._generator_adam, self._discriminator_adam):
            for group in adam.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(lr)
                else:
                    group["lr"] = lr

    def train(self, mode: bool = True) -> None:
        """Switch both networks to training mode, or with False to evaluation mode."""
        self.generator.train(mode)
        self.discriminator.train(mode)

    def state(self) -> State:
        """Everything that `load_state` needs to continue, as tensors that share memory with the model.

        `trainer` has the Adam moments and step counts under `generator.<parameter>.<name>` and
        `discriminator.<parameter>.<name>`; it is empty before the first step.
        """
        trainer: dict[str, Tensor] = {}
        for part, network, adam in self._optimised():
            for name, parameter in network.named_parameters():
                for key, value in adam.state.get(parameter, {}).items():
                    trainer[f"{part}.{name}.{key}"] = value
        average = {} if self.average is None else self.average.generator.state_dict()
        return State(self.generator.state_dict(), self.discriminator.state_dict(), trainer, average)

    def is_finite(self) -> bool:
        """Whether no weight, running statistic or moment of an optimiser is NaN or infinite. Waits for the device."""
        tensors = [tensor for part in self.state() for tensor in part.values()]
        return bool(torch.stack([tensor.isfinite().all().to(self.device) for tensor in tensors]).all())

    def load_state(self, state: State) -> None:
        """Continue from what `state` returned. Raises KeyError or RuntimeError if names or shapes do not fit."""
        self.generator.load_state_dict(state.generator)
        self.discriminator.load_state_dict(state.discriminator)
        if self.average is not None:
            self.average.generator.load_state_dict(state.average)
        for part, network, adam in self._optimised():
            adam.load_state_dict(_adam_state(adam, network, part, state.trainer))

    def _optimised(self) -> tuple[tuple[str, nn.Module, torch.optim.Adam], ...]:
        return (
            ("generator", self.generator, self._generator_adam),
            ("discriminator", self.discriminator, self._discriminator_adam),
        )


def _adam_state(
    adam: torch.optim.Adam, network: nn.Module, part: str, tensors: Mapping[str, Tensor]
) -> dict[str, object]:
    keys = ("step", "exp_avg", "exp_avg_sq")
    moments = {}
    if any(name.startswith(f"{part}.") for name in tensors):
        for index, (name, parameter) in enumerate(network.named_parameters()):
            entry = {key: tensors[f"{part}.{name}.{key}"] for key in keys}
            if entry["exp_avg"].shape != parameter.shape:
                raise RuntimeError(f"{part}.{name}: moments of shape {tuple(entry['exp_avg'].shape)} do not fit")
            # The fused step needs moments in the parameter's memory layout.
            moments[index] = {
                "step": entry["step"].clone(),
                "exp_avg": torch.empty_like(parameter).copy_(entry["exp_avg"]),
                "exp_avg_sq": torch.empty_like(parameter).copy_(entry["exp_avg_sq"]),
            }
    return {"state": moments, "param_groups": adam.state_dict()["param_groups"]}
