"""Data-parallel training: reductions over ranks, and batch norm synchronised over all of them, on any device.

torch's own SyncBatchNorm works on GPUs only.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from p2p.model.networks import replace_modules

# DistributedDataParallel's option to copy the first rank's buffers to all before every forward pass. Its name depends
# on torch's version.
_BUFFER_OPTION = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


def world_size() -> int:
    """Ranks that train together; 1 where there is no process group."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def sum_over_ranks(x: Tensor) -> Tensor:
    """`x`, by now the sum of every rank's."""
    if world_size() > 1:
        torch.distributed.all_reduce(x)
    return x


def max_over_ranks(x: Tensor) -> Tensor:
    """`x`, by now the largest values of any rank's."""
    if world_size() > 1:
        torch.distributed.all_reduce(x, torch.distributed.ReduceOp.MAX)
    return x


class _MeanOverRanks(torch.autograd.Function):
    """The mean of a tensor over all ranks; differentiable any number of times (wgangp needs the second derivative)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        return sum_over_ranks(x.clone()) / world_size()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        return mean_over_ranks(gradients[0])


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean over all ranks of each rank's `x`, differentiable."""
    mean: Tensor = _MeanOverRanks.apply(x)
    return mean


class SyncBatchNorm2d(nn.BatchNorm2d):
    """(B, C, H, W) -> the same, in training normalised by mean and variance over the batches of all ranks.

    Each call has its own statistics, so generated and real pairs in separate calls are not mixed.
    All ranks must call with equal shapes. In evaluation mode, plain batch norm.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float of any precision -> the same shape and precision."""
        if not self.training:
            return super().forward(x)
        values = x.float()
        mean = mean_over_ranks(values.mean(dim=(0, 2, 3)))
        centred = values - mean[:, None, None]
        variance = mean_over_ranks(centred.square().mean(dim=(0, 2, 3)))
        self._track(mean.detach(), variance.detach(), x.numel() // x.shape[1])
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias[:, None, None], centred, scale[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, values: int) -> None:
        """Update running statistics as torch does: by `momentum` towards the mean and the unbiased variance."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        values *= world_size()
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (values / max(1, values - 1)), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def synchronise_batch_norm(network: nn.Module) -> None:
    """Replace every batch norm in `network` by one over all ranks, with the same parameters under the same names."""
    replace_modules(network, lambda layer: _synchronised(layer) if type(layer) is nn.BatchNorm2d else None)


def _synchronised(norm: nn.BatchNorm2d) -> SyncBatchNorm2d:
    other = SyncBatchNorm2d(norm.num_features, norm.eps, norm.momentum, device="meta")
    other.weight, other.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers():
        setattr(other, name, buffer)
    return other.train(norm.training)


def data_parallel(network: nn.Module, device_ids: Sequence[Any] | None = None) -> DistributedDataParallel:
    """`network` with gradients averaged over all ranks. Each keeps its own batch statistics."""
    options: dict[str, Any] = {_BUFFER_OPTION: False}
    return DistributedDataParallel(network, device_ids=device_ids, **options)
