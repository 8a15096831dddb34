"""Manifests out of spreadsheets, other systems and data sets: they are read, or say why not."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from p2p.errors import BadInputError, ConfigError
from p2p.preparation.locations import SourceReader
from p2p.preparation.tables import pair_tables
from p2p.translation.corpus.addresses import AddressRules
from p2p.translation.corpus.corpus import open_corpus
from p2p.translation.corpus.inputs import DAMAGED
from p2p.translation.corpus.manifest import MAX_LINE_BYTES, ManifestCorpus, SignedAddresses
from p2p.translation.pipeline.fetching import InputFetcher

NAMES = ("a.png", "b c.png", "d,e.png", "f%20g.png", "ü.png", "ਊĊ.png")


def image(shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in NAMES:
        (tmp_path / name).write_bytes(image())
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def read(folder: Path, name: str, content: bytes) -> tuple[list[str], list[str]]:
    """The files that a manifest's lines name, and the reasons of the others."""
    (folder / name).write_bytes(content)
    fetcher, good, bad = InputFetcher(""), [], []
    for item in open_corpus(str(folder / name)).items():
        (found,) = fetcher.fetch([item])
        if isinstance(found, BadInputError):
            bad.append(f"{found.kind}: {found}")
        else:
            good.append(item.source_uri.rpartition("/")[2])
    return good, bad


LISTS = {
    "comment.txt": (b"# the list\n#another\n\na.png\n", ["a.png"]),
    "comments.txt": (b"// of two\na.png\n; of one\n//\n;\tx\nb c.png\n", ["a.png", "b c.png"]),
    "apostrophes.csv": (b"url,caption\n'a.png','x'\n 'b c.png' ,y\n\"'d,e.png'\",z\n", ["a.png", "b c.png", "d,e.png"]),
    "tabs.txt": (b"a.png\tcaption one\nb c.png\tcaption two\n", ["a.png", "b c.png"]),
    "quoted.txt": (b'"a.png"\n\'b c.png\'\t"with a caption"\n', ["a.png", "b c.png"]),
    "bom.txt": ("\ufeffa.png\r\nb c.png\r\n".encode(), ["a.png", "b c.png"]),
    "utf16.txt": ("a.png\r\nਊĊ.png\r\nb c.png".encode("utf-16"), ["a.png", "ਊĊ.png", "b c.png"]),
    "utf16be.txt": ("\ufeffਊĊ.png\nü.png\n".encode("utf-16-be"), ["ਊĊ.png", "ü.png"]),
    "utf16le.txt": ("a.png\r\nü.png\r\n".encode("utf-16-le"), ["a.png", "ü.png"]),
    "home.txt": (b"~/a.png\n", ["a.png"]),
    "semicolons.csv": (b"url;caption\na.png;x\nb c.png;\n", ["a.png", "b c.png"]),
    "tabs.tsv": (b"URL\tTEXT\na.png\tx\n", ["a.png"]),
    "upper.csv": (b'\xef\xbb\xbfCaption,URL\r\nx,"d,e.png"\r\n', ["d,e.png"]),
    "utf16.csv": ("url,x\na.png,1\nü.png,2\n".encode("utf-16"), ["a.png", "ü.png"]),
    "index.csv": (b",file_name\n0,a.png\n1,b c.png\n", ["a.png", "b c.png"]),
    "percent.txt": (b"f%20g.png\n", ["f%20g.png"]),
    "old_mac.txt": (b"a.png\rb c.png\r\rf%20g.png", ["a.png", "b c.png", "f%20g.png"]),
    "old_mac.csv": (b"url,caption\ra.png,x\rb c.png,y\r", ["a.png", "b c.png"]),
    "old_mac_utf16.csv": ("url,x\ra.png,1\rਊĊ.png,2\r".encode("utf-16"), ["a.png", "ਊĊ.png"]),
    "mixed.txt": (b"a.png\rb c.png\nf%20g.png\r\n", ["a.png", "b c.png", "f%20g.png"]),
    "break_in_cell.csv": (b'url,caption\r\n"a.png","two\rlines"\r\nb c.png,x\r\n', ["a.png", "b c.png"]),
    "excel.csv": (b"sep=;\r\nurl;caption\r\na.png;x, y\r\n", ["a.png"]),
    "excel_pipes.csv": ("\ufeffSEP=|\nurl|x,y\nd,e.png|2\n".encode(), ["d,e.png"]),
}


