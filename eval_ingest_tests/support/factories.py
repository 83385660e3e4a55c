"""Small real rslearn datasets, written by rslearn itself: one function per case, and CASES.

Each is made in the manner of a dataset that is in use: its layers, band sets, inputs, task and
transforms. Pixels carry their label's signal. Every window is whole; the functions at the end
break one.
"""

import json
import os
import tarfile
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from eval_ingest.testing.datasets import quiet_rslearn, save_items
from eval_ingest.testing.demo import write_tolbi_like
from eval_ingest_tests.support.writing import (
    LANDSAT,
    LANDSAT_STORED,
    S1,
    S2,
    S2_STORED,
    START,
    VECTOR_TARGET,
    Writer,
    band_set,
    class_at,
    flip,
    helios_normalize,
    image_input,
    model,
    monthly,
    multi_task,
    normalize,
    periods,
    raster_layer,
    raster_target,
    s2_by_resolution,
)

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


def two_tasks(root: Path, *, windows: int = 12) -> Path:
    """The same labels for a task, one that sorts its classes otherwise, and one that merges some.

    The task that merges is a class of rslearn_projects: rslearn's own can't.
    """
    source = vector_classification(root, windows=windows, timesteps=1)
    for path in source.rglob("data.geojson"):
        path.write_text(path.read_text().replace("Coffee", "coca").replace("Maize", "flood"))
    content = yaml.safe_load((source / "model.yaml").read_text())
    declared = content["data"]["init_args"]["task"]["init_args"]
    ((name, plain),) = declared["tasks"].items()
    merged = "rslp.forest_loss_driver.train.ForestLossTask"
    declared["tasks"] = {
        new: {"class_path": path, "init_args": {**plain["init_args"], "classes": classes}}
        for new, path, classes in (
            ("plain", plain["class_path"], ["coca", "flood", "Trees", "Grassland"]),
            ("sorted", plain["class_path"], ["Grassland", "Trees", "coca", "flood"]),
            ("merged", merged, ["agriculture", "river", "Trees", "Grassland"]),
        )
    }
    declared["input_mapping"] = dict.fromkeys(declared["tasks"], declared["input_mapping"][name])
    (source / "model.yaml").write_text(yaml.safe_dump(content))
    return source


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


def first_window(source: Path) -> Path:
    """The folder of the first window by name."""
    return min(path.parent for path in source.glob("windows/*/*/metadata.json"))


def raster_of(window: Path) -> Path:
    """Its raster of Sentinel-2."""
    return next((window / "layers" / "sentinel2").rglob("geotiff.tif"))


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


def members(folder: Path) -> list[str]:
    """The files of a dataset, configuration first, then window by window."""
    found = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
    return sorted(found, key=lambda path: (path.startswith("windows"), path))


def pack(folder: Path, path: Path, names: Sequence[str] = ()) -> Path:
    """An archive of some files of a dataset; of all, if none are named."""
    with tarfile.open(path, "w:gz") as packed:
        for name in names or members(folder):
            packed.add(folder / name, name)
    return path
