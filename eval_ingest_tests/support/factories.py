"""Small real rslearn datasets, written by rslearn itself: one function per case, and CASES.

Each is made in the manner of a dataset that is in use: its layers, band sets, inputs, task and
transforms. Pixels carry their label's signal. Every window is whole; the functions at the end
break one.
"""

import json
import os
from collections.abc import Callable, Iterable
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
    quiet_rslearn,
    save_items,
    write_raster,
)
from eval_ingest.testing.demo import write_tolbi_like

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


# --------------------------------------------------------------------------------------- cases


def segmentation(root: Path, *, windows: int = 24, size: int = 24, timesteps: int = 3) -> Path:
    """Like tolbi: one modality, MultiTask, zero is invalid, crop of 16."""
    return write_tolbi_like(
        root, "segmentation", windows=windows, size=size, timesteps=timesteps, seed=1, broken=False
    )


def vector_classification(root: Path, *, windows: int = 24, timesteps: int = 2) -> Path:
    """Like nandi: a class per window, two modalities, three resolutions, centred Pad, two groups.

    The Pad of 8 cuts the windows of one group (16 x 16) and leaves those of the other (8 x 8).
    No window needs filling up: rslearn 0.1.19 makes 4 x 12 pixels of 4 x 4 then, because its
    centred Pad fills the width twice. The windows don't lie on the coarse bands' grid.
    """
    classes = ["Coffee", "Trees", "Grassland", "Maize"]
    sizes = {"groundtruth_polygon": 16, "worldcover": 8}
    layers = {
        "sentinel2": s2_by_resolution(
            data_source={"name": "rslp.satlas.data_sources.MonthlyAzureSentinel2", "ingest": False}
        ),
        "sentinel1_ascending": raster_layer(band_set(S1, "float32")),
        "label": {"type": "vector"},
        "output": {"type": "vector", "format": {"name": "geojson"}},
    }
    inputs = {
        "sentinel2_l2a": image_input(["sentinel2"], S2),
        "sentinel1": image_input(["sentinel1_ascending"], S1),
        "label": VECTOR_TARGET,
    }
    task = class_at(
        "rslearn.train.tasks.classification.ClassificationTask",
        property_name="category",
        classes=classes,
    )
    pad = class_at(
        "rslearn.train.transforms.pad.Pad",
        size=8,
        mode="center",
        image_selectors=["sentinel2_l2a", "sentinel1"],
    )
    transforms = [helios_normalize(sentinel2_l2a=S2, sentinel1=S1), pad]
    writer = Writer.create(
        root / "vector_classification",
        layers,
        model(
            inputs,
            multi_task("crop_type", task, "label"),
            sizes,
            default_config={"transforms": transforms},
        ),
    )
    with quiet_rslearn():
        for k in range(windows):
            group = list(sizes)[k % 2]
            window = writer.window(group, sizes[group], sizes[group])
            kind = int(writer.rng.integers(len(classes))) if k >= 4 else k
            level = kind / (len(classes) - 1)
            signal = np.full((sizes[group],) * 2, level)
            writer.sentinel2_by_resolution(window, level, monthly(timesteps))
            times = monthly(timesteps, START + timedelta(hours=7))
            writer.sentinel1(window, "sentinel1_ascending", signal, times, one_file=False)
            writer.features(window, {"plot": k}, {"category": classes[kind]})
            save_items(window, {"sentinel2": monthly(timesteps), "sentinel1_ascending": times})
    return writer.path


