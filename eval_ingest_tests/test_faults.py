"""Nothing is lost whatever happens: the short form of `make torture`."""

import os
import pickle
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval_ingest import EvalDataset, pipeline
from eval_ingest.errors import SourceError, StoreError
from eval_ingest.indexing.work import IndexTask
from eval_ingest.redaction import spelled
from eval_ingest.store import leftovers, told_apart
from eval_ingest.store.atomic import write_json
from eval_ingest.store.manifest import CopiedWindow, Manifest
from eval_ingest.store.ownership import WRITTEN
from eval_ingest.store.registry import finish_removals, read_registry, rebuild_registry
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.store.seal import write_sealed_json
from eval_ingest.store.shards import ArrayPlan, ShardWriter
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support import faults
from eval_ingest_tests.support.faults import Scenario
from eval_ingest_tests.support.killing import Run, is_running, start, wait_until
from eval_ingest_tests.support.sealed import read_sealed_json

SCENARIOS = (
    "first", "split", "changed", "ragged", "shards", "stream", "remote", "overwrite", "archive",
    "archive packed",
)  # fmt: skip


@pytest.fixture(scope="session")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Scenario]:
    """A prepared scenario of `faults.scenarios`, by name."""
    makers = dict(faults.scenarios(tmp_path_factory.mktemp("scenarios")))
    assert tuple(makers) == SCENARIOS
    made: dict[str, Scenario] = {}

    def get(name: str) -> Scenario:
        if name not in made:
            made[name] = makers[name]()
        return made[name]

    return get


# -------------------------------------------------------------------------------------- killed


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_killed_ingest_goes_on_to_the_same_bytes(
    name: str, scenario: Callable[[str], Scenario]
) -> None:
    case = scenario(name)
    rng = random.Random(name)
    for change in sorted(rng.sample(range(1, case.changes + 1), 5)):
        case.kill_at(change)


def test_all_that_it_started_ends_with_the_process_that_is_killed(
    scenario: Callable[[str], Scenario],
) -> None:
    case = scenario("first").run_by("processes")
    with case.fresh():
        process = start(case.run, case.log)
        assert wait_until(lambda: len(process.workers) == 2)
        started = process.started
        assert set(process.workers) < set(started)  # and the server that forks them
        process.kill()
        assert not any(map(is_running, started))
        case.check_stopped()
        case.check_repeated()


@pytest.mark.parametrize("name", ["first", "archive packed"])
def test_a_killed_worker_is_told_and_the_next_run_completes(
    name: str, scenario: Callable[[str], Scenario]
) -> None:
    case = scenario(name).run_by("processes")
    assert case.kill_worker(0)


def test_samples_packed_before_a_stop_are_not_decoded_again(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(str(small), tmp_path / "root")
    run.stop()
    decoded: list[int] = []
    decode = IndexTask.__call__

    def counted(task: Any, shard: Any) -> Any:
        decoded.extend(place for place, _ in shard)
        return decode(task, shard)

    monkeypatch.setattr("eval_ingest.indexing.work.IndexTask.__call__", counted)
    monkeypatch.setattr("eval_ingest.copying.worker.read_arrays", _not_again)
    run.do()
    assert decoded == list(range(6, 10))


def _not_again(*_: object) -> None:
    raise AssertionError("decoded again")


def test_a_torn_line_of_the_journal_hides_none_that_follow(tmp_path: Path) -> None:
    layout = EvalRoot(tmp_path).dataset("crops").layout
    windows = [CopiedWindow("g", f"w{k}", "d", "train", 1, 1, "0") for k in range(4)]
    manifest = Manifest(layout)
    manifest.add(windows[:2])
    journal = next(layout.path.glob("*journal*"))
    journal.write_bytes(journal.read_bytes()[:-10])
    again = Manifest(layout)
    assert list(again.windows) == [("g", "w0")]
    again.add(windows[2:])
    again.forget([("g", "w0")])
    assert list(Manifest(layout).windows) == [("g", "w2"), ("g", "w3")]


def test_a_split_that_was_half_changed_is_not_trusted(small: Path, tmp_path: Path) -> None:
    run = Run(str(small), tmp_path)
    run.do()
    expected = faults.snapshot(tmp_path)

    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("eval_ingest.store.window_files.with_metadata", fails)
        replace(run, spec={"splits": {"strategy": "random", "seed": 5}}).do()
    run.do()
    assert faults.verified(tmp_path) == []
    copies = {p: d for p, d in faults.snapshot(tmp_path).items() if "/windows/" in p}
    assert copies == {p: d for p, d in expected.items() if "/windows/" in p}


# ---------------------------------------------------------------------------------- at once


def test_eight_ingests_at_once_lose_no_entry(small: Path, tmp_path: Path) -> None:
    faults.many_at_once(small, tmp_path)


def test_two_ingests_of_one_dataset_do_not_mix(small: Path, tmp_path: Path) -> None:
    faults.two_at_once(small, tmp_path)


# ------------------------------------------------------------------------------------- the disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk of some size in memory, or changes its options; skips where it may not."""
    with faults.mounted(tmp_path / "disk") as mount:

        def mount_or_skip(options: str) -> Path:
            try:
                return mount(options)
            except faults.CannotMount as error:
                pytest.skip(str(error))

        yield mount_or_skip


@pytest.mark.parametrize("name", ["first", "changed", "remote", "archive packed"])
def test_a_full_disk_is_told_and_more_room_completes_it(
    name: str, scenario: Callable[[str], Scenario], small_disk: Callable[[str], Path]
) -> None:
    case = scenario(name)
    used = faults.pages(case.base)
    told = set()
    for free in (4, 12, 40, 80, 120, 130):
        disk = small_disk(f"size={(used + free) * 4096}")
        try:
            told.add(faults.fill_disk(case, disk))
        finally:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)
    assert len(told) > 1 or name == "changed"


