"""What a gate lets pass: only where a change is sure does it fail, unless the file says otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2p.comparison.differences import Difference
from p2p.comparison.gate import judge, read_gate


def passes(tmp_path: Path, text: str, difference: Difference) -> bool:
    (tmp_path / "gate.yaml").write_text(text)
    (result,) = judge(read_gate(str(tmp_path / "gate.yaml")), "new", [difference])
    return result.passed


@pytest.mark.parametrize(
    "interval, sure, passed",
    [
        ((-0.03, -0.01), True, False),  # worse by at least 0.01, more than the 0.005 that is allowed
        ((-0.03, -0.002), True, True),  # it may be worse by 0.002 only
        ((-0.03, -0.002), False, False),
        (None, True, False),  # without an interval the figure decides
    ],
)
def test_a_change_fails_where_its_whole_interval_does(
    tmp_path: Path, interval: tuple[float, float] | None, sure: bool, passed: bool
) -> None:
    worsening = interval and (-interval[1], -interval[0])
    figure = Difference(metric="ssim", baseline=0.40, value=0.38, interval=interval, worsening_interval=worsening)
    text = f"metrics: {{ssim: {{worse_by_at_most: 0.005}}}}\nsure: {str(sure).lower()}"
    assert passes(tmp_path, text, figure) is passed


@pytest.mark.parametrize("value, passed", [(0.101, True), (0.103, False), (0.05, True)])
def test_a_share_is_one_of_the_baseline_in_the_direction_of_the_metric(
    tmp_path: Path, value: float, passed: bool
) -> None:
    figure = Difference(metric="l1", baseline=0.100, value=value)
    assert passes(tmp_path, "metrics: {l1: {worse_by_at_most: 2%}}", figure) is passed
