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

_POLYGON = 3
"""shapely's number of the type."""

_SLIVER = 1e-3
"""Outlines are straight lines between projected corners, so neighbours on a grid overlap by
slivers: two windows only overlap if they still do without this share of their width."""

_CHUNK = 4096
"""Outlines compared at a time: bounds the number of pairs in memory."""

_STRIP = 1 << 16
"""Outlines in a tree at a time."""

_SEAM = -30.0
"""Where the map is cut open if a window crosses the 180th meridian, or if windows lie this side
and that side of it so near that distance matters: in the Atlantic."""

_NEAR_DEGREES = 0.1


@dataclass(frozen=True)
class Footprints:
    """The outlines of an index's windows, each different one once."""

    corners: NDArray[np.float64]
    """Rings of four corners in metres on the Mercator map, (shapes, 5, 2); NaN for the others."""
    others: dict[int, Any]
    """Polygons and multipolygons of another form on that map, by their place: few."""
    centres: NDArray[np.float64]
    """Longitude and latitude of the shapes' middles, (shapes, 2)."""
    sides_degrees: NDArray[np.float64]
    """Widths and heights of the shapes in degrees, (shapes, 2)."""
    place: NDArray[np.int64]
    """Per row of the index the place among the shapes; -1 where the outline isn't known."""

    @classmethod
    def of(cls, geometry: Column) -> "Footprints":
        """The outlines of a geometry column (WKB, longitude and latitude).

        A site that was taken a thousand times costs one outline. Null, and what is no polygon,
        has no outline. As numbers four corners take a quarter of what polygons do.
        """
        import shapely

        place, values = encoded(geometry)
        known = np.zeros(len(values), bool)
        corners, others, count = np.full((len(values), 5, 2), np.nan), dict[int, Any](), 0
        for start in range(0, len(values), _CHUNK):
            texts = values.slice(start, _CHUNK).to_pylist()
            shapes = np.array(shapely.from_wkb(texts, on_invalid="ignore"), dtype=object)
            there = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
            known[start : start + _CHUNK] = there
            shapes = shapes[there]
            plain = (shapely.get_type_id(shapes) == _POLYGON) & (
                shapely.get_num_coordinates(shapes) == 5
            )
            numbers = count + np.arange(len(shapes))
            corners[numbers[plain]] = shapely.get_coordinates(shapes[plain]).reshape(-1, 5, 2)
            others |= zip(numbers[~plain].tolist(), shapes[~plain], strict=True)
            count += len(shapes)
        number = np.where(known, np.cumsum(known) - 1, -1)
        place = np.where(place >= 0, number[place], -1) if len(number) else place
        return cls._at(corners[:count], others, place)

    @classmethod
    def _at(
        cls, corners: NDArray[np.float64], others: dict[int, Any], place: NDArray[np.int64]
    ) -> "Footprints":
        """Of shapes in longitude and latitude."""
        import shapely

        keys, odd = list(others), np.array([*others.values(), None], dtype=object)[:-1]
        bounds = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
        bounds[keys] = shapely.bounds(odd).reshape(-1, 4)
        corners, odd = _whole(corners, odd, bounds, np.array(keys, np.int64))
        lonlat = cls(corners, dict(zip(keys, odd, strict=True)), bounds, bounds, place)
        places = np.arange(len(corners))
        centres = np.zeros((len(corners), 2))
        for start in range(0, len(corners), _CHUNK):
            some = lonlat.shapes(places[start : start + _CHUNK])
            centres[start : start + _CHUNK] = shapely.get_coordinates(shapely.centroid(some))
            bounds[start : start + _CHUNK] = shapely.bounds(some)
        flat = _mercator(corners.reshape(-1, 2)).reshape(corners.shape)
        odd = np.asarray(shapely.transform(odd, _mercator))
        others = dict(zip(keys, odd, strict=True))
        return cls(flat, others, centres, bounds[:, 2:] - bounds[:, :2], place)

    def shapes(self, places: NDArray[np.int64]) -> NDArray[Any]:
        """Polygons in metres on the Mercator map, made of their corners."""
        import shapely

        rings = self.corners[places]
        odd = np.flatnonzero(np.isin(places, list(self.others)))
        rings[odd] = 0
        found = np.asarray(shapely.polygons(rings))
        for k in odd:
            found[k] = self.others[int(places[k])]
        return found

    @cached_property
    def stretch(self) -> NDArray[np.float64]:
        """Metres on the map per metre on the ground, per shape."""
        latitude = np.clip(self.centres[:, 1], -_MAX_LATITUDE, _MAX_LATITUDE)
        return np.asarray(1 / np.cos(np.radians(latitude)))

    def shrunk(self, places: NDArray[np.int64]) -> NDArray[Any]:
        """Shapes drawn together towards their middle, so that only real overlap intersects."""
        import shapely

        shapes = self.shapes(places)
        corners = shapely.get_coordinates(shapes)
        middles = shapely.get_coordinates(shapely.centroid(shapes))
        middles = np.repeat(middles, shapely.get_num_coordinates(shapes), axis=0)
        drawn = middles + (corners - middles) * (1 - _SLIVER)
        return np.asarray(shapely.set_coordinates(shapes, drawn))

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
        found, best = np.full(len(wanted), -1), limit.copy()
        for strip, near in self._strips(shapes, wanted, limit):
            tree = shapely.STRtree(self.shapes(shapes[strip]))
            for some in _portions(near):
                # Not max_distance: it only takes one number, and 0 isn't allowed.
                (one, other), apart = tree.query_nearest(
                    self.shapes(wanted[some]), return_distance=True, all_matches=False
                )
                better = (apart < best[some[one]]) | (
                    (apart <= limit[some[one]]) & (found[some[one]] < 0)
                )
                one, other = some[one[better]], strip[other[better]]
                found[one], best[one] = of[first[other]], apart[better]
        hit = found[again] >= 0
        return rows[hit], found[again][hit]

    def overlaps(
        self, shapes: NDArray[np.int64], of: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Pairs of places in `shapes` and in `of` whose outlines overlap, in portions.

        Args:
            shapes: places of outlines.
            of: places of outlines.
        """
        import shapely

        for strip, near in self._strips(of, shapes, np.zeros(len(shapes))):
            tree = shapely.STRtree(self.shrunk(of[strip]))
            for some in _portions(near):
                one, other = tree.query(self.shrunk(shapes[some]), predicate="intersects")
                yield some[one], strip[other]

    def _strips(
        self, of: NDArray[np.int64], shapes: NDArray[np.int64], margin: NDArray[np.float64]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Parts of `of` from west to east, each with those of `shapes` that may be near to one.

        A tree of polygons takes twenty times what their corners do, so there is one a strip.

        Args:
            of: places of outlines.
            shapes: places of outlines.
            margin: how near each of `shapes` may be, in metres on the map.
        """
        lowest, highest = self._box
        low, high = lowest[shapes] - margin[:, None], highest[shapes] + margin[:, None]
        order = np.argsort(lowest[of, 0], kind="stable")
        for strip in _portions(order, _STRIP):
            inside = (high >= lowest[of[strip]].min(axis=0)) & (
                low <= highest[of[strip]].max(axis=0)
            )
            near = np.flatnonzero(inside.all(axis=1))
            if len(near):
                yield strip, near

    @cached_property
    def _box(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lowest and highest x and y of the shapes on the map, each (shapes, 2)."""
        import shapely

        low, high = self.corners.min(axis=1), self.corners.max(axis=1)
        for place, shape in self.others.items():
            low[place], high[place] = shapely.bounds(shape).reshape(2, 2)
        return low, high


def _portions(places: NDArray[np.int64], size: int = _CHUNK) -> Iterator[NDArray[np.int64]]:
    """Some of them at a time."""
    return (places[start : start + size] for start in range(0, len(places), size))


def _whole(
    corners: NDArray[np.float64],
    others: NDArray[Any],
    bounds: NDArray[np.float64],
    keys: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Shapes in longitude and latitude, those that cross the 180th meridian put together again.

    Longitudes then reach beyond 180 degrees, for all west of the seam, so that they stay near.
    So they do where shapes lie on both sides of the meridian, close to it.

    Args:
        corners: of four-cornered shapes, (shapes, 5, 2).
        others: shapes of another form.
        bounds: of all of them, (shapes, 4).
        keys: which of them the others are.
    """
    import shapely

    west, _, east, _ = bounds.T
    crosses = east - west > 180
    edge = 180 - _NEAR_DEGREES
    both_sides = east.max(initial=0) > edge and west.min(initial=0) < -edge
    if not crosses.any() and not both_sides:
        return corners, others
    left_of_seam = east < _SEAM

    def turned(lon: NDArray[np.float64], of: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray(lon + 360.0 * ((crosses[of] & (lon < 0)) | left_of_seam[of]))

    each = np.repeat(np.arange(len(corners)), 5)
    lon = turned(corners[..., 0].reshape(-1), each).reshape(-1, 5)
    points = shapely.get_coordinates(others)
    points[:, 0] = turned(points[:, 0], np.repeat(keys, shapely.get_num_coordinates(others)))
    others = np.asarray(shapely.set_coordinates(others.copy(), points))
    return np.stack([lon, corners[..., 1]], axis=-1), others


def _mercator(points: NDArray[np.float64]) -> NDArray[np.float64]:
    longitude = np.radians(points[:, 0])
    latitude = np.radians(np.clip(points[:, 1], -_MAX_LATITUDE, _MAX_LATITUDE))
    return _RADIUS_M * np.column_stack([longitude, np.arcsinh(np.tan(latitude))])


# ------------------------------------------------------------------------------------- outlines

_ALONG = np.linspace(0, 1, 17)[:-1]
"""Where the edges of windows at the 180th meridian or a pole are looked at: these are bent."""
_NEAR_POLE = 89.999


def outlines(crs: Any, boxes: NDArray[np.float64]) -> NDArray[Any]:
    """Boxes of one CRS as shapes in longitude and latitude.

    Polygons of four corners. What crosses the 180th meridian is cut there in two, as RFC 7946 and
    GeoParquet have it, and what holds a pole reaches up to it, so that no shape lies where its
    box doesn't.

    Args:
        crs: what pyproj takes.
        boxes: left, bottom, right, top in its units, (N, 4), in either order.

    Returns:
        Shapely polygons and multipolygons, (N,); None for what has no place.

    Raises:
        pyproj.exceptions.ProjError: the CRS can't be understood.
    """
    import pyproj
    import shapely

    transformer = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    x0, y0, x1, y1 = boxes.T
    xs, ys = np.stack([x0, x1, x1, x0, x0], axis=1), np.stack([y0, y0, y1, y1, y0], axis=1)
    lon, lat = transformer.transform(xs, ys)
    found = np.full(len(boxes), None, dtype=object)
    finite = np.isfinite(lon).all(axis=1) & np.isfinite(lat).all(axis=1)
    found[finite] = shapely.polygons(np.stack([lon[finite], lat[finite]], axis=-1))
    bent = np.abs(np.diff(lon, axis=1)).max(axis=1, initial=0) > 179.9
    bent |= np.abs(lat).max(axis=1, initial=0) > _NEAR_POLE
    bent |= np.abs(lon).max(axis=1, initial=0) > 180
    for k in np.flatnonzero(finite & bent):
        edges = [c[k, :-1, None] + np.diff(c[k])[:, None] * _ALONG for c in (xs, ys)]
        found[k] = _cut(*transformer.transform(*(edge.ravel() for edge in edges)))
    return np.asarray(shapely.normalize(found))


def _cut(lon: NDArray[np.float64], lat: NDArray[np.float64]) -> Any:
    """A ring that touches the 180th meridian or a pole, cut into its eastern and western half.

    This is done on a map of the hemisphere seen from above its pole, where both are ordinary
    places: the 180th meridian is the lower half of the y axis, longitude 0 the upper one.
    """
    import shapely

    pole = 90.0 if lat.mean() > 0 else -90.0
    away, turn = np.tan(np.radians(90 - lat * np.sign(pole)) / 2), np.radians(lon)
    ring = shapely.Polygon(np.column_stack([away * np.sin(turn), away * np.cos(turn)]))
    far = 2 * float(away.max()) + 1
    halves = []
    for side in (1, -1):
        half = shapely.box(min(0, side * far), -far, max(0, side * far), far)
        for part in shapely.get_parts(shapely.intersection(ring, half)):
            if part.area > 0:
                halves.append(_unrolled(shapely.get_coordinates(part), side, pole))
    return shapely.union_all(halves)  # one where a pole is inside


def _unrolled(points: NDArray[np.float64], side: int, pole: float) -> Any:
    """A ring on one side of the y axis of that map, in longitude and latitude."""
    import shapely

    away = np.hypot(*points[:-1].T)
    at_pole = away < 1e-12
    lon = np.abs(np.degrees(np.arctan2(points[:-1, 0], points[:-1, 1]))) * side + 0.0
    lat = (90 - 2 * np.degrees(np.arctan(away))) * np.sign(pole)
    corners: list[tuple[float, float]] = []
    for k in range(len(lon)):
        after = (k + 1) % len(lon)
        if at_pole[k]:  # it has every longitude: those of its neighbours are joined along it
            corners += [(lon[k - 1], pole), (lon[after], pole)]
            continue
        corners.append((lon[k], lat[k]))
        if abs(lon[after] - lon[k]) > 179.9 and not at_pole[after]:  # an edge through the pole
            corners += [(lon[k], pole), (lon[after], pole)]
    return shapely.Polygon(corners)


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
