"""The whole translation without Ray: the shards are done in this process by the class that Ray's actors run."""

from __future__ import annotations

import functools
import http.server
import io
import json
import os
import shutil
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable
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

from p2p.errors import ConfigError, NotGoodEnoughError, P2PError, TooManyBadInputsError, UsageError
from p2p.model import packing
from p2p.model.checkpoint import save_checkpoint
from p2p.model.config import ModelConfig
from p2p.model.engine import Engine
from p2p.model.pix2pix import Pix2Pix
from p2p.model.translator import Translator
from p2p.storage.images import decode, encode
from p2p.translation import TranslateConfig, estimate
from p2p.translation.job import run
from p2p.translation.pipeline import fetching
from p2p.translation.plan.resume import RemainingWork
from p2p.translation.pool import Outcome
from p2p.translation.sinks.webdataset import read_records
from p2p.translation.work import Work


def translate(checkpoint: str, source: Path | str, output: Path | str, **options: Any) -> dict[str, Any]:
    options = {"precision": "fp32", "batch_size": 4, **options}
    config = TranslateConfig(checkpoint=checkpoint, source=str(source), output=str(output), **options)
    return run(config, lambda _: nullcontext(in_this_process))


@pytest.fixture
def checkpoint(checkpoint_of_64: str) -> str:
    return checkpoint_of_64


def ledger(output: Path) -> dict[str, dict[str, str]]:
    rows = [row for path in sorted((output / "ledger").iterdir()) for row in pq.read_table(path).to_pylist()]
    found = {row["image_id"]: row for row in rows}
    assert len(found) == len(rows), "an input is in the ledger twice"
    return found


def outputs(output: Path) -> dict[str, np.ndarray]:
    """Decoded images by id (Parquet) or relative name."""
    tars = sorted((output / "data").glob("*.tar"))
    if tars:
        records = [record for tar in tars for record in read_records(str(tar))]
        assert len({record.image_id for record in records}) == len(records)
        return {record.image_id: decode(record.image) for record in records}
    if (output / "data").exists():
        table = pa.concat_tables([pq.read_table(path) for path in sorted((output / "data").iterdir())])
        assert len(set(table["image_id"].to_pylist())) == len(table), "an image is in the output twice"
        return {row["image_id"]: decode(row["image"]) for row in table.to_pylist()}
    images = output / "images"
    return {str(path.relative_to(images)): decode(path.read_bytes()) for path in images.rglob("*") if path.is_file()}


def temporaries(output: Path) -> list[Path]:
    return [path for path in output.rglob("*") if path.name.startswith(".p2p-")]


def spoil(folder: Path, names: Iterable[str]) -> None:
    """Damage files as a disk might: no listing shows it."""
    for name in names:
        before = (folder / name).stat()
        (folder / name).write_bytes(bytes(before.st_size))
        os.utime(folder / name, ns=(before.st_atime_ns, before.st_mtime_ns))


def write(folder: Path, images: dict[str, bytes]) -> Path:
    for name, data in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


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


