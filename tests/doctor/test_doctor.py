"""Each fault is planted in sound pairs, and the doctor names exactly the pairs that have it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.doctor import Doctor
from p2p.doctor.duplicates import check_duplicates
from p2p.doctor.features import FEATURES, PairFeatures, collect, compute_features, is_sampled
from p2p.doctor.files import BadRow, check_files
from p2p.doctor.findings import Check
from p2p.storage import images
from p2p.synthetic.pairs import city_pair

SIZE = 160
Pair = tuple[np.ndarray, np.ndarray]
Key = tuple[str, str]
RGB = ("RGB", "RGB")


@pytest.fixture(scope="module")
def sound() -> dict[Key, Pair]:
    """56 pairs to train and 8 to validate, with nothing wrong."""
    return {
        ("val" if index % 8 == 7 else "train", f"{index:02d}"): city_pair(3, index, SIZE, SIZE) for index in range(64)
    }


_computed: dict[tuple[int, int], tuple[Pair, tuple]] = {}


def features_of(pair: Pair, modes: tuple[str, str]) -> tuple:
    """The features of sound pairs are computed once for all tests. The pair is kept, so that its id stays its own."""
    key = (id(pair[0]), id(pair[1]))
    if modes != RGB:
        return compute_features(*pair, modes, detailed=True)
    if key not in _computed:
        _computed[key] = (pair, compute_features(*pair, modes, detailed=True))
    return _computed[key][1]


def checks_of(
    pairs: Mapping[Key, Pair], modes: Mapping[Key, tuple[str, str]] | None = None
) -> tuple[list, list[Check]]:
    doctor = Doctor()
    for split in ("val", "train"):
        rows = [
            (pair_id, *features_of(pair, (modes or {}).get((at, pair_id), RGB)))
            for (at, pair_id), pair in pairs.items()
            if at == split
        ]
        doctor.add(split, collect(rows))
    return doctor.examine()


def found(pairs: Mapping[Key, Pair], modes: Mapping[Key, tuple[str, str]] | None = None) -> dict[str, set[str]]:
    keys, checks = checks_of(pairs, modes)
    return {
        finding.name: {keys[named.row][1] for named in finding.pairs} for check in checks for finding in check.findings
    }


def moved(image: np.ndarray, right: int, down: int) -> np.ndarray:
    """What a camera sees that looks elsewhere: the picture's place moves, its size stays, its border repeats."""
    height, width = image.shape[:2]
    rows, columns = np.arange(height) - down, np.arange(width) - right
    return image[np.clip(rows, 0, height - 1)][:, np.clip(columns, 0, width - 1)]


def saved_again(image: np.ndarray) -> np.ndarray:
    smaller = images.resize(image, round(SIZE * 0.8), round(SIZE * 0.8))
    brighter = np.clip(smaller.astype(int) + 6, 0, 255).astype(np.uint8)
    return images.decode(images.encode(brighter, "jpeg", 70))


def exchange(pairs: dict[Key, Pair], cycle: Iterable[str]) -> None:
    keys = [("train", name) for name in cycle]
    partners = [pairs[key][1] for key in keys]
    for key, partner in zip(keys, partners[1:] + partners[:1], strict=True):
        pairs[key] = (pairs[key][0], partner)


def test_sound_pairs_have_no_finding_and_every_check_can_tell(sound: dict[Key, Pair]) -> None:
    keys, checks = checks_of(sound)
    assert [check.name for check in checks if check.findings or check.unclear] == []
    assert [check.examined for check in checks] == [64] * len(checks)
    assert len(keys) == 64


def test_exchanged_partners_are_named_with_the_one_that_fits(sound: dict[Key, Pair]) -> None:
    pairs = dict(sound)
    exchange(pairs, ["03", "20"])
    exchange(pairs, ["30", "41", "50"])
    keys, checks = checks_of(pairs)
    [finding] = [finding for check in checks for finding in check.findings]
    assert finding.name == "exchanged_partners"
    fits = {keys[named.row][1]: keys[named.others[0]][1] for named in finding.pairs}
    assert fits == {"03": "20", "20": "03", "30": "50", "41": "30", "50": "41"}


