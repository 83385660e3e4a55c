"""What the fast path doesn't know, rslearn reads: other formats and other storages.

It is given a configuration that we wrote (core/copy_config.py), never the source's, and where a
window lies, and runs in a process of its own (isolation.py). That each raster is what its name says
is checked before. Which windows there are, and what describes them, it doesn't look up.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from numpy.typing import NDArray


def load_libraries() -> None:
    """Import what the functions here need."""
    # rslearn takes seconds to import; only datasets of unusual storage or format pay for it.
    import rasterio.vrt  # noqa: F401
    import rslearn.config
    import rslearn.dataset  # noqa: F401


@lru_cache(maxsize=8)
def _dataset(url: str, config: str) -> Any:
    from rslearn.config import DatasetConfig
    from rslearn.dataset import Dataset
    from upath import UPath

    return Dataset(UPath(url), dataset_config=DatasetConfig.model_validate_json(config))


def _window(dataset: Any, group: str, name: str, place: dict[str, Any]) -> Any:
    """The window of that folder, at a projection and bounds as metadata.json has them."""
    from rslearn.dataset import Window

    described = {"group": group, "name": name, "time_range": None, "options": {}, **place}
    window = Window.from_metadata(dataset.storage, described)
    window._data = dataset.window_data_storage_factory.create(window)  # as ModelDataset does
    return window


def read_features(
    url: str,
    config: str,
    group: str,
    name: str,
    place: dict[str, Any],
    layer: str,
    item_group: int,
) -> tuple[None, list[tuple[bytes, dict[str, Any]]]]:
    """The window's features in file order: their shapes in its pixels as WKB, and properties.

    Args:
        url: the dataset.
        config: what config.json should say, as `rslearn_config` gives it.
        group: the window's group.
        name: the window.
        place: its projection and bounds.
        layer: the layer.
        item_group: which of its item groups.
    """
    import shapely

    dataset = _dataset(url, config)
    vector_format = dataset.layers[layer].instantiate_vector_format()
    window = _window(dataset, group, name, place)
    features = window.data.read_vector(layer, vector_format, group_idx=item_group)
    return None, [(shapely.to_wkb(f.geometry.shp), dict(f.properties or {})) for f in features]


def read_raster(
    url: str,
    config: str,
    group: str,
    name: str,
    place: dict[str, Any],
    layer: str,
    item_group: int,
    bands: Sequence[str],
) -> tuple[NDArray[Any], list[tuple[datetime, datetime]] | None]:
    """(H, W, T, C) of a band set on the window's grid, and the intervals.

    Args: as of `read_features`, and the bands of the set.
    """
    from rasterio.enums import Resampling

    dataset = _dataset(url, config)
    band_set = next(b for b in dataset.layers[layer].band_sets if b.bands == list(bands))
    raster = _window(dataset, group, name, place).data.read_raster(
        layer,
        band_set.bands,
        band_set.instantiate_raster_format(),
        group_idx=item_group,
        resampling=Resampling.nearest,
    )
    return raster.array.transpose(2, 3, 1, 0), raster.timestamps
