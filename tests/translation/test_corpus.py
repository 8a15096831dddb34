"""What a source holds, and what is told when it holds nothing."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from p2p.errors import BadInputError, UsageError
from p2p.translation.corpus.corpus import open_corpus
from p2p.translation.corpus.inputs import DAMAGED
from p2p.translation.pipeline.fetching import InputFetcher


def ids(source: Path | str, **options: str) -> list[str]:
    return [item.image_id for item in open_corpus(str(source), **options).items()]


def contents(source: Path | str, **options: str) -> dict[str, bytes | str]:
    """Every input's bytes, through the reader that the job uses; the kind of error where there are none."""
    corpus = open_corpus(str(source), **options)
    fetcher = InputFetcher(corpus.image_column)
    found = {}
    for unit in fetcher.units(list(corpus.items())):
        for item, data in zip(unit, fetcher.fetch(unit), strict=True):
            found[item.image_id] = data.kind if isinstance(data, BadInputError) else data
    return found


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_a_folder_gives_images_by_relative_path_whatever_their_names(tmp_path: Path) -> None:
    names = ["b.jpg", "sub/a.PNG", "with space.png", "ünï/cödé.webp", "a::b.png", "q?#[1]*.png"]
    for name in [*names, "notes.txt", ".hidden.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    assert contents(tmp_path) == {name: name.encode() for name in names}
    assert ids(tmp_path / "b.jpg") == ["b.jpg"]


def test_parquet_uses_the_images_column_and_an_id_column_if_there_is_one(tmp_path: Path) -> None:
    rows = [f"image {number}".encode() for number in range(10)]
    pq.write_table(pa.table({"n": range(10), "jpg": rows}), tmp_path / "x.parquet", row_group_size=4)
    assert contents(tmp_path / "x.parquet") == {f"x.parquet#{number}": row for number, row in enumerate(rows)}
    folder = tmp_path / "set"
    (folder / "errors").mkdir(parents=True)
    pq.write_table(pa.table({"message": ["no images here"]}), folder / "errors" / "part-00000.parquet")
    pq.write_table(pa.table({"pair_id": ["p", "q"], "a": [b"1", b"2"], "b": [b"3", None]}), folder / "part.parquet")
    assert contents(folder) == {"p": b"1", "q": b"2"}
    assert contents(folder, input_side="b") == {"p": b"3", "q": "EmptyFile"}
    assert contents(folder, image_column="b") == {"p": b"3", "q": "EmptyFile"}
    nested = pa.array([{"bytes": b"x", "path": "p"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    (tmp_path / "drift").mkdir()
    pq.write_table(pa.table({"image": nested}), tmp_path / "drift" / "hf.parquet")
    assert contents(tmp_path / "drift" / "hf.parquet") == {"hf.parquet#0": b"x"}
    pq.write_table(pa.table({"image": [b"y"]}), tmp_path / "drift" / "a.parquet")
    assert contents(tmp_path / "drift") == {"a.parquet#0": b"y", "hf.parquet#0": b"x"}


def test_tars_are_read_in_place(tmp_path: Path) -> None:
    members = {f"{number}.jpg": bytes([number]) * (number * 700_000 + 1) for number in range(20)}
    write_tar(tmp_path / "one.tar", {**members, "1.json": b"{}"})
    assert contents(tmp_path / "one.tar") == members
    write_tar(tmp_path / "two.tar", {"../../x.png": b"hostile"})
    both = contents(tmp_path)
    assert both["one/3.jpg"] == members["3.jpg"] and both["two/../../x.png"] == b"hostile"


@pytest.mark.parametrize("kind", ["txt", "csv", "parquet"])
def test_manifests_name_relative_and_whole_addresses(tmp_path: Path, kind: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"a")
    (tmp_path / "b.png").write_bytes(b"b")
    addresses = ["images/a.png", str(tmp_path / "b.png"), "gone.png"]
    path = tmp_path / f"list.{kind}"
    if kind == "txt":
        path.write_text("\n".join(addresses) + "\n\n")
    elif kind == "csv":
        path.write_text("uri,other\n" + "".join(f"{address},1\n" for address in addresses))
    else:
        pq.write_table(pa.table({"uri": addresses}), path)
    expected = {"images/a.png": b"a", str(tmp_path / "b.png").lstrip("/"): b"b", "gone.png": "NotFound"}
    assert contents(path) == expected


def test_a_manifest_may_name_its_images(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("image_id,uri\nfirst,x.png\n")
    assert ids(tmp_path / "list.csv") == ["first"]


def test_s3_prefixes_tars_and_parquet_read_like_folders(tmp_path: Path, s3) -> None:
    from p2p.storage.filesystems import write_bytes

    for name in ("a.png", "sub/b c.png", "sub/q[1]#.png"):
        write_bytes(s3.uri("folder", name), name.encode())
    expected = {name: name.encode() for name in ("a.png", "sub/b c.png", "sub/q[1]#.png")}
    assert contents(s3.uri("folder")) == expected
    write_tar(tmp_path / "x.tar", expected)
    write_bytes(s3.uri("x.tar"), (tmp_path / "x.tar").read_bytes())
    assert contents(s3.uri("x.tar")) == expected
    for length, second in ((1536, {}), (1540, {"sub/b c.png": "DamagedImage"})):  # nothing behind a header, or little
        write_bytes(s3.uri("cut.tar"), (tmp_path / "x.tar").read_bytes()[:length])
        assert contents(s3.uri("cut.tar")) == {"a.png": b"a.png", **second, "cut.tar": "DamagedFile"}
    pq.write_table(pa.table({"id": list(expected), "image": list(expected.values())}), tmp_path / "x.parquet")
    write_bytes(s3.uri("x.parquet"), (tmp_path / "x.parquet").read_bytes())
    assert contents(s3.uri("x.parquet")) == expected


def test_what_cannot_be_a_source_is_refused_in_one_line(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match="it is empty"):
        open_corpus(str(empty))
    (empty / "readme.md").write_text("x")
    with pytest.raises(UsageError, match=r"no images .* found 1 \.md"):
        open_corpus(str(empty))
    with pytest.raises(UsageError, match="expected a folder"):
        open_corpus(str(empty / "readme.md"))
    (tmp_path / "broken.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(UsageError, match="cannot be read as Parquet"):
        open_corpus(str(tmp_path / "broken.parquet"))
    pq.write_table(pa.table({"x": [b"1"], "y": [b"2"]}), tmp_path / "two.parquet")
    with pytest.raises(UsageError, match="--image-column, one of x, y"):
        open_corpus(str(tmp_path / "two.parquet"))
    with pytest.raises(UsageError, match="no such column"):
        open_corpus(str(tmp_path / "two.parquet"), "z")
    pq.write_table(pa.table({"number": [1]}), tmp_path / "none.parquet")
    with pytest.raises(UsageError, match="none of its columns"):
        open_corpus(str(tmp_path / "none.parquet"))
    (tmp_path / "bad.tar").write_bytes(b"x" * 2000)
    with pytest.raises(UsageError, match="not a readable tar"):
        ids(tmp_path / "bad.tar")
    with pytest.raises(UsageError, match="compressed tar"):
        ids_of_compressed(tmp_path)


def ids_of_compressed(folder: Path) -> list[str]:
    (folder / "x.tar.gz").write_bytes(b"")
    return ids(folder / "x.tar.gz")


def parquet(path: Path, **columns: list[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_a_folder_of_two_kinds_is_refused_with_what_is_there(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"image")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / "0.png.md5").write_text("x")
    (tmp_path / "unpacked.tar.gz").write_bytes(b"x")
    parquet(tmp_path / "labels" / "a.parquet", label=["x"])
    assert len(ids(tmp_path)) == 3
    parquet(tmp_path / "rows" / "a.parquet", image=[b"1", b"2"])
    with pytest.raises(UsageError, match=r"3 images and 1 Parquet file; .* pass --image-column"):
        open_corpus(str(tmp_path))
    assert contents(tmp_path, image_column="image") == {"rows/a.parquet#0": b"1", "rows/a.parquet#1": b"2"}
    (tmp_path / "rows" / "a.parquet").unlink()
    write_tar(tmp_path / "x.tar", {"a.png": b"1"})
    with pytest.raises(UsageError, match="3 images and 1 compressed tar and 1 tar; which are meant"):
        open_corpus(str(tmp_path))
    tars = tmp_path / "tars"
    tars.mkdir()
    (tmp_path / "x.tar").rename(tars / "x.tar")
    (tars / "y.tar.gz").write_bytes(b"x")
    with pytest.raises(UsageError, match="1 tar and 1 compressed tar"):
        open_corpus(str(tars))


def test_another_kind_is_found_however_late_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2p.translation.corpus.formats._MAX_FILES_INSPECTED", 3)
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(b"image")
    write_tar(tmp_path / "x.tar", {"a.png": b"1"})
    with pytest.raises(UsageError, match="5 images and 1 tar"):
        ids(tmp_path)


def test_options_for_parquet_mean_nothing_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"image")
    (tmp_path / "list.txt").write_text("a.png")
    for source in (tmp_path, tmp_path / "a.png", tmp_path / "list.txt"):
        for option in ("image_column", "id_column"):
            with pytest.raises(UsageError, match=f"^{option} x: .* leave the option out"):
                open_corpus(str(source), **{option: "x"})


def test_tables_beside_images_in_parquet_are_left_out_wherever_they_lie(tmp_path: Path) -> None:
    parquet(tmp_path / "a" / "labels.parquet", label=["x"])
    parquet(tmp_path / "errors" / "b.parquet", image=[b"an image of a folder that is called errors"])
    assert list(contents(tmp_path)) == ["errors/b.parquet#0"]


def test_the_column_of_ids_can_be_chosen(tmp_path: Path) -> None:
    parquet(tmp_path / "x.parquet", id=[7, None, 7], name=["a", "", "b"], image=[b"1", b"2", b"3"])
    numbered = ["x.parquet#0", "x.parquet#1", "x.parquet#2"]
    assert ids(tmp_path / "x.parquet") == ["7", "x.parquet#1", "7"]
    assert ids(tmp_path / "x.parquet", id_column="name") == ["a", "x.parquet#1", "b"]
    assert ids(tmp_path / "x.parquet", id_column="none") == numbered
    with pytest.raises(UsageError, match=r"id_column no: .* its columns are id, name, image"):
        open_corpus(str(tmp_path / "x.parquet"), id_column="no")


def test_a_damaged_tar_costs_only_what_cannot_be_read_of_it(tmp_path: Path) -> None:
    members = {f"{number}.png": bytes([number]) * 3000 for number in range(4)}
    write_tar(tmp_path / "a.tar", members)
    whole = (tmp_path / "a.tar").read_bytes()
    start = [0, 3584, 7168, 10752]  # of each member's header
    damaged = {
        "cut_in_data": (whole[: start[2] + 1000], ["0.png", "1.png"], ["2.png"]),
        "cut_in_header": (whole[: start[2] + 100], ["0.png", "1.png"], []),
        "broken_header": (whole[: start[2]] + b"x" * 512 + whole[start[2] + 512 :], ["0.png", "1.png"], []),
        "empty": (b"", [], []),
        "no_tar": (b"x" * 2000, [], []),
    }
    for name, (data, _, _) in damaged.items():
        (tmp_path / f"{name}.tar").write_bytes(data)
    found = contents(tmp_path)
    expected: dict[str, bytes | str] = {f"a/{member}": data for member, data in members.items()}
    for name, (_, good, bad) in damaged.items():
        expected |= {f"{name}/{member}": members[member] for member in good}
        expected |= {f"{name}/{member}": "DamagedImage" for member in bad}
        expected[f"{name}.tar"] = "DamagedFile"
    assert found == expected
    assert contents(tmp_path / "cut_in_header.tar") == {
        "0.png": members["0.png"],
        "1.png": members["1.png"],
        "cut_in_header.tar": "DamagedFile",
    }
    for name in ("empty", "no_tar"):
        with pytest.raises(UsageError, match="not a readable tar"):
            ids(tmp_path / f"{name}.tar")


def test_a_hostile_tar_is_one_failed_row_beside_what_was_read_before_it(tmp_path: Path) -> None:
    write_tar(tmp_path / "good.tar", {"0.png": b"good"})
    write_tar(tmp_path / "some.tar", {"0.png": b"some"})
    some = (tmp_path / "some.tar").read_bytes()[:1024]
    hostile = {"large": (tarfile.XHDTYPE, 2**33), "claim": (tarfile.REGTYPE, 2**61), "back": (tarfile.REGTYPE, -1024)}
    for name, (type, size) in hostile.items():
        info = tarfile.TarInfo("1.png")
        info.type, info.size = type, size
        (tmp_path / f"{name}.tar").write_bytes(some + info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    (tmp_path / "some.tar").unlink()
    os.mkfifo(tmp_path / "pipe.tar")
    expected: dict[str, bytes | str] = {"good/0.png": b"good", "pipe.tar": "DamagedFile", "claim/1.png": "DamagedImage"}
    for name in hostile:
        expected |= {f"{name}/0.png": b"some", f"{name}.tar": "DamagedFile"}
    assert contents(tmp_path) == expected
    damaged = {item.source_uri: item.offset for item in open_corpus(str(tmp_path)).items() if item.row == DAMAGED}
    assert [damaged[str(tmp_path / f"{name}.tar")] for name in hostile] == [1024, 1536, 1024]


def test_a_damaged_parquet_file_costs_only_what_cannot_be_read_of_it(tmp_path: Path) -> None:
    images = [bytes([number]) * 1000 for number in range(100)]
    table = pa.table({"id": [f"{number}" for number in range(100)], "image": images})
    pq.write_table(table.slice(0, 10), tmp_path / "b.parquet")
    pq.write_table(table.slice(10), tmp_path / "c.parquet", row_group_size=45, compression="none", use_dictionary=False)
    whole = (tmp_path / "c.parquet").read_bytes()
    footer = pq.ParquetFile(tmp_path / "c.parquet").metadata
    second = footer.row_group(1).column(1).data_page_offset
    (tmp_path / "c.parquet").write_bytes(whole[:second] + b"\xff" * 500 + whole[second + 500 :])
    ids_of_first = footer.row_group(0).column(0).data_page_offset
    (tmp_path / "d.parquet").write_bytes(whole[:ids_of_first] + b"\xff" * 100 + whole[ids_of_first + 100 :])
    (tmp_path / "a.parquet").write_bytes(whole[:5000])
    (tmp_path / "e.parquet").write_bytes(b"")
    found = contents(tmp_path)
    expected: dict[str, bytes | str] = {f"{number}": images[number] for number in range(55)}
    expected |= {f"{number}": "DamagedFile" for number in range(55, 100)}
    assert found == expected | {f"{name}.parquet": "DamagedFile" for name in "ade"}


def test_a_parquet_file_of_nothing_is_one_failed_row(tmp_path: Path) -> None:
    parquet(tmp_path / "good.parquet", image_id=["a"], image=[b"1"])
    nothing = pa.table({"image_id": pa.nulls(1_000_000, pa.string()), "image": pa.nulls(1_000_000, pa.binary())})
    pq.write_table(nothing, tmp_path / "nothing.parquet")
    assert contents(tmp_path) == {"a": b"1", "nothing.parquet": "DamagedFile"}
    with pytest.raises(UsageError, match="has 1000000 rows in"):
        open_corpus(str(tmp_path / "nothing.parquet"))
    parquet(tmp_path / "table.parquet", n=[1] * 1_000_000)  # no images, so none are missing
    assert set(contents(tmp_path)) == {"a", "nothing.parquet"}


def test_the_footer_of_a_file_is_read_once(tmp_path: Path) -> None:
    """One of 100,000 row groups takes a tenth of a second to read."""
    path = tmp_path / "long.parquet"
    pq.write_table(pa.table({"image": [b"1", b"2"]}), path, row_group_size=1)
    first, second = list(open_corpus(str(path)).items())
    fetcher = InputFetcher("image")
    assert fetcher.fetch([first]) == [b"1"]
    with open(path, "r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"        ")
    assert fetcher.fetch([second]) == [b"2"]
