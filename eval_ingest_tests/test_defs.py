"""Dagster's side: stage assets, the front door, what is logged, and the commands themselves."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.data_version import (
    DATA_VERSION_TAG,
    CachingStaleStatusResolver,
    StaleStatus,
)
from dagster._core.loader import LoadingContextForTest

from eval_ingest import pipeline
from eval_ingest.core.entry import Metadata, NormStats
from eval_ingest.definitions import build_defs
from eval_ingest.defs.assets import STAGE_ASSETS
from eval_ingest.defs.failures import as_failure, may_pass
from eval_ingest.defs.known_datasets import known_datasets
from eval_ingest.defs.metadata import stage_path
from eval_ingest.defs.partitions import add_partition, studio_datasets
from eval_ingest.defs.resources import build_resources
from eval_ingest.defs.running import LogProgress
from eval_ingest.errors import (
    ConfigError,
    EvalIngestError,
    LockedError,
    SourceError,
    SourceNotFoundError,
    StoreError,
)
from eval_ingest.job import Job, open_job
from eval_ingest.settings import Settings
from eval_ingest.store.catalog import find_spec
from eval_ingest.store.outcomes import read_outcome
from eval_ingest.store.roots.local import LocalRoot
from eval_ingest.store.seal import sealed_json

# Outside of pytest defs/running.py silences it, and says why.
pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")

REPOSITORY = Path(__file__).parents[1]


class World:
    """A catalog with one dataset, an empty eval root, and an instance that forgets."""

    def __init__(self, folder: Path, source: Path, instance: dg.DagsterInstance) -> None:
        self.folder = folder
        self.source = source
        self.instance = instance
        self.settings = Settings(
            eval_root=str(folder / "evals"), catalog=str(folder / "catalog"), workers=2
        )
        self.add("crops")

    def add(self, name: str, **fields: Any) -> None:
        path = self.folder / "catalog" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        spec = {"name": name, "source": str(self.source), "max_invalid_fraction": 0.5, **fields}
        path.write_text(yaml.safe_dump(spec))

    def layout(self, name: str = "crops") -> Any:
        return self.store(name).layout

    def store(self, name: str = "crops") -> Any:
        return LocalRoot(self.folder / "evals").dataset(name)

    def outcome(self, stage: str) -> Any:
        """What is on disk."""
        return read_outcome(self.store(), stage)

    def job(self, name: str = "crops") -> Job:
        return open_job(find_spec(self.settings, name), self.settings)

    def stages(self, *names: str, partition: str = "crops") -> dg.ExecuteInProcessResult:
        """Materialise stage assets of one partition."""
        return dg.materialize(
            STAGE_ASSETS,
            selection=list(names) if names else None,
            partition_key=partition,
            resources=build_resources(self.settings),
            instance=self.instance,
            raise_on_error=False,
        )

    def front_door(self, name: str = "crops") -> dg.ExecuteInProcessResult:
        job = build_defs(self.settings).resolve_implicit_global_asset_job_def()
        return job.execute_in_process(
            instance=self.instance, asset_selection=[dg.AssetKey(name)], raise_on_error=False
        )

    def materializations(self, stage: str, name: str = "crops") -> list[dg.AssetMaterialization]:
        """Newest first."""
        found = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey(stage), asset_partitions=[name]), limit=100
        )
        return [m for record in found.records if (m := record.asset_materialization) is not None]

    def shown(self, stage: str) -> dict[str, Any]:
        """The metadata of the last materialisation."""
        metadata = self.materializations(stage)[0].metadata
        return {key: value.value for key, value in metadata.items()}

    def stale(self, asset: str, partition: str | None = None) -> StaleStatus:
        graph = build_defs(self.settings).resolve_asset_graph()
        resolver = CachingStaleStatusResolver(
            self.instance, graph, LoadingContextForTest(self.instance)
        )
        return resolver.get_status(dg.AssetKey(asset), partition)


@pytest.fixture
def world(tmp_path: Path, copied: Callable[[str], Path]) -> Iterator[World]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield World(tmp_path, copied("segmentation"), instance)


def random_splits(seed: int) -> dict[str, Any]:
    return {"strategy": "random", "ratios": [0.4, 0.3, 0.3], "seed": seed}


def failure_text(result: dg.ExecuteInProcessResult) -> str:
    """What the web page shows first."""
    assert not result.success
    data = next(e for e in result.all_events if e.is_step_failure).step_failure_data
    assert data.user_failure_data is not None
    return str(data.user_failure_data.description)


def log_lines(world: World, result: dg.ExecuteInProcessResult) -> list[str]:
    """What the stages said, without Dagster's own events."""
    entries = world.instance.all_logs(result.run_id)
    return [e.user_message for e in entries if e.dagster_event is None and e.level == 20]


