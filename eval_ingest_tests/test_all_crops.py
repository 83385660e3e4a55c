"""Every crop of a window as a sample: equal to rslearn's, in its order, whoever reads them."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import rasterio
import torch
import yaml

from eval_ingest import EvalDataset, cli, pipeline
from eval_ingest.core.entry import Metadata
from eval_ingest.store.registry import require_metadata
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.store.tables import StoredTable
from eval_ingest.sweep.embed import embed_split
from eval_ingest.sweep.encoders.pixels import Pixels
from eval_ingest.sweep.rows import Rows
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support.comparing import compare
from eval_ingest_tests.support.oracle import rslearn_crops
from eval_ingest_tests.support.writing import class_at

SPLITS = ("train", "val", "test")


def with_crops(dataset: Path, **configs: dict[str, Any]) -> Path:
    """Write split configurations into the dataset's model.yaml; returns it."""
    path = dataset / "model.yaml"
    content = yaml.safe_load(path.read_text())
    for name, more in configs.items():
        content["data"]["init_args"].setdefault(name, {}).update(more)
    path.write_text(yaml.safe_dump(content))
    return path


def ingest(source: Path, root: Path, **spec: Any) -> Metadata:
    pipeline.ingest(make_job(source, root, **spec))
    return require_metadata(EvalRoot(root), "crops")


def compare_split(root: Path, model: Path, split: str, kind: str) -> EvalDataset:
    dataset = EvalDataset("crops", split, root=root, normalize=None, crop=None)
    expected = list(rslearn_crops(root / "crops", model, split, {"eval_split": split}, kind))
    assert len(dataset) == len(expected)
    for i, sample in enumerate(expected):
        assert dataset.window(i) == f"{sample.group}/{sample.name}"
        compare(dataset, dataset[i], sample)
    return dataset


def same(one: EvalDataset, other: EvalDataset) -> None:
    assert len(one) == len(other)
    for ours, theirs in zip(one, other, strict=True):
        assert ours["window"] == theirs["window"]
        assert torch.equal(ours["target"], theirs["target"])
        for name in one.bands:
            assert torch.equal(ours[name], theirs[name])


OVERLAP = {"load_all_crops": True, "crop_size": 12, "overlap_pixels": 3}


