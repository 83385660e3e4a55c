"""The team's own root in small: a stand-in for each registered eval, and what `adopt` says of it.

    python -m eval_ingest_tests.support.stand_ins /tmp/team

Entries are those of the package in .venv-peers, to the byte, so that `weka_path` speaks of another
mount; behind each lies a dataset of its task, modalities, timesteps and window size.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peer_pipe import PYTHON
from eval_ingest.adopting import adopt, adoptable
from eval_ingest.report.terminal import adopted_lines, table
from eval_ingest.settings import Settings
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.testing.datasets import quiet_rslearn
from eval_ingest_tests.support.writing import (
    LANDSAT,
    LANDSAT_STORED,
    S1,
    S2,
    S2_STORED,
    VECTOR_TARGET,
    Writer,
    band_set,
    class_at,
    image_input,
    model,
    monthly,
    raster_layer,
    raster_target,
)

COUNTS = {"train": 3, "val": 2, "test": 2}
_LAYERS = {
    "sentinel2_l2a": ("sentinel2", S2, band_set(S2_STORED, "uint16")),
    "sentinel1": ("sentinel1", S1, band_set(S1, "float32")),
    "landsat": ("landsat", LANDSAT, band_set(LANDSAT_STORED, "uint16")),
}


def write_root(root: Path) -> list[str]:
    """Write the root of all 29; returns their names."""
    (package,) = PYTHON.parents[1].glob("lib/python3*/site-packages/olmoearth_pretrain")
    root.mkdir(parents=True)
    shutil.copy(package / "evals" / "studio_ingest" / "registry.json", root)
    entries = json.loads((root / "registry.json").read_text())["datasets"]
    for name, entry in entries.items():
        inside = entry["weka_path"].partition(f"/{name}/")[2]
        with quiet_rslearn():
            write_stand_in(root / name / inside, entry)
    return list(entries)


def write_stand_in(path: Path, entry: dict[str, Any]) -> None:
    """Write a dataset as the entry describes it, with its splits in the windows' options."""
    kind, size, steps = entry["task_type"], min(entry["window_size"], 64), entry["num_timesteps"]
    modalities = list(dict.fromkeys(entry["modalities"]))
    layers = {_LAYERS[m][0]: raster_layer(_LAYERS[m][2]) for m in modalities}
    inputs = {m: image_input([_LAYERS[m][0]], _LAYERS[m][1]) for m in modalities}
    task, label = _task(kind, entry["num_classes"])
    per_pixel = kind in ("segmentation", "regression")
    layers["label_raster" if per_pixel else "label"] = label
    dtype = "FLOAT32" if kind == "regression" else "INT32"
    inputs["targets"] = raster_target(dtype) if per_pixel else VECTOR_TARGET
    writer = Writer.create(path, layers, model(inputs, task, ["default"]))
    number = 0
    for split, count in COUNTS.items():
        for _ in range(count):
            window = writer.window("default", size, size, eval_split=split)
            value = number % max(entry["num_classes"], 2)
            _write_pixels(writer, window, modalities, size, steps, value)
            if kind == "classification":
                writer.features(window, {"value": f"class {value}"})
            elif kind == "scalar_regression":
                writer.features(window, {"value": 10.5 * value})
            else:
                field = np.full(
                    (size, size), value, np.float32 if kind == "regression" else np.uint8
                )
                writer.label(window, field)
            number += 1


def _task(kind: str, classes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The task, and the layer that its label lies in."""
    tasks = "rslearn.train.tasks"
    if kind == "segmentation":
        task = class_at(f"{tasks}.segmentation.SegmentationTask", num_classes=classes)
        return task, raster_layer(band_set(["label"], "uint8"))
    if kind == "regression":
        task = class_at(f"{tasks}.per_pixel_regression.PerPixelRegressionTask", nodata_value=-1)
        return task, raster_layer(band_set(["label"], "float32"))
    if kind == "classification":
        names = [f"class {k}" for k in range(classes)]
        named = {"property_name": "value", "classes": names}
        return class_at(f"{tasks}.classification.ClassificationTask", **named), {"type": "vector"}
    task = class_at(f"{tasks}.regression.RegressionTask", property_name="value")
    return task, {"type": "vector"}


def _write_pixels(
    writer: Writer, window: Any, modalities: list[str], size: int, steps: int, value: int
) -> None:
    signal = np.full((size, size), value / 10)
    for modality in modalities:
        layer = _LAYERS[modality][0]
        if modality == "sentinel1":
            writer.sentinel1(window, layer, signal, monthly(steps), one_file=False)
        elif modality == "landsat":
            writer.landsat(window, signal, monthly(steps), sidecar=True)
        else:
            writer.sentinel2(window, layer, signal, monthly(steps))


def main(folder: str) -> None:
    """Write the root, adopt everything, and print the table."""
    root = Path(folder)
    write_root(root)
    settings = Settings(eval_root=folder, workers=2)
    rows = [["name", "task", "samples", "verdict", "found otherwise"]]
    for name in adoptable(EvalRoot(root)):
        adopted = adopt(settings, name)
        counts = "/".join(str(found.count) for found in adopted.metadata.splits.values())
        told = ", ".join(difference.field for difference in adopted.differences)
        kind = str(adopted.metadata.config.task.kind)
        verdict = adopted.metadata.quality["verdict"].partition(" ")[0]
        rows.append([name, kind, counts, verdict, told])
        print("\n".join(adopted_lines(adopted)), file=sys.stderr)
    print("\n".join(table(rows, width=10_000)))


if __name__ == "__main__":
    main(*sys.argv[1:])
