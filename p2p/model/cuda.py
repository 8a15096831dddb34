"""Whether the installed PyTorch can compute on the GPU of this machine, said in one line where it cannot."""

from __future__ import annotations

import socket

import torch

from p2p.errors import UsageError

# By the major version of CUDA, the oldest driver that runs it: docs.nvidia.com/deploy/cuda-compatibility.
_MIN_DRIVERS = {"12": 525, "13": 580}


def require_cuda() -> None:
    """Compute something on the GPU. Raises UsageError where that fails: the driver is too old or missing, the GPU is of
    a generation that this PyTorch has no code for, or the container was given none.
    """
    try:
        torch.ones(1, device="cuda").add_(1).item()
    except (RuntimeError, AssertionError) as error:  # the latter from a PyTorch without CUDA
        reason = str(error).splitlines()[0].split(". ")[0]
        raise UsageError(f"{socket.gethostname()} has no GPU to compute on: {reason}; {_needs()}") from None


def _needs() -> str:
    cuda = torch.version.cuda
    if cuda is None:
        return "this PyTorch is one for CPUs alone; install another, or set gpu false"
    driver = _MIN_DRIVERS.get(cuda.partition(".")[0])
    words = [f"CUDA {cuda}, with which PyTorch was built, needs"]
    words += [f"NVIDIA's driver {driver} or newer"] * (driver is not None)
    words += [f"a GPU of one of {', '.join(kinds)}"] if (kinds := torch.cuda.get_arch_list()) else []
    return f"{words[0]} {' and '.join(words[1:])}; a container needs NVIDIA's toolkit and `--gpus all`"
