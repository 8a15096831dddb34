"""Generator files without a description: the architecture is read off names and shapes of the tensors.

Such files are saved by pytorch-CycleGAN-and-pix2pix (`latest_net_G.pth`) and its relatives.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from p2p.errors import CheckpointError, UsageError
from p2p.model.config import RESNET_BLOCKS, UNET_DOWNS, GeneratorName, ModelConfig, NormName

Weights = Mapping[str, Tensor]

_RUNNING = re.compile(r"(.*)\.(running_mean|running_var|num_batches_tracked)")
_PARALLEL = "module."
_RESNET_CROP = 256


def plain_weights(weights: Weights) -> dict[str, Tensor]:
    """The same tensors without the `module.` prefix of a parallel wrapper and without what norms no longer keep.

    Instance norms of old PyTorch versions saved running statistics that nothing uses: those without a weight beside
    them are dropped.
    """
    if weights and all(name.startswith(_PARALLEL) for name in weights):
        weights = {name.removeprefix(_PARALLEL): value for name, value in weights.items()}
    return {name: value for name, value in weights.items() if not _is_leftover(name, weights)}


def _is_leftover(name: str, weights: Weights) -> bool:
    match = _RUNNING.fullmatch(name)
    return match is not None and f"{match[1]}.weight" not in weights


def infer_config(weights: Weights, uri: str) -> ModelConfig:
    """The model whose generator has these (plain) `weights`. Raises CheckpointError that says what they are instead.

    Dropout has no tensors: for a U-Net it is taken as used, for a ResNet it shows in the numbering of the layers.
    """
    try:
        if _shape(weights, "model.model.0.weight")[2:] == (4, 4):
            return _infer_unet(weights, uri)
        if _shape(weights, "model.1.weight")[2:] == (7, 7):
            return _infer_resnet(weights, uri)
    except UsageError as error:
        raise CheckpointError(f"{uri}: not a generator p2p knows: {error}") from None
    raise CheckpointError(f"{uri}: not a generator p2p knows: {_describe(weights)}")


def _shape(weights: Weights, name: str) -> tuple[int, ...]:
    return tuple(weights[name].shape) if name in weights else ()


def _name_for(count: int, names: Mapping[str, int], what: str, uri: str) -> GeneratorName:
    for name, wanted in names.items():
        if wanted == count:
            return name  # type: ignore[return-value]
    known = ", ".join(f"{name} ({wanted})" for name, wanted in names.items())
    raise CheckpointError(f"{uri}: a generator with {count} {what}; p2p knows {known}")


def _infer_unet(weights: Weights, uri: str) -> ModelConfig:
    level, downs, name = "model.model.1", 1, "model.model.0.weight"
    while f"{level}.model.1.weight" in weights:
        level, downs = f"{level}.model.3", downs + 1
    ngf, input_channels = _shape(weights, name)[:2]
    output = _shape(weights, "model.model.3.weight")
    generator = _name_for(downs, UNET_DOWNS, "halvings", uri)
    return ModelConfig(
        generator=generator,
        input_channels=input_channels,
        output_channels=output[1] if len(output) > 1 else 1,
        ngf=ngf,
        norm=_infer_norm(weights, "model.model.1.model.2", "model.model.1.model.1"),
        crop_size=2**downs,
    )


def _infer_resnet(weights: Weights, uri: str) -> ModelConfig:
    numbers = (re.fullmatch(r"model\.(\d+)\.conv_block\.1\.weight", name) for name in weights)
    blocks = sorted(int(match[1]) for match in numbers if match)
    generator = _name_for(len(blocks), RESNET_BLOCKS, "residual blocks", uri)
    ngf, input_channels = _shape(weights, "model.1.weight")[:2]
    last = _shape(weights, f"model.{blocks[-1] + 8}.weight")
    return ModelConfig(
        generator=generator,
        input_channels=input_channels,
        output_channels=last[0] if last else 3,
        ngf=ngf,
        norm=_infer_norm(weights, "model.2", "model.1"),
        dropout=f"model.{blocks[0]}.conv_block.6.weight" in weights
        and f"model.{blocks[0]}.conv_block.5.weight" not in weights,
        crop_size=_RESNET_CROP,
    )


def _infer_norm(weights: Weights, norm: str, convolution: str) -> NormName:
    if f"{norm}.running_mean" in weights:
        return "batch"
    return "instance" if f"{convolution}.bias" in weights else "none"


def _describe(weights: Weights) -> str:
    first = _shape(weights, "model.0.weight")
    if first[2:] == (4, 4) and "model.2.weight" in weights:
        return f"it looks like a patch discriminator for {first[1]} channels; give the generator's file (net_G)"
    if _shape(weights, "net.0.weight")[2:] == (1, 1):
        return "it looks like a pixel discriminator; give the generator's file (net_G)"
    names = sorted(weights)
    return f"its {len(names)} tensors are called {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
