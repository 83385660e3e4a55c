"""Windows in rslearn's SQLite storage: ingested as windows in files are, the database unchanged."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from eval_ingest import EvalDataset, pipeline
from eval_ingest.errors import EvalIngestError, SourceError
from eval_ingest.sources.open import open_source
from eval_ingest.sources.sqlite import DATABASE, SqliteSource
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support.oracle import rslearn_samples
from eval_ingest_tests.support.storages import rewritten
from eval_ingest_tests.test_loading_parity import compare


@pytest.fixture(scope="module")
def source(written: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "source"
    return rewritten(written("ragged_segmentation"), path, sqlite=True)


@pytest.fixture
def own(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "own"))


def run(source: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(source / DATABASE)) as database, database:
        database.execute(statement, values)


@pytest.mark.parametrize("copy", ["windows", "index"])
def test_samples_equal_those_of_rslearn(copy: str, source: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    before = (source / DATABASE).read_bytes()
    assert not list((source / "windows").glob("*/*/metadata.json"))
    pipeline.ingest(make_job(source, root, copy=copy, max_invalid_fraction=0.5))
    assert (source / DATABASE).read_bytes() == before
    expected = {(s.group, s.name): s for s in rslearn_samples(source)}
    compared = 0
    for split in ("train", "val", "test"):
        dataset = EvalDataset("crops", split, root=root, normalize=None, crop=None)
        for i in range(len(dataset)):
            group, name = dataset.window(i).split("/")
            compare(dataset, dataset[i], expected[group, name])
            compared += 1
    assert compared == len(expected) == 16


def test_the_copy_has_its_windows_in_files(source: Path, tmp_path: Path) -> None:
    pipeline.ingest(make_job(source, tmp_path, max_invalid_fraction=0.5))
    copy = tmp_path / "crops"
    assert "storage" not in (copy / "config.json").read_text().replace("data_storage", "")
    assert len(list(rslearn_samples(copy, source / "model.yaml"))) == 16
    outcomes = pipeline.ingest(make_job(source, tmp_path, max_invalid_fraction=0.5))
    assert not any(outcome.ran for outcome in outcomes)


def test_a_change_in_the_database_is_a_change_of_its_window(own: Path) -> None:
    opened, layers = open_source(str(own)), frozenset({"post_sentinel2"})
    assert isinstance(opened, SqliteSource)
    before = {(w.group, w.name): w.digest for w in opened.listing(opened.groups(), layers)}
    files = opened.window("sen12", "window_0000", layers)
    run(own, "UPDATE windows SET options_json = '{}' WHERE name = 'window_0000'")
    after = {(w.group, w.name): w.digest for w in opened.listing(opened.groups(), layers)}
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {("sen12", "window_0000")}
    with pytest.raises(SourceError, match="changes while it is read"):
        opened.read("sen12", "window_0000", files.by_path["metadata.json"])


@pytest.mark.parametrize("name", ["..", "a/b", ".hidden", ""])
def test_names_that_lead_elsewhere_are_refused(name: str, own: Path) -> None:
    opened = open_source(str(own))
    run(own, "UPDATE windows SET name = ? WHERE name = 'window_0000'", name)
    with pytest.raises(SourceError, match="names no folder"):
        list(opened.listing(opened.groups(), frozenset({"post_sentinel2"})))


def test_layers_that_lead_elsewhere_are_no_files(own: Path) -> None:
    odd = "post_sentinel2/../../../../out"
    run(own, "INSERT INTO completed_layers VALUES ('sen12', 'window_0000', ?, 0)", odd)
    files = open_source(str(own)).window("sen12", "window_0000", frozenset({"post_sentinel2"}))
    assert not any(".." in path for path in files.by_path)


def test_damaged_options_make_one_window_invalid(own: Path, tmp_path: Path) -> None:
    run(own, "UPDATE windows SET options_json = '{' WHERE name = 'window_0000'")
    [first, *_] = pipeline.ingest(make_job(own, tmp_path / "root", max_invalid_fraction=0.5))
    assert first.value.summary.reasons == {"metadata_unreadable": 1}


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        lambda path: path.write_bytes(b"not a database" * 1000),
        lambda path: path.write_bytes(b""),
    ],
)
def test_a_damaged_database_stops_the_ingest(
    damage: Callable[[Path], None], own: Path, tmp_path: Path
) -> None:
    damage(own / DATABASE)
    with pytest.raises(EvalIngestError, match=DATABASE):
        pipeline.ingest(make_job(own, tmp_path / "root"))


def test_a_dataset_whose_database_is_gone_is_told_so(own: Path, tmp_path: Path) -> None:
    (own / DATABASE).unlink()
    with pytest.raises(EvalIngestError, match="rslearn dataset migrate"):
        pipeline.ingest(make_job(own, tmp_path / "root"))
