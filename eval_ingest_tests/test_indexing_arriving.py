"""Archives whose windows are indexed as they come off the stream, in one pass."""

import errno
import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval_ingest import pipeline
from eval_ingest.engine import no_progress
from eval_ingest.errors import SourceError, StoreError
from eval_ingest.indexing import partial
from eval_ingest.indexing.work import IndexTask
from eval_ingest.sources import archive as archives
from eval_ingest.sources import decompress, stream, window_table
from eval_ingest.sources.unpacking import Unpacking
from eval_ingest.store.outcomes import read_outcome
from eval_ingest.store.shards import ShardWriter
from eval_ingest.store.tables import MergedTable, StoredTable
from eval_ingest.verifying import verify_dataset
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support import faults
from eval_ingest_tests.support.comparing import assert_same_ingest, index_values
from eval_ingest_tests.support.factories import first_window, members, pack


def windows_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The windows that are read from where they were unpacked."""
    read: list[str] = []
    read_files = archives.read_files

    def counted(root: str, *rest: Any) -> Any:
        read.append(root)
        return read_files(root, *rest)

    monkeypatch.setattr(archives, "read_files", counted)
    return read


def test_one_pass_reads_the_stream_once_and_no_window_again(
    small: Path, tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = pack(small, tmp_path / "crops.tar.gz", members(small))
    had: list[int] = []
    read = stream.Checked.read

    def counted(self: Any, size: int) -> bytes:
        data = read(self, size)
        had.append(len(data))
        return data

    chunk = 1024
    monkeypatch.setattr(stream.Checked, "read", counted)
    monkeypatch.setattr(decompress, "_CHUNK", chunk)
    again = windows_read(monkeypatch)
    job = make_job(archive, tmp_path / "root")
    ahead = sum(had)  # to the configuration, and what the decompressor reads ahead
    assert ahead <= 16 * chunk < archive.stat().st_size
    pipeline.run_stage(job, "window_index")
    assert sum(had) - ahead == archive.stat().st_size and again == []
    # Each window is written once, and waits there for its split.
    assert not list(job.layout.archive.rglob("windows"))
    assert len([*job.layout.ahead.glob("*/metadata.json")]) == len(index_values(reference))
    pipeline.ingest(make_job(archive, tmp_path / "root"))
    assert sum(had) - ahead == archive.stat().st_size
    assert_same_ingest(tmp_path / "root", reference)
    assert not list(job.layout.archive.rglob("windows")) and not job.layout.staging.exists()


def in_two_parts(names: list[str]) -> list[str]:
    last = names[-1].rpartition("layers/")[0]
    apart = [name for name in names if name.startswith(last)][:2]
    return [*(name for name in names if name not in apart), names[3], *apart]


@pytest.mark.parametrize("copy", ["windows", "stream"])
@pytest.mark.parametrize(
    "order",
    [
        lambda names: sorted(names, key=lambda name: name.rpartition("/windows/")[2][::-1]),
        lambda names: sorted(names, reverse=True),  # the configuration stands behind the windows
        lambda names: [n for n in names if n != "model.yaml"] + ["model.yaml"],
        lambda names: sorted(names, key=lambda name: name.rpartition("/")[2]),
        in_two_parts,
    ],
    ids=["mixed", "configuration last", "model last", "by kind of file", "one in two parts"],
)
def test_members_in_any_order_give_the_same_dataset(
    order: Callable[[list[str]], list[str]],
    copy: str,
    small: Path,
    tmp_path: Path,
    reference: Path,
) -> None:
    archive = pack(small, tmp_path / "crops.tar.gz", order(members(small)))
    root = tmp_path / "root"
    pipeline.ingest(make_job(archive, root, copy=copy))
    assert index_values(root) == index_values(reference)
    assert faults.values(root) == faults.values(reference)
    job = make_job(archive, root)
    assert verify_dataset(job.root, "crops", no_progress).problems == []
    first = tmp_path / "unpacked_first"
    archives.open_archive(str(archive), first / "crops" / ".archive")
    pipeline.ingest(make_job(archive, first, copy=copy))
    prints = [read_outcome(make_job(archive, at).store, "registry_entry") for at in (root, first)]
    assert prints[0].fingerprints == prints[1].fingerprints


def test_the_last_file_of_a_name_counts_wherever_it_stands(
    small: Path, tmp_path: Path, reference: Path
) -> None:
    names = members(small)
    archive = tmp_path / "crops.tar"
    with tarfile.open(archive, "w") as packed:
        for name in names:
            if name.endswith("metadata.json"):
                member = tarfile.TarInfo(name)
                member.size = 3
                packed.addfile(member, io.BytesIO(b"old"))
            packed.add(small / name, name)
        packed.add(small / names[-1], names[-1])
        packed.add(small / names[3], names[3])
    pipeline.ingest(make_job(archive, tmp_path / "root"))
    assert index_values(tmp_path / "root") == index_values(reference)


@pytest.mark.parametrize("copy", ["windows", "stream"])
def test_files_that_are_too_large_to_be_judged_are_copied_as_from_a_folder(
    copy: str, copied: Callable[[str], Path], tmp_path: Path
) -> None:
    source = copied("segmentation")
    unfinished = first_window(source) / "layers" / "sentinel2.9"
    unfinished.mkdir()
    (unfinished / "large.json").write_bytes(bytes(3 << 20))
    roots = {
        tmp_path / "a": source,
        tmp_path / "b": pack(source, tmp_path / "crops.tar.gz", members(source)),
    }
    for root, where in roots.items():
        pipeline.ingest(make_job(where, root, copy=copy, max_invalid_fraction=0.5))
    assert_same_ingest(*reversed(roots))


def test_groups_that_nobody_asks_for_are_not_indexed(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = pack(small, tmp_path / "crops.tar.gz", members(small))
    [group, *_] = sorted(p.name for p in (small / "windows").iterdir())
    again = windows_read(monkeypatch)
    job = make_job(archive, tmp_path / "root", groups=[group])
    pipeline.run_stage(job, "window_index")
    index = read_outcome(job.store, "window_index")
    assert set(index.groups) == {group} and again == []


def _in_march(folder: Path) -> list[str]:
    found = sorted((folder / "windows").glob("*/*/metadata.json"))
    for path in found[::2]:
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"options": {**content["options"], "month": "march"}}))
    return [path.parent.name for path in found[::2]]


@pytest.mark.parametrize("stops", [False, True], ids=["at once", "stopped"])
@pytest.mark.parametrize("copy", ["windows", "stream"])
def test_windows_that_a_filter_leaves_out_are_not_unpacked_a_second_time(
    copy: str, stops: bool, copied: Callable[[str], Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    source, root = copied("segmentation"), tmp_path / "root"
    names = _in_march(source)
    archive = pack(source, tmp_path / "crops.tar.gz", members(source))
    spec = {"copy": copy, "tags": {"month": "march"}, "max_invalid_fraction": 0.5}
    folder, *_ = pipeline.ingest(make_job(source, tmp_path / "folder", **spec))
    if stops:
        with monkeypatch.context() as stopping, pytest.raises(KeyboardInterrupt):
            stopping.setattr(pipeline, "index_source", _stopped)
            pipeline.ingest(make_job(archive, root, **spec))
    again, anew, unpack = windows_read(monkeypatch), [], archives._unpack

    def counted(*args: Any, **how: Any) -> None:
        anew.append(how.get("anew", False))
        unpack(*args, **how)

    monkeypatch.setattr(archives, "_unpack", counted)
    first = pipeline.run_stage(make_job(archive, root, **spec), "window_index")
    assert again == [] and True not in anew
    assert set(first.value.names) == set(names)
    pipeline.ingest(make_job(archive, root, **spec))
    assert True not in anew
    assert_same_ingest(root, tmp_path / "folder")
    facts = [index.value.extra for index in (first, folder)]
    assert facts[0] == facts[1]


def test_what_another_filter_left_out_of_a_stopped_pass_is_wanted(
    copied: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, root = copied("segmentation"), tmp_path / "root"
    _in_march(source)
    archive = pack(source, tmp_path / "crops.tar.gz", members(source))
    with monkeypatch.context() as stopping, pytest.raises(KeyboardInterrupt):
        stopping.setattr(pipeline, "index_source", _stopped)
        pipeline.ingest(make_job(archive, root, tags={"month": "march"}))
    for where, at in ((archive, root), (source, tmp_path / "folder")):
        pipeline.ingest(make_job(where, at, max_invalid_fraction=0.5))
    assert index_values(root) == index_values(tmp_path / "folder")
    assert faults.values(root) == faults.values(tmp_path / "folder")


def test_no_window_is_written_whose_sample_is_packed_and_that_is_not_copied(
    small: Path, tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = pack(small, tmp_path / "crops.tar.gz", members(small))
    job = make_job(archive, tmp_path / "root", copy="stream")
    fits = ShardWriter.fits
    # As if the fourth window were of another shape: it is packed by the copy stage.
    monkeypatch.setattr(ShardWriter, "fits", lambda self, row, a: row != 3 and fits(self, row, a))
    read = stream.Checked.read
    had: list[int] = []
    monkeypatch.setattr(
        stream.Checked, "read", lambda self, size: (had.append(1), read(self, size))[1]
    )
    pipeline.run_stage(job, "window_index")
    written = {p.parent.name for p in job.layout.archive.rglob("windows/*/*/metadata.json")}
    assert len(written) == 1 and had
    had.clear()
    pipeline.ingest(job)
    assert not had and not list(job.layout.archive.rglob("windows"))
    assert faults.values(tmp_path / "root") == faults.values(reference)


def test_an_index_is_put_together_on_the_disk_and_read_from_there(
    small: Path, tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = pack(small, tmp_path / "crops.tar.gz", members(small))
    monkeypatch.setattr(partial, "PARTIAL_ROWS", 4)
    monkeypatch.setattr(partial, "PARTIAL_FORM", replace(partial.PARTIAL_FORM, together=2))
    monkeypatch.setattr("eval_ingest.store.tables._GROUP_ROWS", 3)
    first, *_ = pipeline.ingest(make_job(archive, tmp_path / "root"))
    assert isinstance(first.value.table, StoredTable)
    assert_same_ingest(tmp_path / "root", reference)


@pytest.mark.parametrize("from_archive", [True, False])
@pytest.mark.parametrize(
    "fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_a_run_that_ends_while_its_index_is_put_together_reads_no_window_again(
    fault: BaseException,
    from_archive: bool,
    small: Path,
    tmp_path: Path,
    reference: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = pack(small, tmp_path / "crops.tar.gz", members(small)) if from_archive else small
    monkeypatch.setattr(partial, "PARTIAL_ROWS", 4)
    monkeypatch.setattr("eval_ingest.store.tables._GROUP_ROWS", 3)
    to_batches = MergedTable.to_batches

    def stopping(self: MergedTable) -> Iterator[Any]:
        batches = to_batches(self)
        yield next(batches)
        if "geometry" in self.column_names:  # all of it is being written
            raise fault
        yield from batches

    with monkeypatch.context() as stopped:
        stopped.setattr(MergedTable, "to_batches", stopping)
        with pytest.raises((StoreError, KeyboardInterrupt), match=r"the disk is full|^$"):
            pipeline.ingest(make_job(source, tmp_path / "root"))
    with monkeypatch.context() as watched:
        watched.setattr(IndexTask, "read", lambda *_: pytest.fail("it is read again"))
        pipeline.run_stage(make_job(source, tmp_path / "root"), "window_index")
    pipeline.ingest(make_job(source, tmp_path / "root"))
    assert_same_ingest(tmp_path / "root", reference)


def test_a_shard_of_small_windows_holds_no_more_than_are_planned_for(
    small: Path, tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = pack(small, tmp_path / "crops.tar.gz", members(small))
    monkeypatch.setattr("eval_ingest.indexing.packer._MOST_ROWS", 3)
    job = make_job(archive, tmp_path / "root", copy="stream")
    pipeline.ingest(job)
    assert len(list(job.layout.samples.glob("*/index.parquet"))) == 4
    assert faults.values(tmp_path / "root") == faults.values(reference)


def test_windows_that_a_stopped_pass_has_packed_are_unpacked_for_a_copy_that_is_asked_for_later(
    small: Path, tmp_path: Path, reference: Path
) -> None:
    archive, root = pack(small, tmp_path / "crops.tar.gz", members(small)), tmp_path / "root"
    pipeline.run_stage(make_job(archive, root, copy="stream"), "window_index")
    pipeline.ingest(make_job(archive, root))
    assert_same_ingest(root, reference)


def test_an_archive_that_changed_after_a_stop_is_read_from_its_start(
    small: Path, tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = members(small)
    fewer = [name for name in names if name.split("/")[:3] != names[-1].split("/")[:3]]
    archive, root = pack(small, tmp_path / "crops.tar.gz", fewer), tmp_path / "root"
    with monkeypatch.context() as stopping:
        stopping.setattr(pipeline, "index_source", _stopped)
        with pytest.raises(KeyboardInterrupt):
            pipeline.ingest(make_job(archive, root, copy="stream"))
    pack(small, archive, names)
    pipeline.ingest(make_job(archive, root, copy="stream"))
    assert index_values(root) == index_values(reference)
    assert faults.values(root) == faults.values(reference)


def _stopped(*_: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize("copy", ["windows", "stream"])
def test_a_pass_that_was_stopped_goes_on_where_it_was(
    copy: str, small: Path, tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval_ingest.indexing.arriving._SHARD_BYTES", 1)
    archive, root = pack(small, tmp_path / "crops.tar.gz", members(small)), tmp_path / "root"
    monkeypatch.setattr("eval_ingest.indexing.arriving._TOGETHER", 2)
    monkeypatch.setattr(partial, "PARTIAL_ROWS", 2)
    monkeypatch.setattr(window_table, "_WAITING", 1)
    noted: list[bytes] = []
    note = Unpacking.note

    def stopping(self: Unpacking, window: Any, *more: Any) -> None:
        if len(noted) == 6:
            raise KeyboardInterrupt
        noted.append(window.folder)
        note(self, window, *more)

    monkeypatch.setattr(Unpacking, "note", stopping)
    with pytest.raises(KeyboardInterrupt):
        pipeline.ingest(make_job(archive, root, copy=copy))
    first, noted[:] = set(noted), []
    monkeypatch.setattr(
        Unpacking, "note", lambda self, w, *more: (noted.append(w.folder), note(self, w, *more))
    )
    again = windows_read(monkeypatch)
    pipeline.run_stage(make_job(archive, root, copy=copy), "window_index")
    assert first and first.isdisjoint(noted) and again == []
    pipeline.ingest(make_job(archive, root, copy=copy))
    assert index_values(root) == index_values(reference)
    assert verify_dataset(make_job(archive, root).root, "crops", no_progress).problems == []


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("when", ["before", "behind", "behind a stop"])
def test_a_name_that_is_a_file_and_a_folder_is_refused_though_no_window_is_written(
    depth: int, when: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = members(small)
    windows = [name for name in names if name.startswith("windows")]
    stray = tarfile.TarInfo("/".join(windows[4].split("/")[:depth]))
    archive, root = tmp_path / "crops.tar", tmp_path / "root"
    with tarfile.open(archive, "w") as packed:
        for name in names:
            if when == "before" and name == windows[0]:
                packed.addfile(stray)
            packed.add(small / name, name)
        if when != "before":
            packed.addfile(stray)
    tar = ["tar", "-xf", str(archive), "-C", str(tmp_path)]
    assert subprocess.run(tar, capture_output=True).returncode != 0
    if when == "behind a stop":
        noted, note = iter(range(99)), Unpacking.note

        def stopping(self: Unpacking, *rest: Any) -> None:
            note(self, *rest) if next(noted) < 2 else _stopped()

        with monkeypatch.context() as patch:
            patch.setattr("eval_ingest.indexing.arriving._SHARD_BYTES", 1)
            patch.setattr("eval_ingest.indexing.arriving._TOGETHER", 1)
            patch.setattr(partial, "PARTIAL_ROWS", 1)
            patch.setattr(window_table, "_WAITING", 1)
            patch.setattr(Unpacking, "note", stopping)
            with pytest.raises(KeyboardInterrupt):
                pipeline.ingest(make_job(archive, root, copy="stream"))
    with pytest.raises(SourceError, match="is a file in one place, a folder in another"):
        pipeline.ingest(make_job(archive, root, copy="stream"))


def test_nothing_stays_of_an_archive_that_is_damaged_behind_many_windows(
    small: Path, tmp_path: Path
) -> None:
    archive = pack(small, tmp_path / "crops.tar.gz", members(small))
    archive.write_bytes(archive.read_bytes()[:-40_000])
    job = make_job(archive, tmp_path / "root")
    with pytest.raises(SourceError, match="it ends at byte"):
        pipeline.ingest(job)
    left = [p for p in job.layout.path.rglob("*") if p.is_file()]
    assert not [p for p in left if p.suffix in (".npy", ".parquet", ".tif", ".sqlite")], left
