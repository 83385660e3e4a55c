"""What small rslearn datasets are put together from: layers, inputs, tasks, and their writer.

What doesn't belong here: the datasets themselves (factories.py, stand_ins.py, team_root.py).
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from eval_ingest.core.modality import MODALITIES
from eval_ingest.testing.datasets import (
    Interval,
    add_window,
    complete,
    write_raster,
)

S2 = MODALITIES["sentinel2_l2a"].bands
S1 = MODALITIES["sentinel1"].bands
LANDSAT = MODALITIES["landsat"].bands

# As stored: never in the order that model.yaml asks for.
S2_STORED = tuple(sorted(S2))
LANDSAT_STORED = tuple(f"B{k}" for k in range(1, 12))
S2_BY_RESOLUTION = {0: S2[:4], -1: S2[4:10], -2: S2[10:]}
"""Zoom offset to bands: 10, 20 and 40 m, as Studio has stored them."""

START = datetime(2023, 3, 5, 10, 30, 31, tzinfo=UTC)

Signal = np.ndarray
"""(H, W) around 0 to 1: what the pixels tell about the label."""


# ------------------------------------------------------------------------------ configurations


def raster_layer(*band_sets: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "raster", "band_sets": list(band_sets), **more}


def band_set(bands: Iterable[str], dtype: str, **more: Any) -> dict[str, Any]:
    return {"bands": list(bands), "dtype": dtype, **more}


def s2_by_resolution(**more: Any) -> dict[str, Any]:
    sets = [
        band_set(bands, "uint16", **({"zoom_offset": zoom} if zoom else {}))
        for zoom, bands in S2_BY_RESOLUTION.items()
    ]
    return raster_layer(*sets, **more)


def image_input(layers: list[str], bands: Iterable[str], **more: Any) -> dict[str, Any]:
    """All item groups of the layers, stacked along time."""
    return {
        "data_type": "raster",
        "layers": layers,
        "bands": list(bands),
        "dtype": "FLOAT32",
        "passthrough": True,
        "load_all_layers": True,
        "load_all_item_groups": True,
        **more,
    }


def raster_target(dtype: str = "INT32", band: str = "label") -> dict[str, Any]:
    return {
        "data_type": "raster",
        "layers": ["label_raster"],
        "bands": [band],
        "dtype": dtype,
        "is_target": True,
    }


VECTOR_TARGET = {"data_type": "vector", "layers": ["label"], "is_target": True}


def class_at(path: str, /, **init_args: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": init_args}


def multi_task(name: str, task: dict[str, Any], label: str) -> dict[str, Any]:
    return class_at(
        "rslearn.train.tasks.multi_task.MultiTask",
        tasks={name: task},
        input_mapping={name: {label: "targets"}},
    )


def normalize(**bands: Iterable[str]) -> dict[str, Any]:
    names = {modality: list(names) for modality, names in bands.items()}
    return class_at("rslearn.models.olmoearth_pretrain.norm.OlmoEarthNormalize", band_names=names)


def helios_normalize(**bands: Iterable[str]) -> dict[str, Any]:
    names = {modality: list(names) for modality, names in bands.items()}
    return class_at("rslp.helios.norm.HeliosNormalize", band_names=names, config_fname="/norm.json")


def flip(*selectors: str) -> dict[str, Any]:
    return class_at("rslearn.train.transforms.flip.Flip", image_selectors=list(selectors))


def model(
    inputs: dict[str, Any], task: dict[str, Any], groups: Iterable[str], **configs: dict[str, Any]
) -> dict[str, Any]:
    """model.yaml with splits by the tag `split`; `configs` adds to default_config and so on."""
    data = {"path": "${DATASET_PATH}", "inputs": inputs, "task": task, "batch_size": 8}
    data |= {"num_workers": "${NUM_WORKERS}", "default_config": {"groups": list(groups)}}
    for name, tag in (("train", "train"), ("val", "val"), ("test", "val")):
        data[f"{name}_config"] = {"tags": {"split": tag}}
    for name, more in configs.items():
        data[name] |= more
    return {"data": class_at("rslearn.train.data_module.RslearnDataModule", **data)}


# ------------------------------------------------------------------------------------- writing


@dataclass
class Writer:
    """Writes the windows of one dataset."""

    path: Path
    rng: np.random.Generator
    dataset: Any
    """rslearn's Dataset."""
    count: int = 0

    @classmethod
    def create(
        cls,
        path: Path,
        layers: dict[str, Any],
        model_yaml: dict[str, Any],
        run_yaml: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> "Writer":
        """Write the configuration and open the dataset."""
        from rslearn.config import DatasetConfig
        from rslearn.dataset import Dataset
        from upath import UPath

        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps({"layers": layers}, indent=2))
        (path / "model.yaml").write_text(yaml.safe_dump(model_yaml, sort_keys=False))
        if run_yaml:
            (path / "olmoearth_run.yaml").write_text(yaml.safe_dump(run_yaml, sort_keys=False))
        # rslearn refuses a layer's old `format`, and has no need of where data came from.
        readable = {
            name: {key: value for key, value in layer.items() if key != "data_source"}
            for name, layer in layers.items()
            if "format" not in layer
        }
        config = DatasetConfig.model_validate({"layers": readable})
        dataset = Dataset(UPath(path), dataset_config=config)
        return cls(path, np.random.default_rng(seed), dataset)

    def window(self, group: str, height: int, width: int, **options: Any) -> Any:
        """The next window: every third one is val, and none overlap."""
        x = 27900 + 37 * (self.count % 10)
        y = -71000 + 41 * (self.count // 10)
        split = "val" if self.count % 3 == 2 else "train"
        name = f"window_{self.count:04d}"
        self.count += 1
        bounds = (x, y, x + width, y + height)
        time_range = (START, START + timedelta(days=366))
        return add_window(
            self.dataset, group, name, bounds, time_range, {"split": split, **options}
        )

    def sentinel2(
        self,
        window: Any,
        layer: str,
        signal: Signal,
        times: list[Interval],
        *,
        sidecar: bool = True,
    ) -> None:
        """One band set of 12 bands, an item group per time."""
        for item_group, time in enumerate(times):
            pixels = self._reflectance(signal, S2_STORED)
            write_raster(
                window, layer, S2_STORED, pixels, item_group=item_group,
                times=[time] if sidecar else None,
            )  # fmt: skip
        complete(window, layer, len(times))

    def sentinel2_by_resolution(self, window: Any, level: float, times: list[Interval]) -> None:
        """Three band sets at 10, 20 and 40 m, an item group per time."""
        x0, y0, x1, y1 = window.bounds
        for item_group, time in enumerate(times):
            for zoom, bands in S2_BY_RESOLUTION.items():
                signal = np.full(((y1 - y0) >> -zoom, (x1 - x0) >> -zoom), level)
                pixels = self._reflectance(signal, bands)
                write_raster(
                    window, "sentinel2", bands, pixels, item_group=item_group, times=[time],
                    zoom_offset=zoom,
                )  # fmt: skip
        complete(window, "sentinel2", len(times))

    def landsat(self, window: Any, signal: Signal, times: list[Interval], *, sidecar: bool) -> None:
        """One band set of 11 bands, an item group per time."""
        for item_group, time in enumerate(times):
            pixels = self._reflectance(signal, LANDSAT_STORED) + np.uint16(7000)
            write_raster(
                window, "landsat", LANDSAT_STORED, pixels, item_group=item_group,
                times=[time] if sidecar else None,
            )  # fmt: skip
        complete(window, "landsat", len(times))

    def sentinel1(
        self, window: Any, layer: str, signal: Signal, times: list[Interval], *, one_file: bool
    ) -> None:
        """Linear power of vv and vh: an item group per time, or all times in one file."""
        shape = (len(times), *signal.shape)
        vv = -12 + 5 * signal + self.rng.normal(0, 1, shape)
        power = np.power(10, np.stack([vv, vv - 7]) / 10).astype(np.float32)  # (C, T, H, W)
        if one_file:
            write_raster(window, layer, S1, power, times=times)
            complete(window, layer)
            return
        for item_group, time in enumerate(times):
            write_raster(
                window, layer, S1, power[:, [item_group]], times=[time], item_group=item_group
            )
        complete(window, layer, len(times))

    def label(
        self, window: Any, label: np.ndarray, band: str = "label", nodata: float | None = None
    ) -> None:
        """A raster label (H, W)."""
        write_raster(window, "label_raster", (band,), label[None, None], nodata_value=nodata)
        complete(window, "label_raster")

    def features(self, window: Any, *properties: dict[str, Any]) -> None:
        """A vector label: one feature that fills the window per set of properties."""
        from rslearn.utils.feature import Feature
        from rslearn.utils.vector_format import GeojsonVectorFormat

        features = [Feature(window.get_geometry(), known) for known in properties]
        with window.data.open_layer_writer("label") as writer:
            writer.write_vector(GeojsonVectorFormat(), features)
        complete(window, "label")

    def regions(self, height: int, width: int, classes: int) -> np.ndarray:
        """Class ids (H, W) in a few vertical or horizontal strips, int."""
        edges = np.sort(self.rng.integers(1, width, 2))
        drawn = self.rng.integers(0, classes, 3)
        row = drawn[np.searchsorted(edges, np.arange(width), side="right")]
        field = np.repeat(row[None], height, axis=0)
        field[: int(self.rng.integers(height // 2))] = self.rng.integers(0, classes)
        return field

    def _reflectance(self, signal: Signal, bands: tuple[str, ...]) -> np.ndarray:
        """(C, 1, H, W): each band reacts to the signal in its own way."""
        kinds = np.arange(len(bands))[:, None, None]
        # Two directions, so that a linear model can tell classes in the middle from the ends.
        image = 1500 + 180 * kinds + 900 * np.cos(kinds) * signal
        image += 700 * np.sin(2 * kinds) * np.sin(np.pi * signal)
        image = image + self.rng.normal(0, 120, image.shape)
        return np.clip(np.rint(image), 1, 10000).astype(np.uint16)[:, None]


def monthly(count: int, start: datetime = START) -> list[Interval]:
    """Moments, about a month apart."""
    times = [start + timedelta(days=31 * k) for k in range(count)]
    return [(time, time) for time in times]


def periods(count: int, start: datetime) -> list[Interval]:
    """Periods of 15 days, one after the other."""
    return [
        (start + timedelta(days=15 * k), start + timedelta(days=15 * k + 15)) for k in range(count)
    ]
