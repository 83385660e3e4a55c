"""The rslearn copy: rslearn reads it as EvalDataset does, and finds its own index there."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval_ingest import EvalDataset, pipeline
from eval_ingest.copying.verify import verify
from eval_ingest.core.modality import MODALITIES
from eval_ingest.engine import no_progress
from eval_ingest.store.paths import RSLEARN_INDEX
from eval_ingest.testing.datasets import quiet_rslearn
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support.comparing import compare
from eval_ingest_tests.support.factories import CASES
from eval_ingest_tests.support.oracle import rslearn_samples, stand_in_for_wandb

Ingested = Callable[[str], Path]
SPLITS = ("train", "val", "test")
S2 = MODALITIES["sentinel2_l2a"].bands
STAGES = {"train": "fit", "val": "validate", "test": "test"}


def opened(dataset: Path, split: str, index_mode: str = "USE", **split_config: Any) -> Any:
    """rslearn's dataset of a split, from the copy's model.yaml, as the existing eval code does."""
    import jsonargparse
    from rslearn.train.data_module import RslearnDataModule
    from rslearn.utils.jsonargparse import init_jsonargparse

    stand_in_for_wandb()
    init_jsonargparse()
    data = yaml.safe_load((dataset / "model.yaml").read_text())["data"]
    data["init_args"] |= {"path": str(dataset), "index_mode": index_mode}
    data["init_args"][f"{split}_config"] |= split_config
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--data", type=RslearnDataModule)
    with quiet_rslearn():
        module = parser.instantiate_classes(parser.parse_object({"data": data})).data
        module.setup(STAGES[split])
    return module.datasets[split]


def windows_of(model_dataset: Any) -> list[str]:
    return [f"{w.group}/{w.name}" for w in model_dataset.get_dataset_examples()]


def listed(dataset: Path) -> dict[str, Any]:
    """The index files' contents by the split that they are of."""
    found = {}
    for path in sorted((dataset / RSLEARN_INDEX).glob("*.json")):
        content = json.loads(path.read_text())
        (split,) = {w["options"]["eval_split"] for w in content["windows"]}
        found[split] = content | {"path": path}
    return found


