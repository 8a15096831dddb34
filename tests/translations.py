"""Translations without Ray, of files that a test makes up, and what they leave."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import in_this_process

from p2p.errors import UsageError
from p2p.model.checkpoint import save_checkpoint
from p2p.model.config import ModelConfig
from p2p.model.pix2pix import Pix2Pix
from p2p.storage.images import decode
from p2p.translation import TranslateConfig
from p2p.translation.job import run
from p2p.translation.sinks.webdataset import read_records


def translate(checkpoint: str, source: Path | str, output: Path | str, **options: Any) -> dict[str, Any]:
    options = {"precision": "fp32", "batch_size": 4, **options}
    config = TranslateConfig(checkpoint=checkpoint, source=str(source), output=str(output), **options)
    return run(config, lambda _: nullcontext(in_this_process))


def refused(checkpoint: str, source: Path | str, output: Path | str, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        translate(checkpoint, source, output, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def saved_checkpoint(folder: Path, **model: Any) -> str:
    config = ModelConfig(generator="unet_64", discriminator="patch_16", ngf=4, ndf=4, crop_size=64, **model)
    save_checkpoint(str(folder), Pix2Pix(config, seed=0), {"epoch": 1}, {})
    return str(folder)


def write(folder: Path, images: dict[str, bytes]) -> Path:
    for name, data in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def spoil(folder: Path, names: Iterable[str]) -> None:
    """Damage files as a disk might: no listing shows it."""
    for name in names:
        before = (folder / name).stat()
        (folder / name).write_bytes(bytes(before.st_size))
        os.utime(folder / name, ns=(before.st_atime_ns, before.st_mtime_ns))


def ledger(output: Path) -> dict[str, dict[str, str]]:
    rows = [row for path in sorted((output / "ledger").iterdir()) for row in pq.read_table(path).to_pylist()]
    found = {row["image_id"]: row for row in rows}
    assert len(found) == len(rows), "an input is in the ledger twice"
    return found


def outputs(output: Path) -> dict[str, np.ndarray]:
    """Decoded images by id (Parquet) or relative name."""
    tars = sorted((output / "data").glob("*.tar"))
    if tars:
        records = [record for tar in tars for record in read_records(str(tar))]
        assert len({record.image_id for record in records}) == len(records)
        return {record.image_id: decode(record.image) for record in records}
    if (output / "data").exists():
        table = pa.concat_tables([pq.read_table(path) for path in sorted((output / "data").iterdir())])
        assert len(set(table["image_id"].to_pylist())) == len(table), "an image is in the output twice"
        return {row["image_id"]: decode(row["image"]) for row in table.to_pylist()}
    images = output / "images"
    return {str(path.relative_to(images)): decode(path.read_bytes()) for path in images.rglob("*") if path.is_file()}


def temporaries(output: Path) -> list[Path]:
    return [path for path in output.rglob("*") if path.name.startswith(".p2p-")]
