"""GeoTIFF bytes to pixels on a window's grid.

The values are those of rslearn's GeotiffRasterFormat with nearest resampling. Most rasters of
a dataset lie exactly on their window's grid; then nothing but their pixels has to be decoded,
and opening them with GDAL would cost several times that. There are three ways, each for what the
one before doesn't know for certain: our own decoder for what rslearn writes, libtiff, and rasterio
(warp.py), which is imported only then. Tags are read in geotiff_header.py, places in grid.py.
Where a crash would end the command, all but our own decoder work in a process of their own.
"""

import math
from mmap import mmap
from typing import Any

import numpy as np
from imagecodecs import tiff_decode
from numpy.typing import NDArray

from eval_ingest.core.kernels import decode_lzw
from eval_ingest.decoding.geotiff_header import MAX_BYTES, GeotiffHeader, read_header
from eval_ingest.decoding.grid import Axis, Grid, epsg, inside, place_on
from eval_ingest.decoding.isolation import Result, Shared, isolated
from eval_ingest.decoding.limits import most_by_gdal, too_large
from eval_ingest.decoding.machine import blame, machine_faults_told
from eval_ingest.decoding.problems import (
    NotUnderstoodError,
    Unreadable,
    broken,
    shortened,
)
from eval_ingest.decoding.warp import Stored, warp
from eval_ingest.engine import is_replaced

_EXACT = 1 << 53
"""Integers up to this are float64, too."""

_VIEWED_BYTES = 16 << 20
"""Of pixels that aren't copied out of the memory that they were decoded in beside this process."""


def decode_geotiff(
    data: bytes, grid: Grid, most_bytes: int = MAX_BYTES
) -> tuple[NDArray[Any], Stored]:
    """Pixels (H, W, bands) on the window's grid in the stored type, and how they are stored.

    Nearest neighbour where the grids differ; outside of the raster its nodata value, or 0.
    The array may be a view that isn't contiguous (band-interleaved files).

    Args:
        data: the file.
        grid: the window's.
        most_bytes: of pixels that may be unpacked at a time.

    Raises:
        Unreadable: `raster_unreadable` if the bytes are no whole GeoTIFF; `raster_grid` if
            it leaves more than one of its own pixels of the window uncovered on a side;
            `window_too_large`; `decoder_stopped` if a decoder crashed, hung or filled its memory.
        MachineError: this machine can't read it.
    """
    try:
        header = read_header(data)
    except NotUnderstoodError as problem:
        return _by_gdal(data, grid, most_bytes, problem)
    if not header.georeferenced:
        raise Unreadable("raster_grid", "it has no georeference")
    check_size(grid, header.bands, header.dtype, most_bytes)
    simple = header.simple and header.pixel_bytes <= most_bytes
    if simple and header.epsg is not None and header.epsg == epsg(grid.crs):
        place = place_on(header, grid)
        if place is not None:
            pixels = _on_grid(_decode_pixels(data, header), header, *place)
            if pixels is not None:
                return pixels, Stored(header.dtype, header.nodata)
    if not simple or not is_replaced():
        return _by_gdal(data, grid, most_bytes)
    pixels, stored = warp(data, grid, most_by_gdal(most_bytes, len(data)))
    return np.moveaxis(pixels, 0, -1), stored


def check_size(grid: Grid, bands: int, dtype: str, most_bytes: int) -> None:
    """Raise if the window's pixels are more than may be unpacked."""
    item = np.dtype(dtype).itemsize if dtype != "unknown" else 1
    if grid.width * grid.height * bands * item > most_bytes:
        what = f"{grid.width} x {grid.height} pixels of {bands} bands as {dtype}"
        raise too_large(what, most_bytes)


def _by_gdal(
    data: bytes, grid: Grid, most_bytes: int, known: Unreadable | None = None
) -> tuple[NDArray[Any], Stored]:
    """What isn't surely harmless, through GDAL in a process of its own.

    `known` is what our own header reader says: it is told if GDAL can't read the file either.
    """
    try:
        pixels, stored = isolated.run(warp, data, grid, most_by_gdal(most_bytes, len(data)))
    except Unreadable as problem:
        raise known if known and problem.code == "raster_unreadable" else problem from problem
    assert pixels is not None
    return np.moveaxis(pixels, 0, -1), stored


