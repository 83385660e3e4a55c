"""What goes wrong in hand-made ingests, one test each: none of it may come back.

Numbered as known faults. Where there is more to be said, longer tests stand elsewhere: of splits in
test_core_splits, of the registry and of edited windows in test_pipeline, of units in
test_core_quality, of samples beside rslearn's in test_loading_parity.
"""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eval_ingest import EvalDataset, pipeline
from eval_ingest.core.norm import combine, measure
from eval_ingest.errors import SourceError
from eval_ingest.store.outcomes import read_outcome
from eval_ingest.store.registry import (
    read_metadata,
    read_registry,
    rebuild_registry,
    write_metadata,
)
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support.changing import rewrite, windows_of

Copied = Callable[[str], Path]
Ingested = Callable[[str], Path]


def test_01_splits_do_not_depend_on_the_order_of_listing(copied: Copied, tmp_path: Path) -> None:
    source = copied("scalar_regression")
    splits = []
    for turn, reverse in enumerate((False, True)):
        splits_of = {"strategy": "random", "ratios": [50, 25, 25]}
        job = make_job(source, tmp_path / str(turn), splits=splits_of)
        real = job.source.names

        def listed(groups: Any, real: Any = real, reverse: bool = reverse) -> Any:
            return sorted(real(groups), key=lambda window: window.name, reverse=reverse)

        object.__setattr__(job.source, "names", listed)
        pipeline.ingest(job)
        table = read_outcome(job.store, "split_assignment").table
        splits.append(dict(zip(table["name"].to_pylist(), table["split"].to_pylist(), strict=True)))
    assert splits[0] == splits[1]
    assert set(splits[0].values()) == {"train", "val", "test"}


def test_02_a_source_that_fails_while_copying_publishes_nothing(
    copied: Copied, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, root = copied("segmentation"), tmp_path / "root"
    monkeypatch.setattr(pipeline, "copying_ahead", lambda job, **_: None)
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
    job = make_job(source, root)
    pipeline.window_index(job)  # from here on the folder is ours
    shutil.copytree(window, root / "crops" / window.relative_to(source))
    next((root / "crops").rglob("windows/**/geotiff.tif")).unlink()
    pipeline.ingest(job)
    copy = root / "crops" / window.relative_to(source)
    names = {path.relative_to(window) for path in window.rglob("*") if path.is_file()}
    assert {path.relative_to(copy) for path in copy.rglob("*") if path.is_file()} == names


def test_04_a_band_without_variance_is_warned_of_and_0_after_normalisation(
    copied: Copied, tmp_path: Path
) -> None:
    source, root = copied("segmentation"), tmp_path / "root"
    for path in source.rglob("sentinel2*/*/geotiff.tif"):
        rewrite(path, lambda pixels: pixels.__setitem__(slice(None, 1), 7) or pixels)
    outcomes = pipeline.ingest(make_job(source, root))
    (warning,) = outcomes[2].value.warnings
    assert "B01 (always 7) does not vary" in warning  # stored first: in alphabetical order
    train = EvalDataset("crops", "train", root=root)
    band = train.bands["sentinel2_l2a"].index("B01")
    assert torch.isfinite(train[0]["sentinel2_l2a"]).all()
    assert not train[0]["sentinel2_l2a"][..., band].any()
    entry = json.loads((root / "registry.json").read_text())["datasets"]["crops"]
    assert entry["norm_stats"]["sentinel2_l2a"]["B01"]["std"] > 0  # others divide by it


def test_05_no_modality_is_published_twice(ingested: Ingested) -> None:
    for case in ("three_modalities", "scalar_regression", "ragged_segmentation"):
        registry = json.loads((ingested(case) / "registry.json").read_text())
        modalities = registry["datasets"][case]["modalities"]
        assert len(modalities) == len(set(modalities))


def test_06_statistics_count_every_pixel_of_every_train_window(ingested: Ingested) -> None:
    root = ingested("per_pixel_regression")
    index = read_outcome(EvalRoot(root).dataset("per_pixel_regression"), "window_index")
    train = EvalDataset("per_pixel_regression", "train", root=root, normalize=None, crop=None)
    name = train.metadata.config.modalities[0].name
    rows = [index.keys.index(train.window(i)) for i in range(len(train))]
    counted = index.moments(name)[rows, 0].sum()
    assert counted == sum(sample[name].numel() for sample in train)
    # Summed up in float64: in float32 the deviation of such numbers drowns in their squares.
    pixels = np.stack([sample[name].numpy() for sample in train]).astype(np.float64)
    band = train.bands[name].index("B10")
    found = train.metadata.norm_stats[name]["B10"]
    assert found["std"] == pytest.approx(pixels[..., band].std(), rel=1e-9)


def test_07_windows_with_unreadable_metadata_do_not_vanish(copied: Copied, tmp_path: Path) -> None:
    source = copied("segmentation")
    (windows_of(source)[0] / "metadata.json").write_text("{")
    total = len(windows_of(source))
    pipeline.ingest(make_job(source, tmp_path / "root"))
    index = read_outcome(EvalRoot(tmp_path / "root").dataset("crops"), "window_index")
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


def test_09_timestamps_are_those_of_the_rasters(copied: Copied, tmp_path: Path) -> None:
    source = copied("segmentation")
    window = windows_of(source)[0]
    sidecar = sorted((window / "layers" / "sentinel2").rglob("metadata.json"))[0]
    content = json.loads(sidecar.read_text())
    content["timestamps"] = [["2019-02-03T10:00:00+00:00", "2019-02-03T10:00:00+00:00"]]
    sidecar.write_text(json.dumps(content))
    pipeline.ingest(make_job(source, tmp_path / "root"))
    samples = {
        sample["window"]: sample
        for split in ("train", "val", "test")
        for sample in EvalDataset("crops", split, root=tmp_path / "root")
    }
    stamps = samples[f"{window.parent.name}/{window.name}"]["timestamps"]["sentinel2_l2a"]
    assert stamps[0].tolist() == [3, 1, 2019]  # day, month from 0, year
    assert all(stamp[2] != 2019 for stamp in stamps[1:].tolist())


def test_10_a_raster_with_other_bands_than_config_json_says_is_invalid(
    copied: Copied, tmp_path: Path
) -> None:
    source = copied("segmentation")
    rewrite(next((windows_of(source)[0] / "layers" / "sentinel2").rglob("geotiff.tif")),
            lambda pixels: pixels[:11])  # fmt: skip
    pipeline.ingest(make_job(source, tmp_path / "root"))
    index = read_outcome(EvalRoot(tmp_path / "root").dataset("crops"), "window_index")
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


def test_13_a_registry_that_two_write_at_once_loses_no_entry(
    ingested: Ingested, tmp_path: Path
) -> None:
    root = EvalRoot(tmp_path)
    names = [f"copy_{k}" for k in range(6)]
    entry = read_metadata(EvalRoot(ingested("segmentation")).dataset("segmentation"))
    assert entry is not None

    def publish(name: str) -> None:
        metadata = entry.model_copy(update={"name": name})
        write_metadata(root.dataset(name), metadata)
        rebuild_registry(root)
        json.loads(root.layout.registry.read_text())  # whole at any moment

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(publish, names))
    assert sorted(read_registry(root)) == names


