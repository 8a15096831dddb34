"""Evaluations as jobs/evaluate.py leaves them, of figures that a test makes up."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from p2p.comparison.differences import class_accuracy, class_iou
from p2p.reports.examples import encode_example, write_examples

PALETTE = [[240, 240, 230], [170, 210, 255], [250, 190, 80]]
PROTOCOL: dict[str, Any] = {
    "version": "0.1",
    "data": "data/maps",
    "split": "val",
    "direction": "AtoB",
    "region": "crop",
    "size": 256,
    "norm_mode": "running",
    "dropout": False,
    "seed": 0,
    "precision": "fp32",
    "outputs": "memory",
    "palette": None,
    "inception": None,
    "lpips": None,
    "round_trip": None,
    "checkpoint": "runs/a",
    "checkpoint_id": "abc",
}


def confusions(pairs: int, right: float, seed: int, size: int = 1000) -> np.ndarray[Any, Any]:
    """(n, 3, 3) counts of `size` pixels each, a share `right` of which have the target's class."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((pairs, 3, 3), np.int64)
    for pair in range(pairs):
        target = rng.choice(3, size, p=[0.7, 0.2, 0.1])
        output = np.where(rng.random(size) < right, target, rng.integers(3, size=size))
        np.add.at(counts[pair], (target, output), 1)
    return counts


def write_evaluation(
    folder: Path,
    per_pair: dict[str, Any],
    confusion: np.ndarray[Any, Any] | None = None,
    examples: int = 0,
    targets: dict[int, str] | None = None,
    whole: dict[str, float | None] | None = None,
    **protocol: Any,
) -> Path:
    """`whole`: figures of the set; `targets`: number of a pair -> other pixels; `protocol`: what differs from usual."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = len(next(iter(per_pair.values())))
    ids = [f"val/{number}" for number in range(pairs)]
    hashes = [hashlib.sha256(((targets or {}).get(number, "") + name).encode()) for number, name in enumerate(ids)]
    columns: dict[str, Any] = {"pair_id": ids} | {name: np.asarray(v, float) for name, v in per_pair.items()}
    metrics: dict[str, float | None] = {"n": pairs} | {name: float(np.mean(v)) for name, v in per_pair.items()}
    classes: list[dict[str, Any]] = []
    if confusion is not None:
        total = confusion.sum(axis=0)
        columns["confusion"] = pa.array([one.ravel().tolist() for one in confusion], pa.list_(pa.int64()))
        columns["palette_accuracy"] = [float(one.trace() / one.sum()) for one in confusion]
        columns["palette_iou"] = [float(np.nanmean(class_iou(one))) for one in confusion]
        metrics |= {
            "palette_accuracy": float(total.trace() / total.sum()),
            "palette_iou": float(class_iou(total).mean()),
        }
        shares = (total.sum(axis=1) / total.sum()).tolist()
        figures = zip(PALETTE, shares, class_accuracy(total).tolist(), class_iou(total).tolist(), strict=True)
        classes = [{"colour": c, "share": s, "accuracy": a, "iou": i} for c, s, a, i in figures]
        protocol = {"palette": PALETTE} | protocol
    columns["target_sha256"] = [one.hexdigest() for one in hashes]
    pq.write_table(pa.table(columns), folder / "per_image.parquet")
    used = {**PROTOCOL, "n": pairs, "data_digest": "3fa1", **protocol}
    metrics |= whole or {}
    document = {
        "signature": "|".join(map(str, used.values())),
        "protocol": used,
        "metrics": metrics,
        "classes": classes,
    }
    (folder / "evaluation.json").write_text(json.dumps(document))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    if examples:
        rng = np.random.default_rng(examples)
        pixels = rng.integers(0, 256, (examples, 3, 32, 32, 3), dtype=np.uint8)
        write_examples(str(folder), {name: encode_example(list(one)) for name, one in zip(ids, pixels, strict=False)})
    return folder
