"""What the fast path doesn't know, rslearn reads: other formats and other storages.

It is given a configuration that we wrote (core/copy_config.py), never the source's, and the bytes
of a window's files, which were checked, and runs in a process of its own (isolation.py). It opens
nothing else: no folder, bucket or archive, wherever the window comes from.
"""

import io
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from numpy.typing import NDArray


def load_libraries() -> None:
    """Import what the functions here need."""
    # rslearn takes seconds to import; only datasets of unusual storage or format pay for it.
    import fsspec.implementations.memory  # noqa: F401
    import rasterio.vrt  # noqa: F401
    import rslearn.config
    import rslearn.dataset  # noqa: F401


class InMemory(NamedTuple):
    """A window, as far as rslearn is to see it."""

    config: str
    """What config.json should say, as `rslearn_config` gives it."""
    described: dict[str, Any]
    """Group, name, projection and bounds, as metadata.json has them."""
    files: Mapping[str, bytes]
    """By path."""


@lru_cache(maxsize=8)
def _dataset(config: str, thread: int) -> Any:
    """A dataset without files; each thread's is on a file system of its own, told by an option."""
    from rslearn.config import DatasetConfig
    from rslearn.dataset import Dataset
    from upath import UPath

    path = UPath("memory:///", of_thread=thread)
    return Dataset(path, dataset_config=DatasetConfig.model_validate_json(config))


@contextmanager
def _opened(stored: InMemory, layer: str) -> Iterator[tuple[Any, Any]]:
    """A layer's configuration, and the data of the window."""
    from fsspec.implementations.memory import MemoryFile
    from rslearn.dataset import Window

    dataset = _dataset(stored.config, threading.get_ident())
    described = {"time_range": None, "options": {}, **stored.described}
    window, files = Window.from_metadata(dataset.storage, described), dataset.path.fs
    files.store = {}
    for path, data in stored.files.items():
        file = MemoryFile(files, f"{window.window_root.path}/{path}")
        io.BytesIO.__init__(file, data)  # no copy is made, as long as nobody writes
        files.store[file.path] = file
    try:
        # As ModelDataset does.
        yield dataset.layers[layer], dataset.window_data_storage_factory.create(window)
    finally:
        files.store = {}


def read_features(
    stored: InMemory, layer: str, item_group: int
) -> tuple[None, list[tuple[bytes, dict[str, Any]]]]:
    """A window's features in file order: their shapes in its pixels as WKB, and properties."""
    import shapely

    with _opened(stored, layer) as (known, data):
        features = data.read_vector(layer, known.instantiate_vector_format(), group_idx=item_group)
    return None, [(shapely.to_wkb(f.geometry.shp), dict(f.properties or {})) for f in features]


def read_raster(
    stored: InMemory, layer: str, item_group: int, bands: Sequence[str]
) -> tuple[NDArray[Any], list[tuple[datetime, datetime]] | None]:
    """(H, W, T, C) of the band set with these bands on the window's grid, and the intervals."""
    from rasterio.enums import Resampling

    with _opened(stored, layer) as (known, data):
        band_set = next(b for b in known.band_sets if b.bands == list(bands))
        raster = data.read_raster(
            layer,
            band_set.bands,
            band_set.instantiate_raster_format(),
            group_idx=item_group,
            resampling=Resampling.nearest,
        )
    return raster.array.transpose(2, 3, 1, 0), raster.timestamps
