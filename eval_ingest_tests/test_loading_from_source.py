"""`copy: index`: no sample is written, and each is what an ingest would have packed."""

import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from eval_ingest import EvalDataset, cli, pipeline
from eval_ingest.core.spec import SPLITS
from eval_ingest.engine import no_progress
from eval_ingest.errors import IntegrityError, LoadError, SpecError, StoreError
from eval_ingest.job import Job
from eval_ingest.report.export import export_dataset
from eval_ingest.report.writing import write_report
from eval_ingest.store.registry import read_registry
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.sweep.tasks import trainer_tasks
from eval_ingest.verifying import verify_dataset
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support.factories import CASES
from eval_ingest_tests.support.servers import ObjectServer, gcs_server

Ingested = Callable[[str], Path]
Written = Callable[[str], Path]


def ingest_index(source: Path | str, root: Path, name: str = "crops") -> EvalRoot:
    pipeline.ingest(make_job(Path(source), root, name, copy="index", max_invalid_fraction=0.5))
    return EvalRoot(root)


def assert_equal(found: EvalDataset, expected: EvalDataset) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one["window"] == other["window"]
        for name in found.bands:
            assert torch.equal(one[name], other[name])
            assert torch.equal(one["timestamps"][name], other["timestamps"][name])
        np.testing.assert_array_equal(one["target"].numpy(), other["target"].numpy())


@pytest.mark.parametrize("case", CASES)
def test_samples_equal_the_packed_ones(
    case: str, written: Written, ingested: Ingested, tmp_path: Path
) -> None:
    ingest_index(written(case), tmp_path, case)
    packed = ingested(case)
    for split in SPLITS:
        for how in ({"normalize": None, "crop": None}, {}):
            found = EvalDataset(case, split, root=tmp_path, **how)
            expected = EvalDataset(case, split, root=packed, **how)
            assert_equal(found, expected)
            for batch, other in zip(found.batches(4), expected.batches(4), strict=True):
                assert batch["window"] == other["window"]
                for name in found.bands:
                    assert torch.equal(batch[name], other[name])


@pytest.fixture
def root(small: Path, tmp_path: Path) -> EvalRoot:
    """The small dataset, copied to tmp_path / source and ingested from there."""
    shutil.copytree(small, tmp_path / "source")
    return ingest_index(tmp_path / "source", tmp_path / "root")


def test_no_sample_is_written(root: EvalRoot, reference: Path) -> None:
    layout = root.dataset("crops").layout
    assert not layout.samples.exists() and not layout.windows.exists()
    assert not any(outcome.ran for outcome in pipeline.ingest(_again(root)))
    entry = read_registry(root)["crops"]
    assert (entry["copy"], entry["weka_path"]) == ("index", str(layout.path))
    packed = read_registry(EvalRoot(reference))["crops"]
    assert entry["norm_stats"] == packed["norm_stats"]
    assert "no rslearn copy" in trainer_tasks(root).left_out["crops"]


def _again(root: EvalRoot) -> Job:
    source = root.path.parent / "source"
    return make_job(source, root.path, copy="index", max_invalid_fraction=0.5)


def test_it_travels_to_the_workers_of_a_loader(root: EvalRoot, reference: Path) -> None:
    dataset = EvalDataset("crops", "train", root=root.path)
    expected = EvalDataset("crops", "train", root=reference)
    assert_equal(pickle.loads(pickle.dumps(dataset)), expected)
    loader = dataset.loader(batch_size=3, num_workers=1, shuffle=False)
    batches = list(loader)
    whole = list(expected.batches(3))
    assert [b["window"] for b in batches] == [b["window"] for b in whole]
    for batch, other in zip(batches, whole, strict=True):
        assert torch.equal(batch["sentinel2_l2a"], other["sentinel2_l2a"])
    assert dataset.loader().num_workers > 0
    assert "decoded from the source" in dataset.loader().why


def test_a_report_is_drawn_from_the_source(root: EvalRoot) -> None:
    paths = write_report(root, "crops")
    assert any(path.name == "report.html" for path in paths)


def test_verify_compares_the_source(root: EvalRoot, tmp_path: Path) -> None:
    found = verify_dataset(root, "crops", no_progress)
    assert found.problems == [] and "10 windows of" in found.checked
    window = _window(tmp_path)
    (window / "metadata.json").touch()
    gone = _window(tmp_path, 1)
    shutil.rmtree(gone)
    problems = verify_dataset(root, "crops", no_progress).problems
    assert sorted(problems) == sorted(
        [
            f"{window.parent.name}/{window.name} has changed since it was indexed",
            f"{gone.parent.name}/{gone.name} is not in the source any more",
        ]
    )
    shutil.rmtree(tmp_path / "source")
    (problem,) = verify_dataset(root, "crops", no_progress).problems
    assert "does not exist" in problem


