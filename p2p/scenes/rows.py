"""Rows of a scene that are kept while they are needed. NumPy only."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class RowBuffer:
    """Neighbouring rows: new ones come below, old ones are dropped above.

    Example:
        >>> rows = RowBuffer(10)
        >>> rows.append(np.array([[1], [2], [3]]))
        >>> rows.drop_before(11)
        >>> rows.take(11, 13).ravel().tolist(), rows.end
        ([2, 3], 13)

    """

    def __init__(self, start: int) -> None:
        self._start = self.end = start
        """The row after the last one."""
        self._parts: list[Array] = []

    def append(self, rows: Array) -> None:
        """Add (n, ...) below."""
        self._parts.append(rows)
        self.end += len(rows)

    def take(self, top: int, bottom: int) -> Array:
        """The rows from `top` to before `bottom`, which must be there."""
        if len(self._parts) > 1:
            self._parts = [np.concatenate(self._parts)]
        return self._parts[0][top - self._start : bottom - self._start]

    def drop_before(self, top: int) -> None:
        """Forget rows above `top`."""
        while self._parts and self._start < top:
            gone = min(len(self._parts[0]), top - self._start)
            if gone == len(self._parts[0]):
                self._parts.pop(0)
            else:
                self._parts[0] = self._parts[0][gone:].copy()
            self._start += gone
