"""config.json of an rslearn dataset: its layers, and how windows and rasters are stored.

A layer is parsed when it is asked for: layers that no input reads may be in forms that rslearn
has given up.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from eval_ingest.core.resolved import BandSet, Layer
from eval_ingest.inference.node import Node, check_class_path, parse_json

_DTYPES = (
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    "float32",
)
_RASTER_FORMATS = {
    "geotiff": "rslearn.utils.raster_format.GeotiffRasterFormat",
    "image_tile": "rslearn.utils.raster_format.ImageTileRasterFormat",
    "single_image": "rslearn.utils.raster_format.SingleImageRasterFormat",
}
_NUMPY = "rslearn.utils.raster_format.NumpyRasterFormat"
_GEOJSON = "rslearn.utils.vector_format.GeojsonVectorFormat"


@dataclass(frozen=True)
class DatasetJson:
    """A parsed config.json."""

    root: Node

    @classmethod
    def parse(cls, text: str, where: str) -> "DatasetJson":
        """Parse the text; the layers stay unparsed."""
        root = parse_json(text, "config.json", where)
        if not root.get("layers").entries():
            raise root.error("has no layers", "is this an rslearn dataset's config.json?")
        return cls(root)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """All layers, in the file's order."""
        return tuple(self.root.get("layers").entries())

    def node(self, layer: str) -> Node:
        """The layer's entry."""
        return self.root.get("layers", layer)

    def kind(self, layer: str) -> str:
        """`raster` or `vector`, or whatever the file says."""
        return str(self.node(layer).get("type").value).lower()

    def layer(self, name: str, reader: Node) -> Layer:
        """The layer that `reader`, an input of model.yaml, asks for."""
        node = self.node(name)
        if not isinstance(node.value, dict):
            raise reader.error(
                f"reads layer {name!r}, which config.json doesn't have "
                f"(it has {', '.join(self.layer_names)})",
                "correct `layers`",
            )
        match self.kind(name):
            case "vector":
                geojson = _vector_format(node)["class_path"] == _GEOJSON
                return Layer(name=name, vector=True, geojson=geojson)
            case "raster":
                return Layer(name=name, band_sets=tuple(_band_sets(node)))
            case other:
                raise node.get("type").error(f"is {other!r}, but must be raster or vector")

    def class_names(self, layer: str, band: str | None) -> tuple[tuple[str, ...], str]:
        """Names by stored value, of the layer or of the band's band set, and their place."""
        node = self.node(layer)
        names = node.get("class_names")
        if names.given:
            return names.texts(), names.place
        for band_set in node.get("band_sets").items():
            names = band_set.get("class_names")
            bands = _band_names(band_set)
            if not names.given or (band is not None and band not in bands):
                continue
            if any(isinstance(item.value, list) for item in names.items()):
                names = names.items()[bands.index(band) if band else 0]
            return names.texts(), names.place
        return (), ""

    def class_property(self, layer: str) -> Node:
        """The property that holds a feature's class."""
        return self.node(layer).get("class_property_name")

    def nodata_value(self, layer: str, band: str) -> Node | None:
        """The nodata value of the band set that holds the band."""
        for band_set in self.node(layer).get("band_sets").items():
            if band in _band_names(band_set):
                return band_set.get("nodata_value")
        return None

    @property
    def window_storage(self) -> str:
        """`file`, or the class path of another window storage."""
        return _storage(self.root.get("storage"), "FileWindowStorageFactory", "file")

    @property
    def data_storage(self) -> str:
        """`per_item_group`, or the class path of another data storage."""
        node = self.root.get("window_data_storage")
        return _storage(node, "PerItemGroupStorageFactory", "per_item_group")

    def reduced(self, layers: Iterable[str]) -> dict[str, Any]:
        """The configuration of these layers alone, in the forms that today's rslearn takes.

        What only fetching data needs (data sources, tile store, compositing) is left out: the
        pixels are there already.
        """
        result: dict[str, Any] = {"layers": {name: _modern(self.node(name)) for name in layers}}
        for key in ("storage", "window_data_storage"):
            if self.root.get(key).value is not None:
                result[key] = self.root.get(key).value
        return result


def _storage(node: Node, default_class: str, default: str) -> str:
    if not node.class_path:
        return default
    check_class_path(node)
    return default if node.class_name == default_class else node.class_path