def test_bad_inputs_become_rows_with_reasons_and_an_exit_status(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    jpeg = make_image(64, 64, "JPEG")
    source = write(
        tmp_path / "in",
        {
            "good.png": make_image(64, 64),
            "cut.jpg": jpeg[: len(jpeg) // 2],
            "text.jpg": b"this is no image",
            "empty.png": b"",
            "odd.png": make_image(64, 65),
            "huge.png": make_image(400, 400),
        },
    )
    with pytest.raises(TooManyBadInputsError, match="5 of 6 inputs were bad"):
        translate(checkpoint, source, tmp_path / "out", side="left", max_pixels=100_000)
    rows = ledger(tmp_path / "out")
    assert {name: row["error"] for name, row in rows.items()} == {
        "good.png": "",
        "cut.jpg": "DamagedImage",
        "text.jpg": "NotAnImage",
        "empty.png": "EmptyFile",
        "odd.png": "OddWidth",
        "huge.png": "TooManyPixels",
    }
    assert all(row["message"] for row in rows.values() if row["status"] == "failed")
    assert list(outputs(tmp_path / "out")) == ["good.png"]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["images"], summary["translated"], summary["failed"], summary["skipped"]) == (6, 1, 5, 0)
    with pytest.raises(TooManyBadInputsError):  # the failures of an earlier attempt still count
        translate(checkpoint, source, tmp_path / "out", side="left", max_pixels=100_000)
    allowed = translate(checkpoint, source, tmp_path / "out", side="left", max_bad_fraction=0.9)
    assert (allowed["translated"], allowed["failed"], allowed["skipped"]) == (0, 5, 1)


def test_an_image_that_would_cost_hours_is_a_failed_row(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    jpeg = make_image(64, 64, "JPEG")
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    source = write(
        tmp_path / "in",
        {
            "good.png": make_image(64, 64),
            "thin.png": encode(np.zeros((1, 80_000, 3), np.uint8)),
            "scans.jpg": jpeg[:-2] + 200 * scan + jpeg[-2:],
        },
    )
    translate(checkpoint, source, tmp_path / "out", max_bad_fraction=0.9)
    errors = {name: row["error"] for name, row in ledger(tmp_path / "out").items()}
    assert errors == {"good.png": "", "thin.png": "TooManyTiles", "scans.jpg": "TooManyScans"}


@pytest.mark.parametrize("format, width", [("webp", 16_384), ("jpeg", 65_536)])
def test_an_output_too_long_for_its_format_is_a_failed_row(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes], format: Any, width: int
) -> None:
    files = {"good.png": make_image(64, 64), "long.png": encode(np.zeros((40, width, 3), np.uint8))}
    translate(checkpoint, write(tmp_path / "in", files), tmp_path / "out", image_format=format, max_bad_fraction=0.9)
    rows = ledger(tmp_path / "out")
    assert {name: row["error"] for name, row in rows.items()} == {"good.png": "", "long.png": "TooLargeForFormat"}
    assert "png" in rows["long.png"]["message"]


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
        (tmp_path / "out" / "data" / ".p2p-left-behind").write_bytes(b"half a file")
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


@pytest.mark.parametrize("change", ["another best", "pruned", "gone"])
def test_whatever_happens_to_its_run_a_translation_ends_with_the_weights_it_began_with(
    tmp_path: Path, make_image: Callable[..., bytes], change: str
) -> None:
    source = write(tmp_path / "in", {f"{number:02d}.png": make_image(64, 64, seed=number) for number in range(24)})
    model = ModelConfig(generator="unet_64", discriminator="patch_16", ngf=4, ndf=4, crop_size=64)
    run_folder = tmp_path / "run"

    def save(epoch: int) -> None:
        name = f"checkpoints/epoch_{epoch:04d}"
        save_checkpoint(str(run_folder / name), Pix2Pix(model, seed=epoch), {"epoch": epoch}, {})
        (run_folder / "best.json").write_text(json.dumps({"checkpoint": name}))

    def changes_half_way(work: Work, left: RemainingWork) -> Outcome:
        in_this_process(work, RemainingWork(left.shards[:1], left.done))
        if change != "gone":
            save(2)
        if change != "another best":
            shutil.rmtree(run_folder / "checkpoints/epoch_0001" if change == "pruned" else run_folder)
        in_this_process(work, RemainingWork(left.shards[1:2], left.done))  # as an actor that starts later
        raise KeyboardInterrupt

    save(1)
    expected, out = tmp_path / "expected", tmp_path / "out"
    translate(str(run_folder), source, expected, precision="fp32")
    config = TranslateConfig(checkpoint=str(run_folder), source=str(source), output=str(out), precision="fp32")
    with pytest.raises(KeyboardInterrupt):
        run(config, lambda _: nullcontext(changes_half_way))
    summary = run(config, lambda _: nullcontext(in_this_process))
    assert (summary["translated"], summary["skipped"]) == (8, 16)
    found, wanted = outputs(out), outputs(expected)
    assert found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in found)
    assert not (out / "weights").exists()


