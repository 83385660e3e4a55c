"""Rasters on another grid, through GDAL's warper, called as rslearn calls it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_ingest.decoding.geotiff_header import GeotiffHeader
from eval_ingest.decoding.grid import Grid, check_cover
from eval_ingest.decoding.problems import RasterProblem, broken, shortened

# --- rslearn's way ----------------------------------------------------------------------------


def warp(data: bytes, header: GeotiffHeader, grid: Grid) -> tuple[NDArray[Any], GeotiffHeader]:
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
    check_cover(sides, float(columns.min()), float(columns.max()), source.width, allowed)
    check_cover(ends, float(rows.min()), float(rows.max()), source.height, allowed)
