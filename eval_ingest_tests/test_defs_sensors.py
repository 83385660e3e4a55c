"""The discovery sensor, tick by tick, on a real instance."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.sensor_definition import SensorExecutionData

from eval_ingest.definitions import build_defs
from eval_ingest.defs import sensors
from eval_ingest.defs.resources import build_resources
from eval_ingest.defs.sensors import Cursor
from eval_ingest.errors import SourceError
from eval_ingest.pipeline import STAGES
from eval_ingest.settings import Settings
from eval_ingest.store.layout import EvalRoot
from eval_ingest.store.registry import read_registry
from eval_ingest_tests.servers import gcs_server

Tick = Callable[..., SensorExecutionData]


class Ticks:
    """Runs ticks as the daemon does: each with the cursor that the one before left."""

    def __init__(self, instance: dg.DagsterInstance, settings: Settings) -> None:
        self.instance = instance
        self.settings = settings
        self.cursor: str | None = None
        self.log: list[str] = []

    def __call__(self) -> SensorExecutionData:
        defs = build_defs(self.settings)
        repository = defs.get_repository_def()
        sensor = repository.get_sensor_def("studio_discovery")
        with dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            repository_def=repository,
            resources=build_resources(self.settings),
        ) as context:
            data = sensor.evaluate_tick(context)
        self.cursor = data.cursor or self.cursor
        for request in data.dynamic_partitions_requests or ():
            self.instance.add_dynamic_partitions(
                request.partitions_def_name, request.partition_keys
            )
        return data

    def run(self, data: SensorExecutionData) -> list[bool]:
        """Do what the tick asked for."""
        job = build_defs(self.settings).resolve_job_def("ingest_studio_dataset")
        return [
            job.execute_in_process(
                instance=self.instance, partition_key=request.partition_key, raise_on_error=False
            ).success
            for request in data.run_requests or ()
        ]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


@pytest.fixture
def ticks(tmp_path: Path, root: Path) -> Iterator[Ticks]:
    settings = Settings(
        eval_root=str(tmp_path / "evals"), workers=2, studio_roots=(str(root),), variables={}
    )
    with dg.instance_for_test() as instance:
        yield Ticks(instance, settings)


def test_a_new_dataset_is_registered_without_any_reload(
    small: Path, root: Path, ticks: Ticks
) -> None:
    shutil.copytree(small, root / "Nice Crops")
    data = ticks()
    (request,) = data.run_requests or ()
    assert request.partition_key == "nice_crops"
    assert request.run_key is not None and request.run_key.startswith("nice_crops:")
    (added,) = data.dynamic_partitions_requests or ()
    assert added.partition_keys == ["nice_crops"]
    assert ticks.run(data) == [True]
    eval_root = EvalRoot(Path(ticks.settings.eval_root))
    assert list(read_registry(eval_root)) == ["nice_crops"]
    for stage in STAGES:
        assert ticks.instance.get_materialized_partitions(dg.AssetKey(stage)) == {"nice_crops"}


def test_an_unchanged_dataset_is_left_alone_and_a_changed_one_is_asked_for_again(
    small: Path, root: Path, ticks: Ticks
) -> None:
    shutil.copytree(small, root / "crops")
    first = ticks()
    assert not (second := ticks()).run_requests
    assert second.skip_message == "1 datasets found, nothing new or changed"
    ticks.run(first)
    assert not ticks().run_requests
    windows = sorted((root / "crops" / "windows").glob("*/*"))
    shutil.rmtree(windows[0])
    third = ticks()
    (old,), (new,) = first.run_requests or (), third.run_requests or ()
    assert new.partition_key == "crops" and new.run_key != old.run_key
    assert new.tags["eval_ingest/state"] == "changed"
    assert not third.dynamic_partitions_requests
    assert not ticks().run_requests


def test_what_is_registered_already_is_not_ingested_again(
    small: Path, root: Path, ticks: Ticks
) -> None:
    shutil.copytree(small, root / "crops")
    ticks.run(ticks())
    ticks.cursor = None  # lost, or reset on the page
    assert not ticks().run_requests


def test_a_folder_that_can_not_be_ingested_is_told_once_and_taken_when_mended(
    small: Path, root: Path, ticks: Ticks, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(small, root / "crops")
    shutil.copytree(small, root / "broken")
    good = (root / "broken" / "model.yaml").read_text()
    (root / "broken" / "model.yaml").write_text("data: [unclosed")
    first = ticks()
    assert [r.partition_key for r in first.run_requests or ()] == ["crops"]
    told = Cursor.parse(ticks.cursor).told
    assert "model.yaml" in told[str(root / "broken")]
    second = ticks()
    assert "model.yaml" in (second.skip_message or "")  # still to be seen in the tick
    assert Cursor.parse(ticks.cursor).told == told
    (root / "broken" / "model.yaml").write_text(good)
    assert [r.partition_key for r in ticks().run_requests or ()] == ["broken"]
    assert Cursor.parse(ticks.cursor).told == {}


def test_problems_are_logged_once(root: Path) -> None:
    import logging

    lines: list[str] = []
    log = logging.Logger("tick")
    log.addHandler(_Lines(lines))
    cursor = Cursor()
    for reason in ("down", "down", "still down, otherwise"):
        cursor.tell(log, "gs://a", reason)
    assert lines == ["down", "still down, otherwise"]
    assert Cursor.parse(cursor.dump()) == cursor
    assert Cursor.parse("not json") == Cursor.parse("[]") == Cursor()


class _Lines:
    level = 0

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def handle(self, record: "object") -> None:
        self._lines.append(record.getMessage())  # type: ignore[attr-defined]


def test_a_root_that_is_down_does_not_stop_the_others(
    small: Path, root: Path, ticks: Ticks, tmp_path: Path
) -> None:
    shutil.copytree(small, root / "crops")
    roots = (str(tmp_path / "gone"), str(root))
    ticks.settings = Settings(eval_root=ticks.settings.eval_root, workers=2, studio_roots=roots)
    assert [r.partition_key for r in ticks().run_requests or ()] == ["crops"]
    assert "does not exist" in Cursor.parse(ticks.cursor).told[roots[0]]
    assert "does not exist" in (ticks().skip_message or "")


def test_a_slow_tick_goes_on_in_the_next(
    small: Path, root: Path, ticks: Ticks, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        shutil.copytree(small, root / name)
    monkeypatch.setattr(sensors, "BUDGET_S", -1.0)
    assert not ticks().run_requests
    monkeypatch.setattr(sensors, "BUDGET_S", 30.0)
    assert len(ticks().run_requests or ()) == 2


def test_an_eval_root_out_of_reach_is_told(small: Path, root: Path, ticks: Ticks) -> None:
    shutil.copytree(small, root / "crops")
    ticks.settings = Settings(eval_root="weka://nowhere/evals", studio_roots=(str(root),))
    data = ticks()
    assert not data.run_requests
    assert "set OLMOEARTH_EVAL_DATASETS" in (data.skip_message or "")


def test_the_sensor_runs_where_there_are_roots() -> None:
    running = sensors.discovery_sensor(("gs://bucket",))
    stopped = sensors.discovery_sensor(())
    assert running.default_status is dg.DefaultSensorStatus.RUNNING
    assert stopped.default_status is dg.DefaultSensorStatus.STOPPED
    assert running.minimum_interval_seconds == 60


def test_without_roots_it_says_what_to_set(ticks: Ticks) -> None:
    ticks.settings = Settings(eval_root=ticks.settings.eval_root)
    assert "EVAL_INGEST_STUDIO_ROOTS" in (ticks().skip_message or "")


def test_a_dataset_dropped_into_a_bucket_is_ingested(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gcs_server() as server, dg.instance_for_test() as instance:
        for key, value in server.environment.items():
            monkeypatch.setenv(key, value)
        settings = Settings(
            eval_root=str(tmp_path / "evals"), workers=2, studio_roots=(f"{server.url}/datasets",)
        )
        ticks = Ticks(instance, settings)
        assert "does not exist or is empty" in (ticks().skip_message or "")
        server.upload(small, "datasets/team/new_crops")
        data = ticks()
        assert [r.partition_key for r in data.run_requests or ()] == ["new_crops"]
        assert ticks.run(data) == [True]
        assert list(read_registry(EvalRoot(tmp_path / "evals"))) == ["new_crops"]
        assert "nothing new" in (ticks().skip_message or "")


def test_a_bucket_that_refuses_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def list_blobs(self, *args: object, **kwargs: object) -> None:
            raise RuntimeError("403 no\nmore lines")

    with pytest.raises(SourceError, match=r"403 no; check the URL") as told:
        sensors.GcsLister(Refusing(), "bucket", "folder")([""])
    assert "\n" not in str(told.value)


def test_loading_the_code_location_imports_no_cloud_library() -> None:
    import subprocess
    import sys

    code = (
        "import sys, eval_ingest.definitions as d; from eval_ingest.settings import Settings; "
        "d.build_defs(Settings(eval_root='/nowhere', studio_roots=('gs://b',))); "
        "print([m for m in ('gcsfs', 's3fs', 'dagster_gcp', 'torch', 'rslearn.train')"
        " if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout.strip().splitlines()[-1].replace("'", '"')) == []
