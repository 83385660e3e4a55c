"""Every crop of a window: positions and order are rslearn's."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval_ingest.core.crops import corners
from eval_ingest.core.resolved import CropGrid, ResolvedConfig
from eval_ingest.core.spec import SPLITS, DatasetSpec
from eval_ingest.errors import ConfigError, SpecError
from eval_ingest.inference.resolve import ConfigFiles, resolve
from eval_ingest_tests.support.oracle import stand_in_for_wandb


@settings(deadline=None)  # the first example imports rslearn
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 40).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1))),
    st.integers(-50, 50),
)
def test_crops_lie_where_rslearn_has_them(
    height: int, width: int, crop: tuple[int, int], origin: int
) -> None:
    stand_in_for_wandb()
    from rslearn.train.all_crops_dataset import get_window_crop_options

    size, overlap = crop
    bounds = (origin, -origin, origin + width, height - origin)
    options = get_window_crop_options((size, size), (overlap, overlap), bounds)
    expected = [(y0 + origin, x0 - origin) for x0, y0, _, _ in options]
    assert corners(height, width, CropGrid(size=size, overlap=overlap)) == expected


CONFIG = """{"layers": {
  "sentinel2": {"type": "raster", "band_sets": [{"dtype": "uint16", "bands": ["B02", "B03"]}]},
  "label": {"type": "raster", "band_sets": [{"dtype": "uint8", "bands": ["label"]}]}}}"""

MODEL = """
data:
  class_path: rslearn.train.data_module.RslearnDataModule
  init_args:
    inputs:
      sentinel2_l2a: {data_type: raster, layers: [sentinel2], bands: [B02, B03], passthrough: true}
      targets: {data_type: raster, layers: [label], bands: [label], is_target: true}
    task:
      class_path: rslearn.train.tasks.segmentation.SegmentationTask
      init_args: {num_classes: 3}
"""


def resolved(splits: dict[str, str], **spec: Any) -> ResolvedConfig:
    model = MODEL + "".join(f"    {name}_config: {text}\n" for name, text in splits.items())
    return resolve(ConfigFiles(CONFIG, model), DatasetSpec(name="d", source="s", **spec))


@pytest.mark.parametrize(
    "splits",
    [
        {"default": "{crop_size: 32}", "val": "{load_all_crops: true}", "test": "{groups: [t]}"},
        {"default": "{load_all_crops: true, crop_size: 16, overlap_pixels: 4}"},
        {"default": "{load_all_patches: true, patch_size: 9}", "train": "{load_all_patches: no}"},
        {"val": "{load_all_patches: true, patch_size: 24, overlap_ratio: 0.1}", "test": "{}"},
        {"train": "{crop_size: 8}", "test": "{load_all_crops: true, crop_size: 12}"},
        {"default": "{overlap_ratio: 0.25}", "val": "{load_all_crops: true, crop_size: 10}"},
    ],
)  # fmt: skip
def test_a_splits_crops_are_those_that_rslearn_merges(splits: dict[str, str]) -> None:
    import yaml

    stand_in_for_wandb()
    from rslearn.train.dataset import SplitConfig

    config = resolved(splits)
    for split in SPLITS:
        given_ = [yaml.safe_load(splits.get(name, "{}")) for name in ("default", split)]
        merged = SplitConfig(**given_[0])._merge(SplitConfig(**given_[1]))
        found = config.all_crops.get(split)
        if split == "test" and "test" not in splits:
            assert found == config.all_crops.get("val")
            continue
        assert (found is not None) == merged.get_load_all_crops()
        if found is not None:
            assert (found.size, found.size) == merged.get_crop_size()
            assert found.overlap == merged.get_overlap_pixels()


def test_the_crop_of_a_split_of_all_crops_is_not_that_of_the_others() -> None:
    config = resolved({"val": "{load_all_crops: true, crop_size: 64}"})
    assert config.crop_size is None
    assert config.all_crops == {split: CropGrid(size=64) for split in ("val", "test")}


def test_flags_say_which_splits_and_how_large() -> None:
    splits = {"default": "{crop_size: 32, overlap_ratio: 0.5}", "val": "{load_all_crops: true}"}
    assert resolved(splits, all_crops="none").all_crops == {}
    config = resolved(splits, all_crops=["train", "test"], crop_size=8)
    assert config.all_crops == {s: CropGrid(size=8, overlap=4) for s in ("train", "test")}
    assert config.provenance["all_crops.train"] == "--all-crops"
    with pytest.raises(SpecError, match="all_crops"):
        DatasetSpec.parse({"name": "d", "source": "s", "all_crops": ["vals"]}, "flags")


def test_crops_of_no_size_or_that_overlap_wholly_are_refused() -> None:
    with pytest.raises(ConfigError, match="--crop-size"):
        resolved({"val": "{load_all_crops: true}"})
    with pytest.raises(ConfigError, match="overlap_pixels: is 8, but crops of 8 pixels"):
        resolved({"val": "{load_all_crops: true, crop_size: 8, overlap_pixels: 8}"})
