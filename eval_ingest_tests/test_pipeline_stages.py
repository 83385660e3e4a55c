"""Stages that are run one by one belong together, or are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from eval_ingest import EvalDataset, pipeline
from eval_ingest.core.spec import SPLITS, DatasetSpec
from eval_ingest.engine import no_progress
from eval_ingest.errors import StaleStageError
from eval_ingest.job import open_job
from eval_ingest.report.view import open_view
from eval_ingest.settings import Settings
from eval_ingest.store.index_file import read_splits, write_splits
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.verifying import verify_dataset
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support import factories

STAGES = pipeline.STAGES


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return factories.segmentation(tmp_path / "source", windows=10, timesteps=2)


def run(source: Path, root: Path, *stages: str, **spec: Any) -> None:
    """Each stage by a job of its own, as Dagster runs them."""
    for stage in stages:
        pipeline.run_stage(make_job(source, root, **spec), stage)


def edit_model(source: Path, old: str, new: str) -> None:
    path = source / "model.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def window_of(source: Path, k: int) -> Path:
    return sorted(path.parent for path in source.glob("windows/*/*/metadata.json"))[k]


def test_an_index_that_ran_again_takes_no_splits_of_the_old_one(
    source: Path, tmp_path: Path
) -> None:
    root, away = tmp_path / "root", tmp_path / "away"
    window_of(source, 0).rename(away)
    run(source, root, "window_index", "split_assignment")
    away.rename(window_of(source, 0).parent / "a_new_one")
    run(source, root, "window_index")
    for stage in ("norm_stats", "weka_copy"):
        with pytest.raises(
            StaleStageError,
            match=r"crops: the outcome of split_assignment is out of date: .*; run: eval-ingest "
            "ingest crops, or dagster asset materialize --select split_assignment "
            "--partition crops",
        ):
            run(source, root, stage)
    run(source, root, *STAGES[1:])
    assert verify_dataset(EvalRoot(root), "crops", no_progress).problems == []


@pytest.mark.parametrize(
    ("again", "stale"),
    [
        (("window_index", "split_assignment", "norm_stats"), "weka_copy"),
        (("window_index", "split_assignment", "weka_copy"), "norm_stats"),
    ],
)
def test_what_is_published_is_of_one_version(
    source: Path, tmp_path: Path, again: tuple[str, ...], stale: str
) -> None:
    root = tmp_path / "root"
    run(source, root, *STAGES)
    published = (root / "crops" / "metadata.json").read_bytes()
    (window_of(source, 0) / "metadata.json").unlink()
    run(source, root, *again, max_invalid_fraction=0.5)
    with pytest.raises(StaleStageError, match=f"the outcome of {stale} is out of date"):
        run(source, root, "registry_entry", max_invalid_fraction=0.5)
    assert (root / "crops" / "metadata.json").read_bytes() == published
    with pytest.raises(StaleStageError, match="window_index has run again since"):
        open_view(EvalRoot(root), "crops")


def test_a_configuration_that_is_edited_between_two_stages_is_of_the_next_index(
    source: Path, tmp_path: Path
) -> None:
    whole, root = tmp_path / "whole", tmp_path / "root"
    few = {"max_samples": 8}  # so that samples are packed by the copy stage, not by the index
    run(source, whole, *STAGES, **few)
    run(source, root, "window_index", "split_assignment", **few)
    original = (source / "model.yaml").read_text()
    edit_model(source, "zero_is_invalid: true", "zero_is_invalid: false")
    run(source, root, "norm_stats", "weka_copy", "registry_entry", **few)
    assert targets(root) == targets(whole)
    assert (root / "crops" / "model.original.yaml").read_text() == original
    run(source, root, *STAGES, **few)
    assert targets(root) != targets(whole)
    assert verify_dataset(EvalRoot(root), "crops", no_progress).problems == []


def targets(root: Path) -> dict[str, list[object]]:
    return {
        sample["window"]: sample["target"].tolist()
        for split in SPLITS
        for sample in EvalDataset("crops", split, root=root, crop=None)
    }


def test_a_configuration_that_breaks_between_two_stages_is_not_read(
    source: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    run(source, root, "window_index")
    for name in ("model.yaml", "config.json"):
        (source / name).write_text("{")
    spec = DatasetSpec.parse({"name": "crops", "source": str(source)}, "test")
    for stage in STAGES[1:]:
        job = open_job(spec, Settings.load(), root=root, indexed=True)
        pipeline.run_stage(job, stage)
    assert len(EvalDataset("crops", "train", root=root)) > 0


def test_a_spec_that_asks_for_other_windows_needs_another_index(
    source: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    run(source, root, "window_index", "split_assignment")
    with pytest.raises(StaleStageError, match=r"the outcome of window_index .* spec's crop_size"):
        run(source, root, "norm_stats", crop_size=16)
    with pytest.raises(StaleStageError, match=r"the outcome of split_assignment is out of date"):
        run(source, root, "norm_stats", splits={"strategy": "random", "seed": 9})


def test_splits_are_joined_by_window_and_not_by_row(source: Path, tmp_path: Path) -> None:
    whole, root = tmp_path / "whole", tmp_path / "root"
    run(source, whole, *STAGES)
    run(source, root, "window_index", "split_assignment")
    path = root / "crops" / "split_assignment.parquet"
    splits = read_splits(path)
    assert splits is not None
    order = pa.array(np.random.default_rng(0).permutation(splits.table.num_rows))
    write_splits(path, type(splits)(splits.table.take(order), splits.fingerprint, splits.report))
    run(source, root, "norm_stats", "weka_copy", "registry_entry")
    for split in SPLITS:
        ours, theirs = (EvalDataset("crops", split, root=r) for r in (root, whole))
        assert [s["window"] for s in ours] == [s["window"] for s in theirs]
    stats = [
        json.loads((r / "crops" / "norm_stats.json").read_text())["stats"] for r in (root, whole)
    ]
    assert stats[0] == stats[1]
