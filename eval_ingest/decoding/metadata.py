"""metadata.json and items.json of a window, parsed and checked: its grid, times and options."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from eval_ingest.core.crs_text import is_crs_text
from eval_ingest.decoding.grid import Grid
from eval_ingest.decoding.limits import (
    MAX_OPTIONS_CHARACTERS,
    MAX_SMALL_JSON_BYTES,
    check_shape_text,
)
from eval_ingest.decoding.machine import blame
from eval_ingest.decoding.problems import Unreadable
from eval_ingest.errors import words_of
from eval_ingest.sources.base import WindowFiles, WindowReader

Interval = tuple[datetime, datetime]

MALFORMED = (LookupError, TypeError, ValueError, AttributeError, OverflowError)
"""What JSON of an unexpected form leads to where values are taken out of it."""

_PLAIN_CRS = re.compile(r"EPSG:[1-9][0-9]{3,4}")


@dataclass
class WindowMetadata:
    """What metadata.json says."""

    grid: Grid
    time_range: Interval | None
    options: dict[str, Any]


def read_metadata(source: WindowReader, files: WindowFiles) -> WindowMetadata | None:
    """A window's metadata alone; None if it is missing or broken."""
    try:
        path = files.by_path["metadata.json"]
        if path.size > MAX_SMALL_JSON_BYTES:
            return None
        return parse_metadata(json.loads(source.read(files.group, files.name, path).decode()))
    except (KeyError, ValueError, RecursionError, Unreadable):
        return None


def parse_metadata(raw: Any) -> WindowMetadata:
    """Check and convert the content of a window's metadata.json."""
    try:
        projection = raw["projection"]
        crs = projection["crs"]
        resolutions = projection["x_resolution"], projection["y_resolution"]
        options = raw.get("options") or {}
        times = raw.get("time_range")
        time_range = _interval(times) if times else None
        bounds = raw["bounds"]
        known = _is_crs(crs)
    except MALFORMED as error:
        raise Unreadable("metadata_unreadable", f"metadata.json: {words_of(error)}") from error
    if not known:
        raise Unreadable("metadata_unreadable", f"the CRS is {str(crs)[:80]!r}")
    if len(json.dumps(options)) > MAX_OPTIONS_CHARACTERS:
        raise Unreadable(
            "window_too_large",
            f"its options have more than {MAX_OPTIONS_CHARACTERS:,} characters of JSON",
        )
    if not isinstance(options, dict):
        raise Unreadable("metadata_unreadable", f"options are {type(options).__name__}, not a map")
    if not all(_is_number(r) and r != 0 for r in resolutions):
        raise Unreadable("metadata_unreadable", f"resolutions are {str(resolutions)[:80]}")
    whole = (
        isinstance(bounds, list)
        and len(bounds) == 4
        and all(isinstance(b, int) and not isinstance(b, bool) for b in bounds)
    )
    if not whole or bounds[2] <= bounds[0] or bounds[3] <= bounds[1]:
        raise Unreadable("bounds_invalid", f"bounds are {str(bounds)[:80]}")
    if max(bounds[2] - bounds[0], bounds[3] - bounds[1]) > 65536 or max(map(abs, bounds)) >= 2**53:
        raise Unreadable("bounds_invalid", f"bounds {bounds} span more than 65536 pixels")
    x0, y0, x1, y1 = bounds
    x_resolution, y_resolution = map(float, resolutions)
    grid = Grid(crs, x_resolution, y_resolution, (x0, y0, x1, y1))
    return WindowMetadata(grid, time_range, options)


@lru_cache(maxsize=1024)
def _is_crs(crs: str) -> bool:
    """True for what rslearn can make a CRS of without opening a file or a URL."""
    if not is_crs_text(crs):
        return False
    crs.encode()  # Parquet takes no lone surrogates
    if _PLAIN_CRS.fullmatch(crs):
        return True  # whether there is one of that number, the rasters tell
    from rasterio.crs import CRS  # only for datasets whose windows carry WKT
    from rasterio.errors import CRSError

    try:
        CRS.from_string(crs)
    except CRSError as error:
        blame(error)
        return False
    return True


def _is_number(value: Any) -> bool:
    """True for a finite number that isn't so large as to be a mistake."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12


def _interval(times: Sequence[str]) -> Interval:
    start, end = (datetime.fromisoformat(text) for text in times)
    return aware(start), aware(end)


def aware(time: datetime) -> datetime:
    """A time in UTC; one without a time zone is taken to be."""
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)


def parse_items(raw: Any) -> dict[str, Any]:
    """The item groups by layer in a window's items.json, as rslearn's WindowLayerData reads it."""
    found = {}
    try:
        for entry in raw:
            ranges = entry.get("group_time_ranges")
            groups, _ = entry["serialized_item_groups"], entry["materialized"]
            for times in ranges or ():
                if times is not None:
                    datetime.fromisoformat(times[0]), datetime.fromisoformat(times[1])
            if ranges is not None and len(ranges) != len(groups):
                raise ValueError(f"{len(ranges)} time ranges for {len(groups)} item groups")
            _check_items(groups)
            found[entry["layer_name"]] = groups
    except (*MALFORMED, RecursionError) as error:
        raise Unreadable("metadata_unreadable", f"items.json: {words_of(error)}") from error
    return found


def _check_items(groups: Any) -> None:
    """Refuse places of items that would be more than data to whoever reads them.

    Raises:
        ValueError: a CRS names a file or a URL, or a shape is nested too deeply.
    """
    for group in groups:
        for item in group or ():
            geometry = item.get("geometry") if isinstance(item, dict) else None
            if not isinstance(geometry, dict):
                continue
            projection = geometry.get("projection")
            crs = projection.get("crs") if isinstance(projection, dict) else None
            if crs is not None and not is_crs_text(crs):
                raise ValueError(f"the CRS is {str(crs)[:80]!r}")
            if isinstance(geometry.get("shp"), str):
                check_shape_text(geometry["shp"])


def items_interval(item_groups: Any, item_group: int) -> Interval | None:
    """From the first start to the last end of a group's items; None if they have no times."""
    import shapely  # only for rasters whose sidecars have no times

    try:
        items = item_groups[item_group]
        intervals: list[Interval] = []
        for item in items or ():
            _ = item["name"]
            geometry = item["geometry"]
            projection, times = geometry["projection"], geometry["time_range"]
            _ = projection["x_resolution"], projection["y_resolution"]
            if not _is_crs(projection["crs"]):
                raise ValueError(f"the CRS is {projection['crs']!r}")
            check_shape_text(geometry["shp"])
            shapely.from_wkt(geometry["shp"])
            if times:
                start, end = datetime.fromisoformat(times[0]), datetime.fromisoformat(times[1])
                intervals.append((start, end))
            elif intervals:
                raise ValueError("an item has no time range, though the first one has")
            else:
                return None
        if not intervals:
            return None
        starts, ends = zip(*intervals, strict=True)
        return aware(min(starts)), aware(max(ends))
    except (*MALFORMED, shapely.errors.ShapelyError) as error:
        blame(error)
        raise Unreadable("metadata_unreadable", f"items.json: {words_of(error)}") from error


def first_line(error: Exception) -> str:
    """The beginning of an error's text, on one line."""
    return " ".join(str(error).split())[:200]
