"""Files written piece by piece."""

from __future__ import annotations

import os

import pytest

from p2p.storage import staging
from p2p.storage.filesystems import exists, read_bytes
from p2p.storage.staging import StagedFile


def test_large_files_reach_a_bucket_whole_or_not_at_all(s3, monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr(staging, "_ONE_REQUEST", 2**20)
    small, large, dropped = s3.uri("small"), s3.uri("large"), s3.uri("dropped")
    data = os.urandom(2**20) * 17
    for uri, content in ((small, b"few"), (large, data)):
        staged = StagedFile(uri)
        staged.file.write(content)
        assert not exists(uri)
        assert staged.publish() == len(content)
        assert read_bytes(uri) == content
    staged = StagedFile(dropped)
    staged.file.write(b"x")
    staged.discard()
    assert not exists(dropped)
