"""Whether A and B lie exactly over each other."""

from __future__ import annotations

import numpy as np

from p2p.doctor.features import FINE, REACH, Facts
from p2p.doctor.finding import Check, Finding, Named

_FEWEST = 16
_CLEAR = 6.0  # standard deviations: the highest of 2,400 places of noise reaches 4
_VERY_CLEAR = 6.5
_FAINT = 3.5
_NEAR = 2.0
_TOGETHER = 0.6
_LEAST_SHIFT = 2.0
_LEAST_OUTLIER = 4.0


def check_alignment(facts: Facts, close: Facts) -> Check:
    """Find a shift that all pairs have, and single pairs that are shifted otherwise. Shifts are told in pixels of A."""
    best = close["peaks"][:, 0]
    clear = best[:, 2] >= _CLEAR
    if clear.sum() < _FEWEST:
        note = f"the edges of A and B agree clearly in {clear.sum()} pairs; {_FEWEST} would do"
        return Check("alignment", len(close), note=note, unclear=True)
    middle = np.median(best[clear, :2], 0)
    together = float((np.hypot(*(best[clear, :2] - middle).T) <= _NEAR).mean())
    scale = facts["size"][close["row"], 0, ::-1] / FINE
    median_x, median_y = (float(value) for value in middle * np.median(scale, 0))
    numbers = {"median_x": median_x, "median_y": median_y, "pairs_with_clear_edges": int(clear.sum())}
    numbers["share_near_median"] = together
    if together < _TOGETHER:
        note = "the shifts of single pairs scatter too much to be trusted"
        return Check("alignment", len(close), note=note, unclear=True, numbers=numbers)
    findings = []
    if np.hypot(*middle) >= _LEAST_SHIFT:
        findings.append(
            Finding(
                "shifted_set",
                "fault",
                f"B is shifted {_direction(median_x, median_y)} against A in the whole data set",
                "Crop both sides so that they lie over each other; otherwise the generator learns the shift, or blurs.",
                [Named(int(row), "as the rest") for row in close["row"][clear & (_apart(close, middle) <= _NEAR)]],
                numbers=numbers,
            )
        )
    # Shadows and repeated patterns may win, but then the right place is among the peaks too.
    elsewhere = np.hypot(*(close["peaks"][..., :2] - middle).transpose(2, 0, 1)) > _NEAR + 1
    nothing_there = (elsewhere | (close["peaks"][..., 2] < _FAINT)).all(1)
    outliers = (best[:, 2] >= _VERY_CLEAR) & (_apart(close, middle) >= _LEAST_OUTLIER) & nothing_there
    named = []
    for place in np.flatnonzero(outliers):
        x, y = best[place, :2] * scale[place]
        named.append(Named(int(close["row"][place]), f"b is shifted {_direction(float(x), float(y))} against a"))
    if named:
        findings.append(
            Finding(
                "shifted_pairs",
                "look",
                "Pairs that are shifted against each other, unlike the rest",
                "Align or leave them out: where A and B disagree by pixels, the L1 loss asks for blur.",
                named,
                numbers=numbers,
            )
        )
    widest = 100 * REACH // FINE
    note = f"median shift {median_x:+.1f}, {median_y:+.1f} px; looked for up to {widest} % of a side"
    return Check("alignment", len(close), findings, note, numbers=numbers)


def _apart(close: Facts, middle: np.ndarray) -> np.ndarray:
    return np.asarray(np.hypot(*(close["peaks"][:, 0, :2] - middle).T))


def _direction(x: float, y: float) -> str:
    """Pixels to the right and down -> words: `3 px right and 2 px up`."""
    parts = [f"{abs(x):.0f} px {'right' if x > 0 else 'left'}"] if round(x) else []
    parts += [f"{abs(y):.0f} px {'down' if y > 0 else 'up'}"] if round(y) else []
    return " and ".join(parts) or "by less than a pixel"