@pytest.mark.parametrize("count", [1, 20])
def test_exchanged_sides_are_named_up_to_a_third_of_the_set(sound: dict[Key, Pair], count: int) -> None:
    chosen = list(sound)[:count]
    pairs = {key: pair[::-1] if key in chosen else pair for key, pair in sound.items()}
    assert found(pairs) == {"exchanged_sides": {name for _, name in chosen}}


def test_copies_are_told_apart_by_whether_a_pixel_differs(sound: dict[Key, Pair]) -> None:
    pairs = dict(sound)
    a, b = sound["train", "04"]
    pairs["train", "copy"] = (a.copy(), b.copy())
    a, b = sound["train", "10"]
    pairs["train", "again"] = (saved_again(a), saved_again(b))
    assert found(pairs) == {
        "exact_duplicates": {"04", "copy"},
        "near_duplicates": {"10", "again"},
        "odd_sizes": {"again"},
    }


def test_what_stands_in_two_splits_is_leakage_and_no_duplicate(sound: dict[Key, Pair]) -> None:
    pairs = dict(sound)
    pairs["val", "same"] = sound["train", "02"]
    a, b = sound["train", "12"]
    pairs["val", "similar"] = tuple(images.resize(saved_again(side), SIZE, SIZE) for side in (a, b))
    pairs["val", "photo"] = (sound["train", "22"][0], sound["val", "07"][1])
    named = found(pairs)
    assert named["leakage"] == {"same", "02", "similar", "12", "photo", "22"}
    assert named.keys() <= {"leakage", "exchanged_partners"}, "the last has a stranger's map, which may be told too"


def test_copies_within_a_split_are_told_though_the_picture_stands_in_another_split_too(sound: dict[Key, Pair]) -> None:
    pairs = dict(sound)
    pairs["train", "copy"] = pairs["val", "leak"] = sound["train", "02"]
    assert found(pairs) == {"exact_duplicates": {"02", "copy"}, "leakage": {"02", "copy", "leak"}}


def test_one_picture_on_both_sides_is_told(sound: dict[Key, Pair]) -> None:
    pairs = dict(sound)
    a, _ = sound["train", "02"]
    pairs["train", "02"] = (a, a.copy())
    a, _ = sound["train", "04"]
    pairs["train", "04"] = (a, np.clip(a.astype(int) + 3, 0, 255).astype(np.uint8))  # such as noise, which is a task
    assert found(pairs)["equal_sides"] == {"02"}


def test_equal_maps_of_different_places_are_no_leakage(sound: dict[Key, Pair]) -> None:
    pairs = dict(sound)
    flat = np.full((SIZE, SIZE, 3), 190, np.uint8)
    for key in (("train", "00"), ("val", "07")):
        pairs[key] = (sound[key][0], flat)
    assert found(pairs) == {"blank": {"00", "07"}}


def test_blank_sides_are_named_noise_or_not(sound: dict[Key, Pair]) -> None:
    pairs = dict(sound)
    noise = np.random.default_rng(0).normal(100, 1, (SIZE, SIZE, 1)).repeat(3, 2).astype(np.uint8)
    pairs["train", "01"] = (noise, sound["train", "01"][1])
    pairs["train", "05"] = (noise + 9, noise + 30)
    assert found(pairs) == {"blank": {"01", "05"}}


