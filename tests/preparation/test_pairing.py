"""From names to pairs: sides, splits, the held-out share, and what cannot be paired."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import UsageError
from p2p.preparation.locations import File
from p2p.preparation.pairing import Pairing, goes_to_val, pair_one_source, pair_two_sources
from p2p.preparation.sources import Listing, Member


def listing(*paths: str, uri: str = "/data") -> Listing:
    return Listing(uri, [Member(path, File(f"{uri}/{path}"), 1) for path in paths])


def found(pairing: Pairing) -> set[tuple[str, str]]:
    return {(pair.split, pair.pair_id) for pair in pairing.pairs}


def one(*paths: str, layout: str = "auto", archive: bool = False) -> Pairing:
    return pair_one_source(listing(*paths), layout, 0.0, archive)


def test_combined_images_split_by_folder_and_keep_their_relative_name() -> None:
    pairing = one("train/1.jpg", "val/1.jpg", "test/x/2.png", "loose.png", "more/3.jpg", "validation/9.jpg")
    assert pairing.layout == "combined"
    assert found(pairing) == {
        ("train", "1"),
        ("val", "1"),
        ("test", "x/2"),
        ("train", "loose"),
        ("train", "more/3"),
        ("val", "9"),
    }
    assert all(pair.b is None for pair in pairing.pairs)


@pytest.mark.parametrize(
    "paths",
    [
        ("A/train/1.png", "B/train/1.jpg", "A/val/2.png", "B/val/2.jpg"),
        ("train/a/1.png", "train/b/1.jpg", "val/a/2.png", "val/b/2.jpg"),
        ("trainA/1.png", "trainB/1.jpg", "valA/2.png", "valB/2.jpg"),
        ("train/labels/1.png", "train/photos/1.jpg", "val/labels/2.png", "val/photos/2.jpg"),
        ("Images/train/1.jpg", "Images/val/2.png", "Masks/train/1.png", "Masks/val/2.png"),
    ],
)
def test_two_folders_are_recognised_with_the_split_above_or_below(paths: tuple[str, ...]) -> None:
    pairing = one(*paths)
    assert pairing.layout == "folders"
    assert found(pairing) == {("train", "1"), ("val", "2")}
    assert not pairing.bad
    side_a = {"a", "traina", "vala", "labels", "masks"}
    for pair in pairing.pairs:
        assert pair.b is not None
        assert any(part.lower() in side_a for part in pair.a.uri.split("/"))
        assert not any(part.lower() in side_a for part in pair.b.uri.split("/"))


def test_folders_of_other_names_are_two_sides_only_when_asked() -> None:
    paths = ("sketch/1.png", "paint/1.png")
    assert one(*paths).layout == "combined"
    pairing = one(*paths, layout="folders")
    assert found(pairing) == {("train", "1")}
    assert "A is paint/, B is sketch/" in pairing.note
    with pytest.raises(UsageError, match=r"two sub-folders .* found x/, y/, z/"):
        one("x/1.png", "y/1.png", "z/1.png", layout="folders")
    assert one("A/1.png", "B/1.png", layout="combined").layout == "combined"


def test_the_folder_that_wraps_an_archive_is_taken_off() -> None:
    assert found(one("maps/train/1.jpg", "maps/val/2.jpg", archive=True)) == {("train", "1"), ("val", "2")}
    assert found(one("x/y/A/1.jpg", "x/y/B/1.jpg", archive=True)) == {("train", "1")}
    assert found(one("train/1.jpg", "train/2.jpg", archive=True)) == {("train", "1"), ("train", "2")}


def test_two_sources_join_by_relative_path_without_extension() -> None:
    a = listing("train/x/1.png", "val/2.png", "3.png", "only.png", uri="/a")
    b = listing("train/x/1.jpg", "val/2.jpeg", "3.webp", "other.jpg", uri="/b")
    pairing = pair_two_sources(a, b, (False, False), 0.0)
    assert found(pairing) == {("train", "x/1"), ("val", "2"), ("train", "3")}
    assert {(row.source_uri, row.error) for row in pairing.bad} == {
        ("/a/only.png", "Unmatched"),
        ("/b/other.jpg", "Unmatched"),
    }


def test_no_partner_at_all_is_a_usage_error_that_shows_both_sides() -> None:
    with pytest.raises(UsageError, match=r"0 of 2 names in /a have a partner in /b.*first A: x\.png, first B: y\.png"):
        pair_two_sources(listing("x.png", "z.png", uri="/a"), listing("y.png", uri="/b"), (False, False), 0.0)


def test_the_same_name_twice_is_a_bad_row_and_the_first_counts() -> None:
    pairing = one("1.jpg", "1.png")
    assert [pair.a.uri for pair in pairing.pairs] == ["/data/1.jpg"]
    assert [row.error for row in pairing.bad] == ["DuplicateName"]


def test_the_held_out_share_depends_on_the_id_alone_and_leaves_split_folders_alone() -> None:
    paths = [f"{i}.jpg" for i in range(2000)] + [f"train/t{i}.jpg" for i in range(50)]
    forwards = pair_one_source(listing(*paths), "auto", 0.2, False)
    backwards = pair_one_source(listing(*paths[::-1]), "auto", 0.2, False)
    assert found(forwards) == found(backwards)
    val = [pair for pair in forwards.pairs if pair.split == "val"]
    assert 0.16 < len(val) / 2000 < 0.24
    assert not any(pair.pair_id.startswith("t") for pair in val)


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_only_adds_to_the_held_out_pairs(pair_id: str, one_share: float, other: float) -> None:
    low, high = sorted((one_share, other))
    assert goes_to_val(pair_id, high) or not goes_to_val(pair_id, low)
    assert goes_to_val(pair_id, 1.0)
    assert not goes_to_val(pair_id, 0.0)
