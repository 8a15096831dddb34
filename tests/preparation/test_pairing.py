"""From names to pairs: sides, splits, the held-out share, and what cannot be paired."""

from __future__ import annotations

from typing import Any

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


def one(*paths: str, layout: Any = "auto", archive: bool = False, **options: Any) -> Pairing:
    return pair_one_source(listing(*paths), layout, 0.0, is_archive=archive, **options)[0]


def test_combined_images_split_by_folder_and_keep_their_relative_name() -> None:
    pairing = one("train/1.jpg", "val/1.jpg", "test/x/2.png", "loose.png", "more/3.jpg", "validation/9.jpg")
    assert pairing.layout.is_combined
    assert not pairing.layout.is_certain, "their pixels must show it"
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
    assert not pairing.layout.is_combined
    assert found(pairing) == {("train", "1"), ("val", "2")}
    assert not pairing.bad
    side_a = {"a", "traina", "vala", "labels", "masks"}
    for pair in pairing.pairs:
        assert pair.b is not None
        assert any(part.lower() in side_a for part in pair.a.uri.split("/"))
        assert not any(part.lower() in side_a for part in pair.b.uri.split("/"))


def test_folders_of_other_names_are_certain_only_when_asked_for() -> None:
    paths = ("oil/1.png", "paint/1.png")
    assert not one(*paths).layout.is_certain
    pairing = one(*paths, layout="folders")
    assert found(pairing) == {("train", "1")}
    assert pairing.layout.is_certain
    assert pairing.layout.summary(pairing.counts()) == "two-folder layout: 1 train; A = oil/, B = paint/"
    with pytest.raises(UsageError, match=r"no pairs: x/ \(1\), y/ \(1\), z/ \(1\)\. Pass --pattern-a"):
        one("x/1.png", "y/1.png", "z/1.png", layout="folders")
    assert one("A/1.png", "B/1.png", layout="combined").layout.is_combined


def test_patterns_say_which_image_is_which() -> None:
    paths = ("gtFine/train/ulm/1_gtFine_x.png", "left/train/ulm/1.jpg", "left/val/2.jpg", "gtFine/val/2_gtFine_x.png")
    pairing = one(*paths, "other/3.jpg", patterns=("gtFine/{split}/{id}_gtFine_x.png", "left/{split}/{id}"))
    assert found(pairing) == {("train", "ulm/1"), ("val", "2")}
    assert pairing.left_out == "other/ (1)"
    assert found(one("1.JPG", "1_mask.png", patterns=("{id}.jpg", "{id}_mask.png"))) == {("train", "1")}
    with pytest.raises(UsageError, match=r"--pattern-a \{id\}_q fits 0 of 1 images, --pattern-b \{id\}.jpg fits 1"):
        one("1.jpg", patterns=("{id}_q", "{id}.jpg"))
    a, b = listing("x/1_left.png", uri="/a"), listing("y/1_right.png", uri="/b")
    assert found(pair_two_sources(a, b, 0.0, ("x/{id}_left", "y/{id}_right"))) == {("train", "1")}


def test_images_of_neither_side_and_of_half_a_split_are_left_out_and_others_without_partner_are_bad() -> None:
    paths = [f"{split}_{side}/{n}.png" for split in ("train", "test") for side in ("label", "inst") for n in (1, 2)]
    pairing = one(*paths, "train_img/1.png", "train_img/3.png")
    assert found(pairing) == {("train", "1")}
    assert {(row.source_uri, row.error) for row in pairing.bad} == {
        ("/data/train_label/2.png", "Unmatched"),
        ("/data/train_img/3.png", "Unmatched"),
    }
    assert pairing.left_out == "test_label/ (2), train_inst/ (2), test_inst/ (2)"


@pytest.mark.parametrize(
    "refused, is_it",
    [
        ("train/A/3.png", True),
        ("train/A/3.jpg", True),
        ("val/A/3.png", False),
        ("train/B/3.jpg", False),
        ("train/A/x/3.png", False),
    ],
)
@pytest.mark.parametrize("uri", ["/data", "/data.zip", "/data/"])
def test_only_a_refused_image_of_that_side_and_split_explains_a_missing_one(
    uri: str, refused: str, is_it: bool
) -> None:
    paths = [f"{split}/{side}/{n}.png" for split in ("train", "val") for side in "AB" for n in (1, 2)]
    listed = [*paths, "train/B/3.png"]
    between = "#" if uri.endswith("zip") else "/"
    source = Listing(uri, [Member(path, File(uri.rstrip("/") + between + path), 1) for path in listed])
    source.refuse(refused, "TooLarge", "")
    [row] = [row for row in pair_one_source(source, "auto", 0.0)[0].bad if row.error == "Unmatched"]
    assert row.message.endswith("but one that is refused, as another row says") == is_it


