"""Evaluations as jobs/evaluate.py left them, and whether their figures can be compared."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from p2p.documents import check_fields
from p2p.errors import ConfigError, DamagedFileError, NotFoundError, StorageError, UsageError
from p2p.model.config import MAX_PALETTE
from p2p.storage.filesystems import join, read_json_object, require_readable
from p2p.storage.parquet import open_parquet

Colour = tuple[int, int, int]
Values = npt.NDArray[np.float64]

_MAY_DIFFER = {"checkpoint", "checkpoint_id", "data", "version", "seed"}
_OPTIONAL = {"palette", "inception", "lpips", "round_trip"}
"""Where only one evaluation has it, the metrics that need it are missing in the other one; what remains is compared."""
_JOINED = {"n", "data_digest"}
"""Looked at last: which pair it is says more."""
_NOT_MEASURED = {"pair_id", "confusion", "target_sha256"}


@dataclass(frozen=True, eq=False)
class StoredEvaluation:
    """What one evaluation found. Its rows are pairs, in the order of `pair_ids`."""

    uri: str
    signature: str
    protocol: Mapping[str, Any]
    metrics: Mapping[str, float | None]
    """Of the whole set."""
    colours: Sequence[Colour]
    """The palette, empty without one."""
    pair_ids: Sequence[str]
    targets: Sequence[str]
    """Hash of each target's pixels."""
    per_pair: Mapping[str, Values]
    """Metric name -> (n,)."""
    confusion: npt.NDArray[np.int64] | None
    """(n, K, K) pixel counts: row = the target's class, column = the output's."""

    def in_order_of(self, pair_ids: Sequence[str]) -> StoredEvaluation:
        """With the rows in another order."""
        places = {pair_id: place for place, pair_id in enumerate(self.pair_ids)}
        order = np.array([places[pair_id] for pair_id in pair_ids])
        return StoredEvaluation(
            self.uri,
            self.signature,
            self.protocol,
            self.metrics,
            self.colours,
            pair_ids,
            [self.targets[place] for place in order],
            {name: values[order] for name, values in self.per_pair.items()},
            None if self.confusion is None else self.confusion[order],
        )


def read_evaluation(uri: str, field: str = "evaluations") -> StoredEvaluation:
    """The evaluation at `uri`. Raises UsageError, which names it, where there is none or it is damaged."""
    try:
        require_readable(uri, field)
        document = read_json_object(join(uri, "evaluation.json"))
        check_fields(document, {"signature": str, "protocol": dict, "metrics": dict, "classes": list})
        colours = [_colour(one) for one in document["classes"]]
        if len(colours) > MAX_PALETTE:
            raise ValueError(f"{len(colours)} classes, more than {MAX_PALETTE}")
        pairs = _read_pairs(join(uri, "per_image.parquet"), len(colours))
        if read_json_object(join(uri, "evaluation.json")) != document:
            raise UsageError(f"EVALUATION {uri}: was written anew while it was read; compare again")
        return StoredEvaluation(
            uri,
            document["signature"],
            document["protocol"],
            {name: _number(value) for name, value in document["metrics"].items()},
            colours,
            *pairs,
        )
    except ConfigError as error:
        raise UsageError(f"EVALUATION {error.problem}") from None
    except NotFoundError:
        raise UsageError(f"EVALUATION {uri}: holds no evaluation; name the --output of jobs/evaluate.py") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"EVALUATION {uri}: evaluation.json is damaged ({error!r}); evaluate again") from None
    except StorageError as error:
        raise UsageError(f"EVALUATION {error}") from None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _colour(entry: Any) -> Colour:
    red, green, blue = (int(value) for value in entry["colour"])
    return red, green, blue


def _read_pairs(uri: str, classes: int) -> tuple[list[str], list[str], dict[str, Values], npt.NDArray[np.int64] | None]:
    with open_parquet(uri) as file:
        schema = file.schema_arrow
        for name in ("pair_id", "target_sha256"):
            if name not in schema.names or not pa.types.is_string(schema.field(name).type):
                raise DamagedFileError(f"{uri}: has no column {name!r} of text; evaluate again")
        metrics = [field.name for field in schema if pa.types.is_floating(field.type)]
        confusion = classes > 0 and "confusion" in schema.names
        table = file.read(columns=["pair_id", "target_sha256", *metrics, *(["confusion"] if confusion else [])])
    ids = table["pair_id"].to_pylist()
    if not ids or None in ids or len(set(ids)) != len(ids):
        raise DamagedFileError(f"{uri}: its pairs have no ids of their own; evaluate again")
    values = {name: np.asarray(table[name].to_numpy(), np.float64) for name in metrics}
    counts = _confusion(table["confusion"], len(ids), classes, uri) if confusion else None
    return ids, table["target_sha256"].to_pylist(), values, counts


def _confusion(column: pa.ChunkedArray, pairs: int, classes: int, uri: str) -> npt.NDArray[np.int64]:
    counts = column.combine_chunks()
    flat = counts.flatten() if pa.types.is_list(counts.type) else counts
    if not pa.types.is_int64(flat.type) or len(flat) != pairs * classes**2 or flat.null_count:
        raise DamagedFileError(f"{uri}: confusion: expected {classes}x{classes} counts for each pair; evaluate again")
    return np.asarray(flat.to_numpy().reshape(pairs, classes, classes))


def require_alike(one: StoredEvaluation, other: StoredEvaluation) -> None:
    """Raise UsageError, which names the first difference, unless the figures of both can be compared."""
    difference = _first_difference(one, other)
    if difference:
        raise UsageError(f"EVALUATION {other.uri}: cannot be compared with {one.uri}: {difference}")


def _first_difference(one: StoredEvaluation, other: StoredEvaluation) -> str | None:
    for name in sorted(set(one.protocol) | set(other.protocol)):
        there, here = one.protocol.get(name), other.protocol.get(name)
        if name in _OPTIONAL and None in (there, here):
            continue
        if name not in _MAY_DIFFER | _JOINED and there != here:
            return f"{name} is {reprlib.repr(here)} here and {reprlib.repr(there)} there"
    missing = sorted(set(one.pair_ids) ^ set(other.pair_ids))
    if missing:
        counts = f"{len(other.pair_ids)} pairs here and {len(one.pair_ids)} there"
        return f"there are {counts}; only one of them has {missing[0]!r}"
    hashes = dict(zip(other.pair_ids, other.targets, strict=True))
    for pair_id, pixels in zip(one.pair_ids, one.targets, strict=True):
        if pixels != hashes[pair_id]:
            return (
                f"the target of pair {pair_id!r} has other pixels (SHA-256 {hashes[pair_id][:8]} here and {pixels[:8]} "
                "there), as where the data set was prepared in another way"
            )
    return None