def test_of_16_bits_that_are_black_the_doctor_says_why(sound: dict[Key, Pair]) -> None:
    pairs = dict(sound)
    black = np.zeros((SIZE, SIZE, 3), np.uint8)
    pairs["train", "01"] = (sound["train", "01"][0], black)
    pairs["train", "05"] = (black, sound["train", "05"][1])

    def advice(modes: dict[Key, tuple[str, str]]) -> tuple[str, list[str]]:
        _, checks = checks_of(pairs, modes)
        [finding] = [finding for check in checks for finding in check.findings if finding.name == "blank"]
        return finding.advice, [named.detail for named in finding.pairs]

    plain, details = advice({})
    assert plain.startswith("Leave them out") and "16 bits" not in plain
    assert details == ["b: brightness varies by 0 of 255", "a: brightness varies by 0 of 255"]
    one, details = advice({("train", "01"): ("RGB", "I;16")})
    assert one == f"{one.partition(' Leave')[0]} {plain}" and "save ids below 256 with 8 bits" in one
    assert details[0] == "b: brightness varies by 0 of 255; the 16 bits of b hold small numbers only"
    both, _ = advice({("train", "01"): ("RGB", "I;16"), ("train", "05"): ("3x16", "RGB")})
    assert "save ids" in both and "Leave them out" not in both


