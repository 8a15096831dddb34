"""Decides what is saved of a run, and when: every rank decides the same, the first one writes."""

from __future__ import annotations

import time
from contextlib import ExitStack

from p2p.data.order import EpochRange
from p2p.training.config import TrainConfig
from p2p.training.health import describe_finding, health_findings
from p2p.training.recorder import Recorder
from p2p.training.run_folder import MetricsRow, RunFolder
from p2p.training.selection import is_out_of_patience
from p2p.training.task import TrainTask
from p2p.training.trainer import LOSSES, Trainer
from p2p.training.validation import average_statistics

_SECONDS_BETWEEN_PROGRESS = 2.0


class RunKeeper(ExitStack):
    """Writes a run as its trainer goes on. A context manager."""

    def __init__(self, task: TrainTask, trainer: Trainer) -> None:
        super().__init__()
        self._task, self._config, self._trainer, self._reporter = task, task.config, trainer, task.reporter
        self._rows = RunFolder(task.config.output).rows(up_to_epoch=trainer.position.epoch)
        self._saved_step = trainer.position.step
        self._recorder: Recorder | None = None

    def begin(self) -> None:
        """The first batch is there: time counts from here on."""
        if self._trainer.rank == 0:
            self._recorder = Recorder(self._task, self._trainer.pix2pix, self._trainer.position.step)
            self.callback(self._recorder.close)
        self._report_progress()
        self._trainer.start_clock()

    def is_out_of_patience(self) -> bool:
        """Whether the run's patience has run out."""
        return is_out_of_patience(self._rows, self._config.patience, self._config.best_metric)

    def after_step(self) -> None:
        """Keep what is due at this step, which is not an epoch's last (all ranks)."""
        if time.monotonic() - self._progress_reported >= _SECONDS_BETWEEN_PROGRESS:
            self._report_progress()
        step = self._trainer.position.step
        if _is_due(step, self._config.samples_every_steps):
            average_statistics(self._trainer.pix2pix)
            self._trainer.check_losses()
            if self._recorder is not None:
                self._recorder.draw(self._trainer.epoch, step, inside_epoch=True)
        if _is_due(step, self._config.checkpoint_every_steps):
            self.save_inside_epoch()

    def save_inside_epoch(self) -> None:
        """Keep a checkpoint of the present step, unless that has been done (all ranks)."""
        if self._saved_step == self._trainer.position.step:
            return
        self._saved_step = self._trainer.position.step
        average_statistics(self._trainer.pix2pix)
        row = self._trainer.metrics()
        self._trainer.check_weights()
        position = self._trainer.position_inside_epoch()
        if self._recorder is not None:
            self._recorder.save(row, position, inside_epoch=True)

    def after_epoch(self, row: MetricsRow, part: EpochRange, *, is_last: bool) -> bool:
        """Keep an epoch, or the part of it that `max_steps` allowed (all ranks). Returns whether training ends here
        because patience has run out.
        """
        config, trainer = self._config, self._trainer
        row["seconds"] = trainer.epoch_seconds
        known = [finding["finding"] for finding in health_findings(self._rows, config.to_dict())]
        self._rows.append(row)
        ends = self.is_out_of_patience()
        draw = _is_due(part.epoch, config.samples_every) or _is_due(row["step"], config.samples_every_steps)
        save = _is_due(part.epoch, config.checkpoint_every) or _is_due(row["step"], config.checkpoint_every_steps)
        if save or ends or is_last:
            trainer.check_weights()
        if part.finishes_epoch:
            trainer.finish_epoch()
        else:
            trainer.position = trainer.position_inside_epoch()
        trainer.start_clock()
        if self._recorder is not None:
            self._keep(self._recorder, row, known, draw=draw or ends or is_last, save=save or ends or is_last)
            if ends:
                self._log(f"stopping: {config.best_metric} has not improved for {config.patience} epochs")
        return ends

    def _keep(self, recorder: Recorder, row: MetricsRow, known: list[str], *, draw: bool, save: bool) -> None:
        """Log and write an epoch's metrics, with new findings about the run's health."""
        if draw:
            varieties = recorder.draw(row["epoch"], row["step"])
            if self._task.stream.val is None:  # else validation has measured them on more than a few
                row.update(varieties)
        health = health_findings(self._rows, self._config.to_dict())
        new = [finding for finding in health if finding["finding"] not in known]
        self._log(_describe(row, self._config), *(describe_finding(finding) for finding in new))
        self._report_progress()
        self._reporter.metrics.remote(row)
        recorder.write(self._rows)
        if save:
            recorder.save(row, self._trainer.position)
        recorder.refresh_report(health)

    def _log(self, *lines: str) -> None:
        self._reporter.log.remote(*lines)

    def _report_progress(self) -> None:
        self._progress_reported = time.monotonic()
        if self._trainer.rank == 0:
            epoch, last = self._trainer.position.epoch + 1, self._config.last_epoch
            self._reporter.progress.remote(self._trainer.position.images_seen, f"epoch {min(epoch, last)}/{last}")


def _is_due(count: int, every: int) -> bool:
    return bool(every) and count % every == 0


def _describe(row: MetricsRow, config: TrainConfig) -> str:
    names = dict.fromkeys((*LOSSES, "val_l1", "val_psnr", "val_ssim", config.best_metric))
    values = [f"{name} {row[name]:.3f}" for name in names if name in row]
    return f"epoch {row['epoch']}/{config.last_epoch}: {', '.join(values)}, {row['images_per_second']:.1f} img/s"
