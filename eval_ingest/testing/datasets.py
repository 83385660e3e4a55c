"""Writing rslearn datasets by rslearn's own writers, so that readers meet the real format."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from rslearn.dataset import Dataset, Window

CRS_CODE = 32630
"""EPSG code: UTM zone 30 north."""
RESOLUTION_M = 10

Interval = tuple[datetime, datetime]


# ------------------------------------------------------------------------- rslearn's own writers
# rslearn is imported inside: it takes seconds, and everything above can be had without it.


@contextmanager
def quiet_rslearn() -> Iterator[None]:
    """Keep what rslearn logs as a matter of course off the terminal.

    Its modules set their loggers' levels when they are imported, which may happen inside.
    """
    before = logging.root.manager.disable
    logging.disable(max(before, logging.INFO))
    try:
        yield
    finally:
        logging.disable(before)


def open_dataset(path: Path) -> "Dataset":
    """The rslearn dataset at a path that holds a config.json."""
    from rslearn.dataset import Dataset
    from upath import UPath

    return Dataset(UPath(path))


def add_window(
    dataset: "Dataset",
    group: str,
    name: str,
    bounds: tuple[int, int, int, int],
    time_range: Interval | None,
    options: dict[str, Any],
) -> "Window":
    """Create a window on the 10 m grid and save its metadata."""
    from rasterio.crs import CRS
    from rslearn.dataset import Window
    from rslearn.utils.geometry import Projection

    window = Window(
        storage=dataset.storage,
        group=group,
        name=name,
        projection=Projection(CRS.from_epsg(CRS_CODE), RESOLUTION_M, -RESOLUTION_M),
        bounds=bounds,
        time_range=time_range,
        options=options,
        data_factory=dataset.window_data_storage_factory,
    )
    window.save()
    return window


def write_raster(
    window: "Window",
    layer: str,
    bands: tuple[str, ...],
    pixels: NDArray[Any],
    *,
    times: list[Interval] | None = None,
    item_group: int = 0,
    zoom_offset: int = 0,
    nodata_value: float | None = None,
) -> None:
    """Write one band set's pixels (C, T, H, W) of one item group.

    `pixels` have the resolution of `zoom_offset`; without `times` there is no sidecar.
    """
    from rslearn.utils.geometry import ResolutionFactor
    from rslearn.utils.raster_array import RasterArray, RasterMetadata
    from rslearn.utils.raster_format import GeotiffRasterFormat

    factor = ResolutionFactor(2 ** max(zoom_offset, 0), 2 ** max(-zoom_offset, 0))
    raster = RasterArray(
        array=pixels, timestamps=times, metadata=RasterMetadata(nodata_value=nodata_value)
    )
    with window.data.open_layer_writer(layer) as writer:
        writer.write_raster(
            list(bands),
            GeotiffRasterFormat(),
            factor.multiply_projection(window.projection),
            factor.multiply_bounds(window.bounds),
            raster,
            group_idx=item_group,
        )


def save_items(window: "Window", times: dict[str, list[Interval]]) -> None:
    """Write items.json: per layer and item group one scene of that time, around the window."""
    from rslearn.data_sources.data_source import Item
    from rslearn.dataset.window import WindowLayerData
    from rslearn.utils.geometry import STGeometry

    shape = window.get_geometry().shp.buffer(2000)
    datas = {}
    for layer, intervals in times.items():
        groups = [
            [
                Item(
                    f"{layer}_{interval[0]:%Y%m%dT%H%M%S}_T30NTN",
                    STGeometry(window.projection, shape.envelope, interval),
                ).serialize()
            ]
            for interval in intervals
        ]
        datas[layer] = WindowLayerData(layer, groups, materialized=True)
    window.save_layer_datas(datas)


def complete(window: "Window", layer: str, item_groups: int = 1) -> None:
    """Mark a layer's item groups as completed."""
    for item_group in range(item_groups):
        window.mark_layer_completed(layer, item_group)
