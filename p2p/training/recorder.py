"""What the first worker writes of a run: sample sheets, metrics, checkpoints and the report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from p2p.errors import LeaseLostError
from p2p.model.checkpoint import save_checkpoint
from p2p.model.checkpoint_names import checkpoint_name
from p2p.model.pix2pix import Pix2Pix
from p2p.reports.run import write_run_report
from p2p.training.health import HealthFinding
from p2p.training.position import Position
from p2p.training.run_folder import MetricsRow, RunFolder
from p2p.training.scalars import Scalars
from p2p.training.selection import is_best
from p2p.training.task import TrainTask
from p2p.training.validation import ValidationSamples

_MAX_REPORTS_SHARE = 0.02
"""Of the time, for writing the report."""


class Recorder:
    """Writes into RUN, from `last_step` on. Close it at the end.

    The first validation pairs become samples; where there are none, the first training pairs do, and the newest
    checkpoint is the best.
    """

    def __init__(self, task: TrainTask, pix2pix: Pix2Pix, last_step: int) -> None:
        self._config, self._pix2pix, self._data = task.config, pix2pix, task.data
        self._fence = task.fence
        self._validates = task.stream.val is not None
        self._run = RunFolder(task.config.output)
        self._samples = ValidationSamples(task.stream.val or task.stream.train, task.stream.crop)
        self._scalars = Scalars(task.config.output, last_step)
        self._report_due = time.monotonic()

    def close(self) -> None:
        """Make what was written visible to readers."""
        self._scalars.close()

    def draw(self, epoch: int, step: int, *, inside_epoch: bool = False) -> dict[str, float]:
        """Write a sample sheet; returns how much its outputs and targets differ among themselves."""
        self._check_lease()
        sheet = self._samples.draw(self._pix2pix)
        self._run.write_sample(checkpoint_name(epoch, step if inside_epoch else None), sheet.png)
        self._scalars.draw(step, sheet.image)
        if inside_epoch:
            self._scalars.publish()
        return sheet.varieties

    def write(self, rows: Sequence[MetricsRow]) -> None:
        """Write the metrics of all epochs; the last row is new. Raises LeaseLostError if another job writes RUN now."""
        self._check_lease()
        self._scalars.write(rows[-1])
        self._scalars.publish()
        self._run.write_rows(rows)

    def save(self, row: MetricsRow, position: Position, *, inside_epoch: bool = False) -> None:
        """Write a checkpoint, which becomes the latest and perhaps the best. Raises as `write` does."""
        self._require_newest(row["step"])
        name = self._run.new_checkpoint(row["epoch"], row["step"], inside_epoch=inside_epoch)
        known = {name: row[name] for name in ("epoch", "step", "images_seen")}
        meta = {**known, "metrics": row, "data": dataclasses.asdict(self._data)}
        save_checkpoint(self._run.address(name), self._pix2pix, meta, position.to_dict(), self._fence)
        best, metric = self._run.best(), self._config.best_metric
        # Within an epoch nothing is validated, so a checkpoint there cannot be the best of a run that validates.
        is_comparable = metric in row or not self._validates
        improved = is_comparable and is_best(row, best["metrics"] if best else None, metric)
        self._require_newest(row["step"])  # writing it has taken a while
        self._run.publish(name, row, is_best=improved, keep=self._config.keep_checkpoints)

    def _check_lease(self) -> None:
        if self._fence:
            self._fence.check()

    def _require_newest(self, step: int) -> None:
        """Raise LeaseLostError where others write RUN now: another job, or workers with which Ray has replaced these,
        since their machine gave no sign of life.
        """
        self._check_lease()
        latest = self._run.latest()
        if latest and latest["metrics"]["step"] > step:
            saved = latest["metrics"]["step"]
            raise LeaseLostError(f"{self._run.uri}: other workers have saved step {saved} already, these are at {step}")

    def refresh_report(self, health: Sequence[HealthFinding]) -> None:
        """Write RUN/report.html, unless that was done a short time ago."""
        started = time.monotonic()
        if started < self._report_due:
            return
        write_run_report(self._config.output, health)
        ended = time.monotonic()
        self._report_due = ended + (ended - started) / _MAX_REPORTS_SHARE
