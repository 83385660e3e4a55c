"""What a copy under the same eval root holds already isn't fetched from the bucket again."""

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import rasterio

from eval_ingest import EvalDataset, pipeline
from eval_ingest.core import index as core_index
from eval_ingest.indexing import build
from eval_ingest.store import index_file
from eval_ingest.store.copies import Copies, copies_of
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support import factories
from eval_ingest_tests.support.servers import ObjectServer, Proxy, gcs_server, hurry, proxy

URL = "gs://studio-bucket/data/crops"
DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def server(small: Path) -> Iterator[ObjectServer]:
    with gcs_server() as found, pytest.MonkeyPatch.context() as patch:
        for key, value in found.environment.items():
            patch.setenv(key, value)
        yield found


@pytest.fixture
def bucket(
    server: ObjectServer, small: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, bytes], None]]:
    """Writes an object of the dataset at URL, which is as `small` is when a test begins."""
    server.upload(small, "data/crops")
    yield lambda path, data: server.filesystem().pipe(f"{URL}/{path}", data)


@pytest.fixture
def through(
    server: ObjectServer, bucket: object, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Proxy]:
    hurry(monkeypatch)
    with proxy(server.address) as found:
        for key, value in server.reached_at(found.address).items():
            monkeypatch.setenv(key, value)
        yield found


def raise_index_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a column of the index had changed its meaning since."""
    newer = replace(core_index.INDEX_FORM, version=core_index.INDEX_VERSION + 1)
    monkeypatch.setattr(index_file, "INDEX_FORM", newer)
    for module in (core_index, build):
        monkeypatch.setattr(module, "INDEX_VERSION", newer.version)


@pytest.fixture
def root(through: Proxy, tmp_path: Path) -> Path:
    """An eval root in which the bucket's dataset is `crops`; nothing is counted yet."""
    ingest(tmp_path, "crops")
    assert rasters(through)
    through.reset()
    return tmp_path


def ingest(root: Path, name: str, **spec: object) -> None:
    pipeline.ingest(make_job(URL, root, name, **spec))  # type: ignore[arg-type]


def sent(through: Proxy) -> set[str]:
    """Objects of windows, and archives, that the bucket has sent."""
    names = {name.partition("data/crops")[2] for name in through.fetched if "data/crops" in name}
    return {name for name in names if "/windows/" in name or ".tar" in name}


def rasters(through: Proxy) -> set[str]:
    """The windows of which a file of a layer was fetched."""
    return {name.split("/")[3] for name in sent(through) if "/layers/" in name}


def values(root: Path, name: str) -> tuple[dict[str, bytes], list[bytes], list[object]]:
    """The bytes of the copy and of the packed arrays, and what EvalDataset gives."""
    windows = root / name / "windows"
    copy = {str(p.relative_to(windows)): p.read_bytes() for p in windows.rglob("*") if p.is_file()}
    samples = [
        [s["window"], float(s["sentinel2_l2a"].double().sum()), int(s["target"].sum())]
        for split in ("train", "val", "test")
        for s in EvalDataset(name, split, root=root, normalize=None)
    ]
    return copy, sorted(p.read_bytes() for p in (root / name).rglob("*.npy")), samples


def some_raster(root: Path) -> Path:
    return min((root / "crops/windows").rglob("geotiff.tif"))


def test_a_second_name_fetches_no_window(root: Path, through: Proxy, reference: Path) -> None:
    ingest(root, "again")
    assert sent(through) == set()
    assert values(root, "again") == values(root, "crops") == values(reference, "crops")


def test_samples_that_are_packed_and_not_copied_come_from_a_copy_too(
    root: Path, through: Proxy
) -> None:
    ingest(root, "again", copy="stream")
    assert not rasters(through)
    assert values(root, "again")[1:] == values(root, "crops")[1:]


