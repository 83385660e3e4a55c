"""Windows that are smaller than the crop are filled up as rslearn does it, whoever reads them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval_ingest import EvalDataset, pipeline
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