@pytest.fixture(scope="module")
def ragged(written: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source with windows of 16 to 32 pixels a side, of which val's and test's are all cropped."""
    source = tmp_path_factory.mktemp("ragged") / "source"
    shutil.copytree(written("ragged_segmentation"), source)
    with_crops(source, val_config=OVERLAP, test_config=OVERLAP, train_config={"crop_size": 12})
    return source


@pytest.fixture(scope="module")
def root(ragged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("root")
    ingest(ragged, path)
    return path


@pytest.mark.parametrize("kind", ["InMemory", "Iterable", "Map"])
def test_crops_of_windows_of_many_sizes_equal_those_of_rslearn(
    kind: str, ragged: Path, root: Path
) -> None:
    """Val is divided into val and test by windows."""
    windows: list[set[str]] = []
    for split in ("val", "test"):
        dataset = compare_split(root, ragged / "model.yaml", split, kind)
        windows.append({dataset.window(i) for i in range(len(dataset))})
        assert len(dataset) > 2 * len(windows[-1]) > 0
    assert not windows[0] & windows[1]


def test_the_copys_own_model_yaml_gives_the_same_samples(root: Path) -> None:
    for split in ("val", "test"):
        compare_split(root, root / "crops" / "model.yaml", split, "Map")
    content = yaml.safe_load((root / "crops" / "model.yaml").read_text())["data"]["init_args"]
    assert content["use_map_all_crops_dataset"] is True
    assert "load_all_crops" not in content["train_config"]


def test_samples_decoded_from_the_source_equal_packed_ones(
    ragged: Path, root: Path, tmp_path: Path
) -> None:
    ingest(ragged, tmp_path, copy="index")
    for split in SPLITS:
        both = [EvalDataset("crops", split, root=path) for path in (root, tmp_path)]
        same(*both)


def test_batches_and_loaders_give_every_crop(root: Path) -> None:
    dataset = EvalDataset("crops", "val", root=root)
    batched = [row for batch in dataset.batches(5, bucket=True) for row in batch["window"]]
    assert sorted(batched) == sorted(dataset.window(i) for i in range(len(dataset)))
    targets = torch.cat([batch["target"] for batch in dataset.loader(4, shuffle=False)])
    assert torch.equal(targets, torch.stack([sample["target"] for sample in dataset]))
    for crop in ("random", None):
        same(other := EvalDataset("crops", "val", root=root, crop=crop), dataset)
        assert list(other.windows) == list(dataset.windows)


def test_windows_are_packed_once_and_the_registry_counts_samples(root: Path) -> None:
    metadata = require_metadata(EvalRoot(root), "crops")
    assert sum(shard.rows for shard in metadata.shards) == 16
    assert sum(found.n_windows for found in metadata.splits.values()) == 16
    entry = json.loads((root / "registry.json").read_text())["datasets"]["crops"]
    for split in SPLITS:
        count = len(EvalDataset("crops", split, root=root))
        assert entry["split_stats"][split]["count"] == count == metadata.splits[split].count
        assert metadata.split_report["samples"][split] == count
    assert entry["window_size"] == 12


def test_labels_are_counted_in_samples(root: Path) -> None:
    metadata = require_metadata(EvalRoot(root), "crops")
    for split in SPLITS:
        targets = [sample["target"] for sample in EvalDataset("crops", split, root=root)]
        labels = torch.cat([target.flatten() for target in targets])
        counts = torch.bincount(labels[labels >= 0], minlength=2).tolist()
        assert metadata.split_report["class_counts"][split] == counts
        labelled = sum(bool((target >= 0).any()) for target in targets)
        assert metadata.split_report["labelled_samples"][split] == labelled


def test_label_fractions_are_of_samples(ragged: Path, tmp_path: Path) -> None:
    ingest(ragged, tmp_path, all_crops=["train"], label_fractions={"few": 0.25})
    whole = EvalDataset("crops", "train", root=tmp_path)
    few = EvalDataset("crops", "train", root=tmp_path, label_fraction="few")
    chosen = torch.randperm(len(whole), generator=torch.Generator().manual_seed(42))
    assert len(few) == len(whole) // 4
    for i in range(len(few)):
        assert torch.equal(few[i]["target"], whole[int(chosen[i])]["target"])
    assert len(EvalDataset("crops", "val", root=tmp_path)) == 2  # a window each again


@pytest.mark.parametrize("strategy", ["random", "spatial", "stratified"])
def test_splits_stay_splits_of_windows(strategy: str, ragged: Path, tmp_path: Path) -> None:
    found = []
    for name, crops in (("none", ["none"]), ("all", ["train", "val", "test"])):
        splits = {"strategy": strategy, "ratios": [50, 25, 25], "block_size_m": 700}
        pipeline.ingest(
            make_job(ragged, tmp_path, name, all_crops=crops, splits=splits, crop_size=12)
        )
        split_of = {}
        for split in SPLITS:
            dataset = EvalDataset(name, split, root=tmp_path)
            split_of |= {dataset.window(i): split for i in range(len(dataset))}
        found.append(split_of)
    if strategy != "stratified":  # which goes by the classes of the samples
        assert found[0] == found[1]
    assert len(found[0]) == len(found[1]) == 16


def test_crops_that_are_no_squares_are_rslearns_from_source_to_sweep(
    copied: Callable[[str], Path], tmp_path: Path
) -> None:
    """rslearn says width, then height."""
    source, root = copied("ragged_segmentation"), tmp_path / "root"
    wide = {"load_all_crops": True, "crop_size": [16, 8], "overlap_pixels": 3}
    model = with_crops(
        source, train_config={"crop_size": [8, 12]}, val_config=wide, test_config=wide
    )
    metadata = ingest(source, root)
    for split in ("val", "test"):
        for path in (model, root / "crops" / "model.yaml"):
            dataset = compare_split(root, path, split, "Map")
        assert {tuple(sample["target"].shape) for sample in dataset} == {(8, 16)}
        assert metadata.splits[split].count == len(dataset)
        embedded = embed_split(EvalDataset("crops", split, root=root), Pixels(4), tmp_path)
        assert len(embedded.target) == len(dataset) * 2 * 4
    train = EvalDataset("crops", "train", root=root, normalize=None)
    [(key, pixels)] = (
        EvalDataset("crops", "train", root=root, normalize=None, crop=None).shape().items()
    )
    assert train.shape()[key] == (12, 8, *pixels[2:])
    whole = EvalDataset("crops", "train", root=root, normalize=None, crop=None)[0]
    top, left = ((side - kept + 1) // 2 for side, kept in zip(pixels, (12, 8), strict=False))
    middle = whole["target"][top : top + 12, left : left + 8]
    assert torch.equal(train[0]["target"], middle)
    assert next(train.batches(2))[key].shape[1:3] == (12, 8)
    assert json.loads((root / "registry.json").read_text())["datasets"]["crops"]["window_size"] == 8


def test_crops_beyond_a_small_window_equal_those_of_rslearn(
    copied: Callable[[str], Path], tmp_path: Path
) -> None:
    """Zeros beyond the window, and no label."""
    source = copied("ragged_segmentation")
    crops = {"load_all_crops": True, "crop_size": 26}
    model = with_crops(source, default_config=crops)
    root = tmp_path / "root"
    ingest(source, root)
    for split in SPLITS:
        compare_split(root, model, split, "InMemory")
        compare_split(root, root / "crops" / "model.yaml", split, "InMemory")
        assert {s["target"].shape for s in EvalDataset("crops", split, root=root)} == {(26, 26)}


def test_a_pad_comes_after_the_crop(copied: Callable[[str], Path], tmp_path: Path) -> None:
    source = copied("ragged_segmentation")
    images = ["sentinel2_l2a", "target/classes", "target/valid"]
    for size in (4, 15):
        pad = class_at(
            "rslearn.train.transforms.pad.Pad", size=size, mode="center", image_selectors=images
        )
        model = with_crops(source, default_config=OVERLAP | {"transforms": [pad]})
        root = tmp_path / f"root_{size}"
        ingest(source, root)
        for split in SPLITS:
            compare_split(root, model, split, "InMemory")
            compare_split(root, root / "crops" / "model.yaml", split, "Map")


def test_the_crops_of_a_labelled_window_have_the_features_that_reach_into_them(
    copied: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[str] = Counter()
    select = StoredTable.select

    def counted(self: StoredTable, names: Sequence[str]) -> StoredTable:
        read.update(names)
        return select(self, names)

    monkeypatch.setattr(StoredTable, "select", counted)
    source = copied("vector_classification")
    labels = sorted((source / "windows").glob("*/*/layers/label/data.geojson"))
    for number, path in enumerate(labels):
        collection = json.loads(path.read_text())
        for feature in collection["features"]:
            [ring] = feature["geometry"]["coordinates"]
            x0, x1 = min(x for x, _ in ring), max(x for x, _ in ring)
            middle = x0 + (x1 - x0) * (0.3 if number % 2 else 1)
            feature["geometry"]["coordinates"] = [[[min(x, middle), y] for x, y in ring]]
        path.write_text(json.dumps(collection))
    crops = {"load_all_crops": True, "crop_size": 3, "overlap_pixels": 1}
    model = with_crops(source, default_config=crops)
    allow_invalid(model)
    root = tmp_path / "root"
    metadata = ingest(source, root)
    for split in SPLITS:
        dataset = compare_split(root, model, split, "InMemory")
        targets = torch.stack([sample["target"] for sample in dataset])
        assert (targets == -1).any() and (targets >= 0).any()
        counts = torch.bincount(targets[targets >= 0], minlength=dataset.task.num_classes)
        assert metadata.split_report["class_counts"][split] == counts.tolist()
    assert read["label.crop_targets"] == len(SPLITS) < len(labels)  # not once for each window


def allow_invalid(model: Path) -> None:
    content = yaml.safe_load(model.read_text())
    [task] = content["data"]["init_args"]["task"]["init_args"]["tasks"].values()
    task["init_args"]["allow_invalid"] = True
    model.write_text(yaml.safe_dump(content))


def test_a_sweep_scores_every_crop_and_draws_windows(root: Path, tmp_path: Path) -> None:
    dataset = EvalDataset("crops", "val", root=root, modalities=["sentinel2_l2a"])
    embedded = embed_split(dataset, Pixels(4), tmp_path)
    assert len(embedded) == len(dataset)
    windows = [dataset.window(i) for i in range(len(dataset))]
    assert embedded.windows is not None
    assert len(set(embedded.windows.tolist())) == len(set(windows))
    rows = Rows.of(embedded)
    for i, sample in enumerate(dataset):
        patches = embedded.target[rows.first[i] : rows.first[i] + rows.count[i]]
        found = torch.from_numpy(patches).reshape(3, 3, 4, 4).swapaxes(1, 2).reshape(12, 12)
        assert torch.equal(found.long(), sample["target"])
    assert rows.labelled().windows.max() + 1 == len(set(windows))


def test_verify_reads_every_window_of_crops_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(root))
    assert cli.main(["verify", "--name", "crops"]) == 0


def test_a_crop_without_labels_is_told_with_the_flag_that_helps(
    copied: Callable[[str], Path], tmp_path: Path
) -> None:
    source = copied("class_mapping")
    for path in (source / "windows").glob("*/*/layers/label_raster/*/geotiff.tif"):
        with rasterio.open(path, "r+") as raster:
            label = raster.read()
            label[:, 2:, 2:] = 0  # which is mapped to the class that marks missing labels
            raster.write(label)
    metadata = ingest(source, tmp_path)
    [finding] = [f for f in metadata.quality["findings"] if f["code"] == "crop_unlabelled"][:1]
    assert finding["severity"] == "error" and "--all-crops train" in finding["text"]
    assert metadata.quality["verdict"] == "poor"
    helped = ingest(source, tmp_path / "helped", all_crops=list(SPLITS))
    assert all(count > 0 for count in helped.split_report["labelled_samples"].values())
