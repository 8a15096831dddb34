"""What is kept of a scene while it is translated: `work/shard-XXXXX.sections/`, a few files for each section.

A section is done exactly when `section-YYYYY-DIGEST.tif` is there, the last of its files. The digest is of what decides
its pixels, so that what a process of an older attempt publishes late counts only where it is the same. A scene is done
when its ledger is.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
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
from p2p.storage.lease import Fence
from p2p.storage.rasters import Raster, Window
from p2p.storage.staging import StagedFile
from p2p.translation.config import Settings
from p2p.translation.plan.resume import PREVIEWS_FOLDER, SECTIONS_FOLDER
from p2p.translation.plan.shards import shard_uri
from p2p.translation.seams import Seams

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

_SCENE = "scene.json"
_COPY_BYTES = 16 * 2**20
_NAME = re.compile(r"section-(\d{5,})-([0-9a-f]{16})\.(\w+)")


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


@dataclass(frozen=True)
class SceneVersion:
    """What decides the pixels of a scene's sections."""

    size: int
    modified: str
    """Of the file, by which it is noticed that it was replaced."""
    sections: int
    """How many there are."""
    settings: str
    """A digest of those of the translation, of which one is the checkpoint."""

    @classmethod
    def of(cls, raster: Raster, settings: Settings) -> SceneVersion:
        """That of a file as it is now."""
        return cls(raster.size, raster.modified, section_count(raster.facts.height), _digest(settings.to_dict()))

    @property
    def name(self) -> str:
        """What its sections are called by."""
        return _digest(vars(self))


def _digest(document: dict[str, Any]) -> str:
    return hashlib.blake2b(to_json(document).encode(), digest_size=8).hexdigest()


def _read_version(output: str, shard: int) -> SceneVersion | None:
    """Which one of a scene is in work; None where that is not known yet, or where something else lies there."""
    try:
        return build(SceneVersion, read_json_object(join(sections_folder(output, shard), _SCENE)))
    except (NotFoundError, DamagedFileError, ValueError):
        return None


def _sections_with(ending: str, output: str, shard: int, version: SceneVersion) -> set[int]:
    found = (_NAME.fullmatch(name) for name in list_names(sections_folder(output, shard)))
    return {int(match[1]) for match in found if match and match.group(2, 3) == (version.name, ending)}


def done_sections(output: str, shard: int, version: SceneVersion) -> set[int]:
    """Sections that a process has finished."""
    return _sections_with("tif", output, shard, version)


def count_sections(output: str, shard: int) -> tuple[int, int]:
    """How many sections of a scene in work are done, and how many there are; none where that is not known yet."""
    version = _read_version(output, shard)
    return (len(done_sections(output, shard, version)), version.sections) if version else (0, 0)


def forget_earlier(output: str, shard: int, version: SceneVersion) -> None:
    """Before a job starts: the one before was stopped, which is no fault of the scene; sections of another version
    go.
    """
    folder = sections_folder(output, shard)
    names = list_names(folder)
    if names and _read_version(output, shard) != version:
        remove(folder)
        return
    for name in names:
        if name.endswith(".try"):
            remove_file(join(folder, name))


@dataclass(frozen=True)
class SceneStore:
    """The sections of one scene."""

    output: str
    shard: int
    profile: CogProfile
    version: SceneVersion
    fence: Fence | None = None

    @property
    def folder(self) -> str:
        """Where they are."""
        return sections_folder(self.output, self.shard)

    @property
    def sections(self) -> int:
        """How many there are in all."""
        return self.version.sections

    def _uri(self, section: int, ending: str) -> str:
        return join(self.folder, f"section-{section:05d}-{self.version.name}.{ending}")

    def _files(self, section: int) -> list[str]:
        """Of the section itself, then of its overviews."""
        endings = ["tif", "half.tif", "quarter.tif"][: min(PART_LEVELS, self.profile.levels)]
        return [self._uri(section, ending) for ending in endings]

    def missing(self) -> set[int]:
        """Sections that are not done."""
        return set(range(self.sections)) - done_sections(self.output, self.shard, self.version)

    def begun(self) -> set[int]:
        """Sections that a process works on, or worked on when it ended."""
        return _sections_with("try", self.output, self.shard, self.version)

    def require_same(self, size: int, modified: str) -> None:
        """Note which file the scene is; raise BadInputError if sections were made of another one."""
        now = dataclasses.replace(self.version, size=size, modified=modified)
        if write_bytes(join(self.folder, _SCENE), to_json(vars(now)).encode(), only_new=True, fence=self.fence):
            return
        noted = _read_version(self.output, self.shard)
        # One with other settings is of an older attempt that came late: no section of this one was made of it.
        if noted and noted.settings == now.settings and noted != now:
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
        write_json(self._uri(section, "try"), {"tries": self.tries(section) + 1}, self.fence)

    def publish(self, section: int, paths: Sequence[str], facts: SectionFacts, check: Callable[[], None]) -> int:
        """Put a section's local files in place, the one that says that it is done last. Returns their bytes.

        `check` is called before each, since the one before may have taken long. It raises where another job has taken
        over.
        """
        check()
        write_json(self._uri(section, "json"), facts.to_dict(), self.fence)
        size = 0
        for path, uri in [*zip(paths, self._files(section), strict=True)][::-1]:
            staged = StagedFile(uri, self.fence)
            try:
                with open(path, "rb") as file:
                    shutil.copyfileobj(file, staged.file, _COPY_BYTES)
                check()
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
        staged = StagedFile(uri, self.fence)
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
