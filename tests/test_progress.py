"""Progress: a rate and an ETA, as a bar on a terminal and as lines elsewhere."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from typing import Any

import pytest

from p2p import progress
from p2p.progress import Progress, format_duration


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7620, "2 h 07 min"),
    ],
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_the_rate_counts_this_attempt_only(clock: Clock) -> None:
    done = Progress("translate", total=100, unit="images", done_before=60)
    clock.now += 10
    done.advance(20)
    assert done.rate == pytest.approx(2)
    assert done.describe("1 failed") == "translate: 80/100 (80%) images, 2.0 images/s, ETA 10 s  1 failed"


def test_work_that_began_before_it_was_counted_has_no_absurd_rate(clock: Clock) -> None:
    done = Progress("translate", total=4, unit="images", seconds_before=2.0)
    done.advance(4)
    assert done.rate == pytest.approx(2)


def test_without_a_total_there_is_no_share_and_no_eta(clock: Clock) -> None:
    done = Progress("list", total=None, unit="files")
    clock.now += 2
    done.advance(3)
    assert done.describe() == "list: 3 files, 1.5 files/s"


def test_where_there_is_no_terminal_lines_come_now_and_then_and_one_at_the_end(clock: Clock, run_cli: Any) -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True, kw_only=True)
    class Config:
        pass

    def job(config: Config) -> dict[str, int]:
        with Progress("train", total=1000, unit="images") as bar:
            for _ in range(1000):
                clock.now += 0.03
                bar.advance(1)
        return {}

    lines = run_cli(Config, job).stderr.splitlines()
    assert 2 < len(lines) < 6
    assert all(re.search(r"train: \d+/1000 \(\d+%\) images, 33\.3 images/s", line) for line in lines)
    assert all("ETA" in line for line in lines[:-1])
    assert "1000/1000 (100%)" in lines[-1]


_ON_A_TERMINAL = """
import logging, sys
from dataclasses import dataclass
from p2p.cli import run_job
from p2p.progress import Progress

@dataclass(frozen=True, kw_only=True)
class Config:
    pass

def job(config):
    with Progress("translate", total=4, unit="images") as bar:
        for index in range(4):
            bar.advance(1, "0 failed")
            logging.getLogger("p2p").info("a line from the log")
    return {}

sys.exit(run_job(Config, job))
"""


def on_a_terminal(program: str) -> str:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stderr=theirs, stdout=subprocess.DEVNULL, env=environment
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert process.wait(30) == 0
    return shown.decode()


def test_on_a_terminal_a_bar_shows_share_rate_and_note_and_leaves_log_lines_whole() -> None:
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", on_a_terminal(_ON_A_TERMINAL))
    assert re.search(r"translate .*100% 4/4 .*images/s  0 failed", plain)
    lines = [line.rpartition("\r")[2].strip() for line in plain.splitlines() if "a line from the log" in line]
    assert len(lines) == 4
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d a line from the log", line) for line in lines)


def test_a_bar_shows_names_as_text() -> None:
    evil = r"[red]\x1b]0;owned\x07\u202e"
    program = _ON_A_TERMINAL.replace('"translate"', f'"{evil}"').replace('"0 failed"', f'"{evil}"')
    shown = on_a_terminal(program)
    assert not {"\x07", "\u202e"} & set(shown) and "\x1b]" not in shown
    assert shown.count(r"[red]\x1b]0;owned\x07\u202e") >= 2
