"""GeoJSON labels: the properties of the features that intersect a window."""

from functools import lru_cache
from typing import Any

from eval_ingest.decoding.grid import Grid


def features_within(collection: Any, grid: Grid) -> list[dict[str, Any]]:
    """Properties of the features that intersect the grid's bounds, in file order.

    A collection written by rslearn on the window's own projection, the usual case, is compared in
    pixel coordinates; any other is reprojected by rslearn itself.
    """
    features = collection["features"]
    projection = collection.get("properties") or {}
    if not (
        projection.get("crs") == grid.crs
        and projection.get("x_resolution") == grid.x_resolution
        and projection.get("y_resolution") == grid.y_resolution
    ):
        return _reprojected(collection, grid)
    import shapely
    from shapely.geometry import shape

    box = shapely.box(*grid.bounds)
    return [
        dict(feature.get("properties") or {})
        for feature in features
        if shape(feature["geometry"]).intersects(box)
    ]


def _reprojected(collection: dict[str, Any], grid: Grid) -> list[dict[str, Any]]:
    # rslearn is heavy to import and only needed for labels in another projection.
    import shapely
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
    window = STGeometry(
        Projection(_crs(grid.crs), grid.x_resolution, grid.y_resolution),
        shapely.box(*grid.bounds),
        None,
    )
    shapes = safely_reproject_within_valid_area([f.geometry for f in features], window)
    return [
        dict(feature.properties or {})
        for feature, shape in zip(features, shapes, strict=True)
        if shape is not None and shape.shp.intersects(window.shp)
    ]


@lru_cache(maxsize=256)
def _crs(text: str) -> Any:
    from rasterio.crs import CRS

    return CRS.from_string(text)
