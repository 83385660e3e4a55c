"""Vector labels: the features of a window in its own pixels, and which of them a crop has."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import shape

from eval_ingest.core.crops import starts
from eval_ingest.core.resolved import CropGrid
from eval_ingest.decoding.grid import Grid
from eval_ingest.decoding.problems import Unreadable

Bounds = tuple[int, int, int, int]

_MOST_TESTS = 20_000_000
"""Of a shape and a crop that are near each other, for one window: ten seconds or so."""
_MOST_S = 60.0
"""Of a core that they may take where shapes of many points lie so that all of them matter."""
_MANY_POINTS = 100
"""From here on a shape is prepared: its tests look at the points that matter."""
_POINTS_AT_ONCE = 10_000_000
"""That are looked at between two looks at the time, at most."""


class Features:
    """Shapes in a window's pixels, with their properties, in file order."""

    def __init__(self, shapes: Sequence[Any], properties: Sequence[dict[str, Any] | None]) -> None:
        for found in properties:
            if not isinstance(found, dict | None):
                raise TypeError(f"properties of a feature are a {type(found).__name__}, no object")
        self._shapes = np.array(shapes, dtype=object)
        self._properties = properties

    @classmethod
    def parse(cls, collection: Any, grid: Grid) -> "Features":
        """Those of GeoJSON that reach into a window.

        A collection written by rslearn on the window's own projection, the usual case, is in its
        pixels already; any other is reprojected by rslearn itself.
        """
        stored = collection.get("properties") or {}
        keys = ("crs", "x_resolution", "y_resolution")
        if any(stored.get(key) != getattr(grid, key) for key in keys):
            return cls(*_reprojected(collection, grid))
        features = collection["features"]
        shapes = [shape(feature["geometry"]) for feature in features]
        return cls(shapes, [feature.get("properties") for feature in features])

    def within(self, bounds: Bounds) -> Iterator[dict[str, Any]]:
        """Properties of the features that intersect bounds in pixels."""
        if len(self._shapes):
            hits = np.flatnonzero(shapely.intersects(self._shapes, shapely.box(*bounds)))
            yield from (self._properties[k] or {} for k in hits.tolist())

    def __iter__(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Shapes and properties."""
        return ((found, p or {}) for found, p in zip(self._shapes, self._properties, strict=True))


def first_of_crops(
    features: Iterable[tuple[Any, dict[str, Any]]],
    grid: Grid,
    cut: CropGrid,
    value_of: Callable[[dict[str, Any]], float | None],
    without: float,
) -> list[float]:
    """For every crop of a window, in rslearn's order, what the first feature says that reaches it.

    Args:
        features: shapes in the window's pixels, with their properties.
        grid: the window's.
        cut: where its crops lie.
        value_of: what a feature says by its properties; None if that is nothing.
        without: stands for crops of which none says anything.

    Raises:
        Unreadable: what `value_of` raises of a feature that comes first; or it takes too long.
    """
    crops = _Crops(grid, cut, without)
    for found, properties in features:
        if not crops.n_open:
            break
        value: float | Unreadable | None
        try:
            value = value_of(properties)
        except Unreadable as problem:
            value = problem
        if isinstance(value, Unreadable):
            if crops.take(found, np.nan):
                raise value
        elif value is not None:
            crops.take(found, value)
    return crops.values.ravel().tolist()


class _Crops:
    """The crops of a window, column by column, and the values of those that have one."""

    def __init__(self, grid: Grid, cut: CropGrid, without: float) -> None:
        x, y = grid.bounds[:2]
        height, width = cut.sides
        self._left = x + np.array(starts(grid.width, width, cut.overlap))
        self._top = y + np.array(starts(grid.height, height, cut.overlap))
        self._right, self._bottom = self._left + width, self._top + height
        edges = self._left[:, None], self._top, self._right[:, None], self._bottom
        self._boxes = shapely.box(*edges)
        self.values = np.full((len(self._left), len(self._top)), float(without))
        self._open = np.ones(self.values.shape, bool)
        self.n_open, self._tests, self._began = self._open.size, 0, time.thread_time()

    def take(self, found: Any, value: float) -> bool:
        """Give those that a shape reaches, and that have none yet, a value; False if none are."""
        x0, y0, x1, y1 = found.bounds
        first = np.searchsorted(self._right, x0), np.searchsorted(self._bottom, y0)
        last = np.searchsorted(self._left, x1, "right"), np.searchsorted(self._top, y1, "right")
        near = np.argwhere(self._open[first[0] : last[0], first[1] : last[1]]) + first
        if not len(near):
            return False
        columns, rows = near[self._meets(found, self._boxes[tuple(near.T)])].T
        self.values[columns, rows], self._open[columns, rows] = value, False
        self.n_open -= len(columns)
        return len(columns) > 0

    def _meets(self, found: Any, boxes: NDArray[Any]) -> NDArray[np.bool_]:
        n_points, parts = int(shapely.get_num_coordinates(found)), []
        if n_points > _MANY_POINTS:
            shapely.prepare(found)
        step = max(_POINTS_AT_ONCE // (1 + n_points), 1)
        for start in range(0, len(boxes), step):
            parts.append(shapely.intersects(found, boxes[start : start + step]))
            self._tests += len(parts[-1])
            if self._tests > _MOST_TESTS or time.thread_time() - self._began > _MOST_S:
                raise Unreadable(
                    "window_too_large",
                    f"it has {self.values.size:,} crops, and too many features near many of them "
                    "to find out which is whose",
                )
        return np.concatenate(parts)


def _reprojected(collection: dict[str, Any], grid: Grid) -> tuple[list[Any], list[Any]]:
    # rslearn is heavy to import and only needed for labels in another projection.
    from rslearn.utils.feature import Feature
    from rslearn.utils.geometry import (
        WGS84_PROJECTION,
        Projection,
        STGeometry,
        safely_reproject_within_valid_area,
    )

    properties = collection.get("properties") or {}
    if "crs" in properties:
        stored = Projection.deserialize(properties)
    elif "crs" in collection:
        stored = Projection(_crs(collection["crs"]["properties"]["name"]), 1, 1)
    else:
        stored = WGS84_PROJECTION
    features = [Feature.from_geojson(stored, feature) for feature in collection["features"]]
    projection = Projection(_crs(grid.crs), grid.x_resolution, grid.y_resolution)
    window = STGeometry(projection, shapely.box(*grid.bounds), None)
    shapes = safely_reproject_within_valid_area([f.geometry for f in features], window)
    pairs = zip(shapes, features, strict=True)
    there = [(found.shp, feature.properties) for found, feature in pairs if found is not None]
    return [found for found, _ in there], [properties for _, properties in there]


@lru_cache(maxsize=256)
def _crs(text: str) -> Any:
    from rasterio.crs import CRS

    return CRS.from_string(text)
