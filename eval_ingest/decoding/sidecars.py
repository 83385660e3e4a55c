"""A raster's metadata.json, with the types that rslearn's own readers give it.

Where the raster lies and how it is decoded is geotiff.py and numpy_raster.py.
"""

import json
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ValidationError

from eval_ingest.decoding.metadata import MALFORMED, Interval, aware, first_line
from eval_ingest.decoding.problems import Unreadable, broken

Kind = TypeVar("Kind", bound="Sidecar")

_SMALL = 1 << 12
"""Bytes of those that are remembered."""


class Sidecar(BaseModel):
    """What both kinds say."""

    timestamps: list[tuple[datetime, datetime]] | None = None

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Raises Unreadable if it isn't one."""
        try:
            return _small(cls, data) if len(data) <= _SMALL else cls.model_validate_json(data)
        except ValidationError as error:
            raise broken(f"its metadata.json: {first_line(error)}") from error

    @cached_property
    def intervals(self) -> list[Interval] | None:
        """Start and end per timestep; None if it doesn't say."""
        if self.timestamps is None:
            return None
        try:
            return [(aware(start), aware(end)) for start, end in self.timestamps]
        except OverflowError as error:
            raise broken(f"its metadata.json: {error}") from error


@lru_cache(maxsize=256)
def _small(kind: type[Kind], data: bytes) -> Kind:
    """Windows of the same months say the same, word for word."""
    return kind.model_validate_json(data)


class GeotiffSidecar(Sidecar):
    """As of rslearn's GeotiffRasterMetadata."""

    num_channels: int | None = None
    num_timesteps: int | None = None

    def shape(self, bands: int) -> tuple[int, int]:
        """Channels and timesteps of a file of so many bands.

        Raises:
            Unreadable: it has another number of them.
        """
        if self.num_timesteps is None:  # then rslearn doesn't look at num_channels either
            return bands, 1
        channels, timesteps = self.num_channels or bands, self.num_timesteps
        if min(channels, timesteps) < 1 or channels * timesteps != bands:
            says = f"{channels} channels x {timesteps} timesteps"
            raise Unreadable("raster_bands", f"it has {bands} bands, its metadata.json says {says}")
        return channels, timesteps


class NumpySidecar(Sidecar):
    """As of rslearn's NumpyRasterMetadata."""

    projection: dict[str, Any]
    bounds: tuple[int, int, int, int]
    nodata_value: int | float | None = None


GROUP_COUNTS = "window_storage_meta.json"
"""Beside a raster that holds all item groups of a layer: how many timesteps each of them has."""


def parse_group_counts(data: bytes, path: str) -> list[int]:
    """The timesteps of each item group of a packed layer."""
    try:
        counts = json.loads(data.decode())["group_timestep_counts"]
        known = isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts)
    except (*MALFORMED, RecursionError) as error:
        raise Unreadable("raster_unreadable", f"{path}: {first_line(error)}") from error
    if not known:
        raise Unreadable("raster_unreadable", f"{path}: {GROUP_COUNTS} has no counts")
    return list(counts)


def steps_of_group(counts: list[int], item_group: int, timesteps: int, path: str) -> slice:
    """Where a packed layer has an item group's timesteps."""
    if sum(counts) != timesteps:
        raise Unreadable(
            "raster_bands", f"{path} has {timesteps} timesteps, {GROUP_COUNTS} says {sum(counts)}"
        )
    if item_group >= len(counts):
        raise Unreadable("raster_missing", f"{path} has {len(counts)} item groups, no {item_group}")
    first = sum(counts[:item_group])
    return slice(first, first + counts[item_group])
