"""A run's numbers and samples for TensorBoard."""

from __future__ import annotations

import os
import tempfile

from torch.utils.tensorboard import SummaryWriter

from p2p.storage.error_mapping import storage_errors
from p2p.storage.filesystems import is_remote, join, list_files, write_bytes
from p2p.storage.pixels import Array
from p2p.training.run_folder import MetricsRow


class Scalars:
    """Writes RUN/tensorboard. Close it at the end.

    Steps after `last_step`, which an earlier attempt may have written, are hidden.
    """

    def __init__(self, run_uri: str, last_step: int) -> None:
        self._target = join(run_uri, "tensorboard")
        self._temporary = tempfile.TemporaryDirectory() if is_remote(run_uri) else None
        self._folder = self._temporary.name if self._temporary else self._target
        with storage_errors(self._target):
            self._writer = SummaryWriter(self._folder, purge_step=last_step + 1 if last_step else None)

    def close(self) -> None:
        """Write the rest and close the file."""
        with storage_errors(self._target):
            self._writer.close()
        if self._temporary is not None:
            self._upload()
            self._temporary.cleanup()

    def write(self, row: MetricsRow) -> None:
        """Add one epoch's numbers, at its step."""
        with storage_errors(self._target):
            for name, value in row.items():
                if name not in ("epoch", "step"):
                    self._writer.add_scalar(name, value, row["step"])

    def draw(self, step: int, sheet: Array) -> None:
        """Add a sample sheet, (H, W, 3) uint8."""
        with storage_errors(self._target):
            self._writer.add_image("samples", sheet, step, dataformats="HWC")

    def publish(self) -> None:
        """Make what was added visible to readers."""
        with storage_errors(self._target):
            self._writer.flush()
        if self._temporary is not None:
            self._upload()

    def _upload(self) -> None:
        """An object store cannot append: publish the whole event file again."""
        for info in list_files(self._folder):
            with open(os.path.join(self._folder, info.path), "rb") as file:
                write_bytes(join(self._target, info.path), file.read())
