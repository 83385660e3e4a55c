"""What goes wrong in hand-made ingests, one test each: none of it may come back.

Numbered as known faults; those with a longer test elsewhere are named there.
 1 splits that depend on listing order     test_core_splits: the_order_of_listing_does_not_matter
13 a registry that loses entries           test_pipeline: many_datasets_in_one_root_lose_no_entry
15 edited windows that go unnoticed        test_pipeline: an_edited_window_is_noticed
16 units that are not what they should be  test_core_quality
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eval_ingest import EvalDataset, pipeline
from eval_ingest.core.norm import BandStats, affine, combine, measure
from eval_ingest.errors import SourceError
from eval_ingest.store.layout import EvalRoot
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.test_pipeline import windows_of

Copied = Callable[[str], Path]
Ingested = Callable[[str], Path]


def test_02_a_source_that_fails_while_copying_publishes_nothing(
    copied: Copied, tmp_path: Path
) -> None:
    source, root = copied("segmentation"), tmp_path / "root"
    job = make_job(source, root)
    values: dict[str, Any] = {}
    for stage in pipeline.STAGES[:3]:
        values[stage] = pipeline.run_stage(job, stage, values).value
    next(windows_of(source)[2].rglob("geotiff.tif")).unlink()
    with pytest.raises(SourceError, match="run"):
        pipeline.run_stage(job, "weka_copy", values)
    assert not (root / "registry.json").exists()
    assert not (root / "crops" / "weka_copy.json").exists()


def test_03_an_existing_destination_is_not_taken_for_a_finished_copy(
    copied: Copied, tmp_path: Path
) -> None:
    source, root = copied("segmentation"), tmp_path / "root"
    window = windows_of(source)[0]
    shutil.copytree(window, root / "crops" / window.relative_to(source))
    next((root / "crops").rglob("geotiff.tif")).unlink()
    pipeline.ingest(make_job(source, root))
    copy = root / "crops" / window.relative_to(source)
    names = {path.relative_to(window) for path in window.rglob("*") if path.is_file()}
    assert {path.relative_to(copy) for path in copy.rglob("*") if path.is_file()} == names


def test_04_a_band_without_variance_is_finite_after_normalisation() -> None:
    pixels = np.full((4, 4, 1, 1), 7, np.uint16)
    stats = combine(measure(pixels)[None])
    assert stats == [BandStats(7.0, 0.0, 7.0, 7.0)]
    scale, offset = affine("norm_no_clip_2_std", stats)
    assert np.isfinite([scale, offset]).all()


def test_05_no_modality_is_published_twice(ingested: Ingested) -> None:
    for case in ("three_modalities", "scalar_regression", "ragged_segmentation"):
        registry = json.loads((ingested(case) / "registry.json").read_text())
        modalities = registry["datasets"][case]["modalities"]
        assert len(modalities) == len(set(modalities))


def test_06_statistics_count_every_pixel_of_every_train_window(ingested: Ingested) -> None:
    root = ingested("per_pixel_regression")
    index = pipeline.read_stage(EvalRoot(root).dataset("per_pixel_regression"), "window_index")
    train = EvalDataset("per_pixel_regression", "train", root=root, normalize=None, crop=None)
    name = train.metadata.config.modalities[0].name
    rows = [index.keys.index(train.window(i)) for i in range(len(train))]
    counted = index.moments(name)[rows, 0].sum()
    assert counted == sum(sample[name].numel() for sample in train)


def test_07_windows_with_unreadable_metadata_do_not_vanish(copied: Copied, tmp_path: Path) -> None:
    source = copied("segmentation")
    (windows_of(source)[0] / "metadata.json").write_text("{")
    total = len(windows_of(source))
    pipeline.ingest(make_job(source, tmp_path / "root"))
    index = pipeline.read_stage(EvalRoot(tmp_path / "root").dataset("crops"), "window_index")
    assert (len(index), index.summary.n_invalid) == (total, 1)


def test_08_classes_have_names_and_sizes_come_from_all_windows(ingested: Ingested) -> None:
    root = ingested("ragged_segmentation")
    entry = json.loads((root / "registry.json").read_text())["datasets"]["ragged_segmentation"]
    assert not any(name.isdigit() for name in entry["classes"])
    sizes = {
        side
        for split in ("train", "val", "test")
        for sample in EvalDataset("ragged_segmentation", split, root=root, crop=None)
        for side in sample["target"].shape
    }
    metadata = json.loads((root / "ragged_segmentation" / "metadata.json").read_text())
    assert len(sizes) > 1
    assert metadata["window_size"] == min(sizes)


def test_09_timestamps_are_those_of_the_rasters(ingested: Ingested, copied: Copied) -> None:
    # Compared one by one with rslearn in test_loading_parity; here: they are no made-up months.
    dataset = EvalDataset("segmentation", "val", root=ingested("segmentation"))
    stamps = {tuple(dataset[i]["timestamps"]["sentinel2_l2a"].flatten().tolist()) for i in (0, 1)}
    days = {number for stamp in stamps for number in stamp[::3]}
    assert len(days) > 1


def test_10_a_raster_with_other_bands_than_config_json_says_is_invalid(
    copied: Copied, tmp_path: Path
) -> None:
    import rasterio

    source = copied("segmentation")
    path = next((windows_of(source)[0] / "layers" / "sentinel2").rglob("geotiff.tif"))
    with rasterio.open(path) as raster:
        pixels, profile = raster.read(), raster.profile
    with rasterio.open(path, "w", **{**profile, "count": 11}) as raster:
        raster.write(pixels[:11])
    pipeline.ingest(make_job(source, tmp_path / "root"))
    index = pipeline.read_stage(EvalRoot(tmp_path / "root").dataset("crops"), "window_index")
    assert index.summary.reasons == {"raster_bands": 1}


def test_11_val_and_test_are_the_same_in_every_run(ingested: Ingested) -> None:
    for split in ("val", "test"):
        dataset = EvalDataset("segmentation", split, root=ingested("segmentation"))
        assert torch.equal(dataset[0]["sentinel2_l2a"], dataset[0]["sentinel2_l2a"])
    dropped = dataset.metadata.config.dropped_transforms
    assert any("Flip" in text for text in dropped) and any("Crop" in text for text in dropped)


def test_12_timesteps_of_layers_that_are_stacked_add_up(ingested: Ingested) -> None:
    root = ingested("ragged_segmentation")
    metadata = json.loads((root / "ragged_segmentation" / "metadata.json").read_text())
    steps = {
        sample["sentinel2_l2a"].shape[2]
        for split in ("train", "val", "test")
        for sample in EvalDataset("ragged_segmentation", split, root=root)
    }
    assert metadata["num_timesteps"] == max(steps) > 4  # up to 4 before and 4 after


def test_14_zero_power_is_not_counted_as_minus_100_decibels() -> None:
    power = np.full((8, 8, 1, 1), 0.1, np.float32)
    power[:4] = 0
    (band,) = combine(measure(power, decibels=True)[None])
    assert (band.mean, band.min) == (pytest.approx(-10), pytest.approx(-10))
