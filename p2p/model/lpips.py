"""LPIPS: the distance of two images in the features of a classifier (extra `metrics`)."""

from __future__ import annotations

import torch
from torch import Tensor

from p2p.errors import CheckpointError
from p2p.model.cuda_graphs import exact_kernels
from p2p.model.legacy import read_pth
from p2p.model.pretrained import LPIPS_FILES, KnownWeights, read_known_weights, require_module


def read_lpips_weights(uri: str, net: str) -> KnownWeights:
    """Torchvision's classifier for `net`, alex or vgg. Raises ConfigError for any other file."""
    return read_known_weights(uri, "lpips_weights", LPIPS_FILES[net])


class Lpips:
    """Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", CVPR 2018, version 0.1.

    Raises ConfigError where the package lpips is not installed or the file is unknown.
    """

    def __init__(self, uri: str, net: str, device: str | torch.device = "cpu") -> None:
        module = require_module("lpips", "lpips")
        weights = read_lpips_weights(uri, net)
        self._network = module.LPIPS(net=net, pnet_rand=True, verbose=False)  # the package has the linear heads only
        classifier = read_pth(weights.data, weights.uri)
        state = {}
        for name, tensor in self._network.net.state_dict().items():
            layer = f"features.{name.partition('.')[2]}"
            if layer not in classifier or classifier[layer].shape != tensor.shape:
                raise CheckpointError(f"{weights.uri}: does not fit {net}: {layer} is missing or of another shape")
            state[name] = classifier[layer]
        self._network.net.load_state_dict(state)
        self._network.requires_grad_(False).eval().to(device)
        self._device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 each -> (B,) float64 on the CPU; each depends on its own images alone."""
        sides = [
            images.permute(0, 3, 1, 2).to(self._device, torch.float32).div_(127.5).sub_(1.0)
            for images in (outputs, targets)
        ]
        pairs = zip(*(torch.split(side, 1) for side in sides), strict=True)
        with exact_kernels(self._device):
            values = [self._network(*pair).flatten() for pair in pairs]
        return torch.cat(values).double().cpu()
