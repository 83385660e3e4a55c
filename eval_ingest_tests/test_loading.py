"""EvalDataset: opening, normalising, cropping, batching, and what it refuses."""

import functools
import gc
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from eval_ingest import EvalDataset, pipeline
from eval_ingest.core import kernels
from eval_ingest.core.norm import METHODS
from eval_ingest.core.spec import SPLITS
from eval_ingest.errors import IntegrityError, LoadError, UnknownDatasetError
from eval_ingest.loading import collate, packed, parallel
from eval_ingest.loading.memory import Recycler
from eval_ingest.loading.normalize import Normalizer, make_normalizer
from eval_ingest.store.npy import map_npy
from eval_ingest.store.roots import base
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest_tests.conftest import make_job

Ingested = Callable[[str], Path]


def test_a_sample_is_as_documented(ingested: Ingested) -> None:
    dataset = EvalDataset("segmentation", "train", root=ingested("segmentation"), crop=None)
    sample = dataset[0]
    pixels = sample["sentinel2_l2a"]
    height, width, timesteps, bands = pixels.shape
    assert pixels.dtype == torch.float32
    assert bands == len(dataset.bands["sentinel2_l2a"]) == 12
    assert sample["timestamps"]["sentinel2_l2a"].shape == (timesteps, 3)
    assert sample["timestamps"]["sentinel2_l2a"].dtype == torch.int64
    assert sample["target"].shape == (height, width)
    assert sample["target"].dtype == torch.int64
    assert sample["window"] == dataset.window(0)


