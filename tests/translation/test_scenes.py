"""GeoTIFFs through `--format geotiff`: what comes out has the place, the size and the holes of what went in."""

from __future__ import annotations

import dataclasses
import http.server
import math
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import s3fs
from conftest import S3Place, in_this_process
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from translations import saved_checkpoint

from p2p.errors import ConfigError, LeaseLostError, NotGoodEnoughError, P2PError, StorageError, UsageError
from p2p.model.translator import Translator
from p2p.scenes import cogs, sections, tiling
from p2p.scenes.bands import RasterBands
from p2p.storage import rasters, watched_file
from p2p.storage.filesystems import read_bytes, write_bytes
from p2p.translation import TranslateConfig, actor, estimate
from p2p.translation import translate as translate_job
from p2p.translation.config import Settings
from p2p.translation.corpus.corpus import open_scenes
from p2p.translation.job import run
from p2p.translation.plan.plan import extend_plan
from p2p.translation.scenes import store, translator
from p2p.translation.sinks import GeotiffNames
from p2p.translation.status import StatusConfig, status

rasterio = pytest.importorskip("rasterio")
from rasterio.control import GroundControlPoint  # noqa: E402
from rasterio.enums import ColorInterp  # noqa: E402
from rasterio.transform import Affine, from_origin  # noqa: E402

UTM = {"crs": "EPSG:32633", "transform": from_origin(500000, 5000000, 0.5, 0.5)}
TILED = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}


class Identity:
    """A network that gives back what it gets, and counts it."""

    batch_size, in_flight, fallbacks = 4, 2, ()

    def __init__(self, channels: int = 3, dtype: str = "uint8") -> None:
        self.input_channels = self.output_channels = channels
        self.dtype = np.dtype(dtype)
        self.tiles = 0

    def start(self, tiles: np.ndarray, keys: list[str]) -> Callable[[], np.ndarray]:
        assert tiles.dtype == self.dtype and tiles.shape[3] == self.input_channels
        self.tiles += len(tiles)
        return lambda: tiles


