"""Parquet whose values run code when they are looked at: no job runs it, in the driver or in a worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Outcome
from hostile import PICKLE_VARIANTS, pickled_table, png

from p2p.evaluation import EvaluateConfig, evaluate
from p2p.preparation import PrepareConfig, prepare
from p2p.training import TrainConfig, train
from p2p.translation import TranslateConfig, translate
from p2p.translation.plan.ledger import LedgerRow, write_ledger

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
Run = Callable[..., Outcome]


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """What the hostile files make when their code runs."""
    return tmp_path / "ran"


@pytest.fixture
def corpus(tmp_path: Path, ran: Path) -> Path:
    """A Parquet file of two images, and one of each that would do harm."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    pq.write_table(pq_table(image=[png(1), png(2)]), folder / "0-good.parquet")
    for variant in PICKLE_VARIANTS:
        pq.write_table(pickled_table(variant, ran), folder / f"{variant}.parquet")
    return folder


def pq_table(**columns: list[bytes]) -> pa.Table:
    return pa.table(columns)


def ledger_of(output: Path) -> dict[str, str]:
    rows = [row for file in (output / "ledger").iterdir() for row in pq.read_table(file).to_pylist()]
    return {row["image_id"]: row["error"] for row in rows}


def test_translating_makes_a_failed_row_of_each(
    corpus: Path, ran: Path, checkpoint: str, tmp_path: Path, run_cli: Run
) -> None:
    output = tmp_path / "output"
    words = ("--checkpoint", checkpoint, "--source", corpus, "--output", output)
    dry = run_cli(TranslateConfig, translate, *words, "--dry-run")
    assert dry.status == 0 and not ran.exists()
    done = run_cli(TranslateConfig, translate, *words)
    assert done.status == 3 and done.summary and done.summary["translated"] == 2
    good = {"0-good.parquet#0": "", "0-good.parquet#1": ""}
    assert ledger_of(output) == {**good, **{f"{variant}.parquet": "UnsafeFile" for variant in PICKLE_VARIANTS}}
    assert not ran.exists()


def test_translating_images_makes_a_failed_row_of_a_hostile_file_among_them(
    ran: Path, checkpoint: str, tmp_path: Path, run_cli: Run
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "good.png").write_bytes(png())
    pq.write_table(pickled_table("plain", ran), folder / "bad.parquet")
    output = tmp_path / "output"
    done = run_cli(TranslateConfig, translate, "--checkpoint", checkpoint, "--source", folder, "--output", output)
    assert done.status == 3 and ledger_of(output) == {"good.png": "", "bad.parquet": "UnsafeFile"}
    assert not ran.exists()


@pytest.mark.parametrize("variant", PICKLE_VARIANTS)
def test_a_hostile_file_alone_is_refused_before_any_work(
    variant: str, ran: Path, checkpoint: str, tmp_path: Path, run_cli: Run
) -> None:
    source = tmp_path / "x.parquet"
    pq.write_table(pickled_table(variant, ran), source)
    output = ("--output", tmp_path / "output")
    translated = run_cli(TranslateConfig, translate, "--checkpoint", checkpoint, "--source", source, *output)
    prepared = run_cli(PrepareConfig, prepare, "--source", source, *output)
    for outcome in (translated, prepared):
        assert outcome.status == 2 and "could run code" in outcome.stderr and "Traceback" not in outcome.stderr
    data = tmp_path / "data"
    (data / "train").mkdir(parents=True)
    source.rename(data / "train" / "part-00000.parquet")
    trained = run_cli(TrainConfig, train, "--data", data, *output)
    judged = run_cli(EvaluateConfig, evaluate, "--checkpoint", checkpoint, "--data", data, "--split", "train", *output)
    for outcome in (trained, judged):
        assert outcome.status == 2 and "could run code" in outcome.stderr and "Traceback" not in outcome.stderr
    assert not ran.exists()


def test_preparing_makes_a_row_of_errors_of_each(tmp_path: Path, ran: Path, run_cli: Run) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    pq.write_table(pq_table(a=[png(1), png(2)], b=[png(3), png(4)]), folder / "good.parquet")
    for variant in PICKLE_VARIANTS:
        pq.write_table(pickled_table(variant, ran), folder / f"{variant}.parquet")
    output = tmp_path / "output"
    done = run_cli(PrepareConfig, prepare, "--source", folder, "--output", output, "--load-size", 0)
    assert done.status == 3 and done.summary and done.summary["pairs"]["train"] == 2
    errors = [row for file in (output / "errors").iterdir() for row in pq.read_table(file).to_pylist()]
    assert {Path(row["source_uri"]).stem: row["error"] for row in errors} == dict.fromkeys(
        PICKLE_VARIANTS, "UnsafeFile"
    )
    assert not ran.exists()


def test_a_ledger_of_somebody_else_is_refused(
    tmp_path: Path, ran: Path, corpus: Path, checkpoint: str, run_cli: Run
) -> None:
    output = tmp_path / "output"
    for variant in ("status", "id"):
        ledger = tmp_path / f"{variant}.parquet"
        pq.write_table(pickled_table(variant, ran), ledger)
        words = ("--checkpoint", checkpoint, "--source", corpus, "--output", output, "--only-failed", ledger)
        refused = run_cli(TranslateConfig, translate, *words)
        assert refused.status == 2 and "could run code" in refused.stderr, refused.stderr
    # One that lies in the output itself already.
    write_ledger(str(output), 0, [LedgerRow("x", "failed")])
    pq.write_table(pickled_table("status", ran), output / "ledger" / "part-00000.parquet")
    words = ("--checkpoint", checkpoint, "--source", corpus, "--output", output)
    assert run_cli(TranslateConfig, translate, *words).status in (1, 2)
    assert not ran.exists()
