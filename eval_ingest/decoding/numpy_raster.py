"""data.npy to pixels on a window's grid: the values of rslearn's NumpyRasterFormat.

The format holds (C, T, H, W) and says in its sidecar where that lies. It is cropped and filled up
by whole pixels; another projection or resolution is refused, as rslearn does. Nothing is unpickled,
and nothing is allocated before the header's numbers have been held against the file's length.
"""

import ast
import math
import struct
from datetime import datetime
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from eval_ingest.decoding.geotiff_header import MAX_BYTES
from eval_ingest.decoding.grid import Grid, epsg
from eval_ingest.decoding.metadata import MALFORMED, Interval, aware, first_line
from eval_ingest.decoding.problems import RasterProblem, broken

_MAGIC = b"\x93NUMPY"
_LENGTHS = {1: "<H", 2: "<I", 3: "<I"}
"""Version of the format to the form of its header's length."""
_MAX_HEADER = 4096
"""Bytes; a header of four axes has about a hundred."""


class NumpySidecar(BaseModel):
    """A data.npy's metadata.json, with the types that rslearn's NumpyRasterMetadata has."""

    projection: dict[str, Any]
    bounds: tuple[int, int, int, int]
    timestamps: list[tuple[datetime, datetime]] | None = None
    nodata_value: int | float | None = None

    @classmethod
    def parse(cls, data: bytes) -> "NumpySidecar":
        """Raises RasterProblem if it isn't one."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise broken(f"its metadata.json: {first_line(error)}") from error

    @property
    def intervals(self) -> list[Interval] | None:
        """Start and end per timestep; None if it doesn't say."""
        if self.timestamps is None:
            return None
        try:
            return [(aware(start), aware(end)) for start, end in self.timestamps]
        except OverflowError as error:
            raise broken(f"its metadata.json: {error}") from error


def decode_numpy(
    data: bytes, sidecar: NumpySidecar, grid: Grid, max_bytes: int = MAX_BYTES
) -> NDArray[Any]:
    """Pixels (H, W, T, C) on the window's grid in the stored type; a view where that will do.

    Raises:
        RasterProblem: `raster_unreadable` if it is no whole array of numbers of four axes;
            `raster_grid` if it lies elsewhere, or is of another projection or resolution.
    """
    _check_projection(sidecar.projection, grid)
    stored = _read(data)
    x0, y0, x1, y1 = sidecar.bounds
    if stored.shape[2:] != (y1 - y0, x1 - x0):
        height, width = stored.shape[2:]
        raise RasterProblem(
            "raster_grid", f"it has {height} x {width} pixels, its bounds {y1 - y0} x {x1 - x0}"
        )
    pixels = stored.transpose(2, 3, 1, 0)
    if sidecar.bounds == grid.bounds:
        return pixels
    left, top = max(x0, grid.bounds[0]), max(y0, grid.bounds[1])
    right, bottom = min(x1, grid.bounds[2]), min(y1, grid.bounds[3])
    if right <= left or bottom <= top:
        raise RasterProblem("raster_grid", "it doesn't overlap the window")
    shape = (grid.height, grid.width, *pixels.shape[2:])
    if math.prod(shape) * pixels.itemsize > max_bytes:
        raise RasterProblem("raster_grid", f"{grid.width} x {grid.height} pixels are too many")
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
    if data[:6] != _MAGIC or len(data) < 10:
        raise broken("it is no .npy file" if data else "it is empty")
    form = _LENGTHS.get(data[6])
    if form is None:
        raise broken(f"it is of version {data[6]}.{data[7]} of the .npy format")
    start = 8 + struct.calcsize(form)
    if len(data) < start:
        raise broken(f"it ends at byte {len(data)}, within its header")
    (length,) = struct.unpack_from(form, data, 8)
    if length > _MAX_HEADER or start + length > len(data):
        raise broken(f"its header has {length} bytes, the file {len(data)}")
    dtype, shape, columns_first = _parse_header(data[start : start + length])
    needed = math.prod(shape) * dtype.itemsize
    if needed > len(data) - start - length:
        raise broken(f"{len(data) - start - length} bytes of pixels, its header says {needed}")
    values = np.frombuffer(data, dtype, math.prod(shape), start + length)
    array = values.reshape(shape, order="F" if columns_first else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


@lru_cache(maxsize=256)
def _parse_header(text: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    """Type, shape, and whether the first axis is the fastest; a dataset's files agree in it."""
    try:
        header = ast.literal_eval(text.decode("latin-1").strip())
        dtype, shape = np.dtype(header["descr"]), header["shape"]
        columns_first = header["fortran_order"]
    except (*MALFORMED, SyntaxError, MemoryError, RecursionError) as error:
        raise broken(f"its header: {type(error).__name__}: {first_line(error)}") from error
    numbers = dtype.kind in "iuf" and dtype.names is None and dtype.subdtype is None
    if not numbers:
        raise broken(f"it holds {dtype}, not numbers")
    plain = isinstance(shape, tuple) and all(type(side) is int and side > 0 for side in shape)
    if not plain or len(shape) != 4 or not isinstance(columns_first, bool):
        raise broken(f"its shape is {shape!r}, not bands, timesteps, rows and columns")
    return dtype, shape, columns_first


def _check_projection(stored: dict[str, Any], grid: Grid) -> None:
    """Refuse what rslearn would have to reproject."""
    try:
        crs, sizes = stored["crs"], (stored["x_resolution"], stored["y_resolution"])
        same = sizes == (grid.x_resolution, grid.y_resolution) and _same_crs(crs, grid.crs)
    except MALFORMED as error:
        raise broken(f"its metadata.json: {type(error).__name__}: {first_line(error)}") from error
    if not same:
        raise RasterProblem(
            "raster_grid",
            f"it is of {str(crs)[:40]} at {sizes[0]} x {sizes[1]}, the window of {grid.crs[:40]} "
            f"at {grid.x_resolution:g} x {grid.y_resolution:g}; numpy rasters aren't reprojected",
        )


@lru_cache(maxsize=1024)
def _same_crs(one: str, other: str) -> bool:
    return one == other or (epsg(one) is not None and epsg(one) == epsg(other))
