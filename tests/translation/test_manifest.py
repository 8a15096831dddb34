"""Lines of a manifest: what they may name, and what becomes of those that they may not."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from p2p.errors import BadInputError, UsageError
from p2p.translation.corpus.addresses import AddressRules
from p2p.translation.corpus.corpus import open_corpus
from p2p.translation.corpus.inputs import Input
from p2p.translation.corpus.manifest import MAX_LINE_BYTES, ManifestCorpus, SignedAddresses
from p2p.translation.pipeline.fetching import InputFetcher

SIGNED = "https://host.example/a.png?id=7&X-Amz-Signature=abcdef"


def reasons(source: Path, **options: object) -> dict[str, str]:
    """Each input's kind of refusal, empty for those that are followed."""
    items = list(open_corpus(str(source), **options).items())  # type: ignore[arg-type]
    return {item.image_id: item.reason.partition(":")[0] for item in items}


@pytest.mark.parametrize(
    "line",
    [
        *("ftp://127.0.0.1/x.png", "dbfs://x/y.png", "jupyter://x/y.png", "generic://x", "gist://a/b.png", "data://x"),
        *("filecache::file:///etc/hosts", "reference::http://127.0.0.1/x", "async_wrapper::file:///etc/hosts"),
        *("zip://a.png::s3://bucket/x.zip", "simplecache::http://h/x.png", "s3://bucket/a.png::file:///etc/hosts"),
        *("/etc/shadow", "file:///etc/hosts", "local:///etc/hosts", "FILE:///etc/hosts", "../private/scan.png"),
        *("images/../../private/scan.png", "memory://x.png", "github://org:repo@/x.png"),
    ],
)
def test_a_line_may_not_lead_elsewhere(tmp_path: Path, line: str) -> None:
    (tmp_path / "list.txt").write_text(f"good.png\n{line}\n")
    found = reasons(tmp_path / "list.txt")
    assert sorted(found.values()) == ["", "AddressRefused"]


@pytest.mark.parametrize(
    "line",
    [
        *("s3://bucket/a.png", "s3a://bucket/a.png", "gs://bucket/a.png", "gcs://b/a.png", "http://host.example/a.png"),
        *("HTTPS://host.example/a.png?size=3", "images/a.png", "./a.png", "a::b.png", "images/../b.png", "a b#[1].png"),
    ],
)
def test_buckets_web_servers_and_files_below_the_manifest_are_followed(tmp_path: Path, line: str) -> None:
    (tmp_path / "list.txt").write_text(line)
    assert list(reasons(tmp_path / "list.txt").values()) == [""]


def test_another_folder_is_followed_where_it_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "images").mkdir()
    outside = tmp_path / "images" / "a.png"
    (tmp_path / "lists" / "list.txt").write_text(f"{outside}\n../images/b.png\n{tmp_path}/imagesx/c.png\n")
    assert set(reasons(tmp_path / "lists" / "list.txt").values()) == {"AddressRefused"}
    allowed = reasons(tmp_path / "lists" / "list.txt", local_root=str(tmp_path / "images"))
    assert list(allowed.values()) == ["", "", "AddressRefused"]


def test_a_manifest_in_a_bucket_names_no_file_of_the_machine_that_reads_it(tmp_path: Path) -> None:
    rules = AddressRules("s3://bucket/lists")
    assert rules.resolve("a/b.png") == "s3://bucket/lists/a/b.png"
    for line in ("/etc/hosts", "file:///etc/hosts", "../x.png"):
        with pytest.raises(BadInputError) as caught:
            rules.resolve(line)
        assert caught.value.kind == "AddressRefused"
    assert AddressRules("s3://bucket/lists", str(tmp_path)).resolve(f"file://{tmp_path}/x.png") == f"{tmp_path}/x.png"


