"""The same pairs as each side's generator made them: those that differ most."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from p2p.comparison.differences import Side, gain_of
from p2p.comparison.evaluations import StoredEvaluation
from p2p.errors import BadInputError, NotFoundError, StorageError
from p2p.model.bootstrap import Floats
from p2p.model.metrics import METRICS
from p2p.reports.comparison import ComparedPair
from p2p.reports.examples import ExamplePictures, read_examples
from p2p.storage.images import decode
from p2p.storage.pixels import Array

log = logging.getLogger("p2p")

_MAX_EXAMPLES = 32


def choose_examples(sides: Sequence[Side], names: Sequence[str]) -> list[ComparedPair]:
    """The pairs that got better most and those that got worse most, by every metric in turn. Of pairs whose pictures
    each side's first evaluation keeps; empty where there are none.
    """
    firsts = [side[0] for side in sides]
    kept = [_read_pictures(one) for one in firsts]
    ids = [pair_id for pair_id in firsts[0].pair_ids if all(pair_id in pictures for pictures in kept)]
    if not ids:
        return []
    metrics = [name for name in METRICS if all(name in one.per_pair for one in firsts)]
    places = {pair_id: place for place, pair_id in enumerate(firsts[0].pair_ids)}
    rows = np.array([places[pair_id] for pair_id in ids])
    gains = {name: gain_of(name, firsts[0].per_pair[name][rows], firsts[-1].per_pair[name][rows]) for name in metrics}
    found = []
    for place in list(dict.fromkeys(_by_turns(gains)))[:_MAX_EXAMPLES]:
        row = int(rows[place])
        try:
            pictures = _pictures(ids[place], kept, names)
        except BadInputError as error:
            log.warning("the report lacks pair %s: %s", ids[place], error)
            continue
        values = {name: [float(one.per_pair[name][row]) for one in firsts] for name in metrics}
        found.append(ComparedPair(ids[place], pictures, values, {name: float(gains[name][place]) for name in metrics}))
    return found


def _by_turns(gains: Mapping[str, Floats]) -> Iterator[int]:
    """Places: the best of each metric, the worst of each, the second best of each, and so on."""
    orders = [np.argsort(-values) for values in gains.values()]
    for turn in range(_MAX_EXAMPLES):
        for order in orders:
            if 2 * turn < len(order):
                yield int(order[turn])
                yield int(order[-1 - turn])


def _read_pictures(evaluation: StoredEvaluation) -> Mapping[str, ExamplePictures]:
    try:
        return read_examples(evaluation.uri)
    except NotFoundError:
        return {}
    except StorageError as error:
        log.warning("the report has no examples: %s", error)
        return {}


def _pictures(
    pair_id: str, kept: Sequence[Mapping[str, ExamplePictures]], names: Sequence[str]
) -> list[tuple[str, Array]]:
    outputs = [(name, decode(examples[pair_id].output)) for name, examples in zip(names, kept, strict=True)]
    first = kept[0][pair_id]
    return [("input", decode(first.input)), *outputs, ("target", decode(first.target))]
