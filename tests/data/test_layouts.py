"""The layouts that names of images are recognised by, one line for each way in which people write them."""

from __future__ import annotations

import itertools
import re
from unicodedata import normalize

import pytest

from p2p.data import layouts, words
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
    (
        "Pascal VOC",
        "VOC2012/SegmentationClass/2007_@.png",
        "VOC2012/JPEGImages/2007_@.jpg",
        ["VOC2012/SegmentationObject/2007_@.png"],
        ":2007_@",
    ),
    (
        "DRIVE",
        "training/1st_manual/2@_manual1.gif",
        "training/images/2@_training.tif",
        ["training/mask/2@_training_mask.gif"],
        "train:2@",
    ),
    (
        "Pascal VOC",  # as labelme writes it
        "SegmentationClassPNG/@.png",
        "JPEGImages/@.jpg",
        ["SegmentationClassVisualization/@.jpg"],
        ":@",
    ),
    (
        "KITTI",
        "training/semantic_rgb/0000@_10.png",
        "training/image_2/0000@_10.png",
        ["training/semantic/0000@_10.png", "training/instance/0000@_10.png", "testing/image_2/0000@_10.png"],
        "train:0000@_10",
    ),
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
    ("labels and photos", "benign/benign (@)_mask.png", "benign/benign (@).png", [], ":benign/benign (@)"),
    ("labels and photos", "d_r_@__mask.png", "d_r_@_.jpg", [], ":d_r_@"),
    ("labels and photos", "@_json/label.png", "@_json/img.png", ["@_json/label_viz.png"], ":@_json"),
    (
        "labels and photos",
        "labels/stra\u00dfe_\u00fc@.png",
        "photos/stra\u00dfe_u\u0308@.jpg",
        [],
        ":stra\u00dfe_\u00fc@",
    ),
    ("input and target", "shadow/@.png", "shadow_free/@.png", ["shadow_mask/@.png"], ":@"),
    ("input and target", "train/00@/input.png", "train/00@/target.png", [], "train:00@"),
    ("input and target", "@.input.png", "@.target.png", [], ":@"),
    ("input and target", "@-input.JPG", "@-target.JPG", [], ":@"),
    ("input and target", "pre/@.png", "post/@.png", ["meta/@.png"], ":@"),
    ("input and target", "dev/x_@ (before).png", "dev/x_@ (after).png", [], "val:x_@"),
    ("color and other sensors", "kitchen/rgb/@.png", "kitchen/depth/@.png", [], ":@"),
    ("street and aerial views", "street/@.jpg", "aerial/@.jpg", [], ":@"),
    ("night and day", "test/@_night.png", "test/@_day.png", [], "test:@"),
    ("DRIVE", "manual1/@_h.tif", "images/@_h.jpg", ["mask/@_h_mask.tif"], ":@_h"),  # as HRF
    ("labels and photos", "Image_@L_1stHO.png", "Image_@L.jpg", ["Image_@L_2ndHO.png"], ":Image_@L"),  # as CHASE
    ("labels and photos", "@_anno.bmp", "@.bmp", [], ":@"),
    ("labels and photos", "5_Labels_all/@.tif", "2_Ortho_RGB/@.tif", [], ":@"),
    ("input and target", "X_LR_bicubic/X2/@x2.png", "X_HR/@.png", [], ":@"),
    ("input and target", "Data/@/1_NOISY_SRGB_10.png", "Data/@/1_GT_SRGB_10.png", [], ":Data/@/1_SRGB_10"),
    ("input and target", "@.input_image.png", "@.target_image.png", [], ":@_image"),
    ("input and target", "original_image/@.png", "edited_image/@.png", [], ":@"),
    ("input and target", "hazy/@_1_0.9.png", "clear/@.png", [], ":@"),
    ("labels and photos", "labels/000@.png", "images/@.png", [], None),
    ("color and other sensors", "p@_rgb_cam0.png", "p@_depth_cam0.png", [], ":p@_cam0"),
]
UNKNOWN = [
    ("two-folder", "oil/train/@.png", "paint/train/@.png", [], "train:@"),
    ("two-word", "@_oil.png", "@_paint.png", [], ":@"),
    ("two-word", "@.png", "@_paint.png", [], ":@"),
    ("two-word", "00@/oil.png", "00@/paint.png", [], ":00@"),
    ("two-ending", "@.bmp", "@.webp", [], ":@"),
    ("real and fake", "train/real/@.png", "train/fake/@.png", [], "train:@"),
    ("left and right views", "@_left.jpeg", "@_right.jpeg", [], ":@"),
    ("radar and optical", "s1/@.pgm", "s2/@.pgm", ["s3/@.pgm", "s4/@.pgm"], ":@"),
    ("two dates", "t1/@.png", "t2/@.png", ["t3/@.png"], ":@"),
    ("input and target", "low/@.png", "high/@.png", ["medium/@.png"], ":@"),
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
        (
            ["image_RGB/1.tif", "image_NirRGB/1.tif", "label_5classes/1_label.tif"],
            "A = label_5classes/, B = image_RGB/ or A = label_5classes/, B = image_NirRGB/",
        ),
        (
            [f"{folder}/{n}.png" for folder in ("images_png", "masks_png", "masks_color_png") for n in (1, 2)],
            "A = masks_png/, B = images_png/ or A = masks_color_png/, B = images_png/",
        ),
        (
            [f"{folder}/1.jpg" for folder in ("cloth", "cloth-mask", "image", "image-densepose", "image-parse-v3")],
            "A = cloth-mask/, B = image/ or A = cloth-mask/, B = cloth/",
        ),
        (
            [f"{folder}/1.png" for folder in ("flair", "t1", "t1ce", "t2", "seg")],
            "A = seg/, B = flair/ or A = seg/, B = t1/ or A = seg/, B = t1ce/ or A = seg/, B = t2/",
        ),
        (
            [f"train_{side}/{n}.png" for side in "ABC" for n in (1, 2)],
            "A = A/, B = B/ or A = A/, B = train_C/ or A = B/, B = train_C/",
        ),
        (
            [f"train/train_{side}/{n}.png" for side in ("A", "B", "C_fixed_official") for n in (1, 2)],
            "A = A/, B = B/ or A = A/, B = C_fixed_official/ or A = B/, B = C_fixed_official/",
        ),
        (
            [
                f"{folder}/{n}_{date}_disaster.png"
                for folder in ("images", "masks")
                for n in "ab"
                for date in ("pre", "post")
            ],
            "A = pre disaster, B = post disaster or A = masks/, B = images/",
        ),
        (
            ["images/1.jpg", "images/2.jpg", *(f"v{v}/labels/{n}.png" for v in "12" for n in "12")],
            "A = v1/labels/, B = images/ or A = v2/labels/, B = images/",
        ),
        (
            ["x-images/1.ppm", "labels-ah/1.ah.ppm", "labels-vk/1.vk.ppm"],
            "A = labels-ah/, B = x-images/ or A = labels-vk/, B = x-images/",
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
    "folders, a, b",
    [
        ("{a,b,c}/{input,target}", "input", "target"),
        ("{a,b,c}/{rgb,depth}", "rgb", "depth"),
        ("{images,labels}/{a,b,c}", "labels", "images"),
        ("{train,val}/{images,labels}/{a,b,c}", "labels", "images"),
        ("set_{a,b,c}/{input,target}", "input", "target"),
    ],
)
def test_three_folders_of_letters_are_parts_where_words_tell_the_sides(folders: str, a: str, b: str) -> None:
    options = [part.strip("{}").split(",") for part in re.split(r"(\{.*?\})", folders)]
    paths = [f"{''.join(parts)}/{n}.png" for parts in itertools.product(*options) for n in (1, 2)]
    [match] = match_names(paths)
    assert match.layout.names_of_sides == f"A = {a}/, B = {b}/"
    assert 2 * len(match.pairs) == len(paths)
    assert all(paths[pair.a].replace(a, b) == paths[pair.b or 0] for pair in match.pairs)


def test_results_of_two_folders_are_told_by_the_ends_of_their_names() -> None:
    paths = [f"{folder}/{n}_real_{side}.png" for folder in ("images", "labels") for n in (1, 2) for side in "AB"]
    [match] = match_names(paths)
    assert (match.layout.name, len(match.pairs)) == ("pix2pix results", 4)


@pytest.mark.parametrize(
    "many, one, seen",
    [
        (
            ["hazy/@_1_0.9.png", "hazy/@_2_0.8.png"],
            "clear/@.png",
            "6 images of hazy/ belong to 3 of clear/",
        ),
        (
            ["x-mask-anno/0/0000@_hair.png", "x-mask-anno/0/0000@_skin.png", "x-mask-anno/0/0000@_nose.png"],
            "x-img/@.jpg",
            "9 images of x-mask-anno/ belong to 3 of x-img/",
        ),
    ],
)
def test_several_of_one_side_for_one_of_the_other_are_said_to_be_that(many: list[str], one: str, seen: str) -> None:
    [match] = match_names([kind.replace("@", str(n)) for n in range(1, 4) for kind in (*many, one)])
    assert match.layout.is_combined and match.layout.patterns is None
    assert match.layout.seen == f"{seen}, several to one, and a pair has one of each"


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
        (["bing/19/@.jpg", "panos/x/@.jpg"], ("panos/x/{id}", "bing/19/{id}")),
        (["RGB/SN6_11_RGB_@.tif", "SAR/SN6_11_SAR_@.tif"], ("SAR/SN6_11_SAR_{id}.tif", "RGB/SN6_11_RGB_{id}.tif")),
        (["high/@.png", "low/X2/@x2.png", "low/X4/@x4.png"], ("low/X2/{id}x2.png", "high/{id}.png")),
        (
            ["stuff_train2017_pixelmaps/@.png", "stuff_val2017_pixelmaps/@.png", "train2017/@.jpg", "val2017/@.jpg"],
            ("stuff_{split}2017_pixelmaps/{id}", "{split}2017/{id}"),
        ),
        (
            [
                *(f"images/10k/{split}/@.jpg" for split in ("train", "val")),
                *(f"labels/seg/{kind}/{split}/@.png" for kind in ("ids", "tints") for split in ("train", "val")),
            ],
            ("labels/seg/ids/{split}/{id}", "images/10k/{split}/{id}"),
        ),
        (["my_test_oils/@.png", "x/paints/@.png"], ("my_test_oils/{id}", "x/paints/{id}")),
        (["@_q1_80.png", "@_q2_80.png"], ("{id}_q1_80.png", "{id}_q2_80.png")),
        (["x/@_0.jpg", "x/@_1.jpg", "x/@-y.jpg"], ("{id}_0.jpg", "{id}_1.jpg")),
        (["@_sx_flair_8.png", "@_sx_seg_8.png", "@_sx_t9_8.png"], ("{id}_seg_8.png", "{id}_flair_8.png")),
        (
            [f"in/{split}/{split}_{kind}/@.png" for split in ("train", "val") for kind in ("x", "y", "z")],
            ("{split}_x/{id}", "{split}_y/{id}"),
        ),
        (
            ["PAN/S_11_PAN_@.tif", "PS-RGB/S_11_PS-RGB_@.tif", "SAR-I/S_11_SAR-I_@.tif"],
            ("SAR-I/S_11_SAR-I_{id}.tif", "PS-RGB/S_11_PS-RGB_{id}.tif"),
        ),
        (["x_@_1.png", "x_@_2.png", "x_@_3.png"], None),
        (["@-input.png", "@-mask1.png", "@-output1.png"], ("{id}-input.png", "{id}-output1.png")),
        (["image_2/@.png", "image_3/@.png"], None),
        (["one/7@.png", "two/8@.png"], None),
    ],
)
def test_the_patterns_that_are_advised_pair_images(kinds: list[str], patterns: tuple[str, str] | None) -> None:
    paths = [kind.replace("@", number) for kind in kinds for number in ("0011", "0012", "0023")]
    [first, *_] = match_names([*paths, "x.png"])
    assert first.layout.patterns == patterns
    if patterns:
        pairs = match_patterns(paths, patterns).pairs
        assert len(pairs) == (6 if "{split}" in patterns[0] else 3)
        assert {pair.split for pair in pairs} == ({"train", "val"} if "{split}" in patterns[0] else {""})


