"""The process that holds the networks: pairs in, one number per pair and metric out, and features of sets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from p2p.data.augment import CropSettings
from p2p.data.order import Row
from p2p.data.pairs import Pair, Pairs, read_rows_in_task
from p2p.data.tasks import memory_reported
from p2p.errors import BadInputError
from p2p.evaluation.given_outputs import GivenOutputs
from p2p.evaluation.protocol import pixels_digest
from p2p.model.engine import Engine, NormMode, choose_engine_precision
from p2p.model.inception import FEATURES, Inception
from p2p.model.lpips import Lpips
from p2p.model.metrics import METRICS, measure
from p2p.model.networks import Generator, build_generator
from p2p.model.pixel_metrics import Palette, confusion
from p2p.model.sizing import default_overlap, plan_image
from p2p.model.tensors import as_tensor
from p2p.reports.examples import ExamplePictures, encode_example, is_example
from p2p.storage.pixels import Pixels

if TYPE_CHECKING:
    import ray

_CPU_BATCH = 8
CHUNK_PAIRS = 32
"""Pairs that a process gets at once, and a GPU's batch."""
EXAMPLE = "example_"
"""Prefix of the columns of pictures that are kept."""
BACK, CEILING = "round_trip.", "round_trip_targets."
"""Prefixes of what a round trip makes of the outputs, and of the real targets."""
Columns = dict[str, Any]
SharedGenerator: TypeAlias = "Generator | ray.ObjectRef[Generator]"
"""Itself, or Ray's reference to it."""


@dataclass(frozen=True, kw_only=True)
class EvaluationTask:
    """Everything a process needs to know to evaluate pairs. Picklable: settings, addresses, and the weights themselves,
    since a run that goes on training may have replaced them by the time a process starts.
    """

    pairs: Pairs
    crop: CropSettings
    """Its crop_size is the generator's."""
    checkpoint: str | None
    generator: SharedGenerator | None
    """Of `checkpoint`."""
    outputs: GivenOutputs | None
    is_whole: bool
    norm_mode: NormMode
    dropout: bool
    seed: int
    baselines: tuple[str, ...]
    metrics: tuple[str, ...]
    palette: Palette | None
    input_palette: Palette | None
    inception: str | None
    """Address of its weights, where a metric needs them."""
    lpips: tuple[str, str] | None
    """Address of the weights, and which net they are of."""
    round_trip: SharedGenerator | None
    """The generator of the other direction."""
    total: int
    """Pairs that all processes measure together; it decides which are kept as examples."""
    known_targets: frozenset[str] = frozenset()
    """Digests of targets whose features are known."""
    device: str = "cpu"
    precision: str = "auto"


@dataclass(frozen=True)
class TranslatedPair:
    """One pair and what the generator made of it: (H, W, C) uint8 or uint16 each."""

    pair_id: str
    input: Pixels
    output: Pixels
    target: Pixels


@dataclass(frozen=True)
class _Batch:
    """Pairs of one size: ids, inputs and targets, (B, H, W, C)."""

    ids: list[str]
    inputs: npt.NDArray[Any]
    targets: npt.NDArray[Any]


