"""Vector labels: the features of a window in its own pixels, and which of them a crop has."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import shapely
from shapely.geometry import shape

from eval_ingest.decoding.grid import Grid

Bounds = tuple[int, int, int, int]


_MANY_POINTS = 10_000
"""From here on shapes are indexed: a window may have 100,000 crops, and each looks for its own."""


class Features:
    """Shapes in a window's pixels, with their properties, in file order."""

    def __init__(self, shapes: Sequence[Any], properties: Sequence[dict[str, Any] | None]) -> None:
        for found in properties:
            if not isinstance(found, dict | None):
                raise TypeError(f"properties of a feature are a {type(found).__name__}, no object")
        self._shapes = np.array(shapes, dtype=object)
        self._properties = properties
        self._tree: shapely.STRtree | None = None
        if len(shapes) and shapely.get_num_coordinates(self._shapes).sum() > _MANY_POINTS:
            self._tree = shapely.STRtree(self._shapes)
            shapely.prepare(self._shapes)

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

    def within(self, bounds: Bounds) -> list[dict[str, Any]]:
        """Properties of the features that intersect bounds in pixels."""
        if not len(self._shapes):
            return []
        box = shapely.box(*bounds)
        if self._tree is None:
            hits = np.flatnonzero(shapely.intersects(self._shapes, box))
        else:
            near = np.sort(self._tree.query(box))
            hits = near[shapely.intersects(self._shapes[near], box)]
        return [dict(self._properties[k] or {}) for k in hits.tolist()]


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
