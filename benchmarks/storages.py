"""Datasets kept in other ways: rasters packed per layer, as .npy files, windows in a database."""

import json
import shutil
from pathlib import Path
from typing import Any

from eval_ingest.testing.datasets import quiet_rslearn

PER_LAYER = "rslearn.dataset.window_data_storage.per_layer.PerLayerStorageFactory"
NUMPY = "rslearn.utils.raster_format.NumpyRasterFormat"
SQLITE = "rslearn.dataset.storage.sqlite.SQLiteWindowStorageFactory"


def rewritten(
    source: Path,
    target: Path,
    *,
    per_layer: bool = False,
    numpy: bool = False,
    sqlite: bool = False,
) -> Path:
    """A dataset written anew by rslearn, in these storages and formats; returns the target."""
    from rslearn.config import DatasetConfig
    from rslearn.dataset import Dataset, Window
    from upath import UPath

    content = json.loads((source / "config.json").read_text())
    content["layers"] = {
        name: {key: value for key, value in layer.items() if key != "data_source"}
        for name, layer in content["layers"].items()
        if "format" not in layer
    }
    old = Dataset(UPath(source), dataset_config=DatasetConfig.model_validate(content))
    for layer in content["layers"].values():
        for band_set in layer.get("band_sets", ()) if numpy else ():
            band_set["format"] = {"class_path": NUMPY}
            band_set.pop("zoom_offset", None)  # the format isn't resampled
    if per_layer:
        content["window_data_storage"] = {"class_path": PER_LAYER}
    if sqlite:
        content["storage"] = {"class_path": SQLITE}
    target.mkdir(parents=True)
    (target / "config.json").write_text(json.dumps(content))
    for name in ("model.yaml", "olmoearth_run.yaml"):
        if (source / name).exists():
            shutil.copy(source / name, target / name)
    new = Dataset(UPath(target), dataset_config=DatasetConfig.model_validate(content))
    with quiet_rslearn():
        for window in old.load_windows():
            copy = Window.from_metadata(new.storage, window.get_metadata())
            copy._data = new.window_data_storage_factory.create(copy)
            copy.save()
            copy.save_layer_datas(window.load_layer_datas())
            completed = window.list_completed_layers()
            for name in {layer for layer, _ in completed}:
                _write_layer(old, new, window, copy, name)
            for name, item_group in completed:
                copy.mark_layer_completed(name, item_group)
    new.storage.close()
    return target


def _write_layer(old: Any, new: Any, window: Any, copy: Any, name: str) -> None:
    from rasterio.enums import Resampling

    root = Path(str(window.window_root)) / "layers"
    groups = len([path for path in root.iterdir() if path.name.partition(".")[0] == name])
    with copy.data.open_layer_writer(name) as writer:
        for group in range(groups):
            if old.layers[name].type.value == "vector":
                vector_format = old.layers[name].instantiate_vector_format()
                features = window.data.read_vector(name, vector_format, group_idx=group)
                writer.write_vector(vector_format, features, group_idx=group)
                continue
            for band_set, changed in zip(
                old.layers[name].band_sets, new.layers[name].band_sets, strict=True
            ):
                raster = window.data.read_raster(
                    name, band_set.bands, band_set.instantiate_raster_format(), group_idx=group,
                    resampling=Resampling.nearest,
                )  # fmt: skip
                writer.write_raster(
                    band_set.bands, changed.instantiate_raster_format(), window.projection,
                    window.bounds, raster, group_idx=group,
                )  # fmt: skip
