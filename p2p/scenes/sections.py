"""A scene cut into sections of rows, each of which can be translated by itself. NumPy only."""

from __future__ import annotations

from collections.abc import Collection

from p2p.scenes.tiling import TilePlan

BLOCK = 512
"""Pixels on a side of an output's blocks."""
SECTION_ROWS = 4 * BLOCK
"""Rows of a section; the last one of a scene may have fewer. Halved twice they still fill whole blocks."""


def section_count(height: int) -> int:
    """How many sections a scene of `height` rows has."""
    return -(-height // SECTION_ROWS)


def section_rows(section: int, height: int) -> tuple[int, int]:
    """First row of a section, and the row after its last one."""
    return section * SECTION_ROWS, min(height, (section + 1) * SECTION_ROWS)


def tile_rows_between(plan: TilePlan, top: int, bottom: int) -> tuple[int, int]:
    """The rows of tiles that touch the image rows from `top` to before `bottom`: the first, and the one after the last.

    Example:
        >>> plan = TilePlan(height=1000, width=100, tile_size=256, overlap=64)
        >>> plan.rows, tile_rows_between(plan, 400, 500)
        ([0, 186, 372, 558, 744], (1, 3))

    """
    touching = [row for row, start in enumerate(plan.rows) if start < bottom and start + plan.tile_size > top]
    return touching[0], touching[-1] + 1


def consecutive(sections: Collection[int]) -> list[tuple[int, int]]:
    """Sections -> runs of neighbours, each as its first one and the one after its last.

    Example:
        >>> consecutive({7, 3, 4, 5})
        [(3, 6), (7, 8)]

    """
    runs: list[tuple[int, int]] = []
    for section in sorted(sections):
        if runs and runs[-1][1] == section:
            runs[-1] = runs[-1][0], section + 1
        else:
            runs.append((section, section + 1))
    return runs