def _window(tmp_path: Path, k: int = 0) -> Path:
    windows = (tmp_path / "source" / "windows").glob("*/*")
    return sorted(windows, key=lambda path: path.name)[k]


def test_a_changed_window_is_told_and_a_new_ingest_takes_it(root: EvalRoot, tmp_path: Path) -> None:
    (_window(tmp_path) / "metadata.json").touch()
    with pytest.raises(IntegrityError, match=r"window \S+ has changed since it was indexed; run"):
        _read_all(root)
    shutil.rmtree(_window(tmp_path, 1))
    with pytest.raises(IntegrityError, match=r"has changed|is not there any more"):
        _read_all(root)
    pipeline.ingest(_again(root))
    assert _read_all(root) == 9


def _read_all(root: EvalRoot) -> int:
    return sum(len(list(EvalDataset("crops", split, root=root.path))) for split in SPLITS)


def test_a_moved_source_is_told(root: EvalRoot, tmp_path: Path) -> None:
    (tmp_path / "source").rename(tmp_path / "elsewhere")
    dataset = EvalDataset("crops", "train", root=root.path)  # opening looks at nothing
    with pytest.raises(LoadError, match=r"copy: index, so its samples are read from .*does not"):
        dataset[0]


def test_there_is_nothing_to_export(root: EvalRoot, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="--copy stream first"):
        export_dataset(root, "crops", tmp_path / "out")


def test_an_archive_can_not_be_read_from(small: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "crops"), "tar", small)
    with pytest.raises(SpecError, match="is an archive; unpack it"):
        make_job(Path(archive), tmp_path / "root", copy="index")


def test_from_windows_to_index_and_back(small: Path, tmp_path: Path, reference: Path) -> None:
    pipeline.ingest(make_job(small, tmp_path))
    layout = EvalRoot(tmp_path).dataset("crops").layout
    copied = {path.name for path in layout.path.iterdir()}
    assert "windows" in copied
    outcomes = pipeline.ingest(make_job(small, tmp_path, copy="index"))
    assert [o.stage for o in outcomes if o.ran] == ["weka_copy", "registry_entry"]
    left = {path.name for path in layout.path.iterdir()}
    # Samples stay for an hour, for readers of the old version.
    assert copied - left == {
        "windows", "copy_manifest.parquet", "config.json", "model.yaml", "model.original.yaml",
        "olmoearth_run.yaml", ".rslearn_dataset_index",
    }  # fmt: skip
    for split in SPLITS:
        found = EvalDataset("crops", split, root=tmp_path)
        assert_equal(found, EvalDataset("crops", split, root=reference))
    pipeline.ingest(make_job(small, tmp_path))
    assert {path.name for path in layout.path.iterdir()} == copied | {layout.retired.name}
    assert verify_dataset(EvalRoot(tmp_path), "crops", no_progress).problems == []


@pytest.fixture(scope="module")
def gcs(small: Path) -> Iterator[ObjectServer]:
    with gcs_server() as server, pytest.MonkeyPatch.context() as patch:
        for key, value in server.environment.items():
            patch.setenv(key, value)
        server.upload(small, "data/crops")
        yield server


def test_a_bucket_is_read_from(gcs: ObjectServer, tmp_path: Path, reference: Path) -> None:
    job = make_job(f"{gcs.url}/data/crops", tmp_path, copy="index")  # type: ignore[arg-type]
    pipeline.ingest(job)
    for split in SPLITS:
        found = EvalDataset("crops", split, root=tmp_path, normalize=None)
        assert_equal(found, EvalDataset("crops", split, root=reference, normalize=None))
    assert not (tmp_path / "crops" / ".staging").exists()


def test_the_command_line_shows_it(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(tmp_path / "root"))
    source = ["--name", "crops", "--source", str(small), "--copy", "index"]
    assert cli.main(["ingest", *source]) == 0
    assert "nothing copied: samples are read from the source" in capsys.readouterr().out
    assert cli.main(["info", "--name", "crops"]) == 0
    assert f"{small}: samples are read from there" in capsys.readouterr().out
    assert cli.main(["verify", "--name", "crops"]) == 0