@pytest.mark.parametrize("name", LISTS)
def test_it_is_read(folder: Path, name: str) -> None:
    content, expected = LISTS[name]
    assert read(folder, name, content) == (expected, [])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_lines_end_alike_wherever_the_file_is_cut_into_blocks(folder: Path, encoding: str, end: str) -> None:
    limit, width = MAX_LINE_BYTES, len("x".encode(encoding))
    lengths = [(limit - 40) // width + more for more in range(9)] + [3, limit, limit // width + 5, 3 * limit, 4]
    lines = [f"{number:x}" + "x" * (length - 1) for number, length in enumerate(lengths)]
    (folder / "x.txt").write_bytes(end.join(lines).encode(encoding))
    entries = list(ManifestCorpus(str(folder / "x.txt"), AddressRules(str(folder))).entries())
    assert [entry.line for entry in entries] == list(range(1, len(lines) + 1))
    sizes = [len((line + end).encode(encoding)) for line in lines]
    assert [entry.position for entry in entries] == [sum(sizes[:number]) for number in range(len(sizes))]
    expected = ["" if size > limit else line for size, line in zip(sizes, lines, strict=True)]
    assert [entry.address for entry in entries] == expected


def test_file_addresses_are_percent_encoded(folder: Path) -> None:
    lines = [f"file://{folder}/a.png", f"file://localhost{folder}/b%20c.png", f"FILE:{folder}/%C3%BC.png"]
    assert read(folder, "x.txt", "\n".join(lines).encode()) == (["a.png", "b c.png", "ü.png"], [])
    with pytest.raises(BadInputError, match="outside"):
        AddressRules(str(folder)).resolve(f"file://{folder}/%2e%2e/x.png")


BAD_LINES = {
    "C:\\data\\a.png": r"BadAddress: C:\\data\\a\.png is a path of Windows",
    "\\\\server\\a.png": "BadAddress: .* is a path of Windows",
    "sub\\a.png": r"NotFound: no file lies at /.*/sub\\a\.png.*separated by /",
    "b%20c.png": "NotFound: no file lies at /.*/b%20c.png.*as they stand",
    "*.png": r"NotFound: no file lies at /.*/\*\.png.*patterns are not followed",
    "a?.png": r"NotFound: .*patterns are not followed",
    "$DATA/a.png": "NotFound: .*names of the environment are not replaced",
    "s3:/bucket/a.png": "NotFound: .*begin like https:// and s3://",
    "a.png, a caption": r"NotFound: .*stands behind a tab, or the list is a \.csv",
    "a.png 0": "NotFound: .*stands behind a tab",
    "/elsewhere/a.png": "AddressRefused: /elsewhere/a.png is outside of /.*; see --allow-local",
    ".": "Refused: /.*: is a folder",
    "gone.png": "NotFound: no file lies at /.*/gone.png, or no longer$",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_the_reason_is_true_and_names_the_address(folder: Path, line: str) -> None:
    good, bad = read(folder, "x.txt", f"a.png\n{line}\n".encode())
    assert good == ["a.png"]
    assert len(bad) == 1 and re.match(BAD_LINES[line], bad[0]), bad


@pytest.mark.parametrize(
    "line, what", [('{"image": "a.png"}', "JSON"), ('["a.png",', "JSON"), ("[", "JSON"), ("<!DOCTYPE html>", "HTML")]
)
def test_what_is_no_list_is_refused(folder: Path, line: str, what: str) -> None:
    (folder / "x.txt").write_text(line)
    with pytest.raises(ConfigError, match=f"holds {what}.*one address in a line"):
        open_corpus(str(folder / "x.txt"))


def test_a_table_without_names_of_columns_says_so(folder: Path) -> None:
    (folder / "x.csv").write_text("a.png\nb c.png\n")
    with pytest.raises(ConfigError, match=r"its first line \(a\.png\) names no columns"):
        open_corpus(str(folder / "x.csv"))


def test_signed_addresses_of_a_wide_list_are_found_again(folder: Path) -> None:
    signed = [f"https://example.com/{number}ਊ.png?token=secret{number}" for number in range(5)]
    (folder / "x.txt").write_bytes("\r\n".join(["a.png", *signed]).encode("utf-16"))
    manifest = ManifestCorpus(str(folder / "x.txt"), AddressRules(str(folder), allow_signed=True))
    items = list(manifest.items())
    assert "secret" not in str(items)
    finder = SignedAddresses(manifest)
    assert [finder.find(item.offset) for item in (items[4], items[1], items[5])] == [signed[3], signed[0], signed[4]]


# --- Parquet
PNGS = [image(shade) for shade in (10, 20, 30)]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
STRUCTS = [{"bytes": data, "path": f"{number}.png"} for number, data in enumerate(PNGS)]
COLUMNS: dict[str, pa.Array] = {
    "binary": pa.array(PNGS),
    "large_binary": pa.array(PNGS, pa.large_binary()),
    "binary_view": pa.array(PNGS, pa.binary_view()),
    "dictionary": pa.array(PNGS).dictionary_encode(),
    "struct": pa.array(STRUCTS, STRUCT),
}


def write(path: Path, **columns: Any) -> str:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path)


@pytest.mark.parametrize("kind", COLUMNS)
def test_every_kind_of_bytes_is_read_by_both_jobs(tmp_path: Path, kind: str) -> None:
    uri = write(tmp_path / "x.parquet", image=COLUMNS[kind])
    corpus = open_corpus(uri)
    items = list(corpus.items())
    assert InputFetcher(corpus.image_column).fetch(items) == PNGS
    reader = SourceReader()
    assert [reader(pair.a) for pair in pair_tables(uri, "combined", 0.0).pairs] == PNGS


@pytest.mark.parametrize("kind", ["string", "dictionary", "string_view"])
def test_ids_of_every_kind_of_text(tmp_path: Path, kind: str) -> None:
    names = pa.array(["x", "y", "z"])
    ids = {"string": names, "dictionary": names.dictionary_encode(), "string_view": names.cast(pa.string_view())}
    uri = write(tmp_path / "x.parquet", image=COLUMNS["binary"], image_id=ids[kind])
    assert [item.image_id for item in open_corpus(uri).items()] == ["x", "y", "z"]


def test_a_data_set_of_paths_is_read_through_them(folder: Path) -> None:
    paths = [{"bytes": None, "path": name} for name in ("a.png", "ü.png", "../out.png")]
    uri = write(folder / "list.parquet", image=pa.array(paths, STRUCT))
    items = list(open_corpus(uri).items())
    assert [item.image_id for item in items if item.row != DAMAGED] == ["a.png", "ü.png"]
    assert [item.reason.split(":")[0] for item in items if item.row == DAMAGED] == ["AddressRefused"]
    assert {item.image_id for item in open_corpus(str(folder)).items()} == set(NAMES)
    with pytest.raises(ConfigError, match="column 'image' holds paths and no bytes; give the folder of those images"):
        pair_tables(uri, "auto", 0.0)


REASONS: dict[str, tuple[pa.Array, str]] = {
    "lists of structs": (pa.array([[row] for row in STRUCTS], pa.list_(STRUCT)), "holds lists of images"),
    "lists of bytes": (pa.array([[data] for data in PNGS]), "holds lists of images; write one image in each row"),
    "lists of numbers": (pa.array([[1, 2]] * 3), "holds lists of numbers, perhaps pixels; encode them as PNG"),
    "raw pixels": (pa.array([bytes(192)] * 3, pa.binary(192)), "holds 192 bytes in every row: raw pixels perhaps"),
    "structs of structs": (pa.array([{"image": row} for row in STRUCTS]), "holds other columns; write their images"),
    "maps": (pa.array([[("x", b"1")]] * 3, pa.map_(pa.string(), pa.binary())), "holds other columns"),
    "nothing": (pa.nulls(3), "holds nothing in any row"),
    "base64": (pa.array([base64.b64encode(data).decode() for data in PNGS]), "base64"),
}


@pytest.mark.parametrize("kind", REASONS)
def test_other_columns_give_a_true_reason_in_both_jobs(tmp_path: Path, kind: str) -> None:
    column, reason = REASONS[kind]
    uri = write(tmp_path / "below/x.parquet", image=column)
    for job in (
        lambda: open_corpus(uri),
        lambda: open_corpus(str(tmp_path)),
        lambda: pair_tables(uri, "auto", 0.0),
    ):
        with pytest.raises(ConfigError, match=reason):
            job()


def test_addresses_in_a_folder_of_tables_say_what_to_give(tmp_path: Path) -> None:
    write(tmp_path / "below/x.parquet", URL=["http://example.com/a.png"], TEXT=["x"])
    with pytest.raises(ConfigError, match="column 'URL' holds addresses; translate takes one such file as a manifest"):
        open_corpus(str(tmp_path), image_column="URL")
    (item,) = open_corpus(str(tmp_path / "below/x.parquet")).items()
    assert item.source_uri == "http://example.com/a.png"
