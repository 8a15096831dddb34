"""The comparison job on evaluations whose figures are made up: what differs, how surely, and what is refused."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluations import confusions, write_evaluation
from killing import killed_before

from p2p.comparison import CompareConfig, compare
from p2p.errors import NotGoodEnoughError, UsageError

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)
SSIM = RNG.uniform(0.2, 0.6, 200)
NOISE = RNG.normal(0, 0.01, 200)


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a baseline, of one that is better in ssim and the classes and worse in l1, and of an equal one."""
    folder = tmp_path_factory.mktemp("evaluations")
    counts = confusions(200, 0.6, 0)
    write_evaluation(folder / "base", {"ssim": SSIM, "l1": 1 - SSIM}, counts, examples=9)
    better = {"ssim": SSIM + 0.03 + NOISE, "l1": 1 - SSIM + 0.02 + NOISE}
    write_evaluation(folder / "new", better, confusions(200, 0.7, 1), examples=9, checkpoint="runs/b", seed=4)
    write_evaluation(folder / "equal", {"ssim": SSIM + NOISE - NOISE.mean(), "l1": 1 - SSIM}, counts)
    return folder


@pytest.fixture
def run(evaluations: Path, tmp_path: Path, run_cli: Callable[..., Any]) -> Callable[..., Any]:
    """`run("base", "new", gate="…")`: what the job says."""

    def call(*names: str, gate: str | None = None) -> Any:
        words = [",".join(str(evaluations / one) for one in name.split(",")) for name in names]
        if gate is not None:
            (tmp_path / "gate.yaml").write_text(gate.replace("BASE", str(evaluations / "base")))
            words += ["--gate", str(tmp_path / "gate.yaml")]
        return run_cli(CompareConfig, compare, *words, "--output", tmp_path / "compared")

    return call


def figures(folder: Path, side: str) -> dict[str, dict[str, Any]]:
    document = json.loads((folder / "compared" / "comparison.json").read_text())
    return {f"{one['metric']} {one['class'] or ''}".strip(): one for one in document["differences"][side]}


def test_differences_have_intervals_over_the_same_pairs(run: Callable[..., Any], tmp_path: Path) -> None:
    outcome = run("base", "new")
    assert outcome.status == 0 and outcome.summary["sides"] == ["base", "new"] and outcome.summary["gate"] is None
    found = figures(tmp_path, "new")
    ssim = found["ssim"]
    assert ssim["difference"] == pytest.approx(0.03 + NOISE.mean()) and ssim["verdict"] == "better"
    error = NOISE.std() / 200**0.5  # of the pairs' differences, not of what they have in common
    assert ssim["interval"] == pytest.approx(
        [ssim["difference"] - 1.96 * error, ssim["difference"] + 1.96 * error], abs=error / 5
    )
    assert ssim["improved"] == pytest.approx(np.mean(NOISE > -0.03))
    assert found["l1"]["verdict"] == "worse" and found["l1"]["better"] == "lower"
    iou = found["palette_iou"]  # of the set: the mean over its pairs is another number
    assert iou["interval"][0] < iou["difference"] < iou["interval"][1] and iou["verdict"] == "better"
    assert found["palette_iou #faBE50".lower()]["verdict"] == "better"
    assert not (tmp_path / "compared" / "gate.json").exists()


def test_what_is_equal_but_for_noise_is_no_difference(run: Callable[..., Any], tmp_path: Path) -> None:
    assert run("base", "equal").status == 0
    found = figures(tmp_path, "equal")
    assert found["ssim"]["verdict"] == "unclear"
    assert found["l1"]["interval"] == [0, 0] and found["l1"]["improved"] == found["l1"]["worsened"] == 0


