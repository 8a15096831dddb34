"""A GPU that cannot be used is told in one line, whatever is wrong with it."""

from __future__ import annotations

import pytest
import torch

from p2p.errors import UsageError
from p2p.model.cuda import require_cuda

REASONS = [
    RuntimeError("The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver"),
    RuntimeError("CUDA error: no kernel image is available for execution on the device\nFor debugging consider …"),
    AssertionError("Torch not compiled with CUDA enabled"),
]


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_machine_without_one_is_told() -> None:
    with pytest.raises(
        UsageError, match=r"^\S+ has no GPU to compute on: .*NVIDIA.*; CUDA 13\.\d+, .* driver 580 or newer"
    ):
        require_cuda()


@pytest.mark.parametrize("reason", REASONS, ids=str)
def test_what_is_wrong_is_said_in_a_line_with_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, reason: Exception
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise reason

    monkeypatch.setattr(torch, "ones", fails)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
    with pytest.raises(UsageError) as told:
        require_cuda()
    message = str(told.value)
    assert "\n" not in message and "Please" not in message and "debugging" not in message
    assert str(reason).splitlines()[0].split(". ")[0] in message
    assert "needs NVIDIA's driver 580 or newer and a GPU of one of sm_75, sm_80; a container needs" in message
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UsageError, match="one for CPUs alone"):
        require_cuda()
