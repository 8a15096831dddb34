"""`file://` addresses that people give as options."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from p2p.storage.filesystems import absolute, read_bytes


@pytest.mark.parametrize("name", ["with space", "%20", "100%", "ü#?", "caf\udce9"])
def test_they_are_percent_encoded_and_paths_are_not(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"found")
    encoded = f"file://{tmp_path}/" + "".join(f"%{byte:02X}" for byte in os.fsencode(name))
    for address in (encoded, f"{tmp_path}/{name}"):
        assert read_bytes(absolute(address)) == b"found"
        assert absolute(absolute(address)) == absolute(address) == f"{tmp_path}/{name}"


def test_other_addresses_are_not_decoded() -> None:
    assert absolute("local:///a%20b") == "/a%20b"
    assert absolute("s3://bucket/a%20b") == "s3://bucket/a%20b"
