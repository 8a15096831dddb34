"""The whole translation without Ray: the shards are done in this process by the class that Ray's actors run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import in_this_process
from PIL import Image
from translations import ledger, outputs, saved_checkpoint, temporaries, translate, write

from p2p.errors import NotGoodEnoughError
from p2p.model import packing
from p2p.model.translator import Translator
from p2p.storage.images import decode
from p2p.translation import TranslateConfig, estimate
from p2p.translation.job import run
from p2p.translation.plan.resume import RemainingWork
from p2p.translation.pool import Outcome
from p2p.translation.work import Work

SIZES = [(1, 1), (7, 300), (257, 255), (64, 64), (65, 64), (100, 60)]


@pytest.mark.parametrize("mode", ["tile", "pad"])
def test_any_size_comes_back_the_same_size_and_as_the_python_api_translates_it(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes], mode: Any
) -> None:
    images = {f"{height}x{width}.png": make_image(height, width, seed=height) for height, width in SIZES}
    source = write(tmp_path / "in", images)
    summary = translate(checkpoint, source, tmp_path / "out", size_mode=mode)
    assert (summary["images"], summary["translated"], summary["failed"]) == (len(SIZES), len(SIZES), 0)
    found = outputs(tmp_path / "out")
    one_by_one = Translator(checkpoint, device="cpu", precision="fp32", size_mode=mode, overlap=32)
    for name, data in images.items():
        expected = one_by_one(decode(data))
        assert found[name].shape == expected.shape
        # Kernels may round differently for another batch size; nothing else may differ.
        assert np.abs(found[name].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("format", ["parquet", "webdataset", "jpeg"])
def test_names_of_any_bytes_are_translated_and_stay_inside(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes], format: Any
) -> None:
    names = [
        b"\xff\xc3(.png",
        b"new\nline.png",
        "ü b.png".encode(),
        b"\\x41.png",
        b"x..png.png",
        b"a::b.png",
        b"%2E.png",
    ]
    source = tmp_path / "in"
    source.mkdir()
    for name in names:
        (source / os.fsdecode(name)).write_bytes(make_image(64, 64))
    summary = translate(checkpoint, source, tmp_path / "out", format=format)
    assert (summary["translated"], summary["failed"]) == (len(names), 0)
    assert "\\xff\\xc3(.png" in ledger(tmp_path / "out")
    assert len(outputs(tmp_path / "out")) == len(names)
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def test_resize_gives_the_models_size(tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]) -> None:
    source = write(tmp_path / "in", {f"{h}x{w}.png": make_image(h, w) for h, w in SIZES})
    translate(checkpoint, source, tmp_path / "out", size_mode="resize")
    assert {image.shape for image in outputs(tmp_path / "out").values()} == {(64, 64, 3)}


def test_a_large_scene_goes_through_tile_by_tile(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    source = write(tmp_path / "in", {"scene.jpg": make_image(600, 1000, "JPEG")})
    summary = translate(checkpoint, source, tmp_path / "out", format="jpeg")
    assert outputs(tmp_path / "out")["scene.jpg"].shape == (600, 1000, 3)
    assert summary["megapixels_per_second"] > 0


@pytest.mark.parametrize("options", [{}, {"dropout": True, "seed": 3}, {"norm_mode": "batch"}])
def test_a_result_depends_on_its_pixels_alone(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes], options: dict[str, Any]
) -> None:
    images = {f"{number:02d}.png": make_image(70 + number, 64, seed=number) for number in range(9)}
    everything = write(tmp_path / "all", images)
    alone = write(tmp_path / "alone", {"05.png": images["05.png"]})
    translate(checkpoint, everything, tmp_path / "out", **options)
    translate(checkpoint, alone, tmp_path / "out_alone", **options)
    whole, single = outputs(tmp_path / "out"), outputs(tmp_path / "out_alone")
    assert len(whole) == 9 and np.array_equal(whole["05.png"], single["05.png"])


@pytest.mark.parametrize("side", ["left", "right"])
def test_only_the_chosen_half_is_translated(
    tmp_path: Path, checkpoint: str, make_pairs: Callable[..., Path], side: Any
) -> None:
    source = make_pairs(tmp_path / "in", 2, 64)
    translate(checkpoint, source, tmp_path / "out", side=side)
    pair = np.asarray(Image.open(source / "0000.png").convert("RGB"))
    half = tmp_path / "half"
    half.mkdir()
    Image.fromarray(pair[:, :64] if side == "left" else pair[:, 64:]).save(half / "0000.png")
    translate(checkpoint, half, tmp_path / "expected")
    assert np.array_equal(outputs(tmp_path / "out")["0000.png"], outputs(tmp_path / "expected")["0000.png"])


def test_every_format_and_every_source_gives_the_same_pixels(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    images = {f"{number}.png": make_image(64, 80, seed=number) for number in range(3)}
    source = write(tmp_path / "in", images)
    translate(checkpoint, source, tmp_path / "parquet")
    translate(checkpoint, source, tmp_path / "png", format="png", png_level=6)
    translate(checkpoint, source, tmp_path / "tar", format="webdataset")
    translate(checkpoint, tmp_path / "tar" / "data", tmp_path / "of_tar", format="png")  # its images are a corpus too
    assert len(outputs(tmp_path / "of_tar")) == 3
    pq.write_table(pa.table({"id": list(images), "image": list(images.values())}), tmp_path / "set.parquet")
    translate(checkpoint, tmp_path / "set.parquet", tmp_path / "again", format="png")
    first = outputs(tmp_path / "parquet")
    for other in ("png", "again", "tar"):
        found = outputs(tmp_path / other)
        assert found.keys() == first.keys() and all(np.array_equal(found[name], first[name]) for name in first)
    rows = ledger(tmp_path / "png")
    assert rows["1.png"]["output_uri"] == str(tmp_path / "png" / "images" / "1.png")


def test_an_interrupted_translation_ends_with_every_input_once(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    source = write(tmp_path / "in", {f"{number:03d}.png": make_image(64, 64, seed=number) for number in range(40)})

    def dies_half_way(work: Work, left: RemainingWork) -> Outcome:
        in_this_process(work, RemainingWork(left.shards[:2], left.done))
        write(tmp_path / "out" / ".p2p-attempt-1-killed", {".p2p-1": b"half a file"})
        # A shard whose data was published, but whose ledger was not.
        (tmp_path / "out" / "ledger" / "shard-00001.parquet").unlink()
        raise KeyboardInterrupt

    config = TranslateConfig(checkpoint=checkpoint, source=str(source), output=str(tmp_path / "out"), precision="fp32")
    with pytest.raises(KeyboardInterrupt):
        run(config, lambda _: nullcontext(dies_half_way))
    write(source, {"late.png": make_image(64, 64, seed=99)})
    summary = run(config, lambda _: nullcontext(in_this_process))
    assert (summary["images"], summary["translated"], summary["skipped"], summary["failed"]) == (41, 33, 8, 0)
    names = {path.name for path in source.iterdir()}
    assert outputs(tmp_path / "out").keys() == names == ledger(tmp_path / "out").keys()
    assert temporaries(tmp_path / "out") == []
    again = run(config, lambda _: nullcontext(in_this_process))
    assert (again["translated"], again["skipped"]) == (0, 41)


def test_a_limit_translates_the_first_images_and_the_rest_later(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    source = write(tmp_path / "in", {f"{number}.png": make_image(64, 64) for number in range(5)})
    assert translate(checkpoint, source, tmp_path / "out", limit=2)["images"] == 2
    assert sorted(outputs(tmp_path / "out")) == ["0.png", "1.png"]
    summary = translate(checkpoint, source, tmp_path / "out")
    assert (summary["images"], summary["translated"], summary["skipped"]) == (5, 3, 2)
    assert translate(checkpoint, source, tmp_path / "out", limit=1)["images"] == 2  # the first shard, whole


def test_a_dry_run_estimates_and_writes_nothing(
    tmp_path: Path,
    checkpoint: str,
    make_image: Callable[..., bytes],
) -> None:
    source = write(tmp_path / "in", {f"{number}.png": make_image(64, 64) for number in range(5)})
    result = translate(checkpoint, source, tmp_path / "out", dry_run=True, price_per_hour=3.6)
    assert (result["images"], result["sampled"], result["sampled_failed"]) == (5, 1, 0)
    assert result["estimated_seconds"] > 0 and "estimated_cost" in result
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers, undisturbed", [(0, 4), (1, 4), (2, 4), (3, 3), (50, 4)])
@pytest.mark.parametrize("gpus", [0, 2])
def test_a_dry_run_counts_no_processes_beyond_what_they_share(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch, workers: int, undisturbed: int, gpus: int
) -> None:
    def fake(config: Any, corpus: Any, work: Work, processes: int, undisturbed: int) -> dict[str, Any]:
        return {"processes": processes, "undisturbed": undisturbed, "batch": work.batch_size}

    monkeypatch.setattr(estimate, "estimate", fake)
    monkeypatch.setattr(estimate, "available_cpus", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    source = write(tmp_path / "in", {"a.png": b""})
    result = translate(checkpoint, source, tmp_path / "out", dry_run=True, workers=workers, batch_size=5)
    expected = (workers or 4, undisturbed, 8) if not gpus else (workers or 4, min(workers or 4, 2), 5)
    assert tuple(result.values()) == expected


def test_a_network_that_runs_slower_than_it_could_is_reported(
    tmp_path: Path,
    checkpoint: str,
    make_image: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*arguments: Any) -> None:
        raise RuntimeError("bf16 path needs a processor with avx512\nand more")

    source = write(tmp_path / "in", {"a.png": make_image(64, 64)})
    assert translate(checkpoint, source, tmp_path / "quick", precision="fp32")["fallbacks"] == []
    monkeypatch.setattr(packing._PackedConvolution, "__init__", refuse)
    with caplog.at_level("WARNING", "p2p"):
        summary = translate(checkpoint, source, tmp_path / "slow", precision="bf16")
    why = "weights are not packed for this processor, the network runs slower: bf16 path needs a processor with avx512"
    assert summary["fallbacks"] == [why] and why in caplog.messages


def test_tiled_outputs_have_a_seam_score_and_others_do_not(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    source = write(tmp_path / "in", {f"{number}.png": make_image(200, 220, seed=number) for number in range(3)})
    assert translate(checkpoint, source, tmp_path / "tile")["seam_score"] > 0
    small = write(tmp_path / "small", {"a.png": make_image(60, 60)})
    assert translate(checkpoint, small, tmp_path / "one")["seam_score"] is None
    assert "seam_score" not in translate(checkpoint, source, tmp_path / "resize", size_mode="resize")


def test_a_seam_score_above_the_limit_is_told_when_all_is_written(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    source = write(tmp_path / "in", {"a.png": make_image(200, 220)})
    out = tmp_path / "out"
    score = translate(checkpoint, source, out)["seam_score"]
    (out / "report.html").unlink()
    with pytest.raises(NotGoodEnoughError, match=rf"seam score of {score:g}, above --max-seam 0\.5;") as caught:
        translate(checkpoint, source, out, max_seam=0.5)  # the limit is none of the settings that a resumption compares
    summary = json.loads((out / "summary.json").read_text())
    assert caught.value.summary == summary and (out / "report.html").exists()
    assert (summary["seam_score"], summary["max_seam"], summary["skipped"]) == (score, 0.5, 1)
    assert translate(checkpoint, source, out, max_seam=score)["images"] == 1


@pytest.mark.parametrize(
    "model",
    [
        {"input_channels": 1},
        {"input_channels": 4, "input_encoding": "onehot:4", "input_palette": ((0, 0, 0), (255, 0, 0), (255, 255, 255))},
    ],
)
def test_gray_inputs_and_label_maps_are_ordinary_files(
    tmp_path: Path, make_image: Callable[..., bytes], model: dict[str, Any]
) -> None:
    checkpoint = saved_checkpoint(tmp_path / "model", **model)
    data = make_image(70, 90)
    translate(checkpoint, write(tmp_path / "in", {"x.png": data}), tmp_path / "out")
    pixels = Image.fromarray(decode(data))
    expected = np.asarray(Translator(checkpoint, device="cpu", precision="fp32")(pixels))
    assert np.abs(outputs(tmp_path / "out")["x.png"].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("format", ["png", "parquet", "webdataset"])
def test_a_ledger_does_not_choose_what_the_report_shows(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes], format: str
) -> None:
    """Whoever can write to an output can name any file in its ledger, and any image."""
    source = write(tmp_path / "in", {f"{name}.png": make_image(64, 64) for name in "abcd"})
    output = tmp_path / "out"
    translate(checkpoint, source, output, format=format)
    private = write(tmp_path / "private", {"x.png": make_image(32, 32)}) / "x.png"
    (path,) = (output / "ledger").iterdir()
    changes = [{"output_uri": str(private)}, {"output_uri": f"{output}/../private/x.png"}, {"image_id": "no such"}, {}]
    rows = [row | change for row, change in zip(pq.read_table(path).to_pylist(), changes, strict=True)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    read: list[str] = []
    sys.addaudithook(lambda event, args: read.append(str(args[0])) if event == "open" else None)
    summary = translate(checkpoint, source, output, format=format)
    assert summary["skipped"] == 4 and "d.png" in (output / "report.html").read_text()
    assert not [path for path in read if "private" in path]