def test_evaluations_joined_by_commas_are_seeds_of_one_side(
    run: Callable[..., Any], tmp_path: Path, evaluations: Path
) -> None:
    for seed, shift in enumerate((-0.02, 0.0, 0.02)):
        write_evaluation(evaluations / f"s{seed}", {"ssim": SSIM + 0.03 + shift}, seed=seed)
    assert run("base", "s0,s1,s2").status == 0
    seeds = figures(tmp_path, "s0, s1, s2")["ssim"]
    assert seeds["difference"] == pytest.approx(0.03) and seeds["seeds"] == [None, pytest.approx(0.02)]
    # One training alone hides how much trainings differ.
    assert run("base", "s1").status == 0
    alone = figures(tmp_path, "s1")["ssim"]
    assert np.diff(alone["interval"])[0] < 1e-6 < 0.03 < np.diff(seeds["interval"])[0]


def test_one_that_is_written_anew_while_it_is_read_is_no_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from p2p.comparison import evaluations

    one = write_evaluation(tmp_path / "a", {"ssim": SSIM})
    read_pairs = evaluations._read_pairs

    def meanwhile(*words: Any) -> Any:
        write_evaluation(tmp_path / "a", {"ssim": SSIM + 0.1})
        return read_pairs(*words)

    monkeypatch.setattr(evaluations, "_read_pairs", meanwhile)
    with pytest.raises(UsageError, match=r"/a: was written anew"):
        evaluations.read_evaluation(str(one))


def test_fid_and_kid_are_never_resampled(tmp_path: Path) -> None:
    from p2p.comparison.differences import compare_sides
    from p2p.comparison.evaluations import read_evaluation

    whole = {"fid": 60.0, "kid": 0.03, "kid_se": 0.003}
    one = write_evaluation(tmp_path / "a", {"ssim": SSIM}, whole=whole)
    other = write_evaluation(tmp_path / "b", {"ssim": SSIM}, whole={"fid": 50.0, "kid": 0.02, "kid_se": 0.004})
    found = {d.metric: d for d in compare_sides([read_evaluation(str(one))], [read_evaluation(str(other))])}
    assert found["fid"].difference == -10 and found["fid"].interval is None
    assert found["kid"].interval == pytest.approx((-0.01 - 1.96 * 0.005, -0.01 + 1.96 * 0.005))
    assert found["kid"].interval_by == "jackknife" and found["kid"].improved is None


def test_detail_is_better_the_closer_it_is_to_one(tmp_path: Path) -> None:
    from p2p.comparison.differences import compare_sides
    from p2p.comparison.evaluations import read_evaluation

    noise = np.abs(NOISE) + 0.01
    sides = {"blurred": 0.5 + noise, "noisy": 2.2 + noise, "sharp": 0.9 + noise}
    read = {
        name: [read_evaluation(str(write_evaluation(tmp_path / name, {"detail": values})))]
        for name, values in sides.items()
    }
    (noisy,), (sharp,) = (compare_sides(read["blurred"], read[name]) for name in ("noisy", "sharp"))
    assert noisy.difference is not None and noisy.difference > 1  # twice as much as it should be is as bad as half
    assert noisy.verdict == "worse" and noisy.worsening == pytest.approx(np.log(2.2 * 0.52), abs=0.05)
    assert sharp.verdict == "better" and sharp.improved == 1 and sharp.interval is not None and sharp.interval[0] > 0.3


GOOD = """
metrics:
  ssim: {at_least: 0.35, worse_by_at_most: 0}
  palette_iou: {worse_by_at_most: 1%, classes: {"#fabe50": {at_least: 0.2}}}
"""


def test_a_gate_that_is_passed(run: Callable[..., Any], tmp_path: Path) -> None:
    outcome = run("base", "new", gate=GOOD)
    assert outcome.status == 0 and outcome.summary["gate"] == {"passed": True, "failed": []}
    document = json.loads((tmp_path / "compared" / "gate.json").read_text())
    assert document["passed"] and [rule["passed"] for rule in document["rules"]] == [True] * 4


