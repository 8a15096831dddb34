"""Generator files without a configuration: the architecture is inferred from the names and shapes of the tensors.

Such files are saved by pytorch-CycleGAN-and-pix2pix (`latest_net_G.pth`) and its relatives.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping

import torch
from torch import Tensor

from p2p.errors import CheckpointError, UsageError
from p2p.model.config import RESNET_BLOCKS, UNET_DOWNS, GeneratorName, ModelConfig, NormName
from p2p.model.cuda_graphs import is_out_of_memory

Weights = Mapping[str, Tensor]

_RUNNING = re.compile(r"(.*)\.(running_mean|running_var|num_batches_tracked)")
_PARALLEL = "module."
_RESNET_CROP = 256


def read_pth(data: bytes, uri: str) -> dict[str, Tensor]:
    """The tensors of a file written by `torch.save(network.state_dict(), path)`, without unpickling code.

    Raises CheckpointError for other files, and for tensors that overlap so that they are larger than their storage:
    copies of them could take any amount of memory. Raises MemoryError where there is too little for the file itself.
    """
    _require_uncompressed(data, uri)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kinds of tensors that are refused below
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{uri}: holds Python objects beside tensors, which p2p does not load; "
            "save only the weights: torch.save(net.state_dict(), path)"
        ) from None
    except Exception as error:  # torch's readers raise anything on damaged data
        reason = " ".join(str(error).split())[:200]
        if is_out_of_memory(error):
            raise MemoryError(f"{uri}: out of memory: {reason}") from None
        raise CheckpointError(f"{uri}: not a PyTorch file: {reason}") from None
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        found = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{uri}: expected the weights of one network by name, found {found or 'nothing'}")
    held: dict[int, int] = {}
    claimed = 0
    for name, tensor in content.items():
        if not isinstance(name, str) or not _is_plain(tensor):
            raise CheckpointError(
                f"{uri}: {name!r} is no plain tensor of numbers; save only the weights of one network"
            )
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        claimed += tensor.numel() * tensor.element_size()
    if claimed > sum(held.values()):
        raise CheckpointError(
            f"{uri}: its tensors claim {claimed} bytes and share {sum(held.values())}, so they are no network's weights"
        )
    return dict(content)


def _is_plain(tensor: Tensor) -> bool:
    return (
        tensor.layout == torch.strided and tensor.device.type == "cpu" and not (tensor.is_nested or tensor.is_quantized)
    )


def _require_uncompressed(data: bytes, uri: str) -> None:
    """Raise CheckpointError for a compressed zip, which could expand to any size; torch compresses nothing."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return  # the format of old versions, or another kind of file
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            held = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{uri}: not a PyTorch file: {error}") from None
    if held > len(data):
        raise CheckpointError(f"{uri}: not a PyTorch file: {len(data)} bytes that hold {held}")


def plain_weights(weights: Weights) -> dict[str, Tensor]:
    """The same tensors without the `module.` prefix of a parallel wrapper and without unused running statistics.

    Instance norms of old PyTorch versions saved running statistics that nothing uses: those of layers without a weight
    are dropped.
    """
    if weights and all(name.startswith(_PARALLEL) for name in weights):
        weights = {name.removeprefix(_PARALLEL): value for name, value in weights.items()}
    return {name: value for name, value in weights.items() if not _is_unused(name, weights)}


def _is_unused(name: str, weights: Weights) -> bool:
    match = _RUNNING.fullmatch(name)
    return match is not None and f"{match[1]}.weight" not in weights


def infer_config(weights: Weights, uri: str) -> ModelConfig:
    """The model whose generator has these (plain) `weights`. Raises CheckpointError with what they are instead.

    Dropout has no tensors: a U-Net is assumed to have it, in a ResNet the numbering of the layers shows it.
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
    numbers = (re.fullmatch(r"model\.([0-9]{1,4})\.conv_block\.1\.weight", name) for name in weights)
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