@pytest.mark.parametrize("kind", ["txt", "csv", "parquet"])
def test_a_signature_is_asked_for_and_stands_in_no_input(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"list.{kind}"
    lines = ["ünï.png", SIGNED, "b.png"]
    if kind == "parquet":
        pq.write_table(pa.table({"uri": lines}), path, row_group_size=1)
    else:
        path.write_text(("uri\n" if kind == "csv" else "\ufeff") + "\n".join(lines))
    assert list(reasons(path).values()) == ["", "SignedAddress", ""]
    corpus = open_corpus(str(path), allow_signed=True)
    assert isinstance(corpus, ManifestCorpus)
    items = list(corpus.items())
    assert [item.reason for item in items] == ["", "", ""] and items[0].source_uri == str(tmp_path / "ünï.png")
    assert "abcdef" not in str(items) and SignedAddresses(corpus).find(items[1].offset) == SIGNED
    assert items[1].image_id == "host.example/a.png?id=7&X-Amz-Signature=***"
    (failed,) = InputFetcher("", manifest=corpus, allow_private=False).fetch([items[1]])
    assert isinstance(failed, BadInputError) and "abcdef" not in str(failed)


def test_an_address_that_has_moved_within_the_manifest_is_not_taken_for_another(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text(f"{SIGNED}\n{SIGNED.replace('a.png', 'b.png')}\n")
    corpus = open_corpus(str(path), allow_signed=True)
    second = list(corpus.items())[1]
    fetcher = InputFetcher("", manifest=corpus)  # type: ignore[arg-type]
    for changed in (f"x.png\n{SIGNED}\n", f"{SIGNED}\n{SIGNED.replace('a.png', 'c.png')}\n", ""):
        path.write_text(changed)
        (failed,) = fetcher.fetch([second])
        assert isinstance(failed, BadInputError) and failed.kind == "AddressChanged"


def test_passwords_are_refused_always(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("https://user:pa@ss@host.example/a.png\ns3://key:secret@bucket/a.png\n")
    items = list(open_corpus(str(tmp_path / "list.txt"), allow_signed=True).items())
    assert [item.reason.partition(":")[0] for item in items] == ["SignedAddress", "SignedAddress"]
    assert "ss@" not in str(items) and "secret" not in str(items)


def test_a_bad_line_is_an_input_that_fails_and_the_others_are_read(tmp_path: Path) -> None:
    lines = [b"a.png", b"x" * (MAX_LINE_BYTES + 1), b"\xff\xfe.png", b"", b"nul\0.png", b"esc\x1b[2J.png", b"b.png"]
    (tmp_path / "list.txt").write_bytes(b"\n".join(lines))
    items = list(open_corpus(str(tmp_path / "list.txt")).items())
    assert [item.reason.partition(":")[0] for item in items] == ["", *["BadAddress"] * 4, ""]
    assert [Path(item.source_uri).name for item in items if not item.reason] == ["a.png", "b.png"]


def test_a_row_without_an_address_is_an_input_that_fails(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("image_id,uri\nfirst,a.png\nsecond,\nthird\n\n,b.png\n")
    assert reasons(tmp_path / "list.csv") == {"first": "", "second": "BadAddress", "third": "BadAddress", "b.png": ""}
    table = pa.table({"image_id": ["first", "second", None], "uri": ["a.png", None, "b.png"]})
    pq.write_table(table, tmp_path / "list.parquet")
    assert reasons(tmp_path / "list.parquet") == {"first": "", "second": "BadAddress", "b.png": ""}


def test_a_row_without_an_address_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text('caption,uri\n"two\nlines",a.png\nonly\n\n,,,\n')
    assert reasons(tmp_path / "list.csv") == {"a.png": "", "line 4": "BadAddress", "line 6": "BadAddress"}
    (tmp_path / "list.txt").write_text("# comment\n\n../x.png\n../x.png\n")
    assert reasons(tmp_path / "list.txt") == dict.fromkeys(("../x.png", "../x.png (line 4)"), "AddressRefused")


@pytest.mark.parametrize(
    "content", ["uri\na.png\n" + "x" * 140_000 + "\n", 'uri\n"a.png\n' * 2, "uri\na.png\n" + '"' + "x\n" * 80_000 + '"']
)
def test_a_csv_that_cannot_be_parsed_is_reported_with_its_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "list.csv"
    path.write_text(content)
    try:
        items: list[Input] = list(open_corpus(str(path)).items())
    except UsageError as error:
        assert "line " in str(error) and "\n" not in str(error)
    else:
        assert len(items) == 1  # a quote that never ends: the rest is one field, with control characters in it
        assert items[0].reason.startswith("BadAddress")


def test_values_of_a_table_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    one_value = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000), ["x" * 200_000])
    pq.write_table(pa.table({"uri": one_value}), path, store_schema=False)  # and so as text
    assert os.path.getsize(path) < 1_000_000, "4 GB, if every row had its own"
    with pytest.raises(UsageError, match="more than 65536 bytes"):
        list(open_corpus(str(path)).items())


def test_an_escaped_name_leads_nowhere_else(tmp_path: Path) -> None:
    """What cannot be written as UTF-8 stands as `\\xe9` in a plan; dots and slashes never do."""
    (tmp_path / "lists").mkdir()
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "a.png").write_bytes(b"secret")
    with open(os.fsencode(tmp_path / "lists") + b"/caf\xe9.png", "wb") as file:
        file.write(b"coffee")
    lines = (r"\x2e\x2e/private/a.png", r"\x2e\x2e\x2fprivate\x2fa.png", r"x/.\x2e/.\x2e/private/a.png", r"caf\xe9.png")
    (tmp_path / "lists" / "list.txt").write_text("\n".join(lines))
    fetcher = InputFetcher("")
    found = [fetcher.fetch([item])[0] for item in open_corpus(str(tmp_path / "lists" / "list.txt")).items()]
    assert [data if isinstance(data, bytes) else data.kind for data in found] == [*["NotFound"] * 3, b"coffee"]


@pytest.mark.parametrize(
    "line",
    [
        *("s3://", "s3:///", "s3://bucket", "s3://bucket/", "s3:///bucket/a.png", "s3://!/a.png", "gs://a b/c.png"),
        *("s3://arn:aws:s3:nowhere-1:123456789012:accesspoint/x/a.png", "s3a://h:80/a.png", "gcs://b?x/a.png"),
    ],
)
def test_a_bucket_has_a_plain_name(tmp_path: Path, line: str) -> None:
    """No file system is asked for others: what it then says would count as storage that is gone."""
    (tmp_path / "list.txt").write_text(f"{line}\ns3://my-bucket.b_1/ a/ü#?.png")
    assert list(reasons(tmp_path / "list.txt").values()) == ["BadAddress", ""]


def test_a_table_of_nothing_is_not_listed(tmp_path: Path) -> None:
    pq.write_table(pa.table({"uri": pa.nulls(1_000_000, pa.string())}), tmp_path / "list.parquet")
    with pytest.raises(UsageError, match="has 1000000 rows in"):
        list(open_corpus(str(tmp_path / "list.parquet")).items())


@pytest.mark.parametrize(
    "query", ["sig=abc def", 'sig="abcdef"', "sig=<abc>def", "a=1&sig=abc\u00a0def&b=2", "%2573ig=abcdef"]
)
@pytest.mark.parametrize("allowed", [False, True])
def test_no_part_of_a_signature_stands_behind_a_gap(tmp_path: Path, query: str, allowed: bool) -> None:
    address = f"https://host.example/a b.png?{query}"
    (tmp_path / "list.txt").write_text(address)
    corpus = open_corpus(str(tmp_path / "list.txt"), allow_signed=allowed)
    assert isinstance(corpus, ManifestCorpus)
    (item,) = corpus.items()
    assert "abc" not in str(item) and "def" not in str(item)
    assert item.reason.partition(":")[0] == ("" if allowed else "SignedAddress")
    if allowed:
        assert unquote(SignedAddresses(corpus).find(item.offset)) == unquote(address)


@pytest.mark.parametrize("kind", ["txt", "csv", "parquet"])
def test_signed_addresses_are_found_in_whatever_order_they_are_asked_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"list.{kind}"
    lines = [f"https://host.example/{number}.png?sig={number}" for number in range(6000)]
    if kind == "parquet":
        pq.write_table(pa.table({"uri": lines}), path, row_group_size=700)
    else:
        path.write_text(("uri\n" if kind == "csv" else "") + "\n".join(lines))
    corpus = open_corpus(str(path), allow_signed=True)
    assert isinstance(corpus, ManifestCorpus)
    places = [item.offset for item in corpus.items()]
    signed = SignedAddresses(corpus)
    for number in (5999, 0, 1, 3, 2, 4500, 4400, 10, 5998, 699, 700):
        assert signed.find(places[number]) == lines[number]
    with pytest.raises(BadInputError, match="has changed"):
        signed.find(places[-1] + 1)


def test_equal_lines_that_are_refused_are_two_inputs(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("/etc/hosts\n/etc/hosts\nftp://h/x.png\nftp://h/x.png\na.png\n")
    found = reasons(tmp_path / "list.txt")
    assert sorted(found.values()) == ["", *["AddressRefused"] * 4] and "etc/hosts (line 2)" in found
