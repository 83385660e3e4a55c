"""Reports and exports hold one version of a dataset, or there is none and an error says why."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eval_ingest import pipeline
from eval_ingest.errors import NotIngestedError
from eval_ingest.report.export import export_dataset
from eval_ingest.report.writing import write_report
from eval_ingest.store.roots.base import DatasetStore
from eval_ingest_tests.conftest import make_job

Copied = Callable[[str], Path]
CURE = r"run: eval-ingest ingest crops"


def test_a_report_between_two_versions_is_refused(copied: Copied, tmp_path: Path) -> None:
    source, root = copied("segmentation"), tmp_path / "root"
    job = make_job(source, root)
    pipeline.ingest(job)
    window = next(path for path in (source / "windows").glob("*/*"))
    shutil.rmtree(window)
    pipeline.run_stage(job, "window_index")
    with pytest.raises(NotIngestedError, match=f"window_index has run again.*{CURE}"):
        write_report(job.root, "crops")
    with pytest.raises(NotIngestedError, match=CURE):
        export_dataset(job.root, "crops", tmp_path / "out")
    pipeline.ingest(job)
    assert write_report(job.root, "crops")
    export_dataset(job.root, "crops", tmp_path / "out")


@pytest.mark.parametrize("stop_at", ["split_assignment", "weka_copy", "registry_entry"])
def test_an_export_while_a_resplit_is_under_way_is_refused(
    stop_at: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    pipeline.ingest(make_job(small, root))
    other = make_job(small, root, splits={"strategy": "random", "seed": 7})
    stages = pipeline.STAGES[: pipeline.STAGES.index(stop_at) + 1]
    copy_out = DatasetStore.copy_out

    def resplit_meanwhile(self: DatasetStore, *arguments: Any) -> Iterator[None]:
        for number, done in enumerate(copy_out(self, *arguments)):
            if number == 5:
                pipeline.ingest(other, stages=stages)
            yield done

    monkeypatch.setattr(DatasetStore, "copy_out", resplit_meanwhile)
    with pytest.raises(NotIngestedError, match=r"published anew|has run again|isn't there"):
        export_dataset(other.root, "crops", out)
    assert not (out / "crops").exists()
    monkeypatch.undo()
    pipeline.ingest(other)
    exported = export_dataset(other.root, "crops", out)
    assert (exported / "metadata.json").is_file()
