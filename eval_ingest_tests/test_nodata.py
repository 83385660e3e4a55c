"""Pixels that their raster declares to be no data: in no statistic, told, 0 once normalised."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from benchmarks.storages import rewritten
from eval_ingest import EvalDataset, pipeline
from eval_ingest.core import kernels
from eval_ingest.core.entry import Metadata
from eval_ingest.core.nodata import as_stored, find_nodata, measure_without, occurring
from eval_ingest.core.norm import METHODS, measure
from eval_ingest.core.spec import SPLITS
from eval_ingest.store.registry import require_metadata
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.testing.datasets import add_window, complete, quiet_rslearn, write_raster
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support import factories, writing
from eval_ingest_tests.support.comparing import compare
from eval_ingest_tests.support.oracle import rslearn_samples
from eval_ingest_tests.support.writing import START, Writer, band_set, raster_layer

BANDS = ("B02", "B03")

KINDS: dict[str, tuple[str, float | None, bool]] = {
    # stored type, declared value, in the raster (else in config.json alone)
    "largest": ("uint16", 65535, True),
    "zero": ("uint16", 0, True),
    "in the middle": ("uint16", 777, True),
    "of config.json": ("uint16", 65535, False),
    "negative": ("int16", -9999, True),
    "float": ("float32", -9999, True),
    "no float32": ("float32", 0.1, True),
    "not a number": ("float32", float("nan"), True),
    "NaN without a word": ("float32", None, True),
}


def write(root: Path, dtype: str, nodata: float | None, in_raster: bool) -> tuple[Path, float]:
    """A dataset of which every third window has a strip without data; and what stands there."""
    mark = float("nan") if nodata is None else nodata
    more: dict[str, Any] = {} if nodata is None or nodata != nodata else {"nodata_value": nodata}
    layers = {
        "sentinel2": raster_layer(band_set(BANDS, dtype, **more)),
        "label_raster": raster_layer(band_set(["label"], "uint8")),
    }
    inputs = {
        "sentinel2_l2a": writing.image_input(["sentinel2"], BANDS),
        "targets": writing.raster_target(),
    }
    task = writing.class_at("rslearn.train.tasks.segmentation.SegmentationTask", num_classes=2)
    writer = Writer.create(root / "source", layers, writing.model(inputs, task, ["g"]))
    rng = np.random.default_rng(0)
    with quiet_rslearn():
        for k in range(12):
            bounds = (50 * k, 0, 50 * k + 8, 8)
            split = {"split": "train" if k % 4 else "val"}
            window = add_window(writer.dataset, "g", f"w{k:02}", bounds, (START, START), split)
            pixels = rng.integers(100, 3000, (2, 1, 8, 8)).astype(dtype)
            if k % 3 == 0:
                pixels[:, :, :2] = mark
                pixels[0, 0, 7, 7] = mark
            declared = nodata if in_raster else None
            write_raster(window, "sentinel2", BANDS, pixels, nodata_value=declared)
            complete(window, "sentinel2")
            writer.label(window, rng.integers(0, 2, (8, 8)).astype(np.uint8))
    return writer.path, mark


def ingest(source: Path, root: Path) -> Metadata:
    pipeline.ingest(make_job(source, root))
    return require_metadata(EvalRoot(root), "crops")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_declared_counts_nowhere_and_normalises_to_0(kind: str, tmp_path: Path) -> None:
    dtype, nodata, in_raster = KINDS[kind]
    source, mark = write(tmp_path, dtype, nodata, in_raster)
    root = tmp_path / "root"
    metadata = ingest(source, root)
    marked = np.dtype(dtype).type(mark)
    stored = [s["sentinel2_l2a"] for s in EvalDataset("crops", "train", root=root, normalize=None)]
    pixels = torch.cat([sample.reshape(-1, 2) for sample in stored]).numpy()
    missing = np.isnan(pixels) if mark != mark else pixels == marked
    assert 0 < missing.sum() < missing.size / 2
    for c, band in enumerate(BANDS):
        known = pixels[~missing[:, c], c].astype(np.float64)
        found = metadata.norm_stats["sentinel2_l2a"][band]
        assert found["mean"] == pytest.approx(known.mean(), rel=1e-6)
        assert found["std"] == pytest.approx(known.std(), rel=1e-6)
        assert (found["min"], found["max"]) == (known.min(), known.max())
    told = [f for f in metadata.quality["findings"] if f["code"] == "nodata_some"]
    assert told and "are missing" in told[0]["text"]
    assert not any(f["code"] in ("units", "nodata_value") for f in metadata.quality["findings"])
    for method in METHODS:
        dataset = EvalDataset("crops", "train", root=root, method=method, crop=None)
        values = torch.cat([s["sentinel2_l2a"].reshape(-1, 2) for s in dataset]).numpy()
        assert (values[missing] == 0).all() and np.isfinite(values).all()
        holed = EvalDataset("crops", "train", root=root, method=method, nodata=float("nan"))
        found = torch.cat([s["sentinel2_l2a"].reshape(-1, 2) for s in holed]).numpy()
        assert np.array_equal(np.isnan(found), missing)
        batch = torch.cat([b["sentinel2_l2a"].reshape(-1, 2) for b in dataset.batches(4)])
        assert np.array_equal(batch.numpy(), values)


@pytest.mark.parametrize("numpy", [False, True])
def test_samples_stay_those_of_rslearn(numpy: bool, tmp_path: Path) -> None:
    source, _ = write(tmp_path, "int16", -9999, True)
    if numpy:
        source = rewritten(source, tmp_path / "numpy", numpy=True)
    root = tmp_path / "root"
    metadata = ingest(source, root)
    assert metadata.nodata == {"sentinel2_l2a": {band: [-9999.0] for band in BANDS}}
    samples = rslearn_samples(root / "crops", source / "model.yaml")
    expected = {(s.group, s.name): s for s in samples}
    for split in SPLITS:
        dataset = EvalDataset("crops", split, root=root, normalize=None)
        for i in range(len(dataset)):
            group, name = dataset.window(i).split("/")
            compare(dataset, dataset[i], expected[group, name])


def test_nothing_is_looked_for_where_nothing_is_missing(tmp_path: Path) -> None:
    source = factories.segmentation(tmp_path, windows=6, timesteps=1)
    metadata = ingest(source, tmp_path / "root")
    assert metadata.nodata == {}


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32"])
@pytest.mark.parametrize("decibels", [False, True])
def test_moments_are_those_of_the_pixels_that_are_left(
    compiled: bool, dtype: str, decibels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(kernels, "_kernels", None)
    elif not kernels.are_compiled():
        pytest.skip("not compiled")
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 6, (9, 7, 3, 4)).astype(dtype)
    pixels[..., 3] = 2  # a band that is wholly missing
    declared = np.array([[1, 5, np.nan, 2], [1, 0, np.nan, 2], [1, 5, 4, 2]], np.float64)
    moments = measure(pixels, decibels=decibels)
    missing = find_nodata(pixels, declared, None if decibels else moments)
    assert missing is not None
    wanted = pixels == np.where(np.isnan(declared), -7, declared)
    assert np.array_equal(missing, wanted)
    found = measure_without(pixels, missing, moments, decibels=decibels)
    left = np.where(wanted, np.nan, pixels.astype(np.float32))
    np.testing.assert_allclose(found, measure(left, decibels=decibels), rtol=1e-6)
    assert found[0, 3] == 0 and found[3, 3] == np.inf
    values = {(0, 1.0), (1, 5.0), (1, 0.0), (2, 4.0), (3, 2.0)}
    assert set(occurring(pixels, declared, missing)) == values


@given(
    arrays.arrays(np.int16, (3, 4, 2, 2), elements=st.integers(-3, 3)),
    arrays.arrays(np.float64, (2, 2), elements=st.sampled_from([np.nan, -3, 0, 2, 9])),
)
def test_nodata_is_found_wherever_it_is(pixels: np.ndarray, declared: np.ndarray) -> None:
    found = find_nodata(pixels, declared, measure(pixels))
    expected = pixels == declared
    assert (found is None and not expected.any()) or np.array_equal(found, expected)


def test_what_a_type_cant_hold_is_no_nodata_of_it() -> None:
    given_ = (None, -9999.0, 65535.0, 0.5, float("inf"))
    assert np.array_equal(
        as_stored(given_, "uint16"), [np.nan, np.nan, 65535, np.nan, np.nan], equal_nan=True
    )
    assert as_stored((0.1,), "float32")[0] == np.float32(0.1)
