"""What the translation job refuses before any work, and what it leaves untouched."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from translations import refused, saved_checkpoint, translate, write

from p2p.errors import ConfigError, UsageError
from p2p.translation import TranslateConfig
from p2p.translation.job import run


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
    expected += ["manifest/checked.json", "manifest/part-00000.parquet", "mine.txt"]
    expected += ["report.html", "settings.json", "summary.json"]
    assert left == expected


def test_files_of_somebody_else_stay_in_every_folder(
    tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]
) -> None:
    source = write(tmp_path / "in", {f"{number}.png": make_image(64, 64) for number in range(3)})
    out = tmp_path / "out"
    translate(checkpoint, source, out)
    names = ("work/thesis.tex", "work/data/part-00000.parquet", "attempts/notes.txt", "retry/1/shard-00000.parquet")
    theirs = dict.fromkeys((*names, "previews/a.png", "manifest/notes.txt", "ledger/old/shard-00000.parquet"), b"mine")
    ours = dict.fromkeys(("work/shard-00000.sections/scene.json", "retry/shard-00000.parquet"), b"left")
    for resume in ("auto", "never"):
        write(out, theirs | ours)
        assert translate(checkpoint, source, out, resume=resume)["failed"] == 0
        assert {name: (out / name).read_bytes() for name in theirs} == theirs
        assert not [name for name in ours if (out / name).exists()]
    for name in theirs:
        (out / name).unlink()
    write(out, {**ours, "attempts/.p2p-cut-off": b""})
    translate(checkpoint, source, out, resume="never")
    assert not {"attempts", "previews"} & set(os.listdir(out))


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


@pytest.mark.parametrize(
    "options", [{"max_seam": -0.1}, {"max_seam": float("nan")}, {"max_seam": 1, "size_mode": "pad"}]
)
def test_a_limit_of_seams_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^max_seam "):
        TranslateConfig(checkpoint="c", source="s", output="o", **options)


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
    (tmp_path / "link").symlink_to(source / "out")
    assert "is in --source" in refused(checkpoint, source, tmp_path / "link")
    (tmp_path / "other").symlink_to(source)
    assert "is in --source" in refused(checkpoint, tmp_path / "other", source / "out")
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


def test_what_this_job_does_not_translate_is_said_at_once(tmp_path: Path, make_image: Callable[..., bytes]) -> None:
    source = write(tmp_path / "in", {"x.png": make_image(8, 8)})
    for model in ({"input_channels": 12}, {"bits": 16}):
        checkpoint = saved_checkpoint(tmp_path / "model", **model)
        with pytest.raises(UsageError, match=r"checkpoint .* p2p\.Translator take any"):
            translate(checkpoint, source, tmp_path / "out")


def test_an_image_of_the_output_is_no_source(tmp_path: Path, checkpoint: str, make_image: Callable[..., bytes]) -> None:
    source = write(tmp_path / "in", {"_MG_1.png": make_image(64, 64)})
    out = tmp_path / "out"
    assert translate(checkpoint, source, out, format="png")["translated"] == 1
    image = out / "images" / "_MG_1.png"
    (tmp_path / "link").symlink_to(out / "images")
    for found in (image, tmp_path / "link", tmp_path / "link" / image.name):
        assert "puts its results" in refused(checkpoint, found, out, format="png", resume="never")
    assert image.exists()