# --------------------------------------------------------------------------------- stage assets


def test_the_stage_assets_ingest_a_partition(world: World) -> None:
    assert world.stages().success
    assert world.outcome("registry_entry").name == "crops"
    for stage in pipeline.STAGES:
        (logged,) = world.materializations(stage)
        value = world.outcome(stage)
        assert (logged.tags or {})[DATA_VERSION_TAG] == value.fingerprint
        assert logged.metadata["fingerprint"].value == value.fingerprint
        assert world.stale(stage, "crops") is StaleStatus.FRESH
    assert world.instance.get_dynamic_partitions("studio_datasets") == ["crops"]


def test_materialisations_show_what_a_person_wants_to_know(world: World) -> None:
    assert world.stages().success
    index, splits, norm, copy, entry = (world.shown(stage) for stage in pipeline.STAGES)
    windows = len(world.outcome("window_index"))
    assert index["dagster/row_count"] == splits["dagster/row_count"] == windows
    assert index["valid"] + index["invalid"] == windows
    assert "| id | class | pixels | share |" in index["classes"]
    columns = index["dagster/column_schema"].columns
    assert [column.name for column in columns][:2] == ["group", "name"]
    for column in (*columns, *splits["dagster/column_schema"].columns):
        assert column.description, f"{column.name}: say what it is in defs/metadata.py"
    assert "| train |" in splits["splits"]
    assert entry["splits"] == splits["splits"] and entry["classes"] == splits["classes"]
    assert entry["pictures"].count("](data:image/png;base64,") == 3
    assert list(entry)[:2] == ["verdict", "why"]
    assert "| modality | band | mean | std | min | max |" in norm["statistics"]
    assert copy["windows copied"] > 0
    assert entry["train"] == splits["train"]
    assert 'EvalDataset("crops", split="val")' in entry["load it"]
    for stage in pipeline.STAGES:
        assert world.shown(stage)["path"] == stage_path(world.store(), stage)


def test_stages_run_one_at_a_time_through_the_files_on_disk(world: World) -> None:
    for stage in pipeline.STAGES:
        assert world.stages(stage).success
    assert isinstance(world.outcome("registry_entry"), Metadata)


def test_a_second_run_of_the_stage_assets_leaves_every_file_alone(world: World) -> None:
    assert world.stages().success
    before = {p: p.stat().st_mtime_ns for p in world.layout().path.rglob("*") if p.is_file()}
    result = world.stages()
    assert result.success
    after = {p: p.stat().st_mtime_ns for p in world.layout().path.rglob("*") if p.is_file()}
    assert after == before
    assert log_lines(world, result) == [
        f"{stage}: up to date, nothing to do" for stage in pipeline.STAGES
    ]
    for stage in pipeline.STAGES:
        versions = {(m.tags or {})[DATA_VERSION_TAG] for m in world.materializations(stage)}
        assert len(versions) == 1


def test_a_missing_input_says_which_stage_to_run(world: World) -> None:
    text = failure_text(world.stages("norm_stats"))
    assert "dagster asset materialize --select window_index --partition crops" in text
    assert world.stages("window_index").success
    text = failure_text(world.stages("weka_copy"))
    assert "dagster asset materialize --select split_assignment --partition crops" in text


def test_a_mistyped_partition_names_the_near_dataset(world: World) -> None:
    assert "did you mean crops" in failure_text(world.stages("window_index", partition="cropz"))
    assert "did you mean crops" in failure_text(world.stages("norm_stats", partition="cropz"))
    assert world.instance.get_dynamic_partitions("studio_datasets") == []


