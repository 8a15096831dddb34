"""Names of files: as text that Parquet and JSON can hold, and which of them are none of the data."""

from __future__ import annotations

_HIDDEN = (".", "_")


def printable(name: str) -> str:
    r"""A file's name with each byte that is no UTF-8 written like `\xff`: Parquet and JSON hold UTF-8 only."""
    if name.isascii():
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_hidden_folder(name: str) -> bool:
    """Whether nothing below a folder is data: `.git`, `_temporary`, `__MACOSX`."""
    return name.startswith(_HIDDEN)


def is_hidden(path: str) -> bool:
    """Whether a file, by its path in a folder or archive, is none of the data: in a hidden folder, or named
    `.anything`, or a marker such as `_SUCCESS`. `_MG_1.jpg` is a photograph.
    """
    *folders, name = path.split("/")
    is_marker = name.startswith("_") and "." not in name
    return is_marker or name.startswith(".") or any(map(is_hidden_folder, (f for f in folders if f not in (".", ".."))))
