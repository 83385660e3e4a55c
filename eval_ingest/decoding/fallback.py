"""What the fast path doesn't know, rslearn reads: other formats and other storages.

It is given a configuration that we wrote (core/copy_config.py), never the source's, and runs in a
process of its own (isolation.py). That each raster is what its name says is checked before.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_ingest.decoding.problems import RasterProblem


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


def _window(dataset: Any, group: str, name: str) -> Any:
    return dataset.load_windows(groups=[group], names=[name])[0]


def read_features(
    url: str,
    config: str,
    group: str,
    name: str,
    layer: str,
    item_group: int,
    bounds: tuple[int, int, int, int],
) -> tuple[None, list[dict[str, Any]]]:
    """Properties of the features that intersect the bounds in pixels, in file order.

    Args:
        url: the dataset.
        config: what config.json should say, as `rslearn_config` gives it.
        group: the window's group.
        name: the window.
        layer: the layer.
        item_group: which of its item groups.
        bounds: within the window.
    """
    dataset = _dataset(url, config)
    vector_format = dataset.layers[layer].instantiate_vector_format()
    window = _window(dataset, group, name)
    features = window.data.read_vector(layer, vector_format, bounds=bounds, group_idx=item_group)
    return None, [dict(feature.properties or {}) for feature in features]


def read_raster(
    url: str, config: str, group: str, name: str, layer: str, item_group: int, bands: Sequence[str]
) -> tuple[NDArray[Any], list[tuple[datetime, datetime]] | None]:
    """(H, W, T, C) of the bands in their order on the window's grid, and the intervals.

    Args: as of `read_features`, without the bounds, and the bands.

    Raises:
        RasterProblem: no band set has one of the bands.
    """
    from rasterio.enums import Resampling

    dataset = _dataset(url, config)
    window = _window(dataset, group, name)
    result: NDArray[Any] | None = None
    times = None
    wanted = {band: place for place, band in enumerate(bands)}
    for band_set in dataset.layers[layer].band_sets:
        here = [(k, wanted.pop(b)) for k, b in enumerate(band_set.bands) if b in wanted]
        if not here:
            continue
        raster = window.data.read_raster(
            layer,
            band_set.bands,
            band_set.instantiate_raster_format(),
            group_idx=item_group,
            resampling=Resampling.nearest,
        )
        pixels = raster.array.transpose(2, 3, 1, 0)
        if result is None:
            result = np.zeros((*pixels.shape[:3], len(bands)), pixels.dtype)
            times = raster.timestamps
        result = result.astype(np.promote_types(result.dtype, pixels.dtype), copy=False)
        result[..., [place for _, place in here]] = pixels[..., [k for k, _ in here]]
    if result is None or wanted:
        raise RasterProblem("raster_bands", f"{layer} lacks {', '.join(wanted)}")
    return result, times
