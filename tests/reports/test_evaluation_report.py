from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2p.reports.evaluation import Judged, write_evaluation_report
from p2p.reports.examples import ExamplePictures, browsable, encode_example

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


def test_baselines_stand_beside_the_figures(tmp_path: Path) -> None:
    baselines = {"untrained.l1": 0.4, "input.l1": 0.6, "input.kid_se": 0.5}
    text = text_of(write(tmp_path, {"l1": 0.04, "kid_se": 0.1, **baselines, "n": 2}))
    assert "metric value untrained input better" in text
    assert "l1 0.0400 0.400 0.600 ↓ lower" in text and "input." not in text


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


CLASSES = [
    {"colour": [0, 0, 255], "share": 0.2, "accuracy": 0.5, "iou": 0.4},
    {"colour": [255, 128, 0], "share": 0.8, "accuracy": 0.75, "iou": float("nan")},
]


def test_classes_are_shown_the_commonest_first_with_what_became_of_them(tmp_path: Path) -> None:
    text = text_of(write(tmp_path, classes=CLASSES, confusion=[[5, 5], [10, 30]]))
    assert "#ff8000 80.0% 75.0% n/a #0000ff 20.0% 50.0% 40.0%" in text
    assert "in % of the row. 75 25 50 50" in text


def test_a_signature_can_be_copied_and_warnings_stand_out(tmp_path: Path) -> None:
    page = write(tmp_path, details={"split": "val", "signature": "p2p1|n64", "warning 1": "only 64 images"})
    assert '<div class="signature"><code>p2p1|n64</code><button' in page.read_text()
    assert "Only 64 images" in text_of(page) and "warning 1" not in text_of(page)


def kept(count: int, size: int = 256) -> tuple[dict[str, ExamplePictures], dict[str, dict[str, float | None]]]:
    """Pictures that a JPEG of 256 pixels cannot make small."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    examples = {f"val/{number}": encode_example(list(np.roll(noise, number, axis=1))) for number in range(count)}
    values = {name: {"l1": number / count, "detail": 0.5 + number / count} for number, name in enumerate(examples)}
    return examples, values  # type: ignore[return-value]


def test_two_hundred_examples_fit_into_eight_megabytes(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (3, 256, 256, 3), dtype=np.uint8)
    groups = {
        name: [Judged(f"val/{number}", *noise, {}) for number in range(3)] for name in ("best", "median", "worst")
    }
    page = write(tmp_path, groups=groups, examples=browsable(*kept(200)))
    assert page.stat().st_size <= 8e6 and page.read_text().count("data:image/jpeg") == 600 + 36


@pytest.mark.parametrize("width", [1280, 400])
def test_examples_are_sorted_filtered_and_compared(
    tmp_path: Path, browse: Callable[..., dict[str, Any]], width: int
) -> None:
    flat = np.full((32, 32, 3), 100, np.uint8)
    pairs = {f"val/{number}": encode_example([flat, flat, flat + 10 * number]) for number in range(4)}
    evil = """</script><script>document.title = "owned"</script>"""
    pairs[evil] = encode_example([flat, flat, flat])
    values = {name: {"l1": number / 10, "detail": 0.5 + number / 4} for number, name in enumerate(pairs)}
    values[evil] = {"l1": None, "detail": 1.0}
    seen = browse(
        write(tmp_path, examples=browsable(pairs, values), details={"signature": "p2p1|n4"}),
        """async () => {
            const at = id => document.getElementById(id);
            const names = () => [...at("gallery").children].map(one => one.title);
            const set = (id, value, kind = "input") => { at(id).value = value; at(id).dispatchEvent(new Event(kind)); };
            const found = {title: document.title, best: names()};
            set("metric", "1"); found.detail = names();
            set("metric", "0"); set("order", "-1"); found.worst = names();
            set("low", "0.1"); set("high", "0.2"); found.between = names(); found.count = at("count").innerText;
            set("low", ""); set("high", ""); set("name", "L/3"); found.named = names();
            const canvas = document.querySelector("canvas");
            const drawn = () => [...canvas.getContext("2d").getImageData(9, 9, 1, 1).data];
            for (let turn = 0; turn < 200 && !drawn()[0]; turn++) await new Promise(done => setTimeout(done, 10));
            found.difference = drawn();
            set("cut", "25");
            found.clip = getComputedStyle(document.querySelector(".over")).clipPath;
            found.sources = document.querySelector(".over").src !== document.querySelector(".under").src;
            set("right", "1", "change");
            found.same = document.querySelector(".over").src === document.querySelector(".under").src;
            set("name", "nothing"); found.empty = [names().length, at("viewer").hidden];
            found.overflow = document.documentElement.scrollWidth - innerWidth;
            return found;
        }""",
        width=width,
    )
    assert seen["title"] == "Evaluation on 64 pairs"
    assert seen["best"] == ["val/0", "val/1", "val/2", "val/3", evil]
    assert seen["detail"] == ["val/2", evil, "val/3", "val/1", "val/0"]
    assert seen["worst"] == [evil, "val/3", "val/2", "val/1", "val/0"]
    assert seen["between"] == ["val/2", "val/1"] and seen["count"] == "2 of 5"
    assert seen["named"] == ["val/3"]
    assert seen["difference"] == pytest.approx([60, 60, 60, 255], abs=3)
    assert "75%" in seen["clip"] and seen["sources"] and seen["same"]
    assert seen["empty"] == [0, True] and seen["overflow"] <= 0


def test_a_curve_over_checkpoints_names_the_best_by_each_metric(tmp_path: Path) -> None:
    curve = [(5, {"l1": 0.3, "ssim": 0.2}), (10, {"l1": 0.1, "ssim": 0.4}), (15, {"l1": 0.2, "ssim": float("nan")})]
    page = write(tmp_path, curve=curve)
    assert "best 0.100 at epoch 10" in text_of(page) and "best 0.400 at epoch 10" in text_of(page)
    assert page.read_text().count("<polyline") == 2 and "l1 over epoch" in page.read_text()
    assert "Over the checkpoints" not in text_of(write(tmp_path, curve=curve[:1]))
    steps = write(tmp_path, curve=[(1, {"l1": 0.3}), (1, {"l1": 0.2})])
    assert "best 0.200 at checkpoint 2" in text_of(steps)
