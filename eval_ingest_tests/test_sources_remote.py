"""Sources behind URLs: one contract for folders, Google Cloud Storage and S3; then what breaks."""

import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from eval_ingest import pipeline
from eval_ingest.dry_run import dry_run
from eval_ingest.errors import SourceError, SourceNotFoundError
from eval_ingest.job import open_job
from eval_ingest.objects import retry
from eval_ingest.objects.backend import Entry
from eval_ingest.objects.fsspec_backend import FsspecBackend
from eval_ingest.objects.reading import Objects
from eval_ingest.objects.retry import Limits
from eval_ingest.objects.s3 import S3Backend
from eval_ingest.sources import remote
from eval_ingest.sources.base import Source, WindowFiles
from eval_ingest.sources.discovery import find_datasets
from eval_ingest.sources.local import LocalSource
from eval_ingest.sources.open import open_source
from eval_ingest.sources.prefixes import prefixes
from eval_ingest.sources.remote import RemoteSource
from eval_ingest.sources.staging import StagedWindows
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support.comparing import assert_same_ingest
from eval_ingest_tests.support.servers import (
    BUCKET,
    ObjectServer,
    Proxy,
    hurry,
    proxy,
)

LAYERS = frozenset({"sentinel2", "label_raster"})


@pytest.fixture(scope="module")
def crops(servers: dict[str, ObjectServer], small: Path) -> dict[str, ObjectServer]:
    """Both servers, each with the small dataset at /data/crops."""
    with pytest.MonkeyPatch.context() as patch:
        for server in (servers["gs"], servers["s3"]):
            for key, value in server.environment.items():
                patch.setenv(key, value)
            server.upload(small, "data/crops")
    return servers


@pytest.fixture(params=["gs", "s3"])
def server(
    request: pytest.FixtureRequest,
    crops: dict[str, ObjectServer],
    monkeypatch: pytest.MonkeyPatch,
) -> ObjectServer:
    found = crops[request.param]
    for key, value in found.environment.items():
        monkeypatch.setenv(key, value)
    return found


@pytest.fixture
def gcs(crops: dict[str, ObjectServer], monkeypatch: pytest.MonkeyPatch) -> ObjectServer:
    for key, value in crops["gs"].environment.items():
        monkeypatch.setenv(key, value)
    return crops["gs"]


