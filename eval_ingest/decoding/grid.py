"""A window's pixel grid, and where a raster has the window's rows and columns.

Arithmetic on bounds alone: no pixel is decoded here.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from eval_ingest.decoding.geotiff_header import GeotiffHeader
from eval_ingest.decoding.machine import blame
from eval_ingest.decoding.problems import Unreadable


@dataclass(frozen=True, slots=True)
class Grid:
    """A window's pixel grid: CRS, pixel size in CRS units, and bounds in pixels."""

    crs: str
    """As in metadata.json: `EPSG:32630`, or WKT."""
    x_resolution: float
    y_resolution: float
    """Usually negative: rows go south."""
    bounds: tuple[int, int, int, int]
    """x0, y0, x1, y1 in pixels; times the resolution they are CRS units."""

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return self.bounds[3] - self.bounds[1]

    @property
    def width(self) -> int:
        """Columns of pixels."""
        return self.bounds[2] - self.bounds[0]


@lru_cache(maxsize=1024)
def band_set_dirname(bands: tuple[str, ...]) -> str:
    """The folder name of a band set, as rslearn's get_bandset_dirname gives it.

    >>> band_set_dirname(("B02", "B03"))
    'B02_B03'
    """
    if any("_" in band for band in bands):
        return hashlib.sha256(json.dumps(list(bands)).encode()).hexdigest()
    name = "_".join(bands)
    return hashlib.sha256(name.encode()).hexdigest() if len(name) > 64 else name


# --- from the raster's pixels to the window's -------------------------------------------------

_SLACK = 0.01
"""In pixels of the raster: a pixel centre this near to an edge may round either way."""

Axis = slice | NDArray[np.intp]
"""Where the raster has the window's rows (or columns): a slice, or an index each, -1 outside."""


@lru_cache(maxsize=1024)
def epsg(crs: str) -> int | None:
    """EPSG code of `EPSG:n`, or of WKT that is certainly the same."""
    authority, _, code = crs.partition(":")
    if authority.upper() == "EPSG" and code.isascii() and code.isdecimal():
        return int(code)
    import pyproj  # only for datasets whose windows carry WKT

    try:
        known: int | None = pyproj.CRS.from_user_input(crs).to_epsg(min_confidence=100)
    except pyproj.exceptions.CRSError as error:
        blame(error)
        return None
    return known


def place_on(header: GeotiffHeader, grid: Grid) -> tuple[Axis, Axis] | None:
    """Rows and columns of the window in the raster; None if only GDAL can tell."""
    if header.origin is None or header.pixel_size is None:
        return None
    if not (grid.x_resolution > 0 > grid.y_resolution and grid.width > 0 and grid.height > 0):
        return None
    x_size, y_size = header.pixel_size
    x = (grid.bounds[0] * grid.x_resolution - header.origin[0]) / x_size
    y = (header.origin[1] - grid.bounds[1] * grid.y_resolution) / y_size
    x_step, y_step = grid.x_resolution / x_size, -grid.y_resolution / y_size
    if (
        abs(x) <= _SLACK
        and abs(y) <= _SLACK
        and header.width == grid.width
        and header.height == grid.height
        and abs(x_step - 1) * header.width <= _SLACK
        and abs(y_step - 1) * header.height <= _SLACK
    ):
        return slice(0, header.height), slice(0, header.width)
    check_cover(("left", "right"), x, x + grid.width * x_step, header.width)
    check_cover(("top", "bottom"), y, y + grid.height * y_step, header.height)
    needed = max(1 << 22, 8 * grid.width * grid.height * x_step * y_step)
    if header.width * header.height > needed:
        return None  # GDAL reads only the blocks under the window
    rows = _axis(y, y_step, grid.height, header.height)
    columns = _axis(x, x_step, grid.width, header.width)
    return None if rows is None or columns is None else (rows, columns)


def check_cover(
    sides: tuple[str, str], start: float, stop: float, size: int, allowed: float = 1.0
) -> None:
    """Raise if more than `allowed` of the raster's pixels are missing from start to stop."""
    if stop <= 0 or start >= size:
        raise Unreadable("raster_grid", "it doesn't overlap the window")
    for side, gap in zip(sides, (-start, stop - size), strict=True):
        if not gap <= allowed + _SLACK:
            raise Unreadable(
                "raster_grid", f"{gap:.4g} of its pixels are missing at the window's {side}"
            )


def _axis(start: float, step: float, count: int, size: int) -> Axis | None:
    """The raster's pixel under each of `count` pixel centres; None if one falls on an edge."""
    first = round(start)
    if abs(step - 1) * count <= _SLACK and abs(start - first) <= _SLACK:
        if first >= 0 and first + count <= size:
            return slice(first, first + count)
        index = np.arange(first, first + count)
    else:
        centres = start + (np.arange(count) + 0.5) * step
        if np.abs(centres - np.rint(centres)).min() < _SLACK:
            return None
        index = np.floor(centres).astype(np.intp)
    index[(index < 0) | (index >= size)] = -1
    return index


def inside(axis: Axis) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """Which of the window's rows (or columns) the raster has, and where it has them."""
    if isinstance(axis, slice):
        index = np.arange(axis.start, axis.stop)
        return np.ones(len(index), bool), index
    inside = axis >= 0
    return inside, axis[inside]