def test_two_labels_of_each_image_are_not_advised_as_its_sides() -> None:
    kinds = ("labels/v_{}_1.png", "labels/v_{}_2.png", "images/v_{}.png")  # of which two end in _1 and _2, too
    [first, *_] = match_names([kind.format(number) for number in range(1, 101) for kind in kinds])
    assert first.layout.patterns != ("{id}_1.png", "{id}_2.png"), "that leaves all images out"
    assert first.layout.patterns is None


@pytest.mark.parametrize("name", ["{number}{letter}.png", "{letter}/{number}.png"])
def test_letters_that_number_images_are_no_certain_sides(name: str) -> None:
    paths = [name.format(number=number, letter=letter) for number in range(3) for letter in ("a", "b", "gt")]
    found = match_names(paths)
    assert isinstance(found, list)
    assert [(match.layout.name, len(match.pairs), match.layout.is_certain) for match in found] == [
        ("combined", 9, False),
        ("A/B", 3, False),
    ]
    paths = [name.format(number=number, letter=letter) for number in range(3) for letter in ("raw", *"abcde")]
    [match] = match_names(paths)
    assert match.layout.is_combined, "which two of the five letters it should be, nothing tells"
    assert match.layout.seen.endswith(", or two others of a, b, c, d, e")


def test_words_of_few_names_are_not_looked_for_in_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    known = " ".join(f"{row.a} {row.b}" for row in layouts.LAYOUTS).split()
    paths = [f"{number}_{known[number % len(known)]}.png" for number in range(2 * len(known))]
    calls = []
    monkeypatch.setattr(words.Words, "_pair_up", lambda *arguments: calls.append(arguments))
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
     ("trainer/1.png", ""), ("testimony/1.png", ""), ("Testing/1.png", "test"), ("hold/1.png", "val"),
     ("eval/1.png", "val"), ("evaluation/1.png", "val"), ("trainval/1.png", "train"), ("test_run/1.png", "")],
)  # fmt: skip
def test_folders_name_splits(path: str, split: str) -> None:
    found = match_names([path], "combined")
    assert isinstance(found, list)
    assert found[0].pairs[0].split == split