@pytest.fixture
def through(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy in front of the server, which everything goes through from now on."""
    hurry(monkeypatch)
    with proxy(server.address) as found:
        for key, value in server.reached_at(found.address).items():
            monkeypatch.setenv(key, value)
        yield found


def contents(source: Source) -> dict[tuple[str, str], dict[str, bytes]]:
    """Every byte of every window."""
    windows = source.windows(source.groups(), LAYERS)
    return {
        (files.group, files.name): {
            file.path: reader.read(files.group, files.name, file) for file in files.files
        }
        for files, reader in source.readers(windows)
    }


# ------------------------------------------------------------------------------------ contract


def test_a_bucket_lists_and_reads_like_a_folder(server: ObjectServer, small: Path) -> None:
    source, folder = open_source(f"{server.url}/data/crops"), LocalSource(str(small))
    assert source.groups() == folder.groups()
    assert source.read_text("model.yaml") == folder.read_text("model.yaml")
    assert source.read_text("nope.yaml") is None
    assert contents(source) == contents(folder)


@pytest.mark.parametrize("name", ["aaa::file", "a b#c?d", "ü%2F+", "${HOME}", "*[x]"])
def test_a_folder_may_have_any_name(name: str, server: ObjectServer) -> None:
    folder = f"{BUCKET}/odd/{name}"
    files = {"config.json": b"{}", "windows/g/w:1/metadata.json": b"12"}
    server.filesystem().pipe({f"{folder}/{path}": data for path, data in files.items()})
    (found,) = [f for f in find_datasets(f"{server.url}/odd") if f.url.endswith(f"/{name}")]
    assert found.sample == {"g": ("w:1",)}
    source = open_source(found.url)
    assert source.read_text("config.json") == "{}"
    assert [list(files.values()) for files in contents(source).values()] == [[b"12"]]


def test_an_ingest_from_a_bucket_equals_one_from_a_folder(
    through: Proxy, server: ObjectServer, tmp_path: Path, reference: Path, small: Path
) -> None:
    outcomes = pipeline.ingest(make_job(f"{server.url}/data/crops", tmp_path))
    assert all(outcome.ran for outcome in outcomes)
    assert_same_ingest(tmp_path, reference)
    windows = {name: n for name, n in through.fetched.items() if "/windows/" in name}
    assert set(windows.values()) == {1}  # each object once, over all five stages
    expected = [p for p in (small / "windows").rglob("*") if p.is_file() and p.stat().st_size]
    assert len(windows) == len(expected)
    assert not (tmp_path / "crops" / ".staging").exists()


def test_a_second_ingest_lists_and_fetches_no_window(
    through: Proxy, server: ObjectServer, tmp_path: Path
) -> None:
    pipeline.ingest(make_job(f"{server.url}/data/crops", tmp_path))
    through.reset()
    outcomes = pipeline.ingest(make_job(f"{server.url}/data/crops", tmp_path))
    assert not any(outcome.ran for outcome in outcomes)
    assert not [name for name in through.fetched if "/windows/" in name]
    # For discovery's fingerprint the folder, groups and windows; then those again and the objects.
    assert through.lists <= 7


def test_stages_of_different_processes_share_what_was_fetched(
    through: Proxy, server: ObjectServer, tmp_path: Path, reference: Path
) -> None:
    for stage in pipeline.STAGES:
        job = make_job(f"{server.url}/data/crops", tmp_path)  # as Dagster opens one per stage
        pipeline.run_stage(job, stage)
    assert_same_ingest(tmp_path, reference)
    assert {n for name, n in through.fetched.items() if "/windows/" in name} == {1}
    assert through.lists <= 7 + 4  # the folder itself for each of the other jobs


def test_a_proxy_full_of_faults_changes_nothing(
    through: Proxy, server: ObjectServer, tmp_path: Path, reference: Path
) -> None:
    through.faults = through.looking_faults = 0.4
    pipeline.ingest(make_job(f"{server.url}/data/crops", tmp_path))
    assert_same_ingest(tmp_path, reference)
    assert set(through.done) == {*Proxy.READING, *Proxy.LOOKING}
    # What arrived whole arrived once; what failed came a second time.
    assert {n for name, n in through.fetched.items() if "/windows/" in name} == {1}


def test_stream_keeps_no_bytes_and_fetches_once(
    through: Proxy, server: ObjectServer, tmp_path: Path
) -> None:
    pipeline.ingest(make_job(f"{server.url}/data/crops", tmp_path, copy="stream"))
    assert {n for name, n in through.fetched.items() if "/windows/" in name} == {1}
    assert not (tmp_path / "crops" / ".staging").exists()


def test_a_dry_run_fetches_metadata_alone(
    through: Proxy, server: ObjectServer, tmp_path: Path
) -> None:
    plan = dry_run(make_job(f"{server.url}/data/crops", tmp_path))
    assert plan["n_windows"] == 10
    windows = [name for name in through.fetched if "/windows/" in name]
    assert len(windows) == 10 and all(name.endswith("metadata.json") for name in windows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("grown", ["geotiff.tif", "metadata.json", "items.json"])
def test_a_window_that_is_larger_than_it_may_be_is_not_fetched(
    gcs: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grown: str
) -> None:
    """By what the listing says, which no client of a bucket can make up."""
    first = sorted(name for name in gcs.filesystem().find(f"{BUCKET}/data/crops/windows"))[0]
    window = "/".join(first.split("/")[3:6])
    fetched: list[str] = []
    find, read = Objects.find, Objects.read

    async def found(objects: Objects, *args: Any) -> list[Entry]:
        entries = await find(objects, *args)
        return [
            replace(e, size=30 << 30) if e.name.startswith(window) and e.name.endswith(grown) else e
            for e in entries
        ]

    async def counted(objects: Objects, name: str, *args: Any) -> bytes:
        fetched.append(name)
        return await read(objects, name, *args)

    monkeypatch.setattr(Objects, "find", found)
    monkeypatch.setattr(Objects, "read", counted)
    job = make_job(f"{gcs.url}/data/crops", tmp_path, max_invalid_fraction=0.5)  # type: ignore[arg-type]
    index = pipeline.window_index(job)
    assert index.summary.reasons == {"window_too_large": 1}
    ours = {name.removeprefix(window) for name in fetched if name.startswith(window)}
    assert ours <= {"/metadata.json"} and f"/{grown}" not in ours
    assert len(index) == 10


def test_a_tag_filter_spares_the_rasters_of_other_windows(
    through: Proxy, server: ObjectServer, tmp_path: Path
) -> None:
    job = make_job(f"{server.url}/data/crops", tmp_path, tags={"split": "train"})
    index = pipeline.window_index(job)
    rasters = {name.split("/layers/")[0] for name in through.fetched if "/layers/" in name}
    assert 0 < len(rasters) == len(index) < 10
    assert set(through.fetched.values()) == {1}


def test_processes_fetch_too(
    through: Proxy, server: ObjectServer, tmp_path: Path, reference: Path
) -> None:
    if server.scheme != "gs":
        pytest.skip("starting processes takes long; one server will do")
    job = make_job(f"{server.url}/data/crops", tmp_path)
    settings = type(job.settings)(eval_root=str(tmp_path), workers=2, engine="processes")
    pipeline.ingest(open_job(job.spec, settings))
    assert_same_ingest(tmp_path, reference)
    assert {n for name, n in through.fetched.items() if "/windows/" in name} == {1}


def test_any_other_file_system_of_fsspec(small: Path, tmp_path: Path, reference: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(f"{small}/", "/data/crops", recursive=True)
    try:
        pipeline.ingest(make_job("memory://data/crops", tmp_path))  # type: ignore[arg-type]
        assert_same_ingest(tmp_path, reference)
    finally:
        memory.rm("/data", recursive=True)


# ----------------------------------------------------------------------------- what goes wrong


def test_a_missing_bucket_and_a_missing_folder_are_told(server: ObjectServer) -> None:
    with pytest.raises(SourceNotFoundError, match="there is no bucket nowhere-at-all"):
        open_source(f"{server.scheme}://nowhere-at-all/crops")
    with pytest.raises(SourceNotFoundError, match=r"does not exist in .*studio-bucket"):
        open_source(f"{server.url}/data/nope")


def test_missing_permissions_are_one_sentence(through: Proxy, server: ObjectServer) -> None:
    through.refused = 403
    with pytest.raises(SourceError, match=r"not allowed with .*Forbidden|not allowed with") as told:
        open_source(f"{server.url}/data/crops")
    assert "\n" not in str(told.value)
    assert "studio-bucket" in str(told.value)


@pytest.fixture
def copied_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where windows are in place already."""
    monkeypatch.setattr(pipeline, "copying_ahead", lambda job, **_: None)


def test_windows_of_a_bucket_are_written_once_into_the_copy_that_waits_for_their_splits(
    through: Proxy,
    server: ObjectServer,
    tmp_path: Path,
    reference: Path,
) -> None:
    for stage in pipeline.STAGES:
        pipeline.run_stage(make_job(f"{server.url}/data/crops", tmp_path), stage)
        if stage == "norm_stats":
            staged = [p for p in (tmp_path / "crops/.staging/windows").rglob("*") if p.is_file()]
            assert len(staged) <= 1  # that whose shape was looked at first
            assert len(list((tmp_path / "crops/.copied_ahead").glob("*/metadata.json"))) == 10
    assert_same_ingest(tmp_path, reference)
    assert {n for name, n in through.fetched.items() if "/windows/" in name} == {1}


def test_an_object_that_changes_after_the_index_is_noticed(
    server: ObjectServer, small: Path, tmp_path: Path, copied_later: None
) -> None:
    url = server.upload(small, "changing")
    pipeline.run_stage(make_job(url, tmp_path), "window_index")
    pipeline.run_stage(make_job(url, tmp_path), "split_assignment")
    shutil.rmtree(tmp_path / "crops" / ".staging" / "windows")  # as if it had been lost
    raster = next(small.rglob("geotiff.tif"))
    data = bytearray(raster.read_bytes())
    data[-1] ^= 1  # of the same size
    name = f"{url}/{raster.relative_to(small)}"
    server.filesystem().pipe(name, bytes(data))
    with pytest.raises(SourceError, match=r"changed since it was listed .*run again"):
        pipeline.run_stage(make_job(url, tmp_path), "weka_copy")
    outcomes = pipeline.ingest(make_job(url, tmp_path))
    assert outcomes[0].ran and outcomes[-1].ran


def test_an_object_that_is_gone_is_noticed(server: ObjectServer, small: Path) -> None:
    url = server.upload(small, "vanishing")
    source = open_source(url)
    windows = list(source.windows(source.groups(), LAYERS))
    server.filesystem().rm(f"{url}/windows/{windows[0].key}/metadata.json")
    with pytest.raises(SourceError, match="has gone since it was listed; run again"):
        for _files, reader in source.readers(windows):
            reader.read(_files.group, _files.name, _files.by_path["metadata.json"])


def test_staged_windows_that_are_damaged_are_fetched_again(
    through: Proxy, server: ObjectServer, tmp_path: Path, reference: Path, copied_later: None
) -> None:
    url = f"{server.url}/data/crops"
    for stage in pipeline.STAGES[:3]:
        pipeline.run_stage(make_job(url, tmp_path), stage)
    staged = sorted(p for p in (tmp_path / "crops/.staging/windows").rglob("*") if p.is_file())
    assert len(staged) == 10
    data = bytearray(staged[0].read_bytes())
    data[-1] ^= 1
    staged[0].write_bytes(data)
    staged[1].write_bytes(staged[1].read_bytes()[:-100])
    staged[2].unlink()
    through.reset()
    for stage in pipeline.STAGES[3:]:
        pipeline.run_stage(make_job(url, tmp_path), stage)
    assert_same_ingest(tmp_path, reference)
    again = {name.split("/layers/")[0] for name in through.fetched if "/layers/" in name}
    assert len(again) == 3


def test_a_server_whose_etags_are_no_checksums_is_believed(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if server.scheme != "s3":
        pytest.skip("Google's objects have a CRC32C")
    store = Objects(f"{server.url}/data/crops")
    (entry,) = [e for e in store.require() if e.name == "config.json"]
    false = replace(entry, version=f"etag:{'0' * 32}", token="")
    real = store._backend._entry
    monkeypatch.setattr(
        store._backend, "_entry", lambda *args: replace(real(*args), version=false.version)
    )
    for _ in range(2):
        assert json.loads(store.run(store.read("config.json", false)))["layers"]


@pytest.mark.parametrize("etag", ["%s-2", "%s0", "%.32s"], ids=["parts", "long", "encrypted"])
def test_an_object_that_is_overwritten_at_its_size_is_not_taken_for_the_listed_one(
    etag: str, server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if server.scheme != "s3":
        pytest.skip("Google's objects have a CRC32C")
    url, fs = f"{server.url}/data/overwritten", server.filesystem()
    store, real = Objects(url), S3Backend._entry

    def entry(*args: Any) -> Entry:
        found = real(*args)
        return replace(found, version=f"etag:{etag % found.version.removeprefix('etag:')[::-1]}")

    monkeypatch.setattr(S3Backend, "_entry", entry)
    fs.pipe_file(f"{url}/a", b"one")
    fs.pipe_file(f"{url}/b", b"same")
    entries = {e.name: e for e in store.require()}
    assert store.run(store.read("a", entries["a"])) == b"one"
    assert store.run(store.read("b", entries["b"])) == b"same"
    fs.pipe_file(f"{url}/a", b"two")
    with pytest.raises(SourceError, match="a has changed since it was listed"):
        store.run(store.read("a", entries["a"]))


@pytest.mark.parametrize("kind", ["time", "blob_id", "ETag"])
def test_a_store_without_checksums_is_looked_at_again(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/overwritten/a", b"one")
    store, real = Objects("memory://overwritten"), FsspecBackend.entry

    def entry(self: FsspecBackend, info: dict[str, Any]) -> Entry:
        mark = {} if kind == "time" else {kind: real(self, info).version[5:]}
        return real(self, {**info, **mark})

    monkeypatch.setattr(FsspecBackend, "entry", entry)
    (listed,) = store.require()
    assert listed.version.startswith("time:" if kind == "time" else "etag:")
    assert store.run(store.read("a", listed)) == b"one"
    memory.pipe_file("/overwritten/a", b"two")
    with pytest.raises(SourceError, match="a has changed since it was listed"):
        store.run(store.read("a", listed))
    memory.rm("/overwritten", recursive=True)


def test_an_object_beside_the_windows_arrives_as_it_was_listed(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/beside/database", b"one")
    source = RemoteSource("memory://beside", tmp_path)
    assert source.on_disk("database").joinpath("database").read_bytes() == b"one"
    source = RemoteSource("memory://beside", tmp_path / "other")
    source.check()
    memory.pipe_file("/beside/database", b"two")
    with pytest.raises(SourceError, match="has changed while it was read"):
        source.on_disk("database")
    memory.rm("/beside", recursive=True)


def test_an_archive_that_is_overwritten_at_its_size_is_not_taken(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, url = fsspec.filesystem("memory"), f"memory://{tmp_path.name}/crops.tar"
    with tarfile.open(tmp_path / "crops.tar", "w") as archive:
        archive.add(small, ".")
    data = (tmp_path / "crops.tar").read_bytes()
    memory.pipe(url, data)
    real = Objects.open

    def late(self: Objects) -> Any:
        memory.pipe(url, data.replace(b"II*", b"II+"))
        return real(self)

    monkeypatch.setattr(Objects, "open", late)
    with pytest.raises(SourceError, match="has changed while it was read; run again"):
        open_source(url, archives=tmp_path / "unpacked")
    assert list((tmp_path / "unpacked").iterdir()) == []
    memory.rm(f"/{tmp_path.name}", recursive=True)


def test_an_answer_that_does_not_come_is_asked_for_again(
    through: Proxy, server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry.random, "uniform", lambda *_: 0.0)
    through.stall_s = 2.0
    store = Objects(f"{server.url}/data/crops", limits=Limits(timeout_s=0.5))
    store.require()
    assert json.loads(store.run(store.read("config.json")))["layers"]
    assert through.fetched["data/crops/config.json"] >= 1


def test_truncated_without_a_word_is_noticed_by_size_and_crc32c(
    gcs: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry.random, "uniform", lambda *_: 0.0)
    store = Objects(f"{gcs.url}/data/crops")
    (entry,) = [e for e in store.require() if e.name == "config.json"]
    assert entry.version.startswith("crc32c:")
    real, calls = store._backend.get, []

    async def get(name: str) -> tuple[Entry | None, bytes]:
        found, data = await real(name)
        calls.append(name)
        return found, {1: data[:-10], 2: data[:-1] + b"?"}.get(len(calls), data)

    monkeypatch.setattr(store._backend, "get", get)
    assert store.run(store.read("config.json", entry)).endswith(b"}\n")
    assert len(calls) == 3


def test_a_url_that_fsspec_does_not_know_is_told() -> None:
    with pytest.raises(SourceError, match=r"can't be opened: .*give a path, gs://"):
        open_source("nonsense://bucket/crops")


# ------------------------------------------------------------------------------ small and quick


def test_prefixes_cover_every_name_once_within_the_limit() -> None:
    names = [f"tolbi_{k:06d}" for k in range(3000)] + ["a", "ab", "abc", "-x", "é"]
    found = prefixes(names, 64)
    for name in names:
        assert sum(f"{name}/".startswith(prefix) for prefix in found) == 1
    counts = [sum(f"{name}/".startswith(prefix) for name in names) for prefix in found]
    assert max(counts) <= 64
    assert len(found) < 400
    assert prefixes([], 64) == []
    nested = ["a" * length for length in range(1, 1000)]
    assert prefixes(nested, 1) == sorted(f"{name}/" for name in nested)


def test_many_windows_are_listed_by_many_prefixes(
    server: ObjectServer, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "WINDOWS_PER_LISTING", 2)
    source = open_source(f"{server.url}/data/crops")
    assert [w.key for w in source.windows(source.groups(), LAYERS)] == [
        w.key for w in LocalSource(str(small)).windows(source.groups(), LAYERS)
    ]


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[frozenset[str]]:
    """The layers of each listing of a bucket."""
    found: list[frozenset[str]] = []
    windows = RemoteSource.windows

    def noting(
        source: RemoteSource, groups: list[str], layers: frozenset[str]
    ) -> Iterator[WindowFiles]:
        found.append(layers)
        return windows(source, groups, layers)

    monkeypatch.setattr(RemoteSource, "windows", noting)
    return found


def test_a_listing_holds_what_was_listed(
    server: ObjectServer, tmp_path: Path, listed: list[frozenset[str]]
) -> None:
    source = RemoteSource(f"{server.url}/data/crops", tmp_path)
    windows = list(source.windows(source.groups(), LAYERS))
    assert list(source.listing(source.groups(), LAYERS)) == [w.listed for w in windows]
    other = RemoteSource(source.url, tmp_path)
    listed.clear()
    other.ensure_listed(source.groups(), LAYERS)
    assert [other.window(w.group, w.name, LAYERS) for w in windows] == windows
    assert listed == []
    other.ensure_listed(source.groups(), LAYERS | {"other"})
    assert listed == [LAYERS | {"other"}]


def test_a_listing_that_was_stopped_does_not_count(
    server: ObjectServer, tmp_path: Path, listed: list[frozenset[str]]
) -> None:
    source = RemoteSource(f"{server.url}/data/crops", tmp_path)
    partial = source.listing(source.groups(), LAYERS)
    next(partial)
    partial.close()
    RemoteSource(source.url, tmp_path).ensure_listed(source.groups(), LAYERS)
    assert listed == [LAYERS, LAYERS]


def test_staged_bytes_are_those_of_one_version(small: Path, tmp_path: Path) -> None:
    source = LocalSource(str(small))
    files = next(source.windows(source.groups(), LAYERS))
    data = {file.path: source.read(files.group, files.name, file) for file in files.files}
    staged = StagedWindows(tmp_path)
    staged.save(files, data)
    assert staged.load(files) == data
    assert staged.load(type(files)(files.group, files.name, files.files[1:])) is None
    staged.drop(files)
    assert staged.load(files) is None


def test_a_remote_source_crosses_processes(server: ObjectServer, tmp_path: Path) -> None:
    import pickle

    source = RemoteSource(f"{server.url}/data/crops", tmp_path)
    source.check()
    assert pickle.loads(pickle.dumps(source)).groups() == source.groups()


def test_gcsfs_does_no_experiments_even_if_somebody_has_imported_it_before(
    gcs: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "true")
    code = (
        "import gcsfs; from eval_ingest.objects.filesystems import open_filesystem; "
        f"print(type(open_filesystem({gcs.url!r})) is gcsfs.core.GCSFileSystem, "
        "gcsfs.GCSFileSystem is gcsfs.core.GCSFileSystem)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True", "False"]
