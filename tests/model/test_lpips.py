"""LPIPS is that of the package lpips, whatever classifier it is given."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from p2p.errors import CheckpointError
from p2p.model import lpips, pretrained


def test_it_is_the_packages_own_with_the_named_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("lpips")
    theirs = package.LPIPS(net="alex", pnet_rand=True, verbose=False)
    classifier = {f"features.{name.partition('.')[2]}": value for name, value in theirs.net.state_dict().items()}

    def save(name: str, weights: dict[str, torch.Tensor]) -> str:
        path = tmp_path / name
        torch.save(weights, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setitem(pretrained.LPIPS_FILES, "alex", {digest[:8]: name})  # type: ignore[call-overload]
        return str(path)

    generator = torch.Generator().manual_seed(0)
    outputs, targets = (torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8, generator=generator) for _ in "ab")
    found = lpips.Lpips(save("alexnet.pth", {**classifier, "classifier.1.weight": torch.zeros(2)}), "alex")
    wanted = [
        theirs(*(image.permute(2, 0, 1)[None] / 127.5 - 1 for image in pair)).item()
        for pair in zip(outputs, targets, strict=True)
    ]
    assert found(outputs, targets).tolist() == pytest.approx(wanted, rel=1e-5)
    assert found(targets, targets).tolist() == [0.0, 0.0, 0.0]

    del classifier["features.0.weight"]
    with pytest.raises(CheckpointError, match=r"features\.0\.weight is missing"):
        lpips.Lpips(save("other.pth", classifier), "alex")
