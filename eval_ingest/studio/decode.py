"""GeoTIFF bytes to pixels on a window's grid.

The values are those of rslearn's GeotiffRasterFormat with nearest resampling. Most rasters of
a dataset lie exactly on their window's grid; then nothing but their pixels has to be decoded,
and opening them with GDAL would cost several times that. There are three ways, each for what the
one before doesn't know for certain: our own decoder for what rslearn writes, libtiff, and rasterio,
which is imported only then.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from imagecodecs import tiff_decode
from numpy.typing import NDArray

from eval_ingest.core.kernels import decode_lzw
from eval_ingest.studio.geotiff import (
    DEFLATE,
    MAX_BYTES,
    GeotiffHeader,
    RasterProblem,
    broken,
    read_header,
    shortened,
)


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


def decode_geotiff(data: bytes, grid: Grid) -> tuple[NDArray[Any], GeotiffHeader]:
    """Pixels (H, W, bands) on the window's grid in the stored type, and the raster's header.

    Nearest neighbour where the grids differ; outside of the raster its nodata value, or 0.
    The array may be a view that isn't contiguous (band-interleaved files).

    Raises:
        RasterProblem: `raster_unreadable` if the bytes are no whole GeoTIFF; `raster_grid` if
            it leaves more than one of its own pixels of the window uncovered on a side.
    """
    header = read_header(data)
    if not header.georeferenced:
        raise RasterProblem("raster_grid", "it has no georeference")
    if grid.width * grid.height * header.bands > MAX_BYTES:
        raise RasterProblem("raster_grid", f"{grid.width} x {grid.height} pixels are too many")
    if header.simple and header.epsg is not None and header.epsg == _epsg(grid.crs):
        place = _place(header, grid)
        if place is not None:
            pixels = _on_grid(_decode_pixels(data, header), header, *place)
            if pixels is not None:
                return pixels, header
    return _warp(data, header, grid)


# --- from the raster's pixels to the window's -------------------------------------------------

_SLACK = 0.01
"""In pixels of the raster: a pixel centre this near to an edge may round either way."""

Axis = slice | NDArray[np.intp]
"""Where the raster has the window's rows (or columns): a slice, or an index each, -1 outside."""


@lru_cache(maxsize=1024)
def _epsg(crs: str) -> int | None:
    """EPSG code of `EPSG:n`, or of WKT that is certainly the same."""
    authority, _, code = crs.partition(":")
    if authority.upper() == "EPSG" and code.isascii() and code.isdecimal():
        return int(code)
    import pyproj  # only for datasets whose windows carry WKT

    try:
        known: int | None = pyproj.CRS.from_user_input(crs).to_epsg(min_confidence=100)
    except pyproj.exceptions.CRSError:
        return None
    return known


def _place(header: GeotiffHeader, grid: Grid) -> tuple[Axis, Axis] | None:
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
    _check_cover(("left", "right"), x, x + grid.width * x_step, header.width)
    _check_cover(("top", "bottom"), y, y + grid.height * y_step, header.height)
    needed = max(1 << 22, 8 * grid.width * grid.height * x_step * y_step)
    if header.width * header.height > needed:
        return None  # GDAL reads only the blocks under the window
    rows = _axis(y, y_step, grid.height, header.height)
    columns = _axis(x, x_step, grid.width, header.width)
    return None if rows is None or columns is None else (rows, columns)


