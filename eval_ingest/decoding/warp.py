"""Rasters on another grid, through GDAL's warper, called as rslearn calls it.

GDAL is also asked for pixels that nothing of ours can decode, and for headers that
geotiff_header.py doesn't understand. It is given bytes, never a path, and told that they are a
GeoTIFF: other drivers of it follow paths and URLs in a file's text.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.crs_text import cites_others
from eval_ingest.decoding.grid import Grid, check_cover
from eval_ingest.decoding.limits import too_large
from eval_ingest.decoding.machine import blame
from eval_ingest.decoding.problems import Unreadable, broken, shortened


class Stored(NamedTuple):
    """What a raster's own file says of its pixels."""

    dtype: str
    """numpy name of the stored type."""
    nodata: float | None


def load_libraries() -> None:
    """Import what `warp` needs."""
    # rasterio and its libraries take half a second to load; most datasets never need them.
    import affine  # noqa: F401
    import rasterio.vrt
    import rasterio.warp  # noqa: F401


def warp(data: bytes, grid: Grid, most_bytes: int) -> tuple[NDArray[Any], Stored]:
    """Pixels (bands, H, W) on the grid, and how they are stored.

    Raises:
        Unreadable: it can't be read, doesn't cover the window, or is larger than `most_bytes`.
        MachineError: it can't be read on this machine.
    """
    from affine import Affine
    from rasterio.crs import CRS
    from rasterio.enums import Resampling
    from rasterio.io import MemoryFile
    from rasterio.vrt import WarpedVRT

    if cites_others(data):
        raise Unreadable("raster_unreadable", "its citation is a CRS that names a file")
    x_size, y_size = grid.x_resolution, grid.y_resolution
    transform = Affine(x_size, 0, grid.bounds[0] * x_size, 0, y_size, grid.bounds[1] * y_size)
    try:
        crs = CRS.from_string(grid.crs)
        with MemoryFile(data) as memory, memory.open(driver="GTiff") as source:
            _check_source(source, grid, most_bytes)
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
            pixels = _as_stored(pixels, source)
            return pixels, Stored(pixels.dtype.name, source.nodata)
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # GDAL's errors have no common root
        blame(error)
        raise broken(shortened(error)) from error


def _as_stored(pixels: NDArray[Any], source: Any) -> NDArray[Any]:
    """Pixels in the type that is stored: rasterio reads int8 as int16 here.

    A type that can't hold the nodata value is read as one that can, and beyond the raster's edges
    there are such values.
    """
    stored = pixels.astype(source.dtypes[0], copy=False)
    if stored is not pixels and (stored != pixels).any():
        detail = f"it is {stored.dtype}, which can't hold its nodata value {source.nodata:g}"
        raise Unreadable("raster_dtype", detail)
    return stored


def _check_source(source: Any, grid: Grid, most_bytes: int) -> None:
    """Raise for a raster without a plain place or type, and for one that is too large."""
    if source.gcps[0]:
        raise Unreadable("raster_grid", "ground control points give its place, not a transform")
    if source.transform.is_identity:
        raise Unreadable("raster_grid", "it has no georeference")
    if source.dtypes[0] == "complex_int16":
        raise Unreadable("raster_dtype", "it is of complex integers, which numpy doesn't have")
    item = np.dtype(source.dtypes[0]).itemsize
    block_height, block_width = source.block_shapes[0]
    for what, pixels in (
        ("the window", grid.width * grid.height),
        ("one of its blocks", block_width * block_height),
    ):
        if pixels * source.count * item > most_bytes:
            raise too_large(f"{what} has {pixels:,} pixels of {source.count} bands", most_bytes)


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
        raise Unreadable("raster_grid", "the window can't be transformed to its CRS")
    sides, ends = ("left", "right"), ("top", "bottom")
    check_cover(sides, float(columns.min()), float(columns.max()), source.width, allowed)
    check_cover(ends, float(rows.min()), float(rows.max()), source.height, allowed)
