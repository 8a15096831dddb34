"""Translated scenes as cloud-optimised GeoTIFFs: `scenes/<relative path>.tif`, each with the georeference it had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from p2p.scenes.bands import RasterBands
from p2p.scenes.cogs import LOSSY, CogProfile
from p2p.storage.filesystems import join
from p2p.storage.rasters import RasterFacts
from p2p.translation.config import Settings
from p2p.translation.sinks.images import image_name

FOLDER = "scenes"


@dataclass(frozen=True)
class GeotiffNames:
    """What the outputs of scenes are called; their sections are written by `p2p.translation.scenes`."""

    is_tree: ClassVar[bool] = True
    max_shard_rows: ClassVar[int] = 1

    def output_names(self, shard: int, image_ids: list[str]) -> list[str]:
        """One file per scene."""
        return [f"{FOLDER}/{self.name_of(image_id)}" for image_id in image_ids]

    def name_of(self, image_id: str) -> str:
        """Two scenes that differ only by their ending would share a file."""
        return image_name(image_id, "tif")


def scene_uri(output: str, image_id: str) -> str:
    """Where the translated scene lies."""
    return join(output, FOLDER, image_name(image_id, "tif"))


def output_profile(
    settings: Settings,
    facts: RasterFacts,
    channels: int,
    dtype: str,
    made: RasterBands | None,
    *,
    has_validity: bool,
) -> CogProfile:
    """What the output of a scene is, as its input and the settings decide. Raises nothing that its pixels decide.

    Args:
        settings: of the translation.
        facts: of the input.
        channels: of the output.
        dtype: likewise.
        made: the bands of the model's outputs, where it was trained on rasters.
        has_validity: whether some pixel may be invalid.

    """
    validity, nodata = facts.validity, None
    if validity == "nodata" and not facts.is_palette and fits(facts.nodata, dtype):
        nodata = facts.nodata
    elif validity == "nodata" or (validity == "none" and has_validity):
        validity = "mask"
    if settings.compression in LOSSY and validity in ("nodata", "alpha"):
        validity, nodata = "mask", None  # of which lossy compression would change the values
    if validity == "alpha" and facts.dtype != dtype:
        validity = "mask"
    return CogProfile(
        width=facts.width,
        height=facts.height,
        channels=channels,
        dtype=dtype,
        validity=validity,
        nodata=nodata,
        names=made.names if made is not None else (),
        compression=settings.compression,
        quality=settings.quality,
    )


def fits(nodata: float | None, dtype: str) -> bool:
    """Whether pixels of a type can hold that value."""
    if nodata is None:
        return False
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return bool(np.isnan(nodata) or kind.type(nodata) == nodata)
    limits = np.iinfo(kind)
    return bool(np.isfinite(nodata) and nodata == int(nodata) and limits.min <= nodata <= limits.max)
