"""Archives as sources: unpacked once, and nothing that could do harm."""

import io
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import fsspec
import pytest

from eval_ingest import pipeline
from eval_ingest.engine import no_progress
from eval_ingest.errors import EvalIngestError, SourceError, SourceNotFoundError
from eval_ingest.objects.backend import Entry, crc32c_text
from eval_ingest.objects.reading import Objects
from eval_ingest.sources import unpacking, window_table
from eval_ingest.sources.archive import Limits, open_archive
from eval_ingest.sources.open import open_source
from eval_ingest.store import window_files
from eval_ingest.store.outcomes import read_outcome
from eval_ingest.verifying import verify_dataset
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support import factories
from eval_ingest_tests.support.comparing import assert_same_ingest
from eval_ingest_tests.support.lacking import no_rights, open_to_all
from eval_ingest_tests.support.servers import gcs_server


def pack(folder: Path, path: Path, inner: str = "crops") -> Path:
    mode = "w" if path.suffix == ".tar" else "w:gz"
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        archive.add(folder, inner)
    return path


def evil(path: Path, *members: tarfile.TarInfo, data: bytes = b"x") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            member.size = len(data) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(data))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, target
    return found


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tgz"])
def test_an_archive_is_ingested_like_the_folder(
    ending: str, small: Path, tmp_path: Path, reference: Path
) -> None:
    archive = pack(small, tmp_path / f"crops{ending}", "deep/er" if ending == ".tgz" else ".")
    root = tmp_path / "root"
    pipeline.ingest(make_job(archive, root))
    assert_same_ingest(root, reference)
    metadata = read_outcome(make_job(archive, root).store, "registry_entry")
    assert metadata.source == str(archive)


def test_an_archive_is_unpacked_once_per_version(small: Path, tmp_path: Path) -> None:
    archive, folder = pack(small, tmp_path / "a.tar"), tmp_path / "unpacked"
    first = open_archive(str(archive), folder)
    marker = Path(first.url) / "marker"
    marker.touch()
    assert open_archive(str(archive), folder).url == first.url and marker.exists()
    os.utime(archive, ns=(1, 1))
    second = open_archive(str(archive), folder)
    assert second.url != first.url
    assert not marker.exists() and len(list(folder.iterdir())) == 1


