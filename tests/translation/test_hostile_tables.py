"""Parquet of some hundred bytes that would take gigabytes: it is listed and read in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import png

MB = 1_000_000
# Lists a table and reads its cells as translating and as preparing do, in a process of its own.
_READER = """
import json, sys
from p2p.errors import BadInputError, UsageError
from p2p.preparation.locations import SourceReader
from p2p.preparation.tables import pair_tables
from p2p.translation.corpus.corpus import open_corpus
from p2p.translation.pipeline.fetching import InputFetcher

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

job, uri = sys.argv[1:3]
for max_bytes in map(int, sys.argv[3:]):
    before, found = peak(), []
    try:
        if job == "translate":
            corpus = open_corpus(uri)
            fetcher = InputFetcher(corpus.image_column, max_bytes=max_bytes)
            for unit in fetcher.units(list(corpus.items())):
                found += [data.kind if isinstance(data, BadInputError) else "read" for data in fetcher.fetch(unit)]
        else:
            pairing, fetch = pair_tables(uri, "auto", 0.0), SourceReader(max_bytes=max_bytes)
            found = [row.error for row in pairing.bad]
            for pair in pairing.pairs:
                try:
                    found.append("read" if fetch(pair.a) else "")
                except BadInputError as error:
                    found.append(error.kind)
    except UsageError as error:
        found = ["refused: " + str(error)]
    print(json.dumps({"found": found, "grown": peak() - before}))
"""


def read(job: str, path: Path, *max_bytes: int) -> list[tuple[Counter[str], int]]:
    """What became of the rows, and by how many bytes the process grew, under each limit."""
    words = [sys.executable, "-c", _READER, job, str(path), *map(str, max_bytes or (256 * 2**20,))]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    results: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    return [(Counter(result["found"]), result["grown"]) for result in results]


def one_value(value: Any, rows: int) -> pa.Array:
    """A column whose rows all have the same value, which is there once."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows), [value])


@pytest.fixture(scope="module", params=["translate", "prepare"])
def job(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_ids_that_are_no_names_are_refused(job: str, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    rows = 20_000
    table = pa.table({"image": [b"x"] * rows, "id": one_value("y" * 20_000, rows)})
    pq.write_table(table, path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 100_000, "400 MB, if every row had its own"
    [(found, grown)] = read(job, path)
    (reason,) = found
    assert "DamagedFile" in reason or "holds a value of more than 1024 bytes" in reason
    assert grown < 100 * MB


@pytest.mark.parametrize("nested", [False, True])
def test_a_large_value_that_stands_in_many_rows_is_held_a_few_times(job: str, nested: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    images = one_value(bytes(12 * MB), 100)
    values = pa.StructArray.from_arrays([images, pa.array(["x"] * 100)], ["bytes", "path"]) if nested else images
    pq.write_table(pa.table({"image": values}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 50_000
    (found, grown), (refused, _) = read(job, path, 256 * 2**20, 10 * MB)
    assert found == {"read": 100} and grown < 300 * MB, "1.2 GB, if every row had its own"
    assert refused == {"FileTooLarge": 100}


def test_rows_of_row_groups_are_the_rows_that_were_listed(job: str, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    rows = [png(shade) if shade % 7 else None for shade in range(100)]
    pq.write_table(pa.table({"id": list(map(str, range(100))), "image": rows}), path, row_group_size=30)
    [(found, _)] = read(job, path)
    assert found == {"read": 85, "EmptyFile": 15}


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.int32()), pa.struct([("x", pa.int32())]), pa.map_(pa.string(), pa.int32())]
)
def test_ids_that_are_nested_are_refused(job: str, kind: pa.DataType, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [b"x"], "id": pa.nulls(1, kind)}), path)
    [(found, _)] = read(job, path)
    (reason,) = found
    assert "not plain values" in reason or reason == "DamagedFile"
