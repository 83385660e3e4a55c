"""Worker processes that end while they read a window: by the window, or by something else."""

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval_ingest import engine, pipeline
from eval_ingest.core.entry import CopyResult
from eval_ingest.core.index import WindowIndex
from eval_ingest.errors import EngineError
from eval_ingest.indexing import apart
from eval_ingest.job import open_job
from eval_ingest.settings import Settings
from eval_ingest.sources.base import SourceFile, WindowFiles
from eval_ingest.sources.listing import Had
from eval_ingest.sources.local import LocalSource
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support.deadly import deadly


@pytest.fixture
def index(small: Path, tmp_path: Path) -> Callable[..., WindowIndex]:
    """Indexes the small dataset with two processes, of which windows by these names end some."""
    (tmp_path / "killed").mkdir()

    def run(names: set[str], times: int | None = None, **options: Any) -> WindowIndex:
        job = make_job(small, tmp_path / "root", max_invalid_fraction=0.5)
        settings = Settings(eval_root=str(tmp_path / "root"), workers=2, engine="processes")
        with deadly(tmp_path / "killed", names, times, **options):
            return pipeline.window_index(open_job(job.spec, settings))

    return run


def no_memory(_: object) -> None:
    raise MemoryError


def test_a_lack_of_memory_without_a_limit_is_the_machines() -> None:
    with pytest.raises(MemoryError):
        apart._alone(no_memory, None, None)
    assert apart._alone(no_memory, None, 7) == 7


def values(index: WindowIndex, without: str = "") -> list[dict[str, Any]]:
    return [row for row in index.table.to_pylist() if row["name"] != without]


@pytest.fixture(scope="module")
def sound(small: Path, tmp_path_factory: pytest.TempPathFactory) -> WindowIndex:
    return pipeline.window_index(make_job(small, tmp_path_factory.mktemp("sound")))


def names_of(index: WindowIndex) -> list[str]:
    return list(index.table["name"].to_pylist())


def test_a_window_that_ends_its_process_is_invalid_and_no_other_is(
    index: Callable[..., WindowIndex], sound: WindowIndex
) -> None:
    name = names_of(sound)[4]
    found = index({name})
    assert found.summary.reasons == {"window_crashes": 1}
    (row,) = [row for row in values(found) if row["name"] == name]
    assert row["problems"][0]["code"] == "window_crashes" and row["judged_by"]
    assert values(found, name) == values(sound, name)


@pytest.mark.parametrize("times", [1, 2])
def test_workers_that_something_else_ends_lose_nothing(
    index: Callable[..., WindowIndex], sound: WindowIndex, times: int, tmp_path: Path
) -> None:
    found = index({names_of(sound)[4]}, times=times)
    assert len(list((tmp_path / "killed").iterdir())) == times
    assert found.summary.reasons == {}
    assert values(found) == values(sound)


def test_a_machine_that_ends_every_process_stops_the_run_with_its_cure(
    index: Callable[..., WindowIndex], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(apart, "IN_A_ROW", 2)
    with pytest.raises(EngineError, match=r"a worker process ended.*EVAL_INGEST_WORKERS"):
        index(set(), by=[signal.SIGSEGV])
    assert len(list((tmp_path / "killed").iterdir())) < 40


@pytest.mark.parametrize(
    ("counted", "why"), [(1, "as memory ran out: so says Linux"), (0, "most often by lack of mem")]
)
def test_a_window_for_which_the_machine_has_no_memory_is_no_invalid_window(
    counted: int,
    why: str,
    index: Callable[..., WindowIndex],
    sound: WindowIndex,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    name, killed = names_of(sound)[4], tmp_path / "killed"
    counters = tmp_path / "memory.events"
    counters.write_text("low 0\noom 4\noom_kill 2\noom_group_kill 0\n")

    def counted_kills() -> int:
        n_kills = 2 + counted * len(list(killed.iterdir()))
        counters.write_text(f"low 0\noom 4\noom_kill {n_kills}\noom_group_kill 9\n")
        return kills()

    kills = engine.oom_kills
    monkeypatch.setattr(engine, "_COUNTERS", (str(counters),))
    monkeypatch.setattr(engine, "oom_kills", counted_kills)
    with pytest.raises(EngineError, match=f"{name} alone was killed 3 times, {why}.*WINDOW_MIB"):
        index({name}, by=[signal.SIGKILL])
    assert values(index({name}, times=0)) == values(sound)  # nothing was kept against it


# ------------------------------------------------------------------------------------- copying


class DeadlyRead(LocalSource):
    """A folder; reading one window ends the process, always or so many times."""

    name = ""
    times = 0
    folder = Path()

    def fetch(self, files: WindowFiles, wanted: Sequence[SourceFile]) -> dict[str, Had]:
        killed = len(list(self.folder.iterdir()))
        if files.name == self.name and killed < self.times:
            (self.folder / f"{killed}-{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().fetch(files, wanted)


@pytest.fixture
def copying(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, int], CopyResult]:
    """Copies the small dataset with two processes; reading one window ends some.

    Nothing was copied while it was indexed, as it is where a disk is quick.
    """
    (tmp_path / "killed").mkdir()
    monkeypatch.setattr(pipeline, "copying_ahead", lambda job, **_: None)
    monkeypatch.setattr("eval_ingest.copying.transfer._TASK_WINDOWS", 3)

    def run(name: str, times: int) -> CopyResult:
        job = make_job(small, tmp_path / "root")
        index = pipeline.run_stage(job, "window_index").value
        splits = pipeline.run_stage(job, "split_assignment").value
        source = DeadlyRead(str(small))
        for attribute, value in (("name", name), ("times", times), ("folder", tmp_path / "killed")):
            object.__setattr__(source, attribute, value)
        settings = Settings(eval_root=str(tmp_path / "root"), workers=2, engine="processes")
        with pipeline.dataset_lock(job):
            return pipeline.weka_copy(replace(job, source=source, settings=settings), index, splits)

    return run


@pytest.mark.parametrize("times", [1, 2])
def test_a_copy_that_loses_workers_goes_on(
    copying: Callable[[str, int], CopyResult], sound: WindowIndex, times: int, tmp_path: Path
) -> None:
    copied = copying(names_of(sound)[4], times)
    assert copied.n_copied == sum(found.count for found in copied.splits.values()) > 4
    assert len(list((tmp_path / "killed").iterdir())) == times


def test_a_window_that_ends_every_process_that_copies_it_is_named(
    copying: Callable[[str, int], CopyResult], sound: WindowIndex
) -> None:
    name = names_of(sound)[4]
    with pytest.raises(EngineError, match=rf"{name} alone was killed 3 times.*run again"):
        copying(name, 1000)
