"""On PYTHONPATH this gives a process, and all that it starts, decoders with a defect: some inputs end the process.

A defect in a real decoder's C code is not to be had for a test, so this stands where one would: Pillow's `load` and
PyArrow's reading of row groups end the process, hang while Python is locked, or find no memory, as their input says.
So does reading windows of scenes.
Whatever comes after that, the signals, the processes and who learns of it, is real.
"""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.machinery
import importlib.util
import os
import re
import signal
import sys
from typing import Any


def harm(text: bytes) -> None:
    """Do what the input asks for."""
    if b"KILLS" in text:
        os.kill(os.getpid(), signal.SIGSEGV)
    if b"ENDS-WORKERS" in text and "ray" in sys.modules:  # as too little memory for all of them together would
        os.kill(os.getpid(), signal.SIGKILL)
    if b"HANGS" in text:
        ctypes.PyDLL(None).sleep(300)  # with Python's lock held
    if b"TOO-LARGE" in text:
        raise MemoryError("cannot allocate 99 GiB")


def patch_pillow(module: Any) -> None:
    plain = module.ImageFile.load

    def load(self: Any) -> Any:
        file = self.fp
        if hasattr(file, "getvalue"):
            harm(file.getvalue())
        return plain(self)

    module.ImageFile.load = load


IMAGES = ("a", "b", "image")


def patch_pyarrow(module: Any) -> None:
    """Files called `fatal-N-…` end the process when their row N, or one after it, is read."""
    kind = module.ParquetFile
    made, batches = kind.__init__, kind.iter_batches

    def init(self: Any, source: Any, *args: Any, **options: Any) -> None:
        found = re.search(r"fatal-(\d+)-", str(getattr(source, "path", source)))
        self.fatal_row = int(found[1]) if found else None
        made(self, source, *args, **options)

    def iter_batches(self: Any, *args: Any, **options: Any) -> Any:
        read = 0
        for batch in batches(self, *args, **options):
            read += len(batch)
            if self.fatal_row is not None and read > self.fatal_row and options["columns"][0] in IMAGES:
                harm(b"KILLS")
            yield batch

    kind.__init__, kind.iter_batches = init, iter_batches


def patch_rasters(module: Any) -> None:
    """Scenes called `fatal-N…` end the process when their row N is read. Where `SCENE.hold` is there, a pipe, whoever
    reads a window writes its process id into it and waits for its end.
    """
    plain = module.Raster.read

    def read(self: Any, bands: Any, window: Any) -> Any:
        fatal = re.search(r"fatal-(\d+)", self.uri)
        if fatal and window[1] <= int(fatal[1]) < window[1] + window[3]:
            harm(b"KILLS")
        if os.path.exists(f"{self.uri}.hold"):
            with open(f"{self.uri}.hold", "w") as pipe:
                pipe.write(str(os.getpid()))
            signal.pause()
        return plain(self, bands, window)

    module.Raster.read = read


def shorten_deadline(module: Any) -> None:
    module.DECODE_SECONDS = 5.0  # on a busy machine a good image may take one or two


def lower_attempts(module: Any) -> None:
    module.MAX_ATTEMPTS = 3


PATCHES = {
    "PIL.ImageFile": patch_pillow,
    "pyarrow.parquet.core": patch_pyarrow,
    "p2p.storage.deadline": shorten_deadline,
    "p2p.storage.rasters": patch_rasters,
    "p2p.data.tasks": lower_attempts,
}


class Patching(importlib.abc.MetaPathFinder):
    """Patches each module when it has been imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in PATCHES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None and spec.loader is not None
        run = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            PATCHES[name](module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Patching())
