"""The options of `jobs/translate.py`, checked when they are made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from p2p.cli import TrueFalse
from p2p.documents import build
from p2p.errors import ConfigError, UsageError
from p2p.scenes.bands import parse_bands
from p2p.scenes.cogs import Compression
from p2p.storage.bounded import DEFAULT_MAX_BYTES
from p2p.storage.images import ImageFormat
from p2p.storage.limits import MAX_PIXELS

OutputFormat = Literal["parquet", "webdataset", "png", "jpeg", "webp", "geotiff", "xyz"]
PACKED: tuple[OutputFormat, ...] = ("parquet", "webdataset")
"""Formats that hold many images per file."""
Side = Literal["whole", "left", "right"]
SizeMode = Literal["tile", "resize", "pad"]

_NOT_YET = ("xyz",)
_MIN_TILE_SIZE = 2
_DECIDE_OUTPUTS = (
    *("source", "checkpoint_id", "format", "image_format", "quality", "png_level", "side", "size_mode", "tile_size"),
    *("overlap", "image_column", "id_column", "member", "norm_mode", "dropout", "seed", "precision"),
    *("bands", "on_bad_window", "compression"),
)
"""Fields that decide the content of an output file."""


@dataclass(frozen=True, kw_only=True)
class TranslateConfig:
    """Translate a corpus of images with a trained generator. The same command again does only what is missing."""

    checkpoint: str
    """A run (its best checkpoint; RUN#latest for the latest), a checkpoint folder, or a generator .safetensors/.pth."""
    source: str
    """Folder or prefix of images (recursive), Parquet with an image-bytes column, WebDataset .tar or a folder of them,
    or a manifest of addresses (.txt, .csv, .parquet)."""
    output: str
    """Where the translation goes: a local folder or any fsspec address."""
    format: OutputFormat = "parquet"
    """parquet: data/part-*.parquet. webdataset: data/part-*.tar. png, jpeg, webp: images/<path in the source>, with the
    ending .png, .jpg or .webp. geotiff: the source holds GeoTIFFs of any size; scenes/<path in the source>.tif, each a
    cloud-optimised GeoTIFF with the georeference and validity of its input. xyz: not in this version."""
    image_format: ImageFormat = "png"
    """How images inside Parquet and WebDataset are encoded."""
    quality: int = 95
    """Quality of JPEG and WebP, 1..100; also of the blocks of a GeoTIFF."""
    png_level: int = 0
    """Compression of PNG. 0: the quickest encoder. 1..9: zlib's levels; 1 gives files up to 30 % smaller in 15 times
    the time, 9 the smallest."""
    compression: Compression = "deflate"
    """Of the blocks of a GeoTIFF. jpeg and webp: 8 bits only, and nodata or alpha become a mask."""
    bands: str = ""
    """Bands of a GeoTIFF that the model sees, by number or name: 4,3,2 or B04,B03,B02. Default: those that it was
    trained on, else the first ones."""
    on_bad_window: Literal["fail", "nodata"] = "fail"
    """A block of a GeoTIFF that cannot be read. fail: its scene fails. nodata: it is a hole in the output."""
    side: Side = "whole"
    """left, right: the source holds combined pairs; translate that half only."""
    size_mode: SizeMode = "tile"
    """tile: same size out, overlapping tiles blended. resize: to the model's size, and the output has that size.
    pad: same size out, in one piece, reflect-padded to what the network divides by."""
    tile_size: int = 0
    """Pixels on a tile's side. 0: the size of the crops the model was trained on, 256 for most."""
    overlap: int | None = None
    """Pixels that neighbouring tiles share. Default: 64, or a quarter of a tile smaller than 256."""
    image_column: str = "auto"
    """Parquet column with image bytes. auto: `image`, `bytes`, the input side of prepared pairs, or the only one."""
    id_column: str = "auto"
    """Parquet column whose values name the images, each once. auto: `image_id`, `pair_id` or `id`. none, and for rows
    without a value: the file's path and the row's number."""
    member: str = ""
    """Of tars: translate only the members whose names end so, such as input.png for 0.input.png. Empty: every image."""
    batch_size: int = 0
    """Tiles per forward pass on a GPU. 0: 64. On CPUs the tile size decides it, since results would depend on it."""
    workers: int = 0
    """Processes that hold the model; on a cluster at most so many. 0: one per core, or two per GPU, and more as nodes
    join."""
    gpu: Literal["auto", "true", "false"] = "auto"
    """auto: use GPUs if the cluster has any."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the device computes it natively."""
    norm_mode: Literal["running", "batch"] = "running"
    """running: stored statistics. batch: each tile's own statistics, as the paper tested. Neither mixes neighbours."""
    dropout: TrueFalse = False
    """true: the paper's noise at test time, reproducible by seed and image id."""
    seed: int = 0
    """Seeds that noise."""
    only_failed: str = ""
    """A ledger, one file of it, or the --output that holds it: translate just the inputs that failed there. Of --output
    itself: they are tried again, and what was translated stays. Of another: --output holds those inputs alone."""
    max_pixels: int = MAX_PIXELS
    """Images of more pixels are refused by their header, before they are decoded."""
    max_bytes: int = DEFAULT_MAX_BYTES
    """Encoded images of more bytes are refused; the bytes are counted as they are read, and after decompression."""
    allow_local: str = ""
    """A local folder whose files a manifest may name, besides those below a local manifest's own folder."""
    allow_private_addresses: bool = False
    """Let a manifest name web servers in private networks (10.x, 192.168.x, …) and on this machine."""
    allow_signed_addresses: bool = False
    """Let a manifest hold web addresses that carry a signature or key; that part of them is written nowhere."""
    max_bad_fraction: float = 0.0
    """Share of bad inputs (0..1) up to which the exit status is 0."""
    max_seam: float | None = None
    """Seam score up to which the exit status is 0, of tiled outputs; of GeoTIFFs the worst scene's counts."""
    limit: int = 0
    """Only the first N images of the corpus. 0: all. In an output that was started with more: the shards (up to 256
    images) that hold the first N, whole."""
    dry_run: bool = False
    """List the corpus, time a sample of 1 %, at most 200 images (of GeoTIFFs read as many headers, and time windows of
    the first), print the estimate, write nothing."""
    price_per_hour: float = 0.0
    """What the whole cluster costs per hour, for the estimate of a dry run."""
    resume: Literal["auto", "never"] = "auto"
    """auto: continue what an earlier attempt left in the output. never: remove that and start over."""

    def __post_init__(self) -> None:
        for field in ("checkpoint", "source", "output"):
            if not str(getattr(self, field)).strip():
                raise ConfigError(field, "is empty; give an address")
        if self.format in _NOT_YET:
            raise ConfigError(
                "format", f"{self.format}: not available in this version; use parquet, webdataset, png, jpeg or webp"
            )
        self._check_scenes()
        if self.only_failed and self.resume == "never":
            raise UsageError("--only-failed keeps what was translated, --resume never removes it; leave one out")
        self._require_range("quality", 1, 100)
        self._require_range("png_level", 0, 9)
        self._require_range("max_bad_fraction", 0, 1)
        for field in ("batch_size", "workers", "tile_size", "limit", "price_per_hour", "seed"):
            self._require_range(field, 0)
        for field in ("max_pixels", "max_bytes"):
            self._require_range(field, 1)
        if self.max_seam is not None:
            self._require_range("max_seam", 0)
            if self.size_mode != "tile":
                raise ConfigError("max_seam", f"{self.max_seam:g}: only tiles have seams; use --size-mode tile")
        if 0 < self.tile_size < _MIN_TILE_SIZE:
            raise ConfigError("tile_size", f"{self.tile_size}: too small; use the model's size (0) or a multiple of it")
        if self.overlap is None:
            return
        self._require_range("overlap", 0)
        if self.size_mode == "tile" and 0 < self.tile_size <= self.overlap:
            raise ConfigError(
                "overlap",
                f"{self.overlap}: must be smaller than the tiles of {self.tile_size} pixels; "
                f"{self.tile_size // 4} is usual",
            )

    def _check_scenes(self) -> None:
        """What goes with --format geotiff alone, and what does not go with it."""
        if self.format != "geotiff":
            for field, default in (("bands", ""), ("on_bad_window", "fail"), ("compression", "deflate")):
                if getattr(self, field) != default:
                    raise ConfigError(field, f"{getattr(self, field)}: is for --format geotiff; leave it out")
            return
        if self.bands:
            parse_bands(self.bands, "bands")
        for field, default in (("side", "whole"), ("size_mode", "tile")):
            if getattr(self, field) != default:
                raise ConfigError(field, f"{getattr(self, field)}: not with --format geotiff; leave it out")
        if self.allow_signed_addresses:
            raise ConfigError(
                "allow_signed_addresses",
                "true: only addresses of web servers carry signatures, and scenes are read by windows, from disks and "
                "buckets alone; copy such scenes there first",
            )
        for field, limit in (("max_pixels", MAX_PIXELS), ("max_bytes", DEFAULT_MAX_BYTES)):
            if getattr(self, field) != limit:
                raise ConfigError(field, f"{getattr(self, field)}: scenes may have any size; leave it out")
        for field in ("image_column", "id_column"):
            if getattr(self, field) not in ("auto", ""):
                raise ConfigError(field, f"{getattr(self, field)}: GeoTIFFs are no rows; leave it out")

    def _require_range(self, field: str, low: float, high: float = math.inf) -> None:
        value = getattr(self, field)
        if not low <= value <= high:
            allowed = f"{low:g} or more" if high == math.inf else f"between {low:g} and {high:g}"
            raise ConfigError(field, f"{value:g}: must be {allowed}")


@dataclass(frozen=True, kw_only=True)
class Settings(TranslateConfig):
    """A configuration without open questions: addresses are absolute, and what the defaults leave to the checkpoint
    and the source (tile size, overlap, image column) is decided.
    """

    checkpoint_id: str
    overlap: int

    def to_dict(self) -> dict[str, Any]:
        """What decides the content of an output file, as stored in `settings.json` and in the metadata of Parquet
        outputs. An attempt only continues one with the same.
        """
        return {name: getattr(self, name) for name in _DECIDE_OUTPUTS}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], output: str) -> Settings:
        """The settings of the translation in `output`. Raises ValueError, UsageError for what `to_dict` never made."""
        if document.keys() != set(_DECIDE_OUTPUTS):
            raise ValueError(f"expected the fields {', '.join(_DECIDE_OUTPUTS)}")
        return build(cls, {**document, "checkpoint": document["checkpoint_id"], "output": output})
