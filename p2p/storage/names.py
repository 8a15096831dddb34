"""Names of files as text that Parquet and JSON can hold."""

from __future__ import annotations


def printable(name: str) -> str:
    r"""A file's name with each byte that is no UTF-8 written like `\xff`: Parquet and JSON hold UTF-8 only."""
    if name.isascii():
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