def test_14_zero_power_is_not_counted_as_minus_100_decibels() -> None:
    power = np.full((8, 8, 1, 1), 0.1, np.float32)
    power[:4] = 0
    (band,) = combine(measure(power, decibels=True)[None])
    assert (band.mean, band.min) == (pytest.approx(-10), pytest.approx(-10))


def test_15_edited_windows_and_tags_are_noticed(copied: Copied, tmp_path: Path) -> None:
    source, root = copied("segmentation"), tmp_path / "root"
    before = {o.stage: o.fingerprint for o in pipeline.ingest(make_job(source, root))}
    path = windows_of(source)[0] / "metadata.json"
    content = json.loads(path.read_text())
    content["options"]["split"] = {"train": "val", "val": "train"}[content["options"]["split"]]
    path.write_text(json.dumps(content))
    outcomes = {o.stage: o for o in pipeline.ingest(make_job(source, root))}
    assert all(outcomes[stage].fingerprint != before[stage] for stage in pipeline.STAGES)
    raster = next((path.parent / "layers" / "sentinel2").rglob("geotiff.tif"))
    rewrite(raster, lambda pixels: pixels + 1)
    assert pipeline.ingest(make_job(source, root))[0].ran


def test_16_units_that_are_not_those_of_pretraining_are_warned_of(
    copied: Copied, tmp_path: Path
) -> None:
    source = copied("segmentation")
    job = make_job(source, tmp_path / "before")
    assert "units" not in codes(pipeline.ingest(job)[-1].value.quality)
    for path in source.rglob("sentinel2*/*/geotiff.tif"):
        rewrite(path, lambda pixels: np.maximum(pixels // 10, 1))
    quality = pipeline.ingest(make_job(source, tmp_path / "after"))[-1].value.quality
    assert "too small by a factor of 10" in codes(quality)["units"]


def codes(quality: dict[str, Any]) -> dict[str, str]:
    """Texts of the findings by code."""
    return {found["code"]: found["text"] for found in quality["findings"]}
