"""Writing rslearn datasets by rslearn's own writers, so that readers meet the real format.

`write_matching` makes one from any config.json and model.yaml; what these ask for is described.py.
Of a certain story, such as the demo's, nothing belongs here.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval_ingest.testing.described import (
    SPLITS,
    Described,
    Place,
    feature_properties,
    may_lack_label,
    stored_labels,
)

if TYPE_CHECKING:
    from rslearn.config import BandSetConfig, DatasetConfig, LayerConfig
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


# ---------------------------------------------------------------- a dataset to any configuration

_START = datetime(2024, 1, 15, 10, 30, 31, tzinfo=UTC)
_STEP = timedelta(days=30)
_APART = 400
"""Pixels from one window's corner to the next one's."""


def write_matching(
    path: Path,
    config_json: str,
    model_yaml: str,
    *,
    windows: int = 12,
    side: int = 16,
    alike: bool = False,
    seed: int = 0,
) -> Path:
    """Write a small dataset that matches a config.json and a model.yaml.

    It has all layers that rslearn takes, with their band sets, zoom offsets, types, formats and
    storages; as many item groups as inputs read; the groups, options and names that the splits
    select, and a window that none selects; labels of every kind of value that the task maps or
    passes over. Pixels are random. Windows differ in size where nothing forbids it, and some lack
    an item group or a label where that is expected.

    Args:
        path: a folder that is made; the two files are written into it as they are.
        config_json: the text of config.json.
        model_yaml: the text of model.yaml.
        windows: about so many; each group that train selects has one or more.
        side: pixels along the sides of windows, at least.
        alike: all windows have the same size.
        seed: of pixels and labels.
    """
    from rslearn.dataset import Dataset
    from upath import UPath

    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(config_json)
    (path / "model.yaml").write_text(model_yaml)
    described = Described.parse(config_json, model_yaml)
    with quiet_rslearn(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = readable_config(described.config)
        sides = described.sides(side)[: 1 if alike else None]
        writer = _Writer(
            described, config, Dataset(UPath(path), dataset_config=config), sides,
            np.random.default_rng(seed),
        )  # fmt: skip
        for number, place in enumerate(_placed(described, windows)):
            writer.window(number, place)
    return path


def readable_config(content: dict[str, Any]) -> "DatasetConfig":
    """The layers of a config.json that today's rslearn takes, without their data sources.

    Of the forms that it has given up, those are taken whose meaning is certain: a vector layer's
    `format: {name: geojson}` and what only fetching needs.
    """
    from pydantic import ValidationError
    from rslearn.config import DatasetConfig

    layers = {}
    for name, layer in content["layers"].items():
        kept = {key: value for key, value in layer.items() if key not in ("data_source", "alias")}
        if (kept.get("format") or {}).get("name") == "geojson":
            del kept["format"]
        try:
            DatasetConfig.model_validate({"layers": {name: kept}})
        except ValidationError:
            continue
        layers[name] = kept
    storages = ("storage", "window_data_storage")
    kept = {key: content[key] for key in storages if key in content}
    return DatasetConfig.model_validate({"layers": layers, **kept})


def _placed(described: Described, windows: int) -> Iterator[Place]:
    """Where each window goes: half of them to train, none twice where splits are the same."""
    places = {split: described.places(split) for split in SPLITS}
    distinct = [split for k, split in enumerate(SPLITS) if all(
        places[split] != places[other] for other in SPLITS[:k]
    )]  # fmt: skip
    for split in distinct:
        share = windows // 2 if split == "train" else windows // (2 * max(len(distinct) - 1, 1))
        for k in range(max(share, len(places[split])) if split == "train" else share):
            yield places[split][k % len(places[split])]
    first = places["train"][0]
    options = {key: f"not {value}" for key, value in first.options.items()}
    if options != first.options:
        yield Place(first.group, options)


class _Writer:
    """Writes the windows of one dataset, by rslearn."""

    def __init__(
        self,
        described: Described,
        config: "DatasetConfig",
        dataset: "Dataset",
        sides: list[tuple[int, int]],
        rng: np.random.Generator,
    ) -> None:
        self._described, self._config, self._dataset = described, config, dataset
        self._sides, self._rng = sides, rng
        self._names: dict[tuple[str, ...], int] = {}

    def window(self, number: int, place: Place) -> None:
        """One whole window."""
        height, width = self._sides[number % len(self._sides)]
        x, y = 40000 + _APART * (number % 8) * max(1, width // 256), -90000 - _APART * number
        window = add_window(
            self._dataset, place.group, self._name(number, place),
            (x, y, x + width, y + height), (_START, _START + 12 * _STEP), dict(place.options),
        )  # fmt: skip
        items: dict[str, list[Interval]] = {}
        for name, layer in self._config.layers.items():
            if layer.type.value == "raster":
                items[name] = self._raster_layer(window, name, layer, number)
            else:
                self._vector_layer(window, name, layer, number)
        save_items(window, items)

    def _name(self, number: int, place: Place) -> str:
        if not place.names:
            return f"window_{number}"
        used = self._names.get(place.names, 0)
        self._names[place.names] = used + 1
        return place.names[used] if used < len(place.names) else f"window_{number}"

    def _raster_layer(
        self, window: "Window", name: str, layer: "LayerConfig", number: int
    ) -> list[Interval]:
        from rslearn.dataset.window_data_storage import per_item_group as stored

        count = self._described.item_groups(name)
        if number % 3 == 1 and self._described.may_lack_groups(name):
            count = max(1, count - 1)
        times = [(_START + k * _STEP, _START + (k + 1) * _STEP) for k in range(count)]
        with window.data.open_layer_writer(name) as writer:
            for band_set in layer.band_sets:
                for item_group, time in enumerate(times):
                    if isinstance(window.data, stored.PerItemGroupStorage):
                        # Formats of tiles expect their folder to be there.
                        place = window.window_root, name, band_set.bands, item_group
                        stored.per_item_group_raster_dir(*place).mkdir(parents=True)
                    writer.write_raster(
                        band_set.bands, band_set.instantiate_raster_format(),
                        *self._raster(window, name, band_set, time), group_idx=item_group,
                    )  # fmt: skip
        complete(window, name, count)
        return times

    def _raster(
        self, window: "Window", layer: str, band_set: "BandSetConfig", time: Interval
    ) -> tuple[Any, Any, Any]:
        """Projection, bounds and pixels of one item group."""
        from rslearn.utils.raster_array import RasterArray, RasterMetadata

        projection, bounds = band_set.get_final_projection_and_bounds(
            window.projection, window.bounds
        )
        shape = (len(band_set.bands), 1, bounds[3] - bounds[1], bounds[2] - bounds[0])
        raster = RasterArray(
            array=self._pixels(layer, shape, band_set.dtype.value),
            timestamps=[time],
            metadata=RasterMetadata(nodata_value=band_set.nodata_value),
        )
        return projection, bounds, raster

    def _pixels(self, layer: str, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        tasks = self._described.label_layers.get(layer)
        if tasks:
            return np.asarray(self._rng.choice(stored_labels(tasks[0], dtype, self._rng), shape))
        if layer in self._described.binary_layers:
            return self._rng.integers(0, 2, shape).astype(dtype)
        if np.dtype(dtype).kind == "f":
            return self._rng.uniform(0.001, 0.3, shape).astype(dtype)
        return self._rng.integers(1, min(9000, np.iinfo(dtype).max - 1), shape).astype(dtype)

    def _vector_layer(self, window: "Window", name: str, layer: "LayerConfig", number: int) -> None:
        from rslearn.dataset.window_data_storage.per_item_group import per_item_group_layer_dir
        from rslearn.utils.feature import Feature

        tasks = self._described.label_layers.get(name, [])
        properties: dict[str, Any] = {}
        for k, task in enumerate(tasks):
            if not may_lack_label(task) or (number + k) % 5 != 2:
                properties |= feature_properties(task, layer.class_names or [], self._rng)
        geometry = window.get_geometry()
        per_item_group_layer_dir(window.window_root, name).mkdir(parents=True)  # see _raster_layer
        with window.data.open_layer_writer(name) as writer:
            writer.write_vector(
                layer.instantiate_vector_format(),
                [Feature(geometry, {"source": "field"}), Feature(geometry, properties)],
            )
        complete(window, name)