def test_a_read_only_root_is_told(small: Path, small_disk: Callable[[str], Path]) -> None:
    faults.write_to_read_only(small, small_disk)


def test_workers_hold_no_files_open(tmp_path: Path) -> None:
    writer = ShardWriter.create(tmp_path / "shard", [ArrayPlan.of("target", "int64", [()] * 50)])
    before = len(os.listdir("/proc/self/fd"))
    for row in range(50):
        sent = ShardWriter(writer.folder, writer.plans)  # as a task brings it to a worker
        sent.write(row, {"target": np.asarray(row)})
    del sent
    assert len(os.listdir("/proc/self/fd")) <= before + 1


# ---------------------------------------------------------------------------------- the source


def test_windows_that_the_disk_takes_for_one_stop_an_ingest_before_it_copies(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, root = shutil.copytree(small, tmp_path / "source"), EvalRoot(tmp_path / "root")
    pipeline.ingest(make_job(source, root.path))
    before = sorted(root.dataset("crops").windows.paths())
    window = next(path.parent for path in sorted(source.glob("windows/*/*/metadata.json")))
    shutil.copytree(window, window.with_name(window.name.upper()))
    monkeypatch.setattr(told_apart, "_are_one", lambda *_: True)
    with pytest.raises(StoreError, match=f"{window.name}' are one name to the disk of"):
        pipeline.ingest(make_job(source, root.path))
    assert sorted(root.dataset("crops").windows.paths()) == before
    pipeline.ingest(make_job(source, root.path, copy="stream"))  # names lie in tables there


def test_samples_are_read_whole_however_little_a_call_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux gives at most 2 GiB at a time, and a file that has lost its end gives nothing."""
    plan = ArrayPlan.of("target", "int64", [(40,)] * 3)
    writer = ShardWriter.create(tmp_path / "shard", [plan])
    for row in range(3):
        writer.write(row, {"target": np.arange(40) + 100 * row})
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, at: read(file, min(size, 7), at))
    assert (writer.read(1)["target"] == np.arange(40) + 100).all()
    os.truncate(tmp_path / "shard" / "target.npy", 1000)
    with pytest.raises(StoreError, match="it ends too early"):
        writer.read(2)


def test_a_source_that_changes_underneath_gives_one_version_or_an_error(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = faults.ChangingSource(small, tmp_path, seed=4)
    changes.ingest_while_changing(0.001)
    # Windows that aren't copied while they are indexed are read twice, of which one is too late.
    monkeypatch.setattr(pipeline, "copying_ahead", lambda job, **_: None)
    outcomes = [changes.ingest_while_changing(pause_s) for pause_s in (0.001, 0.02, 0.2, 0.2)]
    assert SourceError in outcomes
    assert outcomes[-1] is None or outcomes[-2] is None


def test_a_file_that_changes_in_place_between_listing_and_reading_is_noticed(
    small: Path, tmp_path: Path
) -> None:
    shutil.copytree(small, tmp_path / "source")
    source = Run(str(tmp_path / "source"), tmp_path / "root").job().source
    window = next(source.windows(source.groups(), frozenset({"sentinel2"})))
    file = window.by_path["metadata.json"]
    path = tmp_path / "source" / "windows" / window.group / window.name / "metadata.json"
    assert source.read(window.group, window.name, file) == path.read_bytes()
    time.sleep(0.02)  # more than the file system's grain of time
    path.write_bytes(path.read_bytes().replace(b"EPSG", b"epsg"))
    with pytest.raises(SourceError, match="the source changes while it is read"):
        source.read(window.group, window.name, file)


# ------------------------------------------------------------------------------ time and readers


def test_a_reader_of_the_old_version_keeps_reading_right_values(
    small: Path, tmp_path: Path
) -> None:
    faults.read_while_replaced(small, tmp_path, seeds=[5, 6])


def test_a_workers_copy_reads_the_version_that_its_loader_counts(
    small: Path, tmp_path: Path
) -> None:
    run = Run(str(small), tmp_path)
    run.do()
    splits = ("train", "val", "test")
    held = {s: EvalDataset("crops", s, root=tmp_path, normalize=None, crop=None) for s in splits}
    expected = faults.values_of(held)
    replace(run, spec={"splits": {"strategy": "random", "seed": 5}}).do()
    sent = pickle.dumps(held)
    assert faults.values_of(pickle.loads(sent)) == expected != faults.values(tmp_path)


def test_what_nothing_names_is_removed_after_its_grace(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(str(small), tmp_path)
    run.do()
    expected = faults.snapshot(tmp_path)
    (tmp_path / "crops" / "samples" / os.fsdecode(b"\xe9")).mkdir()  # no UTF-8
    replace(run, overwrite=True).do()
    retired = list((tmp_path / "crops" / "samples").iterdir())
    assert len(retired) == 3
    layout = EvalRoot(tmp_path).dataset("crops").layout
    kept = read_sealed_json(layout.retired, "") or {}
    assert sum(spelled(f"samples/{path.name}") in kept for path in retired) == 2
    run.do()  # does nothing, and the hour isn't over
    assert all(path.exists() for path in retired)
    late = time.time() + 10 * leftovers.GRACE_S
    write_sealed_json(layout.retired, dict.fromkeys(kept, late))  # the clock was wrong, goes back
    run.do()
    assert all(path.exists() for path in retired)
    monkeypatch.setattr(leftovers, "_now", lambda _: time.time() + leftovers.GRACE_S)
    run.do()
    assert sum(path.exists() for path in retired) == 1
    assert not layout.retired.exists()
    assert len(faults.snapshot(tmp_path)) == len(expected)


def test_a_clock_that_goes_back_hides_no_change(small: Path, tmp_path: Path) -> None:
    faults.clock_goes_back(small, tmp_path, seconds=86_400)


@pytest.mark.usefixtures("nobody_else_writes")
def test_leftovers_of_a_registry_that_was_being_written_go(small: Path, tmp_path: Path) -> None:
    Run(str(small), tmp_path).do()
    (tmp_path / ".registry.json.abc.tmp").write_text("{")
    (tmp_path / ".removed.old.17").mkdir()
    write_json(tmp_path / "registry.json", "damaged")
    assert list(rebuild_registry(EvalRoot(tmp_path))) == ["crops"]
    finish_removals(EvalRoot(tmp_path))  # as the next command does
    assert faults.strays(tmp_path) == []
    assert list(read_registry(EvalRoot(tmp_path))) == ["crops"]


def test_whatever_a_killed_run_was_writing_is_cleared_away(reference: Path, tmp_path: Path) -> None:
    shutil.copytree(reference, tmp_path / "root")
    layout = EvalRoot(tmp_path / "root").dataset("crops").layout
    kept = {path.name for path in layout.path.iterdir()}
    for name in (*kept, *WRITTEN):
        (layout.path / f".{name}.a1b2c3d4.tmp").touch()
    leftovers.remove_unfinished(layout)
    folders = {f".{name}.a1b2c3d4.tmp" for name in kept if (layout.path / name).is_dir()}
    assert {path.name for path in layout.path.iterdir()} - folders == kept
