"""How a dataset's files are stored, by the names that we know; what each becomes in rslearn.

A class_path in config.json chooses a row of a table here, and goes no further: what rslearn is
given, and what the copy's config.json says, is written from the row (core/copy_config.py).
Arguments that only matter for writing are left out, whatever stands in them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from eval_ingest.core.resolved import FormatName, StoredFormat
from eval_ingest.inference.node import Node, check_class_path

Row = TypeVar("Row")

_MOST_TILE_PIXELS = 16_384


@dataclass(frozen=True)
class _Known:
    """A format: its short name, and the arguments that reading needs, each with its check."""

    name: FormatName
    arguments: Mapping[str, Callable[[Node], str | int | None]] = field(default_factory=dict)


def _one_of(*allowed: str) -> Callable[[Node], str | None]:
    def check(node: Node) -> str | None:
        if node.given and node.text() not in allowed:
            raise node.error(f"is {node.shown}, but must be one of {', '.join(allowed)}")
        return node.text() or None

    return check


def _tile_size(node: Node) -> int | None:
    return node.integer(1, _MOST_TILE_PIXELS)


_RASTER = {
    "GeotiffRasterFormat": _Known("geotiff"),
    "ImageTileRasterFormat": _Known(
        "image_tile", {"format": _one_of("geotiff", "png", "jpeg"), "tile_size": _tile_size}
    ),
    "SingleImageRasterFormat": _Known("single_image", {"format": _one_of("png", "jpeg")}),
    "NumpyRasterFormat": _Known("numpy"),
}
_VECTOR = {
    "GeojsonVectorFormat": _Known("geojson"),
    "TileVectorFormat": _Known("tile", {"tile_size": _tile_size}),
}
_DATA_STORAGE = {
    "PerItemGroupStorageFactory": "per_item_group",
    "PerLayerStorageFactory": "per_layer",
}
_WINDOW_STORAGE = {
    "FileWindowStorageFactory": "file",
    "SQLiteWindowStorageFactory": "sqlite",
}


def raster_format(band_set: Node, layer: Node) -> StoredFormat:
    """A band set's format; also from `format: {name: geotiff}`, on it or on its layer."""
    node = band_set.get("format") if band_set.get("format").given else layer.get("format")
    name = node.get("name").text() or ("" if node.given else "geotiff")
    if not name:
        return _stored(node.args, _chosen(node, _RASTER))
    known = {row.name: row for row in _RASTER.values()}
    if name not in known:
        raise node.error(f"is the unknown format {name!r}", f"known are {', '.join(sorted(known))}")
    return _stored(node, known[name])


def vector_format(layer: Node) -> StoredFormat:
    """The vector format; of the deprecated `format: {name: geojson}` only the name matters."""
    node = layer.get("vector_format")
    if node.class_path:
        return _stored(node.args, _chosen(node, _VECTOR))
    old = layer.get("format", "name")
    if old.text() not in ("", "geojson"):
        raise old.error(f"is {old.shown}, a form that rslearn has given up", "use vector_format")
    return StoredFormat(name="geojson")


def data_storage(node: Node) -> str:
    """How a window's rasters are stored: `per_item_group` or `per_layer`."""
    return _chosen(node, _DATA_STORAGE) if node.class_path else "per_item_group"


def window_storage(node: Node) -> str:
    """How windows are stored: `file` or `sqlite`."""
    return _chosen(node, _WINDOW_STORAGE) if node.class_path else "file"


def _chosen(node: Node, table: Mapping[str, Row]) -> Row:
    check_class_path(node)
    known = table.get(node.class_name) if node.class_path.startswith("rslearn.") else None
    if known is None:
        named = node.get("class_path") if isinstance(node.value, dict) else node
        raise node.unsupported(
            f"{named.shown} is none of {', '.join(table)}, which are all that can be read",
            "convert the dataset with rslearn, or ask for this one to be added",
        )
    return known


def _stored(arguments: Node, known: _Known) -> StoredFormat:
    found = ((name, check(arguments.get(name))) for name, check in known.arguments.items())
    return StoredFormat(
        name=known.name, arguments=tuple((key, value) for key, value in found if value is not None)
    )
