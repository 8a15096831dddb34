"""The evaluation job: measure the pairs, for each checkpoint, and write figures and report."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from p2p.data.local import session, wants_ray
from p2p.data.order import Row
from p2p.data.tasks import run_as_task
from p2p.errors import CheckpointError, P2PError, StorageError
from p2p.evaluation import figures
from p2p.evaluation.config import EvaluateConfig
from p2p.evaluation.evaluator import EXAMPLE, EvaluationTask, Evaluator, TranslatedPair
from p2p.evaluation.feature_cache import FeatureCache, TargetFeatures
from p2p.evaluation.plan import EvaluationPlan, make_plan
from p2p.evaluation.pool import Results, measure_rows
from p2p.evaluation.protocol import signature
from p2p.model.checkpoint import load_generator
from p2p.model.checkpoint_names import META, parse_checkpoint_name
from p2p.model.metrics import METRICS
from p2p.model.networks import Generator
from p2p.reports.evaluation import Judged, write_evaluation_report
from p2p.reports.examples import ExamplePictures, browsable, write_examples
from p2p.storage.filesystems import absolute, exists, join, remove_file, write_json, write_table
from p2p.storage.lease import Fence, hold_lease
from p2p.storage.outputs import require_output

log = logging.getLogger("p2p")

_SMALL_PAIRS = 500  # which one process evaluates in less time than it takes to start Ray, or in little more
_EXAMPLES = 3
_SECONDS = 600.0  # for drawing them
_OF_AN_EARLIER_ONE = ("summary.json", "evaluation.json", "checkpoints.parquet", "report.html")
"""What an earlier evaluation left in the folder and would say of this one, were it stopped: removed before anything is
measured, in this order. What compare reads beside evaluation.json is replaced before that is there again."""
_RANKING = ("palette_accuracy", "ssim", "l1")
"""The first of these that was measured sorts the examples, and chooses among the checkpoints of a run."""


@dataclass(frozen=True)
class _Evaluation:
    """What was measured of one checkpoint, or of outputs made elsewhere."""

    task: EvaluationTask
    address: str
    checkpoint_id: str | None
    results: Results
    metrics: Mapping[str, float]
    intervals: Mapping[str, Sequence[float]]

    @property
    def name(self) -> str:
        return self.address.rpartition("/")[2]

    def without_weights(self) -> _Evaluation:
        """Of many checkpoints they do not fit into memory."""
        return dataclasses.replace(self, task=dataclasses.replace(self.task, generator=None))


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Do the whole job; returns the summary."""
    started = time.monotonic()
    output = absolute(config.output)
    require_output(output, "output", "an evaluation")
    with hold_lease(output, "output", "evaluate") as fence:  # before networks are loaded, which takes seconds
        return _measure_all(config, make_plan(config), fence, started)


def _measure_all(config: EvaluateConfig, plan: EvaluationPlan, fence: Fence, started: float) -> dict[str, Any]:
    for name in _OF_AN_EARLIER_ONE:
        fence.check()
        remove_file(join(fence.output, name))
    cache = FeatureCache(plan.task.pairs, plan.inception_sha256) if plan.inception_sha256 else None
    known: TargetFeatures = cache.read() if cache else {}
    work = len(plan.rows) * max(1, len(plan.checkpoints))
    with session(small=not wants_ray() and work <= _SMALL_PAIRS) as worker:
        measured: list[_Evaluation] = []
        for one in _tasks(plan):
            task = dataclasses.replace(one, known_targets=frozenset(known))
            results = measure_rows(worker, config.gpu, task, plan.rows)
            measured.append(_evaluation(config, plan, task, results, known))
            shown = _best(measured, _ranking(plan.task))
            measured = [each if each is shown else each.without_weights() for each in measured]
        examples = _examples(shown.task, shown.results)
    fence.check()
    if cache:
        cache.write(known)
    summary: dict[str, Any] = {"metrics": shown.metrics, "checkpoint_id": shown.checkpoint_id}
    curve = [(_epoch(one), one.metrics) for one in measured] if plan.is_curve else []
    if plan.is_curve:
        fence.check()
        _write_curve(fence.output, measured)
        summary |= {"checkpoint": shown.address, "best": _best_of_each(measured)}
    report = _write(config, plan, fence, shown, examples=examples, best=summary.get("best", {}), curve=curve)
    seconds = round(time.monotonic() - started, 3)
    summary |= {"warnings": list(plan.warnings), "seconds": seconds, "report": report}
    fence.check()
    write_json(join(fence.output, "summary.json"), summary)
    return summary


