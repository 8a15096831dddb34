"""The dataset doctor: what is wrong with the pairs of a data set, told with the pairs' ids."""

from __future__ import annotations

import numpy as np

from p2p.doctor.alignment import check_alignment
from p2p.doctor.duplicates import check_duplicates
from p2p.doctor.features import Facts, Portraits
from p2p.doctor.finding import Check
from p2p.doctor.looks import check_blank, check_direction, check_modes, check_sizes
from p2p.doctor.partners import check_partners


class Doctor:
    """Collects portraits of pairs as shards finish, then examines them together."""

    def __init__(self) -> None:
        self._ids: list[tuple[str, str]] = []
        self._facts: list[Facts] = []
        self._close: list[Facts] = []

    def add(self, split: str, portraits: Portraits) -> None:
        """Take the portraits of one shard of `split`."""
        close = portraits.close.copy()
        close["row"] += len(self._ids)
        self._ids += [(split, pair_id) for pair_id in portraits.ids]
        self._facts.append(portraits.facts)
        self._close.append(close)

    def examine(self) -> tuple[list[tuple[str, str]], list[Check]]:
        """-> (split, pair id) of each row that the findings name, and all checks. The order of `add` is forgotten."""
        order = sorted(range(len(self._ids)), key=self._ids.__getitem__)
        ids = [self._ids[row] for row in order]
        if not ids:
            return ids, []
        facts = np.concatenate(self._facts)[order]
        close = np.concatenate(self._close)
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        close["row"] = place[close["row"]]
        close = close[np.argsort(close["row"])]
        names = sorted({split for split, _ in ids})
        splits = np.array([names.index(split) for split, _ in ids])
        checks = [
            check_partners(close),
            check_direction(facts),
            check_alignment(facts, close),
            *check_duplicates(facts, splits),
            check_blank(facts),
            check_sizes(facts),
            check_modes(facts),
        ]
        return ids, checks