def test_a_dataset_of_an_older_index_is_not_fetched_again(
    root: Path, through: Proxy, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raise_index_version(monkeypatch)
    job = make_job(URL, root)  # type: ignore[arg-type]
    outcomes = pipeline.ingest(job)
    assert outcomes[0].ran and outcomes[0].value.extra["n_read"] == 10
    assert sent(through) == set()
    assert values(root, "crops")[::2] == values(reference, "crops")[::2]


def test_an_object_that_changed_is_fetched(
    root: Path,
    through: Proxy,
    bucket: Callable[[str, bytes], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = some_raster(root).relative_to(root / "crops")
    changed = tmp_path_factory.mktemp("changed") / "label.tif"
    shutil.copyfile(root / "crops" / path, changed)
    with rasterio.open(changed, "r+") as raster:
        raster.write(raster.read()[:, ::-1])
    bucket(str(path), changed.read_bytes())
    ingest(root, "again")
    assert rasters(through) == {path.parts[2]}
    assert (root / "again" / path).read_bytes() == changed.read_bytes()
    alone = tmp_path_factory.mktemp("alone")
    ingest(alone, "again")
    assert values(root, "again") == values(alone, "again")


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "window gone"])
def test_what_is_damaged_in_the_copy_is_fetched(
    root: Path, through: Proxy, reference: Path, damage: str
) -> None:
    raster = some_raster(root)
    data = raster.read_bytes()
    if damage == "changed":
        raster.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "cut":
        raster.write_bytes(data[:-100])
    elif damage == "gone":
        raster.unlink()
    else:
        shutil.rmtree(root.joinpath(*raster.parts[: len(root.parts) + 4]))
    ingest(root, "again")
    assert rasters(through) == {raster.parts[len(root.parts) + 3]}
    assert values(root, "again") == values(reference, "crops")


def test_a_manifest_that_is_damaged_vouches_for_nothing(
    root: Path, through: Proxy, reference: Path
) -> None:
    manifest = root / "crops/copy_manifest.parquet"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    ingest(root, "again")
    assert len(rasters(through)) == 10
    assert values(root, "again") == values(reference, "crops")


def test_nothing_is_taken_from_a_copy_of_another_source(root: Path) -> None:
    windows = EvalRoot(root).dataset("crops").windows
    found = copies_of(EvalRoot(root), "again", URL)
    assert found == Copies((windows,), (root / "crops" / ".archive",))
    assert pickle.loads(pickle.dumps(found)) == found
    assert copies_of(EvalRoot(root), "again", f"{URL}2") is None


def test_without_checksums_files_are_taken_of_a_window_that_is_as_it_was_copied(
    tmp_path: Path,
) -> None:
    """Not those that a copy may hold rewritten."""
    source = factories.vector_classification(tmp_path / "source")
    pipeline.ingest(make_job(source, tmp_path / "root"))
    index = index_file.read_index(tmp_path / "root/crops/window_index.parquet")
    assert index is not None
    copies, taken = Copies((EvalRoot(tmp_path / "root").dataset("crops").windows,)), set()
    for row in index.table.to_pylist():
        folder = source / "windows" / row["group"] / row["name"]
        files = [(p, p.stat()) for p in folder.rglob("*") if p.is_file()]
        listed = [(str(p.relative_to(folder)), s.st_size, str(s.st_mtime_ns)) for p, s in files]
        found = copies((row["group"], row["name"], row["source_digest"]), listed)
        assert found == {path: (folder / path).read_bytes() for path in found}
        assert copies((row["group"], row["name"], "another"), listed) == {}
        taken |= set(found)
    assert any(path.endswith("geotiff.tif") for path in taken)
    assert "metadata.json" not in taken
    assert not any(path.endswith("data.geojson") for path in taken)


# ------------------------------------------------------------------- archives, buckets, versions


@pytest.fixture
def any_root(
    request: pytest.FixtureRequest, server: ObjectServer, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:  # fmt: skip
    """An empty eval root, on a disk or in a bucket."""
    monkeypatch.setenv("EVAL_INGEST_CACHE", str(tmp_path / "cache"))
    if request.param == "local":
        return tmp_path / "root"
    return f"{server.url}/evals/{tmp_path.name}"  # type: ignore[return-value]


def samples(root: Path, name: str) -> list[object]:
    return [
        [s["window"], float(s["sentinel2_l2a"].double().sum()), int(s["target"].sum())]
        for split in ("train", "val", "test")
        for s in EvalDataset(name, split, root=root, normalize=None)
    ]


@pytest.mark.parametrize("any_root", ["gs"], indirect=True)
def test_a_copy_in_a_bucket_is_read_instead_of_the_source(
    any_root: Path, through: Proxy, reference: Path
) -> None:
    ingest(any_root, "crops")
    through.reset()
    ingest(any_root, "again")
    assert sent(through) == set()
    assert samples(any_root, "again") == samples(reference, "crops")


def pack(folder: Path, to: Path, ending: str) -> Path:
    kind = {".tar": "tar", ".tar.gz": "gztar"}[ending]
    return Path(shutil.make_archive(str(to / "packed"), kind, folder))


@pytest.mark.parametrize(
    ("any_root", "ending"), [("local", ".tar.gz"), ("gs", ".tar")], indirect=["any_root"]
)
def test_an_archive_is_fetched_once_for_all_names_and_versions(
    ending: str, any_root: Path, through: Proxy, small: Path, reference: Path, server: ObjectServer,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    url = f"{URL}{ending}"
    server.filesystem().pipe(url, pack(small, tmp_path, ending).read_bytes())
    pipeline.ingest(make_job(url, any_root))  # type: ignore[arg-type]
    assert sent(through) == {ending}
    through.reset()
    pipeline.ingest(make_job(url, any_root, "again"))  # type: ignore[arg-type]
    raise_index_version(monkeypatch)
    outcomes = pipeline.ingest(make_job(url, any_root, "again"))  # type: ignore[arg-type]
    assert outcomes[0].ran and outcomes[0].value.extra["n_read"] == 10
    assert sent(through) == set()
    for name in ("crops", "again"):
        assert samples(any_root, name) == samples(reference, "crops")
    if any_root == tmp_path / "root":
        assert values(any_root, "again")[::2] == values(reference, "crops")[::2]


def test_an_archive_is_read_again_where_a_copy_is_damaged(
    small: Path, reference: Path, tmp_path: Path
) -> None:
    root, archive = tmp_path / "root", pack(small, tmp_path, ".tar.gz")
    pipeline.ingest(make_job(archive, root))
    raster = some_raster(root)
    raster.write_bytes(raster.read_bytes()[:-1] + b"x")
    pipeline.ingest(make_job(archive, root, "again"))
    assert values(root, "again") == values(reference, "crops")


@pytest.mark.parametrize("released", sorted(DATA.glob("root_*.tar.gz")), ids=lambda p: p.name)
def test_a_root_of_a_released_format_is_brought_up_without_the_windows_of_its_bucket(
    released: Path, through: Proxy, server: ObjectServer, tmp_path: Path
) -> None:
    """The bucket holds what it was ingested from: its copy without the splits."""
    root, source = tmp_path / "root", tmp_path / "source"
    shutil.unpack_archive(released, root, filter="data")
    shutil.copytree(root / "crops" / "windows", source / "windows")
    for path in source.rglob("windows/*/*/metadata.json"):
        content = json.loads(path.read_text())
        del content["options"]["eval_split"]
        path.write_text(json.dumps(content))
    shutil.copy(root / "crops" / "config.json", source)
    shutil.copy(root / "crops" / "model.original.yaml", source / "model.yaml")
    server.upload(source, "released/crops")
    before = samples(root, "crops")
    through.reset()
    job = make_job("gs://studio-bucket/released/crops", root, crop_size=8)  # type: ignore[arg-type]
    outcomes = pipeline.ingest(job)
    assert outcomes[0].value.extra["n_read"] == len(before)
    assert not any("/windows/" in name for name in through.fetched)
    assert samples(root, "crops") == before
