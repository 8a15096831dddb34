"""What an S3 server says no to, each told in one line and soon."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import botocore.retries.standard
import pytest
import s3fs
from conftest import S3Server

from p2p.errors import NotFoundError, StorageError, UsageError
from p2p.storage.filesystems import read_bytes, require_readable, require_writable, write_bytes

SECRET = os.environ["AWS_SECRET_ACCESS_KEY"]
CHECKS = [(require_readable, "--data"), (require_writable, "--output")]


@pytest.fixture
def fresh_clients() -> Iterator[None]:
    """Clients keep the endpoint they were made with; who changes it must neither find old ones nor leave its own."""
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("check, option", CHECKS)
def test_a_bucket_that_does_not_exist(s3: Any, check: Any, option: str) -> None:
    with pytest.raises(UsageError, match=f"{option} s3://no-such-bucket/key: there is no"):
        check("s3://no-such-bucket/key", option)
    with pytest.raises(NotFoundError):
        write_bytes("s3://no-such-bucket/key", b"")


def test_a_server_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, fresh_clients: None) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(botocore.retries.standard.ExponentialBackoff, "delay_amount", lambda *context: 0.01)
    for check, option in CHECKS:
        reason = f"{option} s3://bucket/key: its server cannot be reached; .*AWS_ENDPOINT_URL"
        with pytest.raises(UsageError, match=reason):
            check("s3://bucket/key", option)


@pytest.mark.parametrize("check, option", CHECKS)
def test_no_credentials_at_all(
    s3: Any, monkeypatch: pytest.MonkeyPatch, fresh_clients: None, check: Any, option: str
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UsageError, match=f"{option} .*access denied; check AWS_ACCESS_KEY_ID"):
        check(s3.uri("key"), option)


def test_wrong_credentials(s3: Any, monkeypatch: pytest.MonkeyPatch, fresh_clients: None) -> None:
    strict = S3Server(INITIAL_NO_AUTH_ACTION_COUNT="0")
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", strict.url)
        for check, option in CHECKS:
            with pytest.raises(UsageError, match=f"{option} s3://bucket/key: access denied") as refused:
                check("s3://bucket/key", option)
            assert SECRET not in str(refused.value)
        with pytest.raises(StorageError, match="access denied"):
            read_bytes("s3://bucket/key")
    finally:
        strict.stop()


def test_a_big_object_in_many_parts_comes_back_whole(s3: Any) -> None:
    data = os.urandom(1 << 20) * 60  # above the size that is sent in parts
    write_bytes(s3.uri("big"), data)
    assert read_bytes(s3.uri("big")) == data


def test_what_another_client_wrote_is_seen_at_once(s3: Any) -> None:
    with pytest.raises(NotFoundError):
        read_bytes(s3.uri("late"))
    s3fs.S3FileSystem(skip_instance_cache=True).pipe_file(s3.uri("late"), b"here")
    assert read_bytes(s3.uri("late")) == b"here"
