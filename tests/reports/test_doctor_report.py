"""The doctor's page: what was found, in words and pictures, whatever the names hold."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from p2p.reports.doctor import Figure, write_doctor_report

SOUND = {"check": "sizes", "result": "ok", "examined": 9, "findings": [], "note": "most are 8x8", "numbers": {}}


def finding(name: str, pairs: Sequence[str] = (), files: Sequence[str] = (), **values: Any) -> dict[str, Any]:
    return {
        "finding": name,
        "severity": "error",
        "title": f"title of {name}",
        "count": len(pairs) + len(files),
        "advice": "do something",
        "numbers": {"groups": 3},
        "pairs": [{"split": "train", "pair_id": one, "detail": "why", "others": ["val/x"]} for one in pairs],
        "files": [{"source_uri": one, "message": "broken"} for one in files],
        **values,
    }


def write(
    folder: Path, findings: Sequence[dict[str, Any]], figures: dict[str, list[Figure]] | None = None, **values: Any
) -> Path:
    checks = [SOUND] + [
        {**SOUND, "check": f"check of {one['finding']}", "result": "found", "findings": [one["finding"]]}
        for one in findings
    ]
    document = {
        "palette": None,
        "source": "somewhere",
        "sides": "A is left",
        "pairs": {"train": 7, "val": 2, "test": 0},
        "bad": 0,
        "checks": checks,
        "findings": list(findings),
        **values,
    }
    return Path(write_doctor_report(f"{folder}/doctor.html", document, figures or {}, []))


def text_of(page: Path) -> str:
    body = re.sub(r"<style>.*?</style>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_sound_data_reads_so(tmp_path: Path) -> None:
    text = text_of(write(tmp_path, []))
    for words in ("Checkup of 9 pairs", "train 7 pairs", "val 2 pairs", "errors 0", "Nothing found.", "sizes 9 ok"):
        assert words in text
    assert "test" not in text


def test_a_finding_says_what_how_many_which_and_what_to_do(tmp_path: Path) -> None:
    page = write(
        tmp_path, [finding("leakage", ["p/1", "p/2"]), finding("alone", files=["b/x.png"], severity="warning")]
    )
    text = text_of(page)
    for words in (
        "title of leakage 2 pairs do something groups 3",
        "All 2 by name train/p/1 why: val/x",
        "title of alone 1 file",
        "b/x.png broken",
        "errors 1",
        "warnings 1",
        "check of leakage 9 2 found",
    ):
        assert words in text


def test_a_thousand_pairs_are_counted_and_the_first_hundred_named(tmp_path: Path) -> None:
    page = write(tmp_path, [finding("blank", [f"p{number}" for number in range(1000)], count=54321)])
    text = text_of(page)
    assert "54\u202f321 pairs" in text.replace("54 321", "54\u202f321")
    assert "The first 100 of" in text and "train/p99" in text and "train/p100" not in text


def test_a_browser_shows_pictures_and_hostile_names_as_text(
    tmp_path: Path, browse: Callable[..., dict[str, Any]]
) -> None:
    evil = """<script>document.title = "owned"</script>"'><img src=https://host/x onerror=alert(1)>"""
    image = np.full((40, 60, 3), 90, np.uint8)
    figure = Figure(evil, evil, [("a", image), ("b", image[:, :30]), (evil, image)])
    unclear = {**SOUND, "result": "unclear", "note": evil}
    page = write(tmp_path, [finding("leakage", [evil])], {"leakage": [figure]}, source=evil, checks=[unclear])
    seen = browse(
        page,
        """() => {
            document.querySelectorAll("details").forEach(one => one.open = true);
            return {
                title: document.title,
                sizes: [...document.images].map(image => image.naturalWidth),
                shown: document.body.innerText,
                requests: performance.getEntriesByType("resource").map(one => one.name)
                    .filter(name => !name.startsWith("data:")),
                scripts: document.querySelectorAll("main script").length,
                wide: document.documentElement.scrollWidth > innerWidth,
            };
        }""",
        width=420,
    )
    assert seen["title"] == "Checkup of 9 pairs"
    assert seen["sizes"] == [60, 30, 60]
    assert seen["shown"].count(evil) == 6, "source, label, name, detail, row and note"
    assert (seen["requests"], seen["scripts"], seen["wide"]) == ([], 0, False)
