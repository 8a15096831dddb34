"""Files of others' weights, where the machine is short of memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "old"])
def test_too_little_memory_is_no_damage_of_a_file(is_zip: bool, tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(10_000_000)}, tmp_path / "g.pth", _use_new_zipfile_serialization=is_zip)
    code = """
import pathlib, resource, sys
from p2p.model.legacy import read_pth
data = pathlib.Path(sys.argv[1]).read_bytes()
read_pth(data, "g.pth")  # what is imported and kept for any file
now = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 20_000_000,) * 2)
try:
    read_pth(data, "g.pth")
except MemoryError as error:
    print(error)
"""
    run = [sys.executable, "-c", code, str(tmp_path / "g.pth")]
    told = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert told.startswith("g.pth: out of memory")
