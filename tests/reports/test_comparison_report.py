"""The page of a comparison in a browser, wide and narrow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2p.reports.comparison import ComparedPair, write_comparison_report

EVIL = """<script>document.title = "owned"</script>"'><img src=https://host/x onerror=alert(1)>"""


def difference(metric: str, change: float, colour: str | None = None, half: float | None = 0.01) -> dict[str, Any]:
    better = "lower" if metric == "l1" else "higher"
    gain = change if better == "higher" else -change
    interval = None if half is None else [change - half, change + half]
    sure = interval is not None and abs(change) > interval[1] - change
    return {
        **{"metric": metric, "class": colour, "baseline": 0.4, "value": 0.4 + change, "difference": change},
        **{"interval": interval, "interval_by": interval and "bootstrap", "better": better, "worsening": -gain},
        "worsening_interval": interval and [-gain - half, -gain + half],  # type: ignore[operator]
        "verdict": "unclear" if not sure else "better" if gain > 0 else "worse",
        **{"improved": 0.6, "worsened": 0.3, "seeds": [None, None]},
    }


def document(**more: Any) -> dict[str, Any]:
    sides = [{"name": name, "evaluations": [f"runs/{name}"], "signatures": [f"p2p|{name}"]} for name in ("old", EVIL)]
    rows = [
        difference("l1", 0.05),
        difference("ssim", 0.05),
        difference("psnr", 0.001),
        difference("fid", -3, half=None),
    ]
    rows.append(difference("palette_iou", 0.02, "#ff8000"))
    classes = [{"class": "#ff8000", "share": 0.25}]
    return {
        **{"sides": sides, "pairs": 12, "protocol": {"n": 12, "palette": [[255, 128, 0]]}, "classes": classes},
        "differences": {EVIL: rows},
        **more,
    }


def pair(name: str, ssim: float, l1: float) -> ComparedPair:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)
    labels = ("input", "old", EVIL, "target")
    values = {"ssim": [0.4, 0.4 + ssim], "l1": [0.4, 0.4 - l1]}
    return ComparedPair(name, list(zip(labels, pixels, strict=True)), values, {"ssim": ssim, "l1": l1})


GATE = {
    "passed": False,
    "sure": True,
    "rules": [
        {**{"side": EVIL, "metric": "ssim", "class": "#ff8000", "bound": "at_least", "limit": 0.9, "relative": False}}
        | {"passed": False, "reason": EVIL}
    ],
}


@pytest.mark.parametrize("width", [1280, 400])
def test_the_examples_are_sorted_and_all_fits(
    tmp_path: Path, browse: Callable[..., dict[str, Any]], width: int
) -> None:
    examples = [pair("a", 0.1, -0.2), pair(EVIL, -0.1, 0.3), pair("c", 0.3, 0.1)]
    seen = browse(
        Path(write_comparison_report(str(tmp_path), document(), GATE, examples)),
        """() => {
            const names = () => [...document.querySelectorAll(".compared h3")].map(one => one.innerText);
            const choose = (id, value) => {
                document.getElementById(id).value = value;
                document.getElementById(id).dispatchEvent(new Event("change"));
            };
            const options = [...document.getElementById("metric").options].map(one => one.value);
            const found = {title: document.title, first: names(), options};
            choose("metric", "l1"); choose("order", "-1");
            const plot = document.querySelector(".plot i").getBoundingClientRect();
            const line = document.querySelector(".plot svg").getBoundingClientRect();
            return {
                ...found, then: names(),
                chosen: document.querySelector(".values .chosen").innerText,
                place: (plot.left + plot.width / 2 - line.left) / line.width,
                inside: plot.top >= line.top - 1 && plot.bottom <= line.bottom + 1,
                verdicts: document.querySelector("p.verdicts").innerText,
                gate: document.querySelector(".finding").innerText,
                pictures: [...document.images].every(image => image.naturalWidth === 24),
                requests: performance.getEntriesByType("resource").filter(one => !one.name.startsWith("data:")).length,
                scripts: document.querySelectorAll("main script").length,
                overflow: document.documentElement.scrollWidth - innerWidth,
            };
        }""",
        width=width,
    )
    assert seen["title"] == "Comparison on 12 pairs"
    assert seen["options"] == ["l1", "ssim"]
    assert seen["first"] == [EVIL, "c", "a"] and seen["then"] == ["a", "c", EVIL] and seen["chosen"].startswith("l1")
    assert seen["place"] < 0.2 and seen["inside"]  # l1 became larger, which is worse, so it is on the left
    assert seen["verdicts"] == "Better by ssim. Worse by l1. No difference is shown by psnr."
    assert "1 of 1 rules is broken" in seen["gate"]
    assert seen["pictures"] and (seen["requests"], seen["scripts"]) == (0, 0)
    assert seen["overflow"] <= 0


def test_a_gate_without_a_baseline_has_no_differences(tmp_path: Path) -> None:
    whole = document()
    whole["sides"] = whole["sides"][:1]
    row = difference("ssim", 0.1) | {"baseline": None, "difference": None, "interval": None, "improved": None}
    whole["differences"] = {"old": [row]}
    page = Path(write_comparison_report(str(tmp_path), whole, {**GATE, "passed": True}, [])).read_text()
    assert "<title>Gate on 12 pairs</title>" in page and "n/a" not in page and "<h2>The same pairs" not in page
