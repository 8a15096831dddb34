"""Whether an address lies within another, whatever leads there."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2p.storage.outputs import is_within


@pytest.mark.parametrize(
    ("uri", "folder", "expected"),
    [
        ("s3://b/x", "s3://b/x", True),
        ("s3a://b/x/out", "s3://b/x/", True),
        ("s3://b/x/out", "s3a://b/x", True),
        ("gcs://b/x", "gs://b", True),
        ("s3://b/x", "s3://b/x/out", False),
        ("s3://b/xy", "s3://b/x", False),
        ("gs://b/x/out", "s3://b/x", False),
        ("s3://b/x", "/", False),
        ("/x", "/", True),
        ("file:///x/a%20b", "/x/a b/", True),
    ],
)
def test_addresses_are_compared_as_places(uri: str, folder: str, expected: bool) -> None:
    assert is_within(uri, folder) == expected


def test_links_are_followed_on_both_sides(tmp_path: Path) -> None:
    (tmp_path / "folder/below").mkdir(parents=True)
    (tmp_path / "folder-link").symlink_to(tmp_path / "folder")
    (tmp_path / "below-link").symlink_to(tmp_path / "folder/below")
    (tmp_path / "folder/away").symlink_to(tmp_path / "elsewhere")
    for below in ("below-link", "below-link/new", "folder-link/below", "folder-link"):
        for folder in ("folder", "folder-link"):
            assert is_within(f"{tmp_path}/{below}", f"{tmp_path}/{folder}")
    assert not is_within(f"{tmp_path}/folder/away/new", f"{tmp_path}/folder")
