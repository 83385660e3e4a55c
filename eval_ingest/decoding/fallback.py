"""What the fast path doesn't know, rslearn reads: other formats and other storages."""

import contextlib
import json
import os
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_ingest.decoding.problems import RasterProblem


@lru_cache(maxsize=8)
def _dataset(url: str) -> Any:
    # rslearn takes seconds to import; only datasets of unusual storage or format pay for it.
    from rslearn.config import DatasetConfig
    from rslearn.dataset import Dataset
    from upath import UPath

    root = UPath(url)
    name = "config.json" if (root / "config.json").exists() else "dataset.json"
    raw = json.loads((root / name).read_text())
    layers = {}
    for layer, values in raw["layers"].items():
        # Layers in a form that today's rslearn rejects can't be read, and aren't asked for.
        with contextlib.suppress(ValueError):
            DatasetConfig.model_validate({"layers": {layer: values}})
            layers[layer] = values
    return Dataset(root, dataset_config=DatasetConfig.model_validate(raw | {"layers": layers}))


def _window(url: str, group: str, name: str) -> Any:
    return _dataset(url).load_windows(groups=[group], names=[name])[0]


def read_features(
    url: str, group: str, name: str, layer: str, item_group: int, bounds: tuple[int, int, int, int]
) -> list[dict[str, Any]]:
    """Properties of the features that intersect the bounds in pixels, in file order.

    Raises:
        RasterProblem: rslearn can't read them.
    """
    try:
        vector_format = _dataset(url).layers[layer].instantiate_vector_format()
        features = _window(url, group, name).data.read_vector(
            layer, vector_format, bounds=bounds, group_idx=item_group
        )
    except Exception as error:  # whatever rslearn raises makes this window invalid
        where = os.path.join(group, name, layer)
        raise RasterProblem(
            "label_unreadable", f"{where}: {type(error).__name__}: {error}"
        ) from error
    return [dict(feature.properties or {}) for feature in features]


def read_raster(
    url: str, group: str, name: str, layer: str, item_group: int, bands: Sequence[str]
) -> tuple[NDArray[Any], list[tuple[datetime, datetime]] | None]:
    """(H, W, T, C) of the bands in their order on the window's grid, and the intervals.

    Raises:
        RasterProblem: rslearn can't read it.
    """
    from rasterio.enums import Resampling

    dataset = _dataset(url)
    try:
        window = _window(url, group, name)
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
    except Exception as error:  # whatever rslearn or a codec raises makes this window invalid
        where = os.path.join(group, name, layer)
        raise RasterProblem(
            "raster_unreadable", f"{where}: {type(error).__name__}: {error}"
        ) from error
    if result is None or wanted:
        raise RasterProblem("raster_bands", f"{layer} lacks {', '.join(wanted)}")
    return result, times
