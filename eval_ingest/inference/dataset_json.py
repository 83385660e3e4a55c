"""config.json of an rslearn dataset: its layers, and how windows and rasters are stored.

A layer is parsed when it is asked for: layers that no input reads may be in forms that rslearn
has given up.
"""

from dataclasses import dataclass

from eval_ingest.core.bounds import MOST_PIXELS
from eval_ingest.core.resolved import BandSet, Layer
from eval_ingest.inference.formats import (
    data_storage,
    raster_format,
    vector_format,
    window_storage,
)
from eval_ingest.inference.node import Node, parse_json

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

_MOST_BANDS = 65_535
"""That a TIFF can have."""
_MOST_ZOOM = 30
"""Along a side, as of windows."""


@dataclass(frozen=True)
class DatasetJson:
    """A parsed config.json."""

    root: Node

    @classmethod
    def parse(cls, text: str, where: str, file: str = "config.json") -> "DatasetJson":
        """Parse the text; the layers stay unparsed."""
        root = parse_json(text, file, where)
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
                return Layer(
                    name=name,
                    vector=True,
                    format=vector_format(node),
                    class_property=node.get("class_property_name").text(),
                    class_names=node.get("class_names").names(),
                )
            case "raster":
                names = node.get("class_names").names()
                return Layer(name=name, band_sets=tuple(_band_sets(node)), class_names=names)
            case other:
                raise node.get("type").error(f"is {other!r}, but must be raster or vector")

    def class_names(self, layer: str, band: str | None) -> tuple[tuple[str, ...], str]:
        """Names by stored value, of the layer or of the band's band set, and their place."""
        node = self.node(layer)
        names = node.get("class_names")
        if names.given:
            return names.names(), names.place
        for band_set in node.get("band_sets").items():
            lists, bands = _class_names(band_set), _band_names(band_set)
            if lists and (band is None or band in bands):
                names = band_set.get("class_names")
                number = bands.index(band) if band and _is_by_band(names) else 0
                return lists[number] if number < len(lists) else (), names.place
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
        """`file` or `sqlite`."""
        return window_storage(self.root.get("storage"))

    @property
    def data_storage(self) -> str:
        """`per_item_group` or `per_layer`."""
        return data_storage(self.root.get("window_data_storage"))


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
    return BandSet(
        bands=bands,
        dtype=dtype,
        zoom_offset=node.get("zoom_offset").integer(-_MOST_ZOOM, _MOST_ZOOM) or 0,
        spatial_size=_spatial_size(node.get("spatial_size")),
        nodata_value=_nodata_value(node),
        class_names=_class_names(node),
        format=raster_format(node, layer),
    )


def _band_names(band_set: Node) -> tuple[str, ...]:
    names = band_set.get("bands").names()
    count = band_set.get("num_bands").integer(1, _MOST_BANDS) or 0
    return names or tuple(f"B{i}" for i in range(count))


def _class_names(band_set: Node) -> tuple[tuple[str, ...], ...]:
    """Names by stored value for each band, as far as there are; a flat list is that of the only
    band.
    """
    names = band_set.get("class_names")
    if _is_by_band(names):
        return tuple(item.names() for item in names.items())
    return (names.names(),) if names.given else ()


def _is_by_band(names: Node) -> bool:
    return names.given and any(isinstance(item.value, list) for item in names.items())


def _spatial_size(node: Node) -> tuple[int, int] | None:
    if not node.given:
        return None
    sides = [side.integer(1, MOST_PIXELS) for side in node.items()]
    if len(sides) != 2 or not all(sides):
        raise node.error(f"is {node.shown}, but must be [height, width]")
    return (sides[0] or 0, sides[1] or 0)


def _nodata_value(band_set: Node) -> float | None:
    """The nodata value, also in the deprecated form of one per band."""
    value = band_set.get("nodata_value").nodata()
    if value is not None:
        return value
    values = {item.nodata() for item in band_set.get("nodata_vals").items()}
    if len(values) > 1:
        raise band_set.get("nodata_vals").error(
            f"is {band_set.get('nodata_vals').shown}: rslearn takes only one value for all bands",
            "replace it by nodata_value",
        )
    return values.pop() if values else None
