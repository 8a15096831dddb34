"""The options of `jobs/prepare.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from p2p.data.joining import compile_pattern
from p2p.data.matching import LayoutChoice
from p2p.errors import ConfigError
from p2p.scenes.bands import parse_bands, parse_scale
from p2p.storage.bounded import DEFAULT_MAX_BYTES
from p2p.storage.pixels import RGB, PixelFormat, parse_format

SYNTHETIC = "synthetic:"
_MAX_SIDE = 65_535  # what a JPEG can hold
_MAX_SYNTHETIC_SIDE = 8192
_MAX_WINDOW = 4096


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Turn raw pairs of images into a prepared data set: Parquet files ready to train on.

    Published data sets, streamed straight from their archives (A is the left half, B the right):
    http://efrosgans.eecs.berkeley.edu/pix2pix/datasets/facades.tar.gz (also maps.tar.gz, night2day.tar.gz,
    edges2shoes.tar.gz, edges2handbags.tar.gz); jobs/presets/cityscapes.yaml says how to get those of Cityscapes
    """

    source: str
    """A folder or prefix of images, a .tar, .tar.gz, .tgz or .zip of one, or a Parquet data set, at a local path or
    any fsspec address (s3://, gs://, http:// …); or synthetic:city?pairs=512&size=256&seed=0 (size in pixels,
    also WIDTHxHEIGHT; left out, the stored size). Folders train/, val/ and test/ in it are splits by themselves."""
    output: str
    """Folder or prefix that receives train/, val/, test/, errors/, dataset.json and summary.json. An earlier prepared
    data set there is replaced."""
    source_b: str | None = None
    """The images of side B, where --source holds only side A; joined by relative path without extension."""
    layout: LayoutChoice = "auto"
    """combined: one image, A is the left half and B the right half. folders: A and B in two sub-folders. auto: what is
    recognised, and printed before work starts: Cityscapes, pix2pixHD and SPADE, ADE20K, CMP facades, xView, folders or
    names with words for both sides (A and B, labels and photos, input and target, rgb and depth …), two columns;
    other sub-folders and combined images where their pixels show that they are pairs. Else the job refuses. rasters:
    windows of GeoTIFFs that --source and --source-b hold on one pixel grid; those with an invalid pixel are left out,
    and val is apart from train by half a window."""
    pattern_a: str | None = None
    """The paths of side A's images, relative to --source, such as 'gtFine/{split}/{id}_gtFine_color.png': {id} is what
    both sides have in common, {split} (may be left out) a folder train, val or test. With --pattern-b."""
    pattern_b: str | None = None
    """As --pattern-a, of side B; relative to --source-b where there is one."""
    label_kind: Literal["auto", "color", "labelIds", "labelTrainIds", "instanceIds"] = "auto"
    """Which label images of Cityscapes are side A; auto takes the first of these that is there."""
    window: int = 286
    """Side in pixels of the windows of rasters, which are stored as they are."""
    bands_a: str = ""
    """Bands of side A of rasters, by number or name: 4,3,2 or B04,B03,B02. Default: all but alpha, up to 16."""
    bands_b: str = ""
    """As --bands-a, for side B."""
    scale_a: str = ""
    """What of side A of rasters becomes black and white: percentile:2,98 of valid pixels, range:LO,HI, or none. Needed
    unless it has 8 bits. Kept in dataset.json and in every checkpoint; translate applies it."""
    scale_b: str = ""
    """As --scale-a, for side B: outputs of a model get its values back."""
    load_size: int = 286
    """Stored height and width of both sides, pixels (square, bicubic); 0 keeps each pair's own size, losslessly."""
    pixels_a: str = "3x8"
    """Channels x bits in which side A is stored: 3x8 is RGB; 1x8 or 1x16 is gray, 4x8 RGB with alpha, 12x16 twelve
    bands (up to 16, of a multi-band TIFF). Anything but 3x8 is stored without loss."""
    pixels_b: str = "3x8"
    """As --pixels-a, for side B."""
    palette: str | None = None
    """How many colours (2 to 32) the side that is a rendered map has, where JPEG has blurred them: they are found by
    clustering, recorded in dataset.json and shown in doctor.html, so that palette_accuracy and palette_iou can be
    measured. Or a file of them, a line for each that begins with #rrggbb. Exact colours are found without this."""
    max_bytes: int = DEFAULT_MAX_BYTES
    """Encoded images of more bytes are bad inputs; bytes are counted while they are read and after decompression."""
    val_fraction: float = 0.0
    """Share, 0 to 1, of the pairs outside split folders that goes to val, chosen by a hash of the pair's id."""
    max_bad_fraction: float = 0.0
    """Share, 0 to 1, of the inputs that may be bad before the job ends with exit status 3."""
    check: bool = False
    """Prepare nothing: only look at the pairs of --source, raw or prepared, and write what the doctor finds (swapped
    partners, copies, leaks between splits, shifts …) to --output as doctor.json, doctor.html and summary.json; every
    bad input, with why, goes to errors/ there. Findings leave the exit status alone. Every prepared data set is looked
    at in the same way as it is made."""

    def __post_init__(self) -> None:
        """Check each value by itself."""
        is_synthetic = self.source.startswith(SYNTHETIC)
        if not 0 <= self.load_size <= _MAX_SIDE:
            raise ConfigError(
                "load_size", f"{self.load_size}: must be 0 (keep each pair's own size) to {_MAX_SIDE}; try 286"
            )
        for field in ("pixels_a", "pixels_b"):
            written = getattr(self, field)
            if parse_format(written, field) != RGB and is_synthetic:
                raise ConfigError(field, f"{written}: a synthetic source draws {RGB}; leave the option out")
        if self.max_bytes < 1:
            raise ConfigError("max_bytes", f"{self.max_bytes}: must be at least 1; the default is {DEFAULT_MAX_BYTES}")
        for field in ("val_fraction", "max_bad_fraction"):
            share = getattr(self, field)
            if not (math.isfinite(share) and 0 <= share <= 1):
                raise ConfigError(field, f"{share}: must be a share from 0 to 1, such as 0.1")
        self._check_rasters()
        if self.source_b is not None and self.layout == "combined":
            raise ConfigError("layout", "combined: one image holds both sides, so leave out --source-b, or --layout")
        self._check_patterns()
        if is_synthetic:
            if self.source_b is not None:
                raise ConfigError("source_b", f"{self.source_b}: a synthetic source draws both sides; leave it out")
            parse_synthetic(self.source)
        if self.palette is not None and RGB not in self.formats:
            raise ConfigError("palette", f"{self.palette}: a palette names RGB colours, and neither side has them")
        if self.output.startswith(SYNTHETIC):
            raise ConfigError("output", f"{self.output}: not a place to write to")

    def _check_rasters(self) -> None:
        """What goes with --layout rasters alone, and what does not go with it."""
        if not 16 <= self.window <= _MAX_WINDOW:
            raise ConfigError("window", f"{self.window}: must be 16 to {_MAX_WINDOW}; try 286")
        if self.layout != "rasters":
            for field in ("bands_a", "bands_b", "scale_a", "scale_b"):
                if getattr(self, field):
                    raise ConfigError(field, f"{getattr(self, field)}: is for --layout rasters; leave it out")
            return
        if self.source_b is None:
            raise ConfigError("source_b", "is missing: --layout rasters needs the rasters of both sides")
        for field in ("pixels_a", "pixels_b"):
            if getattr(self, field) != str(RGB):
                raise ConfigError(field, f"{getattr(self, field)}: follows from the rasters; leave it out")
        for side in ("a", "b"):
            if getattr(self, f"bands_{side}"):
                parse_bands(getattr(self, f"bands_{side}"), f"bands_{side}")
            parse_scale(getattr(self, f"scale_{side}"), f"scale_{side}")

    def _check_patterns(self) -> None:
        for field, other in (("pattern_a", "pattern_b"), ("pattern_b", "pattern_a")):
            pattern = getattr(self, field)
            if pattern is None:
                continue
            if getattr(self, other) is None:
                raise ConfigError(field, f"{pattern}: says where one side is; --{other.replace('_', '-')} is missing")
            if self.layout != "auto":
                raise ConfigError(field, f"{pattern}: says how images pair up, so leave out --layout")
            try:
                compile_pattern(pattern)
            except ValueError as error:
                raise ConfigError(field, f"{pattern}: {error}") from None
        if self.pattern_a is not None and self.pattern_a == self.pattern_b:
            raise ConfigError("pattern_b", f"{self.pattern_b}: is --pattern-a too; no image can be both sides")

    @property
    def patterns(self) -> tuple[str, str] | None:
        """Those of A and B, if they are given."""
        return (self.pattern_a, self.pattern_b) if self.pattern_a and self.pattern_b else None

    @property
    def formats(self) -> tuple[PixelFormat, PixelFormat]:
        """How A and B are stored."""
        return parse_format(self.pixels_a, "pixels_a"), parse_format(self.pixels_b, "pixels_b")