def test_a_gate_that_is_not_passed(run: Callable[..., Any], tmp_path: Path) -> None:
    outcome = run("base", "new", gate="metrics: {ssim: {at_least: 0.3}, l1: {worse_by_at_most: 2%}}")
    assert outcome.status == 3
    assert outcome.summary["gate"] == {"passed": False, "failed": ["l1 worse by at most 2%"]}
    suite = ET.parse(tmp_path / "compared" / "gate.xml").getroot().find("testsuite")
    assert suite is not None and (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert [case.get("name") for case in suite if case.find("failure") is not None] == ["l1 worse by at most 2%"]
    assert "FAILED" in (tmp_path / "compared" / "comparison.md").read_text()
    assert json.loads((tmp_path / "compared" / "summary.json").read_text()) == outcome.summary


def test_the_baseline_of_a_gate_stands_before_what_is_compared(run: Callable[..., Any], tmp_path: Path) -> None:
    assert run("new", gate="baseline: BASE\nmetrics: {l1: {worse_by_at_most: 0.001}}").status == 3
    assert list(json.loads((tmp_path / "compared" / "comparison.json").read_text())["differences"]) == ["new"]


def test_one_evaluation_can_be_held_to_absolute_bounds(run: Callable[..., Any], tmp_path: Path) -> None:
    assert run("new", gate="metrics: {ssim: {at_least: 0.3}}").status == 0
    assert figures(tmp_path, "new")["ssim"]["difference"] is None
    assert run("new", gate="metrics: {ssim: {at_least: 0.9}}").status == 3


@pytest.mark.parametrize(
    "names, gate, words",
    [
        (["base"], None, "is compared with nothing"),
        (["base", "none"], None, "nothing is there"),
        (["base", "new"], "metrics: {fud: {at_most: 3}}", "fud: no such metric"),
        (["base", "new"], "metrics: {}", "names no metric"),
        (["base", "new"], "metrics: {ssim: {at_least: good}}", "'good' is not a number"),
        (["base", "new"], "metrics: {ssim: {at_least: .nan}}", "nan is not a number"),
        (["base", "new"], "metrics: {ssim: {atleast: 1}}", "unknown bound 'atleast'"),
        (["base", "new"], "metrics: {ssim: {at_least: 1}, ssim: {at_least: 0}}", "named twice"),
        (["base", "new"], "metrics: {ssim: {classes: {}}}", "no figure of one class"),
        (["base", "new"], "metrics: {palette_iou: {classes: {'#000000': {at_least: 1}}}}", "no class has that colour"),
        (["base", "new"], "metric: {ssim: {at_least: 1}}", "unknown field 'metric'"),
        (["new"], "metrics: {ssim: {worse_by_at_most: 1}}", "needs a baseline"),
    ],
)
def test_mistakes_are_one_line(run: Callable[..., Any], names: list[str], gate: str | None, words: str) -> None:
    outcome = run(*names, gate=gate)
    assert outcome.status == 2 and words in outcome.stderr and len(outcome.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "change, words",
    [
        ({"norm_mode": "batch"}, "norm_mode is 'batch' here and 'running' there"),
        ({"size": 512}, "size is 512 here and 256 there"),
        ({"outputs": "jpeg"}, "outputs is 'jpeg' here and 'memory' there"),
        ({"targets": {7: "other"}}, "target of pair 'val/7' has other pixels"),
    ],
)
def test_unlike_evaluations_are_refused(
    run: Callable[..., Any], evaluations: Path, change: dict[str, Any], words: str
) -> None:
    write_evaluation(evaluations / "unlike", {"ssim": SSIM}, **change)
    outcome = run("equal", "unlike")
    assert outcome.status == 2 and words in outcome.stderr and "equal" in outcome.stderr


def test_only_other_generators_of_the_way_back_are_refused(run: Callable[..., Any], evaluations: Path) -> None:
    write_evaluation(evaluations / "back", {"ssim": SSIM}, round_trip="5f0e")
    write_evaluation(evaluations / "other_back", {"ssim": SSIM}, round_trip="77aa")
    outcome = run("back", "other_back")
    assert outcome.status == 2 and "round_trip is '77aa' here and '5f0e' there" in outcome.stderr
    assert run("equal", "back").status == 0  # one has none: the other figures are compared


def test_other_pairs_are_refused_with_the_counts_of_both(run: Callable[..., Any], evaluations: Path) -> None:
    write_evaluation(evaluations / "fewer", {"ssim": SSIM[:150]})
    outcome = run("base", "fewer")
    assert outcome.status == 2 and "150 pairs here and 200 there; only one of them has 'val/150'" in outcome.stderr


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_metric_that_is_missing_or_no_number_fails_the_gate(
    run: Callable[..., Any], evaluations: Path, value: float | None
) -> None:
    write_evaluation(evaluations / "odd", {"l1": 1 - SSIM}, whole={"ssim": value} if value is None else {})
    for bound in ("at_least: 0", "at_most: 1", "worse_by_at_most: 1"):
        outcome = run("base", "odd", gate=f"metrics: {{ssim: {{{bound}}}}}")
        assert outcome.status == 3 and "not measured, or no number" in outcome.stderr
    # And where the baseline lacks it, a change is not known.
    outcome = run("odd", "base", gate="metrics: {ssim: {worse_by_at_most: 1}}")
    assert outcome.status == 3 and "the baseline has no number" in outcome.stderr


def test_a_damaged_evaluation_is_named(run: Callable[..., Any], evaluations: Path) -> None:
    folder = write_evaluation(evaluations / "damaged", {"ssim": SSIM})
    (folder / "per_image.parquet").write_bytes(b"PAR1")
    outcome = run("base", "damaged")
    assert outcome.status == 2 and "damaged/per_image.parquet" in outcome.stderr
    (folder / "evaluation.json").write_text('{"signature": 3}')
    assert "evaluation.json is damaged" in run("base", "damaged").stderr


@pytest.fixture
def two_comparisons(tmp_path: Path) -> tuple[CompareConfig, CompareConfig]:
    """Into one folder: the gate is passed in the first, and not in the second."""
    (tmp_path / "gate.yaml").write_text("metrics: {ssim: {at_least: 0.5}}")
    shared: dict[str, Any] = {"gate": str(tmp_path / "gate.yaml"), "output": str(tmp_path / "out")}
    sides = [write_evaluation(tmp_path / name, {"ssim": v}) for name, v in (("good", SSIM + 1), ("bad", SSIM - 1))]
    good, bad = (CompareConfig(evaluations=(str(side),), **shared) for side in sides)
    return good, bad


def test_a_gate_that_was_passed_is_none_of_a_later_comparison(
    tmp_path: Path, two_comparisons: tuple[CompareConfig, CompareConfig]
) -> None:
    """Wherever that is killed."""
    good, bad = two_comparisons
    compare(good)
    out = tmp_path / "out"
    out.rename(tmp_path / "before")
    for number in itertools.count():
        shutil.copytree(tmp_path / "before", out)
        with contextlib.suppress(NotGoodEnoughError), killed_before(number, out) as was_killed:
            compare(bad)
        (side,) = json.loads((out / "comparison.json").read_text())["sides"]
        is_passed = side["name"] == "good"
        if (out / "gate.json").exists():
            assert json.loads((out / "gate.json").read_text())["passed"] == is_passed
        if (out / "gate.xml").exists():
            suite = ET.parse(out / "gate.xml").getroot().find("testsuite")
            assert suite is not None and (suite.get("failures") == "0") == is_passed
        if (out / "summary.json").exists():
            assert json.loads((out / "summary.json").read_text())["gate"]["passed"] == is_passed
            assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "before").iterdir()}
        if not was_killed():
            break
        shutil.rmtree(out)
    assert side["name"] == "bad" and number > 10


def test_while_it_compares_no_earlier_gate_is_taken_for_its_own(
    tmp_path: Path, two_comparisons: tuple[CompareConfig, CompareConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = two_comparisons
    compare(good)

    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("p2p.comparison.job.compare_sides", stopped)
    with pytest.raises(KeyboardInterrupt):
        compare(bad)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["comparison.json"]


def test_neither_ray_nor_a_gpu_is_asked_for(evaluations: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['ray'] = None; from p2p.cli import run_job; from p2p.comparison import *\n"
        "assert run_job(CompareConfig, compare, sys.argv[1:]) == 0\n"
        "import torch; assert not torch.cuda.is_initialized()"
    )
    words = [str(evaluations / "base"), str(evaluations / "new"), "--output", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
