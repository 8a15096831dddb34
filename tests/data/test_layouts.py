"""The layouts that names of images are recognised by, one line for each way in which people write them."""

from __future__ import annotations

import pytest

from p2p.data import layouts, matching
from p2p.data.joining import Match, match_patterns
from p2p.data.matching import Unclear, match_names

# The layout's name; then A, B and the rest of one pair (more of them are made of these, with other numbers); its name.
LAYOUTS = [
    (
        "Cityscapes",
        "gtFine/train/ulm/ulm_@_19_gtFine_color.png",
        "leftImg8bit/train/ulm/ulm_@_19_leftImg8bit.png",
        ["gtFine/train/ulm/ulm_@_19_gtFine_labelIds.png", "gtFine/train/ulm/ulm_@_19_gtFine_instanceIds.png"],
        "train:ulm/ulm_@_19",
    ),
    (
        "Cityscapes",
        "gtFine_trainvaltest/gtFine/val/ulm/ulm_@_gtFine_labelIds.png",
        "leftImg8bit_trainvaltest/leftImg8bit/val/ulm/ulm_@_leftImg8bit.png",
        [],
        "val:ulm/ulm_@",
    ),
    ("pix2pixHD", "test_label/@.png", "test_img/@.jpg", ["test_inst/@.png"], "test:@"),
    ("ADE20K", "annotations/training/ADE_@.png", "images/training/ADE_@.jpg", [], "train:ADE_@"),
    ("ADE20K", "ADE/annotations/validation/@.png", "ADE/images/validation/@.jpg", [], "val:@"),
    ("CMP facades", "base/cmp_b@.jpg", "base/cmp_b@.png", [], ":base/cmp_b@"),
    ("two-ending", "@.JPEG", "@.PNG", [], ":@"),
    ("CamVid", "LabeledApproved_full/@_L.png", "701_StillsRaw_full/@.png", [], ":@"),
    ("xView", "train/images/hurricane_@_pre_disaster.png", "train/images/hurricane_@_post_disaster.png", [], None),
    ("pix2pix results", "images/@_real_A.png", "images/@_real_B.png", ["images/@_fake_B.png"], ":images/@"),
    ("A/B", "A/train/@.png", "B/train/@.jpg", ["AB/train/@.png"], "train:@"),
    ("A/B", "trainA/@_A.jpg", "trainB/@_B.jpg", [], "train:@"),
    ("A/B", "maps_A/@.jpg", "maps_B/@.jpg", [], ":@"),
    ("A/B", "@_A.TIF", "@_B.TIF", [], ":@"),
    ("A/B", "A_@.png", "B_@.png", [], ":@"),
    ("A/B", "val/@a.png", "val/@b.png", [], "val:@"),
    ("labels and photos", "train/labels/@.png", "train/photos/@.jpg", [], "train:@"),
    ("labels and photos", "trainannot/@.png", "train/@.png", [], "train:@"),
    ("labels and photos", "train_masks/@_mask.gif", "train/@.jpg", [], "train:@"),
    ("labels and photos", "train/@_mask.png", "train/@_sat.jpg", [], "train:@"),
    ("labels and photos", "masks/train2017/@.png", "images/train2017/@.jpg", [], "train:@"),
    ("labels and photos", "Masks/@.png", "Images/@.jpg", ["instances/@.png"], ":@"),
    ("labels and photos", "@-seg.png", "@.jpg", [], ":@"),
    (
        "labels and photos",
        "ADE/training/bar/ADE_@_seg.png",
        "ADE/training/bar/ADE_@.jpg",
        ["ADE/training/bar/ADE_@_parts_1.png", "ADE/training/bar/ADE_@/instance_000.png"],
        "train:ADE/bar/ADE_@",
    ),
    ("input and target", "@.input.png", "@.target.png", [], ":@"),
    ("input and target", "@-input.JPG", "@-target.JPG", [], ":@"),
    ("input and target", "pre/@.png", "post/@.png", ["meta/@.png"], ":@"),
    ("input and target", "dev/x_@ (before).png", "dev/x_@ (after).png", [], "val:x_@"),
    ("color and other sensors", "kitchen/rgb/@.png", "kitchen/depth/@.png", [], ":@"),
    ("street and aerial views", "street/@.jpg", "aerial/@.jpg", [], ":@"),
    ("real and fake", "real/@.png", "fake/@.png", [], ":@"),
    ("night and day", "test/@_night.png", "test/@_day.png", [], "test:@"),
]
UNKNOWN = [
    ("two-folder", "oil/train/@.png", "paint/train/@.png", [], "train:@"),
    ("two-word", "@_oil.png", "@_paint.png", [], ":@"),
    ("two-word", "@.png", "@_paint.png", [], ":@"),
    ("two-ending", "@.bmp", "@.webp", [], ":@"),
]