def _decode_pixels(data: bytes, header: GeotiffHeader) -> NDArray[Any]:
    """All pixels (H, W, bands) of a simple raster, as libtiff decodes them."""
    if header.blocks is not None:
        pixels = np.empty((header.height, header.width, header.bands), header.dtype)
        if decode_lzw(data, header.blocks, pixels):
            return pixels
    n_bytes = math.prod(_shape(header)) * np.dtype(header.dtype).itemsize
    if is_replaced():
        stored = _stored(bytearray(n_bytes), header)
        decode_by_libtiff(bytearray(data), header, stored)
        return _arranged(stored, header)
    with machine_faults_told(), Shared.of(len(data)) as file, Shared.of(n_bytes) as unpacked:
        file.write(data)
        isolated.run(decode_shared, header, shared=[file, unpacked])
        stored = _stored(unpacked.view(), header)
    # A view takes a file handle for as long as it lives.
    return _arranged(stored if n_bytes > _VIEWED_BYTES else stored.copy(), header)


def load_libraries() -> None:
    """Nothing: this module has imported what `decode_by_libtiff` needs."""


def decode_shared(header: GeotiffHeader, file: Shared, unpacked: Shared) -> Result:
    """Decode a file for another process."""
    decode_by_libtiff(file.view(), header, _stored(unpacked.view(), header))
    return None, None


def decode_by_libtiff(data: bytearray | mmap, header: GeotiffHeader, pixels: NDArray[Any]) -> None:
    """Decode all pixels of a raster whose header was checked, as they are stored.

    Args:
        data: the file, of which the directory is changed.
        header: its own.
        pixels: zeros; libtiff leaves some of them where a block is damaged near its end.

    Raises:
        Unreadable: it is damaged.
    """
    # libtiff warns of each tag that it doesn't know, and imagecodecs takes the GIL for each of
    # these warnings: a third of the time for small rasters, and threads wait for each other.
    # A directory that ends before the georeference has none.
    at, count = header.pixel_tags
    data[at : at + len(count)] = count
    try:
        tiff_decode(data, out=pixels)  # releases the GIL
    except Exception as error:  # whatever the codec raises, the raster is damaged
        blame(error)
        raise broken(shortened(error)) from error


def _shape(header: GeotiffHeader) -> list[int]:
    """Of the pixels, as libtiff gives them."""
    shape = [header.height, header.width]
    if header.bands > 1:
        shape.insert(0 if header.planar else 2, header.bands)
    return shape


def _stored(memory: bytearray | mmap, header: GeotiffHeader) -> NDArray[Any]:
    return np.frombuffer(memory, header.dtype).reshape(_shape(header))


def _arranged(stored: NDArray[Any], header: GeotiffHeader) -> NDArray[Any]:
    """Pixels (H, W, bands) of those that libtiff gave."""
    if header.planar:
        planes = stored.reshape(header.bands, header.height, header.width)
        pixels = planes.transpose(1, 2, 0)
    else:
        pixels = stored.reshape(header.height, header.width, header.bands)
    if header.alpha:
        pixels[pixels[:, :, -1] == 0] = 0
    return pixels


def _on_grid(
    pixels: NDArray[Any], header: GeotiffHeader, rows: Axis, columns: Axis
) -> NDArray[Any] | None:
    """The window's pixels (H, W, bands); None if GDAL would change their values."""
    # In these types GDAL's warper moves a nodata value by 1 where another band has data.
    moves = header.nodata is not None and header.bands > 1 and header.dtype in ("int32", "uint32")
    if moves and (pixels == header.nodata).any():
        return None
    # Of these it makes float64, which rounds what is larger.
    wide = header.dtype in ("int64", "uint64")
    if wide and (int(pixels.max()) > _EXACT or int(pixels.min()) < -_EXACT):
        return None
    if isinstance(rows, slice) and isinstance(columns, slice):
        window = pixels[rows, columns]
        # A part is copied, so that a small window doesn't keep a large raster in memory.
        return window if window.shape == pixels.shape else window.copy()
    inside_rows, source_rows = inside(rows)
    inside_columns, source_columns = inside(columns)
    shape = (len(inside_rows), len(inside_columns), header.bands)
    out = np.full(shape, header.nodata or 0, pixels.dtype)
    out[np.ix_(inside_rows, inside_columns)] = pixels[np.ix_(source_rows, source_columns)]
    return out
