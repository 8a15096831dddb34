"""What is kept of a scene while it is translated: `work/shard-XXXXX.sections/`, a few files for each section.

A section is done exactly when `section-YYYYY.tif` is there, the last of its files. A scene is done when its ledger is.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from p2p.documents import build, to_json
from p2p.errors import BadInputError, DamagedFileError, NotFoundError
from p2p.scenes.cogs import PART_LEVELS, CogProfile, PartWriter, assemble
from p2p.scenes.sections import section_count
from p2p.storage.filesystems import join, list_names, read_json_object, remove, remove_file, write_bytes, write_json
from p2p.storage.images import decode, encode
from p2p.storage.rasters import Raster, Window
from p2p.storage.staging import StagedFile
from p2p.translation.plan.resume import PREVIEWS_FOLDER, SECTIONS_FOLDER
from p2p.translation.plan.shards import shard_uri
from p2p.translation.seams import Seams

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

_SCENE = "scene.json"
_COPY_BYTES = 16 * 2**20
_SECTION = re.compile(r"section-(\d{5,})\.tif")
_TRY = re.compile(r"section-(\d{5,})\.try")


@dataclass
class SectionFacts:
    """What is known of a part of a scene beside its pixels."""

    seams: Seams = field(default_factory=Seams)
    holes: list[Window] = field(default_factory=list)
    """Blocks of the input that could not be decoded."""
    before: list[Array] = field(default_factory=list)
    """Every n-th pixel of every n-th row of the input, (rows, columns, 3) uint8."""
    after: list[Array] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        pictures = {name: _picture(getattr(self, name)) for name in ("before", "after")}
        return {"seams": vars(self.seams), "holes": self.holes, **pictures}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> SectionFacts:
        """Raises ValueError, KeyError, TypeError, BadInputError for another document."""
        pictures = {
            name: [decode(base64.b64decode(document[name]))] if document[name] else [] for name in ("before", "after")
        }
        holes = [(int(x), int(y), int(w), int(h)) for x, y, w, h in document["holes"]]
        return cls(build(Seams, document["seams"]), holes, **pictures)

    def __add__(self, other: SectionFacts) -> SectionFacts:
        holes = [*self.holes, *(hole for hole in other.holes if hole not in self.holes)]
        return SectionFacts(self.seams + other.seams, holes, self.before + other.before, self.after + other.after)


def _picture(rows: list[Array]) -> str:
    return base64.b64encode(encode(np.concatenate(rows), "png")).decode() if rows else ""


def sections_folder(output: str, shard: int) -> str:
    """Where the sections of the scene of a shard are."""
    return shard_uri(join(output, SECTIONS_FOLDER), shard, "sections")


def _sections_with(pattern: re.Pattern[str], output: str, shard: int) -> set[int]:
    found = (pattern.fullmatch(name) for name in list_names(sections_folder(output, shard)))
    return {int(match[1]) for match in found if match}


def done_sections(output: str, shard: int) -> set[int]:
    """Sections that a process has finished."""
    return _sections_with(_SECTION, output, shard)


def count_sections(output: str, shard: int) -> tuple[int, int]:
    """How many sections of a scene in work are done, and how many there are; none where that is not known yet."""
    try:
        sections = int(read_json_object(join(sections_folder(output, shard), _SCENE))["sections"])
    except (NotFoundError, DamagedFileError, KeyError, TypeError, ValueError):
        return 0, 0
    return len(done_sections(output, shard)), sections


def forget_earlier(output: str, shard: int, raster: Raster) -> None:
    """Before a job starts: the one before was stopped, which is no fault of the scene; sections of another file go."""
    folder = sections_folder(output, shard)
    names = list_names(folder)
    with contextlib.suppress(DamagedFileError, NotFoundError):
        if names and read_json_object(join(folder, _SCENE)) != _identity(
            raster.size, raster.modified, raster.facts.height
        ):
            remove(folder)
            return
    for name in names:
        if _TRY.fullmatch(name):
            remove_file(join(folder, name))


def _identity(size: int, modified: str, height: int) -> dict[str, Any]:
    """By which it is noticed that a scene was replaced."""
    return {"size": size, "modified": modified, "sections": section_count(height)}


@dataclass(frozen=True)
class SceneStore:
    """The sections of one scene."""

    output: str
    shard: int
    profile: CogProfile

    @property
    def folder(self) -> str:
        """Where they are."""
        return sections_folder(self.output, self.shard)

    @property
    def sections(self) -> int:
        """How many there are in all."""
        return section_count(self.profile.height)

    def _uri(self, section: int, ending: str) -> str:
        return join(self.folder, f"section-{section:05d}.{ending}")

    def _files(self, section: int) -> list[str]:
        """Of the section itself, then of its overviews."""
        endings = ["tif", "half.tif", "quarter.tif"][: min(PART_LEVELS, self.profile.levels)]
        return [self._uri(section, ending) for ending in endings]

    def missing(self) -> set[int]:
        """Sections that are not done."""
        return set(range(self.sections)) - done_sections(self.output, self.shard)

    def begun(self) -> set[int]:
        """Sections that a process works on, or worked on when it ended."""
        return _sections_with(_TRY, self.output, self.shard)

    def require_same(self, size: int, modified: str) -> None:
        """Note which file the scene is; raise BadInputError if sections were made of another one."""
        uri = join(self.folder, _SCENE)
        now = _identity(size, modified, self.profile.height)
        if write_bytes(uri, to_json(now).encode(), only_new=True):
            return
        with contextlib.suppress(DamagedFileError, NotFoundError):
            if read_json_object(uri) != now:
                raise BadInputError(
                    "SceneChanged", "the file was replaced while it was being translated; try it again, as a whole"
                )

    def tries(self, section: int) -> int:
        """How many processes of this job have begun with a section that is not done."""
        with contextlib.suppress(NotFoundError, DamagedFileError, TypeError, ValueError, KeyError):
            return int(read_json_object(self._uri(section, "try"))["tries"])
        return 0

    def start(self, section: int) -> None:
        """Count the process that begins with a section."""
        write_json(self._uri(section, "try"), {"tries": self.tries(section) + 1})

    def publish(self, section: int, paths: Sequence[str], facts: SectionFacts) -> int:
        """Put a section's local files in place, the one that says that it is done last. Returns their bytes."""
        write_json(self._uri(section, "json"), facts.to_dict())
        size = 0
        for path, uri in [*zip(paths, self._files(section), strict=True)][::-1]:
            staged = StagedFile(uri)
            try:
                with open(path, "rb") as file:
                    shutil.copyfileobj(file, staged.file, _COPY_BYTES)
                size += staged.publish()
            except BaseException:
                staged.discard()
                raise
        remove_file(self._uri(section, "try"))
        return size

    def assemble(self, uri: str, raster: Raster) -> tuple[StagedFile, SectionFacts]:
        """The whole scene as a file that waits to be published, and what is known of it. Raises StorageError."""
        facts = SectionFacts()
        for section in range(self.sections):
            try:
                facts += SectionFacts.from_dict(read_json_object(self._uri(section, "json")))
            except (ValueError, KeyError, TypeError, BadInputError) as error:
                raise DamagedFileError(f"{self._uri(section, 'json')}: {error}") from None
        staged = StagedFile(uri)
        try:
            with tempfile.TemporaryDirectory(prefix="p2p-scene-") as scratch:
                parts = [self._files(section) for section in range(self.sections)]
                assemble(staged.file, self.profile, parts, raster.georeference, scratch)
        except BaseException:
            staged.discard()
            raise
        return staged, facts

    def keep_preview(self, facts: SectionFacts) -> None:
        """What the report shows, which outlives the sections."""
        write_json(shard_uri(join(self.output, PREVIEWS_FOLDER), self.shard, "json"), facts.to_dict())

    def remove(self) -> None:
        """The scene is done, or has failed."""
        remove(self.folder)


def read_preview(output: str, shard: int) -> SectionFacts:
    """What `keep_preview` wrote. Raises StorageError."""
    uri = shard_uri(join(output, PREVIEWS_FOLDER), shard, "json")
    try:
        return SectionFacts.from_dict(read_json_object(uri))
    except (ValueError, KeyError, TypeError, BadInputError) as error:
        raise DamagedFileError(f"{uri}: {error}") from None


class SectionWriter:
    """Encodes one section into local files, and measures it."""

    def __init__(self, profile: CogProfile, rows: int) -> None:
        self._folder = tempfile.mkdtemp(prefix="p2p-section-")
        levels = min(PART_LEVELS, profile.levels)
        self.paths = [os.path.join(self._folder, f"{level}.tif") for level in range(levels)]
        self._writer = PartWriter(self.paths, profile, rows)
        self.add = self._writer.add

    def close(self) -> None:
        """Finish the files."""
        self._writer.close()

    def remove(self) -> None:
        """Drop them."""
        with contextlib.suppress(Exception):
            self._writer.discard()
        shutil.rmtree(self._folder, ignore_errors=True)
