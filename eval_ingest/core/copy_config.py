"""config.json for rslearn, written from what was understood of a dataset's own.

It stands in the copy, and it is what rslearn is given where it reads a source for us. No text of
the source's config.json comes in but names of layers, bands, classes and of a property.
"""

from typing import Any

from eval_ingest.core.resolved import BandSet, Layer, ResolvedConfig, StoredFormat

_CLASSES = {
    "geotiff": "rslearn.utils.raster_format.GeotiffRasterFormat",
    "image_tile": "rslearn.utils.raster_format.ImageTileRasterFormat",
    "single_image": "rslearn.utils.raster_format.SingleImageRasterFormat",
    "numpy": "rslearn.utils.raster_format.NumpyRasterFormat",
    "geojson": "rslearn.utils.vector_format.GeojsonVectorFormat",
    "tile": "rslearn.utils.vector_format.TileVectorFormat",
    "per_layer": "rslearn.dataset.window_data_storage.per_layer.PerLayerStorageFactory",
}
"""rslearn's class of each form that files are stored in."""


def rslearn_config(config: ResolvedConfig) -> dict[str, Any]:
    """The content of config.json: the layers that are read, and how they are stored.

    What only fetching data needs (data sources, tile store, compositing) has no place in it: the
    pixels are there already.
    """
    result: dict[str, Any] = {"layers": {layer.name: _layer(layer) for layer in config.layers}}
    if config.data_storage != "per_item_group":
        result["window_data_storage"] = {"class_path": _CLASSES[config.data_storage]}
    return result


def _layer(layer: Layer) -> dict[str, Any]:
    result: dict[str, Any] = {"type": "vector" if layer.vector else "raster"}
    if layer.class_property:
        result["class_property_name"] = layer.class_property
    if layer.class_names:
        result["class_names"] = list(layer.class_names)
    if layer.vector:
        result["vector_format"] = _format(layer.format)
    else:
        result["band_sets"] = [_band_set(band_set) for band_set in layer.band_sets]
    return result


def _band_set(band_set: BandSet) -> dict[str, Any]:
    said = band_set.model_dump(mode="json", exclude_defaults=True, exclude={"format"})
    return said | {"format": _format(band_set.format)}


def _format(stored: StoredFormat) -> dict[str, Any]:
    found: dict[str, Any] = {"class_path": _CLASSES[stored.name]}
    return found | ({"init_args": dict(stored.arguments)} if stored.arguments else {})