class Evaluator:
    """Loads the networks once; each call measures the rows of one chunk.

    On a CPU it computes in one thread, so that no number depends on how many there are; threads may share it.
    """

    def __init__(self, task: EvaluationTask) -> None:
        self._task = task

    def load(self) -> None:
        """Load the networks. Not in the constructor: of what an actor's constructor raises, Ray keeps only the text."""
        _ = self._makers, self._inception, self._lpips, self._back

    @functools.cached_property
    def _makers(self) -> dict[str, _Maker]:
        """What makes outputs, by the prefix of its figures."""
        task, makers = self._task, dict[str, _Maker]()
        if task.generator is not None:
            generator = _fetched(task.generator)
            makers[""] = _Translator(task, generator)
            if "untrained" in task.baselines:
                makers["untrained."] = _Translator(task, build_generator(generator.config, seed=0))
        elif task.outputs is not None:
            makers[""] = functools.partial(_read_outputs, task.outputs)
        if "input" in task.baselines:
            makers["input."] = lambda batch: batch.inputs
        return makers

    @functools.cached_property
    def _inception(self) -> Inception | None:
        return Inception(self._task.inception, self._task.device) if self._task.inception else None

    @functools.cached_property
    def _lpips(self) -> Lpips | None:
        return Lpips(*self._task.lpips, self._task.device) if self._task.lpips else None

    @functools.cached_property
    def _back(self) -> _Translator | None:
        """The generator of the other direction."""
        back = self._task.round_trip
        return None if back is None else _Translator(self._task, _fetched(back))

    def _batches(self, rows: Sequence[Row]) -> Iterator[_Batch]:
        """BadInputError names a pair that is smaller than the crop, or whose sides differ."""
        task = self._task
        with memory_reported(f"evaluating pairs of {task.pairs.uri}"):
            pairs = read_rows_in_task(task.pairs, rows, task.crop.formats)
            if task.is_whole:
                yield from (self._whole(pair) for pair in pairs)
                return
            ids, crops = zip(*((pair["pair_id"], task.crop.crop(pair)) for pair in pairs), strict=True)
            yield _Batch(list(ids), *task.crop.sides(np.stack(crops)))

    def _whole(self, pair: Pair) -> _Batch:
        image, target = (pair["b"], pair["a"]) if self._task.crop.swap else (pair["a"], pair["b"])
        if image.shape[:2] != target.shape[:2]:
            raise BadInputError(
                "SizeMismatch", f"pair {pair['pair_id']!r}: its sides are {_size(image)}, {_size(target)}"
            )
        return _Batch([pair["pair_id"]], image[None], target[None])

    def draw(self, rows: Sequence[Row]) -> list[TranslatedPair]:
        """The pairs of `rows` with their outputs, to be looked at."""
        return [
            TranslatedPair(*pair)
            for batch in self._batches(rows)
            for pair in zip(batch.ids, batch.inputs, self._makers[""](batch), batch.targets, strict=True)
        ]

    def __call__(self, chunk: Mapping[str, np.ndarray[Any, Any]]) -> Columns:
        """Rows of (group, row) -> the same with `pair_id`, `target_sha256`, `precision`, each metric, each confusion
        matrix, flattened, the features that metrics of the set need, and pictures of pairs that are kept as examples.
        """
        if self._task.device == "cpu":
            torch.set_num_threads(1)  # of this thread
        rows = list(zip(chunk["group"].tolist(), chunk["row"].tolist(), strict=True))
        parts = [self._measure(batch) for batch in self._batches(rows)]
        return {**chunk, **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]}}

    def _measure(self, batch: _Batch) -> Columns:
        task = self._task
        columns: Columns = {"pair_id": batch.ids, "target_sha256": [pixels_digest(one) for one in batch.targets]}
        columns["precision"] = [getattr(self._makers[""], "precision", "given")] * len(batch.ids)
        inputs, targets = (as_tensor(side) for side in (batch.inputs, batch.targets))
        inputs, targets = inputs.to(task.device), targets.to(task.device)
        if self._inception:
            columns |= self._target_features(targets, columns["target_sha256"])
        for prefix, make in self._makers.items():
            made = make(batch)
            if prefix == "":
                columns |= self._keep_examples(batch, made)
            outputs = as_tensor(made).to(task.device)
            columns |= {prefix + name: values for name, values in self._compare(outputs, targets).items()}
            if prefix == "" and self._back is not None:
                columns |= self._round_trip(batch, outputs, inputs)
        return columns

    def _keep_examples(self, batch: _Batch, outputs: Pixels) -> Columns:
        """Encoded inputs, outputs and targets; empty bytes for a pair that is not kept."""
        nothing = ExamplePictures(b"", b"", b"")
        kept = [
            encode_example(images) if is_example(pair_id, self._task.total) else nothing
            for pair_id, *images in zip(batch.ids, batch.inputs, outputs, batch.targets, strict=True)
        ]
        # As objects: Arrow ends NumPy's own strings of bytes at the first zero.
        return {
            f"{EXAMPLE}{name}": np.array([getattr(one, name) for one in kept], dtype=object)
            for name in ExamplePictures._fields
        }

    def _compare(self, outputs: Tensor, targets: Tensor) -> Columns:
        task, columns = self._task, Columns()
        measured = measure(outputs, targets, [name for name in task.metrics if not METRICS[name].weights], task.palette)
        columns |= {name: values.cpu().numpy() for name, values in measured.values.items()}
        if measured.confusion is not None:
            columns["confusion"] = measured.confusion.flatten(1).cpu().numpy()
        if self._lpips:
            columns["lpips"] = self._lpips(outputs, targets).numpy()
        if self._inception:
            features, logits = self._inception(outputs)
            columns["features"] = features.numpy()
            if "is" in task.metrics:
                columns["logits"] = logits.numpy()
        return columns

    def _target_features(self, targets: Tensor, digests: Sequence[str]) -> Columns:
        """Zeros where they are known."""
        assert self._inception is not None
        found = np.zeros((len(digests), FEATURES), np.float32)
        new = [place for place, digest in enumerate(digests) if digest not in self._task.known_targets]
        if new:
            found[new] = self._inception(targets[new])[0].numpy()
        return {"target_features": found}

    def _round_trip(self, batch: _Batch, outputs: Tensor, inputs: Tensor) -> Columns:
        """Classes of what becomes of outputs, and of targets, on the way back, against those of the inputs."""
        assert self._back is not None and self._task.input_palette is not None
        columns = Columns()
        for prefix, images in ((BACK, outputs.cpu().numpy()), (CEILING, batch.targets)):
            back = as_tensor(self._back(_Batch(batch.ids, images, images))).to(self._task.device)
            columns[f"{prefix}confusion"] = confusion(back, inputs, self._task.input_palette).flatten(1).cpu().numpy()
        return columns