def test_odd_sizes_and_kinds_of_pixels_are_named(sound: dict[Key, Pair]) -> None:
    pairs = dict(sound)
    a, b = sound["train", "06"]
    pairs["train", "06"] = (a, images.resize(b, SIZE // 2, SIZE // 2))
    pairs["train", "08"] = tuple(images.resize(side, SIZE, 2 * SIZE) for side in sound["train", "08"])
    modes = {("train", "09"): ("L", "RGB"), ("val", "15"): ("RGB", "P")}
    assert found(pairs, modes) == {"odd_sizes": {"06", "08"}, "odd_modes": {"09", "15"}}


def test_pairs_shifted_unlike_the_rest_are_named_with_their_shift_in_pixels(sound: dict[Key, Pair]) -> None:
    pairs = dict(sound)
    for name, right, down in (("11", 7, 0), ("10", -5, 8)):
        a, b = sound["train", name]
        pairs["train", name] = (a, moved(b, right, down))
    keys, checks = checks_of(pairs)
    [finding] = [finding for check in checks for finding in check.findings]
    assert finding.name == "shifted_pairs"
    assert {keys[named.row][1]: named.detail for named in finding.pairs} == {
        "11": "b is shifted 7 px right against a",
        "10": "b is shifted 5 px left and 8 px down against a",
    }


def test_a_shift_of_the_whole_set_is_one_finding(sound: dict[Key, Pair]) -> None:
    pairs = {key: (a, moved(b, -3, 2)) for key, (a, b) in sound.items()}
    _, checks = checks_of(pairs)
    [finding] = [finding for check in checks for finding in check.findings]
    assert finding.name == "shifted_set"
    assert finding.numbers["median_x"] == pytest.approx(-3, abs=0.7)
    assert finding.numbers["median_y"] == pytest.approx(2, abs=0.7)


def test_many_faults_at_once_do_not_hide_each_other(sound: dict[Key, Pair]) -> None:
    pairs = dict(sound)
    exchange(pairs, ["03", "20"])
    pairs["train", "13"] = sound["train", "13"][::-1]
    pairs["val", "same"] = sound["train", "02"]
    pairs["train", "copy"] = sound["train", "16"]
    a, b = sound["train", "25"]
    pairs["train", "25"] = (a, moved(b, 8, 0))
    pairs["train", "27"] = (sound["train", "27"][0], np.zeros((SIZE, SIZE, 3), np.uint8))
    assert found(pairs) == {
        "exchanged_partners": {"03", "20"},
        "exchanged_sides": {"13"},
        "leakage": {"same", "02"},
        "exact_duplicates": {"16", "copy"},
        "shifted_pairs": {"25"},
        "blank": {"27"},
    }


def test_where_a_and_b_have_nothing_in_common_the_doctor_says_that_it_cannot_tell() -> None:
    rng = np.random.default_rng(0)
    pairs = {("train", f"{index}"): tuple(rng.integers(0, 256, (2, 32, 32, 3), np.uint8)) for index in range(30)}
    _, checks = checks_of(pairs)
    assert [check.name for check in checks if check.findings] == []
    assert {check.name for check in checks if check.unclear} == {"exchanged partners", "exchanged sides", "alignment"}


@pytest.mark.parametrize("count", [0, 1, 5])
def test_few_pairs_are_enough_for_what_needs_no_comparison(sound: dict[Key, Pair], count: int) -> None:
    pairs = dict(list(sound.items())[:count])
    assert found(pairs) == {}
    if count > 1:
        pairs["train", "copy"] = next(iter(pairs.values()))
        assert found(pairs) == {"exact_duplicates": {"00", "copy"}}


def test_channels_and_depth_do_not_matter(sound: dict[Key, Pair]) -> None:
    a, b = sound["train", "00"]
    gray = a[..., :1]
    deep = a.astype(np.uint16) * 257
    many = np.concatenate([a, a], axis=2)
    plain, _ = compute_features(a, b, RGB, detailed=True)
    for other in (deep, many):
        features, details = compute_features(other, b, RGB, detailed=True)
        assert details is not None
        assert (features["hash"] == plain["hash"]).all()
        assert features["content"][0] != plain["content"][0]
    features, _ = compute_features(gray, gray[..., 0], RGB, detailed=True)
    assert (features["small"][0] == features["small"][1]).all()


def test_the_order_in_which_parts_arrive_does_not_matter(sound: dict[Key, Pair]) -> None:
    pairs = dict(sound)
    exchange(pairs, ["03", "20"])
    pairs["val", "same"] = sound["train", "02"]
    parts: list[tuple[str, PairFeatures]] = []
    for start in range(0, len(pairs), 7):
        for split, group in itertools.groupby(list(pairs.items())[start : start + 7], key=lambda item: item[0][0]):
            parts.append((split, collect([(pair_id, *features_of(pair, RGB)) for (_, pair_id), pair in group])))
    outcomes = []
    for order in (parts, parts[::-1], parts[5:] + parts[:5]):
        doctor = Doctor()
        for split, features in order:
            doctor.add(split, features)
        outcomes.append(doctor.examine())
    assert outcomes[0] == outcomes[1] == outcomes[2]


@given(st.lists(st.integers(0, 63), max_size=3, unique=True), st.lists(st.integers(0, 63), max_size=6, unique=True))
def test_copies_whose_hashes_differ_by_some_bits_are_found_among_strangers(first: list[int], second: list[int]) -> None:
    rng = np.random.default_rng(len(first) + 10 * len(second))
    features = np.zeros(300, FEATURES)
    features["content"] = np.arange(600).reshape(300, 2)
    features["hash"] = rng.integers(0, 2**63, (300, 2), np.uint64) * 2 + 1
    features["small"] = rng.integers(0, 256, (300, 2, 256))
    features["range"] = 200
    for side, bits in enumerate((first, second)):
        features["hash"][299, side] = features["hash"][7, side] ^ np.uint64(sum(1 << bit for bit in bits))
        features["small"][299, side] = features["small"][7, side]
    checks = check_duplicates(features, np.zeros(300, np.int64))
    named = [named.row for check in checks for finding in check.findings for named in finding.pairs]
    assert named == [7, 299]


def test_refused_files_are_sorted_by_what_is_wrong() -> None:
    bad = [
        BadRow("b/x.png", "Unmatched", "pair 'x' has no a"),
        BadRow("a/y.png", "MismatchedSizes", "a is 3x3, b is 4x3"),
        BadRow("a/z.png", "EmptyFile", "the file has zero bytes"),
    ]
    checks = check_files(bad, 10)
    named = {finding.name: [uri for uri, _ in finding.files] for check in checks for finding in check.findings}
    assert named == {
        "missing_partners": ["b/x.png"],
        "mismatched_sizes": ["a/y.png"],
        "unusable_files": ["a/z.png"],
    }


def test_a_sample_has_the_size_that_was_asked_for_and_is_the_same_again() -> None:
    names = [f"pair-{index}" for index in range(4000)]
    chosen = [name for name in names if is_sampled(name, 0.25)]
    assert 800 < len(chosen) < 1200
    assert all(is_sampled(name, 1.0) for name in names)
    assert chosen == [name for name in chosen if is_sampled(name, 0.5)], "a larger sample holds the smaller one"
