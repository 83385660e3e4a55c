"""Windows are copied while they are indexed, and get their splits and places later."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval_ingest import pipeline
from eval_ingest import waiting as ahead
from eval_ingest.engine import no_progress
from eval_ingest.sources.local import LocalSource
from eval_ingest.store.ahead import WindowsAhead
from eval_ingest.store.manifest import CopiedWindow, Manifest
from eval_ingest.store.paths import DatasetLayout
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.verifying import verify_dataset
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support import factories
from eval_ingest_tests.support.comparing import published

STAGES = pipeline.STAGES


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return factories.segmentation(tmp_path / "source", windows=10, timesteps=2)


@pytest.fixture
def expected(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, bytes], dict[Any, CopiedWindow]]:
    """What there is, and is noted, where each window is copied when its split is known."""
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "copying_ahead", lambda job, **_: None)
        run(source, tmp_path / "plain", *STAGES)
    return found(tmp_path / "plain")


def run(source: Path, root: Path, *stages: str, **spec: Any) -> None:
    for stage in stages:
        pipeline.run_stage(make_job(source, root, **spec), stage)


def found(root: Path) -> tuple[dict[str, bytes], dict[Any, CopiedWindow]]:
    assert verify_dataset(EvalRoot(root), "crops", no_progress).problems == []
    assert not layout(root).ahead.exists()
    return published(root), Manifest(layout(root)).windows


def layout(root: Path) -> DatasetLayout:
    return EvalRoot(root).dataset("crops").layout


def folders(root: Path) -> list[Path]:
    return sorted(path for path in layout(root).ahead.iterdir() if path.is_dir())


def test_a_file_of_a_folder_is_read_once_and_the_copy_is_the_same(
    source: Path,
    tmp_path: Path,
    expected: tuple[dict[str, bytes], dict[Any, CopiedWindow]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []
    fetch = LocalSource.fetch

    def counted(self: LocalSource, files: Any, wanted: Any) -> Any:
        read.extend(f"{files.key}/{file.path}" for file in wanted)
        return fetch(self, files, wanted)

    monkeypatch.setattr(LocalSource, "fetch", counted)
    run(source, tmp_path / "root", *STAGES)
    assert found(tmp_path / "root") == expected
    first = read[0].split("/")[:2]  # its shape is looked for before all others are read
    others = [path for path in read if path.split("/")[:2] != first]
    assert len(others) == len(set(others))
    assert len(set(read)) == sum(window.n_files for window in expected[1].values())


def keep_one(ahead: Path) -> None:
    for place in sorted(ahead.glob("*/metadata.json"))[1:]:
        shutil.rmtree(place.parent)


def tear_journal(ahead: Path) -> None:
    journal = ahead / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])


def damage_journal(ahead: Path) -> None:
    journal = ahead / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b'"n_files": ', b'"n_files": 1'))


@pytest.mark.parametrize("loss", [shutil.rmtree, keep_one, tear_journal, damage_journal])
def test_what_is_lost_between_two_stages_is_copied_when_its_split_is_known(
    source: Path,
    tmp_path: Path,
    expected: tuple[dict[str, bytes], dict[Any, CopiedWindow]],
    loss: Callable[[Path], object],
) -> None:
    root = tmp_path / "root"
    run(source, root, *STAGES[:3])
    assert len(folders(root)) == 10
    loss(layout(root).ahead)
    run(source, root, *STAGES[3:])
    assert found(root) == expected


@pytest.mark.parametrize("at", ["write_checked", "rewrite_split"])
def test_a_run_that_is_stopped_at_a_window_goes_on_to_the_same_copy(
    source: Path,
    tmp_path: Path,
    expected: tuple[dict[str, bytes], dict[Any, CopiedWindow]],
    monkeypatch: pytest.MonkeyPatch,
    at: str,
) -> None:
    from eval_ingest.store import ahead as written

    root, calls, call = tmp_path / "root", [], getattr(written, at)

    def stopped(*args: Any) -> Any:
        calls.append(args)
        done = call(*args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patched:
        patched.setattr(written, at, stopped)
        with pytest.raises(KeyboardInterrupt):
            run(source, root, *STAGES)
    if at == "write_checked":
        assert list(layout(root).ahead.glob("*.part"))
    run(source, root, *STAGES)
    assert found(root) == expected


def test_a_window_that_changes_after_it_was_indexed_is_copied_as_it_was(
    source: Path, tmp_path: Path, expected: tuple[dict[str, bytes], dict[Any, CopiedWindow]]
) -> None:
    root = tmp_path / "root"
    run(source, root, "window_index")
    factories.raster_of(factories.first_window(source)).write_bytes(b"another")
    run(source, root, *STAGES[1:])
    assert found(root) == expected


def test_windows_of_no_split_and_of_other_copies_leave_nothing(
    source: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    run(source, root, "window_index")
    assert folders(root)
    run(source, root, *STAGES, copy="stream")
    assert not layout(root).ahead.exists() and not layout(root).windows.exists()


def test_windows_are_not_copied_ahead_where_some_are_in_place(source: Path, tmp_path: Path) -> None:
    root, first = tmp_path / "root", factories.first_window(source)
    run(source, root, *STAGES)
    shutil.copytree(first, first.parent / "a_new_one")
    run(source, root, "window_index")
    assert not layout(root).ahead.exists()
    run(source, root, *STAGES[1:])
    assert len(found(root)[1]) == 11


def test_a_disk_that_keeps_waiting_gets_many_windows_at_once(
    source: Path,
    tmp_path: Path,
    expected: tuple[dict[str, bytes], dict[Any, CopiedWindow]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for waiting in (ahead.SOURCES, ahead.COPIES):
        monkeypatch.setattr(waiting, "is_long", True)
    run(source, tmp_path / "root", *STAGES)
    assert found(tmp_path / "root") == expected


def test_the_same_bytes_are_written_once_by_a_worker_that_was_lost(tmp_path: Path) -> None:
    from eval_ingest.store.window_files import Content

    windows = WindowsAhead(tmp_path / "ahead")
    files = [Content("layers/a/x", lambda: b"1"), Content("metadata.json", lambda: b"{}")]
    once = windows.write("g", "w", "digest", files)
    assert windows.write("g", "w", "digest", files) == once
    windows.note([once])
    windows.note([once])
    assert windows.noted() == {("g", "w"): once}
    assert (once.n_files, once.n_bytes) == (2, len('1{"options": {"eval_split": ""}}'))


def test_what_was_damaged_when_a_worker_was_lost_is_written_again(tmp_path: Path) -> None:
    from eval_ingest.store.window_files import Content, Windows

    windows, copy = WindowsAhead(tmp_path / "ahead"), Windows(tmp_path / "windows")
    files = [Content("layers/a/x", lambda: b"1"), Content("metadata.json", lambda: b"{}")]
    windows.write("g", "w", "digest", files)
    (path,) = (tmp_path / "ahead").rglob("x")
    path.write_bytes(b"2")
    copied = windows.move(windows.write("g", "w", "digest", files), "val", copy)
    assert copied is not None
    ((_, now),) = copy.measured([("g", "w")])
    assert (copied.n_files, copied.n_bytes, copied.checksum) == now
