"""What the fast path doesn't know, rslearn reads: other formats and other storages.

It is given a configuration that we wrote (core/copy_config.py), never the source's, and where a
window lies, and runs in a process of its own (isolation.py). That each raster is what its name says
is checked before. Which windows there are, and what describes them, it doesn't look up.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from numpy.typing import NDArray


def load_libraries() -> None:
    """Import what the functions here need."""
    # rslearn takes seconds to import; only datasets of unusual storage or format pay for it.
    import rasterio.vrt  # noqa: F401
    import rslearn.config
    import rslearn.dataset  # noqa: F401


class Place(NamedTuple):
    """Where a window lies."""

    url: str
    """Of the dataset."""
    config: str
    """What config.json should say, as `rslearn_config` gives it."""
    group: str
    name: str
    on_map: dict[str, Any]
    """Projection and bounds, as metadata.json has them."""


@lru_cache(maxsize=8)
def _dataset(url: str, config: str) -> Any:
    from rslearn.config import DatasetConfig
    from rslearn.dataset import Dataset
    from upath import UPath

    return Dataset(UPath(url), dataset_config=DatasetConfig.model_validate_json(config))


def _opened(place: Place, layer: str) -> tuple[Any, Any]:
    """A layer's configuration, and the data of the window."""
    from rslearn.dataset import Window

    dataset = _dataset(place.url, place.config)
    described: dict[str, Any] = {"group": place.group, "name": place.name}
    described |= {"time_range": None, "options": {}, **place.on_map}
    window = Window.from_metadata(dataset.storage, described)
    # As ModelDataset does.
    return dataset.layers[layer], dataset.window_data_storage_factory.create(window)


def read_features(
    place: Place, layer: str, item_group: int
) -> tuple[None, list[tuple[bytes, dict[str, Any]]]]:
    """A window's features in file order: their shapes in its pixels as WKB, and properties."""
    import shapely

    known, data = _opened(place, layer)
    features = data.read_vector(layer, known.instantiate_vector_format(), group_idx=item_group)
    return None, [(shapely.to_wkb(f.geometry.shp), dict(f.properties or {})) for f in features]


def read_raster(
    place: Place, layer: str, item_group: int, bands: Sequence[str]
) -> tuple[NDArray[Any], list[tuple[datetime, datetime]] | None]:
    """(H, W, T, C) of the band set with these bands on the window's grid, and the intervals."""
    from rasterio.enums import Resampling

    known, data = _opened(place, layer)
    band_set = next(b for b in known.band_sets if b.bands == list(bands))
    raster = data.read_raster(
        layer,
        band_set.bands,
        band_set.instantiate_raster_format(),
        group_idx=item_group,
        resampling=Resampling.nearest,
    )
    return raster.array.transpose(2, 3, 1, 0), raster.timestamps
