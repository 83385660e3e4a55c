"""Where windows lie: their outlines, which of them overlap, and how far apart they are.

Outlines are compared on the Mercator map, which stretches alike in all directions: within a few
kilometres a distance on the map is the distance on the ground times `Footprints.stretch`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.columns import Column, encoded

_RADIUS_M = 6_378_137.0
_MAX_LATITUDE = 89.0

_SLIVER = 1e-3
"""Outlines are straight lines between projected corners, so neighbours on a grid overlap by
slivers: two windows only overlap if they still do without this share of their width."""

_CHUNK = 4096
"""Outlines compared at a time: bounds the number of pairs in memory."""

_SEAM = -30.0
"""Where the map is cut open if a window crosses the 180th meridian, or if windows lie this side
and that side of it so near that distance matters: in the Atlantic."""

_NEAR_DEGREES = 0.1


@dataclass(frozen=True)
class Footprints:
    """The outlines of an index's windows, each different one once."""

    shapes: NDArray[Any]
    """Polygons in metres on the Mercator map."""
    centres: NDArray[np.float64]
    """Longitude and latitude of the shapes' middles, (shapes, 2)."""
    sides_degrees: NDArray[np.float64]
    """Widths and heights of the shapes in degrees, (shapes, 2)."""
    place: NDArray[np.int64]
    """Per row of the index the place in `shapes`; -1 where the outline isn't known."""

    @classmethod
    def of(cls, geometry: Column) -> "Footprints":
        """The outlines of a geometry column (WKB, longitude and latitude).

        A site that was taken a thousand times costs one outline. Null, and what is no polygon,
        has no outline.
        """
        import shapely

        place, values = encoded(geometry)
        shapes = np.array(shapely.from_wkb(values.to_pylist(), on_invalid="ignore"), dtype=object)
        known = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
        number = np.where(known, np.cumsum(known) - 1, -1)
        place = np.where(place >= 0, number[place], -1) if len(number) else place
        shapes = _whole(shapes[known])
        centres = shapely.get_coordinates(shapely.centroid(shapes))
        bounds = shapely.bounds(shapes).reshape(-1, 4)
        sides = bounds[:, 2:] - bounds[:, :2]
        return cls(np.asarray(shapely.transform(shapes, _mercator)), centres, sides, place)

    @cached_property
    def stretch(self) -> NDArray[np.float64]:
        """Metres on the map per metre on the ground, per shape."""
        latitude = np.clip(self.centres[:, 1], -_MAX_LATITUDE, _MAX_LATITUDE)
        return np.asarray(1 / np.cos(np.radians(latitude)))

    @cached_property
    def shrunk(self) -> NDArray[Any]:
        """Shapes drawn together towards their middle, so that only real overlap intersects."""
        import shapely

        corners = shapely.get_coordinates(self.shapes)
        middles = shapely.get_coordinates(shapely.centroid(self.shapes))
        middles = np.repeat(middles, shapely.get_num_coordinates(self.shapes), axis=0)
        # set_coordinates changes its argument.
        return np.asarray(
            shapely.set_coordinates(
                self.shapes.copy(), middles + (corners - middles) * (1 - _SLIVER)
            )
        )

    def nearest(
        self, rows: NDArray[np.int64], of: NDArray[np.int64], distance_m: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Those of `rows` with one of `of` within the distance, in order, and the nearest one.

        Args:
            rows: rows of the index.
            of: rows of the index.
            distance_m: metres between outlines on the ground.
        """
        import shapely

        rows, of = rows[self.place[rows] >= 0], of[self.place[of] >= 0]
        if not len(rows) or not len(of):
            return rows[:0], of[:0]
        shapes, first = np.unique(self.place[of], return_index=True)
        wanted, again = np.unique(self.place[rows], return_inverse=True)
        limit = distance_m * self.stretch[wanted]
        tree = shapely.STRtree(self.shapes[shapes])
        # Not max_distance: it only takes one number, and 0 isn't allowed.
        (one, other), apart = tree.query_nearest(
            self.shapes[wanted], return_distance=True, all_matches=False
        )
        found = np.full(len(wanted), -1)
        near = apart <= limit[one]
        found[one[near]] = of[first[other[near]]]
        hit = found[again] >= 0
        return rows[hit], found[again][hit]

    def overlaps(
        self, shapes: NDArray[np.int64], of: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Pairs of places in `shapes` and in `of` whose outlines overlap, in portions.

        Args:
            shapes: places in `self.shapes`.
            of: places in `self.shapes`.
        """
        import shapely

        tree = shapely.STRtree(self.shrunk[of])
        for start in range(0, len(shapes), _CHUNK):
            some = self.shrunk[shapes[start : start + _CHUNK]]
            one, other = tree.query(some, predicate="intersects")
            yield one + start, other


def _whole(shapes: NDArray[Any]) -> NDArray[Any]:
    """Shapes in longitude and latitude, those that cross the 180th meridian put together again.

    Longitudes then reach beyond 180 degrees, for all west of the seam, so that they stay near.
    So they do where shapes lie on both sides of the meridian, close to it.
    """
    import shapely

    west, _, east, _ = shapely.bounds(shapes).reshape(-1, 4).T
    crossing = east - west > 180
    edge = 180 - _NEAR_DEGREES
    both_sides = east.max(initial=0) > edge and west.min(initial=0) < -edge
    if not crossing.any() and not both_sides:
        return shapes
    corners = shapely.get_coordinates(shapes)
    crosses = np.repeat(crossing, shapely.get_num_coordinates(shapes))
    left_of_seam = np.repeat(east < _SEAM, shapely.get_num_coordinates(shapes))
    corners[:, 0] += 360.0 * ((crosses & (corners[:, 0] < 0)) | left_of_seam)
    return np.asarray(shapely.set_coordinates(shapes.copy(), corners))


def _mercator(points: NDArray[np.float64]) -> NDArray[np.float64]:
    longitude = np.radians(points[:, 0])
    latitude = np.radians(np.clip(points[:, 1], -_MAX_LATITUDE, _MAX_LATITUDE))
    return _RADIUS_M * np.column_stack([longitude, np.arcsinh(np.tan(latitude))])


def equal_area(centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Longitudes and latitudes (N, 2) in metres on the EASE-Grid 2.0 (EPSG:6933)."""
    import pyproj

    transformer = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:6933", always_xy=True)
    return np.column_stack(transformer.transform(centres[:, 0], centres[:, 1]))


def connected(
    count: int, first: NDArray[np.int64], second: NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    """The groups of two or more among `count` things that the pairs connect, each sorted.

    >>> [group.tolist() for group in connected(6, np.array([0, 4]), np.array([2, 2]))]
    [[0, 2, 4]]
    """
    root = np.arange(count)
    while True:  # each round joins trees by their roots, then flattens them: log(count) rounds
        a, b = root[first], root[second]
        if (a == b).all():
            break
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while (root != root[root]).any():
            root = root[root]
    linked = np.unique(np.concatenate([first, second]))
    order = linked[np.argsort(root[linked], kind="stable")]
    if not len(order):
        return []
    return np.split(order, np.flatnonzero(np.diff(root[order])) + 1)