def test_a_refused_image_of_a_folder_without_pairs_explains_a_missing_one() -> None:
    a, b = listing("ulm/1.png", uri="/a"), listing("ulm/1.png", "bonn/2.png", uri="/b")
    a.refuse("bonn/2.jpg", "TooLarge", "")
    b.refuse("bonn/2.jpg", "TooLarge", "")
    [_, _, row] = pair_two_sources(a, b, 0.0).bad
    assert row.message.endswith("but one that is refused, as another row says")
    a.bad.clear()
    [_, row] = pair_two_sources(a, b, 0.0).bad
    assert not row.message.endswith("as another row says"), "that is of the same side"


def test_a_label_kind_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="label_kind labelIds: /data holds no images …_gtFine_labelIds"):
        one("gtFine/a_gtFine_color.png", "leftImg8bit/a_leftImg8bit.png", label_kind="labelIds")


def test_the_folder_that_wraps_an_archive_is_taken_off() -> None:
    assert found(one("maps/train/1.jpg", "maps/val/2.jpg", archive=True)) == {("train", "1"), ("val", "2")}
    assert found(one("x/y/A/1.jpg", "x/y/B/1.jpg", archive=True)) == {("train", "1")}
    assert found(one("train/1.jpg", "train/2.jpg", archive=True)) == {("train", "1"), ("train", "2")}


def test_two_sources_join_by_relative_path_without_extension() -> None:
    a = listing("train/x/1.png", "val/2.png", "3.png", "only.png", uri="/a")
    b = listing("train/x/1.jpg", "val/2.jpeg", "3.webp", "other.jpg", uri="/b")
    pairing = pair_two_sources(a, b, 0.0)
    assert found(pairing) == {("train", "x/1"), ("val", "2"), ("train", "3")}
    assert {(row.source_uri, row.error) for row in pairing.bad} == {
        ("/a/only.png", "Unmatched"),
        ("/b/other.jpg", "Unmatched"),
    }


def test_two_archives_of_one_published_layout_pair_up_and_the_user_says_which_is_a() -> None:
    photos = listing("leftImg8bit/val/ulm/1_leftImg8bit.png", uri="/photos.zip")
    kinds = [f"gtFine/val/ulm/1_gtFine_{kind}.png" for kind in ("color", "labelIds")]
    pairing = pair_two_sources(photos, listing(*kinds, uri="/labels.zip"), 0.0, label_kind="labelIds")
    assert found(pairing) == {("val", "ulm/1")}
    assert pairing.layout.summary(pairing.counts()) == "Cityscapes layout: 1 val; A = leftImg8bit, B = gtFine labelIds"
    [pair] = pairing.pairs
    assert pair.a.uri.startswith("/photos") and pair.b is not None and pair.b.uri.endswith("labelIds.png")
    assert not pairing.bad


def test_the_folder_that_wraps_each_of_two_sources_is_no_part_of_the_names() -> None:
    a, b = listing("final/x/1.png", "final/x/2.png", uri="/a.zip"), listing("colored/1.png", "colored/2.png", uri="/b")
    pairing = pair_two_sources(a, b, 0.0)
    assert found(pairing) == {("train", "1"), ("train", "2")} and not pairing.bad
    same = pair_two_sources(listing("x/1.png", uri="/a"), listing("x/1.png", uri="/b"), 0.0)
    assert found(same) == {("train", "x/1")}


def test_pairs_beside_the_folders_of_splits_are_named() -> None:
    paths = [f"{folder}/{side}/{n}.png" for folder in ("train", "gallery") for side in "AB" for n in (1, 2)]
    assert one(*paths).unsplit == "gallery/A/ (2)"
    assert not one("A/1.png", "B/1.png").unsplit
    assert one("train/1.png", "loose.png").unsplit == "loose.png"


def test_no_partner_at_all_is_a_usage_error_that_shows_both_sides() -> None:
    with pytest.raises(
        UsageError, match=r"0 of 2 names in /a have a partner among 1 in /b.*first A: x\.png, first B: y\.png"
    ):
        pair_two_sources(listing("x.png", "z.png", uri="/a"), listing("y.png", uri="/b"), 0.0)


def test_the_same_name_twice_is_a_bad_row_and_the_first_counts() -> None:
    pairing = one("1.jpg", "1.png", "2.jpg", "3.jpg")
    assert [pair.a.uri for pair in pairing.pairs] == ["/data/1.jpg", "/data/2.jpg", "/data/3.jpg"]
    assert [row.error for row in pairing.bad] == ["DuplicateName"]
    pairing = one("A/1.jpg", "B/1.jpg", "B/1.png")
    assert [(pair.a.uri, pair.b and pair.b.uri) for pair in pairing.pairs] == [("/data/A/1.jpg", "/data/B/1.jpg")]
    assert [(row.source_uri, row.error) for row in pairing.bad] == [("/data/B/1.png", "DuplicateName")]


def test_the_held_out_share_depends_on_the_id_alone_and_leaves_split_folders_alone() -> None:
    paths = [f"{i}.jpg" for i in range(2000)] + [f"train/t{i}.jpg" for i in range(50)]
    forwards = pair_one_source(listing(*paths), "auto", 0.2)[0]
    backwards = pair_one_source(listing(*paths[::-1]), "auto", 0.2)[0]
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
