"""The page of a training run: how far it got, how it went, what it draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from p2p.documents import parse_json_object
from p2p.errors import NotFoundError
from p2p.model.gan_health import gan_thresholds
from p2p.model.metrics import METRICS
from p2p.reports.page import Series, duration, line_chart, number, percent, render
from p2p.reports.samples import load_sheets
from p2p.storage.filesystems import join, read_bytes, read_json_object

_SHARE = "share"


@dataclass(frozen=True)
class _Run:
    """What lies in a run folder; empty where a run has not come that far."""

    uri: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    summary: dict[str, Any] | None
    best: dict[str, Any] | None
    latest: dict[str, Any] | None

    @property
    def best_metric(self) -> str:
        return str(self.config.get("best_metric", "val_l1"))

    def series(self, name: str, label: str | None = None) -> Series:
        return Series(label or name, [row["epoch"] for row in self.rows], [row.get(name) for row in self.rows])

    def has(self, name: str) -> bool:
        return any(row.get(name) is not None for row in self.rows)


@dataclass(frozen=True)
class _Tile:
    name: str
    value: str
    note: str


@dataclass(frozen=True)
class _Chart:
    title: str
    drawing: Markup
    caption: str


@dataclass(frozen=True)
class _Section:
    title: str
    charts: list[_Chart]


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


# Numbers


def _status(run: _Run) -> str:
    if run.summary is None:
        return "not finished"
    if run.summary.get("error"):
        return "stopped by an error"
    return "stopped early" if run.summary.get("stopped_early") else "finished"


def _value(metric: str, value: float | None) -> str:
    known = METRICS.get(metric.removeprefix("val_"))
    if known is not None and known.unit == _SHARE:
        return percent(value, 2)
    return number(value, 4) + (f" {known.unit}" if known is not None and known.unit else "")


def _best_tile(run: _Run) -> _Tile:
    best = run.best
    if best is None:
        return _Tile("Best checkpoint", number(None), "none saved yet")
    if run.best_metric not in best["metrics"]:
        return _Tile("Best checkpoint", f"epoch {best['epoch']}", "the newest: nothing was validated")
    known = METRICS.get(run.best_metric.removeprefix("val_"))
    direction = f", {known.better} is better" if known else ""
    return _Tile(
        f"Best {run.best_metric}",
        _value(run.best_metric, best["metrics"][run.best_metric]),
        f"epoch {best['epoch']}{direction}",
    )


def _tiles(run: _Run) -> list[_Tile]:
    last: Mapping[str, Any] = run.rows[-1] if run.rows else {}
    seconds = sum(row.get("seconds") or 0.0 for row in run.rows) or None
    seen = last.get("images_seen")
    overall = seen / seconds if seen and seconds else None
    planned = run.config.get("epochs", 0) + run.config.get("epochs_decay", 0)
    return [
        _Tile("Epochs", number(last.get("epoch", 0)), f"of {number(planned)}" if planned else ""),
        _Tile("Steps", number(last.get("step", 0)), "of the optimiser"),
        _Tile("Images seen", number(seen or 0), "in training"),
        _Tile(
            "Images per second",
            number(overall),
            f"{number(last.get('images_per_second'))} in the last epoch's training",
        ),
        _best_tile(run),
        _Tile("Time", duration(seconds), "training and validation"),
    ]


def _checkpoint_rows(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    names = {name: None for entry in entries for name in entry["metrics"] if name not in ("epoch", "step")}
    shown = [
        ("checkpoint", [str(entry["checkpoint"]) for entry in entries]),
        ("epoch", [number(entry["epoch"]) for entry in entries]),
        ("step", [number(entry.get("step")) for entry in entries]),
    ]
    for name in names:
        values = [entry["metrics"].get(name) for entry in entries]
        if name == "seconds":
            cells = [duration(value) for value in values]
        elif name == "data_wait":
            cells = [percent(value) for value in values]
        elif name == "lr":
            cells = [number(None) if value is None else f"{value:.4g}" for value in values]
        else:
            cells = [_value(name, value) for value in values]
        shown.append((name, cells))
    return [{"name": name, "cells": cells} for name, cells in shown]


# Charts


def _chart(run: _Run, names: Sequence[str], *, title: str, y_label: str, caption: str, **options: Any) -> _Chart | None:
    series = [run.series(name) for name in names if run.has(name)]
    if not series:
        return None
    drawing = line_chart(series, x_label="epoch", y_label=y_label, **options)
    return _Chart(title, drawing, caption)


def _loss_charts(run: _Run) -> list[_Chart | None]:
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
    return [
        _chart(
            run,
            ("g_gan", "d_real", "d_fake"),
            title="Adversarial losses",
            y_label="loss",
            caption=adversarial,
            marks=marks,
        ),
        _chart(
            run,
            ("g_l1",),
            title="g_l1",
            y_label="loss",
            caption="Distance of outputs from targets, on a scale of −1 to 1, times "
            f"{number(run.config.get('lambda_l1'))} (lambda_l1).",
        ),
    ]


def _metric_chart(run: _Run, name: str) -> _Chart:
    known = METRICS.get(name.removeprefix("val_"))
    series = run.series(name)
    if known is not None and known.unit == _SHARE:
        series = Series(name, series.x, [None if value is None else 100 * value for value in series.y])
    unit = "" if known is None else {_SHARE: "%"}.get(known.unit, known.unit)
    lines = [series]
    if name == run.best_metric and run.best is not None and run.best["epoch"] in series.x:
        epoch = run.best["epoch"]
        lines.append(Series(f"best checkpoint, epoch {epoch}", [epoch], [series.y[list(series.x).index(epoch)]]))
    caption = "" if known is None else f"{known.meaning[:1].upper()}{known.meaning[1:]}; {known.better} is better."
    drawing = line_chart(lines, x_label="epoch", y_label=unit or name, marks=())
    return _Chart(name, drawing, caption)


def _sections(run: _Run) -> list[_Section]:
    measured = {name: None for row in run.rows for name in row if name.startswith("val_")}
    waits = run.series("data_wait")
    pace: list[_Chart | None] = [
        _chart(run, ("lr",), title="Learning rate", y_label="lr", caption="Of both networks' optimisers."),
        _chart(
            run,
            ("images_per_second",),
            title="Throughput",
            y_label="images per second",
            caption="While training, all workers together; validation and saving not counted.",
        ),
    ]
    if run.has("data_wait"):
        shares = Series("data_wait", waits.x, [None if value is None else 100 * value for value in waits.y])
        drawing = line_chart([shares], x_label="epoch", y_label="% of training time")
        pace.append(_Chart("Waiting for data", drawing, "Time in which a worker had no batch to work on."))
    found: list[tuple[str, Sequence[_Chart | None]]] = [
        ("Losses", _loss_charts(run)),
        ("Validation", [_metric_chart(run, name) for name in measured if run.has(name)]),
        ("Pace", pace),
    ]
    sections = [_Section(title, [chart for chart in charts if chart is not None]) for title, charts in found]
    return [section for section in sections if section.charts]


def write_run_report(run_uri: str, health: Sequence[Mapping[str, Any]] | None = None) -> str:
    """Write RUN/report.html from what lies in the run so far, and return its address.

    `health` are the findings of a run in progress; those of a finished one stand in its summary. A file
    that is not there yet leaves its part of the page out. Raises StorageError if one cannot be read or the page not be
    written.
    """
    run = _Run(
        run_uri,
        _read(run_uri, "config.json") or {},
        _read_rows(run_uri),
        _read(run_uri, "summary.json"),
        _read(run_uri, "best.json"),
        _read(run_uri, "latest.json"),
    )
    sheets, drawn = load_sheets(run_uri, run.best)
    if run.best is not None and run.best == run.latest:
        entries = [("best and latest", run.best)]
    else:
        entries = [(kind, entry) for kind, entry in (("best", run.best), ("latest", run.latest)) if entry is not None]
    return render(
        "run.html",
        join(run_uri, "report.html"),
        name=run_uri.rstrip("/").rsplit("/", 1)[-1],
        address=run_uri,
        status=_status(run),
        finished=run.summary is not None,
        tiles=_tiles(run),
        health=(run.summary or {}).get("health", health or []),
        judged=run.summary is not None or health is not None,
        sheets=sheets,
        chosen=len(sheets),
        sheets_drawn=drawn,
        sections=_sections(run),
        checkpoints=[kind for kind, _ in entries],
        checkpoint_rows=_checkpoint_rows([entry for _, entry in entries]),
        config=run.config,
    )
