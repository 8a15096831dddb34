"""The process that holds the generator: pairs in, one number per pair and metric out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from p2p.data.augment import CropSettings
from p2p.data.order import Row
from p2p.data.pairs import Pairs, read_rows_in_task
from p2p.data.tasks import memory_reported
from p2p.evaluation.protocol import pixels_digest
from p2p.model.checkpoint import load_generator
from p2p.model.engine import Engine, choose_engine_precision
from p2p.model.metrics import measure
from p2p.model.networks import Generator, build_generator
from p2p.model.pixel_metrics import Palette
from p2p.storage.images import Pixels

_CPU_BATCH = 8
CHUNK_PAIRS = 32
"""Pairs that a process gets at once, and a GPU's batch."""
UNTRAINED = "untrained."
"""Prefix of the figures of an untrained generator."""


@dataclass(frozen=True, kw_only=True)
class EvaluationTask:
    """Everything a process needs to know to evaluate pairs. Small and picklable: settings and addresses."""

    checkpoint: str
    pairs: Pairs
    crop: CropSettings
    metrics: tuple[str, ...]
    palette: Palette | None
    device: str
    precision: str
    threads: int
    compare_untrained: bool


@dataclass(frozen=True)
class TranslatedPair:
    """One pair and what the generator made of it: (H, W, C) uint8 or uint16 each."""

    pair_id: str
    input: Pixels
    output: Pixels
    target: Pixels


class Evaluator:
    """Loads the generator once; each call measures the rows of one batch."""

    def __init__(self, task: EvaluationTask) -> None:
        torch.set_num_threads(task.threads)
        self._task = task

    @functools.cached_property
    def _engines(self) -> dict[str, Engine]:
        """By prefix. Not in the constructor: of what an actor's constructor raises, Ray keeps only the text."""
        generator = load_generator(self._task.checkpoint)
        engines = {"": self._engine(generator)}
        if self._task.compare_untrained:
            engines[UNTRAINED] = self._engine(build_generator(generator.config, seed=0))
        return engines

    def _engine(self, generator: Generator) -> Engine:
        device, size = self._task.device, self._task.crop.crop_size
        precision = choose_engine_precision(self._task.precision, device, generator.config.bits)
        batch = _CPU_BATCH if device == "cpu" else CHUNK_PAIRS
        return Engine(generator, tile_size=size, batch_size=batch, device=device, precision=precision)

    def _cropped(self, rows: Sequence[Row]) -> tuple[list[str], Pixels, Pixels]:
        """Pair ids, inputs and targets; BadInputError names a pair that is smaller than the crop."""
        task = self._task
        with memory_reported(f"evaluating pairs of {task.pairs.uri}"):
            pairs = [
                (pair["pair_id"], task.crop.crop(pair))
                for pair in read_rows_in_task(task.pairs, rows, task.crop.formats)
            ]
            ids, crops = zip(*pairs, strict=True)
            return list(ids), *task.crop.sides(np.stack(crops))

    def draw(self, rows: Sequence[Row]) -> list[TranslatedPair]:
        """Translate `rows`, to be looked at."""
        engine = self._engines[""]
        return [
            TranslatedPair(pair_id, image, engine(image[None])[0], target)
            for pair_id, image, target in zip(*self._cropped(rows), strict=True)
        ]

    def __call__(self, batch: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
        """Rows of (group, row) -> the same with `pair_id`, `target_sha256`, `precision`, each metric, and each
        confusion matrix, flattened.
        """
        rows = list(zip(batch["group"].tolist(), batch["row"].tolist(), strict=True))
        ids, inputs, targets = self._cropped(rows)
        columns: dict[str, Any] = {**batch, "pair_id": ids, "target_sha256": [pixels_digest(one) for one in targets]}
        columns["precision"] = [self._engines[""].precision] * len(ids)
        wanted = torch.from_numpy(targets).to(self._task.device)
        for prefix, engine in self._engines.items():
            outputs = torch.from_numpy(engine(inputs)).to(self._task.device)
            measured = measure(outputs, wanted, self._task.metrics, self._task.palette)
            for name, values in measured.values.items():
                columns[prefix + name] = values.cpu().numpy()
            if measured.confusion is not None:
                columns[prefix + "confusion"] = measured.confusion.flatten(1).cpu().numpy()
        return columns


def evaluate_rows(task: EvaluationTask) -> Callable[[dict[str, np.ndarray[Any, Any]]], list[dict[str, Any]]]:
    """As `Evaluator(task)`, with a dictionary for each pair as its result."""
    evaluator = Evaluator(task)

    def call(batch: dict[str, np.ndarray[Any, Any]]) -> list[dict[str, Any]]:
        measured = evaluator(batch)
        return [dict(zip(measured, values, strict=True)) for values in zip(*measured.values(), strict=True)]

    return call