def per_pixel_regression(
    root: Path, *, windows: int = 16, size: int = 24, timesteps: int = 2
) -> Path:
    """A number per pixel from Landsat. Only items.json knows the times: there are no sidecars."""
    layers = {
        "landsat": raster_layer(band_set(LANDSAT_STORED, "uint16")),
        "label_raster": raster_layer(band_set(["height"], "float32", nodata_value=-9999)),
    }
    inputs = {
        "landsat": image_input(["landsat"], LANDSAT),
        "targets": raster_target("FLOAT32", "height"),
    }
    task = class_at(
        "rslearn.train.tasks.per_pixel_regression.PerPixelRegressionTask",
        nodata_value=-9999,
        scale_factor=0.1,
        metrics=["l1"],
    )
    writer = Writer.create(
        root / "per_pixel_regression",
        layers,
        model(
            inputs,
            task,
            ["default"],
            default_config={"transforms": [normalize(landsat=LANDSAT)], "crop_size": 16},
            train_config={"transforms": [flip("landsat", "target/values", "target/valid")]},
        ),
    )
    with quiet_rslearn():
        for _ in range(windows):
            window = writer.window("default", size, size)
            signal = writer.regions(size, size, 5) / 4 + writer.rng.normal(0, 0.02, (size, size))
            times = monthly(timesteps)
            writer.landsat(window, signal, times, sidecar=False)
            save_items(window, {"landsat": times})
            label = (20 + 200 * signal).astype(np.float32)
            label[writer.rng.random(label.shape) < 0.2] = -9999
            writer.label(window, label, "height", nodata=-9999)
    return writer.path


def scalar_regression(root: Path, *, windows: int = 16, size: int = 16, timesteps: int = 3) -> Path:
    """Like lfmc: a number per window; one input per timestep, joined by Concatenate."""
    layers = {
        "sentinel2": s2_by_resolution(),
        "label": {"type": "vector"},
        "output": {"type": "vector"},
        "srtm": raster_layer(
            band_set(["srtm"], "int32"), data_source={"name": "rslearn.data_sources.old.SRTM"}
        ),
    }
    inputs: dict[str, Any] = {
        f"sentinel2_{k}": {
            "data_type": "raster",
            "layers": [f"sentinel2.{k}" if k else "sentinel2"],
            "bands": list(S2),
            "dtype": "FLOAT32",
            "passthrough": True,
        }
        for k in range(timesteps)
    }
    join = class_at(
        "rslearn.train.transforms.concatenate.Concatenate",
        selections={key: [] for key in inputs},
        output_selector="sentinel2_l2a",
    )
    task = class_at(
        "rslearn.train.tasks.regression.RegressionTask",
        property_name="lfmc_value",
        allow_invalid=True,
        metric_mode="l1",
    )
    writer = Writer.create(
        root / "scalar_regression",
        layers,
        model(
            inputs | {"label": VECTOR_TARGET},
            multi_task("lfmc_estimation", task, "label"),
            ["global_lfmc"],
            default_config={"transforms": [join, helios_normalize(sentinel2_l2a=S2)]},
        ),
    )
    with quiet_rslearn():
        for _ in range(windows):
            window = writer.window("global_lfmc", size, size)
            level = float(writer.rng.random())
            times = monthly(timesteps)
            writer.sentinel2_by_resolution(window, level, times)
            save_items(window, {"sentinel2": times})
            writer.features(window, {"lfmc_value": round(30 + 200 * level, 2)})
    return writer.path