def splits_of(paths: list[str]) -> dict[str, str]:
    [match] = match_names(paths)
    return {paths[pair.a]: pair.split for pair in match.pairs}


SPLITS_INSIDE = [  # folders of sides A and B, in which {} is a split, and how that is written for train and another
    ("{}/low {}/high", "our485", "eval15", "val"),
    ("{}/lq {}/hq", "train485", "test15", "test"),
    ("X_{}_sketch X_{}_photo", "training", "testing", "test"),
    ("I_Task1-2_{}_Input I_Task1_{}_GroundTruth", "Training", "Validation", "val"),
    ("D-{}/D-{}-Mask D-{}/D-{}-Image", "TR", "TE", "test"),
    ("{}/in {}/out", "Train_1k", "Val_100", "val"),
    ("{}/{}_A {}/{}_B", "train", "test", "test"),
    ("horse_{}_A horse_{}_B", "train", "test", "test"),
    ("{}/A {}/B", "TrainingData", "TestData", "test"),
    ("labels{} images{}", "Tr", "Ts", "test"),
    ("{}crop/labels {}crop/images", "train", "val", "val"),
    ("TrainVal_segs/{}_segs TrainVal_images/TrainVal_images/{}_images", "train", "val", "val"),
    ("stuffthingmaps_trainval2017/{}2017 {}2017", "train", "val", "val"),
]


