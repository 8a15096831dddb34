"""The benchmark of evaluations measures what it says; how fast is no business of a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from evaluations import confusions, write_evaluation

from p2p.benchmark import evaluate_rows
from p2p.benchmark.evaluate_rows import Parts
from p2p.benchmark.rows import Setting
from p2p.comparison import CompareConfig, compare
from p2p.comparison.evaluations import read_evaluation


@pytest.fixture
def at(tmp_path: Path) -> Setting:
    folders = {"images": tmp_path / "images", "folder": tmp_path}
    return Setting(device="cpu", precision="fp32", seconds=10, batch=1, rounds=3, **folders)


def test_a_round_whose_shorter_job_took_longer_is_repeated(monkeypatch: pytest.MonkeyPatch, at: Setting) -> None:
    seconds = iter([20.0, 10.0, 20.0, 20.0] + [5.0, 15.0] * 3)
    monkeypatch.setattr(evaluate_rows, "available_cpus", lambda: 2)
    monkeypatch.setattr(evaluate_rows, "open_pairs", lambda *_: range(1000))
    monkeypatch.setattr(evaluate_rows, "alone", lambda *_: Parts(read=0.01, network=0.03, metrics=0.01))
    monkeypatch.setattr(evaluate_rows, "_evaluate", lambda *_: next(seconds))
    rows = {line["what"]: line for line in evaluate_rows._job_rows(at, at.folder)}
    assert rows["evaluation job, while it measures"]["value"] == pytest.approx((200 - 16) / 10)


def test_the_rate_of_the_job_is_that_beyond_its_start(monkeypatch: pytest.MonkeyPatch, at: Setting) -> None:
    measured: list[int] = []
    monkeypatch.setattr(evaluate_rows, "available_cpus", lambda: 2)
    monkeypatch.setattr(evaluate_rows, "open_pairs", lambda *_: range(1000))
    monkeypatch.setattr(evaluate_rows, "alone", lambda *_: Parts(read=0.01, network=0.03, metrics=0.01))
    monkeypatch.setattr(evaluate_rows, "_evaluate", lambda at, data, pairs: (measured.append(pairs), 5 + pairs / 18)[1])
    rows = {line["what"]: line for line in evaluate_rows._job_rows(at, at.folder)}
    assert measured == [16, 200] * 3, "work for so many seconds"
    assert rows["sum of the parts on 2 cores"]["value"] == pytest.approx(20)
    assert rows["evaluation job, while it measures"]["value"] == pytest.approx(18)
    assert rows["evaluation job, while it measures"]["ratio"] == pytest.approx(0.9)
    assert rows["evaluation job, 200 pairs from start to end"]["value"] == pytest.approx(5 + 200 / 18)


@pytest.mark.usefixtures("torch_threads")
def test_parts_are_measured_on_pairs_that_are_there(prepared_pairs: Path) -> None:
    parts = evaluate_rows.part_seconds(str(prepared_pairs), 0.01, "cpu", "fp32")
    assert min(parts.read, parts.network, parts.metrics) > 0
    assert min(evaluate_rows.metric_milliseconds(0.01, "fp32")) > 0


@pytest.fixture
def prepared_pairs(tmp_path: Path) -> Path:
    from p2p.preparation import PrepareConfig, prepare

    prepare(PrepareConfig(source="synthetic:city?pairs=2&size=256", output=str(tmp_path / "pairs"), load_size=256))
    return tmp_path / "pairs"


def test_what_is_compared_are_ten_thousand_pairs_whose_figures_differ(tmp_path: Path) -> None:
    pairs = 40
    figures = {"l1": np.random.default_rng(0).random(pairs)}
    source = write_evaluation(tmp_path / "source", figures, confusions(pairs, 0.8, seed=0), examples=4)
    sides = [tmp_path / name for name in ("one", "other")]
    for place, side in enumerate(sides):
        evaluate_rows._repeat_pairs(source, side, is_reversed=bool(place))
    one, other = (read_evaluation(str(side)) for side in sides)
    assert len(one.pair_ids) == 10_000 and one.pair_ids == other.pair_ids and one.targets == other.targets
    assert np.array_equal(one.per_pair["l1"][:pairs], other.per_pair["l1"][:pairs][::-1])
    assert pq.read_table(sides[0] / "examples.parquet")["pair_id"].to_pylist() == one.pair_ids[:4]
    compare(CompareConfig(evaluations=tuple(map(str, sides)), output=str(tmp_path / "compared")))
    found = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    rows: list[dict[str, Any]] = found["differences"]["other"]
    assert {row["metric"] for row in rows} >= {"l1", "palette_iou"}
    assert all(row["interval"] and abs(row["difference"]) < 1e-12 for row in rows)
