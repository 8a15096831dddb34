"""Features of the Inception network by which FID, KID and IS are defined, with the weights of 2015-12-05."""

from __future__ import annotations

import io
import itertools
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from p2p.errors import CheckpointError
from p2p.model.cuda_graphs import exact_kernels
from p2p.model.legacy import read_pth
from p2p.model.pretrained import (
    INCEPTION_ARCHIVE_SHA256,
    INCEPTION_FILES,
    KnownWeights,
    read_known_weights,
    require_module,
)

FEATURES = 2048
CLASSES = 1008
RESIZE = "tf1-bilinear-299"
"""How images become 299x299: as TensorFlow 1 did, without antialiasing."""
_BATCH = 8
_MODULE = "torch_fidelity.feature_extractor_inceptionv3"


def read_inception_weights(uri: str) -> KnownWeights:
    """A file of `INCEPTION_FILES`. Raises ConfigError for any other."""
    return read_known_weights(uri, "inception_weights", INCEPTION_FILES)


def has_classifier(sha256: str) -> bool:
    """Whether these weights have the last layer, which IS needs."""
    return sha256 != INCEPTION_ARCHIVE_SHA256


class Inception:
    """Computes features; each depends on its own image alone, to the bit.

    Raises ConfigError where torch-fidelity is not installed or the file is unknown.
    """

    def __init__(self, uri: str, device: str | torch.device = "cpu") -> None:
        module = require_module(_MODULE, "fid")
        weights = read_inception_weights(uri)
        self.has_classifier = has_classifier(weights.sha256)
        self.network = _build(module.FeatureExtractorInceptionV3, weights).to(
            device=device, memory_format=torch.channels_last
        )
        self._device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, W, 3) uint8 -> (B, 2048) features and (B, 1008) logits without bias, float32, on the CPU."""
        parts = [self._compute(part) for part in torch.split(images, _BATCH)]
        features, logits = (torch.cat(kind) for kind in zip(*parts, strict=True))
        return features, logits

    def _compute(self, images: Tensor) -> tuple[Tensor, Tensor]:
        count = len(images)
        padded = images.new_zeros((_BATCH, *images.shape[1:]))  # kernels, and with them rounding, are chosen by shape
        padded[:count] = images
        with exact_kernels(self._device):
            features, logits = self.network(padded.permute(0, 3, 1, 2).to(self._device))
        return features[:count].cpu(), logits[:count].cpu()


def _build(network_class: Any, weights: KnownWeights) -> Any:
    """torch-fidelity's network. It would unpickle whatever file it is given, so that is an empty one made here."""

    class CheckedInception(network_class):  # type: ignore[misc]
        def load_state_dict(self, state: Any) -> Any:
            return super().load_state_dict(_state(weights, self.state_dict()))

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    return CheckedInception("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=empty)


def _state(weights: KnownWeights, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's tensors by name, those of `wanted`."""
    if has_classifier(weights.sha256):
        state = read_pth(weights.data, weights.uri)
    else:
        state = _read_archive(weights.data, wanted)
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    if missing or set(state) - set(wanted):
        raise CheckpointError(f"{weights.uri}: does not fit the Inception network: {[*missing, *state][0]}")
    return {**wanted, **state}


def _read_archive(data: bytes, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A TorchScript archive is a zip with a file of plain floats for each tensor, here in the network's own order: each
    convolution's weight, then its norm's bias, mean and variance. Nothing else in it is looked at.
    """
    state = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        numbers = itertools.count()
        for name, tensor in wanted.items():
            if name.endswith("bn.weight"):
                state[name] = torch.ones_like(tensor)  # Inception's norms do not scale
            elif name.startswith("fc."):
                state[name] = torch.zeros_like(tensor)
            elif not name.endswith("num_batches_tracked"):
                values = np.frombuffer(archive.read(f"out_jit_module/data/{next(numbers)}"), "<f4")
                state[name] = torch.from_numpy(values.copy()).reshape(tensor.shape)
    return state