def test_another_checkpoint_or_option_needs_another_output(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    source = write(tmp_path / "in", {f"{number}.png": make_image(64, 64) for number in range(3)})
    out = tmp_path / "out"
    translate(checkpoint, source, out, format="png")
    with pytest.raises(UsageError, match=r"--size-mode was tile, is pad.*--resume never"):
        translate(checkpoint, source, out, format="png", size_mode="pad")
    (out / "mine.txt").write_text("not p2p's")
    (out / "images" / "mine.txt").write_text("nor this")
    (source / "0.png").unlink()
    summary = translate(checkpoint, source, out, size_mode="pad", resume="never")
    assert (summary["translated"], summary["skipped"]) == (2, 0)
    left = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    expected = ["data/part-00000.parquet", "images/mine.txt", "ledger/shard-00000.parquet"]
    expected += ["manifest/part-00000.parquet", "mine.txt", "report.html", "settings.json", "summary.json"]
    assert left == expected


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


def test_inputs_that_cannot_be_read_are_bad_however_many_stand_in_a_row(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    write(tmp_path / "in", {"good.png": make_image(64, 64)})
    (tmp_path / "in" / "folder.png").mkdir()
    manifest = tmp_path / "list.txt"
    manifest.write_text("in/good.png\nin/folder.png\nin/gone.png\n")
    summary = translate(checkpoint, manifest, tmp_path / "out", max_bad_fraction=1.0)
    assert (summary["translated"], summary["failed"]) == (1, 2)
    assert ledger(tmp_path / "out")["in/folder.png"]["error"] == "Refused"
    assert ledger(tmp_path / "out")["in/gone.png"]["error"] == "NotFound"
    many = tmp_path / "many.csv"
    many.write_text("image_id,uri\n" + "".join(f"{number},in/folder.png\n" for number in range(100)))
    with pytest.raises(TooManyBadInputsError):
        translate(checkpoint, many, tmp_path / "bad", max_bad_fraction=0.9)
    rows = ledger(tmp_path / "bad")
    assert len(rows) == 100 and {row["error"] for row in rows.values()} == {"Refused"}


NOBODY_LISTENS = [f"http://127.0.0.1:1/{number}.png" for number in range(80)]


@pytest.fixture
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many attempts as ever, but no second of waiting before each."""
    monkeypatch.setattr(fetching, "_WEB_PAUSES", [0.01 for _ in fetching._WEB_PAUSES])


@pytest.mark.usefixtures("without_pauses")
def test_storage_that_does_not_answer_stops_the_work(tmp_path: Path, checkpoint: str) -> None:
    (tmp_path / "list.txt").write_text("\n".join(NOBODY_LISTENS))
    with pytest.raises(P2PError, match=r"reads in a row have failed.*check the address"):
        translate(
            checkpoint,
            tmp_path / "list.txt",
            tmp_path / "out",
            max_bad_fraction=1.0,
            allow_private_addresses=True,
        )
    assert temporaries(tmp_path / "out") == []


@pytest.mark.usefixtures("without_pauses")
@pytest.mark.parametrize("first", [True, False])
def test_one_server_of_several_that_is_gone_spoils_its_own_images_only(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes], first: bool
) -> None:
    """The other one asks for patience at first."""
    refused: set[str] = set()

    class Impatient(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path in refused:
                super().do_GET()
            else:
                refused.add(self.path)
                self.send_error(429)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    write(tmp_path / "served", {f"{number}.png": make_image(64, 64, seed=number) for number in range(20)})
    handler = functools.partial(Impatient, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        answered = [f"http://127.0.0.1:{server.server_port}/{number}.png" for number in range(20)]
        addresses = [*NOBODY_LISTENS, *answered] if first else [*answered, *NOBODY_LISTENS]
        (tmp_path / "list.txt").write_text("\n".join(addresses))
        options = {"max_bad_fraction": 0.9, "allow_private_addresses": True}
        summary = translate(checkpoint, tmp_path / "list.txt", tmp_path / "out", **options)
        server.shutdown()
    assert (summary["translated"], summary["failed"]) == (20, len(NOBODY_LISTENS))
    errors = Counter(row["message"] for row in ledger(tmp_path / "out").values() if row["error"] == "FetchFailed")
    assert errors["its server has not answered many reads in a row and was not asked again"] >= 16
    assert refused == {f"/{number}.png" for number in range(20)}


@pytest.mark.usefixtures("without_pauses")
def test_any_number_of_servers_that_are_gone_does_not_end_the_job(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    write(tmp_path, {"good.png": make_image(64, 64)})
    gone = [f"http://127.0.0.{number}:1/x.png" for number in range(1, 101)]
    (tmp_path / "list.txt").write_text("\n".join([*gone, "good.png"]))
    options = {"max_bad_fraction": 1.0, "allow_private_addresses": True}
    summary = translate(checkpoint, tmp_path / "list.txt", tmp_path / "out", **options)
    assert (summary["translated"], summary["failed"]) == (1, len(gone))


@pytest.mark.parametrize("format", ["parquet", "webdataset", "png"])
def test_only_what_failed_is_tried_again(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes], format: Any
) -> None:
    good = {f"{number:02d}.png": make_image(64, 64, seed=number) for number in range(20)}
    source = write(tmp_path / "in", {**good, "03.png": b"", "11.png": b"no image"})
    out = tmp_path / "out"
    options = {"format": format, "max_bad_fraction": 1.0}
    assert translate(checkpoint, source, out, **options)["failed"] == 2
    before = outputs(out)
    spoil(source, set(good) - {"03.png", "11.png"})  # whoever read these again would fail
    (source / "11.png").write_bytes(b"")
    (source / "03.png").write_bytes(good["03.png"])
    summary = translate(checkpoint, source, out, only_failed=str(out / "ledger"), **options)
    assert (summary["images"], summary["translated"], summary["failed"], summary["skipped"]) == (20, 1, 1, 18)
    rows = ledger(out)
    assert rows.keys() == good.keys()
    assert {name: row["error"] for name, row in rows.items() if row["status"] == "failed"} == {"11.png": "EmptyFile"}
    after = outputs(out)
    assert len(after) == 19 and all(np.array_equal(after[name], image) for name, image in before.items())
    write(source, good)
    summary = translate(checkpoint, source, out, only_failed=str(out), **options)
    assert (summary["translated"], summary["failed"], summary["skipped"]) == (1, 0, 19)
    again = translate(checkpoint, source, out, only_failed=str(out), **options)
    assert (again["translated"], again["failed"], again["skipped"]) == (0, 0, 20)
    assert len(ledger(out)) == len(outputs(out)) == 20
    assert not (out / "retry").exists() and not (out / "attempts").exists()


@pytest.mark.parametrize("again", [{}, {"only_failed": "out"}])
def test_an_interrupted_retry_is_ended_by_either_command(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes], again: dict[str, str]
) -> None:
    good = {f"{number:02d}.png": make_image(64, 64, seed=number) for number in range(20)}
    source = write(tmp_path / "in", {**good, "01.png": b"", "11.png": b"", "19.png": b""})
    out = tmp_path / "out"
    options = {"max_bad_fraction": 1.0, "precision": "fp32"}
    translate(checkpoint, source, out, **options)
    spoil(source, set(good) - {"01.png", "11.png", "19.png"})
    for name in ("01.png", "11.png"):
        (source / name).write_bytes(good[name])

    def dies_half_way(work: Work, left: RemainingWork) -> Outcome:
        in_this_process(work, RemainingWork(left.shards[:2], left.done))
        (out / "ledger" / "shard-00001.parquet").unlink()  # its data was published, its ledger was not
        raise KeyboardInterrupt

    config = {"checkpoint": checkpoint, "source": str(source), "output": str(out), **options}
    with pytest.raises(KeyboardInterrupt):
        run(TranslateConfig(**config, only_failed=str(out)), lambda _: nullcontext(dies_half_way))  # type: ignore[arg-type]
    again = {name: str(tmp_path / value) for name, value in again.items()}
    run(TranslateConfig(**config, **again), lambda _: nullcontext(in_this_process))  # type: ignore[arg-type]
    rows = ledger(out)
    assert rows.keys() == good.keys()
    assert [name for name, row in rows.items() if row["status"] == "failed"] == ["19.png"]
    assert outputs(out).keys() == good.keys() - {"19.png"}


def test_failures_can_be_tried_again_into_another_output(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    source = write(tmp_path / "in", {"a.png": make_image(64, 64), "b.png": b"", "c.png": b"x"})
    translate(checkpoint, source, tmp_path / "first", max_bad_fraction=1.0)
    write(source, {"b.png": make_image(64, 64), "c.png": make_image(64, 64)})
    failed = str(tmp_path / "first" / "ledger")
    for skipped in (0, 2):
        summary = translate(checkpoint, source, tmp_path / "second", only_failed=failed)
        assert (summary["images"], summary["translated"], summary["skipped"]) == (2, 2 - skipped, skipped)
    assert ledger(tmp_path / "second").keys() == outputs(tmp_path / "second").keys() == {"b.png", "c.png"}
    message = refused(checkpoint, source, tmp_path / "third", only_failed=str(tmp_path / "second"))
    assert message.startswith("only_failed ") and "there is no ledger with failed inputs" in message
    assert not (tmp_path / "third").exists()


def test_one_file_of_a_ledger_means_the_failures_it_lists(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    good = {f"{number:02d}.png": make_image(64, 64) for number in range(20)}
    source = write(tmp_path / "in", {**good, "01.png": b"", "19.png": b""})
    out = tmp_path / "out"
    translate(checkpoint, source, out, max_bad_fraction=1.0)
    write(source, good)
    files = sorted((out / "ledger").iterdir())
    (out / "retry").mkdir()
    files[0].rename(out / "retry" / files[0].name)  # as a retry that was killed at once leaves it
    for file, failed in ((files[0], 1), (files[0], 1), (files[-1], 0)):
        summary = translate(checkpoint, source, out, max_bad_fraction=1.0, only_failed=f"file://{file}")
        assert (summary["images"], summary["failed"]) == (20, failed)
    assert outputs(out).keys() == ledger(out).keys() == good.keys()
    missing = out / "ledger" / "shard-00099.parquet"
    assert "no ledger is there" in refused(checkpoint, source, out, only_failed=str(missing))


def test_a_damaged_tar_among_others_is_one_failed_row(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    source = tmp_path / "in::put"
    source.mkdir()
    for name in ("a", "b"):
        with tarfile.open(source / f"{name}.tar", "w") as tar:
            for number in range(3):
                data = make_image(64, 64, seed=number)
                info = tarfile.TarInfo(f"{number}.png")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    whole = (source / "b.tar").read_bytes()
    (source / "b.tar").write_bytes(whole[: whole.rindex(b"2.png") + 200])
    summary = translate(checkpoint, source, tmp_path / "out::put", max_bad_fraction=0.2, format="png")
    assert (summary["images"], summary["translated"], summary["failed"]) == (6, 5, 1)
    rows = ledger(tmp_path / "out::put")
    assert rows["b.tar"]["error"] == "DamagedFile" and "cut off or damaged at byte" in rows["b.tar"]["message"]
    assert outputs(tmp_path / "out::put").keys() == rows.keys() - {"b.tar"}


def test_too_little_memory_is_reported_with_what_to_do(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a capacity of …")

    monkeypatch.setattr(Engine, "start", no_memory)
    source = write(tmp_path / "in", {"a.png": make_image(64, 64)})
    with pytest.raises(P2PError, match=r"^CUDA out of memory; pass a smaller --tile-size or fewer --workers"):
        translate(checkpoint, source, tmp_path / "out")
    monkeypatch.undo()
    assert translate(checkpoint, source, tmp_path / "out")["translated"] == 1


@pytest.mark.parametrize("content", ["{}", '{"format": "png", "colour": 1}', "[]", "no JSON", "[" * 100_000])
@pytest.mark.parametrize("resume", ["auto", "never"])
def test_settings_of_another_version_are_reported_and_nothing_is_removed(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes], content: str, resume: Any
) -> None:
    source = write(tmp_path / "in", {"a.png": make_image(64, 64)})
    out = write(tmp_path / "out", {"settings.json": content.encode(), "data/part-00000.parquet": b"old"})
    assert "not written by this version" in refused(checkpoint, source, out, resume=resume)
    assert (out / "settings.json").read_text() == content and (out / "data" / "part-00000.parquet").exists()


@pytest.mark.parametrize("changes", [{"format": "exe"}, {"format": ["png"]}, {"tile_size": "64"}, {"dropout": 0}])
@pytest.mark.parametrize("resume", ["auto", "never"])
def test_settings_of_other_types_are_reported_and_nothing_is_removed(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes], changes: dict[str, Any], resume: Any
) -> None:
    source, out = write(tmp_path / "in", {"a.png": make_image(64, 64)}), tmp_path / "out"
    translate(checkpoint, source, out)
    settings = out / "settings.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | changes))
    assert "not written by this version" in refused(checkpoint, source, out, resume=resume)
    assert (out / "data" / "part-00000.parquet").exists()


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
    "options", [{"max_seam": -0.1}, {"max_seam": float("nan")}, {"max_seam": 1, "size_mode": "pad"}]
)
def test_a_limit_of_seams_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^max_seam "):
        TranslateConfig(checkpoint="c", source="s", output="o", **options)


def refused(checkpoint: str, source: Path | str, output: Path | str, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        translate(checkpoint, source, output, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mistakes_are_reported_before_any_work(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    source = write(tmp_path / "in", {"a.png": make_image(64, 64)})
    out = tmp_path / "out"
    assert "nothing is there" in refused(checkpoint, tmp_path / "missing", out)
    assert refused(str(tmp_path / "none.pth"), source, out).startswith("checkpoint ")
    assert "neither a run" in refused(str(source), source, out)
    assert "multiple of 64" in refused(checkpoint, source, out, tile_size=100)
    assert "overlap 80" in refused(checkpoint, source, out, tile_size=64, overlap=80)
    assert "is in --source" in refused(checkpoint, source, source / "out")
    assert "is in --source" in refused(checkpoint, source, f"file://{source}/out")
    assert "is in --source" in refused(checkpoint, f"file://{source}", source / "out")
    assert "not available in this version" in refused(checkpoint, source, out, format="xyz")
    assert not out.exists()
    write(out / "data", {"part-00000.parquet": b"somebody's"})
    assert "did not make it" in refused(checkpoint, source, out)
    assert "did not make it" in refused(checkpoint, source, out, resume="never")
    assert os.listdir(out) == ["data"]


def test_starting_over_deletes_nothing_until_every_option_is_right(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    source = write(tmp_path / "in", {"a.jpg": make_image(64, 64), "b.png": make_image(64, 64)})
    out = tmp_path / "out"
    translate(checkpoint, source, out)

    def content() -> dict[str, bytes]:
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    before = content()
    assert "tile_size 100" in refused(checkpoint, source, out, resume="never", tile_size=100)
    write(source, {"a.png": make_image(64, 64)})  # as a.jpg it would become a.png
    assert "both be written as" in refused(checkpoint, source, out, resume="never", format="png")

    def no_cluster(config: TranslateConfig) -> Any:
        raise UsageError("--gpu true: the cluster has no GPU")

    config = TranslateConfig(checkpoint=checkpoint, source=str(source), output=str(out), resume="never")
    with pytest.raises(UsageError, match="no GPU"):
        run(config, no_cluster)
    assert content() == before


def test_a_first_attempt_that_is_refused_binds_nobody(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    source = write(tmp_path / "in", {"a.jpg": make_image(64, 64), "a.png": make_image(64, 64)})
    out = tmp_path / "out"
    assert "use --format parquet" in refused(checkpoint, source, out, format="png")
    assert translate(checkpoint, source, out, format="parquet")["translated"] == 2


def test_results_of_another_job_are_never_overwritten(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    source = write(tmp_path / "in", {"a.png": make_image(64, 64)})
    run_folder = write(tmp_path / "run", {"latest.json": b"{}", "summary.json": b"of the run"})
    assert "holds a run (latest.json)" in refused(checkpoint, source, run_folder)
    assert sorted(os.listdir(run_folder)) == ["latest.json", "summary.json"]


def saved_checkpoint(folder: Path, **model: Any) -> str:
    config = ModelConfig(generator="unet_64", discriminator="patch_16", ngf=4, ndf=4, crop_size=64, **model)
    save_checkpoint(str(folder), Pix2Pix(config, seed=0), {"epoch": 1}, {})
    return str(folder)


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


def test_what_this_job_does_not_translate_is_said_at_once(tmp_path: Path, make_image: Callable[..., bytes]) -> None:
    source = write(tmp_path / "in", {"x.png": make_image(8, 8)})
    for model in ({"input_channels": 12}, {"bits": 16}):
        checkpoint = saved_checkpoint(tmp_path / "model", **model)
        with pytest.raises(UsageError, match=r"checkpoint .* p2p\.Translator take any"):
            translate(checkpoint, source, tmp_path / "out")


def test_no_line_of_a_manifest_stops_the_others(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    write(tmp_path, {"_MG_1.png": make_image(64, 64), "b#1.png": make_image(64, 64), "b#2.png": make_image(64, 64)})
    good = ["_MG_1.png", f"file://{tmp_path}/b#1.png", f"{tmp_path}/b#2.png"]
    (tmp_path / "list.txt").write_text("\n".join([*good, "foo://bar/x.png", "http://[bad/x.png", "nul\0.png"]))
    translate(checkpoint, tmp_path / "list.txt", tmp_path / "out", max_bad_fraction=1.0)
    rows = ledger(tmp_path / "out")
    assert sorted(name for name, row in rows.items() if row["status"] == "failed") == [
        "[bad/x.png",
        "bar/x.png",
        "nul\0.png",
    ]
    assert len(outputs(tmp_path / "out")) == len(good)


def test_an_image_of_the_output_is_no_source(tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]) -> None:
    source = write(tmp_path / "in", {"_MG_1.png": make_image(64, 64)})
    out = tmp_path / "out"
    assert translate(checkpoint, source, out, format="png")["translated"] == 1
    image = out / "images" / "_MG_1.png"
    assert "puts its results" in refused(checkpoint, image, out, format="png", resume="never")
    assert image.exists()


def test_there_must_be_a_ledger_to_try_the_failed_of(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    source = write(tmp_path / "in", {"a.png": make_image(64, 64)})
    for where in (tmp_path / "out", tmp_path / "elsewhere"):
        assert "no ledger" in refused(checkpoint, source, tmp_path / "out", only_failed=str(where))
    assert "leave one out" in refused(checkpoint, source, tmp_path / "out", only_failed="x", resume="never")


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