def _tasks(plan: EvaluationPlan) -> Iterator[EvaluationTask]:
    """One for each checkpoint that is still there when its turn comes: the run may be going on."""
    yield plan.task
    for checkpoint in plan.checkpoints[1:]:
        try:
            generator = load_generator(checkpoint)
        except (CheckpointError, StorageError):
            if exists(join(checkpoint, META)):
                raise
            log.warning("%s is left out: the run has removed it meanwhile", checkpoint)
            continue
        yield dataclasses.replace(plan.task, checkpoint=checkpoint, generator=generator)


def _evaluation(
    config: EvaluateConfig, plan: EvaluationPlan, task: EvaluationTask, results: Results, known: TargetFeatures
) -> _Evaluation:
    address = task.checkpoint if plan.is_curve and task.checkpoint else config.checkpoint or str(config.outputs)
    return _Evaluation(
        task,
        address,
        task.generator.checkpoint_id if isinstance(task.generator, Generator) else None,
        results,
        figures.set_figures(task, results, known),
        figures.intervals(task, results),
    )


def _ranking(task: EvaluationTask) -> str:
    return next((name for name in _RANKING if name in task.metrics), task.metrics[0])


def _best(measured: Sequence[_Evaluation], metric: str) -> _Evaluation:
    return min(measured, key=lambda one: METRICS[metric].loss(one.metrics[metric]))


def _best_of_each(measured: Sequence[_Evaluation]) -> dict[str, Any]:
    found = {}
    for name in measured[0].task.metrics:
        best = _best(measured, name)
        found[name] = {"checkpoint": best.name, "value": best.metrics[name], "interval": best.intervals.get(name)}
    return found


def _epoch(evaluation: _Evaluation) -> int:
    return (parse_checkpoint_name(evaluation.name) or (0, 0.0))[0]


def _write_curve(output: str, measured: Sequence[_Evaluation]) -> None:
    """checkpoints.parquet: a row for each checkpoint, oldest first, with metrics, and intervals where there are any."""
    table: dict[str, Any] = {"checkpoint": [one.name for one in measured]}
    places = [parse_checkpoint_name(one.name) or (0, 0.0) for one in measured]
    table["epoch"] = [epoch for epoch, _ in places]
    table["step"] = pa.array([None if step == float("inf") else int(step) for _, step in places], pa.int64())
    table["checkpoint_id"] = [one.checkpoint_id for one in measured]
    for name in measured[0].metrics:
        table[name] = [one.metrics[name] for one in measured]
    for name in measured[0].intervals:
        for end, label in enumerate(("low", "high")):
            table[f"{name}_{label}"] = [one.intervals[name][end] for one in measured]
    write_table(join(output, "checkpoints.parquet"), pa.table(table))