@contextmanager
def no_scan(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """rslearn may not read the windows' metadata meanwhile."""
    from rslearn.dataset.storage.file import FileWindowStorage

    def scan(*_: Any, **__: Any) -> None:
        raise AssertionError("rslearn scans the windows")

    with monkeypatch.context() as patch:
        patch.setattr(FileWindowStorage, "get_windows", scan)
        yield


# ---------------------------------------------------------------------------------- model.yaml


@pytest.mark.parametrize("case", CASES)
def test_rslearn_reads_the_copy_as_eval_dataset_does(case: str, ingested: Ingested) -> None:
    """With the copy's own model.yaml: same windows in the same order, same values, same crop."""
    root = ingested(case)
    for split in SPLITS:
        dataset = EvalDataset(case, split, root=root, normalize=None)
        modalities = dataset.metadata.config.modalities
        whole = [m.name for m in modalities if m.name not in dataset.metadata.optional_modalities]
        dataset = EvalDataset(case, split, root=root, normalize=None, modalities=whole)
        expected = list(rslearn_samples(root / case, tags={"eval_split": split}))
        assert [dataset.window(i) for i in range(len(dataset))] == [
            f"{s.group}/{s.name}" for s in expected
        ]
        for i, sample in enumerate(expected):
            compare(dataset, dataset[i], sample)


def test_the_dataset_s_own_model_yaml_is_kept_beside_it(
    ingested: Ingested, written: Callable[[str], Path]
) -> None:
    copy = ingested("segmentation") / "segmentation"
    source = written("segmentation")
    assert (copy / "model.original.yaml").read_text() == (source / "model.yaml").read_text()


def test_a_dataset_without_model_yaml_gets_one(
    copied: Callable[[str], Path], tmp_path: Path
) -> None:
    source = copied("segmentation")
    (source / "model.yaml").unlink()
    pipeline.ingest(make_job(source, tmp_path / "root", "guessed"))
    assert not (tmp_path / "root/guessed/model.original.yaml").exists()
    dataset = EvalDataset("guessed", "train", root=tmp_path / "root")
    assert len(opened(tmp_path / "root/guessed", "train")) == len(dataset) > 0


def test_bands_that_the_dataset_lacks_are_stood_in_for(
    copied: Callable[[str], Path], tmp_path: Path
) -> None:
    """The existing eval code normalises with the statistics of all bands in order."""
    source = copied("class_mapping")
    content = yaml.safe_load((source / "model.yaml").read_text())
    bands = content["data"]["init_args"]["inputs"]["sentinel2_l2a"]["bands"]
    bands.remove("B01")
    bands.remove("B8A")
    (source / "model.yaml").write_text(yaml.safe_dump(content))
    pipeline.ingest(make_job(source, tmp_path / "root", "few"))
    dataset = EvalDataset("few", "val", root=tmp_path / "root", normalize=None)
    found = opened(tmp_path / "root/few", "val")[0][0]["sentinel2_l2a"].image
    ours = dataset[0]["sentinel2_l2a"]
    assert found.shape[0] == 12 and ours.shape[-1] == 10
    entry = json.loads((tmp_path / "root/registry.json").read_text())["datasets"]["few"]
    sources = {missing: present for present, missing in entry["imputes"]}
    assert set(sources) == {"B01", "B8A"}
    assert list(entry["norm_stats"]["sentinel2_l2a"]) == list(S2)
    for place, band in enumerate(S2):
        stored = ours[..., dataset.bands["sentinel2_l2a"].index(sources.get(band, band))]
        assert found[place].permute(1, 2, 0).equal(stored)
        assert (
            entry["norm_stats"]["sentinel2_l2a"][band]
            == (dataset.metadata.norm_stats["sentinel2_l2a"][sources.get(band, band)])
        )


def test_a_modality_that_some_windows_lack_is_not_asked_of_the_others(ingested: Ingested) -> None:
    root = ingested("three_modalities")
    entry = json.loads((root / "registry.json").read_text())["datasets"]["three_modalities"]
    assert entry["modalities"] == ["sentinel2_l2a", "sentinel1"]
    assert entry["optional_modalities"] == ["landsat"]
    assert entry["timesteps"] == {"sentinel2_l2a": [3, 3], "sentinel1": [2, 2], "landsat": [0, 2]}
    assert entry["same_timesteps"] is False
    metadata = EvalDataset("three_modalities", "train", root=root).metadata
    assert any("samples have no landsat" in warning for warning in metadata.warnings)


# --------------------------------------------------------------------------------- the index


@pytest.mark.parametrize("case", CASES)
def test_rslearn_finds_its_index_and_scans_nothing(
    case: str, ingested: Ingested, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = ingested(case)
    for split in SPLITS:
        with no_scan(monkeypatch):
            found = opened(root / case, split)
        dataset = EvalDataset(case, split, root=root)
        assert windows_of(found) == [dataset.window(i) for i in range(len(dataset))]


@pytest.mark.parametrize("case", ["segmentation", "vector_classification"])
def test_the_index_is_what_rslearn_would_write(
    case: str, ingested: Ingested, tmp_path: Path
) -> None:
    shutil.copytree(ingested(case) / case, tmp_path / "copy")
    ours = listed(tmp_path / "copy")
    assert set(ours) == set(SPLITS)
    for split in SPLITS:
        opened(tmp_path / "copy", split, index_mode="REFRESH")
    theirs = listed(tmp_path / "copy")
    for split in SPLITS:
        assert ours[split].pop("created_at") != theirs[split].pop("created_at")
    assert ours == theirs


def test_another_split_rewrites_the_index_and_drops_those_of_others(
    copied: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, root = copied("segmentation"), tmp_path / "root"
    pipeline.ingest(make_job(source, root))
    before = listed(root / "crops")
    # Another key: rslearn scans, and leaves an index of its own, which a new split makes wrong.
    few = opened(root / "crops", "val", num_samples=1)
    assert windows_of(few) == windows_of(opened(root / "crops", "val"))[:1]
    assert len(list((root / "crops" / RSLEARN_INDEX).glob("*.json"))) == 4

    splits = {"strategy": "random", "ratios": [50, 25, 25], "seed": 7}
    pipeline.ingest(make_job(source, root, splits=splits))
    after = listed(root / "crops")
    assert {s: c["path"] for s, c in after.items()} == {s: c["path"] for s, c in before.items()}
    assert len(list((root / "crops" / RSLEARN_INDEX).glob("*.json"))) == 3
    for split in SPLITS:
        assert after[split]["windows"] != before[split]["windows"]
        dataset = EvalDataset("crops", split, root=root)
        with no_scan(monkeypatch):
            found = windows_of(opened(root / "crops", split))
        assert found == [dataset.window(i) for i in range(len(dataset))]


def test_a_removed_index_is_written_again(copied: Callable[[str], Path], tmp_path: Path) -> None:
    job = make_job(copied("segmentation"), tmp_path)
    pipeline.ingest(job)
    next((tmp_path / "crops" / RSLEARN_INDEX).glob("*.json")).unlink()
    outcomes = {o.stage: o.ran for o in pipeline.ingest(job)}
    assert set(listed(tmp_path / "crops")) == set(SPLITS)
    assert not outcomes["window_index"]


def test_verify_finds_an_index_that_is_no_longer_true(
    copied: Callable[[str], Path], tmp_path: Path
) -> None:
    """Such as one that a reader which began before a new split has left after it."""
    source, root = copied("segmentation"), tmp_path / "root"
    job = make_job(source, root)
    pipeline.ingest(job)
    stale = next((root / "crops" / RSLEARN_INDEX).glob("*.json")).read_text()
    splits = {"strategy": "random", "ratios": [50, 25, 25], "seed": 7}
    pipeline.ingest(make_job(source, root, splits=splits))
    metadata = EvalDataset("crops", "train", root=root).metadata
    assert verify(job.store, metadata, no_progress).problems == []
    (root / "crops" / RSLEARN_INDEX / "other.json").write_text(stale)
    (root / "crops" / RSLEARN_INDEX / "torn.json").write_text(stale[:100])
    wrong, damaged = verify(job.store, metadata, no_progress).problems
    assert "other.json" in wrong and "split of the copy, such as" in wrong
    assert damaged.endswith("torn.json is damaged")
    for name in (1, None, ["a"], {"a": 1}):
        odd = {"windows": [{"group": "g", "name": name, "options": {"eval_split": "val"}}]}
        (root / "crops" / RSLEARN_INDEX / "torn.json").write_text(json.dumps(odd))
        assert f"such as g/{name}" in verify(job.store, metadata, no_progress).problems[1]
