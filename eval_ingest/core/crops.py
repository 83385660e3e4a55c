"""Where the samples of a window lie: every crop of it, as rslearn's load_all_crops takes them.

Positions and counts alone. What cuts pixels is loading/, what counts labels is indexing/.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.resolved import CropGrid


def starts(length: int, grid: CropGrid) -> list[int]:
    """Where the crops begin along one side of a window, in pixels.

    One after the other with the overlap between them; the last one is shifted inward, so that it
    ends with the window. A side that is shorter than a crop has one, which goes beyond its end.

    >>> starts(15, CropGrid(size=8, overlap=2))
    [0, 6, 7]
    """
    last = length - grid.size
    if last <= 0:
        return [0]
    return [*range(0, last, grid.size - grid.overlap), last]


def corners(height: int, width: int, grid: CropGrid) -> list[tuple[int, int]]:
    """(top, left) of every crop of a window, in rslearn's order: column by column, downward.

    >>> corners(4, 6, CropGrid(size=3))
    [(0, 0), (1, 0), (0, 3), (1, 3)]
    """
    rows = starts(height, grid)
    return [(top, left) for left in starts(width, grid) for top in rows]


def crops(array: NDArray[np.generic], grid: CropGrid) -> Iterator[NDArray[np.generic]]:
    """Every crop of an array (H, W, ...), in order; smaller ones where it ends before they do."""
    height, width = array.shape[:2]
    for top, left in corners(height, width, grid):
        yield array[top : top + grid.size, left : left + grid.size]
