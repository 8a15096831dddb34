"""Whether each A has its own B: what A and B have in common is learned from the data set itself."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from p2p.doctor.features import CELLS, Records
from p2p.doctor.findings import Check, Finding, NamedPair

Matrix = npt.NDArray[np.float32]

_MIN_PAIRS = 24
_MAX_LEARNED = 512
_MAX_COMPARED = 4096
_VARIATES = 6
_MIN_VARIANCE = 1e-3  # of the largest variance: directions with less are noise
_MIN_GAIN = 0.12
"""How much better, as a correlation, a stranger must fit than the own partner on either side of an exchange."""
_STRANGERS = 8
_MIN_CORRELATION = 0.25  # canonical correlation
_MIN_SEPARATION = 1.0  # standard deviations between strangers and the typical own partner


def check_partners(details: Records) -> Check:
    """Find pairs whose B fits another's A far better, where that one's B is a stranger too: partners exchanged.

    A canonical correlation analysis (Hotelling 1936) over the cells of up to 512 pairs finds what predicts B from A;
    a pair's score is the correlation of both sides in those terms. `row` of the result is that of the features.
    """
    if len(details) < _MIN_PAIRS:
        note = f"{len(details)} pairs are too few to learn from; {_MIN_PAIRS} are needed"
        return Check("exchanged partners", len(details), note=note, unclear=True)
    a, b, strength = _common_terms(details)
    own = np.einsum("ij,ij->i", a, b)
    few = min(len(details), _MAX_LEARNED)
    strangers = np.concatenate([(a[:few] * np.roll(b[:few], shift, 0)).sum(1) for shift in range(1, _STRANGERS + 1)])
    typical, chance, spread = float(np.median(own)), float(strangers.mean()), float(strangers.std())
    measured = {"own_partner": typical, "stranger": chance, "canonical_correlation": strength}
    numbers = {name: round(value, 3) for name, value in measured.items()}
    if strength < _MIN_CORRELATION or typical < chance + _MIN_SEPARATION * spread:
        note = "A and B have too little in common to tell a partner from a stranger, or all partners are wrong"
        return Check("exchanged partners", len(details), note=note, unclear=True, numbers=numbers)
    # An exchange leaves low scores behind, so only those need be compared with each other.
    lowest = np.sort(np.argsort(own, kind="stable")[:_MAX_COMPARED])
    named = []
    for here, there, stays, fits in _exchanges(a[lowest], b[lowest]):
        detail = f"its a fits the b of another pair ({fits:.2f}) and not its own ({stays:.2f})"
        rows = details["row"][lowest[[here, there]]]
        named.append(NamedPair(int(rows[0]), detail, (int(rows[1]),)))
    note = f"correlation {typical:.2f} with the own partner, {chance:.2f} with a stranger"
    finding = Finding(
        "exchanged_partners",
        "error",
        "Pairs whose partners look exchanged: each A fits the B of another pair of this list, and not its own",
        "Compare the pictures and correct the names of the files; a wrong partner teaches the opposite.",
        named,
        numbers=numbers,
    )
    return Check("exchanged partners", len(details), [finding], note, numbers=numbers)


def _expanded(cells: npt.NDArray[np.uint8]) -> Matrix:
    """(n, 16, 16, 4) uint8 -> (n, 256, 14): the values and their products."""
    values = cells.reshape(len(cells), CELLS * CELLS, -1).astype(np.float32) / 255
    products = [values[..., i] * values[..., j] for i, j in itertools.combinations_with_replacement(range(4), 2)]
    return np.concatenate([values, np.stack(products, -1)], -1)


def _common_terms(details: Records) -> tuple[Matrix, Matrix, float]:
    """-> (n, 256 * 6) unit vectors of the As and of the Bs, and the first canonical correlation."""
    learned = np.linspace(0, len(details) - 1, min(len(details), _MAX_LEARNED)).astype(int)
    sides = [_expanded(details["cells"][learned, side]) for side in (0, 1)]
    means = [side.mean(0) for side in sides]  # of each place: sky is up in every street
    flat = [
        (side - mean).reshape(-1, side.shape[-1]).astype(np.float64) for side, mean in zip(sides, means, strict=True)
    ]
    white = [_whitening(side) for side in flat]
    left, strengths, right = np.linalg.svd((flat[0] @ white[0]).T @ (flat[1] @ white[1]) / len(flat[0]))
    weights = np.sqrt(strengths[:_VARIATES])
    units = []
    for side, turn in enumerate((white[0] @ left, white[1] @ right.T)):
        chosen = (turn[:, :_VARIATES] * weights).astype(np.float32)
        vectors = np.empty((len(details), CELLS * CELLS * _VARIATES), np.float32)
        for start in range(0, len(details), _MAX_LEARNED):
            block = _expanded(details["cells"][start : start + _MAX_LEARNED, side]) - means[side]
            vectors[start : start + len(block)] = (block @ chosen).reshape(len(block), -1)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-6
        units.append(vectors)
    return units[0], units[1], float(strengths[0])


def _whitening(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    variances, axes = np.linalg.eigh(values.T @ values / len(values))
    return np.asarray(axes / np.sqrt(np.maximum(variances, _MIN_VARIANCE * max(variances.max(), 1e-12))))


def _exchanges(a: Matrix, b: Matrix) -> list[tuple[int, int, float, float]]:
    """-> (pair, whose b fits it, score with its own b, score with that b), for whole cycles of exchanged partners."""
    scores = a @ b.T
    own = np.diag(scores).copy()
    left = np.flatnonzero((scores.max(1) - own >= _MIN_GAIN) & (scores.max(0) - own >= _MIN_GAIN))
    while len(left) > 1:
        among = scores[np.ix_(left, left)]
        stays = np.diag(among).copy()
        np.fill_diagonal(among, -np.inf)
        here, there = np.arange(len(left)), among.argmax(1)
        fits = among[here, there]
        good = (among.argmax(0)[there] == here) & (fits - np.maximum(stays, stays[there]) >= _MIN_GAIN)
        taken = np.zeros(len(left), bool)
        taken[there[good]] = True
        good &= taken
        if good.all():
            return [(int(left[k]), int(left[there[k]]), float(stays[k]), float(fits[k])) for k in here]
        left = left[good]
    return []
