"""What a process does when its GPU fails, and where evaluation computes: with errors that are raised here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from p2p.evaluation import evaluator
from p2p.translation import actor
from p2p.translation.actor import ShardTranslator
from p2p.translation.work import Work

ILLEGAL = "CUDA error: an illegal memory access was encountered\nmore"
FULL = "CUDA error: out of memory"


class EndedError(Exception):
    pass


def raising(message: str) -> Any:
    def run(*_: object, **__: object) -> None:
        raise torch.AcceleratorError(message)

    return run


@pytest.fixture
def translator(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> ShardTranslator:
    def end(status: int) -> None:
        raise EndedError(status)

    monkeypatch.setattr(actor, "open_sink", lambda *_: SimpleNamespace(open_shard=None))
    monkeypatch.setattr(actor.os, "_exit", end)
    settings: Any = SimpleNamespace(output=str(tmp_path), format="parquet")
    return ShardTranslator(Work(settings=settings, generator_uri="", device="cuda", batch_size=64))


@pytest.mark.parametrize(
    "error, said",
    [(ILLEGAL, "access was encountered; pass --gpu false"), (FULL, "smaller --batch-size")],
)
def test_a_gpu_that_fails_at_once_ends_the_job_with_one_line(
    translator: ShardTranslator, monkeypatch: pytest.MonkeyPatch, error: str, said: str
) -> None:
    monkeypatch.setattr(actor, "make_pipeline", raising(error))
    (report,) = translator.reports([])
    assert said in report["stopped"] and "\n" not in report["stopped"]


def test_a_process_whose_gpu_fails_at_work_is_replaced(
    translator: ShardTranslator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor, "make_pipeline", lambda *_: SimpleNamespace(run=raising(ILLEGAL)))
    with pytest.raises(EndedError, match="1"):
        list(translator.reports([]))
    monkeypatch.setattr(translator._pipeline, "run", raising(FULL))
    (report,) = translator.reports([])
    assert "out of memory" in report["stopped"]


def test_scenes_go_on_in_another_process_and_tell_what_the_gpu_could_not_do(
    translator: ShardTranslator, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: Any = SimpleNamespace(output="", format="geotiff")
    translator._work = Work(settings=settings, generator_uri="", device="cuda", batch_size=64)
    engine = SimpleNamespace(fallbacks=["no graphs: no memory"])
    model = SimpleNamespace(input_bands=None, output_bands=None)
    monkeypatch.setattr(actor, "load_engine", raising(ILLEGAL))
    (report,) = translator.reports([])
    assert "pass --gpu false" in report["stopped"]
    monkeypatch.setattr(actor, "load_engine", lambda _: (engine, model))
    assert list(translator.reports([])) == [{}, {"fallbacks": engine.fallbacks}]
    monkeypatch.setattr(translator._scenes, "run", raising(ILLEGAL))
    with pytest.raises(EndedError, match="1"):
        list(translator.reports([]))


def test_evaluation_measures_where_the_network_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(outputs: torch.Tensor, targets: torch.Tensor, *_: object) -> None:
        assert outputs.device.type == targets.device.type == "cuda"
        raise EndedError

    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    task: Any = SimpleNamespace(device="cuda", metrics=("l1",), palette=None)
    judge = evaluator.Evaluator(task)
    monkeypatch.setattr(evaluator, "measure", measure)
    monkeypatch.setattr(judge, "_keep_examples", lambda *_: {})
    judge.__dict__.update(_makers={"": lambda batch: batch.inputs}, _inception=None, _lpips=None, _back=None)
    with FakeTensorMode(), pytest.raises(EndedError):
        judge._measure(evaluator._Batch(["a", "b"], pixels, pixels))