def test_a_failed_stage_says_first_what_to_do_and_is_not_retried(world: World) -> None:
    world.add("crops", max_invalid_fraction=0.0)
    for label in list(world.source.glob("windows/*/*/layers/label_raster/completed"))[:2]:
        label.unlink()
    result = world.stages()
    text = failure_text(result)
    assert text.startswith("crops: ") and "raise max_invalid_fraction" in text
    assert not [e for e in result.all_events if e.is_step_up_for_retry]
    assert not world.layout().metadata.exists()


def test_the_io_manager_writes_a_value_that_another_asset_made(world: World) -> None:
    assert world.stages().success
    stats: NormStats = world.outcome("norm_stats")
    world.layout().norm_stats.unlink()

    @dg.asset(name="norm_stats", io_manager_key="stage_io", partitions_def=studio_datasets)
    def made_elsewhere() -> NormStats:
        return stats

    made = dg.materialize(
        [made_elsewhere],
        partition_key="crops",
        resources=build_resources(world.settings),
        instance=world.instance,
    )
    assert made.success
    assert world.outcome("norm_stats") == stats


# ------------------------------------------------------------------------------- the front door


def test_the_front_door_does_the_whole_job_step_by_step(world: World) -> None:
    result = world.front_door()
    assert result.success
    steps = [e.step_key for e in result.all_events if e.is_step_success]
    assert steps == [f"crops.{step}" for step in (*pipeline.STAGES, "summary")]
    for stage in pipeline.STAGES:
        (logged,) = world.materializations(stage)
        value = world.outcome(stage)
        assert (logged.tags or {})[DATA_VERSION_TAG] == value.fingerprint
        assert logged.metadata["was up to date"].value is False
    lines = log_lines(world, result)
    assert len(lines) == 6
    assert lines[0].startswith("window_index: ") and " invalid (" in lines[0]
    assert lines[5].startswith(f"crops: registered in {world.layout().path}: train ")
    event = world.instance.get_latest_materialization_event(dg.AssetKey("crops"))
    assert event is not None and event.asset_materialization is not None
    assert event.asset_materialization.metadata["path"].value == str(world.layout().path)
    assert world.instance.get_dynamic_partitions("studio_datasets") == ["crops"]


def test_a_second_run_of_the_front_door_does_nothing_and_says_so(world: World) -> None:
    assert world.front_door().success
    before = {p: p.stat().st_mtime_ns for p in world.layout().path.rglob("*") if p.is_file()}
    result = world.front_door()
    assert result.success
    after = {p: p.stat().st_mtime_ns for p in world.layout().path.rglob("*") if p.is_file()}
    assert after == before
    *stages, summary = log_lines(world, result)
    assert stages == [f"{stage}: up to date, nothing to do" for stage in pipeline.STAGES]
    assert summary.startswith("crops: up to date, nothing to do")
    for stage in pipeline.STAGES:
        assert len(world.materializations(stage)) == 1


def test_what_the_command_line_ingested_becomes_known_to_dagster_once(world: World) -> None:
    pipeline.ingest(world.job())
    assert world.front_door().success
    assert world.front_door().success
    for stage in pipeline.STAGES:
        (logged,) = world.materializations(stage)
        assert logged.metadata["was up to date"].value is True


def test_nothing_is_stale_after_the_front_doors_own_run(world: World) -> None:
    for seed in (1, 2):  # the second run changes every stage from the splits on
        world.add("crops", splits=random_splits(seed))
        assert world.front_door().success
        assert world.stale("crops") is StaleStatus.FRESH
        for stage in pipeline.STAGES:
            assert world.stale(stage, "crops") is StaleStatus.FRESH


def test_the_front_door_is_stale_when_its_stages_went_on_without_it(world: World) -> None:
    assert world.front_door().success
    world.add("crops", splits=random_splits(3))
    assert world.stages().success
    assert world.stale("crops") is StaleStatus.STALE
    assert world.front_door().success
    assert world.stale("crops") is StaleStatus.FRESH


