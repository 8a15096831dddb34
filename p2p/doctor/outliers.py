"""Single pairs that are unlike the rest: exchanged sides, blank sides, odd sizes and modes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from p2p.doctor.features import Records
from p2p.doctor.findings import Check, Finding, NamedPair

_MIN_PAIRS = 16
_RIDGE = 0.02
_STYLE_FLOOR = 0.02
_ROUNDS = 8
_EXCHANGED = (-1.5, -0.5)  # on a scale where the usual direction is 1 and the opposite -1
_MAX_SPREAD = 0.2
_BLANK_RANGE = 5.0
_LEAVE_OUT = "Leave them out unless they are meant (open water, an empty label map): there is nothing to learn to draw."
_SMALL_NUMBERS = (
    "Of 16 bits 65535 is white, so small numbers (ids, millimetres) are black: save ids below 256 with 8 bits, and "
    "stretch other values over 0 to 65535."
)
_MAJORITY = 0.9
_SHAPE_DIGITS = 2


def check_direction(features: Records) -> Check:
    """Find pairs whose A looks like the others' B and whose B like the others' A."""
    if len(features) < _MIN_PAIRS:
        note = f"{len(features)} pairs are too few to compare; {_MIN_PAIRS} are needed"
        return Check("exchanged sides", len(features), note=note, unclear=True)
    score, spread = _directions(features["style"][:, 0] - features["style"][:, 1])
    numbers = {"spread_of_direction": round(spread, 3)}
    if not spread <= _MAX_SPREAD:
        note = "A and B look too much alike to be told apart"
        return Check("exchanged sides", len(features), note=note, unclear=True, numbers=numbers)
    blank = (features["range"] < _BLANK_RANGE).any(1)  # which has no direction
    rows = np.flatnonzero((score > _EXCHANGED[0]) & (score < _EXCHANGED[1]) & ~blank)
    finding = Finding(
        "exchanged_sides",
        "error",
        "Pairs in which A and B have changed places",
        "Exchange the two sides of these pairs: now they train the opposite direction.",
        [NamedPair(int(row), f"direction {score[row]:.2f}, where the rest is near 1") for row in rows],
        numbers=numbers,
    )
    return Check("exchanged sides", len(features), [finding], numbers=numbers)


def _directions(difference: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float64], float]:
    """(n, style) A less B -> (n,) near 1 for the usual direction and near -1 for the opposite, and its robust spread.

    The first sign comes from the axis along which pairs differ most, which knows no direction; then a linear
    discriminant between the pairs and their mirror images is fitted until no sign changes.
    """
    values = difference.astype(np.float64)
    values /= np.sqrt((values**2).mean(0)) + _STYLE_FLOOR
    sign = np.where(values @ np.linalg.eigh(values.T @ values)[1][:, -1] < 0, -1, 1)
    score = np.zeros(len(values))
    for _ in range(_ROUNDS):
        turned = values * sign[:, None]
        mean = turned.mean(0)
        axis = np.linalg.solve(np.cov(turned.T) + _RIDGE * np.eye(values.shape[1]), mean)
        length = float(mean @ axis)
        if length <= 0:
            return score, float("inf")
        score = values @ axis / length
        turned_sign = np.where(score < 0, -1, 1)
        if (turned_sign == sign).all():
            break
        sign = turned_sign
    folded = np.abs(score)
    spread = 1.4826 * float(np.median(np.abs(folded - np.median(folded))))
    return (-score if (score < 0).sum() * 2 > len(score) else score), spread


def check_blank(features: Records) -> Check:
    """Find pairs in which a side is (nearly) one colour."""
    blank = features["range"] < _BLANK_RANGE
    modes = np.char.decode(features["mode"], "ascii")
    is_deep = np.char.startswith(modes, "I") | np.char.endswith(modes, "x16")
    small_numbers = blank & is_deep & (features["small"].max(2) < _BLANK_RANGE)
    named = []
    for row in np.flatnonzero(blank.any(1)):
        sides = " and ".join(name for side, name in enumerate("ab") if blank[row, side])
        levels = ", ".join(f"{features['range'][row, side]:.0f}" for side in (0, 1) if blank[row, side])
        deep = " and ".join(name for side, name in enumerate("ab") if small_numbers[row, side])
        why = f"; the 16 bits of {deep} hold small numbers only" if deep else ""
        named.append(NamedPair(int(row), f"{sides}: brightness varies by {levels} of 255{why}"))
    advice = (_SMALL_NUMBERS, small_numbers.any()), (_LEAVE_OUT, (blank & ~small_numbers).any())
    finding = Finding(
        "blank",
        "warning",
        "Pairs with a side that is a single colour",
        " ".join(text for text, is_true in advice if is_true),
        named,
        numbers={"blank_on_both_sides": int(blank.all(1).sum())},
    )
    return Check("blank or low information", len(features), [finding])


def check_sizes(features: Records) -> Check:
    """Find pairs whose sides are of another size than most, or of different sizes where most are equal."""
    size = features["size"][..., ::-1]  # (n, 2, 2): width and height of A, of B
    relation = [f"{x:g}x{y:g}" for x, y in np.round(size[:, 1] / size[:, 0], _SHAPE_DIGITS)]
    a, b = ([f"{width}x{height}" for width, height in size[:, side]] for side in (0, 1))
    usual_relation, usual = _usual(relation), _usual(a)
    notes: dict[int, str] = {}
    for row in range(len(features)):
        if usual_relation not in (None, relation[row]):
            notes[row] = f"a is {a[row]}, b is {b[row]}"
        elif usual not in (None, a[row]):
            notes[row] = f"{a[row]}, where most are {usual}"
    finding = Finding(
        "odd_sizes",
        "warning",
        "Pairs of another size than the rest, or with sides of different size",
        "Look whether they belong here: scaling to one size stretches them differently and blurs the larger side.",
        [NamedPair(row, note) for row, note in notes.items()],
    )
    return Check("sizes", len(features), [finding], note=f"most are {usual}" if usual else "")


def check_modes(features: Records) -> Check:
    """Find pairs whose files hold another kind of pixels (gray, palette, alpha, 16 bit …) than most."""
    modes = np.char.decode(features["mode"], "ascii")
    usual = [_usual(modes[:, side].tolist()) for side in (0, 1)]
    notes: dict[int, list[str]] = {}
    for side, name in enumerate("ab"):
        if usual[side] is not None:
            for row in np.flatnonzero(modes[:, side] != usual[side]):
                note = f"{name} is {modes[row, side] or 'drawn'}, where most are {usual[side]}"
                notes.setdefault(int(row), []).append(note)
    finding = Finding(
        "odd_modes",
        "warning",
        "Pairs whose files hold another kind of pixels than the rest",
        "Save them like the rest: gray among colours, or plain colours among palettes, often is an export gone wrong.",
        [NamedPair(row, "; ".join(notes[row])) for row in sorted(notes)],
    )
    words = ", ".join(f"{name} {mode}" for name, mode in zip("ab", usual, strict=True) if mode)
    return Check("kinds of pixels", len(features), [finding], note=f"most are {words}" if words else "")


def _usual(words: Sequence[str]) -> str | None:
    """The word that nearly all have, if there is one."""
    word, count = Counter(words).most_common(1)[0]
    return word if count >= _MAJORITY * len(words) else None