def _check_cover(
    sides: tuple[str, str], start: float, stop: float, size: int, allowed: float = 1.0
) -> None:
    """Raise if more than `allowed` of the raster's pixels are missing from start to stop."""
    if stop <= 0 or start >= size:
        raise RasterProblem("raster_grid", "it doesn't overlap the window")
    for side, gap in zip(sides, (-start, stop - size), strict=True):
        if not gap <= allowed + _SLACK:
            raise RasterProblem(
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


def _decode_pixels(data: bytes, header: GeotiffHeader) -> NDArray[Any]:
    """All pixels (H, W, bands) of a simple raster, as libtiff decodes them."""
    if header.blocks is not None:
        pixels = np.empty((header.height, header.width, header.bands), header.dtype)
        if decode_lzw(data, header.blocks, pixels):
            return pixels
    return _decode_by_libtiff(data, header)


def _decode_by_libtiff(data: bytes, header: GeotiffHeader) -> NDArray[Any]:
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
        raise broken(shortened(error)) from error
    if header.alpha:
        pixels[pixels[:, :, -1] == 0] = 0
    return pixels


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
    inside_rows, source_rows = _inside(rows)
    inside_columns, source_columns = _inside(columns)
    shape = (len(inside_rows), len(inside_columns), header.bands)
    out = np.full(shape, header.nodata or 0, pixels.dtype)
    out[np.ix_(inside_rows, inside_columns)] = pixels[np.ix_(source_rows, source_columns)]
    return out


def _inside(axis: Axis) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """Which of the window's rows (or columns) the raster has, and where it has them."""
    if isinstance(axis, slice):
        index = np.arange(axis.start, axis.stop)
        return np.ones(len(index), bool), index
    inside = axis >= 0
    return inside, axis[inside]


# --- rslearn's way ----------------------------------------------------------------------------


def _warp(data: bytes, header: GeotiffHeader, grid: Grid) -> tuple[NDArray[Any], GeotiffHeader]:
    """Pixels (H, W, bands) through GDAL's warper, called as rslearn calls it."""
    # rasterio and its libraries take half a second to load; most datasets never need them.
    from affine import Affine
    from rasterio.crs import CRS
    from rasterio.enums import Resampling
    from rasterio.io import MemoryFile
    from rasterio.vrt import WarpedVRT

    x_size, y_size = grid.x_resolution, grid.y_resolution
    transform = Affine(x_size, 0, grid.bounds[0] * x_size, 0, y_size, grid.bounds[1] * y_size)
    try:
        crs = CRS.from_string(grid.crs)
        # Only as a GeoTIFF: other drivers of GDAL follow paths and URLs in a file's text.
        with MemoryFile(data) as memory, memory.open(driver="GTiff") as source:
            _check_warped_cover(source, crs, grid)
            with WarpedVRT(
                source,
                crs=crs,
                transform=transform,
                width=grid.width,
                height=grid.height,
                resampling=Resampling.nearest,
            ) as warped:
                pixels: NDArray[Any] = warped.read()
            # rasterio reads int8 as int16 here; the stored type holds the same values.
            pixels = pixels.astype(source.dtypes[0], copy=False)
            read = header._replace(bands=len(pixels), dtype=pixels.dtype.name, nodata=source.nodata)
    except RasterProblem:
        raise
    except Exception as error:  # GDAL's errors have no common root
        raise broken(shortened(error)) from error
    return np.moveaxis(pixels, 0, -1), read


def _check_warped_cover(source: Any, crs: Any, grid: Grid) -> None:
    """Raise if the raster leaves more of the window's outline uncovered than is allowed.

    From another CRS that is half a pixel more than from the same.
    """
    from rasterio.warp import transform as transform_points

    along, ones = np.linspace(0, 1, 9), np.ones(9)
    xs = np.concatenate([along, along, 0 * ones, ones]) * grid.width + grid.bounds[0]
    ys = np.concatenate([0 * ones, ones, along, along]) * grid.height + grid.bounds[1]
    xs, ys = xs * grid.x_resolution, ys * grid.y_resolution
    allowed = 1.0
    if source.crs is not None and source.crs != crs:
        xs, ys = map(np.asarray, transform_points(crs, source.crs, xs, ys)[:2])
        allowed = 1.5
    place = ~source.transform
    columns, rows = place.a * xs + place.b * ys + place.c, place.d * xs + place.e * ys + place.f
    if not (np.isfinite(columns).all() and np.isfinite(rows).all()):
        raise RasterProblem("raster_grid", "the window can't be transformed to its CRS")
    sides, ends = ("left", "right"), ("top", "bottom")
    _check_cover(sides, float(columns.min()), float(columns.max()), source.width, allowed)
    _check_cover(ends, float(rows.min()), float(rows.max()), source.height, allowed)