def recognise(layout: str, a: str, b: str, others: list[str], is_certain: bool) -> tuple[list[str], Match]:
    kinds = [b, *others, a]
    paths = [kind.replace("@", number) for number in ("7", "8", "9") for kind in kinds]
    found = match_names(paths)
    assert isinstance(found, list), found
    [match] = [match for match in found if match.layout.name == layout]
    assert match.layout.is_certain == is_certain
    assert is_certain == (len(found) == 1)
    assert not match.unmatched and not match.repeated
    assert sorted(match.left_out) == [n for n, path in enumerate(paths) if n % len(kinds) not in (0, len(kinds) - 1)]
    return paths, match


@pytest.mark.parametrize(
    "layout, a, b, others, name, is_certain",
    [(*row, True) for row in LAYOUTS] + [(*row, False) for row in UNKNOWN],
    ids=lambda value: value if isinstance(value, str) and "@" in value else "",
)
def test_a_layout_is_recognised(
    layout: str, a: str, b: str, others: list[str], name: str | None, is_certain: bool
) -> None:
    paths, match = recognise(layout, a, b, others, is_certain)
    assert len(match.pairs) == 3
    pair = match.pairs[0]
    assert pair.b is not None
    assert (paths[pair.a], paths[pair.b]) == (a.replace("@", "7"), b.replace("@", "7"))
    if name is not None:
        assert f"{pair.split}:{pair.pair_id}" == name.replace("@", "7")


@pytest.mark.parametrize(
    "paths, seen",
    [
        (
            ["images/1.png", "labels/1.png", "masks/1.png"],
            "fit several layouts: A = labels/, B = images/ or A = masks/",
        ),
        (["rgb/1.png", "depth/1.png", "normals/1.png"], "fit several layouts: A = rgb/, B = depth/ or A = rgb/"),
        (["config.png", "run/samples/epoch_0010.png", "run/samples/epoch_0020.png"], "sample sheets of a training run"),
    ],
)
def test_what_could_be_several_things_or_is_no_pair_is_refused(paths: list[str], seen: str) -> None:
    found = match_names(paths)
    assert isinstance(found, Unclear)
    assert seen in found.seen


@pytest.mark.parametrize(
    "paths",
    [
        ["x/1.jpg", "y/1.jpg", "z/1.jpg"],
        ["trainA/n1.jpg", "trainA/n2.jpg", "trainB/m1.jpg", "trainB/m2.jpg"],
        [f"{letter}/1.jpg" for letter in "abcdefghijkl"],
        ["1.jpg", "2.jpg", "3_mask.jpg"],
    ],
)
def test_names_that_say_nothing_leave_it_to_the_images(paths: list[str]) -> None:
    found = match_names(paths)
    assert isinstance(found, list)
    assert [(match.layout.is_combined, match.layout.is_certain) for match in found] == [(True, False)]


@pytest.mark.parametrize(
    "kinds, patterns",
    [
        (["bing/19/@.jpg", "panos/x/@.jpg"], ("bing/19/{id}", "panos/x/{id}")),
        (["RGB/SN6_11_RGB_@.tif", "SAR/SN6_11_SAR_@.tif"], ("RGB/SN6_11_RGB_{id}.tif", "SAR/SN6_11_SAR_{id}.tif")),
        (["high/@.png", "low/X2/@x2.png", "low/X4/@x4.png"], ("high/{id}.png", "low/X2/{id}x2.png")),
        (["image_2/@.png", "image_3/@.png"], None),
        (["one/7@.png", "two/8@.png"], None),
    ],
)
def test_the_patterns_that_are_advised_pair_images(kinds: list[str], patterns: tuple[str, str] | None) -> None:
    paths = [kind.replace("@", number) for kind in kinds for number in ("0011", "0012", "0023")]
    [first, *_] = match_names([*paths, "x.png"])
    assert first.layout.patterns == patterns
    if patterns:
        assert len(match_patterns(paths, patterns).pairs) == 3