@dataclass(frozen=True)
class SyntheticSource:
    """How many pairs to draw, how large (pixels), from which seed. Size 0: the size they are stored in, or 256."""

    pairs: int = 512
    height: int = 0
    width: int = 0
    seed: int = 0


def _number(address: str, name: str, text: str, low: int, high: int) -> int:
    if not text.isdecimal() or not low <= int(text) <= high:
        raise ConfigError("source", f"{address}: {name}={text} must be a whole number from {low} to {high}")
    return int(text)


def parse_synthetic(address: str) -> SyntheticSource:
    """`synthetic:city?pairs=512&size=256&seed=0` (each optional, size also as WIDTHxHEIGHT). Raises ConfigError."""
    kind, _, query = address.removeprefix(SYNTHETIC).partition("?")
    if kind != "city":
        raise ConfigError("source", f"{address}: there is no synthetic {kind!r}; use synthetic:city?pairs=512&seed=0")
    values: dict[str, int] = {}
    for part in filter(None, query.split("&")):
        name, _, text = part.partition("=")
        if name == "pairs":
            values["pairs"] = _number(address, name, text, 1, 100_000_000)
        elif name == "seed":
            values["seed"] = _number(address, name, text, 0, 2**63 - 1)
        elif name == "size":
            sides = text.lower().split("x", 1)
            values["width"] = _number(address, name, sides[0], 1, _MAX_SYNTHETIC_SIDE)
            values["height"] = _number(address, name, sides[-1], 1, _MAX_SYNTHETIC_SIDE)
        else:
            raise ConfigError("source", f"{address}: unknown part {name!r}; use pairs, size and seed")
    return SyntheticSource(**values)
