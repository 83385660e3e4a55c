"""Real dataset configurations: windows are generated to match, ingested, and compared with rslearn.

The configurations lie beside the repository; without them these tests are skipped.
"""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval_ingest import EvalDataset, pipeline
from eval_ingest.core.copy_config import rslearn_config
from eval_ingest.core.resolved import Layer, ResolvedConfig
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.core.task import TaskKind
from eval_ingest.inference.resolve import ConfigFiles, resolve
from eval_ingest.testing.datasets import add_window, complete, write_raster
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support.oracle import rslearn_samples
from eval_ingest_tests.test_loading_parity import compare

CONFIGS = Path(__file__).parents[2] / "shared" / "configs"
START = datetime(2024, 1, 15, tzinfo=UTC)

FOLDERS = {
    # item groups per layer where all are read, or (fewest, most)
    "tolbi": (12, 12),
    "nandi": (3, 3),
    "worldcover": (2, 2),
    "lfmc": (12, 12),
    "landslide": (1, 4),
}

pytestmark = pytest.mark.skipif(not CONFIGS.is_dir(), reason="needs ../shared/configs")


def generate(folder: Path, root: Path, item_groups: tuple[int, int], windows: int = 16) -> Path:
    """A dataset of that configuration with random pixels and labels, through rslearn's writers."""
    from rslearn.config import DatasetConfig
    from rslearn.dataset import Dataset
    from upath import UPath

    path = root / folder.name
    shutil.copytree(folder, path)
    texts = {name: folder / name for name in ("model.yaml", "olmoearth_run.yaml")}
    files = ConfigFiles(
        (folder / "config.json").read_text(),
        texts["model.yaml"].read_text(),
        texts["olmoearth_run.yaml"].read_text() if texts["olmoearth_run.yaml"].exists() else None,
    )
    config = resolve(files, DatasetSpec(name=folder.name, source=str(path)))
    layers = rslearn_config(config)
    dataset = Dataset(UPath(path), dataset_config=DatasetConfig.model_validate(layers))
    rng = np.random.default_rng(0)
    group = config.selectors["train"].groups[0] if config.selectors["train"].groups else "default"
    for k in range(windows):
        size = 32 if folder.name != "landslide" else 32 + 8 * (k % 3)
        x, y = 50000 + 64 * k, -90000
        split = "val" if k % 4 == 3 else "train"
        window = add_window(
            dataset, group, f"window_{k}", (x, y, x + size, y + size),
            (START, START + timedelta(days=365)), {"split": split},
        )  # fmt: skip
        for layer in config.layers:
            if layer.name == config.label.part.reads[0].layer:
                _write_label(window, layer, config, rng)
                continue
            count = int(rng.integers(item_groups[0], item_groups[1] + 1))
            for item_group in range(count):
                time = START + timedelta(days=30 * item_group)
                for bands in layer.band_sets:
                    side = size >> max(-bands.zoom_offset, 0)
                    shape = (len(bands.bands), 1, side, side)
                    write_raster(
                        window, layer.name, bands.bands, _pixels(rng, shape, bands.dtype),
                        times=[(time, time + timedelta(days=30))], item_group=item_group,
                        zoom_offset=bands.zoom_offset,
                    )  # fmt: skip
            complete(window, layer.name, count)
    return path


def _pixels(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if dtype == "float32":
        return rng.uniform(0.001, 0.3, shape).astype(np.float32)
    return rng.integers(1, 9000, shape).astype(dtype)


def _write_label(
    window: Any, layer: Layer, config: ResolvedConfig, rng: np.random.Generator
) -> None:
    task = config.task
    height = window.bounds[3] - window.bounds[1]
    if layer.vector:
        from rslearn.utils.feature import Feature
        from rslearn.utils.vector_format import GeojsonVectorFormat

        value: Any = float(rng.uniform(30, 200))
        if task.kind is TaskKind.CLASSIFICATION:
            value = task.classes[int(rng.integers(len(task.classes)))].name
        feature = Feature(window.get_geometry(), {task.property_name: value})
        with window.data.open_layer_writer(layer.name) as writer:
            writer.write_vector(GeojsonVectorFormat(), [feature])
    else:
        stored = range(task.num_classes + (task.nodata_value == task.num_classes))
        if task.class_id_mapping:
            stored = list(task.class_id_mapping)
        label = rng.choice(np.array(list(stored)), (1, 1, height, height))
        (bands,) = layer.band_sets
        write_raster(window, layer.name, bands.bands, label.astype(bands.dtype))
    complete(window, layer.name)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_real_configuration_is_ingested_and_equals_rslearn(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = generate(CONFIGS / name, tmp_path / "source", FOLDERS[name])
    root = tmp_path / "root"
    pipeline.ingest(make_job(source, root, name))
    monkeypatch.setenv("DATASET_PATH", str(source))
    expected = {(s.group, s.name): s for s in rslearn_samples(root / name, source / "model.yaml")}
    compared = 0
    for split in ("train", "val", "test"):
        dataset = EvalDataset(name, split, root=root, normalize=None, crop=None)
        for i in range(len(dataset)):
            group, window = dataset.window(i).split("/")
            compare(dataset, dataset[i], expected[group, window])
            compared += 1
    assert compared == len(expected) == 16


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("tolbi", {"task_type": "segmentation", "num_classes": 7, "num_timesteps": 12}),
        ("nandi", {"task_type": "classification", "num_classes": 8, "window_size": 8}),
        ("worldcover", {"task_type": "segmentation", "num_classes": 12, "window_size": 16}),
        ("lfmc", {"task_type": "scalar_regression", "num_classes": 1, "num_timesteps": 12}),
        ("landslide", {"task_type": "segmentation", "num_classes": 2, "timeseries": True}),
    ],
)
def test_the_registry_says_what_the_configuration_means(
    name: str, facts: dict[str, Any], tmp_path: Path
) -> None:
    source = generate(CONFIGS / name, tmp_path / "source", FOLDERS[name], windows=8)
    pipeline.ingest(make_job(source, tmp_path, name))
    entry = json.loads((tmp_path / "registry.json").read_text())["datasets"][name]
    assert {key: entry[key] for key in facts} == facts
    assert len(entry["modalities"]) == len(set(entry["modalities"]))
    assert not any(known.isdigit() for known in entry["classes"])
