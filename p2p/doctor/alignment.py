"""Whether A and B lie exactly over each other."""

from __future__ import annotations

import numpy as np

from p2p.doctor.features import FINE, REACH, Records
from p2p.doctor.findings import Check, Finding, NamedPair

_MIN_PAIRS = 16
_MIN_PEAK = 6.0  # standard deviations: the highest of 2,400 places of noise reaches 4
_MIN_OUTLIER_PEAK = 6.5
_MIN_SECONDARY_PEAK = 3.5
_MAX_SCATTER = 2.0
_MIN_SHARE_NEAR_MEDIAN = 0.6
_MIN_SHIFT = 2.0
_MIN_OUTLIER_SHIFT = 4.0


def check_alignment(features: Records, details: Records) -> Check:
    """Find a shift that all pairs have, and single pairs that are shifted otherwise; shifts are in pixels of A."""
    best = details["peaks"][:, 0]
    clear = best[:, 2] >= _MIN_PEAK
    if clear.sum() < _MIN_PAIRS:
        note = f"the edges of A and B agree clearly in {clear.sum()} pairs; {_MIN_PAIRS} are needed"
        return Check("alignment", len(details), note=note, unclear=True)
    median = np.median(best[clear, :2], 0)
    distance = np.hypot(*(best[:, :2] - median).T)
    near = float((distance[clear] <= _MAX_SCATTER).mean())
    scale = features["size"][details["row"], 0, ::-1] / FINE
    median_x, median_y = (float(value) for value in median * np.median(scale, 0))
    numbers = {"median_x": median_x, "median_y": median_y, "pairs_with_clear_edges": int(clear.sum())}
    numbers["share_near_median"] = near
    if near < _MIN_SHARE_NEAR_MEDIAN:
        note = "the shifts of single pairs scatter too much to be trusted"
        return Check("alignment", len(details), note=note, unclear=True, numbers=numbers)
    findings = []
    if np.hypot(*median) >= _MIN_SHIFT:
        rows = details["row"][clear & (distance <= _MAX_SCATTER)]
        findings.append(
            Finding(
                "shifted_set",
                "error",
                f"B is shifted {_direction(median_x, median_y)} against A in the whole data set",
                "Crop both sides so that they lie over each other; otherwise the generator learns the shift, or blurs.",
                [NamedPair(int(row), "as the rest") for row in rows],
                numbers=numbers,
            )
        )
    # Shadows and repeated patterns may be the highest peak, but then the right place is among the peaks too.
    elsewhere = np.hypot(*(details["peaks"][..., :2] - median).transpose(2, 0, 1)) > _MAX_SCATTER + 1
    no_peak_near = (elsewhere | (details["peaks"][..., 2] < _MIN_SECONDARY_PEAK)).all(1)
    outliers = (best[:, 2] >= _MIN_OUTLIER_PEAK) & (distance >= _MIN_OUTLIER_SHIFT) & no_peak_near
    named = []
    for place in np.flatnonzero(outliers):
        x, y = best[place, :2] * scale[place]
        row = int(details["row"][place])
        named.append(NamedPair(row, f"b is shifted {_direction(float(x), float(y))} against a"))
    findings.append(
        Finding(
            "shifted_pairs",
            "warning",
            "Pairs that are shifted against each other, unlike the rest",
            "Align or leave them out: where A and B disagree by pixels, the L1 loss asks for blur.",
            named,
            numbers=numbers,
        )
    )
    max_shift = 100 * REACH // FINE
    note = f"median shift {median_x:+.1f}, {median_y:+.1f} px; searched up to {max_shift} % of a side"
    return Check("alignment", len(details), findings, note, numbers=numbers)


def _direction(x: float, y: float) -> str:
    """Pixels to the right and down -> words: `3 px right and 2 px up`."""
    parts = [f"{abs(x):.0f} px {'right' if x > 0 else 'left'}"] if round(x) else []
    parts += [f"{abs(y):.0f} px {'down' if y > 0 else 'up'}"] if round(y) else []
    return " and ".join(parts) or "by less than a pixel"
