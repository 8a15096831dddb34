"""Numbers made by a formula, the same on every machine: weights, inputs and targets for comparisons."""

import zlib

import numpy as np
import torch


def uniform(name, shape):
    """float32 in [-0.5, 0.5), by integer hashing of the name and each element's index."""
    count = int(np.prod(shape, dtype=np.int64))
    bits = np.arange(count, dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()) << 20)
    for shift, factor in ((33, 0xFF51AFD7ED558CCD), (29, 0xC4CEB9FE1A85EC53)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    values = (bits >> np.uint64(40)).astype(np.float32) / np.float32(2**24) - np.float32(0.5)
    return torch.from_numpy(values.reshape(shape))


def fill(network, salt):
    """Give every tensor of `network` numbers that keep signals of ordinary size."""
    filled = {}
    for name, tensor in network.state_dict().items():
        noise = uniform(f"{salt}/{name}", tuple(tensor.shape)) if tensor.is_floating_point() else tensor
        if name.endswith("num_batches_tracked"):
            filled[name] = torch.zeros_like(tensor)
        elif tensor.ndim == 4:
            filled[name] = noise * 4 / (tensor[0].numel() ** 0.5)
        elif name.endswith("running_var"):
            filled[name] = 1 + noise
        elif name.endswith("weight"):
            filled[name] = 1 + 0.2 * noise
        else:
            filled[name] = 0.2 * noise
    network.load_state_dict(filled)
    return network


def images(name, batch, channels, side):
    """(batch, channels, side, side) float32 in [-1, 1)."""
    return 2 * uniform(name, (batch, channels, side, side))