_Maker = Callable[[_Batch], Pixels]


class _Translator:
    """A generator, on images of any size: larger ones in overlapping tiles."""

    def __init__(self, task: EvaluationTask, generator: Generator) -> None:
        precision = choose_engine_precision(task.precision, task.device, generator.config.bits)
        self._tile = generator.config.crop_size
        self._engine = Engine(
            generator,
            tile_size=self._tile,
            batch_size=_CPU_BATCH if task.device == "cpu" else CHUNK_PAIRS,
            device=task.device,
            precision=precision,
            norm_mode=task.norm_mode,
            dropout=task.dropout,
            seed=task.seed,
        )

    @property
    def precision(self) -> str:
        return self._engine.precision

    def __call__(self, batch: _Batch) -> Pixels:
        """Outputs of the inputs of `batch`. The noise of dropout depends on the pair's id."""
        height, width = batch.inputs.shape[1:3]
        if height == width == self._tile:
            return self._run(batch.inputs, [f"{pair_id}#0" for pair_id in batch.ids])
        overlap = default_overlap(self._tile)
        plan = plan_image(
            height, width, size_mode="tile", tile_size=self._tile, overlap=overlap, stride=self._engine.stride
        )
        return np.stack(
            [
                plan.join(self._run(plan.split(image), [f"{pair_id}#{tile}" for tile in range(len(plan))]))
                for pair_id, image in zip(batch.ids, batch.inputs, strict=True)
            ]
        )

    def _run(self, tiles: Any, keys: Sequence[str]) -> Pixels:
        outputs: Pixels = self._engine(tiles, keys)
        return outputs


def _read_outputs(outputs: GivenOutputs, batch: _Batch) -> Pixels:
    found = outputs.read(batch.ids)
    for pair_id, output, target in zip(batch.ids, found, batch.targets, strict=True):
        if output.shape != target.shape:
            raise BadInputError(
                "SizeMismatch",
                f"output {pair_id!r} in {outputs.uri} is {_size(output)}, its target {_size(target)}; "
                "both must have one size",
            )
    return np.stack(found)


def _size(image: Pixels) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def _fetched(generator: SharedGenerator) -> Generator:
    if isinstance(generator, Generator):
        return generator
    import ray

    return ray.get(generator)


def evaluate_rows(task: EvaluationTask) -> Callable[[dict[str, np.ndarray[Any, Any]]], list[dict[str, Any]]]:
    """As `Evaluator(task)`, with a dictionary for each pair as its result."""
    evaluator = Evaluator(task)
    evaluator.load()

    def call(chunk: dict[str, np.ndarray[Any, Any]]) -> list[dict[str, Any]]:
        measured = evaluator(chunk)
        return [dict(zip(measured, values, strict=True)) for values in zip(*measured.values(), strict=True)]

    return call
