"""What a copy under the same eval root holds already isn't fetched from the bucket again."""

import pickle
import shutil
from collections.abc import Callable, Iterator
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


@pytest.fixture
def root(through: Proxy, tmp_path: Path) -> Path:
    """An eval root in which the bucket's dataset is `crops`; nothing is counted yet."""
    ingest(tmp_path, "crops")
    assert rasters(through)
    through.reset()
    return tmp_path


def ingest(root: Path, name: str, **spec: object) -> None:
    pipeline.ingest(make_job(URL, root, name, **spec))  # type: ignore[arg-type]


def rasters(through: Proxy) -> set[str]:
    """The windows of which a file of a layer was fetched."""
    return {name.split("/")[4] for name in through.fetched if "/layers/" in name}


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


def test_a_second_name_fetches_metadata_alone(root: Path, through: Proxy, reference: Path) -> None:
    ingest(root, "again")
    windows = {name: n for name, n in through.fetched.items() if "/windows/" in name}
    assert len(windows) == 10 and set(windows.values()) == {1}
    assert all(name.endswith("/metadata.json") for name in windows)
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
    for module in (core_index, build, index_file):
        monkeypatch.setattr(module, "INDEX_VERSION", core_index.INDEX_VERSION + 1)
    job = make_job(URL, root)  # type: ignore[arg-type]
    outcomes = pipeline.ingest(job)
    assert outcomes[0].ran and outcomes[0].value.extra["n_read"] == 10
    assert not rasters(through)
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
    found = copies_of(EvalRoot(root), "again", URL)
    assert found == Copies((root / "crops",))
    assert pickle.loads(pickle.dumps(found)) == found
    assert copies_of(EvalRoot(root), "again", f"{URL}2") is None
    remote = EvalRoot(root)
    remote.cache_bytes = 1 << 30  # as one in a bucket has
    assert copies_of(remote, "again", URL) is None


def test_files_that_a_copy_may_hold_rewritten_are_not_taken_from_it(tmp_path: Path) -> None:
    source = factories.vector_classification(tmp_path / "source")
    pipeline.ingest(make_job(source, tmp_path / "root"))
    index = index_file.read_index(tmp_path / "root/crops/window_index.parquet")
    assert index is not None
    copies, taken = Copies((tmp_path / "root/crops",)), set()
    for row in index.table.to_pylist():
        folder = source / "windows" / row["group"] / row["name"]
        paths = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
        found = copies((row["group"], row["name"], row["source_digest"]), paths)
        assert found == {path: (folder / path).read_bytes() for path in found}
        assert copies((row["group"], row["name"], "another"), paths) == {}
        taken |= set(found)
    assert any(path.endswith("geotiff.tif") for path in taken)
    assert "metadata.json" not in taken
    assert not any(path.endswith("data.geojson") for path in taken)
