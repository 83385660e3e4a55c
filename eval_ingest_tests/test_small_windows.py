"""Windows that are smaller than the crop are filled up as rslearn does it, whoever reads them."""

import json
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from eval_ingest import EvalDataset, collate, pipeline
from eval_ingest.loading.packed import PackedSamples
from eval_ingest.store import npy
from eval_ingest.store.registry import require_metadata
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.testing.datasets import write_matching
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support import variations
from eval_ingest_tests.support.corpus import compare_sample
from eval_ingest_tests.support.reference import ReferenceDataset

CROP = 40
SEGMENT = variations.model(variations.SAMPLE)
CLASSIFY = variations.model(variations.SAMPLE, label=variations.VECTOR, task=variations.CLASSIFY)


def written(model: dict[str, Any], path: Path) -> Path:
    """A dataset of windows of 24 x 24 and 16 x 32 pixels."""
    config = json.dumps({"layers": variations.LAYERS})
    return write_matching(path, config, yaml.safe_dump(model, sort_keys=False), windows=8)


@pytest.mark.parametrize("model", [SEGMENT, CLASSIFY], ids=["segmentation", "classification"])
def test_small_windows_are_filled_up_to_the_crop_as_in_rslearn(
    model: dict[str, Any], tmp_path: Path
) -> None:
    source, root = written(model, tmp_path / "source"), tmp_path / "root"
    pipeline.ingest(make_job(source, root, "small", crop_size=CROP))
    # rslearn puts a small window anywhere in its crop: here at the upper left corner of it.
    for name, place, text in (
        ("source", source, yaml.safe_dump(model)),
        ("copy", root / "small", (root / "small" / "model.yaml").read_text()),
    ):
        reference = ReferenceDataset.open(place, text)
        for split, config in reference.module.split_configs.items():
            if name == "source" and split in ("train", "val", "test"):
                config._crop_size = CROP
        known = {
            sample.window.partition("/")[2]: sample
            for split in ("train", "val", "test")
            for sample in reference.samples(split)
        }
        bands = reference.bands("train")
        for split in ("train", "val", "test"):
            ours = EvalDataset("small", split, root=root, normalize=None)
            assert len(ours) >= 1
            for i in range(len(ours)):
                expected = known[ours.window(i).partition("/")[2]]
                assert not compare_sample(ours, i, expected, bands, None), name
    metadata = require_metadata(EvalRoot(root), "small")
    assert metadata.window_size == CROP
    assert not metadata.invalid


def test_batches_and_random_crops_of_small_windows_have_the_crop_s_size(tmp_path: Path) -> None:
    source, root = written(SEGMENT, tmp_path / "source"), tmp_path / "root"
    pipeline.ingest(make_job(source, root, "small", crop_size=28))
    metadata = require_metadata(EvalRoot(root), "small")
    assert "smaller than the crop of 28" in " ".join(metadata.warnings)
    for crop in ("center", "random"):
        train = EvalDataset("small", "train", root=root, crop=crop)
        for batch in train.batches(2):
            assert batch["sentinel2_l2a"].shape[1:3] == (28, 28)
            assert batch["target"].shape[1:] == (28, 28)
            assert (batch["target"] == -1).any()


@pytest.mark.parametrize("padded", ["sentinel2_l2a", "sentinel1"])
def test_where_only_some_arrays_have_a_pad_the_others_keep_their_windows_size(
    padded: str, tmp_path: Path
) -> None:
    model = variations.model(variations.SAMPLE | variations.S1, variations.pad(8, padded))
    source, root = written(model, tmp_path / "source"), tmp_path / "root"
    pipeline.ingest(make_job(source, root, "mixed"))
    dataset = EvalDataset("mixed", "train", root=root, normalize=None)
    for order in (range(len(dataset)), range(len(dataset))[::-1]):
        samples = [dataset[i] for i in order]
        assert len({sample["target"].shape for sample in samples}) == 2
        found, expected = collate(dataset.__getitems__(order)), collate(samples)
        for key in ("sentinel2_l2a", "sentinel1", "target"):
            assert torch.equal(found[key], expected[key])
    for i, sample in enumerate(dataset):
        assert dataset.shape(i) == {name: tuple(sample[name].shape) for name in dataset.bands}
    for batch in dataset.batches(8, bucket=True):
        assert (batch["target"] >= 0).any(dim=(1, 2)).all()
        assert batch["target"].shape[1:] in {(24, 24), (16, 32)}