@pytest.fixture
def translate(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Translate with a network in place of the checkpoint's own; None: with that."""
    load = actor.load_engine

    def work(
        source: Any,
        output: Any,
        network: Any = None,
        sides: Any = (None, None),
        do: Any = in_this_process,
        **options: Any,
    ) -> dict[str, Any]:
        model = SimpleNamespace(input_bands=sides[0], output_bands=sides[1])
        monkeypatch.setattr(actor, "load_engine", (lambda _: (network, model)) if network else load)
        options = {"precision": "fp32", "tile_size": 64, "overlap": 16, "max_bad_fraction": 1.0, **options}
        options = {"checkpoint": checkpoint, **options}
        config = TranslateConfig(source=str(source), output=str(output), format="geotiff", **options)
        return run(config, lambda _: nullcontext(do))

    return work


@pytest.fixture
def small_sections(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Sets blocks and sections, so that a small scene has many."""

    def use(block: int, rows: int) -> None:
        monkeypatch.setattr(cogs, "BLOCK", block)
        monkeypatch.setattr(sections, "SECTION_ROWS", rows)
        monkeypatch.setattr(tiling, "_EMITTED_ROWS", 5)

    return use


def picture(height: int, width: int, channels: int = 3, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    """(channels, H, W), smooth."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(a * x + b * y) + np.cos(c * x - d * y) for a, b, c, d in rng.uniform(0.01, 0.06, (channels, 4))]
    return (20 + (np.stack(waves) + 2) / 4 * (200 if dtype == "uint8" else 9000)).astype(dtype)


def write(path: Path, data: np.ndarray, before: Any = None, after: Any = None, **profile: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = data.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": data.dtype.name, **profile}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile) as file:
        if before:
            before(file)
        file.write(data)
        if after:
            after(file)
    return path


def ledger(output: Path) -> dict[str, dict[str, str]]:
    rows = [row for path in sorted((output / "ledger").iterdir()) for row in pq.read_table(path).to_pylist()]
    return {row["image_id"]: row for row in rows}


def require_cog(path: Path) -> None:
    from rio_cogeo.cogeo import cog_validate

    assert cog_validate(str(path), strict=True, quiet=True) == (True, [], [])


def require_same_place(path: Path, other: Path) -> None:
    with rasterio.open(path) as a, rasterio.open(other) as b:
        assert a.crs == b.crs and a.transform == b.transform and a.shape == b.shape
        assert [point.asdict() | {"id": ""} for point in a.gcps[0]] == [
            point.asdict() | {"id": ""} for point in b.gcps[0]
        ]
        assert a.gcps[1] == b.gcps[1] and a.rpcs == b.rpcs
        assert a.tags().get("AREA_OR_POINT") == b.tags().get("AREA_OR_POINT")


@pytest.mark.parametrize("path", ["rotated", "south_up", "no_crs", "gcps", "rpcs", "point", "big_endian"])
def test_a_scene_stays_where_it_is(path: str, tmp_path: Path, translate: Any) -> None:
    data = picture(70, 90)
    points = [GroundControlPoint(row=r, col=c, x=12 + c / 1e4, y=48 - r / 1e4, z=1.0) for r in (0, 70) for c in (0, 90)]
    turned = Affine.translation(500000, 5000000) * Affine.rotation(30) * Affine.scale(0.5, -0.5)
    options: dict[str, Any] = {
        "rotated": {"crs": "EPSG:32633", "transform": turned},
        "south_up": {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 500000, 0, 0.5, 4999850)},
        "no_crs": {},
        "gcps": {"after": lambda file: setattr(file, "gcps", (points, rasterio.crs.CRS.from_epsg(4326)))},
        "rpcs": {"after": lambda file: setattr(file, "rpcs", _rpcs())},
        "point": {**UTM, "before": lambda file: file.update_tags(AREA_OR_POINT="Point")},
        "big_endian": {**UTM, "ENDIANNESS": "BIG", "BIGTIFF": "YES"},
    }[path]
    source = write(tmp_path / "in" / "a.tif", data, **options)
    translate(source, tmp_path / "out", Identity())
    output = tmp_path / "out" / "scenes" / "a.tif"
    require_same_place(source, output)
    with rasterio.open(output) as file:
        assert (file.read() == data).all()
    require_cog(output)


def _rpcs() -> Any:
    one = [1.0] + [0.0] * 19
    return rasterio.rpc.RPC(
        height_off=100.0, height_scale=500.0, lat_off=48.0, lat_scale=0.1, line_den_coeff=one,
        line_num_coeff=[0.0, 0.0, -1.0] + [0.0] * 17, line_off=35.0, line_scale=35.0, long_off=12.0, long_scale=0.1,
        samp_den_coeff=one, samp_num_coeff=[0.0, 1.0] + [0.0] * 18, samp_off=45.0, samp_scale=45.0,
        err_bias=None, err_rand=None,
    )  # fmt: skip


VALIDITY = ("none", "nodata", "alpha", "mask")
DTYPES = {"uint8": ("uint8", None), "uint16": ("uint16", None), "int16": ("uint16", (-32768.0, 32767.0))}


@settings(max_examples=60, phases=[Phase.explicit, Phase.generate])
@given(
    height=st.integers(1, 150),
    width=st.integers(1, 130),
    channels=st.sampled_from([1, 3, 4]),
    validity=st.sampled_from(VALIDITY),
    dtype=st.sampled_from(sorted(DTYPES)),
    block=st.sampled_from([0, 16, 64]),
    rows=st.sampled_from([1, 2, 4]),
    tiles=st.sampled_from([(64, 16), (64, 40), (64, 0)]),
    seed=st.integers(0, 9),
    batch=st.sampled_from([1, 4]),
)
@example(  # three rows of tiles begin above the last section, and none is read before those above it are done
    height=190, width=130, channels=1, validity="nodata", dtype="uint8",
    block=0, rows=1, tiles=(64, 40), seed=4, batch=1,
)  # fmt: skip
def test_what_the_identity_makes_of_a_scene_is_that_scene(
    tmp_path_factory: pytest.TempPathFactory, **drawn: Any
) -> None:
    folder = tmp_path_factory.mktemp("scene")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cogs, "BLOCK", 16)
        patch.setattr(sections, "SECTION_ROWS", 64 * drawn["rows"])
        patch.setattr(tiling, "_EMITTED_ROWS", 5)
        _round_trip(folder, **drawn)
    shutil.rmtree(folder)


def _round_trip(
    folder: Path,
    height: int,
    width: int,
    channels: int,
    validity: str,
    dtype: str,
    block: int,
    tiles: tuple[int, int],
    seed: int,
    rows: int,
    batch: int,
) -> None:
    rng = np.random.default_rng(seed)
    data = picture(height, width, channels, dtype, seed)
    valid = rng.random((height, width)) < rng.choice([0.0, 0.5, 0.98])
    if validity == "none":
        valid[:] = True
    network, scaling = DTYPES[dtype]
    data[:, ~valid] = 7 if validity == "nodata" else 0
    profile = {**UTM, "photometric": "RGB" if channels == 3 else "MINISBLACK"}
    profile |= {"tiled": True, "blockxsize": block, "blockysize": block} if block else {}
    profile |= {} if channels == 3 else {"alpha": "NO"}
    if validity == "nodata":
        profile["nodata"] = 7
    stored, before, after = data, None, None
    if validity == "alpha":
        stored = np.concatenate([data, np.where(valid, np.iinfo(dtype).max, 0).astype(dtype)[None]])
        kinds = {1: [ColorInterp.gray], 3: [ColorInterp.red, ColorInterp.green, ColorInterp.blue]}
        shown = [*kinds.get(channels, [ColorInterp.undefined] * channels), ColorInterp.alpha]
        before = lambda file: setattr(file, "colorinterp", shown)  # noqa: E731
    if validity == "mask":
        after = lambda file: file.write_mask(valid)  # noqa: E731
    source = write(folder / "in.tif", stored, before, after, **profile)
    bands = RasterBands(tuple(range(1, channels + 1)), dtype, (), *((one,) * channels for one in scaling or ()))
    output = str(folder / "out")
    config = Settings(
        checkpoint="c", source=str(source), output=output, format="geotiff", checkpoint_id="x",
        tile_size=tiles[0], overlap=tiles[1],
    )  # fmt: skip
    (scene,) = extend_plan(output, open_scenes(str(source)), GeotiffNames()).shards
    identity = Identity(channels, network)
    identity.batch_size = identity.in_flight = batch
    work = translator.SceneTranslator(config, identity, None, bands, bands)
    for last in (True, False):  # in two goes, from below
        numbers = range(sections.section_count(height))
        list(work.run([dataclasses.replace(scene, section=number) for number in numbers if (number % 3 == 2) == last]))
    made = folder / "out" / "scenes" / "in.tif"
    require_same_place(source, made)
    with rasterio.open(source) as a, rasterio.open(made) as b:
        assert b.dtypes == a.dtypes and b.nodata == a.nodata and b.count == a.count
        assert {flag.name for flag in a.mask_flag_enums[0]} == {flag.name for flag in b.mask_flag_enums[0]}
        assert (b.dataset_mask() == a.dataset_mask()).all()
        assert (b.read()[:channels, valid] == data[:, valid]).all()
        if validity == "alpha":
            assert (b.read(channels + 1) == stored[channels]).all()


@pytest.mark.parametrize("overlap", [16, 40])
def test_a_scene_in_sections_has_the_bits_of_the_whole_image(
    overlap: int, tmp_path: Path, translate: Any, checkpoint: str, small_sections: Any
) -> None:
    data = picture(333, 150)
    source = write(tmp_path / "in" / "a.tif", data, **UTM, **TILED)
    whole = Translator(checkpoint, precision="fp32", tile_size=64, overlap=overlap)(np.moveaxis(data, 0, 2))
    small_sections(16, 64)
    translate(source, tmp_path / "out", overlap=overlap)
    with rasterio.open(tmp_path / "out" / "scenes" / "a.tif") as file:
        assert np.abs(np.moveaxis(file.read(), 0, 2).astype(int) - whole).max() <= 1  # other batches, other kernels
        once = file.read()
    small_sections(512, 2048)
    translate(source, tmp_path / "whole", overlap=overlap)
    with rasterio.open(tmp_path / "whole" / "scenes" / "a.tif") as file:
        assert (file.read() == once).all()


class Killed(BaseException):
    """As a process that ends."""


@pytest.mark.parametrize("where", ["publish", "assemble"])
def test_after_a_kill_only_what_is_missing_is_done(
    where: str, tmp_path: Path, translate: Any, small_sections: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_sections(16, 64)
    data = picture(400, 100)
    source = write(tmp_path / "in" / "a.tif", data, **UTM, **TILED)
    network = Identity()
    translate(source, tmp_path / "once", network)
    tiles_once = network.tiles
    call = getattr(store.SceneStore, where)

    def end_at_third(self: Any, *args: Any) -> Any:
        if where == "assemble" or args[0] == 3:
            raise Killed
        return call(self, *args)

    monkeypatch.setattr(store.SceneStore, where, end_at_third)
    network = Identity()
    with pytest.raises(Killed):
        translate(source, tmp_path / "out", network)
    folder = tmp_path / "out" / "work" / "shard-00000.sections"
    done = {int(path.name[8:13]) for path in folder.glob(f"section-?????-{'?' * 16}.tif")}
    assert len(done) == (7 if where == "assemble" else 3)
    assert not (tmp_path / "out" / "scenes").exists()
    monkeypatch.setattr(store.SceneStore, where, call)
    published = []
    publish = store.SceneStore.publish
    monkeypatch.setattr(
        store.SceneStore, "publish", lambda self, *args: (published.append(args[0]), publish(self, *args))[1]
    )
    network = Identity()
    summary = translate(source, tmp_path / "out", network)
    assert published == [section for section in range(7) if section not in done]
    assert network.tiles == 0 if where == "assemble" else network.tiles < tiles_once
    assert summary["translated"] == 1 and not (tmp_path / "out" / "work").exists()
    name = "scenes/a.tif"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "once" / name).read_bytes()


def test_a_scene_that_is_replaced_is_noticed(
    tmp_path: Path, translate: Any, small_sections: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_sections(16, 64)
    source = write(tmp_path / "in" / "a.tif", picture(300, 100), **UTM)
    other = picture(300, 100, seed=5)
    publish = store.SceneStore.publish

    def replace(self: Any, section: int, *args: Any) -> int:
        if section == 2:
            write(source, other, **UTM, compress="deflate")
        return publish(self, section, *args)

    monkeypatch.setattr(store.SceneStore, "publish", replace)
    translate(source, tmp_path / "out", Identity())
    assert ledger(tmp_path / "out")["a.tif"]["error"] == "SceneChanged"
    assert not (tmp_path / "out" / "scenes").exists()

    def end(self: Any, section: int, *args: Any) -> int:
        if section == 2:
            raise Killed
        return publish(self, section, *args)

    monkeypatch.setattr(store.SceneStore, "publish", end)
    with pytest.raises(Killed):
        translate(source, tmp_path / "out", Identity(), only_failed=str(tmp_path / "out"))
    monkeypatch.setattr(store.SceneStore, "publish", publish)
    other = picture(300, 100, seed=6)
    write(source, other, **UTM)
    translate(source, tmp_path / "out", Identity())  # between two attempts: begun again
    assert ledger(tmp_path / "out")["a.tif"]["status"] == "translated"
    with rasterio.open(tmp_path / "out" / "scenes" / "a.tif") as file:
        assert (file.read() == other).all()


@pytest.mark.parametrize("change", ["checkpoint", "overlap", "scene"])
def test_a_section_that_an_older_attempt_publishes_late_is_not_taken_for_one_of_this(
    change: str, tmp_path: Path, translate: Any, small_sections: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had stood still while the next one started over with something else."""
    small_sections(16, 64)
    data = picture(400, 100)
    source = write(tmp_path / "in" / "a.tif", data if change != "scene" else 255 - data, **UTM, **TILED)
    publish = store.SceneStore.publish

    def end(last: int) -> Callable[..., int]:
        def publish_until(self: Any, section: int, *args: Any) -> int:
            if section == last:
                raise Killed
            return publish(self, section, *args)

        return publish_until

    older: dict[str, Any] = {"overlap": 8} if change == "overlap" else {}
    older |= {"checkpoint": saved_checkpoint(tmp_path / "older", norm="instance")} if change == "checkpoint" else {}
    for output, last, options in ((tmp_path / "older-out", 6, older), (tmp_path / "out", 2, {})):
        monkeypatch.setattr(store.SceneStore, "publish", end(last))
        with pytest.raises(Killed):
            translate(source, output, Identity(), **options)
        if change == "scene" and options is older:
            write(source, data, **UTM, **TILED)
    folders = [tmp_path / name / "work" / "shard-00000.sections" for name in ("older-out", "out")]
    for path in folders[0].glob("section-*"):
        if path.suffix != ".try":
            shutil.copy(path, folders[1])
    found = status(StatusConfig(output=str(tmp_path / "out")))
    assert (found["sections_done"], found["sections"]) == (2, 7)
    published: list[int] = []
    monkeypatch.setattr(
        store.SceneStore, "publish", lambda self, *args: (published.append(args[0]), publish(self, *args))[1]
    )
    translate(source, tmp_path / "out", Identity())
    assert published == [2, 3, 4, 5, 6] and not folders[1].exists()
    with rasterio.open(tmp_path / "out" / "scenes" / "a.tif") as file:
        assert (file.read() == data).all()


@pytest.mark.parametrize("last", [0, 1, 2])
def test_the_lease_is_looked_at_before_each_file_of_a_section(last: int, tmp_path: Path) -> None:
    version = store.SceneVersion(1, "now", 1, "none")
    profile = cogs.CogProfile(1000, 1000, 3, "uint8", "none")
    scene = store.SceneStore(str(tmp_path / "out"), 0, profile, version)
    parts = [tmp_path / "part", tmp_path / "half"]
    for path in parts:
        path.write_bytes(b"TIFF")
    looks: list[int] = []

    def check() -> None:
        looks.append(len(list(tmp_path.glob("out/work/*/section-*"))))
        if len(looks) > last:
            raise LeaseLostError("taken over")

    with pytest.raises(LeaseLostError):
        scene.publish(0, [str(path) for path in parts], store.SectionFacts(), check)
    assert looks == list(range(last + 1)), "one more file at each look"
    assert len(list(tmp_path.glob("out/work/*/section-*"))) == last and scene.missing() == {0}


def test_processes_that_end_though_no_section_is_to_blame_end_the_job(
    tmp_path: Path, translate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "in" / "a.tif", picture(100, 100), **UTM)
    network = Identity()
    monkeypatch.setattr(translator, "MAX_ATTEMPTS", 2)

    def end(*_: Any) -> Any:
        raise Killed

    def work(tried: Any, left: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(network, "start", end)
            for _ in range(4):
                with pytest.raises(Killed):
                    in_this_process(tried, left)
        return in_this_process(tried, left)

    with pytest.raises(P2PError, match=r"^4 processes have ended while they worked on a\.tif, rows 0\.\.99, though"):
        translate(source, tmp_path / "out", network, do=work)
    translate(source, tmp_path / "out", network)
    assert ledger(tmp_path / "out")["a.tif"]["status"] == "translated"


def corrupt(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A scene of 4 x 4 blocks of which the one at row 1, column 1 is damaged."""
    import tifffile

    data = picture(1024, 1024)
    path = write(tmp_path / "in" / "a.tif", data, **UTM, **TILED)
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[5], file.pages[0].databytecounts[5]
    content[offset + 2 : offset + count // 2] = bytes(count // 2 - 2)
    path.write_bytes(content)
    return path, data


def test_a_block_that_cannot_be_read_fails_its_scene_or_is_a_hole(tmp_path: Path, translate: Any) -> None:
    source, data = corrupt(tmp_path)
    translate(source, tmp_path / "fail", Identity())
    row = ledger(tmp_path / "fail")["a.tif"]
    assert row["error"] == "DamagedBlock" and "columns 256..511, rows 256..511" in row["message"]
    assert not list((tmp_path / "fail").rglob("*.tif"))
    summary = translate(source, tmp_path / "hole", Identity(), on_bad_window="nodata")
    row = ledger(tmp_path / "hole")["a.tif"]
    assert row["status"] == "translated" and "columns 256..511, rows 256..511" in row["message"]
    assert summary["scenes_with_holes"] == 1
    with rasterio.open(tmp_path / "hole" / "scenes" / "a.tif") as file:
        hole = file.dataset_mask() == 0
        assert hole[256:512, 256:512].all() and hole.sum() == 256 * 256
        assert (file.read()[:, ~hole] == data[:, ~hole]).all()


def test_a_valid_output_never_is_nodata(tmp_path: Path, translate: Any) -> None:
    class Black(Identity):
        def start(self, tiles: np.ndarray, keys: list[str]) -> Callable[[], np.ndarray]:
            return lambda: np.zeros_like(tiles)

    data = picture(100, 100)
    data[:, :20] = 0
    source = write(tmp_path / "a.tif", data, nodata=0, **UTM)
    translate(source, tmp_path / "out", Black())
    with rasterio.open(tmp_path / "out" / "scenes" / "a.tif") as file:
        assert ((file.dataset_mask() == 0) == (data == 0).all(0)).all()
        assert set(np.unique(file.read())) == {0, 1}


def test_what_is_no_geotiff_is_a_row_with_the_reason(tmp_path: Path, translate: Any) -> None:
    folder = tmp_path / "in"
    good = write(folder / "good.tif", picture(64, 64), **UTM)
    write(folder / "complex.tif", np.ones((1, 20, 20), np.complex64), **UTM)
    write(folder / "deep.tif", picture(20, 20, 3, "uint16"), **UTM)
    write(folder / "strip.tif", picture(20, 20), **UTM, blockysize=20)
    (folder / "empty.tif").write_bytes(b"")
    (folder / "page.tif").write_text("<html>403 Forbidden</html>")
    (folder / "cut.tif").write_bytes(good.read_bytes()[:-300])
    (folder / "tags.tif").write_bytes(good.read_bytes()[:40])
    (folder / "a.jp2").write_bytes(b"\x00\x00\x00\x0cjP  \r\n\x87\n")
    (folder / "mosaic.vrt").write_text("<VRTDataset/>")
    summary = translate(folder, tmp_path / "out", Identity())
    rows = ledger(tmp_path / "out")
    assert {name: row["error"] for name, row in rows.items()} == {
        "good.tif": "",
        "strip.tif": "",
        "complex.tif": "UnsupportedPixels",
        "deep.tif": "NeedsScaling",
        "empty.tif": "EmptyFile",
        "page.tif": "NotAnImage",
        "cut.tif": "DamagedImage",
        "tags.tif": "DamagedImage",
        "a.jp2": "UnsupportedDriver",
    }
    assert "gdal_translate" in rows["a.jp2"]["message"]
    assert (summary["translated"], summary["failed"]) == (2, 7)


def test_a_block_that_decodes_to_too_much_is_refused_by_the_tags(
    tmp_path: Path, translate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rasters, "MAX_BLOCK_BYTES", 20_000)
    source = write(tmp_path / "a.tif", picture(100, 100), **UTM, blockysize=100)
    translate(source, tmp_path / "out", Identity())
    row = ledger(tmp_path / "out")["a.tif"]
    assert row["error"] == "BlockTooLarge" and "gdal_translate -of COG" in row["message"]


@pytest.fixture
def requests_made() -> Iterator[tuple[str, list[str]]]:
    """A web server's address, and the paths that it is asked for."""
    asked: list[str] = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_hostile_files_make_no_request_and_read_no_other_file(
    tmp_path: Path, translate: Any, requests_made: tuple[str, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    url, asked = requests_made
    folder = tmp_path / "in"
    other = write(tmp_path / "other.tif", np.full((3, 32, 32), 99, np.uint8), **UTM)
    vrt = (
        '<VRTDataset rasterXSize="64" rasterYSize="64"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        '<SourceFilename relativeToVRT="0">{}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
        "</VRTRasterBand></VRTDataset>"
    )
    plain = np.full((3, 64, 64), 7, np.uint8)
    for name, target in (("net", f"/vsicurl/{url}/x.tif"), ("disk", str(other))):
        write(
            folder / f"{name}.tif",
            plain,
            None,
            lambda file, target=target: file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=target),
            **UTM,
        )
        (folder / f"{name}_vrt.tif").write_text(vrt.format(target))
        write(folder / f"{name}_aux.tif", plain, **UTM)
        (folder / f"{name}_aux.tif.aux.xml").write_text(
            f'<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{target}</MDI></Metadata></PAMDataset>'
        )
        (folder / f"{name}_ovr.tfw").write_text("0.5\n0\n0\n-0.5\n7\n9\n")
        write(folder / f"{name}_ovr.tif", plain)
        (folder / f"{name}_ovr.tif.ovr").write_text(vrt.format(target))
        (folder / f"{name}_ovr.tif.msk").write_text(vrt.format(target))
    with caplog.at_level("WARNING", "p2p"):
        translate(folder, tmp_path / "out", Identity())
    assert "8 files beside scenes are not looked at" in caplog.text
    assert "net_ovr.tif: nothing says where it lies" in caplog.text
    errors = {name: row["error"] for name, row in ledger(tmp_path / "out").items()}
    for name in ("net", "disk"):
        assert errors[f"{name}.tif"] == "ForeignReference" and errors[f"{name}_vrt.tif"] == "NotAnImage"
        for kind in ("aux", "ovr"):
            assert errors[f"{name}_{kind}.tif"] == ""
            with rasterio.open(tmp_path / "out" / "scenes" / f"{name}_{kind}.tif") as file:
                assert (file.transform == Affine.identity()) == (kind == "ovr")
                assert (file.read() == 7).all() and (file.dataset_mask() == 255).all()
    assert asked == []


def test_palettes_bits_and_single_bands_become_what_the_model_sees(tmp_path: Path, translate: Any) -> None:
    colours = {0: (0, 0, 0, 255), 1: (170, 211, 223, 255), 9: (250, 10, 250, 255)}
    indices = np.random.default_rng(0).choice([1, 9], (1, 80, 70)).astype(np.uint8)
    indices[0, :10] = 0
    folder = tmp_path / "in"
    write(folder / "palette.tif", indices, None, lambda file: file.write_colormap(1, colours), nodata=0, **UTM)
    bits = (picture(80, 70, 1) > 120).astype(np.uint8)
    write(folder / "bit.tif", bits, nbits=1, **UTM)
    gray = picture(80, 70, 1)
    write(folder / "gray.tif", gray, **UTM)
    translate(folder, tmp_path / "out", Identity())

    def read(name: str) -> tuple[np.ndarray, np.ndarray]:
        with rasterio.open(tmp_path / "out" / "scenes" / name) as file:
            return file.read(), file.dataset_mask() > 0

    pixels, valid = read("palette.tif")
    assert (valid == (indices[0] > 0)).all()
    table = np.zeros((10, 3), np.uint8)
    table[[1, 9]] = colours[1][:3], colours[9][:3]
    assert (np.moveaxis(pixels, 0, 2)[valid] == table[indices[0]][valid]).all()
    assert (read("bit.tif")[0] == bits * 255).all()
    assert (read("gray.tif")[0] == gray).all()


def test_bands_are_chosen_by_number_or_name(tmp_path: Path, translate: Any) -> None:
    data = picture(80, 70, 4)
    names = ["B02", "B03", "B04", "B08"]

    def name(file: Any) -> None:
        file.descriptions = names
        file.colorinterp = [ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined]

    source = write(tmp_path / "a.tif", data, name, **UTM)
    for number, (bands, chosen) in enumerate((("B04,B03,B02", [2, 1, 0]), ("4,1,2", [3, 0, 1]), ("", [0, 1, 2]))):
        translate(source, tmp_path / str(number), Identity(), bands=bands) if bands else translate(
            source, tmp_path / str(number), Identity()
        )
        with rasterio.open(tmp_path / str(number) / "scenes" / "a.tif") as file:
            assert (file.read() == data[chosen]).all()
    translate(source, tmp_path / "missing", Identity(), bands="B04,B03,B99")
    row = ledger(tmp_path / "missing")["a.tif"]
    assert row["error"] == "WrongBands" and "B99" in row["message"] and "B08" in row["message"]


@pytest.mark.parametrize("compression", ["zstd", "none", "jpeg", "webp"])
def test_blocks_are_compressed_as_asked(compression: str, tmp_path: Path, translate: Any) -> None:
    data = picture(700, 600)
    data[:, :100] = 0
    source = write(tmp_path / "a.tif", data, nodata=0, **UTM)
    translate(source, tmp_path / "out", Identity(), compression=compression, quality=90)
    output = tmp_path / "out" / "scenes" / "a.tif"
    require_cog(output)
    with rasterio.open(output) as file:
        stored = file.profile.get("compress", "none")
        pixels, valid = file.read(), file.dataset_mask() > 0
    assert compression in stored.lower()
    assert (valid == data.any(0)).all()  # lossy ones have a mask
    worst = np.abs(pixels.astype(int) - data)[:, 120:].max()
    assert worst == 0 if compression in ("zstd", "none") else 0 < worst < 40


@pytest.mark.parametrize(
    "compression, channels, dtype, works",
    [
        *(("jpeg", 1, "uint8", True), ("jpeg", 4, "uint8", True), ("jpeg", 5, "uint8", False)),
        *(("jpeg", 3, "uint16", False), ("webp", 1, "uint8", False), ("webp", 4, "uint8", True)),
        *(("webp", 3, "float32", False), ("zstd", 7, "uint16", True), ("deflate", 1, "float32", True)),
    ],
)
def test_a_compression_is_refused_exactly_where_gdal_cannot_write_it(
    compression: Any, channels: int, dtype: str, works: bool, tmp_path: Path
) -> None:
    profile = cogs.CogProfile(40, 40, channels, dtype, "mask", compression=compression)
    writer = cogs.PartWriter([str(tmp_path / "a.tif")], profile, 40)
    with nullcontext() if works else pytest.raises(P2PError, match="cannot be written"):
        writer.add(np.ones((40, 40, channels), dtype), None)
        writer.close()
    with nullcontext() if works else pytest.raises(ConfigError, match=f"{channels} channels of {dtype}.*use deflate"):
        cogs.check_compression(compression, channels, dtype)


def test_a_compression_that_the_model_does_not_fit_is_told_before_any_work(
    tmp_path: Path, translate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "a.tif", picture(70, 70), **UTM)
    monkeypatch.setitem(cogs._LOSSY_CHANNELS, "webp", (4,))
    with pytest.raises(ConfigError, match="webp") as caught:
        translate(source, tmp_path / "out", Identity(), compression="webp")
    assert caught.value.field == "compression" and not (tmp_path / "out").exists()


def test_a_full_disk_under_the_parts_is_told_in_one_line(tmp_path: Path) -> None:
    path = str(tmp_path / "a.tif")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = cogs.PartWriter([path], cogs.CogProfile(600, 600, 3, "uint8", "none", compression="none"), 600)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(StorageError, match=r"a\.tif: cannot be written.*TMPDIR") as caught:
            writer.add(picture(600, 600).transpose(1, 2, 0), None)
            writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    with pytest.raises(StorageError, match=r"b\.tif: cannot be written"):
        cogs.PartWriter([str(tmp_path / "none" / "b.tif")], cogs.CogProfile(60, 60, 3, "uint8", "none"), 60)


def test_a_scene_from_a_bucket_takes_few_requests_and_goes_to_one(
    s3: S3Place, tmp_path: Path, translate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 2600, 1500)).astype(np.uint8)  # which does not compress
    path = write(tmp_path / "a.tif", noise, **UTM, **TILED)
    write_bytes(s3.uri("in", "a.tif"), path.read_bytes())
    asked = []
    fetch = s3fs.S3File._fetch_range
    monkeypatch.setattr(
        s3fs.S3File, "_fetch_range", lambda file, *span: (asked.append(file.path), fetch(file, *span))[1]
    )
    translate(s3.uri("in"), s3.uri("out"), Identity(), tile_size=256, overlap=64)
    reads = sum(name.endswith("/in/a.tif") for name in asked)
    assert reads <= 1 + 1.2 * math.ceil(path.stat().st_size / 5e6)  # the header is looked at before
    (tmp_path / "out.tif").write_bytes(read_bytes(s3.uri("out", "scenes", "a.tif")))
    require_cog(tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as file:
        assert (file.read() == noise).all()


def test_a_storage_that_fails_is_no_fault_of_the_scene(
    s3: S3Place, tmp_path: Path, translate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 600, 600)).astype(np.uint8)
    path = write(tmp_path / "a.tif", noise, **UTM, **TILED)
    write_bytes(s3.uri("in", "a.tif"), path.read_bytes())
    monkeypatch.setattr(watched_file, "_READ_AHEAD", 50_000)
    fetch = s3fs.S3File._fetch_range
    for failing in (1, 3, 9):  # while the tags are read, while GDAL opens, while it reads
        calls = []

        def fail(file: Any, *span: Any) -> bytes:
            calls.append(span)  # noqa: B023
            if len(calls) >= failing and file.path.endswith("a.tif"):  # noqa: B023
                raise OSError("Please reduce your request rate")
            return fetch(file, *span)

        monkeypatch.setattr(s3fs.S3File, "_fetch_range", fail)
        with pytest.raises(P2PError, match="reduce your request rate"):
            translate(s3.uri("in"), tmp_path / "out", Identity())
        assert not list((tmp_path / "out").glob("ledger/*"))
    monkeypatch.setattr(s3fs.S3File, "_fetch_range", fetch)
    assert translate(s3.uri("in"), tmp_path / "out", Identity())["translated"] == 1


def test_a_manifest_names_scenes_and_not_web_servers(tmp_path: Path, translate: Any) -> None:
    write(tmp_path / "scenes" / "a.tif", picture(70, 70), **UTM)
    signed = "https://example.org/c.tif?sig=hush"
    (tmp_path / "list.txt").write_text(f"scenes/a.tif\nhttp://127.0.0.1:1/b.tif\nscenes/gone.tif\n{signed}\n")
    translate(tmp_path / "list.txt", tmp_path / "out", Identity())
    rows = list(ledger(tmp_path / "out").values())
    assert sorted(row["error"] for row in rows) == ["", "AddressRefused", "AddressRefused", "NotFound"]
    assert all("not from web servers" in row["message"] for row in rows if row["error"] == "AddressRefused")
    assert "hush" not in str(rows)


def test_status_and_report_know_of_scenes(
    tmp_path: Path, translate: Any, small_sections: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_sections(16, 64)
    source = write(tmp_path / "in" / "a.tif", picture(400, 100), **UTM)
    publish = store.SceneStore.publish

    def end(self: Any, section: int, *args: Any) -> int:
        if section == 3:
            raise Killed
        return publish(self, section, *args)

    monkeypatch.setattr(store.SceneStore, "publish", end)
    with pytest.raises(Killed):
        translate(source, tmp_path / "out", Identity())
    found = status(StatusConfig(output=str(tmp_path / "out")))
    assert (found["sections_done"], found["sections"]) == (3, 7)
    monkeypatch.setattr(store.SceneStore, "publish", publish)
    summary = translate(source, tmp_path / "out", Identity())
    assert "sections" not in status(StatusConfig(output=str(tmp_path / "out")))
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image") >= 2 and f"a.tif (seam score {summary['seam_score']:.3f})" in page


def test_the_report_shows_nothing_where_a_scene_holds_nothing(tmp_path: Path, translate: Any) -> None:
    data = picture(90, 140)
    data[:, :, :30] = 0
    translate(write(tmp_path / "a.tif", data, nodata=0, **UTM), tmp_path / "out", Identity())
    shown = store.read_preview(str(tmp_path / "out"), 0)
    for rows in (shown.before, shown.after):
        pixels = np.concatenate(rows)
        assert (pixels[:, :30] == 255).all() and np.array_equal(pixels[:, 30:], data[:, :, 30:].transpose(1, 2, 0))


def test_the_worst_scene_decides_whether_seams_are_too_visible(
    tmp_path: Path, translate: Callable[..., dict[str, Any]]
) -> None:
    plain, stepped = picture(130, 300, seed=1), picture(130, 130, seed=2)
    stepped[:, 48:, :] //= 2  # where the second row of tiles begins
    write(tmp_path / "in" / "plain.tif", plain, **UTM)
    write(tmp_path / "in" / "stepped.tif", stepped, **UTM)
    summary = translate(tmp_path / "in", tmp_path / "out", Identity())
    score = summary["worst_scene"]["seam_score"]
    assert summary["worst_scene"]["image_id"] == "stepped.tif" and score > summary["seam_score"]
    between = (score + summary["seam_score"]) / 2
    with pytest.raises(NotGoodEnoughError, match=f"stepped.tif has a seam score of {score:g}, above"):
        translate(tmp_path / "in", tmp_path / "out", Identity(), max_seam=between)
    assert translate(tmp_path / "in", tmp_path / "out", Identity(), max_seam=score)["skipped"] == 2


def test_a_dry_run_counts_the_parts_of_scenes_and_writes_nothing(tmp_path: Path, checkpoint: str, run_cli: Any) -> None:
    write(tmp_path / "in" / "a.tif", picture(200, 90), **UTM)
    write(tmp_path / "in" / "b.tif", picture(2100, 70), nodata=20, **UTM)
    (tmp_path / "in" / "c.tif").write_bytes(b"no TIFF")
    words = ["--checkpoint", checkpoint, "--source", tmp_path / "in", "--output", tmp_path / "out"]
    words += ["--format", "geotiff", "--tile-size", 64, "--overlap", 16, "--gpu", "false", "--dry-run"]
    outcome = run_cli(TranslateConfig, translate_job, *words)
    assert outcome.status == 0, outcome.stderr
    found = outcome.summary
    assert (found["images"], found["sampled"], found["sampled_failed"]) == (3, 3, 1)
    assert (found["sections"], found["tiles"], found["megapixels"]) == (3, 4 * 2 + 44 * 2, 0.2)
    assert found["estimated_seconds"] > 0 and found["megapixels_per_second"] > 0
    assert "3 scenes would take about" in outcome.stderr and not (tmp_path / "out").exists()


def test_no_more_processes_than_sections_are_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "sample", lambda *_: (2, ["a.tif"]))
    monkeypatch.setattr(estimate, "run_as_task", lambda *_, **__: (10.0, 1, 10**6, {"sections": 2, "tiles": 9}))
    config: Any = SimpleNamespace(format="geotiff", limit=0, price_per_hour=0.0)
    work: Any = SimpleNamespace(device="cpu", settings=SimpleNamespace(checkpoint_id="x"))
    corpus: Any = None
    seconds = [estimate.estimate(config, corpus, work, 64, count)["estimated_seconds"] for count in (1, 4, 64)]
    assert seconds == [20.0, 5.0, 5.0]


def test_what_is_not_for_scenes_is_told_before_any_work(tmp_path: Path) -> None:
    for options in (
        {"side": "left"},
        {"size_mode": "pad"},
        {"allow_signed_addresses": True},
        {"bands": "1,1"},
        {"bands": "0"},
        {"max_pixels": 9},
    ):
        with pytest.raises(UsageError, match=next(iter(options))):
            TranslateConfig(checkpoint="a", source="b", output="c", format="geotiff", **options)
    for options in ({"bands": "1"}, {"on_bad_window": "nodata"}, {"compression": "jpeg"}):
        with pytest.raises(UsageError, match="geotiff"):
            TranslateConfig(checkpoint="a", source="b", output="c", **options)