def _examples(task: EvaluationTask, results: Results) -> dict[str, list[Judged]]:
    """Draw the best, median and worst pairs again, since nothing kept their pixels; none where that fails, which is no
    reason to.
    """
    names = figures.per_image_names(task)
    if not names:
        return {}
    ranking = next((name for name in _RANKING if name in names), names[0])
    ordered = sorted(results, key=lambda row: METRICS[ranking].loss(row[ranking]))
    count = min(_EXAMPLES, max(1, len(ordered) // 3))
    middle = (len(ordered) - count) // 2
    chosen = {"best": ordered[:count], "median": ordered[middle : middle + count], "worst": ordered[-count:]}
    places = [(int(row["group"]), int(row["row"])) for rows in chosen.values() for row in rows]
    plain = dataclasses.replace(
        task, baselines=(), inception=None, lpips=None, round_trip=None, known_targets=frozenset()
    )
    try:
        drawn = iter(run_as_task(_draw, plain, places, seconds=_SECONDS))
    except P2PError as error:
        log.warning("the report has no examples: %s", error)
        return {}
    return {
        name: [
            Judged(pair.pair_id, pair.input, pair.output, pair.target, {m: float(row[m]) for m in names})
            for row, pair in zip(rows, itertools.islice(drawn, len(rows)), strict=True)
        ]
        for name, rows in chosen.items()
    }


def _kept(results: Results) -> dict[str, ExamplePictures]:
    """Pair id -> what was kept of it."""
    columns = [EXAMPLE + name for name in ExamplePictures._fields]
    return {
        str(row["pair_id"]): ExamplePictures(*(bytes(row[name]) for name in columns))
        for row in results
        if row[columns[0]]
    }


def _draw(task: EvaluationTask, rows: Sequence[Row]) -> list[TranslatedPair]:
    return Evaluator(task).draw(rows)


def _write_table(output: str, task: EvaluationTask, results: Results) -> None:
    table: dict[str, Any] = {"pair_id": [str(row["pair_id"]) for row in results]}
    for prefix in figures.prefixes(task):
        names = [prefix + name for name in figures.per_image_names(task)]
        table |= {name: [float(row[name]) for row in results] for name in names}
    if "confusion" in results[0]:
        counts = [[int(count) for count in row["confusion"]] for row in results]
        table["confusion"] = pa.array(counts, pa.list_(pa.int64()))
    table["target_sha256"] = [str(row["target_sha256"]) for row in results]
    write_table(join(output, "per_image.parquet"), pa.table(table))


def _write(
    config: EvaluateConfig,
    plan: EvaluationPlan,
    fence: Fence,
    shown: _Evaluation,
    *,
    examples: Mapping[str, Sequence[Judged]],
    best: Mapping[str, Any],
    curve: Sequence[tuple[int, Mapping[str, float]]],
) -> str:
    """Write every file but the summary; returns the report's address.

    evaluation.json comes after all that compare reads beside it.
    """
    task, results, output = shown.task, shown.results, fence.output
    protocol = figures.protocol(task, results, config.data, shown.address, shown.checkpoint_id)
    protocol |= figures.pretrained(task, plan.inception_sha256, plan.lpips_sha256)
    evaluation: dict[str, Any] = {
        "signature": signature(protocol),
        "protocol": protocol,
        "metrics": shown.metrics,
        "intervals": shown.intervals,
        "classes": figures.classes(task, results),
        "baselines": figures.by_baseline(task, shown.metrics),
    }
    kept = _kept(results)
    for publish in (
        partial(write_json, join(output, "metrics.json"), shown.metrics),
        partial(_write_table, output, task, results),
        partial(write_examples, output, kept),
        partial(write_json, join(output, "evaluation.json"), evaluation),
    ):
        fence.check()
        publish()
    per_image = {name: [float(row[name]) for row in results] for name in figures.per_image_names(task)}
    details: dict[str, Any] = {"checkpoint" if task.checkpoint else "outputs": shown.address, "data": config.data}
    details |= {name: protocol[name] for name in ("checkpoint_id", "split", "direction", "region", "size", "norm_mode")}
    details |= {f"best by {name}": f"{one['checkpoint']} ({one['value']:.4g})" for name, one in best.items()}
    details["signature"] = evaluation["signature"]
    details |= {f"warning {number}": warning for number, warning in enumerate(plan.warnings, 1)}
    counts = figures.confusions(task, results)
    values = {str(row["pair_id"]): {name: float(row[name]) for name in per_image} for row in results}
    pictures = run_as_task(browsable, kept, values, seconds=_SECONDS)
    fence.check()
    return write_evaluation_report(
        output,
        shown.metrics,
        examples,
        per_image,
        details,
        classes=evaluation["classes"],
        confusion=None if counts is None else counts.sum(axis=0).tolist(),
        examples=pictures,
        curve=curve,
    )
