"""The discovery sensor, tick by tick, on a real instance."""

import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.sensor_definition import SensorExecutionData

from eval_ingest import pipeline, watching
from eval_ingest.background import Background
from eval_ingest.core.resolved import ResolvedConfig
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.definitions import build_defs
from eval_ingest.defs import sensors
from eval_ingest.defs.cursor import Cursor, Seen, Step
from eval_ingest.defs.resources import build_resources
from eval_ingest.errors import InvalidWindowsError
from eval_ingest.inference.resolve import ConfigFiles
from eval_ingest.job import open_job
from eval_ingest.pipeline import STAGES
from eval_ingest.settings import Settings
from eval_ingest.sources.discovery import Found, find_datasets
from eval_ingest.sources.looks import Memory
from eval_ingest.store.catalog import add_spec, find_spec
from eval_ingest.store.registry import read_registry
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest_tests.support.servers import gcs_server, proxy

# Outside of pytest defs/running.py silences it, and says why.

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
            context.log.addHandler(_Lines(self.log))
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
                instance=self.instance,
                partition_key=request.partition_key,
                tags=request.tags,
                raise_on_error=False,
            ).success
            for request in data.run_requests or ()
        ]

    def until_asked(self, success: bool = True) -> list[dg.RunRequest]:
        """Two ticks, and the runs that the second asks for; they must end as said.

        They are ingests without Dagster's job, whose pictures take seconds, but with its records.
        """
        first = self()
        requests = list((first if first.run_requests else self()).run_requests or ())
        for request in requests:
            spec = find_spec(self.settings, str(request.partition_key))
            try:
                pipeline.ingest(open_job(spec, self.settings))
            except InvalidWindowsError:
                assert not success
                self.leave(request, dg.DagsterRunStatus.FAILURE)
            else:
                assert success
                self.leave(request, dg.DagsterRunStatus.SUCCESS)
        return requests

    def leave(self, request: dg.RunRequest, status: dg.DagsterRunStatus) -> dg.DagsterRun:
        """Leave the run of a request in some status."""
        job = build_defs(self.settings).resolve_job_def("ingest_studio_dataset")
        tags = {**request.tags, "dagster/partition": str(request.partition_key)}
        return self.instance.create_run_for_job(job, tags=tags, status=status)

    def state(self) -> Cursor:
        """The cursor that the last tick left."""
        return Cursor.parse(self.cursor, self.settings.eval_root)

    def log_of(self, text: str) -> list[str]:
        """What the ticks have logged with a text in it."""
        return [line for line in self.log if text in line]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


@pytest.fixture
def ticks(tmp_path: Path, root: Path) -> Iterator[Ticks]:
    settings = Settings(
        eval_root=str(tmp_path / "evals"),
        workers=2,
        cache=str(tmp_path / "cache"),
        studio_roots=(str(root),),
        variables={},
    )
    pools = {"concurrency": {"pools": {"default_limit": 2}}}  # as in dagster.yaml
    with dg.instance_for_test(overrides=pools) as instance:
        yield Ticks(instance, settings)


def test_a_new_dataset_is_registered_without_any_reload(
    small: Path, root: Path, ticks: Ticks
) -> None:
    shutil.copytree(small, root / "Nice Crops")
    assert "nice_crops is new, and waits for a second look" in (ticks().skip_message or "")
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


def test_the_pools_have_their_limit_before_the_first_run_is_asked_for(
    root: Path, ticks: Ticks
) -> None:
    ticks()
    limits = ticks.instance.event_log_storage.get_pool_limits()
    assert {pool.name: pool.limit for pool in limits} == {"ingest": 2, "sweep": 2}
    ticks.instance.event_log_storage.set_concurrency_slots("ingest", 5)  # on the page
    ticks()
    limits = ticks.instance.event_log_storage.get_pool_limits()
    assert {pool.name: pool.limit for pool in limits} == {"ingest": 5, "sweep": 2}


def test_an_unchanged_dataset_is_left_alone_and_a_changed_one_is_asked_for_again(
    small: Path, root: Path, ticks: Ticks
) -> None:
    shutil.copytree(small, root / "crops")
    (old,) = ticks.until_asked()
    assert ticks().skip_message == "1 dataset found; nothing new or changed"
    assert ticks.state().seen["crops"].step is Step.REGISTERED
    windows = sorted((root / "crops" / "windows").glob("*/*"))
    shutil.rmtree(windows[0])
    assert "crops is changed" in (ticks().skip_message or "")
    (new,) = ticks.until_asked()
    assert new.partition_key == "crops" and new.run_key != old.run_key
    assert new.tags["eval_ingest/state"] == "changed"
    assert not ticks().run_requests


