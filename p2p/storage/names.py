"""Names of files: as text that Parquet and JSON can hold, and which of them are none of the data."""

from __future__ import annotations

_HIDDEN = (".", "_")
_SYSTEM_FOLDERS = frozenset(
    name.casefold()
    for name in (
        *("@eaDir", "#recycle", "@Recycle", "#snapshot"),  # of network storage: thumbnails, deleted and earlier files
        *("$RECYCLE.BIN", "System Volume Information", "lost+found"),  # of operating systems
    )
)


def printable(name: str) -> str:
    r"""A file's name with each byte that is no UTF-8 written like `\xff`: Parquet and JSON hold UTF-8 only."""
    if name.isascii():
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_hidden_folder(name: str) -> bool:
    """Whether nothing below a folder is data: `.git`, `_temporary`, `__MACOSX`, `@eaDir`."""
    return name.startswith(_HIDDEN) or name.casefold() in _SYSTEM_FOLDERS


def is_hidden(path: str) -> bool:
    """Whether a file, by its path in a folder or archive, is none of the data: in a hidden folder, or named
    `.anything`, or a marker such as `_SUCCESS`. `_MG_1.jpg` is a photograph.
    """
    *folders, name = path.split("/")
    is_marker = name.startswith("_") and "." not in name
    return is_marker or name.startswith(".") or any(map(is_hidden_folder, (f for f in folders if f not in (".", ".."))))
