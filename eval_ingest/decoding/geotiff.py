"""GeoTIFF bytes to pixels on a window's grid.

The values are those of rslearn's GeotiffRasterFormat with nearest resampling. Most rasters of
a dataset lie exactly on their window's grid; then nothing but their pixels has to be decoded,
and opening them with GDAL would cost several times that. There are three ways, each for what the
one before doesn't know for certain: our own decoder for what rslearn writes, libtiff, and rasterio
(warp.py), which is imported only then. Tags are read in geotiff_header.py, places in grid.py.
Where a crash would end the command, libtiff unpacks what is compressed in a process of its own.
"""

import multiprocessing
from collections.abc import Callable
from typing import Any

import numpy as np
from imagecodecs import tiff_decode
from numpy.typing import NDArray

from eval_ingest.core.kernels import decode_lzw
from eval_ingest.decoding.geotiff_header import (
    DEFLATE,
    MAX_BYTES,
    UNCOMPRESSED,
    GeotiffHeader,
    read_header,
)
from eval_ingest.decoding.grid import Axis, Grid, epsg, inside, place_on
from eval_ingest.decoding.isolation import Result, isolated
from eval_ingest.decoding.limits import most_by_gdal, too_large
from eval_ingest.decoding.machine import blame
from eval_ingest.decoding.problems import (
    NotUnderstoodError,
    Unreadable,
    broken,
    shortened,
)
from eval_ingest.decoding.warp import Stored, warp

_APART_BYTES = 1 << 27
"""Of a file and its pixels, which both processes hold: of more, a window takes too much memory."""


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
    if not simple:
        return _by_gdal(data, grid, most_bytes)
    pixels, stored = warp(data, grid, most_bytes)
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
    # A worker that a window ends is replaced; a command that it ends is gone.
    large = len(data) + header.pixel_bytes > _APART_BYTES
    worker = multiprocessing.parent_process() is not None
    alone = worker or large or header.compression == UNCOMPRESSED
    found, _ = (_call if alone else isolated.run)(decode_by_libtiff, data, header)
    assert found is not None
    return found


def _call(function: Callable[..., Result], *args: Any) -> Result:
    return function(*args)


def load_libraries() -> None:
    """Nothing: this module has imported what `decode_by_libtiff` needs."""


def decode_by_libtiff(data: bytes, header: GeotiffHeader) -> Result:
    """All pixels (H, W, bands) of a raster whose header was checked."""
    # libtiff warns of each tag that it doesn't know, and imagecodecs takes the GIL for each of
    # these warnings: a third of the time for small rasters, and threads wait for each other.
    # A directory that ends before the georeference has none.
    at, count = header.pixel_tags
    bare = bytearray(data)
    bare[at : at + len(count)] = count
    try:
        pixels: NDArray[Any] = tiff_decode(bare, out=_zeros(header))  # releases the GIL
        if pixels.dtype != header.dtype:
            raise ValueError(f"{pixels.dtype} instead of {header.dtype}")
        if header.planar:
            pixels = pixels.reshape(header.bands, header.height, header.width).transpose(1, 2, 0)
        else:
            pixels = pixels.reshape(header.height, header.width, header.bands)
    except Exception as error:  # whatever the codec raises, the raster is damaged
        blame(error)
        raise broken(shortened(error)) from error
    if header.alpha:
        pixels[pixels[:, :, -1] == 0] = 0
    return pixels, None


def _zeros(header: GeotiffHeader) -> NDArray[Any] | None:
    """An array to decode into, where libtiff may leave a part of it unset."""
    # It accepts deflate blocks that are damaged near their end: always the same result then.
    if header.compression not in DEFLATE:
        return None
    shape = [header.height, header.width]
    if header.bands > 1:
        shape.insert(0 if header.planar else 2, header.bands)
    return np.zeros(shape, header.dtype)


def _on_grid(
    pixels: NDArray[Any], header: GeotiffHeader, rows: Axis, columns: Axis
) -> NDArray[Any] | None:
    """The window's pixels (H, W, bands); None if GDAL would change their values."""
    # In these types GDAL's warper moves a nodata value by 1 where another band has data.
    moves = header.nodata is not None and header.bands > 1 and header.dtype in ("int32", "uint32")
    if moves and (pixels == header.nodata).any():
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
