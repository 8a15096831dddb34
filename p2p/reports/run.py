"""The page of a training run: how far it got, how it went, what it draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup

from p2p.documents import parse_json_object
from p2p.errors import NotFoundError
from p2p.model.gan_health import gan_thresholds
from p2p.model.metrics import METRICS, Metric
from p2p.reports.page import Series, duration, line_chart, number, percent, render
from p2p.reports.samples import load_sheets
from p2p.storage.filesystems import join, read_bytes, read_json_object

_SHARE = "share"
_SHARES = ("data_wait", "gpu_busy")


@dataclass(frozen=True)
class _Run:
    """What is in a run folder so far; None or empty for a file that is not there yet."""

    config: dict[str, Any]
    rows: list[dict[str, Any]]
    summary: dict[str, Any] | None
    best: dict[str, Any] | None
    latest: dict[str, Any] | None

    @property
    def best_metric(self) -> str:
        return str(self.config.get("best_metric", "val_l1"))

    def series(self, name: str, *, in_percent: bool = False) -> Series:
        values = [row.get(name) for row in self.rows]
        if in_percent:
            values = [None if value is None else 100 * value for value in values]
        return Series(name, [row["epoch"] for row in self.rows], values)

    def has(self, name: str) -> bool:
        return any(row.get(name) is not None for row in self.rows)


class _Tile(NamedTuple):
    name: str
    value: str
    note: str


class _Chart(NamedTuple):
    title: str
    drawing: Markup
    caption: str


def _read(uri: str, name: str) -> dict[str, Any] | None:
    try:
        return read_json_object(join(uri, name))
    except NotFoundError:
        return None


def _read_rows(uri: str) -> list[dict[str, Any]]:
    address = join(uri, "metrics.jsonl")
    try:
        return [parse_json_object(line, address) for line in read_bytes(address).splitlines() if line.strip()]
    except NotFoundError:
        return []


def _metric(name: str) -> Metric | None:
    return METRICS.get(name.removeprefix("val_"))


# Numbers


def _status(run: _Run) -> str:
    if run.summary is None:
        return "not finished"
    if run.summary.get("error"):
        return "stopped by an error"
    return "stopped early" if run.summary.get("stopped_early") else "finished"


def _value(name: str, value: float | None) -> str:
    metric = _metric(name)
    if name == "seconds":
        return duration(value)
    if name in _SHARES:
        return percent(value)
    if name == "lr" and value is not None:
        return f"{value:.4g}"
    if metric is not None and metric.unit == _SHARE:
        return percent(value, 2)
    return f"{number(value, 4)} {metric.unit if metric is not None else ''}".rstrip()


def _best_tile(run: _Run) -> _Tile:
    best, name = run.best, run.best_metric
    if best is None:
        return _Tile("Best checkpoint", number(None), "none saved yet")
    if name not in best["metrics"]:
        return _Tile("Best checkpoint", f"epoch {best['epoch']}", "the newest: nothing was validated")
    metric = _metric(name)
    direction = f", {metric.better} is better" if metric else ""
    return _Tile(f"Best {name}", _value(name, best["metrics"][name]), f"epoch {best['epoch']}{direction}")


def _tiles(run: _Run) -> list[_Tile]:
    last: Mapping[str, Any] = run.rows[-1] if run.rows else {}
    seconds = sum(row.get("seconds") or 0.0 for row in run.rows) or None
    seen = last.get("images_seen")
    overall = seen / seconds if seen and seconds else None
    planned = run.config.get("epochs", 0) + run.config.get("epochs_decay", 0)
    pace = f"{number(last.get('images_per_second'))} in the last epoch's training"
    return [
        _Tile("Epochs", number(last.get("epoch", 0)), f"of {number(planned)}" if planned else ""),
        _Tile("Steps", number(last.get("step", 0)), "of the optimiser"),
        _Tile("Images seen", number(seen or 0), "in training"),
        _Tile("Images per second", number(overall), pace),
        _best_tile(run),
        _Tile("Time", duration(seconds), "training and validation"),
    ]


def _checkpoint_rows(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Name and one cell for each checkpoint."""
    names = {name: None for entry in entries for name in entry["metrics"] if name not in ("epoch", "step")}
    return [
        ("checkpoint", [str(entry["checkpoint"]) for entry in entries]),
        ("epoch", [number(entry["epoch"]) for entry in entries]),
        ("step", [number(entry.get("step")) for entry in entries]),
        *((name, [_value(name, entry["metrics"].get(name)) for entry in entries]) for name in names),
    ]


# Charts


def _chart(run: _Run, names: Sequence[str], title: str, y_label: str, caption: str, **options: Any) -> list[_Chart]:
    """A chart of those of the values that the run has; none where it has none."""
    series = [run.series(name, in_percent=name in _SHARES) for name in names if run.has(name)]
    return [_Chart(title, line_chart(series, x_label="epoch", y_label=y_label, **options), caption)] if series else []


