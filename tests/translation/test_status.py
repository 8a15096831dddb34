"""How far a translation is, by what lies in its output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import in_this_process

from p2p.storage.filesystems import write_json
from p2p.storage.lease import hold_lease, read_lease
from p2p.translation import TranslateConfig
from p2p.translation.job import run
from p2p.translation.status import StatusConfig, status


@pytest.fixture
def output(tmp_path: Path, checkpoint: str, make_image: Any, s3: Any, request: Any) -> str:
    """24 images in three shards, one of them bad, translated; the ledgers ten seconds apart, the last signs of life."""
    source = tmp_path / "in"
    source.mkdir()
    for number in range(23):
        (source / f"{number:02d}.png").write_bytes(make_image(8, 8, seed=number))
    (source / "bad.png").write_bytes(b"no image")
    where = getattr(request, "param", None)
    output = s3.uri("out") if where == "s3" else str(tmp_path / "out")
    config = TranslateConfig(checkpoint=checkpoint, source=str(source), output=output, max_bad_fraction=1.0)
    run(config, lambda _: nullcontext(in_this_process))
    if where != "s3":
        now = time.time()
        for path in (tmp_path / "out").rglob("*"):
            os.utime(path, (now - 60, now - 60))
        for number, path in enumerate(sorted((tmp_path / "out" / "ledger").iterdir())):
            os.utime(path, (now, now - 30 + 10 * number))
    return output


def test_a_finished_translation_is_finished(output: str) -> None:
    found = status(StatusConfig(output=output))
    counts = {name: found[name] for name in ("state", "images", "done", "translated", "failed", "left")}
    assert counts == {"state": "finished", "images": 24, "done": 24, "translated": 23, "failed": 1, "left": 0}
    assert found["images_per_second"] == pytest.approx(16 / 20, rel=0.01)
    assert found["eta_seconds"] is None


@pytest.mark.parametrize("output", ["s3"], indirect=True)
def test_it_is_read_from_a_bucket(output: str) -> None:
    found = status(StatusConfig(output=output))
    assert (found["state"], found["done"]) == ("finished", 24)
    assert 0 <= found["seconds_since_last_shard"] < 60


def test_work_that_goes_on_has_an_eta_and_work_that_ended_has_none(output: str) -> None:
    ledgers = sorted(Path(output, "ledger").iterdir())
    ledgers[-1].unlink()
    with hold_lease(output, "output", "translate"):
        found = status(StatusConfig(output=output))
        assert (found["state"], found["done"], found["left"]) == ("working", 16, 8)
        assert found["eta_seconds"] == pytest.approx(10, abs=1)
        assert found["stopped_since"] is None
    found = status(StatusConfig(output=output))
    assert (found["state"], found["eta_seconds"]) == ("stopped", None)
    finished = datetime.fromisoformat(found["stopped_since"]).timestamp()
    assert finished == pytest.approx(ledgers[-2].stat().st_mtime, abs=1.5)


@pytest.mark.parametrize("host", ["here", "elsewhere"])
def test_a_job_that_was_killed_is_stopped_since_its_last_sign_of_life(
    output: str, host: str, run_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in Path(output, "ledger").iterdir():
        path.unlink()
    work = f"with hold_lease({output!r}, 'output', 'translate'): os.kill(os.getpid(), signal.SIGKILL)"
    code = f"import os, signal\nfrom p2p.storage.lease import hold_lease\n{work}"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    left = read_lease(output)
    assert left
    if host == "elsewhere":  # a machine that can be asked nothing
        write_json(f"{output}/lease.json", {**vars(left), "host": "another"})
        assert status(StatusConfig(output=output))["state"] == "working"
        monkeypatch.setattr("p2p.storage.lease.EXPIRY_SECONDS", 0.0)  # as if a minute had gone by
    outcome = run_cli(StatusConfig, status, output)
    found = outcome.summary
    assert (found["state"], found["done"], found["left"]) == ("stopped", 0, 24)
    assert datetime.fromisoformat(found["stopped_since"]).timestamp() == pytest.approx(left.renewed, abs=1.5)
    assert f"nobody works on it since {found['stopped_since']}" in outcome.stderr


def test_a_job_that_was_stopped_in_good_order_is_so_since_it_last_wrote_something(output: str) -> None:
    """It has removed its lease. Shards in work, sections of a scene and a plan that grows are signs of life as well."""
    ledgers = sorted(Path(output, "ledger").iterdir())
    ledgers[-1].unlink()
    last = ledgers[-2].stat().st_mtime
    signs = ["settings.json", "manifest/part-00000.parquet", "attempts/shard-00002.json"]
    signs += ["work/shard-00002.sections/section-00000-0123456789abcdef.tif"]
    for name in signs:
        last += 60.0
        path = Path(output, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (last, last))
        found = datetime.fromisoformat(status(StatusConfig(output=output))["stopped_since"])
        assert found.timestamp() == pytest.approx(last, abs=1.5), name
    for name in ("work/thesis.tex", "attempts/mine/shard-00000.json"):
        path = Path(output, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (last + 60, last + 60))
    assert datetime.fromisoformat(status(StatusConfig(output=output))["stopped_since"]) == found, "files of others"


def test_the_job_prints_a_line_for_a_person_and_one_for_a_program(output: str, run_cli: Any, tmp_path: Path) -> None:
    before = Path(output, "summary.json").read_bytes()
    outcome = run_cli(StatusConfig, status, output)
    assert (outcome.status, outcome.summary["state"]) == (0, "finished")
    assert "finished: 24 of 24 images done (100.0%), 1 of them failed, 0 left, 0.8 img/s" in outcome.stderr
    assert Path(output, "summary.json").read_bytes() == before


def test_what_holds_no_translation_is_refused(tmp_path: Path, run_cli: Any) -> None:
    outcome = run_cli(StatusConfig, status, tmp_path)
    assert outcome.status == 2
    assert outcome.stderr == f"error: OUTPUT {tmp_path}: holds no translation; name the --output of jobs/translate.py\n"
    assert run_cli(StatusConfig, status, tmp_path / "none").status == 2
