from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2p.reports.translation import Example, write_translation_report

SUMMARY = {
    "images": 12350,
    "translated": 12000,
    "failed": 0,
    "skipped": 350,
    "seconds": 95.2,
    "images_per_second": 126.05,
    "megapixels_per_second": 8.26,
    "start_up_seconds": 4.2,
    "stage_share": {"network": 0.6, "encode": 0.25, "fetch": 0.1, "decode": 0.05},
    "checkpoint_id": "3f9ab1c2d4e5f607",
    "output": "/data/out",
}


def write(folder: Path, summary: Mapping[str, Any] = SUMMARY, *rest: Any, **more: Any) -> Path:
    examples, failures = rest or ([], [])
    uri = write_translation_report(str(folder), summary, examples, failures, **more)
    assert uri == str(folder / "report.html")
    return Path(uri)


def text_of(page: Path) -> str:
    """The words of a page without the spaces inside numbers."""
    bare = re.sub(r"(?s)<style>.*?</style>|<[^>]*>", " ", page.read_text())
    return " ".join(html.unescape(bare).replace("\u202f", "").split())


def example(name: str, height: int = 20, width: int = 30) -> Example:
    pixels = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    return Example(name, pixels[0], pixels[1])


def failure(name: str, kind: str, message: str = "why") -> dict[str, str]:
    return {"image_id": name, "error": kind, "message": message}


def test_the_seam_score_is_shown_where_there_is_one(tmp_path: Path) -> None:
    assert "seam score 1.013" in text_of(write(tmp_path, {**SUMMARY, "seam_score": 1.0131}))
    for none in (SUMMARY, {**SUMMARY, "seam_score": None}):
        assert "seam score" not in text_of(write(tmp_path, none))


def test_the_figures_of_the_summary_stand_on_the_page(tmp_path: Path) -> None:
    text = text_of(write(tmp_path, settings={"tile_size": 256, "dropout": False, "checkpoint_id": "3f9ab1c2d4e5f607"}))
    for words in (
        "translated 12000",
        "failed 0",
        "skipped 350",
        "images/s 126",
        "megapixels/s 8.26",
        "duration 1 min 35 s 4.2 s of it start-up",
        "checkpoint id 3f9ab1c2d4e5f607",
        "--tile-size 256",
        "--dropout false",
        "/data/out",
    ):
        assert words in text
    assert "Failures" not in text and "Examples" not in text and text.count("checkpoint id") == 1


def test_at_most_twelve_examples_are_shown_and_made_small(tmp_path: Path) -> None:
    page = write(tmp_path, SUMMARY, [example(f"a/{i}.png", 640, 320) for i in range(15)], [])
    assert page.read_text().count("<img ") == 24
    assert "a/0.png" in text_of(page) and "a/11.png" in text_of(page) and "a/12.png" not in text_of(page)
    assert page.stat().st_size < 24 * 160 * 320 * 4  # noise hardly compresses


def test_stages_fill_the_bar_in_the_order_of_the_flow(tmp_path: Path) -> None:
    shares = {"network": 0.6, "wait": 0.1, "fetch": 0.2, "other": 0.4}
    page = write(tmp_path, {**SUMMARY, "stage_share": shares}).read_text()
    bars = re.findall(r'style="width: ([\d.]+)%" title="(\w+):', page)
    assert [name for _, name in bars] == ["fetch", "network", "wait", "other"]
    assert sum(float(width) for width, _ in bars) == pytest.approx(100, abs=0.05)


@pytest.mark.parametrize("shares", [None, {}, {"network": 0.0}, {"network": float("nan")}, {"network": None}])
def test_without_shares_there_is_no_bar(tmp_path: Path, shares: dict[str, float] | None) -> None:
    assert "Where the time went" not in text_of(write(tmp_path, {**SUMMARY, "stage_share": shares}))


def test_a_rare_kind_of_failure_is_listed_beside_a_thousand_of_another(tmp_path: Path) -> None:
    failures = [failure(f"bad/{i}.jpg", "DamagedImage") for i in range(1000)] + [
        failure("odd.jpg", "EmptyFile", "none")
    ]
    text = text_of(write(tmp_path, {**SUMMARY, "failed": 2345}, [], failures))
    assert "DamagedImage 1000" in text and "EmptyFile 1" in text
    assert "the first 1001 of 2345" in text
    assert text.count("bad/") == 49 and "EmptyFile odd.jpg none" in text


def test_what_is_missing_reads_not_available(tmp_path: Path) -> None:
    summary = {
        "images": 3,
        "translated": 0,
        "failed": 0,
        "skipped": None,
        "seconds": float("nan"),
        "images_per_second": 0.0,
    }
    text = text_of(write(tmp_path, summary))
    for words in ("skipped n/a", "images/s n/a", "megapixels/s n/a", "duration n/a", "checkpoint id n/a"):
        assert words in text


def test_a_secret_is_taken_out_and_no_cell_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "main-token")
    names = ["a?token=hush", "http://u:hush", "b@c.png", "d?sig=hush&e=f", "main-token"]
    failures = [failure(name, "NotFound", "REASON1 is this") for name in names]
    page = write(tmp_path, {**SUMMARY, "failed": 5}, [example(name) for name in names], failures)
    text = page.read_text()
    assert "hush" not in text.replace("u:hush", "") and "main-token" not in text
    rows = [row.split("</td>") for row in re.findall("(?s)<tr>(.*?)</tr>", text) if "REASON1" in row]
    assert [len(row) for row in rows] == [4] * 5
    shown = [html.unescape(re.sub("<[^>]*>", " ", row[1])).split() for row in rows]
    assert [words[-1] for words in shown] == ["a?token=***", "http://u:hush", "b@c.png", "d?sig=***&e=f", "***"]


def test_a_browser_shows_hostile_names_as_text(tmp_path: Path, browse: Callable[..., dict[str, Any]]) -> None:
    evil = """<script>document.title = "owned"</script>"'><img src=https://host/x onerror=alert(1)>"""
    page = write(
        tmp_path,
        {**SUMMARY, "failed": 1, "output": evil, "checkpoint_id": evil, "stage_share": {evil: 1.0}},
        [example(evil), example("long/" + 40 * "name-without-spaces")],
        [failure(evil, evil, evil)],
        settings={"source": evil},
    )
    seen = browse(
        page,
        """() => ({
            title: document.title,
            sizes: [...document.images].map(image => image.naturalWidth),
            shown: document.querySelector("main").innerText,
            requests: performance.getEntriesByType("resource").map(one => one.name)
                .filter(name => !name.startsWith("data:")),
            scripts: document.querySelectorAll("main script").length,
        })""",
    )
    assert seen["title"].startswith("Translation of")
    assert seen["sizes"] == [30] * 4
    assert (
        seen["shown"].count(evil) == 8
    )  # caption, stage, two settings, kind of failure, and the failure: kind, image, message
    assert (seen["requests"], seen["scripts"]) == ([], 0)