def test_a_dataset_is_not_taken_while_it_is_being_copied(
    small: Path, root: Path, ticks: Ticks
) -> None:
    files = sorted(path.relative_to(small) for path in small.rglob("*") if path.is_file())
    # As a copy that makes every folder first and then fills them: the worst case.
    for file in files:
        (root / "crops" / file.parent).mkdir(parents=True, exist_ok=True)
    for part in range(4):  # a tick after each quarter of the files
        for file in files[part::4]:
            shutil.copy(small / file, root / "crops" / file)
        assert not ticks().run_requests
    (request,) = ticks().run_requests or ()
    assert request.partition_key == "crops"


def test_what_is_prepared_but_not_materialised_is_told_and_taken_when_complete(
    small: Path, root: Path, ticks: Ticks, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small, root / "crops")
    markers = sorted(root.glob("crops/windows/*/*/layers/label_raster/completed"))
    for marker in markers:
        marker.unlink()
    for _ in range(3):
        told = ticks().skip_message or ""
        assert "of 10 windows looked into 10 lack something" in told
        assert "label: label_raster not completed" in told
    monkeypatch.setattr(sensors, "INCOMPLETE_S", 0)
    monkeypatch.setattr(sensors, "STUCK_S", 0)  # an hour later a run is to say all about it
    assert len(ticks().run_requests or ()) == 1
    monkeypatch.undo()
    ticks.cursor = None
    assert not ticks().run_requests
    for marker in markers:
        marker.touch()
    assert not ticks().run_requests
    assert len(ticks().run_requests or ()) == 1


def test_a_few_incomplete_windows_make_it_wait_for_longer(
    small: Path, root: Path, ticks: Ticks, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small, root / "crops")
    next(root.glob("crops/windows/*/*/layers/label_raster/completed")).unlink()
    assert "waits for a second look" in (ticks().skip_message or "")
    told = {ticks().skip_message or "" for _ in range(2)}
    (text,) = told
    assert "waits: of 10 windows looked into 1 lack" in text
    since = ticks.state().seen["crops"].since
    at = datetime.fromtimestamp(since + sensors.INCOMPLETE_S, UTC)
    assert f"its ingest is requested at {at:%Y-%m-%d %H:%M:%S} UTC" in text
    monkeypatch.setattr(sensors, "INCOMPLETE_S", 0)
    assert len(ticks().run_requests or ()) == 1


def test_what_is_registered_already_is_not_ingested_again(
    small: Path, root: Path, ticks: Ticks
) -> None:
    shutil.copytree(small, root / "crops")
    ticks.until_asked()
    ticks.cursor = None  # lost, or reset on the page
    assert not ticks().run_requests
    assert not ticks().run_requests


def test_another_eval_root_gets_everything_anew(
    small: Path, root: Path, ticks: Ticks, tmp_path: Path
) -> None:
    shutil.copytree(small, root / "crops")
    ticks.until_asked()
    ticks.settings = replace(ticks.settings, eval_root=str(tmp_path / "another"))
    assert len(ticks.until_asked()) == 1


def test_a_failed_version_is_asked_for_again_later_and_later(
    small: Path, root: Path, ticks: Ticks, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small, root / "crops")
    rasters = sorted(root.glob("crops/windows/*/*/layers/label_raster/*/geotiff.tif"))
    contents = [path.read_bytes() for path in rasters]
    for path in rasters:
        path.write_bytes(b"no raster")
    (first,) = ticks.until_asked(success=False)
    with monkeypatch.context() as patch:
        patch.setattr(watching, "_judge_source", None)  # its source isn't asked again until then
        told = ticks().skip_message or ""
        assert "crops: its last ingest failed: see run" in told and "tried again at" in told
        assert len(ticks.log_of("tried again")) == 1
        assert not ticks().run_requests
    assert len(ticks.log_of("tried again")) == 1  # told once, seen in each tick
    ticks.cursor = None  # doesn't make it run in circles either
    assert not ticks().run_requests
    for path, content in zip(rasters, contents, strict=True):
        path.write_bytes(content)  # no listing of folders shows this
    monkeypatch.setattr(sensors, "RETRY_S", 0)
    (second,) = ticks.until_asked()
    assert second.run_key != first.run_key
    assert second.tags[sensors.VERSION_TAG] == first.tags[sensors.VERSION_TAG]
    assert not ticks().run_requests
    assert ticks.state().told == {}