@pytest.mark.parametrize("sides, train, other, split", SPLITS_INSIDE, ids=[row[0] for row in SPLITS_INSIDE])
def test_splits_inside_the_names_of_folders_count(sides: str, train: str, other: str, split: str) -> None:
    folders = [side.replace("{}", word) for word in (train, other) for side in sides.split()]
    found = splits_of([f"{folder}/{n}.png" for folder in folders for n in (1, 2)])
    assert found == {f"{folders[k]}/{n}.png": ("train", split)[k // 2] for k in (0, 2) for n in (1, 2)}


@pytest.mark.parametrize("folders", ["vegas_train", "rome_test vegas_train", "DUTS-TE", "our5", "trainer valley"])
def test_words_of_splits_that_stand_alone_inside_a_name_are_none(folders: str) -> None:
    paths = [f"{folder}/{side}/1.png" for folder in folders.split() for side in "AB"]
    assert set(splits_of(paths).values()) == {""}


def test_a_split_of_one_side_is_left_out_and_the_numbers_of_shards_stay_in_the_name() -> None:
    paths = ["Z_Train_Input/1.png", "Z_Train_GroundTruth/1.png", "Z_Test_Input/2.png"]
    [match] = match_names(paths)
    assert ([pair.split for pair in match.pairs], match.left_out, match.unmatched) == (["train"], [2], [])
    assert match.layout.sides == ("Z_Input/", "Z_GroundTruth/"), "of all splits, not of the first"
    paths = [f"c-{split}-{n}/1.{side}.png" for split in ("train", "val") for n in "01" for side in ("input", "target")]
    [match] = match_names(paths)
    assert [(pair.split, pair.pair_id) for pair in match.pairs] == [
        (split, f"c-{n}/1") for split in ("train", "val") for n in "01"
    ]


def test_parts_of_a_test_split_beside_train_are_test() -> None:
    folders = ["train", "eval", "test1", "test2", "test-dev", "test_challenge", "gallery"]
    paths = [f"{folder}/{side}/{n}.png" for folder in folders for side in "AB" for n in (1, 2)]
    expected = dict(zip(folders, ("train", "val", "test", "test", "test", "test", ""), strict=True))
    assert splits_of(paths) == {f"{folder}/A/{n}.png": expected[folder] for folder in folders for n in (1, 2)}


def test_splits_with_which_all_names_begin_count() -> None:
    paths = [f"{side}/{split}_{n}.png" for side in "AB" for split in ("train", "val", "test") for n in (1, 2)]
    assert splits_of(paths) == {path: path[2:].split("_")[0] for path in paths[:6]}
    assert set(splits_of([*paths, "A/x.png", "B/x.png"]).values()) == {""}
    assert set(splits_of([path for path in paths if "test" in path]).values()) == {""}, "it may be a word"
    at_end = [f"{side}/{n}_{split}.png" for side in "AB" for split in ("train", "val") for n in (1, 2)]
    assert list(splits_of(at_end).values()) == ["train"] * 2 + ["val"] * 2
    match = match_patterns(paths, ("A/{id}", "B/{id}"))
    assert [pair.split for pair in match.pairs] == ["train"] * 2 + ["val"] * 2 + ["test"] * 2


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_one_name_in_two_forms_of_unicode_is_one_name(forms: tuple[str, str]) -> None:
    paths = [f"{side}/{normalize(form, 'café')}{n}.jpg" for side, form in zip("AB", forms, strict=True) for n in (1, 2)]
    [match] = match_names([*paths, "A/x.jpg", "B/x.jpg"])
    assert len(match.pairs) == 3 and not match.unmatched
    assert match.pairs[0].pair_id == normalize(forms[0], "café1"), "as side A spells it"


def test_names_of_test_and_of_training_end_in_words_of_their_own() -> None:
    paths = [f"training/images/{n}_training.tif" for n in (21, 22)] + ["test/images/01_test.tif"]
    paths += [f"training/1st_manual/{n}_manual1.gif" for n in (21, 22)] + ["test/1st_manual/01_manual1.gif"]
    [match] = match_names(paths)
    assert [(pair.split, pair.pair_id) for pair in match.pairs] == [("train", "21"), ("train", "22"), ("test", "01")]


def test_words_that_the_names_of_one_split_share_are_no_way_to_leave_out_the_others() -> None:
    paths = [f"nyu2_test/{n}_{kind}.png" for n in (1, 2) for kind in ("colors", "depth")]
    [match] = match_names([*paths, *(f"nyu2_train/x/{n}.{ending}" for n in (1, 2) for ending in ("jpg", "png"))])
    assert match.layout.is_combined and not match.layout.is_certain


def test_photos_beyond_the_published_labels_are_left_out_and_labels_without_photos_are_not() -> None:
    paths = ["JPEGImages/1.jpg", "JPEGImages/2.jpg", "SegmentationClass/1.png"]
    [match] = match_names(paths)
    assert (len(match.pairs), match.left_out, match.unmatched) == (1, [1], [])
    [match] = match_names([*paths, "SegmentationClass/3.png"])
    assert [name for _, name, _ in match.unmatched] == ["3", "2"]


def test_masks_of_no_split_for_names_of_several_tell_no_pairs() -> None:
    paths = [f"images/{split}/{n}.png" for split in ("train", "val") for n in (1, 2)] + ["masks/1.png", "masks/2.png"]
    [match] = match_names(paths)
    assert match.layout.is_combined and match.layout.patterns is None
    assert match.layout.seen == "2 names are in more than one split of images/, and masks/ has none"


def test_folders_of_one_sample_each_are_no_sides() -> None:
    [match] = match_names(["000/image.png", "000/mask.png", "001/image.png", "001/mask.png"])
    assert match.layout.sides == ("mask", "image") and [pair.pair_id for pair in match.pairs] == ["000", "001"]


def test_what_lies_in_folders_of_splits_is_said_to_lie_there() -> None:
    [match] = match_names(["train/1.png", "train/2.png", "test/3.png", "4.png"])
    assert match.layout.seen == "test/ (1), train/ (2), 1 in no sub-folder"


def test_the_folders_that_all_images_lie_in_are_not_said() -> None:
    [match] = match_names([f"set/v1/{folder}/{n}.png" for folder in ("x", "y", "z") for n in (1, 2)])
    assert match.layout.seen == "x/ (2), y/ (2), z/ (2)"


def test_a_side_of_several_folders_is_called_so() -> None:
    [match] = match_names([f"s{side}_{n}/s{side}_{n}_p1.png" for side in (1, 2) for n in (0, 1)])
    assert match.layout.sides == ("s1_0/ and 1 more", "s2_0/ and 1 more")


def test_names_are_shortened_by_numbers_only_where_nearly_all_then_pair_up() -> None:
    paths = [f"{side}/{n}{end}.png" for side, end in (("labels", "_1"), ("images", "")) for n in range(5)]
    assert len(match_names(paths)) == 1
    [match] = match_names([*paths, *(f"{side}/{n}.png" for side in ("labels", "images") for n in ("y7", "z8"))])
    assert len(match.pairs) == 7 and not match.unmatched
    [match, *_] = match_names(["labels/1_2.png", "labels/2_2.png", "images/1.png", "images/3.png"])
    assert match.layout.is_combined
