"""The dataset doctor: what is wrong with the pairs of a data set, with the pairs' ids."""

from __future__ import annotations

import numpy as np

from p2p.doctor.alignment import check_alignment
from p2p.doctor.duplicates import check_duplicates, check_equal_sides
from p2p.doctor.features import PairFeatures, Records
from p2p.doctor.findings import Check
from p2p.doctor.outliers import check_blank, check_direction, check_modes, check_sizes
from p2p.doctor.partners import check_partners


class Doctor:
    """Collects the features of pairs as parts of a data set are done, then examines them together."""

    def __init__(self) -> None:
        self._ids: list[tuple[str, str]] = []
        self._features: list[Records] = []
        self._details: list[Records] = []

    def add(self, split: str, pairs: PairFeatures) -> None:
        """Add some pairs of `split`."""
        details = pairs.details.copy()
        details["row"] += len(self._ids)
        self._ids += [(split, pair_id) for pair_id in pairs.ids]
        self._features.append(pairs.features)
        self._details.append(details)

    def examine(self) -> tuple[list[tuple[str, str]], list[Check]]:
        """-> (split, pair id) of each row that the findings name, and all checks. The order of `add` is free."""
        order = sorted(range(len(self._ids)), key=self._ids.__getitem__)
        ids = [self._ids[row] for row in order]
        if not ids:
            return ids, []
        features, details = np.concatenate(self._features)[order], np.concatenate(self._details)
        details["row"] = np.argsort(order)[details["row"]]
        details = details[np.argsort(details["row"])]
        splits = np.unique([split for split, _ in ids], return_inverse=True)[1]
        checks = [
            check_partners(details),
            check_direction(features),
            check_alignment(features, details),
            *check_duplicates(features, splits),
            check_equal_sides(features),
            check_blank(features),
            check_sizes(features),
            check_modes(features),
        ]
        return ids, checks