def test_what_is_read_ahead_of_a_sample_that_is_padded_first_is_its_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The crop's corner counts in the padded window then, and not in the one that is stored."""
    model = variations.model(variations.SAMPLE, variations.pad(60, "sentinel2_l2a"))
    source, root = written(model, tmp_path / "source"), tmp_path / "root"
    pipeline.ingest(make_job(source, root, "padded", crop_size=32))
    samples = (dataset := EvalDataset("padded", "train", root=root))._samples
    assert isinstance(samples, PackedSamples) and dataset._corner(0)[0] > 0
    asked: list[tuple[int, int]] = []

    monkeypatch.setattr(npy, "_madvise", lambda *asks: asked.append(asks[:2]))
    dataset._read_ahead([0], [dataset._corner(0)])
    window = samples.array(0, "sentinel2_l2a")
    first = window.__array_interface__["data"][0]
    [(start, length)] = asked
    assert start % mmap.PAGESIZE == 0
    assert start <= first < start + mmap.PAGESIZE and start + length == first + window.nbytes


@pytest.mark.parametrize(
    ("size", "crop", "mode"),
    [
        pytest.param(20, {}, "center", id="cuts, or fills up the shorter side"),
        pytest.param(60, {"crop_size": 32}, "center", id="a crop is in part of what is filled up"),
        pytest.param(60, {"crop_size": 32}, "topleft", id="so at the bottom and right"),
        pytest.param(60, {"crop_size": 8}, "topleft", id="a crop is filled up altogether"),
        pytest.param(12, {"crop_size": 20}, "center", id="cuts a crop"),
        pytest.param(12, {"crop_size": 20, "load_all_crops": True}, "center", id="every crop"),
        pytest.param(8, {"crop_size": 32, "load_all_crops": True}, "center", id="of few pixels"),
    ],
)
def test_samples_lie_on_the_map_where_their_pixels_do(
    size: int, crop: dict[str, Any], mode: str, tmp_path: Path
) -> None:
    pad, groups = variations.pad(size, "sentinel2_l2a", mode=mode), {"groups": ["train"]}
    model = variations.model(variations.SAMPLE, pad, train_config=groups | crop)
    source, root = written(model, tmp_path / "source"), tmp_path / "root"
    pipeline.ingest(make_job(source, root, "placed"))
    dataset = EvalDataset("placed", "train", root=root, normalize=None)
    index = pq.read_table(root / "placed" / "window_index.parquet").to_pylist()
    bounds = {f"{row['group']}/{row['name']}": row["bounds"] for row in index}
    outlines = dataset.windows.table["geometry"].to_pylist()
    for i, (sample, told) in enumerate(zip(dataset, dataset.windows, strict=True)):
        stored = dataset._samples.array(dataset._row(i), "sentinel2_l2a").astype(np.float32)
        places = {stored[at].tobytes(): at for at in np.ndindex(stored.shape[:2])}
        assert len(places) == stored.shape[0] * stored.shape[1]
        pixels = sample["sentinel2_l2a"].numpy()
        found = [places.get(pixels[at].tobytes()) for at in np.ndindex(pixels.shape[:2])]
        at = np.array([place for place in found if place is not None])
        left, top, right, bottom = bounds[sample["window"]]
        box = [right, bottom, right, bottom]
        if at.size:
            (y, x), (last_y, last_x) = at.min(axis=0), at.max(axis=0) + 1
            box = [left + x, top + y, left + last_x, top + last_y]
        assert told["pixel_bounds"] == box
        assert (outlines[i] is None) == (not at.size)