def test_a_stage_that_runs_again_for_nothing_makes_nothing_stale(world: World) -> None:
    assert world.front_door().success
    assert world.stages("window_index", "split_assignment").success
    for stage in pipeline.STAGES:
        assert world.stale(stage, "crops") is StaleStatus.FRESH
    world.add("crops", splits=random_splits(3))
    assert world.stages("split_assignment").success
    assert world.stale("norm_stats", "crops") is StaleStatus.STALE


def test_the_front_door_goes_on_where_it_failed(world: World, copied: Any) -> None:
    config = world.source / "config.json"
    text = config.read_text()
    assert world.stages("window_index", "split_assignment").success
    config.write_text("{")
    assert "config.json" in failure_text(world.front_door())
    config.write_text(text)
    result = world.front_door()
    assert result.success
    lines = log_lines(world, result)
    assert lines[:2] == [
        f"{stage}: up to date, nothing to do" for stage in ("window_index", "split_assignment")
    ]
    assert lines[2].startswith("norm_stats: ") and "up to date" not in lines[2]


def test_a_dataset_being_ingested_by_another_process_says_so(world: World) -> None:
    job = world.job()
    with pipeline.dataset_lock(job):
        text = failure_text(world.stages("window_index"))
    assert "crops is being ingested" in text


def test_names_that_differ_in_a_dash_and_names_of_stages_all_load(world: World) -> None:
    for name in ("a-b", "a_b", "1x", "norm_stats"):
        world.add(name)
    graph = build_defs(world.settings).resolve_asset_graph()
    keys = {key.to_user_string() for key in graph.get_all_asset_keys()}
    assert {"a-b", "a_b", "1x", "crops"} <= keys
    assert graph.get(dg.AssetKey("norm_stats")).group_name == "studio_ingest"
    assert world.front_door("a-b").success
    assert world.materializations("registry_entry", "a-b")


# ------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("error", "cause", "retried"),
    [
        (SourceError("reset"), ConnectionResetError(), True),
        (SourceError("slow"), TimeoutError(), True),
        (SourceError("not yours"), PermissionError(), False),
        (SourceError("changed"), None, False),
        (SourceNotFoundError("nothing there"), OSError(), False),
        (ConfigError("wrong"), ValueError(), False),
        (StoreError("disk"), OSError(5, "Input/output error"), True),
        (StoreError("full"), OSError(28, "No space left on device"), False),
        (LockedError("busy"), TimeoutError(), False),
        (ConnectionResetError(), None, True),
        (KeyError("a fault of ours"), None, False),
    ],
)
def test_only_what_may_pass_is_retried(
    error: Exception, cause: Exception | None, retried: bool
) -> None:
    with pytest.raises(dg.Failure) as caught, as_failure("crops"):
        raise error from cause
    assert caught.value.allow_retries is retried
    if isinstance(error, EvalIngestError):
        assert caught.value.description == str(error)
    else:
        assert may_pass(error) or "fault in eval_ingest" in (caught.value.description or "")


def test_long_stages_report_progress_but_not_every_step() -> None:
    lines: list[str] = []

    class Log:
        info = staticmethod(lines.append)

    seconds = iter(range(1000))
    progress = LogProgress(
        Log(),  # type: ignore[arg-type]
        "window_index",
        clock=lambda: float(next(seconds)),
    )
    for done in range(0, 500, 20):
        progress("windows read", done, 500)
    assert lines[0] == "window_index: windows read: 180 of 500, 20 a second, 16 s to go"
    assert len(lines) == 2


# -------------------------------------------------------------------------- the code location


