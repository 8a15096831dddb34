from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2p.reports.evaluation import Judged, write_evaluation_report

METRICS = {
    "l1": 0.0412,
    "psnr": 22.13,
    "palette_accuracy": 0.9713,
    "untrained.l1": 0.3212,
    "untrained.psnr": 8.31,
    "untrained.palette_accuracy": 0.123,
    "n": 64,
}


def write(folder: Path, metrics: dict[str, Any] = METRICS, **more: Any) -> Path:
    values: dict[str, Any] = {"groups": {}, "per_image": {}, "details": {}} | more
    uri = write_evaluation_report(str(folder), metrics, **values)
    assert uri == str(folder / "report.html")
    return Path(uri)


def text_of(page: Path) -> str:
    """The words of a page without the spaces inside numbers."""
    bare = re.sub(r"(?s)<style>.*?</style>|<[^>]*>", " ", page.read_text())
    return " ".join(html.unescape(bare).replace("\u202f", "").split())


def judged(name: str, size: int = 24, **values: float) -> Judged:
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    return Judged(name, pixels[0], pixels[1], pixels[2], values)


def test_the_trained_generator_is_set_against_the_untrained(tmp_path: Path) -> None:
    text = text_of(write(tmp_path))
    assert "97.1% of pixels get the right map class; an untrained generator gets 12.3% ." in text
    assert "l1 0.0412 0.321 ↓ lower mean absolute difference" in text
    assert "psnr 22.1 dB 8.31 dB ↑ higher peak signal-to-noise ratio" in text
    assert "Evaluation on 64 pairs" in text and "No better than" not in text


def test_a_generator_no_better_than_an_untrained_one_is_called_so(tmp_path: Path) -> None:
    text = text_of(write(tmp_path, {**METRICS, "l1": 0.4, "untrained.psnr": 22.13}))
    assert "No better than an untrained generator by l1, psnr." in text


def test_without_an_untrained_generator_nothing_is_compared(tmp_path: Path) -> None:
    page = text_of(write(tmp_path, {"l1": 0.04, "pixel_accuracy": 0.5, "n": 1}))
    assert "50.0% of pixels have the right colour" in page and "untrained" not in page
    assert "Evaluation on 1 pair" in page and "1 pairs" not in page


@pytest.mark.parametrize("nothing", [None, float("nan"), float("inf")])
def test_what_is_not_a_number_reads_not_available(tmp_path: Path, nothing: float | None) -> None:
    text = text_of(
        write(
            tmp_path,
            {"palette_accuracy": nothing, "untrained.palette_accuracy": nothing, "psnr": nothing, "n": 2},
            per_image={"psnr": [nothing, 20.0, 30.0], "l1": [nothing, nothing]},
            groups={"worst": [judged("a", psnr=nothing)]},  # type: ignore[arg-type]
            details={"seed": None},
        )
    )
    assert "palette_accuracy n/a n/a ↑ higher" in text and "psnr n/a" in text and "seed n/a" in text
    assert "median 25.0 dB; 1 image n/a" in text
    assert "nan" not in text and "inf" not in text and "None" not in text


@pytest.mark.parametrize(
    ("share", "words"), [(1.0, "100.0%"), (0.99996, "100.00%"), (0.9998, "99.98%"), (0.0003, "0.03%"), (0, "0.0%")]
)
def test_only_a_perfect_share_reads_as_one(tmp_path: Path, share: float, words: str) -> None:
    assert f"palette_accuracy {words} ↑" in text_of(write(tmp_path, {"palette_accuracy": share, "n": 1}))


@pytest.mark.parametrize("values", [[0.5], [0.25] * 9, [0.1, 0.2, 0.2, 0.9], [1e-300, 0.0], [0.3, 0.3 + 1e-16]])
def test_a_histogram_counts_every_image_once(tmp_path: Path, values: list[float]) -> None:
    page = write(tmp_path, per_image={"l1": values}).read_text()
    assert sum(int(count) for count in re.findall(r"<title>(\d+) images? from", page)) == len(values)
    heights = [float(height) for height in re.findall(r'class="column"[^>]* height="([\d.]+)"', page)]
    assert max(heights) == 72


def test_pictures_of_two_sizes_cannot_be_compared(tmp_path: Path) -> None:
    one = judged("a")
    with pytest.raises(ValueError, match="must have one size"):
        write(tmp_path, groups={"best": [Judged("a", one.input, one.output[:5], one.target, {})]})


def test_a_browser_decodes_the_pictures_and_runs_nothing(tmp_path: Path, browse: Callable[..., dict[str, Any]]) -> None:
    evil = """<script>document.title = "owned"</script>"'><img src=https://host/x onerror=alert(1)>"""
    gray = np.full((400, 200, 3), 100, np.uint8)
    page = write(
        tmp_path,
        {**METRICS, evil: 1.0},
        groups={"best": [Judged(evil, gray, gray, gray + 30, {evil: 0.5})], evil: [judged("b")], "worst": []},
        per_image={evil: [1.0, 2.0]},
        details={"checkpoint": evil, evil: evil},
    )
    seen = browse(
        page,
        """() => {
            const canvas = document.createElement("canvas").getContext("2d");
            canvas.drawImage(document.images[3], 0, 0);
            return {
                title: document.title,
                sizes: [...document.images].map(image => [image.naturalWidth, image.naturalHeight]),
                labels: [...document.querySelectorAll(".four figcaption")].map(one => one.innerText),
                difference: [...canvas.getImageData(9, 9, 1, 1).data],
                requests: performance.getEntriesByType("resource").map(one => one.name)
                    .filter(name => !name.startsWith("data:")),
                scripts: document.querySelectorAll("main script").length,
                overflow: document.documentElement.scrollWidth - innerWidth,
            };
        }""",
        width=600,
    )
    assert seen["title"] == "Evaluation on 64 pairs"
    assert seen["sizes"] == [[160, 320]] * 4 + [[24, 24]] * 4
    assert seen["labels"] == ["input", "output", "target", "difference ×2"] * 2
    assert seen["difference"] == pytest.approx([60, 60, 60, 255], abs=2)
    assert (seen["requests"], seen["scripts"]) == ([], 0)
    assert seen["overflow"] <= 0