def test_waiting_times_double_up_to_a_day() -> None:
    waits = [sensors._Runs(False, count).next_try for count in (1, 2, 3, 8, 2000)]
    assert waits == [600, 1200, 2400, 76_800, 86_400]


def test_a_spec_that_a_person_mends_makes_a_failed_dataset_run_at_once(
    small: Path, root: Path, ticks: Ticks
) -> None:
    shutil.copytree(small, root / "crops")
    for path in sorted(root.glob("crops/windows/*/*/layers/label_raster/*/geotiff.tif"))[:4]:
        path.write_bytes(b"no raster")
    ticks.until_asked(success=False)
    spec = find_spec(ticks.settings, "crops")
    add_spec(ticks.settings, spec.model_copy(update={"max_invalid_fraction": 0.5}))
    (again,) = ticks.until_asked()
    assert again.partition_key == "crops"


def test_a_cancelled_run_is_not_asked_for_again(small: Path, root: Path, ticks: Ticks) -> None:
    shutil.copytree(small, root / "crops")
    ticks()
    (request,) = ticks().run_requests or ()
    ticks.leave(request, dg.DagsterRunStatus.CANCELED)
    for _ in range(3):
        assert not ticks().run_requests


def test_a_dataset_that_somebody_is_ingesting_waits(small: Path, root: Path, ticks: Ticks) -> None:
    shutil.copytree(small, root / "crops")
    run = ticks.leave(
        dg.RunRequest(partition_key="crops", tags={"eval_ingest/dataset": "crops"}),
        dg.DagsterRunStatus.STARTED,
    )
    for _ in range(3):
        assert "crops is new, and waits for the run going on" in (ticks().skip_message or "")
    ticks.instance.report_run_failed(run)
    assert len(ticks().run_requests or ()) == 1


def test_a_folder_that_can_not_be_ingested_is_told_once_and_taken_when_mended(
    small: Path, root: Path, ticks: Ticks
) -> None:
    shutil.copytree(small, root / "crops")
    shutil.copytree(small, root / "broken")
    good = (root / "broken" / "model.yaml").read_text()
    (root / "broken" / "model.yaml").write_text("data: [unclosed")
    assert [r.partition_key for r in ticks.until_asked()] == ["crops"]
    told = ticks.state().told
    assert told[str(root / "broken")].startswith(f"{root}/broken/model.yaml: ")
    assert "model.yaml" in (ticks().skip_message or "")  # still to be seen in the tick
    assert ticks.state().told == told
    assert len(ticks.log_of("model.yaml")) == 1
    (root / "broken" / "model.yaml").write_text(good)
    assert [r.partition_key for r in ticks.until_asked()] == ["broken"]
    assert ticks.state().told == {}


def test_a_spec_with_a_typo_is_told_and_not_overwritten(
    small: Path, root: Path, ticks: Ticks
) -> None:
    shutil.copytree(small, root / "crops")
    spec = Path(ticks.settings.eval_root) / "catalog" / "crops.yaml"
    spec.parent.mkdir(parents=True)
    text = f"name: crops\nsource: {root}/crops\nspilts: {{strategy: random}}\n"
    spec.write_text(text)
    for _ in range(3):
        assert "did you mean splits?" in (ticks().skip_message or "")
    assert spec.read_text() == text
    spec.write_text(text.replace("spilts", "splits"))
    assert len(ticks.until_asked()) == 1


def test_problems_are_logged_once(root: Path) -> None:
    import logging

    lines: list[str] = []
    log = logging.Logger("tick")
    log.addHandler(_Lines(lines))
    cursor = Cursor()
    for reason in ("down", "down", "still down, otherwise"):
        cursor.tell(log, "gs://a", reason)
    assert lines == ["down", "still down, otherwise"]
    cursor.seen = {
        "a": Seen("v", Step.REGISTERED),
        "b": Seen("v", Step.WAITING, "stamp", 1_700_000_000, 3),
    }
    assert Cursor.parse(cursor.dump()) == cursor
    assert Cursor.parse(cursor.dump(), "another root") == Cursor("another root")
    assert Cursor.parse("not json") == Cursor.parse("[]") == Cursor()


class _Lines:
    level = 0

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def handle(self, record: logging.LogRecord) -> None:
        self._lines.append(logging.Formatter().format(record))


