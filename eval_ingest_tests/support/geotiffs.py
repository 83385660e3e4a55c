"""GeoTIFFs as bytes: pixels of a type, and a file of them on a grid."""

from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.io import MemoryFile

from eval_ingest.decoding.grid import Grid

UTM = "EPSG:32630"
GRID = Grid(UTM, 10.0, -10.0, (50_000, -100_000, 50_064, -99_936))
Array = NDArray[Any]


def pixels(
    bands: int, dtype: str, height: int = 64, width: int = 64, seed: int = 0
) -> NDArray[Any]:
    """(bands, H, W): smooth along rows, so that it compresses; negative where the type allows."""
    rng = np.random.default_rng(seed)
    steps = np.cumsum(rng.normal(0, 3, (bands, height, width)), axis=2)
    low = 0 if dtype.startswith("u") else -100
    values = np.clip(steps + 60, low, 120)
    return values.astype(dtype) if dtype[0] == "f" else np.rint(values).astype(dtype)


def write(
    array: Array, grid: Grid = GRID, transform: Affine | None = None, **profile: Any
) -> bytes:
    """A GeoTIFF of (bands, H, W) whose first pixel is the grid's, written by rasterio."""
    x, y = grid.bounds[0] * grid.x_resolution, grid.bounds[1] * grid.y_resolution
    place = Affine(grid.x_resolution, 0, x, 0, grid.y_resolution, y)
    options = {
        "driver": "GTiff",
        "count": array.shape[0],
        "height": array.shape[1],
        "width": array.shape[2],
        "dtype": array.dtype.name,
        "crs": grid.crs,
        "transform": transform or place,
        "compress": "lzw",
    }
    with MemoryFile() as memory:
        with memory.open(**(options | profile)) as raster:
            raster.write(array)
        return bytes(memory.read())
