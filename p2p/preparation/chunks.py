"""The images of compressed tars, kept in Ray's object store until they are prepared."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np

from p2p.errors import UsageError

if TYPE_CHECKING:
    import ray

STORE_SHARE = 0.5
"""The part of this node's object store that may be filled without a look at the disk; the rest is Ray Data's."""
MIN_FREE_DISK = 0.1
"""The part of the disk that stays free. Ray itself writes no more objects to one that is 95 % full."""


class ChunkStore:
    """Numbered chunks of bytes in the object store, which moves to this node's disk what it has no room for.

    `references` finds them from anywhere.
    """

    def __init__(self) -> None:
        self.references: list[ray.ObjectRef[Any]] = []
        self._bytes = 0

    def put(self, chunk: bytearray, source: str) -> None:
        """Keep the next chunk of `source`, such as `--source x.tar.gz`. Raises UsageError if there is no room."""
        import ray
        from ray.exceptions import ObjectStoreFullError, OutOfDiskError

        self._bytes += len(chunk)
        folder, store_bytes = _object_store()
        disk = shutil.disk_usage(folder)
        if self._bytes > STORE_SHARE * store_bytes and disk.free < MIN_FREE_DISK * disk.total + len(chunk):
            raise self._no_room(source, folder)
        try:
            self.references.append(ray.put(np.frombuffer(chunk, np.uint8)))
        except (ObjectStoreFullError, OutOfDiskError):
            raise self._no_room(source, folder) from None

    def _no_room(self, source: str, folder: str) -> UsageError:
        return UsageError(
            f"{source}: the first {self._bytes >> 20} MiB of its images are more than Ray's object store and the disk "
            f"of {folder} have room for; unpack it and give the folder, or pack it as .tar, which is read where it lies"
        )


def _object_store() -> tuple[str, float]:
    """The folder of this node's Ray, on whose disk objects lie that the object store has no room for, and its bytes."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == here)  # type: ignore[no-untyped-call]
    return os.path.dirname(node["ObjectStoreSocketName"]), float(node["Resources"].get("object_store_memory", 0.0))
