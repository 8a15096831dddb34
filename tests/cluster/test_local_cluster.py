"""`cluster/local.sh` and folders that somebody else has made in its place."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster" / "local.sh"


def plant(folder: Path) -> None:
    """What a running cluster's folder holds, with a command where a port is expected."""
    folder.mkdir(mode=0o700)
    (folder / "ports").write_text(f"6390;touch${{IFS}}{folder.parent}/ran 8275\n")
    (folder / "processes").write_text("")


def of_another_user(folder: Path) -> None:
    plant(folder)
    os.chown(folder, 54321, 54321)


def writable_by_others(folder: Path) -> None:
    plant(folder)
    folder.chmod(0o777)


def link(folder: Path) -> None:
    plant(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))


@pytest.mark.parametrize("make", [of_another_user, writable_by_others, link])
@pytest.mark.parametrize("command", ["env", "status", "down", "up"])
def test_a_folder_of_somebody_else_is_neither_evaluated_nor_believed(
    tmp_path: Path, make: Callable[[Path], None], command: str
) -> None:
    if make is of_another_user and os.geteuid() != 0:
        pytest.skip("only root can make a folder of another user")
    make(tmp_path / "home")
    environment = {**os.environ, "P2P_CLUSTER_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        ["bash", SCRIPT, command], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "is not a folder that you alone can write to" in done.stderr
    assert not (tmp_path / "ran").exists() and (tmp_path / "home").exists()


def test_ports_that_are_none_are_not_evaluated(tmp_path: Path) -> None:
    plant(tmp_path / "home")
    environment = {**os.environ, "P2P_CLUSTER_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        ["bash", SCRIPT, "env"], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "") and "does not hold two ports" in done.stderr
    assert not (tmp_path / "ran").exists()
