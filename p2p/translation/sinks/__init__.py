"""Where translated images go. A sink is chosen once; every file it writes is named after a shard or an image id."""

from __future__ import annotations

from p2p.storage.images import EXTENSIONS
from p2p.storage.lease import Fence
from p2p.translation.config import Settings
from p2p.translation.sinks.geotiff import GeotiffNames
from p2p.translation.sinks.images import ImagesSink
from p2p.translation.sinks.parquet import ParquetSink
from p2p.translation.sinks.records import OutputNames, Record, ShardWriter, Sink
from p2p.translation.sinks.webdataset import WebDatasetSink

__all__ = [
    "GeotiffNames",
    "ImagesSink",
    "OutputNames",
    "ParquetSink",
    "Record",
    "ShardWriter",
    "Sink",
    "WebDatasetSink",
    "open_sink",
    "output_names",
]


def output_names(settings: Settings) -> OutputNames:
    """What the outputs are called that `--format` makes."""
    return GeotiffNames() if settings.format == "geotiff" else open_sink(settings)


def open_sink(settings: Settings, fence: Fence | None = None) -> Sink:
    """The sink for a `--format` of images, writing below `--output` while its lease is held."""
    if settings.format == "parquet":
        return ParquetSink(settings, fence)
    if settings.format == "webdataset":
        return WebDatasetSink(settings, fence)
    return ImagesSink(settings.output, EXTENSIONS[settings.format], fence)
