"""Windows in rslearn's SQLite storage: ingested as windows in files are, the database unchanged."""

import json
import resource
import shutil
import sqlite3
import struct
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch

from benchmarks.storages import rewritten
from eval_ingest import EvalDataset, pipeline
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.engine import no_progress
from eval_ingest.errors import EvalIngestError, MachineError, SourceError
from eval_ingest.job import open_job
from eval_ingest.settings import Settings
from eval_ingest.sources import remote
from eval_ingest.sources.open import open_source
from eval_ingest.sources.sqlite import DATABASE, SqliteSource
from eval_ingest.store.roots.open import open_root
from eval_ingest.verifying import verify_dataset
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support.comparing import compare
from eval_ingest_tests.support.lacking import no_handles, no_rights, open_to_all
from eval_ingest_tests.support.oracle import rslearn_samples
from eval_ingest_tests.support.servers import ObjectServer


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


@pytest.fixture(params=["gs", "archive"])
def elsewhere(
    request: pytest.FixtureRequest,
    source: Path,
    servers: dict[str, ObjectServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """The source where SQLite can't open a file, the last change to its database in the log."""
    own = shutil.copytree(source, tmp_path / "made" / "inner")
    database = sqlite3.connect(own / DATABASE)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("DELETE FROM windows WHERE name = 'window_0003'")
    database.commit()
    place = tmp_path / "place"
    shutil.copytree(own, place / "inner")  # with its log, which is gone when it is closed
    database.close()
    assert (place / "inner" / f"{DATABASE}-wal").stat().st_size > 0
    if request.param == "archive":
        return shutil.make_archive(str(tmp_path / "packed"), "gztar", place)
    server = servers[request.param]
    for key, value in server.environment.items():
        monkeypatch.setenv(key, value)
    return server.upload(place / "inner", f"data/{tmp_path.name}")


def test_a_database_in_a_bucket_or_an_archive_is_read_as_in_a_folder(
    elsewhere: str, own: Path, tmp_path: Path
) -> None:
    run(own, "DELETE FROM windows WHERE name = 'window_0003'")
    roots = tmp_path / "here", tmp_path / "there"
    for url, root in zip((own, elsewhere), roots, strict=True):
        pipeline.ingest(make_job(url, root, max_invalid_fraction=0.5))
    for split in ("train", "val", "test"):
        here, there = (EvalDataset("crops", split, root=root) for root in roots)
        assert len(here) == len(there) > 0
        for one, other in zip(here, there, strict=True):
            assert one["window"] == other["window"]
            assert torch.equal(one["target"], other["target"])
            assert all(torch.equal(one[name], other[name]) for name in here.bands)
    copies = [
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*.*") if path.is_file()}
        for root in (root / "crops" / "windows" for root in roots)
    ]
    assert copies[0] == copies[1] and len(copies[0]) > 30
    again = pipeline.ingest(make_job(elsewhere, roots[1], max_invalid_fraction=0.5))
    assert not any(outcome.ran for outcome in again)


def test_samples_are_read_from_a_bucket_with_a_database(
    source: Path,
    servers: dict[str, ObjectServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for key, value in servers["s3"].environment.items():
        monkeypatch.setenv(key, value)
    url = servers["s3"].upload(source, "data/read")
    pipeline.ingest(make_job(url, tmp_path, copy="index", max_invalid_fraction=0.5))
    expected = {(s.group, s.name): s for s in rslearn_samples(source)}
    dataset = EvalDataset("crops", "val", root=tmp_path, normalize=None, crop=None)
    group, name = dataset.window(0).split("/")
    compare(dataset, dataset[0], expected[group, name])
    monkeypatch.setattr(remote, "MOST_BESIDE", 100)
    with pytest.raises(SourceError, match="more than the 100 that are fetched"):
        open_source(url).groups()


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


@pytest.mark.parametrize("link", ["windows", "windows/sen12", "windows/sen12/window_0000"])
def test_a_link_out_of_the_dataset_is_not_followed(link: str, own: Path, tmp_path: Path) -> None:
    shutil.move(own / link, tmp_path / "private")
    (own / link).symlink_to(tmp_path / "private")
    with pytest.raises(SourceError, match=r"is a link to .*private, which is outside of the"):
        pipeline.ingest(make_job(own, tmp_path / "root", max_invalid_fraction=0.5))
    assert not (tmp_path / "root" / "crops" / "metadata.json").exists()


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


@pytest.mark.parametrize("form", ["bare variable", "class path alone", "variable"])
def test_a_database_is_read_however_the_configuration_names_it(
    form: str, own: Path, tmp_path: Path
) -> None:
    config = json.loads((own / "config.json").read_text())
    named = config["storage"]["class_path"]
    config["workers"] = 1
    if form == "class path alone":
        config["storage"] = named
    elif form == "variable":
        config["storage"]["class_path"] = "${WINDOW_STORAGE}"
    text = json.dumps(config)
    if form == "bare variable":
        text = text.replace('"workers": 1', '"workers": ${NUM_WORKERS}')
    (own / "config.json").write_text(text)
    values = {"name": "crops", "source": str(own), "max_invalid_fraction": 0.5, "copy": "index"}
    settings = Settings(str(tmp_path / "root"), workers=2, variables={"WINDOW_STORAGE": named})
    outcomes = pipeline.ingest(open_job(DatasetSpec.parse(values, "test"), settings))
    assert len(outcomes[0].value) == 16
    dataset = EvalDataset("crops", "val", root=tmp_path / "root")
    assert dataset[0]["target"].numel()
    assert verify_dataset(open_root(settings), "crops", no_progress).problems == []


def _logged(own: Path, folder: Path) -> Path:
    """Copy the dataset with its last change in the log, as a writer that is killed leaves it."""
    database = sqlite3.connect(own / DATABASE)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("DELETE FROM windows WHERE name = 'window_0003'")
    database.commit()
    shutil.copytree(own, folder, ignore=shutil.ignore_patterns("*-shm"))
    database.close()
    assert (folder / f"{DATABASE}-wal").stat().st_size > 0
    return folder


def test_what_is_in_the_log_counts_where_nothing_can_be_written(own: Path) -> None:
    with open_to_all() as folder:
        logged = _logged(own, folder / "own")
        for path in (*logged.rglob("*"), logged):
            path.chmod(0o555 if path.is_dir() else 0o444)
        with no_rights():
            source = open_source(str(logged))
            names = {window.name for window in source.windows(source.groups(), frozenset())}
        assert "window_0002" in names and "window_0003" not in names
        assert sorted(p.name for p in logged.glob(f"{DATABASE}*")) == [DATABASE, f"{DATABASE}-wal"]


@pytest.mark.parametrize("name", [DATABASE, f"{DATABASE}-wal"])
def test_a_part_of_a_database_that_may_not_be_read_is_told(name: str, own: Path) -> None:
    with open_to_all() as folder:
        (_logged(own, folder / "own") / name).chmod(0)
        told = rf"/{name} can't be read: Permission denied"
        with no_rights(), pytest.raises(SourceError, match=told):
            open_source(str(folder / "own")).groups()


def test_a_machine_without_file_handles_reads_no_half_of_a_database(
    own: Path, tmp_path: Path
) -> None:
    source = open_source(str(_logged(own, tmp_path / "logged")))
    told = 0
    for left in range(6):
        try:
            with no_handles(left):
                names = {window.name for window in source.names(source.groups()) or ()}
        except MachineError as error:
            assert "ulimit -n" in str(error)
            told += 1
        else:
            assert "window_0002" in names and "window_0003" not in names
    assert 2 <= told < 6


def test_what_a_stopped_writer_had_begun_is_not_read(own: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(own / DATABASE)) as writer:
        writer.execute("PRAGMA journal_mode = DELETE")
        writer.execute("PRAGMA cache_size = 1")
        writer.execute("UPDATE windows SET options_json = hex(zeroblob(10000))")
        shutil.copytree(own, tmp_path / "killed")
    assert (tmp_path / "killed" / f"{DATABASE}-journal").stat().st_size > 0
    with pytest.raises(SourceError, match="of a writer that was stopped"):
        open_source(str(tmp_path / "killed")).groups()


def test_texts_that_are_no_utf8_make_their_window_invalid(own: Path, tmp_path: Path) -> None:
    def spoilt(table: str, column: str, name: str, key: str = "name") -> None:
        run(own, f"UPDATE {table} SET {column} = CAST(x'ff41' AS TEXT) WHERE {key} = ?", name)

    spoilt("windows", "options_json", "window_0000")
    spoilt("windows", "crs", "window_0001")
    spoilt("windows", "name", "window_0002")
    spoilt("layer_datas", "data_json", "window_0003", "window_name")
    first = pipeline.ingest(make_job(own, tmp_path / "root", max_invalid_fraction=0.5))[0]
    assert first.value.summary.reasons == {"metadata_unreadable": 3, "name_unusable": 1}


def _instead(own: Path, table: str, made: str) -> None:
    """Make another thing of a table, and keep its columns' names."""
    run(own, f"ALTER TABLE {table} RENAME TO old")
    run(own, made)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (
            "CREATE TABLE layer_datas (group_name TEXT, window_name TEXT,"
            " data_json TEXT GENERATED ALWAYS AS (hex(zeroblob(450000000))))",
            "no database of windows",
        ),
        (
            "CREATE VIEW layer_datas AS WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1"
            " FROM c) SELECT group_name, window_name, x AS data_json FROM c, old",
            "no database of windows",
        ),
    ],
)
def test_what_a_database_would_compute_or_blow_up_is_refused(
    made: str, told: str, own: Path, tmp_path: Path
) -> None:
    _instead(own, "layer_datas", made)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SourceError, match=told):
        pipeline.ingest(make_job(own, tmp_path / "root"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


@pytest.mark.parametrize(
    ("table", "column", "key"),
    [("layer_datas", "data_json", "window_name"), ("windows", "options_json", "name")],
)
def test_a_value_that_is_too_large_makes_its_window_invalid(
    table: str, column: str, key: str, own: Path, tmp_path: Path
) -> None:
    large = f"UPDATE {table} SET {column} = CAST(zeroblob(50000000) AS TEXT) WHERE {key} = ?"
    run(own, large, "window_0001")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    first = pipeline.ingest(make_job(own, tmp_path / "root", max_invalid_fraction=0.5))[0]
    assert first.value.summary.reasons == {"metadata_unreadable": 1}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


def _lead_in_circles(path: Path, levels: int = 12, cells: int = 40) -> None:
    """Make a tree of each of the windows' indexes: a page's children are all the next page."""
    query = "SELECT rootpage FROM sqlite_master WHERE tbl_name = 'windows' AND type = 'index'"
    with closing(sqlite3.connect(path)) as database:
        (size,) = database.execute("PRAGMA page_size").fetchone()
        roots = [root for (root,) in database.execute(query)]
    for root in roots:
        _make_tree(path, size, root, levels, cells)


def _make_tree(path: Path, size: int, root: int, levels: int, cells: int) -> None:
    data = bytearray(path.read_bytes())
    last = len(data) // size
    leaf = bytes(data[(root - 1) * size : root * size])
    (at,) = struct.unpack_from(">H", leaf, 8)
    entry = leaf[at : at + 1 + leaf[at]]
    data += bytes(size * levels)
    pages = [root, *range(last + 1, last + levels)]
    for page, child in zip(pages, [*pages[1:], last + levels], strict=True):
        cell = struct.pack(">I", child) + entry
        head = struct.pack(">BHHHBI", 2, 0, cells, size - cells * len(cell), 0, child)
        starts = (size - (k + 1) * len(cell) for k in range(cells))
        start = (page - 1) * size
        data[start : start + size] = bytes(size)
        data[start + size - cells * len(cell) : start + size] = cell * cells
        table = head + struct.pack(f">{cells}H", *starts)
        data[start : start + len(table)] = table
    data[(last + levels - 1) * size : (last + levels) * size] = leaf
    struct.pack_into(">I", data, 28, len(data) // size)
    path.write_bytes(data)


def test_pages_that_lead_in_circles_end(own: Path, tmp_path: Path) -> None:
    _lead_in_circles(own / DATABASE)
    started = time.process_time()
    with pytest.raises(SourceError, match=DATABASE):
        pipeline.ingest(make_job(own, tmp_path / "root"))
    assert time.process_time() - started < 30