def ragged_segmentation(root: Path, *, windows: int = 16) -> Path:
    """Like landslide: pre and post layers of 1 to 4 item groups, windows of differing size."""
    s2 = raster_layer(band_set(S2_STORED, "uint16"))
    label = band_set(["label"], "uint8")
    names = {"class_names": ["no_landslide", "landslide", "no_data"]}
    layers = {
        "pre_sentinel2": s2,
        "post_sentinel2": s2,
        "label_raster": raster_layer(label, **names),
        "label": {"type": "vector", "class_property_name": "label", **names},
        "prediction": raster_layer(label),
        "srtm": raster_layer(band_set(["dem"], "int16")),
    }
    inputs = {
        "sentinel2_l2a": image_input(["pre_sentinel2", "post_sentinel2"], S2),
        "targets": raster_target(),
    }
    task = class_at(
        "rslearn.train.tasks.segmentation.SegmentationTask", num_classes=2, nodata_value=2
    )
    field = {
        "field_type": "segmentation",
        "nodata_value": 2,
        "allowed_values": [
            {"value": 0, "label": "no_landslide", "color": [90, 140, 60, 255]},
            {"value": 1, "label": "landslide", "color": [200, 80, 30, 255]},
        ],
    }
    run = {
        "config_version": "0.7.1",
        "data": {"output": {"data_type": "raster", "fields": {"segment": field}}},
        "input_preprocessing": {"default": {"input_size": 16, "input_mode": "all_tiles"}},
        "labeled_data_prep": {
            "data_splitter": {
                "name": "spatial",
                "grid_size": 512,
                "train_prop": 0.7,
                "val_prop": 0.2,
                "test_prop": 0.1,
            }
        },
    }
    groups = ["sen12", "icimod"]
    transforms = [normalize(sentinel2_l2a=S2)]
    writer = Writer.create(
        root / "ragged_segmentation",
        layers,
        model(inputs, task, groups, default_config={"transforms": transforms}),
        run,
    )
    with quiet_rslearn():
        for k in range(windows):
            height, width = (int(writer.rng.integers(16, 33)) for _ in range(2))
            window = writer.window(groups[k % 2], height, width)
            classes = writer.regions(height, width, 2)
            pre = periods(int(writer.rng.integers(1, 5)), START)
            post = periods(1 + k % 4, START + timedelta(days=365))
            writer.sentinel2(window, "pre_sentinel2", np.zeros((height, width)), pre)
            writer.sentinel2(window, "post_sentinel2", classes.astype(float), post)
            if k == 3:  # a gap: item groups 0, 2 and 3 are completed
                _layer_path(writer.path, groups[1], window.name, "post_sentinel2.1").joinpath(
                    "completed"
                ).unlink()
            label = classes.astype(np.uint8)
            label[writer.rng.random(label.shape) < 0.1] = 2
            writer.label(window, label)
            save_items(window, {"pre_sentinel2": pre, "post_sentinel2": post})
    return writer.path


def class_mapping(root: Path, *, windows: int = 16, size: int = 16, timesteps: int = 3) -> Path:
    """Like worldcover: stored class ids are mapped, and one of them to the nodata class."""
    names = ["bare", "crops", "shrub", "tree", "water"]
    layers = {
        "sentinel2": raster_layer(band_set(S2_STORED, "uint16")),
        "sentinel1": raster_layer(band_set(S1, "float32")),
        "label_raster": raster_layer(band_set(["label"], "int32"), class_names=["no_data", *names]),
        "output": raster_layer(band_set(["output"], "float32")),
    }
    inputs = {"sentinel2_l2a": image_input(["sentinel2"], S2), "targets": raster_target()}
    task = class_at(
        "rslearn.train.tasks.segmentation.SegmentationTask",
        num_classes=len(names),
        class_id_mapping={**{k + 1: k for k in range(len(names))}, 0: len(names)},
        nodata_value=len(names),
        class_names=names,
    )
    transforms = [normalize(sentinel2_l2a=S2)]
    flipped = flip("sentinel2_l2a", "target/classes", "target/valid")
    writer = Writer.create(
        root / "class_mapping",
        layers,
        model(
            inputs,
            task,
            ["20260109"],
            default_config={"transforms": transforms, "patch_size": 8},
            train_config={"transforms": [flipped, *transforms]},
        ),
    )
    with quiet_rslearn():
        for _ in range(windows):
            window = writer.window("20260109", size, size)
            classes = writer.regions(size, size, len(names))
            times = monthly(timesteps)
            writer.sentinel2(window, "sentinel2", classes / (len(names) - 1), times)
            label = (classes + 1).astype(np.int32)
            label[writer.rng.random(label.shape) < 0.15] = 0
            writer.label(window, label)
            save_items(window, {"sentinel2": times})
    return writer.path


