"""`cluster/local.sh`, the folders that it leaves alone, and two of its commands at once."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import read_process

SCRIPT = Path(__file__).parents[2] / "cluster" / "local.sh"


def call(command: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", SCRIPT, command],
        env={**os.environ, "P2P_CLUSTER_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


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
    done = call(command, tmp_path / "home")
    assert (done.returncode, done.stdout) == (2, "")
    assert "is not a folder that you alone can write to" in done.stderr
    assert not (tmp_path / "ran").exists() and (tmp_path / "home").exists()


def test_ports_that_are_none_are_not_evaluated(tmp_path: Path) -> None:
    plant(tmp_path / "home")
    done = call("env", tmp_path / "home")
    assert (done.returncode, done.stdout) == (1, "") and "does not hold two ports" in done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder for P2P_CLUSTER_BIN whose `ray start` says in one pipe that it has begun, waits until it may end, and
    leaves a head: a process of that name.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python").symlink_to(sys.executable)
    (folder / "gcs_server").symlink_to(shutil.which("bash") or "")
    for pipe in ("begun", "released", "ready", "never"):
        os.mkfifo(folder / pipe)
    (folder / "ray").write_text(
        """#!/usr/bin/env bash
        cd "$(dirname "$0")"
        echo once >>starts
        echo >begun
        read -r _ <released
        ./gcs_server -c 'echo >ready; read -r _ <>never' >/dev/null 2>&1 &
        read -r _ <ready
        """
    )
    (folder / "ray").chmod(0o700)
    return folder


@pytest.mark.parametrize("command", ["down", "up"])
def test_a_folder_with_files_of_ones_own_is_left_alone(tmp_path: Path, programs: Path, command: str) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "thesis.txt").write_text("years of work")
    done = call(command, home, P2P_CLUSTER_BIN=str(programs))
    assert (done.returncode, done.stdout) == (2, "")
    assert "holds files and no cluster" in done.stderr and "set P2P_CLUSTER_HOME" in done.stderr
    assert [path.name for path in home.iterdir()] == ["thesis.txt"] and not (programs / "starts").exists()


def test_where_nothing_was_started_nothing_is_removed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert call("down", home).stdout == "nothing to stop\n" and not home.exists()
    home.mkdir(mode=0o700)
    assert call("down", home).stdout == "nothing to stop\n" and home.exists()


def test_a_command_waits_for_the_one_that_starts_the_cluster(tmp_path: Path, programs: Path) -> None:
    """A second `up` took the first one's cluster for one that has lost its head, and stopped it."""
    home = tmp_path / "home"
    environment = {**os.environ, "P2P_CLUSTER_HOME": str(home), "P2P_CLUSTER_BIN": str(programs)}
    words = ["bash", SCRIPT, "up"]
    with contextlib.ExitStack() as stack:
        stack.callback(call, "down", home)

        def start() -> subprocess.Popen[str]:
            process = subprocess.Popen(
                words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        first = start()
        (programs / "begun").read_text()  # until it is there
        second = start()
        assert second.stderr is not None
        assert "waiting for another" in second.stderr.readline()
        (programs / "released").write_text("\n")
        for process in (first, second):
            said, complaint = process.communicate(timeout=60)
            assert process.returncode == 0 and "Stop it with" in said
        assert "the head is up already" in complaint
        assert (programs / "starts").read_text() == "once\n"
        (head,) = (home / "head").read_text().split()
        done = call("down", home)
        assert (done.returncode, done.stdout) == (0, "stopped\n")
        assert not home.exists()
        assert not read_process(int(head.partition(":")[0]), "cmdline"), "it is over, or waits to be reaped"
