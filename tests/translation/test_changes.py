"""Sources that are written anew under their names: what was made of them is made again, and nothing else is."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import S3Place, in_this_process

from p2p.errors import TooManyBadInputsError
from p2p.storage.filesystems import join, list_files, read_bytes, write_bytes
from p2p.translation import TranslateConfig
from p2p.translation.job import run
from p2p.translation.plan import changes
from p2p.translation.plan.resume import RemainingWork
from p2p.translation.pool import Outcome
from p2p.translation.sinks.webdataset import read_records
from p2p.translation.work import Work

Images = dict[str, bytes]


@pytest.fixture
def translate(checkpoint: str) -> Callable[..., dict[str, Any]]:
    def translate(
        source: Path | str, output: Path | str, work: Any = in_this_process, **options: Any
    ) -> dict[str, Any]:
        config = TranslateConfig(
            checkpoint=checkpoint, source=str(source), output=str(output), precision="fp32", **options
        )
        return run(config, lambda _: nullcontext(work))

    return translate


@pytest.fixture
def images(make_image: Callable[..., bytes]) -> Images:
    """Enough for three shards."""
    return {f"{number:02d}.png": make_image(64, 64, seed=number) for number in range(20)}


def results(output: Path | str) -> Images:
    """The encoded outputs by their names without endings."""
    found: list[tuple[str, bytes]] = []
    for file in list_files(str(output), (".tar", ".parquet", ".png")):
        if file.path.startswith("images/"):
            found.append((file.path.removeprefix("images/"), read_bytes(file.uri)))
        elif file.path.startswith("data/") and file.path.endswith(".tar"):
            found += [(record.image_id, record.image) for record in read_records(file.uri)]
        elif file.path.startswith("data/"):
            rows = pq.read_table(io.BytesIO(read_bytes(file.uri))).to_pylist()
            found += [(row["image_id"], row["image"]) for row in rows]
    assert len(dict(found)) == len(found), "an image is in the output twice"
    return {os.path.splitext(name)[0]: image for name, image in found}


def write_folder(uri: str, images: Images) -> str:
    for name, data in images.items():
        if not any(file.path == name and read_bytes(file.uri) == data for file in list_files(uri)):
            write_bytes(join(uri, name), data)
    return uri


def write_parquet(uri: str, images: Images) -> str:
    table = pa.table({"image_id": list(images), "image": list(images.values())})
    pq.write_table(table, f"{uri}.parquet", row_group_size=8)
    return f"{uri}.parquet"


def write_tar(uri: str, images: Images) -> str:
    with tarfile.open(f"{uri}.tar", "w") as tar:
        for name, data in images.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return f"{uri}.tar"


@pytest.mark.parametrize("format", ["parquet", "webdataset", "png"])
@pytest.mark.parametrize(("write", "changed"), [(write_folder, 1), (write_parquet, 20), (write_tar, 20)])
def test_a_source_that_is_written_anew_is_translated_again(
    tmp_path: Path,
    translate: Callable[..., dict[str, Any]],
    images: Images,
    make_image: Callable[..., bytes],
    write: Callable[[str, Images], str],
    changed: int,
    format: str,
) -> None:
    source = write(str(tmp_path / "in"), images)
    assert translate(source, tmp_path / "out", format=format)["changed"] == 0
    before = results(tmp_path / "out")
    images["03.png"] = make_image(80, 64, seed=99)
    source = write(str(tmp_path / "in"), images)
    summary = translate(source, tmp_path / "out", format=format)
    assert {name: summary[name] for name in ("images", "translated", "skipped", "changed", "failed")} == {
        "images": 20,
        "translated": changed,
        "skipped": 20 - changed,
        "changed": changed,
        "failed": 0,
    }
    translate(source, tmp_path / "fresh", format=format)
    after = results(tmp_path / "out")
    assert after == results(tmp_path / "fresh")
    assert [name for name in after if after[name] != before[name]] == ["03"]
    assert translate(source, tmp_path / "out", format=format)["skipped"] == 20


def test_objects_are_known_by_their_content(
    s3: S3Place, translate: Callable[..., dict[str, Any]], images: Images, make_image: Callable[..., bytes]
) -> None:
    source, output = s3.uri("in"), s3.uri("out")
    write_folder(source, images)
    translate(source, output)
    for name, data in images.items():
        write_bytes(join(source, name), data)
    assert translate(source, output)["changed"] == 0, "the same bytes, uploaded again"
    write_bytes(join(source, "03.png"), make_image(64, 64, seed=99))
    summary = translate(source, output)
    assert (summary["changed"], summary["translated"], summary["skipped"]) == (1, 1, 19)
    translate(source, s3.uri("fresh"))
    assert results(output) == results(s3.uri("fresh"))


def test_a_damaged_file_that_is_mended_needs_no_option(
    tmp_path: Path, translate: Callable[..., dict[str, Any]], images: Images
) -> None:
    source = write_folder(str(tmp_path / "in"), {**images, "07.png": b"no image"})
    with pytest.raises(TooManyBadInputsError):
        translate(source, tmp_path / "out")
    write_folder(source, images)
    summary = translate(source, tmp_path / "out")
    assert (summary["translated"], summary["failed"], summary["skipped"]) == (1, 0, 19)


@pytest.mark.parametrize("step", ["reopen_changed", "write_plan_file"])
def test_an_interruption_while_changes_are_written_down_forgets_none(
    tmp_path: Path,
    translate: Callable[..., dict[str, Any]],
    images: Images,
    make_image: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    source = write_folder(str(tmp_path / "in"), images)
    translate(source, tmp_path / "out")
    images |= {"03.png": make_image(64, 64, seed=98), "18.png": make_image(64, 64, seed=99)}
    write_folder(source, images)

    def interrupted(*args: Any, **options: Any) -> None:
        if step != "reopen_changed" or args[1] > 0:
            raise KeyboardInterrupt
        reopen(*args, **options)

    reopen = changes.reopen_changed
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(changes, step, interrupted)
        translate(source, tmp_path / "out")
    assert not (tmp_path / "out" / "summary.json").exists(), "it is not done any more"
    summary = translate(source, tmp_path / "out")
    assert (summary["changed"], summary["translated"], summary["skipped"]) == (2, 2, 18)
    translate(source, tmp_path / "fresh")
    assert results(tmp_path / "out") == results(tmp_path / "fresh")


@pytest.mark.parametrize("write", [write_parquet, write_tar])
def test_a_container_written_anew_gives_what_it_holds_now(
    tmp_path: Path, translate: Callable[..., dict[str, Any]], images: Images, write: Callable[[str, Images], str]
) -> None:
    def only_the_first_shard(work: Work, left: RemainingWork) -> Outcome:
        in_this_process(work, RemainingWork(left.shards[:1], left.done))
        raise KeyboardInterrupt

    source = write(str(tmp_path / "in"), images)
    with pytest.raises(KeyboardInterrupt):
        translate(source, tmp_path / "out", only_the_first_shard)
    missing = images.pop("15.png")
    write(str(tmp_path / "in"), {**images, "20.png": images["03.png"]})
    summary = translate(source, tmp_path / "out")
    counts = {name: summary[name] for name in ("images", "translated", "failed", "changed")}
    assert counts == {"images": 20, "translated": 20, "failed": 0, "changed": 19}
    translate(source, tmp_path / "fresh")
    assert results(tmp_path / "out") == results(tmp_path / "fresh")
    write(str(tmp_path / "in"), {**images, "15.png": missing})
    assert translate(source, tmp_path / "out")["failed"] == 0
    assert results(tmp_path / "out").keys() == {f"{number:02d}" for number in range(21)}, "what was translated stays"


@pytest.mark.parametrize("others", [0, 20])
@pytest.mark.parametrize("ending", ["tar", "parquet"])
def test_a_damaged_container_that_is_mended_leaves_no_failure(
    tmp_path: Path, translate: Callable[..., dict[str, Any]], images: Images, ending: str, others: int
) -> None:
    write = {"tar": write_tar, "parquet": write_parquet}[ending]
    (tmp_path / "in").mkdir()
    if others:
        write(str(tmp_path / "in/a"), {f"other-{name}": data for name, data in images.items()})
    else:
        write(str(tmp_path / "in/a"), {"other.png": images["00.png"]})
    damaged = Path(write(str(tmp_path / "in/b"), images))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(TooManyBadInputsError):
        translate(tmp_path / "in", tmp_path / "out")
    damaged.write_bytes(whole)
    assert translate(tmp_path / "in", tmp_path / "out")["failed"] == 0
    translate(tmp_path / "in", tmp_path / "fresh")
    assert results(tmp_path / "out") == results(tmp_path / "fresh")
    assert translate(tmp_path / "in", tmp_path / "out")["failed"] == 0
