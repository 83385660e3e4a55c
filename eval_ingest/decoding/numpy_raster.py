"""data.npy to pixels on a window's grid: the values of rslearn's NumpyRasterFormat.

The format holds (C, T, H, W) and says in its sidecar where that lies. It is cropped and filled up
by whole pixels; another projection or resolution is refused, as rslearn does. Nothing is unpickled,
and nothing is allocated before the header's numbers have been held against the file's length.
"""

import io
import math
import struct
import tokenize
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic
from numpy.typing import NDArray

from eval_ingest.decoding.geotiff_header import MAX_BYTES
from eval_ingest.decoding.grid import Grid, epsg
from eval_ingest.decoding.metadata import MALFORMED, first_line
from eval_ingest.decoding.problems import Unreadable, broken
from eval_ingest.decoding.sidecars import NumpySidecar
from eval_ingest.errors import words_of

_BROKEN_HEADER = (SyntaxError, MemoryError, RecursionError, struct.error, tokenize.TokenError)
"""What numpy raises on a header that is no literal, besides what any malformed value leads to."""
_MAX_HEADER = 4096
"""Bytes; a header of four axes has about a hundred."""


def decode_numpy(
    data: bytes, sidecar: NumpySidecar, grid: Grid, max_bytes: int = MAX_BYTES
) -> NDArray[Any]:
    """Pixels (H, W, T, C) on the window's grid in the stored type; a view where that will do.

    Raises:
        Unreadable: `raster_unreadable` if it is no whole array of numbers of four axes;
            `raster_grid` if it lies elsewhere, or is of another projection or resolution.
    """
    _check_projection(sidecar.projection, grid)
    stored = _read(data)
    x0, y0, x1, y1 = sidecar.bounds
    if stored.shape[2:] != (y1 - y0, x1 - x0):
        height, width = stored.shape[2:]
        raise Unreadable(
            "raster_grid", f"it has {height} x {width} pixels, its bounds {y1 - y0} x {x1 - x0}"
        )
    pixels = stored.transpose(2, 3, 1, 0)
    if sidecar.bounds == grid.bounds:
        return pixels
    left, top = max(x0, grid.bounds[0]), max(y0, grid.bounds[1])
    right, bottom = min(x1, grid.bounds[2]), min(y1, grid.bounds[3])
    if right <= left or bottom <= top:
        raise Unreadable("raster_grid", "it doesn't overlap the window")
    shape = (grid.height, grid.width, *pixels.shape[2:])
    if math.prod(shape) * pixels.itemsize > max_bytes:
        raise Unreadable("raster_grid", f"{grid.width} x {grid.height} pixels are too many")
    try:
        out = np.full(shape, sidecar.nodata_value or 0, pixels.dtype)
    except (OverflowError, ValueError) as error:
        raise broken(f"nodata {sidecar.nodata_value} where it has none: {error}") from error
    inside = np.s_[top - grid.bounds[1] : bottom - grid.bounds[1]]
    across = np.s_[left - grid.bounds[0] : right - grid.bounds[0]]
    out[inside, across] = pixels[top - y0 : bottom - y0, left - x0 : right - x0]
    return out


def _read(data: bytes) -> NDArray[Any]:
    """The array (C, T, H, W) in memory that is that of `data`."""
    stream = io.BytesIO(data)
    try:
        version = read_magic(stream)
        read_header = read_array_header_1_0 if version == (1, 0) else read_array_header_2_0
        shape, columns_first, dtype = read_header(stream, max_header_size=_MAX_HEADER)
    except (*MALFORMED, *_BROKEN_HEADER) as error:
        raise broken(f"it is no .npy file: {first_line(error)}") from error
    if dtype.kind not in "iuf" or dtype.names is not None or dtype.subdtype is not None:
        raise broken(f"it holds {dtype}, not numbers")
    if len(shape) != 4 or min(shape) < 1:
        raise broken(f"its shape is {shape!r}, not bands, timesteps, rows and columns")
    start, needed = stream.tell(), math.prod(shape) * dtype.itemsize
    if needed > len(data) - start:
        raise broken(f"{len(data) - start} bytes of pixels, its header says {needed}")
    values = np.frombuffer(data, dtype, math.prod(shape), start)
    array = values.reshape(shape, order="F" if columns_first else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _check_projection(stored: dict[str, Any], grid: Grid) -> None:
    """Refuse what rslearn would have to reproject."""
    try:
        crs, sizes = stored["crs"], (stored["x_resolution"], stored["y_resolution"])
        same = sizes == (grid.x_resolution, grid.y_resolution) and _same_crs(crs, grid.crs)
    except MALFORMED as error:
        raise broken(f"its metadata.json: {words_of(error)}") from error
    if not same:
        raise Unreadable(
            "raster_grid",
            f"it is of {str(crs)[:40]} at {sizes[0]} x {sizes[1]}, the window of {grid.crs[:40]} "
            f"at {grid.x_resolution:g} x {grid.y_resolution:g}; numpy rasters aren't reprojected",
        )


@lru_cache(maxsize=1024)
def _same_crs(one: str, other: str) -> bool:
    return one == other or (epsg(one) is not None and epsg(one) == epsg(other))