def test_an_archive_in_a_bucket(
    small: Path, tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(small, tmp_path / "crops.tar.gz")
    with gcs_server() as server:
        for key, value in server.environment.items():
            monkeypatch.setenv(key, value)
        folder = tmp_path / "to_upload"
        folder.mkdir()
        (tmp_path / "crops.tar.gz").rename(folder / "crops.tar.gz")
        url = f"{server.upload(folder, 'archives')}/crops.tar.gz"
        pipeline.ingest(make_job(url, tmp_path / "root"))  # type: ignore[arg-type]
        with pytest.raises(SourceNotFoundError, match="does not exist; check the URL"):
            open_source(f"{server.url}/archives/nope.tgz", archives=tmp_path)
    assert_same_ingest(tmp_path / "root", reference)


def test_a_tar_that_is_damaged_on_its_way_is_not_taken(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no checksum of its own, but the object has."""
    memory, url = fsspec.filesystem("memory"), f"memory://{tmp_path.name}/crops.tar"
    data = bytearray(pack(small, tmp_path / "crops.tar").read_bytes())
    memory.pipe(url, bytes(data))
    true = crc32c_text(bytes(data))
    entry = Entry("crops.tar", len(data), f"crc32c:{true}")

    async def stat(self: Objects, name: str = "") -> Entry:
        return entry

    monkeypatch.setattr(Objects, "stat", stat)
    open_source(url, archives=tmp_path / "whole")
    place = data.find(b"II*")  # a raster's first bytes
    data[place + 200] ^= 1
    memory.pipe(url, bytes(data))
    with pytest.raises(SourceError, match=r"damaged on the way, or has changed; run again"):
        open_source(url, archives=tmp_path / "damaged")
    assert list((tmp_path / "damaged").iterdir()) == []
    memory.rm(f"/{tmp_path.name}", recursive=True)


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (member("/etc/evil"), "leaves the folder"),
        (member("../evil"), "leaves the folder"),
        (member("crops/../../evil"), "leaves the folder"),
        (member("crops/link", tarfile.SYMTYPE, "/etc/passwd"), "is a link or a device"),
        (member("crops/link", tarfile.SYMTYPE, "config.json"), "is a link or a device"),
        (member("crops/link", tarfile.LNKTYPE, "../../evil"), "is a link or a device"),
        (member("crops/device", tarfile.CHRTYPE), "is a link or a device"),
        (member("crops/pipe", tarfile.FIFOTYPE), "is a link or a device"),
        (member("a/" * 600 + "b"), "path longer than 1024"),
    ],
)
def test_evil_members_are_refused(bad: tarfile.TarInfo, told: str, tmp_path: Path) -> None:
    inside = tmp_path / "in" / "side"
    archive = evil(tmp_path / "evil.tgz", member("crops/config.json"), bad)
    with pytest.raises(SourceError, match=told):
        open_archive(str(archive), inside)
    assert list(inside.iterdir()) == []
    assert not (tmp_path / "evil").exists() and not (tmp_path / "in" / "evil").exists()


def test_a_link_is_no_way_out_for_a_later_member(tmp_path: Path) -> None:
    archive = evil(
        tmp_path / "evil.tgz",
        member("crops/out", tarfile.SYMTYPE, str(tmp_path)),
        member("crops/out/evil"),
    )
    with pytest.raises(SourceError, match="is a link"):
        open_archive(str(archive), tmp_path / "inside")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("limits", [Limits(total_bytes=10), Limits(members=3)])
def test_limits_stop_it(limits: Limits, tmp_path: Path) -> None:
    archive = evil(tmp_path / "big.tgz", *(member(f"f{k}") for k in range(12)))
    with pytest.raises(SourceError, match=r"holds more than .* members or .* bytes"):
        open_archive(str(archive), tmp_path / "inside", limits)
    assert list((tmp_path / "inside").iterdir()) == []


@pytest.mark.parametrize(
    "spoil",
    [lambda data: data[: len(data) // 2], lambda data: b"no tar" * 100, lambda data: b""],
    ids=["cut off", "something else", "empty"],
)
def test_a_damaged_archive_is_told(
    spoil: Callable[[bytes], bytes], small: Path, tmp_path: Path
) -> None:
    archive = pack(small, tmp_path / "crops.tgz")
    archive.write_bytes(spoil(archive.read_bytes()))
    with pytest.raises(EvalIngestError, match=r"crops\.tgz (can't be unpacked|holds no config)"):
        open_archive(str(archive), tmp_path / "inside")
    assert list((tmp_path / "inside").glob(".*")) == []


def test_several_datasets_in_one_archive_are_told(small: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "two.tar", "w") as archive:
        for name in ("one", "two"):
            archive.add(small / "config.json", f"{name}/config.json")
    with pytest.raises(SourceError, match=r"holds several datasets \(one, two\)"):
        open_archive(str(tmp_path / "two.tar"), tmp_path / "inside")


def test_a_missing_archive_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="does not exist; check the path"):
        open_archive(str(tmp_path / "nope.tgz"), tmp_path)


def reproducible(folder: Path, path: Path) -> Path:
    """An archive whose members carry no times, as `tar --mtime=@0 --sort=name` writes it."""
    with tarfile.open(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            found = archive.gettarinfo(file, str(file.relative_to(folder)))
            found.mtime = 0
            with open(file, "rb") if file.is_file() else io.BytesIO() as stream:
                archive.addfile(found, stream)
    return path


def test_a_change_that_keeps_all_times_and_sizes_is_seen(
    copied: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, root = copied("segmentation"), tmp_path / "root"
    archive = reproducible(folder, tmp_path / "a.tar")
    pipeline.ingest(make_job(archive, root))
    before, size = index_of(archive, root), archive.stat().st_size
    raster = next((folder / "windows").rglob("geotiff.tif"))
    data = bytearray(raster.read_bytes())
    data[-1] ^= 1
    raster.write_bytes(data)
    reproducible(folder, archive)
    os.utime(archive, ns=(1, 1))
    assert archive.stat().st_size == size
    pipeline.ingest(make_job(archive, root))
    after = index_of(archive, root)
    changed = {key for key in before if before[key] != after[key]}
    assert {key.partition("/")[2] for key in changed} == {raster.relative_to(folder).parts[2]}
    # And no change is seen where there is none.
    os.utime(archive, ns=(2, 2))
    outcomes = pipeline.ingest(make_job(archive, root))
    assert not any(outcome.ran for outcome in outcomes)


def index_of(archive: Path, root: Path) -> dict[str, str]:
    table = read_outcome(make_job(archive, root).store, "window_index").table
    columns = (table[name].to_pylist() for name in ("group", "name", "source_digest"))
    return {f"{group}/{name}": digest for group, name, digest in zip(*columns, strict=True)}


@pytest.mark.parametrize("late", [False, True])
def test_what_is_unpacked_is_moved_into_the_copy_and_not_kept_twice(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    # Late, the configuration stands behind the windows.
    names, root = sorted(factories.members(small), reverse=late), tmp_path / "root"
    archive = factories.pack(small, tmp_path / "crops.tar.gz", names)
    job = make_job(archive, root)
    moved: dict[str, str] = {}

    def renamed(old: Any, new: Any, rename: Any = os.rename) -> None:
        moved[str(new)] = str(old)
        rename(old, new)

    monkeypatch.setattr(os, "rename", renamed)
    pipeline.ingest(job)
    layout = job.layout
    copied = [str(window) for window in layout.windows.glob("*/*")]
    before = [moved[moved[window]] if late else moved[window] for window in copied]
    assert before and all((".archive" if late else ".copied_ahead") in path for path in before)
    assert not list(layout.archive.rglob("windows"))
    # Unchanged, the archive isn't opened; another configuration unpacks it once more.
    monkeypatch.setattr("eval_ingest.sources.archive._unpack", None)
    assert not any(outcome.ran for outcome in pipeline.ingest(make_job(archive, root)))
    monkeypatch.undo()
    pipeline.forget(job)
    again = pipeline.ingest(make_job(archive, root))
    assert again[0].ran and not list(layout.archive.rglob("windows"))
    assert verify_dataset(job.root, "crops", no_progress).problems == []


def test_a_stopped_unpacking_goes_on_where_it_was(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, folder = pack(small, tmp_path / "crops.tar.gz"), tmp_path / "unpacked"
    written: list[bytes] = []
    write = unpacking._Files.write

    def stopping(self: Any, parts: list[bytes], *rest: Any) -> Any:
        if len(written) == 40:
            raise KeyboardInterrupt
        written.append(b"/".join(parts))
        return write(self, parts, *rest)

    monkeypatch.setattr(window_table, "_WAITING", 4)
    monkeypatch.setattr(unpacking._Files, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        open_archive(str(archive), folder)
    first, written[:] = set(written), []
    monkeypatch.setattr(
        unpacking._Files, "write", lambda self, parts, *rest: (
            written.append(b"/".join(parts)), write(self, parts, *rest))[1]
    )  # fmt: skip
    source = open_archive(str(archive), folder)
    assert len(first & set(written)) < 40  # the last few weren't noted yet
    whole = [p.relative_to(small) for p in small.rglob("*") if p.is_file()]
    unpacked = [p.relative_to(source.url) for p in Path(source.url).rglob("*") if p.is_file()]
    assert sorted(whole) == sorted(unpacked)
    layers = frozenset(p.name for p in small.rglob("layers/*"))
    local = {w.key: [f[:2] for f in w.files] for w in open_source(str(small)).windows(
        source.groups(), layers)}  # fmt: skip
    assert local == {
        w.key: [f[:2] for f in w.files] for w in source.windows(source.groups(), layers)
    }


def _torn(table: Path) -> None:
    """Leave it as a process does that is killed while it says that all is there."""
    with closing(sqlite3.connect(table)) as writer:
        writer.execute("PRAGMA journal_mode = TRUNCATE")
        writer.execute("PRAGMA cache_size = 1")
        writer.execute("BEGIN")
        writer.execute("INSERT OR REPLACE INTO facts VALUES ('whole', 2)")
        for k in range(20):
            writer.execute("INSERT INTO windows VALUES (?, zeroblob(9999))", (b"windows/g/%d" % k,))
        shutil.copyfile(table, table.with_name("torn"))
        shutil.copyfile(f"{table}-journal", table.with_name("torn-journal"))
        writer.rollback()
    table.with_name("torn").replace(table)
    table.with_name("torn-journal").replace(f"{table}-journal")


@pytest.mark.parametrize("later", [True, False])
@pytest.mark.parametrize(
    "damage",
    [
        lambda table: table.write_bytes(b""),
        lambda table: table.write_bytes(table.read_bytes()[:2000]),
        lambda table: table.write_bytes(b"no database" * 1000),
        lambda table: table.write_bytes(table.read_bytes()[:100] + bytes(12188)),
        _torn,
    ],
    ids=["empty", "cut off", "rubbish", "zeros", "torn"],
)
def test_a_table_that_a_full_disk_or_a_kill_has_left_is_made_anew(
    damage: Callable[[Path], None], later: bool, small: Path, tmp_path: Path
) -> None:
    archive, folder = pack(small, tmp_path / "crops.tar.gz", "."), tmp_path / "unpacked"
    unpacked = open_archive(str(archive), folder, later=True).unpacked
    assert not window_table.WindowTable(unpacked / "contents.sqlite", 2).is_whole
    damage(unpacked / "contents.sqlite")
    source = open_archive(str(archive), folder, later=later)
    source.complete()
    windows = list(source.windows(source.groups(), frozenset({"sentinel2"})))
    assert len(windows) == 10
    assert all(source.read(w.group, w.name, f) for w in windows for f in w.files if f.size)


def test_an_archive_that_can_not_be_opened_is_told_as_such(small: Path, tmp_path: Path) -> None:
    with open_to_all() as folder:
        archive = pack(small, folder / "crops.tar")
        archive.chmod(0)
        told = r"crops.tar can't be read: Permission denied"
        with no_rights(), pytest.raises(SourceError, match=told):
            open_archive(str(archive), folder / "unpacked")


def test_an_archive_that_goes_meanwhile_is_told_as_such(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, url = fsspec.filesystem("memory"), f"memory://{tmp_path.name}/crops.tar"
    memory.pipe(url, pack(small, tmp_path / "crops.tar").read_bytes())
    real = Objects.open

    def late(self: Objects) -> Any:
        memory.rm(f"/{tmp_path.name}", recursive=True)
        return real(self)

    monkeypatch.setattr(Objects, "open", late)
    with pytest.raises(SourceNotFoundError, match=r"crops.tar has gone since it was looked at"):
        open_archive(url, tmp_path / "unpacked")


def test_a_folder_may_be_called_like_an_archive(small: Path, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/eu.tar"
    fsspec.filesystem("memory").put(f"{small}/", f"/{tmp_path.name}/eu.tar/", recursive=True)
    shutil.copytree(small, tmp_path / "eu.tar")
    found = [
        {window.key for window in source.windows(source.groups(), frozenset())}
        for source in map(open_source, (str(tmp_path / "eu.tar"), url))
    ]
    assert len(found[0]) == 10 and found[0] == found[1]
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


def test_unpacked_bytes_that_were_damaged_on_disk_are_told(small: Path, tmp_path: Path) -> None:
    source = open_archive(str(pack(small, tmp_path / "a.tar")), tmp_path / "unpacked")
    [window, *_] = source.windows(source.groups(), frozenset())
    path = Path(source.url, "windows", window.group, window.name, "metadata.json")
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    with pytest.raises(SourceError, match=r"damaged on this disk; remove .* and run again"):
        source.read(window.group, window.name, window.by_path["metadata.json"])


def test_a_copy_that_is_stopped_while_files_are_moved_loses_none(
    small: Path, tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last, root = sorted(factories.members(small), reverse=True), tmp_path / "root"
    archive = factories.pack(small, tmp_path / "crops.tar.gz", last)  # so it is unpacked first
    count, place = 0, window_files._moved

    def stopping(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 9:
            raise KeyboardInterrupt
        return place(*arguments)

    monkeypatch.setattr(window_files, "_moved", stopping)
    with pytest.raises(KeyboardInterrupt):
        pipeline.ingest(make_job(archive, root))
    monkeypatch.undo()
    outcomes = pipeline.ingest(make_job(archive, root))
    assert [outcome.ran for outcome in outcomes[:2]] == [False, False]
    assert verify_dataset(make_job(archive, root).root, "crops", no_progress).problems == []
    assert_same_ingest(root, reference)


def test_layers_that_nobody_reads_are_not_moved_along(
    copied: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, root = copied("segmentation"), tmp_path / "root"
    for window in (folder / "windows").glob("*/*"):
        unread = window / "layers" / "output" / "deep"
        unread.mkdir(parents=True)
        (unread / "geotiff.tif").write_bytes(b"of no use")
        (window / "notes.txt").touch()
    archive = pack(folder, tmp_path / "crops.tar.gz")
    job = make_job(archive, root)
    pipeline.ingest(job)
    assert list(job.layout.windows.glob("*/*"))
    assert not list(job.layout.windows.rglob("output"))
    assert not list(job.layout.windows.rglob("notes.txt"))
    assert verify_dataset(job.root, "crops", no_progress).problems == []