def test_a_root_that_is_down_does_not_stop_the_others(
    small: Path, root: Path, ticks: Ticks, tmp_path: Path
) -> None:
    shutil.copytree(small, root / "crops")
    roots = (str(tmp_path / "gone"), str(root))
    ticks.settings = replace(ticks.settings, studio_roots=roots)
    assert [r.partition_key for r in ticks.until_asked()] == ["crops"]
    assert "does not exist" in ticks.state().told[roots[0]]
    assert "does not exist" in (ticks().skip_message or "")


def test_a_fault_of_ours_in_one_dataset_does_not_stop_the_others(
    small: Path, root: Path, ticks: Ticks, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bad", "good"):
        shutil.copytree(small, root / name)
    resolve = watching.resolve

    def faulty(files: ConfigFiles, spec: DatasetSpec) -> ResolvedConfig:
        if spec.name == "bad":
            raise ValueError("deep inside")
        return resolve(files, spec)

    monkeypatch.setattr(watching, "resolve", faulty)
    told = ticks().skip_message or ""
    assert f"{root}/bad could not be looked at: ValueError: deep inside at test_defs_" in told
    assert "that is a fault in eval_ingest: report it with the log; the next tick looks" in told
    assert [request.partition_key for request in ticks().run_requests or ()] == ["good"]
    (line,) = ticks.log_of("deep inside")
    assert line.startswith(f"{root}/bad could not be looked at:") and "Traceback" in line
    monkeypatch.undo()
    looks = (ticks().run_requests or () for _ in range(60))  # it rests first, if ticks were slow
    assert any("bad" in [request.partition_key for request in look] for look in looks)


def test_a_fault_of_ours_in_one_root_does_not_stop_the_others(
    small: Path, root: Path, ticks: Ticks, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small, root / "crops")
    ticks.settings = replace(ticks.settings, studio_roots=("gs://odd", str(root)))

    def faulty(where: str, depth: int, memory: Memory) -> Iterable[Found]:
        if where.startswith("gs:"):
            raise KeyError("deep inside")
        return find_datasets(where, depth, memory=memory)

    monkeypatch.setattr(watching, "find_datasets", faulty)
    told = ticks().skip_message or ""
    assert "gs://odd could not be looked at: KeyError: 'deep inside'" in told
    assert len(ticks().run_requests or ()) == 1
    assert len(ticks.log_of("deep inside")) == 1


def test_a_root_that_never_answers_does_not_stop_the_others(
    small: Path, root: Path, ticks: Ticks, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small, root / "crops")
    hung, looks = threading.Event(), []

    def find(where: str, depth: int, memory: Memory) -> Iterable[Found]:
        if where == "gs://hangs":
            looks.append(where)
            hung.wait(60)
        return find_datasets(where, depth, memory=memory)

    monkeypatch.setattr(watching, "find_datasets", find)
    monkeypatch.setattr(sensors, "ROOTS_S", 0.5)
    ticks.settings = replace(ticks.settings, studio_roots=("gs://hangs", str(root)))
    assert [r.partition_key for r in ticks.until_asked()] == ["crops"]
    assert "gs://hangs has not answered yet" in (ticks().skip_message or "")
    assert len(looks) == 1  # and one thread waits, not one a tick
    hung.set()


def test_a_slow_tick_goes_on_in_the_next_with_those_it_has_not_seen(
    small: Path, root: Path, ticks: Ticks, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        shutil.copytree(small, root / name)
    monkeypatch.setattr(sensors, "AT_ONCE", 1)
    monkeypatch.setattr(sensors, "BUDGET_S", 0.0)
    real = Background.outcomes
    monkeypatch.setattr(
        Background, "outcomes", lambda self, work, timeout_s: real(self, work, None)
    )
    order = []
    for _ in range(6):
        data = ticks()
        assert "2 more datasets are looked at in the next tick" in str(data.skip_message) or (
            data.run_requests
        )
        seen = ticks.state()
        order.append(next(n for n, found in seen.seen.items() if found.tick == seen.tick))
    assert order == ["a", "b", "c"] * 2


def test_an_eval_root_out_of_reach_is_told(small: Path, root: Path, ticks: Ticks) -> None:
    shutil.copytree(small, root / "crops")
    ticks.settings = Settings(eval_root="weka://nowhere/evals", studio_roots=(str(root),))
    data = ticks()
    assert not data.run_requests
    assert "set OLMOEARTH_EVAL_DATASETS" in (data.skip_message or "")


def test_the_sensor_runs_where_there_are_roots() -> None:
    running = sensors.discovery_sensor(Settings(studio_roots=("gs://bucket",)))
    stopped = sensors.discovery_sensor(Settings(discovery_seconds=300))
    assert running.default_status is dg.DefaultSensorStatus.RUNNING
    assert stopped.default_status is dg.DefaultSensorStatus.STOPPED
    assert running.minimum_interval_seconds == 30
    assert stopped.minimum_interval_seconds == 300


def test_without_roots_it_says_what_to_set(ticks: Ticks) -> None:
    ticks.settings = Settings(eval_root=ticks.settings.eval_root)
    assert "EVAL_INGEST_STUDIO_ROOTS" in (ticks().skip_message or "")


def test_a_dataset_dropped_into_a_bucket_is_ingested(
    small: Path, ticks: Ticks, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gcs_server() as server:
        for key, value in server.environment.items():
            monkeypatch.setenv(key, value)
        ticks.settings = replace(ticks.settings, studio_roots=(f"{server.url}/datasets",))
        assert "does not exist or is empty" in (ticks().skip_message or "")
        server.upload(small, "datasets/team/new_crops")
        assert not ticks().run_requests
        data = ticks()
        assert [r.partition_key for r in data.run_requests or ()] == ["new_crops"]
        assert ticks.run(data) == [True]
        assert list(read_registry(EvalRoot(Path(ticks.settings.eval_root)))) == ["new_crops"]
        assert "nothing new" in (ticks().skip_message or "")


def test_a_bucket_that_refuses_is_told_in_one_line(
    ticks: Ticks, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gcs_server() as server, proxy(server.address) as refusing:
        refusing.refused = 403
        for key, value in server.reached_at(refusing.address).items():
            monkeypatch.setenv(key, value)
        ticks.settings = replace(ticks.settings, studio_roots=(f"{server.url}/datasets",))
        told = ticks().skip_message or ""
    assert "listing it is not allowed with" in told and "\n" not in told


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


def test_what_can_not_be_ingested_for_long_is_looked_at_less_and_less_often(
    root: Path, ticks: Ticks, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "odd" / "windows" / "g" / "w").mkdir(parents=True)
    (root / "odd" / "config.json").write_text("{}")
    judged: list[str] = []

    def counted(sighting: watching.Sighting, settings: Settings) -> watching.Judgement:
        judged.append(sighting.name)
        return watching.look_at(sighting, settings)

    monkeypatch.setattr(sensors, "look_at", counted)
    clock = [1_900_000_000.0]
    monkeypatch.setattr(sensors.time, "time", lambda: clock[0])
    told = ticks().skip_message
    assert "odd" in (told or "") and judged == ["odd"]
    clock[0] += 1200
    assert ticks().skip_message == told and len(judged) == 2
    clock[0] += 200  # less than a quarter of twenty minutes
    assert ticks().skip_message == told and len(judged) == 2  # told all the same
    clock[0] += 200
    assert ticks().skip_message == told and len(judged) == 3
    (root / "odd" / "model.yaml").write_text("task:")
    ticks()
    assert len(judged) == 4


def test_a_folder_with_terminal_escapes_in_its_name_is_told_without_them(
    small: Path, root: Path, ticks: Ticks
) -> None:
    shutil.copytree(small, root / "crops\x1b[2J\x1b]0;title\x07")
    broken = root / "bad\x1b[31m\nFAKE"
    shutil.copytree(small, broken)
    (broken / "config.json").write_text("{")
    messages = [ticks().skip_message or ""]
    data = ticks()
    messages += [data.skip_message or "", *ticks.log]
    messages += [tag for request in data.run_requests or () for tag in request.tags.values()]
    assert "bad\\x1b[31m\\x0aFAKE" in "".join(messages)
    assert not [text for text in messages if "\x1b" in text or "\x07" in text or "\n" in text]


def test_a_folder_that_no_text_names_is_told_once_and_the_others_are_taken(
    small: Path, root: Path, ticks: Ticks
) -> None:
    shutil.copytree(small, root / "crops")
    bad = root / os.fsdecode(b"d\xe9mo")
    (bad / "windows").mkdir(parents=True)
    shutil.copy(small / "config.json", bad)
    assert [request.partition_key for request in ticks.until_asked()] == ["crops"]
    assert not ticks().run_requests and len(ticks.log_of("d\\udce9mo is not UTF-8 text")) == 1
    assert f"{root}/d\\udce9mo" in ticks.state().told