def test_loading_imports_neither_rslearn_nor_dagster(ingested: Ingested) -> None:
    root = ingested("segmentation")
    code = (
        "import sys; from eval_ingest import EvalDataset; "
        f"EvalDataset('segmentation', 'val', root={str(root)!r})[0]; "
        "print([m for m in ('rslearn', 'dagster', 'rasterio', 'imagecodecs') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_opening_reads_no_pixel_and_no_window(
    ingested: Ingested, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = ingested("segmentation")
    opened: list[str] = []

    def mapped(path: Path, *recorded: Any) -> Any:
        opened.append(path.name)
        return map_npy(path, *recorded)

    monkeypatch.setattr(packed, "map_npy", mapped)
    dataset = EvalDataset("segmentation", "train", root=root)
    assert opened == []
    dataset[0]
    assert opened == ["sentinel2_l2a.npy", "target.npy"]


@pytest.mark.parametrize("normalize", ["dataset", None])
@pytest.mark.parametrize("crop", ["center", None])
@pytest.mark.parametrize("case", ["segmentation", "vector_classification", "ragged_segmentation"])
def test_batches_equal_collated_samples(
    case: str, crop: str | None, normalize: str | None, ingested: Ingested
) -> None:
    dataset = EvalDataset(case, "train", root=ingested(case), crop=crop, normalize=normalize)
    start = 0
    for batch in dataset.batches(5):
        size = len(batch["window"])
        expected = collate([dataset[i] for i in range(start, start + size)])
        _assert_equal(batch, expected)
        start += size
    assert start == len(dataset)


def test_a_batch_of_windows_that_differ_in_size_and_shard_is_its_samples(
    written: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "MAX_SHARD_BYTES", 1 << 16)
    case = "ragged_segmentation"
    pipeline.ingest(make_job(written(case), tmp_path, case, max_invalid_fraction=0.5))
    dataset = EvalDataset(case, "train", root=tmp_path, crop="random")
    index, steps = dataset._index, dataset._index.timesteps["sentinel2_l2a"]
    alike = np.flatnonzero(steps == np.bincount(steps).argmax()).tolist()
    assert len(set(index.shards[alike].tolist())) > 1 and len(set(index.heights[alike])) > 1
    order = [*alike[::-1], *alike, alike[0]]
    parts: list[range] = []
    gather = Normalizer.gather

    def seen(self: Normalizer, runs: Any, part: range, out: torch.Tensor) -> None:
        parts.append(part)
        gather(self, runs, part, out)

    monkeypatch.setattr(Normalizer, "gather", seen)
    monkeypatch.setattr(parallel, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    torch.manual_seed(3)
    found = collate(dataset.__getitems__(order))
    torch.manual_seed(3)
    _assert_equal(found, collate([dataset[i] for i in order]))
    half = len(order) // 2
    halves = [range(half), range(half, len(order))]
    assert sorted(parts, key=lambda part: part.start) == halves  # not so for each shard


@pytest.mark.parametrize("case", ["affine", "quantised", "nodata", "decibels", "not compiled"])
def test_a_batch_is_made_in_the_memory_that_it_stays_in(
    case: str, ingested: Ingested, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How it can be made is known before memory is taken for it, whatever it is."""
    method = "norm_yes_clip_3_std_int" if case == "quantised" else "norm_no_clip_2_std"
    root = ingested("segmentation")
    dataset = EvalDataset("segmentation", "train", root=root, method=method)
    for name, normalizer in dataset._normalizers.items():
        if case == "nodata":
            dataset._normalizers[name] = replace(normalizer, missing=((0, 0.0),))
        if case == "decibels":
            dataset._normalizers[name] = replace(normalizer, decibels=True)
    if case == "not compiled":
        monkeypatch.setattr(kernels, "_gather", None)
    taken: list[tuple[int, ...]] = []
    empty = Recycler.empty

    def counted(self: Recycler, shape: tuple[int, ...]) -> torch.Tensor:
        taken.append(shape)
        return empty(self, shape)

    expected = collate([dataset[i] for i in range(4)])
    monkeypatch.setattr(Recycler, "empty", counted)
    _assert_equal(collate(dataset.__getitems__(range(4))), expected)
    assert len(taken) == len(dataset.bands)


def test_memory_is_used_again_only_when_nothing_refers_to_it() -> None:
    recycler = Recycler()
    first = recycler.empty((1000, 100))
    place, part = first.data_ptr(), first[5]
    del first
    assert recycler.empty((1000, 100)).data_ptr() != place  # a part of it is still in use
    del part
    assert recycler.empty((1000, 100)).data_ptr() == place


def test_kept_memory_is_bounded() -> None:
    recycler = Recycler(most_bytes=1 << 20)
    for rows in (1000, 1500, 2000):
        held = [recycler.empty((rows, 100)) for _ in range(5)]
        del held
    kept = sum(block.nbytes for blocks in recycler._free.values() for block in blocks)
    assert kept == recycler._kept <= 1 << 20


def test_samples_of_a_data_loader_lie_in_one_batch(ingested: Ingested) -> None:
    dataset = EvalDataset("segmentation", "train", root=ingested("segmentation"))
    order = [5, 0, 3]
    samples = dataset.__getitems__(order)
    for found, i in zip(samples, order, strict=True):
        _assert_equal(found, dataset[i])
    assert collate(samples)["sentinel2_l2a"].data_ptr() == samples[0]["sentinel2_l2a"].data_ptr()
    _assert_equal(collate(samples), collate([dataset[i] for i in order]))


def _assert_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, dict):
            _assert_equal(found[key], value)
        elif isinstance(value, torch.Tensor):
            assert found[key].dtype == value.dtype
            assert torch.equal(found[key].nan_to_num(-7), value.nan_to_num(-7)), key
        else:
            assert found[key] == value


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_normalisation_equals_the_formula(method: str, dtype: type) -> None:
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 4000, (2, 5, 4, 3, 2)).astype(dtype)
    mean, std, low, high = np.array([900.0, 2000]), np.array([300.0, 0.5]), [0, 1], [4000, 3999]
    stats = {
        band: {"mean": mean[c], "std": std[c], "min": low[c], "max": high[c]}
        for c, band in enumerate("ab")
    }
    out = torch.empty(stored.shape)
    make_normalizer(method, ("a", "b"), stats, decibels=False).apply(stored, out)
    found = out.numpy()
    x = stored.astype(np.float64)
    sigmas = 3 if "3_std" in method else 2 if "2_std" in method else 1
    lo, hi = mean - sigmas * std, mean + sigmas * std
    if "min_max" in method:
        lo, hi = np.array(low), np.array(high)
    y = (x - lo) / (hi - lo)
    if method == "standardize":
        y = (x - mean) / std
    if method == "no_norm":
        y = x
    if method.endswith("_int"):
        y = np.clip(255 * y, 0, 255).astype(np.uint8) / 255
        assert np.abs(found - y).max() <= 1 / 255 + 1e-6  # a value on a step may round either way
        assert (np.abs(found - y) > 1e-6).mean() < 0.01
        return
    if "yes_clip" in method:
        y = np.clip(y, 0, 1)
    assert found == pytest.approx(y, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("width", [255, 510, 1275, 8670])
def test_whole_numbers_on_the_edge_of_a_step_are_put_into_the_upper_one(width: int) -> None:
    low = 37
    stored = np.arange(low, low + width + 1, dtype=np.uint16).reshape(1, -1, 1, 1)
    stats = {"a": {"mean": 1.0, "std": 1.0, "min": low, "max": low + width}}
    out = torch.empty(stored.shape)
    make_normalizer("norm_yes_clip_min_max_int", ("a",), stats, False).apply(stored, out)
    steps = (out * 255).round().long().flatten().tolist()
    assert steps == [255 * k // width for k in range(width + 1)]


def test_sentinel1_is_normalised_in_decibels(ingested: Ingested) -> None:
    root = ingested("vector_classification")
    raw = EvalDataset("vector_classification", "train", root=root, normalize=None, crop=None)
    normalized = EvalDataset(
        "vector_classification", "train", root=root, method="standardize", crop=None
    )
    stats = raw.metadata.norm_stats["sentinel1"]
    decibels = 10 * torch.log10(raw[0]["sentinel1"].clamp(min=1e-10))
    for c, band in enumerate(raw.bands["sentinel1"]):
        expected = (decibels[..., c] - stats[band]["mean"]) / stats[band]["std"]
        assert torch.allclose(normalized[0]["sentinel1"][..., c], expected, atol=1e-4)


def test_a_centre_crop_is_the_centre(ingested: Ingested) -> None:
    root = ingested("segmentation")
    whole = EvalDataset("segmentation", "val", root=root, crop=None)
    crop = EvalDataset("segmentation", "val", root=root)
    size = crop.metadata.config.crop_size
    assert size is not None
    start = (whole[0]["target"].shape[0] - size) // 2
    window = slice(start, start + size)
    assert torch.equal(crop[0]["sentinel2_l2a"], whole[0]["sentinel2_l2a"][window, window])
    assert torch.equal(crop[0]["target"], whole[0]["target"][window, window])


def test_a_random_crop_has_pixels_and_target_from_one_place(ingested: Ingested) -> None:
    root = ingested("segmentation")
    whole = EvalDataset("segmentation", "val", root=root, crop=None, normalize=None)[0]
    dataset = EvalDataset("segmentation", "val", root=root, crop="random", normalize=None)
    size = dataset.metadata.config.crop_size
    assert size is not None
    seen = set()
    for _ in range(20):
        crop = dataset[0]
        spare = whole["target"].shape[0] - size + 1
        places = [
            (y, x)
            for y in range(spare)
            for x in range(spare)
            if torch.equal(
                whole["sentinel2_l2a"][y : y + size, x : x + size], crop["sentinel2_l2a"]
            )
        ]
        assert len(places) == 1
        y, x = places[0]
        assert torch.equal(whole["target"][y : y + size, x : x + size], crop["target"])
        seen.add(places[0])
    assert len(seen) > 1


@pytest.mark.parametrize("case", ["segmentation", "per_pixel_regression"])
def test_what_is_drawn_by_a_seed_does_not_hang_on_what_was_drawn_before(
    case: str, ingested: Ingested, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, before = ingested(case), torch.get_rng_state()

    def opened(share: float, crop: str = "random") -> list[str]:
        found = EvalDataset(case, "train", root=root, crop=crop, label_fraction=share,
                            stratified=True)  # fmt: skip
        return [found.window(i) for i in range(len(found))]

    strata: list[Any] = []
    whole = packed.PackedSamples.array
    monkeypatch.setattr(packed.PackedSamples, "array", lambda *at: strata.append(at) or whole(*at))
    assert len(opened(1)) > 4 and not strata  # there is nothing to draw
    parts = [opened(share) for share in (0.2, 0.5, 0.8)]
    assert (
        strata and parts[1][: len(parts[0])] == parts[0] and parts[2][: len(parts[1])] == parts[1]
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert parts == [opened(share, "center") for share in (0.2, 0.5, 0.8)]
    torch.manual_seed(5)
    assert parts == [opened(share) for share in (0.2, 0.5, 0.8)]
    torch.set_rng_state(before)


def test_batches_cut_at_random_are_the_same_wherever_and_whenever_they_are_made(
    ingested: Ingested,
) -> None:
    dataset = EvalDataset(
        "segmentation", "train", root=ingested("segmentation"), crop="random", normalize=None
    )

    def batches(device: str | None, between: Callable[[], object]) -> torch.Tensor:
        torch.manual_seed(7)
        found = []
        for batch in dataset.batches(2, device=device):
            found.append(batch["target"])
            between()
        return torch.cat(found)

    first = batches(None, lambda: None)
    for device in (None, "cpu"):
        assert torch.equal(first, batches(device, lambda: torch.rand(9)))
    torch.manual_seed(8)
    assert not torch.equal(first, torch.cat([b["target"] for b in dataset.batches(2)]))


def test_no_file_stays_open_however_many_are_mapped(
    ingested: Ingested, monkeypatch: pytest.MonkeyPatch
) -> None:
    def descriptors() -> int:
        return len(os.listdir("/dev/fd"))

    before = descriptors()
    some = [EvalDataset("segmentation", split, root=ingested("segmentation")) for split in SPLITS]
    samples = [dataset[0] for dataset in some]
    assert descriptors() == before and len(samples) == 3
    path = next((ingested("segmentation") / "segmentation" / "samples").glob("*/target.npy"))
    with open("/proc/self/maps") as maps:
        assert sum(str(path) in line for line in maps) == 3
    del some, samples
    gc.collect()
    with open("/proc/self/maps") as maps:
        assert not any(str(path) in line for line in maps)


def test_maps_are_let_go_of_by_many_threads_at_once(
    ingested: Ingested, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a root in a bucket, of which only so much may lie on the disk."""
    dataset = EvalDataset("segmentation", "train", root=ingested("segmentation"))
    samples = dataset._samples
    assert isinstance(samples, packed.PackedSamples)
    monkeypatch.setattr(EvalRoot, "cache_bytes", 1)
    monkeypatch.setattr(packed, "map_npy", functools.cache(map_npy))
    before, names = sys.getswitchinterval(), ["sentinel2_l2a", "target"]
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            for found in pool.map(lambda k: samples.array(0, names[k % 2]), range(20_000)):
                assert found.size
    finally:
        sys.setswitchinterval(before)
    assert len(samples._maps) == 1


def test_label_fractions_are_nested_and_drawn_as_documented(ingested: Ingested) -> None:
    root = ingested("segmentation")
    whole = EvalDataset("segmentation", "train", root=root)
    windows = [whole.window(i) for i in range(len(whole))]
    drawn = torch.randperm(len(whole), generator=torch.Generator().manual_seed(42)).tolist()
    for fraction in (0.01, 0.3, 0.7):
        part = EvalDataset("segmentation", "train", root=root, label_fraction=fraction)
        expected = drawn[: max(1, int(len(whole) * fraction))]
        assert [part.window(i) for i in range(len(part))] == [windows[i] for i in expected]


def test_ragged_samples_are_padded_in_a_batch_only(ingested: Ingested) -> None:
    dataset = EvalDataset("ragged_segmentation", "train", root=ingested("ragged_segmentation"))
    shapes = {dataset[i]["sentinel2_l2a"].shape for i in range(len(dataset))}
    assert len(shapes) > 1
    batch = next(iter(dataset.loader(batch_size=len(dataset), shuffle=False)))
    assert batch["sentinel2_l2a"].shape[0] == len(dataset)
    for i in range(len(dataset)):
        sample = dataset[i]["sentinel2_l2a"]
        height, width, timesteps, _ = sample.shape
        assert int(batch["timesteps"]["sentinel2_l2a"][i]) == timesteps
        padded = batch["sentinel2_l2a"][i]
        assert torch.equal(padded[:height, :width, :timesteps], sample)
        assert not padded[:, :, timesteps:].any()
        assert (batch["target"][i, height:] == -1).all()


def test_in_buckets_every_sample_comes_once_and_none_is_padded(ingested: Ingested) -> None:
    dataset = EvalDataset("ragged_segmentation", "train", root=ingested("ragged_segmentation"))
    samples = {sample["window"]: sample for sample in dataset}
    batches = list(dataset.batches(3, bucket=True))
    assert sorted(name for batch in batches for name in batch["window"]) == sorted(samples)
    for batch in batches:
        for i, name in enumerate(batch["window"]):
            assert torch.equal(batch["sentinel2_l2a"][i], samples[name]["sentinel2_l2a"])
            assert torch.equal(batch["target"][i], samples[name]["target"])
    even = EvalDataset("segmentation", "train", root=ingested("segmentation"))
    in_order = [name for batch in even.batches(4, bucket=True) for name in batch["window"]]
    assert in_order == [even.window(i) for i in range(len(even))]


def test_a_pickle_is_small_and_opens_again(ingested: Ingested) -> None:
    dataset = EvalDataset("segmentation", "train", root=ingested("segmentation"))
    data = pickle.dumps(dataset)
    assert len(data) < 20_000  # its metadata.json, and nothing of the samples
    assert torch.equal(pickle.loads(data)[1]["target"], dataset[1]["target"])


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_of_a_data_loader_see_the_same_samples(context: str, ingested: Ingested) -> None:
    dataset = EvalDataset("segmentation", "val", root=ingested("segmentation"))
    loader = DataLoader(
        dataset, batch_size=2, num_workers=1, multiprocessing_context=context, collate_fn=collate
    )
    found = torch.cat([batch["sentinel2_l2a"] for batch in loader])
    assert torch.equal(found, torch.stack([s["sentinel2_l2a"] for s in dataset]))


def test_iterating_ends(ingested: Ingested) -> None:
    dataset = EvalDataset("segmentation", "val", root=ingested("segmentation"))
    assert len(list(dataset)) == len(dataset)
    with pytest.raises(IndexError, match=f"sample {len(dataset)} of {len(dataset)}"):
        dataset[len(dataset)]
    assert dataset[-1]["window"] == dataset[len(dataset) - 1]["window"]


def test_loader_says_what_it_chose(ingested: Ingested) -> None:
    loader = EvalDataset("segmentation", "train", root=ingested("segmentation")).loader()
    assert "batch_size" in loader.why and "num_workers 0" in loader.why  # type: ignore[attr-defined]


def test_the_root_comes_from_the_environment_and_may_be_read_only(
    ingested: Ingested, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = ingested("segmentation")
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(root))
    before = sorted(root.rglob("*"))
    assert len(EvalDataset("segmentation", "test")[0]["target"].shape) == 2
    assert sorted(root.rglob("*")) == before


def test_an_unknown_name_names_the_near_ones(ingested: Ingested) -> None:
    with pytest.raises(UnknownDatasetError, match="did you mean segmentation"):
        EvalDataset("segmentaton", "train", root=ingested("segmentation"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "no split 'dev'; there are train, val, test"),
        ({"modalities": ["sentinel3"]}, "has no modality sentinel3; it has sentinel2_l2a"),
        ({"method": "minmax"}, "no normalisation method 'minmax'"),
        ({"normalize": "yes"}, "no normalize='yes'"),
        ({"crop": "left"}, "no crop 'left'"),
        ({"label_fraction": 0}, r"must be in \(0, 1\]"),
        ({"split": "val", "label_fraction": 0.5}, "val is always used whole"),
    ],
)
def test_wrong_arguments_are_told(arguments: dict, message: str, ingested: Ingested) -> None:
    with pytest.raises(LoadError, match=message):
        EvalDataset(
            "segmentation", **{"split": "train", "root": ingested("segmentation"), **arguments}
        )


def test_a_missing_pack_is_told(ingested: Ingested, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(ingested("segmentation"), tmp_path / "root")
    shard = json.loads((tmp_path / "root/segmentation/metadata.json").read_text())["shards"][0]
    (tmp_path / "root/segmentation/samples" / shard["name"] / "target.npy").unlink()
    with pytest.raises(IntegrityError, match="are missing; run: eval-ingest ingest segmentation"):
        EvalDataset("segmentation", "train", root=tmp_path / "root")[0]
