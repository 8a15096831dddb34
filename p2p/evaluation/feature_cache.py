"""Features of a prepared data set's targets, kept beside it: the next evaluation need not compute them again."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from p2p.data.pairs import FEATURES_FOLDER, Pairs
from p2p.errors import StorageError
from p2p.model.inception import FEATURES
from p2p.storage.filesystems import join, write_table
from p2p.storage.parquet import read_parquet, to_python

log = logging.getLogger("p2p")

TargetFeatures = dict[str, npt.NDArray[np.float32]]
"""(2048,) each, by the digest of a target's pixels."""
MAX_TARGETS = 20_000
"""More of them, at 8 KiB each, are computed again."""


class FeatureCache:
    """The features that a network of known weights finds in the targets of one split."""

    def __init__(self, pairs: Pairs, weights_sha256: str) -> None:
        self._uri = join(pairs.uri, FEATURES_FOLDER, f"{pairs.split}-{weights_sha256[:16]}.parquet")
        self._is_raw = pairs.is_raw  # a folder of somebody's images, where nothing is written
        self._stored = 0

    def read(self) -> TargetFeatures:
        """What is there; nothing where it cannot be read, since all of it can be computed."""
        if self._is_raw:
            return {}
        try:
            table = read_parquet(self._uri, ("target_sha256", "features"))
            columns = [to_python(table[name]) for name in ("target_sha256", "features")]
        except (StorageError, pa.ArrowException):
            return {}
        found = {
            digest: np.frombuffer(data, "<f4")
            for digest, data in zip(*columns, strict=True)
            if isinstance(digest, str) and isinstance(data, bytes) and len(data) == 4 * FEATURES
        }
        self._stored = len(found)
        return {digest: features for digest, features in found.items() if np.isfinite(features).all()}

    def write(self, features: TargetFeatures) -> None:
        """Keep what is new. A data set that cannot be written to is no reason to fail."""
        if self._is_raw or not self._stored < len(features) <= MAX_TARGETS:
            return
        columns = {
            "target_sha256": list(features),
            "features": [np.asarray(values, "<f4").tobytes() for values in features.values()],
        }
        try:
            write_table(self._uri, pa.table(columns))
        except StorageError as error:
            log.info("the targets' features are not kept: %s", error)