def _band_sets(layer: Node) -> list[BandSet]:
    band_sets = [_band_set(node, layer) for node in layer.get("band_sets").items()]
    if not band_sets:
        raise layer.error("is a raster layer without band_sets", "add them")
    return band_sets


def _band_set(node: Node, layer: Node) -> BandSet:
    bands = _band_names(node)
    if not bands:
        raise node.error("has neither bands nor num_bands", "add one of them")
    dtype = node.get("dtype").text().lower()
    if dtype not in _DTYPES:
        raise node.get("dtype").error(
            f"is {node.get('dtype').shown}, but must be one of {', '.join(_DTYPES)}"
        )
    format_ = _raster_format(node, layer)["class_path"]
    return BandSet(
        bands=bands,
        dtype=dtype,
        zoom_offset=node.get("zoom_offset").integer() or 0,
        spatial_size=_spatial_size(node.get("spatial_size")),
        nodata_value=_nodata_value(node),
        geotiff=format_ == _RASTER_FORMATS["geotiff"],
        numpy=format_ == _NUMPY,
    )


def _band_names(band_set: Node) -> tuple[str, ...]:
    names = band_set.get("bands").texts()
    return names or tuple(f"B{i}" for i in range(band_set.get("num_bands").integer() or 0))


def _spatial_size(node: Node) -> tuple[int, int] | None:
    if not node.given:
        return None
    sides = [side.integer() for side in node.items()]
    if len(sides) != 2 or not all(sides):
        raise node.error(f"is {node.shown}, but must be [height, width]")
    return (sides[0] or 0, sides[1] or 0)


def _nodata_value(band_set: Node) -> float | None:
    """The nodata value, also in the deprecated form of one per band."""
    value = band_set.get("nodata_value").number()
    if value is not None:
        return value
    values = {item.number() for item in band_set.get("nodata_vals").items()}
    if len(values) > 1:
        raise band_set.get("nodata_vals").error(
            f"is {band_set.get('nodata_vals').shown}: rslearn takes only one value for all bands",
            "replace it by nodata_value",
        )
    return values.pop() if values else None


def _raster_format(band_set: Node, layer: Node) -> dict[str, Any]:
    """The format as class_path and init_args, also from `format: {name: geotiff}`."""
    node = band_set.get("format") if band_set.get("format").given else layer.get("format")
    if not node.given:
        return {"class_path": _RASTER_FORMATS["geotiff"]}
    name = node.get("name").text()
    if not name:
        check_class_path(node)
        return dict(node.value) if isinstance(node.value, dict) else {"class_path": node.value}
    if name not in _RASTER_FORMATS:
        raise node.error(
            f"is the unknown format {name!r}", f"known are {', '.join(sorted(_RASTER_FORMATS))}"
        )
    init_args = {key: value for key, value in node.value.items() if key != "name"}
    return {"class_path": _RASTER_FORMATS[name], "init_args": init_args}


def _modern(layer: Node) -> dict[str, Any]:
    """A layer's entry without deprecated forms."""
    result: dict[str, Any] = {"type": str(layer.get("type").value).lower()}
    for key in ("class_property_name", "class_names"):
        if layer.get(key).given:
            result[key] = layer.get(key).value
    if result["type"] == "vector":
        result["vector_format"] = _vector_format(layer)
    else:
        band_sets = layer.get("band_sets").items()
        result["band_sets"] = [_modern_band_set(node, layer) for node in band_sets]
    return result


def _vector_format(layer: Node) -> dict[str, Any]:
    """The vector format; of the deprecated `format: {name: geojson}` only the name matters."""
    node = layer.get("vector_format")
    if not node.class_path:
        old = layer.get("format", "name")
        if old.text() not in ("", "geojson"):
            raise old.error(
                f"is {old.shown}, a form that rslearn has given up", "use vector_format"
            )
        return {"class_path": _GEOJSON}
    check_class_path(node)
    return dict(node.value) if isinstance(node.value, dict) else {"class_path": node.value}


def _modern_band_set(node: Node, layer: Node) -> dict[str, Any]:
    result: dict[str, Any] = {
        "dtype": node.get("dtype").text().lower(),
        "bands": list(_band_names(node)),
        "format": _raster_format(node, layer),
    }
    for key in ("zoom_offset", "spatial_size", "class_names"):
        if node.get(key).given:
            result[key] = node.get(key).value
    nodata = _nodata_value(node)
    if nodata is not None:
        result["nodata_value"] = nodata
    return result