def _loss_charts(run: _Run) -> list[_Chart]:
    adversarial = "Generator against discriminator; d_real and d_fake are its losses on targets and on outputs."
    chance = gan_thresholds(str(run.config.get("gan_mode")), run.config.get("label_smoothing") or 0.0)
    marks: list[tuple[float, str]] = []
    if chance is not None and chance.chance_d_real == chance.chance_d_fake:
        adversarial += f" At {chance.describe_chance().partition(' =')[0]} it can only guess."
        marks = [(chance.chance_d_real, chance.describe_chance())]
    elif chance is not None:
        adversarial += " At the marks it can only guess."
        marks = [
            (chance.chance_d_real, f"d_real {chance.chance_d_real:.3f}"),
            (chance.chance_d_fake, f"d_fake {chance.chance_d_fake:.3f}"),
        ]
    weight = number(run.config.get("lambda_l1"))
    l1 = f"Distance of outputs from targets, on a scale of −1 to 1, times {weight} (lambda_l1)."
    return [
        *_chart(run, ("g_gan", "d_real", "d_fake"), "Adversarial losses", "loss", adversarial, marks=marks),
        *_chart(run, ("g_l1",), "g_l1", "loss", l1),
    ]


def _metric_chart(run: _Run, name: str) -> _Chart:
    metric = _metric(name)
    is_share = metric is not None and metric.unit == _SHARE
    lines = [run.series(name, in_percent=is_share)]
    if name == run.best_metric and run.best is not None and run.best["epoch"] in lines[0].x:
        epoch = run.best["epoch"]
        value = lines[0].y[list(lines[0].x).index(epoch)]
        lines.append(Series(f"best checkpoint, epoch {epoch}", [epoch], [value]))
    unit = "%" if is_share else metric.unit if metric is not None else ""
    caption = f"{metric.meaning[:1].upper()}{metric.meaning[1:]}; {metric.better} is better." if metric else ""
    return _Chart(name, line_chart(lines, x_label="epoch", y_label=unit or name), caption)


def _sections(run: _Run) -> dict[str, list[_Chart]]:
    measured = {name: None for row in run.rows for name in row if name.startswith("val_")}
    speed = "While training, all workers together; validation and saving not counted."
    waiting = "Time in which a worker had no batch to work on."
    pace = [
        *_chart(run, ("lr",), "Learning rate", "lr", "Of both networks' optimisers."),
        *_chart(run, ("images_per_second",), "Throughput", "images per second", speed),
        *_chart(run, ("data_wait",), "Waiting for data", "% of training time", waiting),
        *_chart(run, ("gpu_busy",), "GPU busy", "% of training time", "Time in which a GPU was at a step (mean)."),
        *_chart(run, ("gpu_memory",), "GPU memory", "GiB", "Most that tensors took at a time, on any GPU."),
    ]
    validation = [_metric_chart(run, name) for name in measured if run.has(name)]
    sections = {"Losses": _loss_charts(run), "Validation": validation, "Pace": pace}
    return {title: charts for title, charts in sections.items() if charts}


def _name(run_uri: str) -> str:
    """Its folder; with the one above it where that says nothing: `demo/run`."""
    folders = run_uri.rstrip("/").split("/")
    return "/".join(folders[-2:] if folders[-1].lower() == "run" else folders[-1:])


def write_run_report(run_uri: str, health: Sequence[Mapping[str, Any]] | None = None) -> str:
    """Write RUN/report.html from what is in the run so far, and return its address.

    `health` are the findings of a run in progress; those of a finished one are in its summary. A file that is not there
    yet leaves its part of the page out. Raises StorageError if one cannot be read, or the page not be written.
    """
    config, *documents = (_read(run_uri, f"{name}.json") for name in ("config", "summary", "best", "latest"))
    run = _Run(config or {}, _read_rows(run_uri), *documents)
    sheets, sheet_count = load_sheets(run_uri, run.best)
    if run.best is not None and run.best == run.latest:
        entries = {"best and latest": run.best}
    else:
        entries = {kind: entry for kind, entry in (("best", run.best), ("latest", run.latest)) if entry is not None}
    return render(
        "run.html",
        join(run_uri, "report.html"),
        name=_name(run_uri),
        address=run_uri,
        status=_status(run),
        finished=run.summary is not None,
        tiles=_tiles(run),
        health=(run.summary or {}).get("health", health or []),
        judged=run.summary is not None or health is not None,
        sheets=sheets,
        sheet_count=sheet_count,
        sections=_sections(run),
        checkpoints=list(entries),
        checkpoint_rows=_checkpoint_rows(list(entries.values())),
        config=run.config,
    )
