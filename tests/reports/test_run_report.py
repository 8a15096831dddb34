from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2p.reports.page import Series, duration, line_chart, number, percent
from p2p.reports.run import write_run_report
from p2p.reports.samples import choose_moments
from p2p.reports.sheets import contact_sheet
from p2p.storage.images import encode

CONFIG = {
    "data": "/pairs",
    "epochs": 20,
    "epochs_decay": 10,
    "gan_mode": "vanilla",
    "lambda_l1": 100.0,
    "dropout": True,
    "best_metric": "val_l1",
}
FINDING = {"finding": "training waits for its data", "numbers": {"data_wait": 0.4}, "advice": "move the pairs nearer"}


def row(epoch: int) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        "images_seen": 40 * epoch,
        "g_gan": 0.7 + epoch / 50,
        "g_l1": 40 / epoch,
        "d_real": 0.6,
        "d_fake": 0.5,
        "lr": 0.0002,
        "images_per_second": 25.0,
        "data_wait": 0.02,
        "val_l1": 0.1 + abs(epoch - 17) / 100,
        "val_psnr": 20.0,
        "val_pixel_accuracy": 0.25,
        "seconds": 2.0,
    }


def entry(epoch: int) -> dict[str, Any]:
    return {
        "checkpoint": f"checkpoints/epoch_{epoch:04d}",
        "epoch": epoch,
        "step": 10 * epoch,
        "metrics": row(epoch),
    }


def sheet(epoch: int) -> bytes:
    image = np.full((16, 16, 3), 5 * epoch, dtype=np.uint8)
    return encode(contact_sheet(("input", "output", "target"), [(image, image, image)]))


