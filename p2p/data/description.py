"""The description of a prepared data set, `dataset.json`, and what a model can read of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from p2p.documents import build, check_fields
from p2p.errors import ConfigError, NotFoundError, StorageError, UsageError
from p2p.model.config import Direction, ModelConfig, Palette, as_palette
from p2p.scenes.bands import RasterBands
from p2p.storage.filesystems import join, read_json_object, write_json
from p2p.storage.pixels import RGB, PixelFormat, parse_format

DESCRIPTION = "dataset.json"
"""Its file, which jobs/prepare.py writes last."""
_FIELDS = {
    "pixels_a": str,
    "pixels_b": str,
    "palette_a": Palette | None,
    "palette_b": Palette | None,
    "load_size": int | None,
    "bands_a": dict | None,
    "bands_b": dict | None,
}


@dataclass(frozen=True)
class SideDescription:
    """A or B of every pair."""

    pixels: PixelFormat = RGB
    palette: Palette | None = None
    """The colours that are its classes: all it has, where they are few enough, or those that were found in it."""
    bands: RasterBands | None = None
    """Where the images were cut out of rasters."""

    def __post_init__(self) -> None:
        if self.palette is not None and self.pixels != RGB:
            raise ValueError(f"a palette names RGB colours, the images have {self.pixels}")


@dataclass(frozen=True)
class Description:
    """Both sides; a raw folder, which has none, is read as RGB."""

    uri: str
    a: SideDescription = field(default_factory=SideDescription)
    b: SideDescription = field(default_factory=SideDescription)
    load_size: int | None = None
    """Side in pixels of every image; 0 where pairs keep their own size."""

    def sides(self, direction: Direction) -> tuple[SideDescription, SideDescription]:
        """Input and target."""
        return (self.a, self.b) if direction == "AtoB" else (self.b, self.a)

    def record(self, direction: Direction, output_channels: int) -> DataRecord:
        """For the checkpoints of a training in `direction`. Metrics use a palette of RGB targets only."""
        inputs, targets = self.sides(direction)
        target_palette = targets.palette if output_channels == RGB.channels else None
        bits: Literal[8, 16] = 16 if 16 in (inputs.pixels.bits, targets.pixels.bits) else 8
        bands = (inputs.bands, targets.bands)
        return DataRecord(self.uri, self.load_size, inputs.palette, target_palette, bits, bands=bands)

    def require(self, direction: Direction, input_channels: int, output_channels: int) -> None:
        """Raise ConfigError unless every image can be read with so many channels, none of them invented."""
        wanted = (input_channels, output_channels)
        for name, side, channels in zip(("input", "output"), self.sides(direction), wanted, strict=True):
            has = side.pixels.channels
            if channels != has and not {channels, has} <= {1, 3}:
                letter = "a" if side is self.a else "b"
                raise ConfigError(
                    f"{name}_channels",
                    f"{channels}: the {name} images in {self.uri} have {has}; use that, or prepare them again with "
                    f"pixels_{letter} {channels}x{side.pixels.bits}",
                )


@dataclass(frozen=True)
class DataRecord:
    """What a checkpoint records about the data set it was trained on."""

    uri: str
    load_size: int | None
    input_palette: Palette | None
    """Colours of the inputs, where they are few enough to be classes."""
    target_palette: Palette | None
    bits: Literal[8, 16] = 8
    """In which both sides are read."""
    pairs: int = 0
    """That are trained on."""
    bands: tuple[RasterBands | None, RasterBands | None] = (None, None)
    """Of inputs and targets, where they were cut out of rasters."""


def read_description(uri: str) -> Description:
    """The description of the data set at `uri`. Raises UsageError if its file is not as jobs/prepare.py writes it."""
    address = join(uri, DESCRIPTION)
    try:
        document = read_json_object(address)
        try:
            check_fields(document, _FIELDS)
        except ValueError as error:
            raise UsageError(f"{address}: {error}") from None
        sides = [
            SideDescription(
                parse_format(document.get(f"pixels_{name}", str(RGB)), f"{address}: pixels_{name}"),
                as_palette(document.get(f"palette_{name}")),
                build(RasterBands, document[f"bands_{name}"]) if document.get(f"bands_{name}") else None,
            )
            for name in ("a", "b")
        ]
    except NotFoundError:
        return Description(uri)
    except (StorageError, UsageError, ValueError) as error:
        raise ConfigError("data", f"{error}; prepare the data set again") from None
    return Description(uri, sides[0], sides[1], document.get("load_size"))


def write_description(description: Description, **more: str) -> None:
    """Publish it as dataset.json, with what else is worth knowing."""
    sides = {"a": description.a, "b": description.b}
    document: dict[str, Any] = {"load_size": description.load_size}
    for name, side in sides.items():
        document[f"palette_{name}"] = None if side.palette is None else [list(colour) for colour in side.palette]
        document[f"pixels_{name}"] = str(side.pixels)
        if side.bands is not None:
            document[f"bands_{name}"] = asdict(side.bands)
    write_json(join(description.uri, DESCRIPTION), document | more)


def formats_for(model: ModelConfig, swap: bool) -> tuple[PixelFormat, PixelFormat]:
    """The formats in which `model` needs sides A and B; `swap`: B is the input."""
    wanted = (PixelFormat(model.input_image_channels, model.bits), PixelFormat(model.output_channels, model.bits))
    return wanted[::-1] if swap else wanted
