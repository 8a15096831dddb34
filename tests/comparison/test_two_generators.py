"""From two generators to a comparison, by the jobs themselves and without Ray."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2p.comparison import CompareConfig, compare
from p2p.evaluation import EvaluateConfig, evaluate
from p2p.model.checkpoint import save_checkpoint
from p2p.model.config import ModelConfig
from p2p.model.pix2pix import Pix2Pix
from p2p.preparation import PrepareConfig, prepare
from p2p.reports.examples import read_examples
from p2p.storage.images import decode

pytestmark = pytest.mark.usefixtures("jobs_share_a_process")


def test_what_evaluate_leaves_is_what_compare_reads(
    tmp_path: Path, run_cli: Callable[..., Any], checkpoint: str, browse: Callable[..., dict[str, Any]]
) -> None:
    data, other = str(tmp_path / "data"), str(tmp_path / "other")
    prepare(PrepareConfig(source="synthetic:city?pairs=8", output=data, load_size=64, val_fraction=1.0))
    config = ModelConfig(generator="unet_64", discriminator="patch_16", ngf=4, ndf=4, crop_size=64)
    save_checkpoint(other, Pix2Pix(config, seed=1), {"epoch": 1}, {})
    for name, generator in (("one", checkpoint), ("two", other), ("few", other)):
        limit = 5 if name == "few" else 0
        evaluate(EvaluateConfig(checkpoint=generator, data=data, output=str(tmp_path / name), limit=limit))
    kept = read_examples(str(tmp_path / "one"))
    assert len(kept) == 8 and decode(next(iter(kept.values())).output).shape == (64, 64, 3)
    words = (tmp_path / "one", tmp_path / "two", "--output", tmp_path / "compared")
    outcome = run_cli(CompareConfig, compare, *words)
    assert outcome.status == 0, outcome.stderr
    document = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    for row in document["differences"]["two"]:
        if row["class"] is None:
            values = [one[row["metric"]] for one in metrics]
            assert [row["baseline"], row["value"]] == values
            assert row["interval"][0] <= values[1] - values[0] <= row["interval"][1]
    seen = browse(
        tmp_path / "compared" / "report.html",
        """() => ({
            pairs: document.querySelectorAll(".compared").length,
            labels: [...document.querySelector(".compared").querySelectorAll("figcaption")].map(one => one.innerText),
            rows: document.querySelector("table.differences").rows.length,
        })""",
    )
    assert seen["pairs"] == 8 and seen["labels"] == ["input", "one", "two", "target"]
    assert seen["rows"] == 1 + len({row["metric"] for row in document["differences"]["two"]})
    browsed = browse(
        tmp_path / "one" / "report.html", """() => ({ count: document.getElementById("count").innerText })"""
    )
    assert browsed["count"] == "8 of 8"
    refused = run_cli(CompareConfig, compare, tmp_path / "one", tmp_path / "few", *words[2:])
    assert refused.status == 2 and "5 pairs here and 8 there" in refused.stderr


@pytest.mark.parametrize("pairs, least, most", [(10, 10, 10), (200, 200, 200), (20_000, 150, 250)])
def test_some_two_hundred_pairs_are_kept_chosen_by_their_names(pairs: int, least: int, most: int) -> None:
    from p2p.reports.examples import is_example

    chosen = [f"val/{number}" for number in range(pairs) if is_example(f"val/{number}", pairs)]
    assert least <= len(chosen) <= most
    assert "val/3" not in chosen if pairs == 20_000 else "val/3" in chosen  # by its name, whatever is beside it
