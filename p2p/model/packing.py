"""Packs convolution weights for the CPU's kernels once (prepacking) instead of on every call.

The U-Net's weights are larger than its activations: re-ordering them takes half of the time of a batch of one. With
weights prepacked by oneDNN, layers are as fast as with torch.compile's freezing, return the same bits as before, and
need no compiler.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from p2p.model.networks import replace_modules

_Convolution: TypeAlias = nn.Conv2d | nn.ConvTranspose2d
_NO_ACTIVATION: tuple[str, list[Any], str] = ("none", [], "")


class _PackedConvolution(nn.Module):
    """A convolution with weights packed for one input shape; other shapes work, more slowly."""

    def __init__(self, layer: _Convolution, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.bias = layer.bias
        self._arguments = [list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups]
        mkldnn = torch.ops.mkldnn
        reorder, self._convolve = mkldnn._reorder_convolution_weight, mkldnn._convolution_pointwise
        if layer.transposed:
            self._arguments.insert(1, list(layer.output_padding))
            reorder = mkldnn._reorder_convolution_transpose_weight
            self._convolve = mkldnn._convolution_transpose_pointwise
        self._weight = reorder(layer.weight, *self._arguments, list(input_shape))

    def forward(self, x: Tensor) -> Tensor:
        packed: Tensor = self._convolve(x, self._weight, self.bias, *self._arguments, *_NO_ACTIVATION)
        return packed


def _input_shapes(network: nn.Module, example: Tensor) -> dict[_Convolution, tuple[int, ...]]:
    """The input shape of each convolution when the network's input is `example`."""
    shapes: dict[_Convolution, tuple[int, ...]] = {}

    def record(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        shapes[layer] = tuple(inputs[0].shape)

    hooks = [layer.register_forward_pre_hook(record) for layer in network.modules() if isinstance(layer, _Convolution)]
    network(example)
    for hook in hooks:
        hook.remove()
    return shapes


@torch.inference_mode()
def pack_weights(network: nn.Module, batch: int, channels: int, side: int) -> str | None:
    """Replace a bfloat16 network's convolutions by packed ones, on the CPU, for (batch, channels, side, side) inputs.

    Outputs do not change by a bit. Where this torch or this processor has no such kernels the network is left as it is
    and the reason is returned. float32 networks are not packed, since oneDNN then chooses slower kernels.
    """
    example = torch.zeros(1, channels, side, side, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    try:
        packed: dict[nn.Module, nn.Module] = {}
        for layer, (_, *rest) in _input_shapes(network, example).items():
            packed[layer] = _PackedConvolution(layer, (batch, *rest))
            packed[layer](example.new_zeros(1, *rest))  # some processors refuse only here
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        return f"weights are not packed for this processor, the network runs slower: {reason}"
    replace_modules(network, packed.get)
    return None
