"""What a training is about: everything that its workers are told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from p2p.data.description import DataRecord
from p2p.data.stream import PairStream
from p2p.storage.lease import Fence
from p2p.training.config import TrainConfig


@dataclass(frozen=True)
class TrainTask:
    """Small and picklable: options, addresses, a handle."""

    config: TrainConfig
    stream: PairStream
    """Pairs to train on and to validate on."""
    data: DataRecord
    fence: Fence | None = None
    """Of the lease of RUN."""
    reporter: Any = None
    """Handle of the `RunReporter` actor."""
