"""A root as the existing tool leaves it: five datasets, one per task kind and one that is deeper.

Sources are written by rslearn, and have no random transform: what that tool loads can be compared.
"""

from pathlib import Path
from typing import Any

import numpy as np

from eval_ingest.testing.datasets import quiet_rslearn
from eval_ingest_tests.support import writing

SIZE = 16
KINDS = {
    "crops": "segmentation",
    "types": "classification",
    "height": "regression",
    "moisture": "scalar_regression",
    "fires": "segmentation",
}


def write_sources(folder: Path, windows: int = 12) -> dict[str, Path]:
    """The sources of all five, by name."""
    with quiet_rslearn():
        return {name: _WRITERS[name](folder, windows) for name in KINDS}


def _fetched(steps: int) -> dict[str, Any]:
    """A data source: the existing tool asks those alone for modalities and timesteps."""
    return {
        "data_source": {
            "class_path": "rslearn.data_sources.planetary_computer.Sentinel2",
            "query_config": {"max_matches": steps},
        }
    }


def _sentinel2(steps: int) -> dict[str, Any]:
    return writing.raster_layer(writing.band_set(writing.S2_STORED, "uint16"), **_fetched(steps))


def _task(name: str, **arguments: Any) -> dict[str, Any]:
    return writing.class_at(f"rslearn.train.tasks.{name}", **arguments)


def _crops(folder: Path, windows: int) -> Path:
    """Like tolbi: one modality, 0 is no label, and no class either."""
    layers = {
        "sentinel2": _sentinel2(3),
        "label_raster": writing.raster_layer(writing.band_set(["label"], "uint8")),
    }
    inputs = {
        "sentinel2_l2a": writing.image_input(["sentinel2"], writing.S2),
        "targets": writing.raster_target(),
    }
    task = _task("segmentation.SegmentationTask", num_classes=5, zero_is_invalid=True)
    writer = writing.Writer.create(
        folder / "crops", layers, writing.model(inputs, task, ["a", "b"])
    )
    for k in range(windows):
        window = writer.window("ab"[k % 2], SIZE, SIZE)
        field = writer.regions(SIZE, SIZE, 5)
        writer.sentinel2(window, "sentinel2", field / 4, writing.monthly(3))
        writer.label(window, field.astype(np.uint8))
    return writer.path


def _types(folder: Path, windows: int) -> Path:
    """A class per window from two modalities."""
    layers = {
        "sentinel2": _sentinel2(2),
        "sentinel1": writing.raster_layer(writing.band_set(writing.S1, "float32"), **_fetched(2)),
        "label": {"type": "vector"},
    }
    inputs = {
        "sentinel2_l2a": writing.image_input(["sentinel2"], writing.S2),
        "sentinel1": writing.image_input(["sentinel1"], writing.S1),
        "label": writing.VECTOR_TARGET,
    }
    names = ["Coffee", "Trees", "Maize"]
    task = _task("classification.ClassificationTask", property_name="kind", classes=names)
    tasks = writing.class_at(
        "rslearn.train.tasks.multi_task.MultiTask",
        tasks={"type": task}, input_mapping={"type": {"label": "targets"}},
    )  # fmt: skip
    writer = writing.Writer.create(folder / "types", layers, writing.model(inputs, tasks, ["g"]))
    for k in range(windows):
        window = writer.window("g", SIZE, SIZE)
        signal = np.full((SIZE, SIZE), (k % 3) / 2)
        writer.sentinel2(window, "sentinel2", signal, writing.monthly(2))
        writer.sentinel1(window, "sentinel1", signal, writing.monthly(2), one_file=False)
        writer.features(window, {"kind": names[k % 3]})
    return writer.path


def _height(folder: Path, windows: int) -> Path:
    """A number per pixel from Landsat, with holes."""
    layers = {
        "landsat": writing.raster_layer(
            writing.band_set(writing.LANDSAT_STORED, "uint16"), **_fetched(2)
        ),
        "label_raster": writing.raster_layer(
            writing.band_set(["height"], "float32", nodata_value=-9999)
        ),
    }
    inputs = {
        "landsat": writing.image_input(["landsat"], writing.LANDSAT),
        "targets": writing.raster_target("FLOAT32", "height"),
    }
    task = _task("per_pixel_regression.PerPixelRegressionTask", nodata_value=-9999)
    writer = writing.Writer.create(folder / "height", layers, writing.model(inputs, task, ["g"]))
    for _ in range(windows):
        window = writer.window("g", SIZE, SIZE)
        signal = writer.rng.random((SIZE, SIZE))
        writer.landsat(window, signal, writing.monthly(2), sidecar=False)
        label = (20 + 200 * signal).astype(np.float32)
        label[writer.rng.random(label.shape) < 0.2] = -9999
        writer.label(window, label, "height", nodata=-9999)
    return writer.path


def _moisture(folder: Path, windows: int) -> Path:
    """A number per window."""
    layers = {
        "sentinel2": _sentinel2(2),
        "label": {"type": "vector"},
    }
    inputs = {
        "sentinel2_l2a": writing.image_input(["sentinel2"], writing.S2),
        "targets": writing.VECTOR_TARGET,
    }
    task = _task("regression.RegressionTask", property_name="lfmc")
    writer = writing.Writer.create(folder / "moisture", layers, writing.model(inputs, task, ["g"]))
    for _ in range(windows):
        window = writer.window("g", SIZE, SIZE)
        level = float(writer.rng.random())
        writer.sentinel2(window, "sentinel2", np.full((SIZE, SIZE), level), writing.monthly(2))
        writer.features(window, {"lfmc": round(30 + 200 * level, 2)})
    return writer.path


def _fires(folder: Path, windows: int) -> Path:
    """Pre and post layers of one modality, which is thereby twice as long as the tool counts."""
    layers = {
        "sentinel2_pre": _sentinel2(2),
        "sentinel2_post": _sentinel2(2),
        "label_raster": writing.raster_layer(writing.band_set(["label"], "uint8")),
    }
    inputs = {
        "sentinel2_l2a": writing.image_input(["sentinel2_pre", "sentinel2_post"], writing.S2),
        "targets": writing.raster_target(),
    }
    task = _task("segmentation.SegmentationTask", num_classes=3, nodata_value=2)
    writer = writing.Writer.create(folder / "fires", layers, writing.model(inputs, task, ["g"]))
    for _ in range(windows):
        window = writer.window("g", SIZE, SIZE)
        field = writer.regions(SIZE, SIZE, 3)
        for layer in ("sentinel2_pre", "sentinel2_post"):
            writer.sentinel2(window, layer, field / 2, writing.monthly(2))
        writer.label(window, field.astype(np.uint8))
    return writer.path


_WRITERS = {
    "crops": _crops,
    "types": _types,
    "height": _height,
    "moisture": _moisture,
    "fires": _fires,
}
