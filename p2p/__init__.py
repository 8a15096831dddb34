"""p2p: paired image-to-image translation (pix2pix) on Ray."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2p.model.checkpoint import load_generator
    from p2p.model.config import ModelConfig
    from p2p.model.networks import PatchDiscriminator, UNetGenerator
    from p2p.model.pix2pix import Pix2Pix
    from p2p.model.translator import Translator

__all__ = ["ModelConfig", "PatchDiscriminator", "Pix2Pix", "Translator", "UNetGenerator", "load_generator"]

# Loaded on first use: `import p2p.errors` or a job's `--help` must not wait for torch.
_HOMES = {
    "ModelConfig": "p2p.model.config",
    "PatchDiscriminator": "p2p.model.networks",
    "Pix2Pix": "p2p.model.pix2pix",
    "Translator": "p2p.model.translator",
    "UNetGenerator": "p2p.model.networks",
    "load_generator": "p2p.model.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'p2p' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