@pytest.mark.parametrize("name", ["{number}{letter}.png", "{letter}/{number}.png"])
def test_letters_that_number_images_are_no_certain_sides(name: str) -> None:
    paths = [name.format(number=number, letter=letter) for number in range(3) for letter in "abcd"]
    found = match_names(paths)
    assert isinstance(found, list)
    assert [(match.layout.name, len(match.pairs), match.layout.is_certain) for match in found] == [
        ("combined", 12, False),
        ("A/B", 3, False),
    ]


def test_words_of_few_names_are_not_looked_for_in_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    words = " ".join(f"{row.a} {row.b}" for row in layouts.LAYOUTS).split()
    paths = [f"{number}_{words[number % len(words)]}.png" for number in range(2 * len(words))]
    calls = []
    monkeypatch.setattr(matching._Words, "_pair_up", lambda *arguments: calls.append(arguments))
    found = match_names(paths)
    assert isinstance(found, list) and found[0].layout.is_combined
    assert not calls


def test_the_label_kind_of_cityscapes_can_be_chosen() -> None:
    paths = [f"gtFine/1_gtFine_{kind}.png" for kind in ("labelIds", "color", "labelTrainIds", "instanceIds")]
    paths.append("leftImg8bit/1_leftImg8bit.png")
    for kind in ("", "color", "labelIds", "labelTrainIds", "instanceIds"):
        found = match_names(paths, label_kind=kind)
        assert isinstance(found, list)
        assert found[0].layout.summary({"train": 1, "val": 0}) == (
            f"Cityscapes layout: 1 train; A = gtFine {kind or 'color'}, B = leftImg8bit"
        )


def test_what_is_another_image_by_its_number_is_no_companion() -> None:
    [match] = match_names(["scan.jpg", "scan_mask.png", "scan_parts_1.png", "scan 2.jpg", "scan_2024-05.jpg"])
    assert ([name for _, name, _ in match.unmatched], match.left_out) == (["scan 2", "scan_2024-05"], [2])
    [match] = match_names(["tile.jpg", "tile_mask.png", "tile_b_mask.png", "tile_1_mask.png"])
    assert [name for _, name, _ in match.unmatched] == ["tile_b", "tile_1"], "masks whose photographs are lost"


def test_splits_that_are_stored_as_one_have_no_id_twice() -> None:
    parts = ["train", "train_extra"]
    [match] = match_names([f"{side}/{part}/1.png" for part in parts for side in ("labels", "images")])
    assert len(match.pairs) == 1 and match.repeated == [(2, "1"), (3, "1")]
    [match] = match_names([f"{part}/1.png" for part in parts], "combined")
    assert len(match.pairs) == 1 and match.repeated == [(1, "1")]


@pytest.mark.parametrize("has_labels", [True, False])
def test_photos_of_cityscapes_without_labels_are_no_bad_pairs(has_labels: bool) -> None:
    parts = ["train", "train_extra"]
    paths = [f"leftImg8bit/{part}/x/{part}{number}_leftImg8bit.png" for part in parts for number in range(3)]
    paths += [f"gtFine/train/x/train{number}_gtFine_color.png" for number in range(2)]
    paths += [f"gtFine/train_extra/x/train_extra{number}_gtFine_color.png" for number in range(3) if has_labels]
    [match] = match_names(paths)
    assert [name for _, name, _ in match.unmatched] == ["x/train2"]
    assert match.left_out == ([] if has_labels else [3, 4, 5])
    assert [pair.split for pair in match.pairs] == ["train"] * (5 if has_labels else 2)


@pytest.mark.parametrize(
    "path, split",
    [("trainset/1.png", "train"), ("x/train/1.png", "train"), ("val2014/1.png", "val"), ("train_extra/1.png", "train"),
     ("trainer/1.png", ""), ("testimony/1.png", ""), ("Testing/1.png", "test"), ("hold/1.png", "val")],
)  # fmt: skip
def test_folders_name_splits(path: str, split: str) -> None:
    found = match_names([path], "combined")
    assert isinstance(found, list)
    assert found[0].pairs[0].split == split