def make_run(folder: Path, epochs: int = 30, *, health: list[dict[str, Any]] | None = None, **config: Any) -> Path:
    (folder / "samples").mkdir(parents=True)
    for epoch in range(1, epochs + 1):
        (folder / "samples" / f"epoch_{epoch:04d}.png").write_bytes(sheet(epoch))
    rows = [row(epoch) for epoch in range(1, epochs + 1)]
    documents = {
        "config.json": {**CONFIG, **config},
        "best.json": entry(min(17, epochs)),
        "latest.json": entry(epochs),
        "summary.json": {"stopped_early": False, "health": health or []},
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def page_of(run: Path) -> str:
    assert write_run_report(str(run)) == f"{run}/report.html"
    return (run / "report.html").read_text(encoding="utf-8")


# In the browser


def test_a_person_can_slide_through_the_epochs_and_nothing_is_requested(
    tmp_path: Path, browse: Callable[..., dict[str, Any]]
) -> None:
    run = make_run(tmp_path / "run")
    page_of(run)
    seen = browse(
        run / "report.html",
        """() => {
            const sheets = [...document.querySelectorAll(".sheets img")];
            const slider = document.querySelector("input[type=range]");
            const shown = () => sheets.filter(sheet => sheet.offsetHeight > 0).map(sheet => sheet.dataset.label);
            const positions = [];
            const stop = value => {
                slider.value = value;
                slider.dispatchEvent(new Event("input"));
                positions.push([shown(), document.querySelector(".slider output").value]);
            };
            const start = shown();
            sheets.forEach((sheet, index) => stop(index));
            return {
                start, positions,
                decoded: sheets.every(sheet => sheet.complete && sheet.naturalWidth > 0),
                charts: [...document.querySelectorAll(".chart > svg")].map(chart => chart.clientHeight),
                wide: document.documentElement.scrollWidth > innerWidth,
                requests: performance.getEntriesByType("resource").map(entry => entry.name)
                    .filter(name => !name.startsWith("data:")),
            };
        }""",
        width=500,
    )
    assert seen["decoded"]
    assert seen["start"] == ["epoch 30"]
    assert all(shown == [label] for shown, label in seen["positions"])
    labels = [label for _, label in seen["positions"]]
    assert len(labels) == 20
    assert labels[0] == "epoch 1" and labels[-1] == "epoch 30" and "epoch 17 · best" in labels
    assert len(seen["charts"]) == 8 and min(seen["charts"]) > 100
    assert not seen["wide"]
    assert seen["requests"] == []


# What the page says


def test_the_page_is_one_file(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"))
    addresses = re.findall(r"""(?:src|href|action)\s*=\s*["']?([^"'\s>]*)""", page)
    assert len(addresses) > 20 and all(address.startswith("data:") for address in addresses)
    assert "url(" not in page and "@import" not in page


def test_findings_come_with_numbers_and_advice(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", 3, health=[FINDING]))
    assert "Training waits for its data" in page
    assert "data_wait 0.400" in page
    assert "Move the pairs nearer." in page
    assert "No findings." in page_of(make_run(tmp_path / "healthy", 3))


def test_a_run_in_progress_shows_the_findings_so_far(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 3)
    (run / "summary.json").unlink()
    write_run_report(str(run), [FINDING])
    assert "Training waits for its data" in (run / "report.html").read_text()
    write_run_report(str(run), [])
    page = (run / "report.html").read_text()
    assert "not finished" in page and "No findings so far." in page


def test_a_run_stopped_by_an_error_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 3)
    (run / "summary.json").write_text(json.dumps({"error": "no longer finite", "health": [FINDING]}))
    assert "stopped by an error" in page_of(run)


def test_sheets_of_steps_stand_between_those_of_epochs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 3)
    (run / "samples" / "epoch_0002_step_00000015.png").write_bytes(sheet(9))
    (run / "samples" / "notes.png").write_bytes(sheet(9))
    (run / "best.json").write_text(json.dumps(entry(2) | {"checkpoint": "checkpoints/epoch_0002_step_00000015"}))
    labels = re.findall(r'data-label="([^"]*)"', page_of(run))
    assert labels == ["epoch 1", "epoch 2, step 15 · best", "epoch 2", "epoch 3"]


@pytest.mark.parametrize(
    ("gan_mode", "smoothing", "marks"),
    [("vanilla", 0.0, ["log 2 = 0.693"]), ("vanilla", 0.1, ["d_real 0.778", "d_fake 0.598"]), ("lsgan", 0.0, ["0.25"])],
)
def test_the_losses_of_a_guess_are_marked(tmp_path: Path, gan_mode: str, smoothing: float, marks: list[str]) -> None:
    page = page_of(make_run(tmp_path / "run", 3, gan_mode=gan_mode, label_smoothing=smoothing))
    assert all(f">{mark}</text>" in page for mark in marks)
    assert ("log 2" in page) == (marks == ["log 2 = 0.693"])
    assert "can only guess" not in page_of(make_run(tmp_path / "other", 3, gan_mode="wgangp"))


@pytest.mark.parametrize(
    "missing",
    ["config.json", "metrics.jsonl", "samples", "best.json", "latest.json", "summary.json", "samples/epoch_0002.png"],
)
def test_a_run_without_one_of_its_files_still_has_a_page(tmp_path: Path, missing: str) -> None:
    run = make_run(tmp_path / "run", 3)
    (run / missing).rename(tmp_path / "elsewhere")
    page = page_of(run)
    assert ("No findings." in page) == (missing != "summary.json")
    assert ("<code>--gan-mode</code>" in page) == (missing != "config.json")


def test_an_empty_folder_and_a_single_epoch_have_a_page(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    page = page_of(empty)
    assert "not finished" in page and "<img" not in page
    page = page_of(make_run(tmp_path / "one", 1))
    assert page.count("<img") == 1 and "<input" not in page


def test_a_damaged_sheet_and_absent_numbers_leave_gaps(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 4)
    (run / "samples" / "epoch_0002.png").write_bytes(b"half a picture")
    rows = [row(epoch) for epoch in range(1, 5)]
    rows[1]["val_psnr"], rows[2]["g_gan"] = None, float("nan")
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = page_of(run)
    assert page.count("<img") == 3
    assert not re.search(r'(?:points|c[xy])="[^"]*nan', page)


def test_markup_and_secrets_in_options_do_not_reach_the_page(tmp_path: Path) -> None:
    data = "https://me:hunter22@maps.example/a<b>?X-Amz-Algorithm=x&X-Amz-Signature=deadbeef"
    page = page_of(make_run(tmp_path / "run", 1, data=data))
    assert "a&lt;b&gt;" in page and "a<b>" not in page
    assert "hunter22" not in page and "deadbeef" not in page


def test_the_page_stays_small_enough_to_open(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 5)
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)  # what compresses worst
    png = encode(noise)
    for path in (run / "samples").iterdir():
        path.write_bytes(png)
    assert len(page_of(run)) < 8_000_000


# Parts


@given(
    epochs=st.lists(st.integers(1, 10_000), unique=True, max_size=60).map(sorted),
    most=st.integers(3, 25),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_the_first_the_last_and_the_best_epoch_are_chosen(epochs: list[int], most: int, data: st.DataObject) -> None:
    best = data.draw(st.sampled_from(epochs)) if epochs else None
    chosen = choose_moments(epochs, best, most)
    assert len(chosen) == min(most, len(epochs))
    assert chosen == sorted(set(chosen)) and set(chosen) <= set(epochs)
    if epochs:
        assert {epochs[0], epochs[-1], best} <= set(chosen)


VALUES = st.one_of(st.none(), st.just(float("nan")), st.just(float("inf")), st.floats(-1e12, 1e12), st.floats(-1, 1))


@given(values=st.lists(VALUES, max_size=50), mark=st.floats(-10, 10))
@example(values=[5e-324], mark=0.0)
@settings(max_examples=150, deadline=None)
def test_whatever_the_numbers_every_point_lies_inside_the_chart(values: list[float | None], mark: float) -> None:
    series = Series("a <b> & c", range(len(values)), values)
    drawing = line_chart([series], x_label="epoch", y_label="x<y", marks=[(mark, "mark")])
    chart = ET.fromstring(str(drawing))
    svg = chart.find("svg")
    assert svg is not None
    _, _, width, height = (float(word) for word in svg.attrib["viewBox"].split())
    shown = [v for v in values if v is not None and np.isfinite(v)]
    dots = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in svg.iter("circle")]
    ends = [
        tuple(map(float, point.split(","))) for line in svg.iter("polyline") for point in line.attrib["points"].split()
    ]
    assert len(dots) == len(shown)
    assert all(0 <= x <= width and 0 <= y <= height for x, y in [*dots, *ends])
    if shown and max(shown) - min(shown) > max(1e-9, 0.05 * max(map(abs, [*shown, mark]))):
        by_value = sorted(zip(shown, (y for _, y in dots), strict=True))
        assert by_value[0][1] > by_value[-1][1]  # larger is higher


def test_a_gap_parts_the_line() -> None:
    drawing = line_chart([Series("loss", range(5), [1.0, 2.0, None, 2.0, 1.0])], x_label="epoch", y_label="loss")
    assert str(drawing).count("<polyline") == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (number(None), "–"),
        (number(float("nan")), "–"),
        (number(0.0), "0"),
        (number(1234567), "1\u202f234\u202f567"),
        (number(0.12345), "0.123"),
        (number(9.9996), "10.0"),
        (number(-45.678), "-45.7"),
        (number(3e-7), "3.00e-07"),
        (number(True), "true"),
        (percent(0.1234), "12.3\u202f%"),
        (percent(None), "–"),
        (duration(2.44), "2.4 s"),
        (duration(59.97), "1 min 0 s"),
        (duration(200), "3 min 20 s"),
        (duration(2840), "47 min"),
        (duration(3599), "1 h 0 min"),
        (duration(4320), "1 h 12 min"),
        (duration(183_600), "2 d 3 h"),
    ],
)
def test_values_read_well(text: str, expected: str) -> None:
    assert text == expected


def test_secrets_are_taken_out_of_charts_too() -> None:
    secret = "https://u:hush@h/k?sig=hush&page=3"
    lines = [Series(secret, [1.0, 2.0], [1.0, 2.0]), Series("b", [1.0], [1.0])]
    drawn = line_chart(lines, x_label=secret, y_label=secret, marks=[(1.5, secret)])
    assert "hush" not in drawn
    assert drawn.count("https://***@h/k?sig=***&amp;page=3") == 8


def test_a_gpus_numbers_are_shown_where_there_are_any(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", epochs=2)
    assert "GPU" not in page_of(run)
    rows = [{**row(epoch), "gpu_busy": 0.8, "gpu_memory": 12.5} for epoch in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    page = page_of(run)
    assert "GPU busy" in page and "GPU memory" in page


@pytest.mark.parametrize("folder, title", [("maps", "Training run maps"), ("demo/run", "Training run demo/run")])
def test_a_title_says_which_run_it_is(tmp_path: Path, folder: str, title: str) -> None:
    page = Path(write_run_report(str(make_run(tmp_path / folder, epochs=1)))).read_text()
    assert f"<title>{title}</title>" in page