def test_a_broken_spec_costs_a_warning_not_the_code_location(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    (world.folder / "catalog" / "bad.yaml").write_text("name: bad\nsorce: x\n")
    (world.folder / "catalog" / "worse.yaml").write_bytes(b"\xff\xfe: [")
    graph = build_defs(world.settings).resolve_asset_graph()
    assert dg.AssetKey("crops") in graph.get_all_asset_keys()
    assert "did you mean source?" in caplog.text and "worse.yaml" in caplog.text
    assert world.front_door("crops").success  # others' broken specs stop no run either
    assert "bad.yaml" in failure_text(world.stages("window_index", partition="bad"))


@pytest.mark.parametrize(
    "settings",
    [
        Settings(eval_root="weka://not-mounted-here/evals"),
        Settings(eval_root="gs://no/such"),
        Settings(eval_root="/proc/version/nothing", catalog="/proc/version/catalog"),
    ],
)
def test_the_code_location_loads_where_the_eval_root_cannot_be_reached(settings: Settings) -> None:
    graph = build_defs(settings).resolve_asset_graph()
    assert dg.AssetKey("tolbi_crops") in graph.get_all_asset_keys()


def tick(world: World, cursor: str | None = None) -> Any:
    """One tick of known_datasets, and what Dagster does about it."""
    with dg.build_sensor_context(
        instance=world.instance, cursor=cursor, resources={"settings": world.settings}
    ) as context:
        result = known_datasets(context)
    if isinstance(result, dg.SensorResult):
        for request in result.dynamic_partitions_requests or ():
            for name in request.partition_keys:
                add_partition(world.instance, name)
        for event in result.asset_events or ():
            world.instance.report_runless_asset_event(event)
    return result


def test_every_dataset_of_the_catalog_is_listed_as_a_partition(world: World) -> None:
    first = tick(world)
    (request,) = first.dynamic_partitions_requests
    new = len(request.partition_keys)
    assert first.skip_reason.skip_message == f"{new} datasets are new as partitions"
    assert "crops" in request.partition_keys and "tolbi_crops" in request.partition_keys
    assert isinstance(tick(world), dg.SkipReason)


def test_what_the_command_line_ingested_is_shown_without_a_run(world: World) -> None:
    pipeline.ingest(world.job())
    first = tick(world)
    assert len(first.asset_events) == 6
    for stage in pipeline.STAGES:
        assert world.stale(stage, "crops") is StaleStatus.FRESH
    assert world.stale("crops") is StaleStatus.FRESH
    assert (
        world.shown("registry_entry")["verdict"]
        == world.outcome("registry_entry").quality["verdict"]
    )
    assert isinstance(tick(world, first.cursor), dg.SkipReason)
    assert isinstance(tick(world), dg.SkipReason)  # a lost cursor shows nothing twice
    result = world.front_door()
    assert result.success
    assert log_lines(world, result)[-1].startswith("crops: up to date, nothing to do")
    assert world.stale("crops") is StaleStatus.FRESH


def test_a_dataset_that_the_stages_ingested_shows_at_its_own_asset_too(world: World) -> None:
    assert world.stages().success
    assert world.stale("crops") is StaleStatus.MISSING
    (event,) = tick(world).asset_events
    assert event.asset_key == dg.AssetKey("crops")
    assert world.stale("crops") is StaleStatus.FRESH


def test_a_damaged_dataset_keeps_no_other_from_being_shown(world: World) -> None:
    pipeline.ingest(world.job())
    root = Path(world.settings.eval_root)
    shutil.copytree(root / "crops", root / "broken")
    registry = json.loads((root / "registry.json").read_text())
    entries = registry["datasets"]
    registry["datasets"] = {"broken": {**entries["crops"], "fingerprint": "x"}, **entries}
    (root / "registry.json").write_bytes(sealed_json(registry))
    (root / "broken" / "metadata.json").write_text("{}")
    events = tick(world).asset_events
    assert {event.partition for event in events} == {"crops", None}
    assert "broken/metadata.json" in str(tick(world).skip_message)


def test_an_eval_root_out_of_reach_costs_nothing_but_a_reason(world: World) -> None:
    world.settings = Settings(eval_root="weka://nowhere/evals", catalog=world.settings.catalog)
    assert tick(world).dynamic_partitions_requests
    assert "set OLMOEARTH_EVAL_DATASETS" in str(tick(world).skip_message)


def test_loading_the_code_location_imports_nothing_slow() -> None:
    code = (
        "import sys; from eval_ingest.definitions import defs; defs().resolve_asset_graph()\n"
        "slow = {'torch', 'rslearn', 'dagster_gcp', 'gcsfs', 'matplotlib', 'sklearn'}\n"
        "print(sorted(slow & sys.modules.keys()))"
    )
    assert run([sys.executable, "-c", code], Path.cwd()).stdout.strip() == "[]"


# --------------------------------------------------------------------------------- the commands


@pytest.fixture
def home(tmp_path: Path, written: Callable[[str], Path]) -> Path:
    """A folder like the repository's: dagster.yaml, workspace.yaml, and .env with the settings."""
    home = tmp_path / "home"
    (home / "catalog").mkdir(parents=True)
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(REPOSITORY / name, home)
    (home / ".env").write_text(
        f"OLMOEARTH_EVAL_DATASETS={home}/evals\nEVAL_INGEST_CATALOG={home}/catalog\n"
        "EVAL_INGEST_WORKERS=2\n"
    )
    for name, source in (("crops", written("segmentation")), ("nowhere", home / "nothing")):
        spec = {"name": name, "source": str(source), "max_invalid_fraction": 0.5}
        (home / "catalog" / f"{name}.yaml").write_text(yaml.safe_dump(spec))
    return home


def environment(**more: str) -> dict[str, str]:
    """This process's environment with our package on the path, and nothing of Dagster's."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("DAGSTER_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)  # it makes every import three times slower
    return kept | {"PYTHONPATH": str(REPOSITORY), **more}


def run(command: list[str], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=120
    )


def dagster(*arguments: str, home: Path, module: bool = True) -> subprocess.CompletedProcess[str]:
    more = {"DAGSTER_MODULE_NAME": "eval_ingest.definitions"} if module else {}
    return run([sys.executable, "-m", "dagster", *arguments], home, **more)


@pytest.mark.slow
def test_dagster_asset_materialize_does_the_whole_job_and_then_nothing(home: Path) -> None:
    first = dagster("asset", "materialize", "--select", "crops", home=home)
    assert first.returncode == 0, first.stderr
    for stage in pipeline.STAGES:
        assert f"- {stage}: " in first.stderr
    assert "DEBUG" not in first.stderr
    second = dagster("asset", "materialize", "--select", "crops", home=home)
    assert second.returncode == 0, second.stderr
    assert "crops: up to date, nothing to do" in second.stderr
    assert second.stderr.count("up to date, nothing to do") == 6
    assert json.loads((home / "evals" / "registry.json").read_text())["datasets"]["crops"]
    kept = {".dagster", ".env", "catalog", "dagster.yaml", "evals", "workspace.yaml"}
    assert {path.name for path in home.iterdir()} == kept
    assert list((home / ".dagster" / "compute_logs").iterdir())


@pytest.mark.slow
def test_dagster_asset_materialize_takes_a_partition_that_nobody_has_added(home: Path) -> None:
    select = ("asset", "materialize", "--select", "window_index", "--partition")
    done = dagster(*select, "crops", home=home)
    assert done.returncode == 0, done.stderr
    assert (home / "evals" / "crops" / "window_index.parquet").exists()


@pytest.mark.slow
def test_dagster_asset_materialize_fails_with_our_message_on_top(home: Path) -> None:
    failed = dagster("asset", "materialize", "--select", "nowhere", home=home)
    assert failed.returncode == 1
    told = failed.stderr.partition("Stack Trace:")[0]
    assert f"source {home}/nothing does not exist" in told


@pytest.mark.slow
def test_the_environments_dagster_command_says_at_the_end_what_was_wrong(home: Path) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = "from eval_ingest.dagster_command import main; main()"
        return run([sys.executable, "-c", code, "asset", "materialize", *arguments], home)

    failed = command("--select", "nowhere")
    assert failed.returncode == 1
    last = failed.stderr.strip().splitlines()[-1]
    assert last.startswith(f"source {home}/nothing does not exist; give the folder")
    mistyped = command("--select", "crop")
    assert mistyped.returncode == 1
    assert "Traceback" not in mistyped.stderr
    assert '["crops"]' in mistyped.stderr and "eval-ingest list" in mistyped.stderr
    assert "superseded" not in failed.stderr + mistyped.stderr
    assert (home / ".dagster" / "dagster.yaml").is_symlink()


@pytest.mark.slow
@pytest.mark.parametrize("module", [True, False])
def test_dagster_definitions_validate_passes(home: Path, module: bool) -> None:
    checked = dagster("definitions", "validate", home=home, module=module)
    assert checked.returncode == 0, checked.stderr