def three_modalities(root: Path, *, windows: int = 18, size: int = 16, even: bool = False) -> Path:
    """Three modalities with timesteps of their own; Landsat is optional and at times missing.

    Sentinel-1 has all timesteps in one file. The label holds class ids. With `even`, every window
    has three timesteps of each.
    """
    classes = ["forest", "pasture", "urban"]
    layers = {
        "sentinel2": raster_layer(band_set(S2_STORED, "uint16")),
        "sentinel1": raster_layer(
            band_set(S1, "float32"), compositing_method="SPATIAL_MOSAIC_TEMPORAL_STACK"
        ),
        "landsat": raster_layer(band_set(LANDSAT_STORED, "uint16")),
        "label": {"type": "vector"},
    }
    inputs = {
        "sentinel2_l2a": class_at(
            "rslearn.train.dataset.DataInput", **image_input(["sentinel2"], S2)
        ),
        "sentinel1": image_input(["sentinel1"], S1),
        "landsat": image_input(["landsat"], LANDSAT, required=False),
        "targets": VECTOR_TARGET,
    }
    task = class_at(
        "rslearn.train.tasks.classification.ClassificationTask",
        property_name="class_id",
        classes=classes,
        read_class_id=True,
    )
    decibels = class_at(
        "rslearn.train.transforms.sentinel1.Sentinel1ToDecibels", selectors=["sentinel1"]
    )
    norm = normalize(sentinel2_l2a=S2, sentinel1=S1, landsat=LANDSAT)
    norm["init_args"]["skip_missing"] = True
    writer = Writer.create(
        root / "three_modalities",
        layers,
        model(inputs, task, ["plots"], default_config={"transforms": [decibels, norm]}),
    )
    with quiet_rslearn():
        for k in range(windows):
            window = writer.window("plots", size, size)
            kind = k % len(classes) if k < 6 else int(writer.rng.integers(len(classes)))
            signal = np.full((size, size), kind / (len(classes) - 1))
            others = 3 if even else 2
            times = {
                "sentinel2": monthly(3), "sentinel1": monthly(others), "landsat": monthly(others)
            }  # fmt: skip
            writer.sentinel2(window, "sentinel2", signal, times["sentinel2"])
            writer.sentinel1(window, "sentinel1", signal, times["sentinel1"], one_file=True)
            if even or k % 4 != 1:
                writer.landsat(window, signal, times["landsat"], sidecar=True)
            writer.features(window, {"class_id": kind})
            save_items(window, times)
    return writer.path


CASES: dict[str, Callable[[Path], Path]] = {
    case.__name__: case
    for case in (
        segmentation,
        vector_classification,
        per_pixel_regression,
        scalar_regression,
        ragged_segmentation,
        class_mapping,
        three_modalities,
    )
}
"""Each writes `<root>/<its name>` and returns that path."""


# ----------------------------------------------------------------------------- breaking windows


def windows_of(dataset: Path) -> list[tuple[str, str]]:
    """(group, name) of every window folder, sorted."""
    return sorted((path.parent.name, path.name) for path in dataset.glob("windows/*/*"))


def truncate_raster(dataset: Path, group: str, window: str, layer_dir: str) -> Path:
    """Cut off the end of a layer's GeoTIFF, as an interrupted copy does; returns its path."""
    raster = next(_layer_path(dataset, group, window, layer_dir).glob("*/geotiff.tif"))
    os.truncate(raster, raster.stat().st_size // 2)
    return raster


def remove_metadata(dataset: Path, group: str, window: str) -> None:
    """Remove a window's metadata.json."""
    (dataset / "windows" / group / window / "metadata.json").unlink()


def drop_completed(dataset: Path, group: str, window: str, layer_dir: str) -> None:
    """Remove the marker that a layer's data is whole."""
    (_layer_path(dataset, group, window, layer_dir) / "completed").unlink()


def set_label(
    dataset: Path, group: str, window: str, value: object, layer_dir: str = "label_raster"
) -> None:
    """Give all pixels of a raster label this value, or all features of a vector label.

    For a vector label `value` is the features' properties, as a dict.
    """
    folder = _layer_path(dataset, group, window, layer_dir)
    if isinstance(value, dict):
        path = folder / "data.geojson"
        content = json.loads(path.read_text())
        for feature in content["features"]:
            feature["properties"] = value
        path.write_text(json.dumps(content))
        return
    import rasterio

    with rasterio.open(next(folder.glob("*/geotiff.tif")), "r+") as raster:
        raster.write(np.full((raster.count, *raster.shape), value, raster.dtypes[0]))


def _layer_path(dataset: Path, group: str, window: str, layer_dir: str) -> Path:
    return dataset / "windows" / group / window / "layers" / layer_dir
