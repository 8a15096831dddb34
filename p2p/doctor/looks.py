"""What single pairs look like beside the rest: exchanged sides, blank sides, odd sizes and modes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from p2p.doctor.features import Facts
from p2p.doctor.finding import Check, Finding, Named

_FEWEST = 16
_RIDGE = 0.02
_STYLE_FLOOR = 0.02
_ROUNDS = 8
_EXCHANGED = (-1.5, -0.5)  # on a scale where the usual direction is 1 and the opposite -1
_WIDEST_SPREAD = 0.2
_BLANK_RANGE = 5.0
_MAJORITY = 0.9
_SHAPE_DIGITS = 2


def check_direction(facts: Facts) -> Check:
    """Find pairs whose A looks like the others' B and whose B like the others' A."""
    if len(facts) < _FEWEST:
        note = f"{len(facts)} pairs are too few to compare; {_FEWEST} would do"
        return Check("exchanged sides", len(facts), note=note, unclear=True)
    score, spread = _directions(facts["style"][:, 0] - facts["style"][:, 1])
    numbers = {"spread_of_direction": round(spread, 3)}
    if not spread <= _WIDEST_SPREAD:
        note = "A and B look too much alike to tell one from the other"
        return Check("exchanged sides", len(facts), note=note, unclear=True, numbers=numbers)
    blank = (facts["range"] < _BLANK_RANGE).any(1)  # nothing to tell its direction by
    rows = np.flatnonzero((score > _EXCHANGED[0]) & (score < _EXCHANGED[1]) & ~blank)
    finding = Finding(
        "exchanged_sides",
        "fault",
        "Pairs in which A and B have changed places",
        "Exchange the two sides of these pairs: now they train the opposite direction.",
        [Named(int(row), f"direction {score[row]:.2f}, where the rest is near 1") for row in rows],
        numbers=numbers,
    )
    return Check("exchanged sides", len(facts), [finding] if len(rows) else [], numbers=numbers)


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


def check_blank(facts: Facts) -> Check:
    """Find pairs in which a side is (nearly) one colour."""
    blank = facts["range"] < _BLANK_RANGE
    named = []
    for row in np.flatnonzero(blank.any(1)):
        sides = " and ".join(name for side, name in enumerate("ab") if blank[row, side])
        levels = ", ".join(f"{facts['range'][row, side]:.0f}" for side in (0, 1) if blank[row, side])
        named.append(Named(int(row), f"{sides}: brightness varies by {levels} of 255"))
    finding = Finding(
        "blank",
        "look",
        "Pairs with a side that is a single colour",
        "Leave them out unless they are meant (open water, an empty label map): there is nothing to learn to draw.",
        named,
        numbers={"blank_on_both_sides": int(blank.all(1).sum())},
    )
    return Check("blank or low information", len(facts), [finding] if named else [])


def check_sizes(facts: Facts) -> Check:
    """Find pairs whose sides are of another size than most, or of different sizes where most are equal."""
    height, width = facts["size"][..., 0], facts["size"][..., 1]
    relation = [
        f"{x:g}x{y:g}"
        for x, y in np.round(np.stack([width[:, 1] / width[:, 0], height[:, 1] / height[:, 0]], 1), _SHAPE_DIGITS)
    ]
    sizes = [f"{w}x{h}" for w, h in zip(width[:, 0], height[:, 0], strict=True)]
    notes: dict[int, str] = {}
    usual = _usual(relation)
    if usual is not None:
        for row, one in enumerate(relation):
            if one != usual:
                sides = [f"{facts['size'][row, side, 1]}x{facts['size'][row, side, 0]}" for side in (0, 1)]
                notes[row] = f"a is {sides[0]}, b is {sides[1]}"
    usual = _usual(sizes)
    if usual is not None:
        for row, one in enumerate(sizes):
            if one != usual:
                notes.setdefault(row, f"{one}, where most are {usual}")
    finding = Finding(
        "odd_sizes",
        "look",
        "Pairs of another size than the rest, or with sides of different size",
        "Look whether they belong here: scaling to one size stretches them differently and blurs the larger side.",
        [Named(row, notes[row]) for row in sorted(notes)],
    )
    return Check("sizes", len(facts), [finding] if notes else [], note=f"most are {usual}" if usual else "")


def check_modes(facts: Facts) -> Check:
    """Find pairs whose files hold another kind of pixels (gray, palette, alpha, 16 bit …) than most."""
    modes = np.char.decode(facts["mode"], "ascii")
    notes: dict[int, str] = {}
    usual = [_usual(modes[:, side].tolist()) for side in (0, 1)]
    for side, name in enumerate("ab"):
        if usual[side] is None:
            continue
        for row in np.flatnonzero(modes[:, side] != usual[side]):
            text = f"{name} is {modes[row, side] or 'drawn'}, where most are {usual[side]}"
            notes[int(row)] = f"{notes[int(row)]}; {text}" if int(row) in notes else text
    finding = Finding(
        "odd_modes",
        "look",
        "Pairs whose files hold another kind of pixels than the rest",
        "Save them like the rest: gray among colours, or plain colours among palettes, often is an export gone wrong.",
        [Named(row, notes[row]) for row in sorted(notes)],
    )
    words = ", ".join(f"{name} {mode}" for name, mode in zip("ab", usual, strict=True) if mode)
    return Check("kinds of pixels", len(facts), [finding] if notes else [], note=f"most are {words}" if words else "")


def _usual(words: Sequence[str]) -> str | None:
    """The word that nearly all have, if there is one."""
    word, count = Counter(words).most_common(1)[0]
    return word if count >= _MAJORITY * len(words) else None
