"""Dagster's side: stage assets, the front door, what is logged, and how it fails."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import time
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import (
    DATA_VERSION_TAG,
    StaleStatus,
)

from eval_ingest import pipeline
from eval_ingest.adopting import adopt
from eval_ingest.core.entry import Metadata, NormStats
from eval_ingest.definitions import build_defs
from eval_ingest.defs.assets import STAGE_ASSETS
from eval_ingest.defs.failures import as_failure, may_pass
from eval_ingest.defs.metadata import stage_path
from eval_ingest.defs.partitions import studio_datasets
from eval_ingest.defs.resources import build_resources
from eval_ingest.defs.running import LogProgress
from eval_ingest.errors import (
    ConfigError,
    EngineError,
    EvalIngestError,
    LockedError,
    SourceError,
    SourceNotFoundError,
    StoreError,
)
from eval_ingest.job import Job
from eval_ingest_tests.support import dagster_world
from eval_ingest_tests.support.dagster_world import World, failure_text, log_lines, random_splits

# Outside of pytest defs/running.py silences it, and says why.
world = dagster_world.world


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
    assert 'EvalDataset("crops", split="train")' in entry["load it"]
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


def test_an_interrupted_run_ends_at_once_and_is_not_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    def interrupted(job: Job, stage: str, _: Any) -> None:
        tries.append(stage)
        with contextlib.suppress(BaseException):  # as a library may that is being imported
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        raise EngineError("a worker process was killed") from OSError("the same signal")

    monkeypatch.setattr(pipeline, "run_stage", interrupted)
    result = world.front_door()
    assert not result.success and tries == ["window_index"]
    (run,) = world.instance.get_runs()
    assert run.is_finished
    (failed,) = (event for event in result.all_events if event.is_step_failure)
    assert "it goes on where it was" in failed.step_failure_data.error_display_string


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
    assert steps == [*(f"crops.{step}" for step in (*pipeline.STAGES, "summary")), "crops_checks"]
    for stage in pipeline.STAGES:
        (logged,) = world.materializations(stage)
        value = world.outcome(stage)
        assert (logged.tags or {})[DATA_VERSION_TAG] == value.fingerprint
        assert logged.metadata["was up to date"].value is False
    lines = log_lines(world, result)
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
    *stages, summary = log_lines(world, result)[:6]
    assert stages == [f"{stage}: up to date, nothing to do" for stage in pipeline.STAGES]
    assert summary.startswith("crops: up to date, nothing to do")
    for stage in pipeline.STAGES:
        assert len(world.materializations(stage)) == 1


def test_a_run_of_a_partition_leaves_the_other_datasets_alone(world: World) -> None:
    world.add("other")
    job = build_defs(world.settings).resolve_implicit_global_asset_job_def()
    selected = [asset.key for asset in STAGE_ASSETS] + [dg.AssetKey(n) for n in ("crops", "other")]
    result = job.execute_in_process(
        instance=world.instance, asset_selection=selected, partition_key="crops"
    )
    assert result.success
    assert world.layout().metadata.exists()
    assert not world.layout("other").path.exists()
    assert not world.instance.fetch_materializations(dg.AssetKey("other"), limit=1).records


def test_pictures_stay_when_nothing_was_to_be_done(world: World) -> None:
    for _ in range(2):
        result = world.front_door()
        (shown,) = (
            e.step_materialization_data.materialization
            for e in result.get_asset_materialization_events()
            if e.asset_key == dg.AssetKey("crops")
        )
        assert "data:image/png;base64," in str(shown.metadata["pictures"].value)


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


def test_all_that_lies_below_a_stage_is_of_one_dataset(world: World) -> None:
    world.add("other")
    graph = build_defs(world.settings).resolve_asset_graph()
    below = dg.AssetSelection.assets("window_index").downstream().resolve(graph)
    assert {key.to_user_string() for key in below} == {*pipeline.STAGES, "eval_sweep"}


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


def test_a_dataset_that_was_adopted_runs_and_shows_its_checks(world: World) -> None:
    root = world.folder / "evals"
    shutil.copytree(world.source, root / "theirs")
    splits = itertools.cycle(("train", "train", "val", "test"))
    for path in sorted((root / "theirs").glob("windows/*/*/metadata.json")):
        metadata = json.loads(path.read_text())
        metadata["options"]["eval_split"] = next(splits)
        path.write_text(json.dumps(metadata))
    entry = {"name": "theirs", "task_type": "segmentation", "weka_path": str(root / "theirs")}
    (root / "registry.json").write_text(
        json.dumps({"version": "1.0", "datasets": {"theirs": entry}})
    )
    before = {p: p.read_bytes() for p in (root / "theirs" / "windows").rglob("*") if p.is_file()}
    refused = failure_text(world.stages("window_index", partition="theirs"))
    assert "no dataset 'theirs'" in refused
    adopt(world.settings, "theirs")
    result = world.front_door("theirs")
    assert result.success
    assert log_lines(world, result)[5].startswith("theirs: up to date, nothing to do")
    checks = {e.check_name for e in result.get_asset_check_evaluations()}
    assert {"dataset_loads", "verdict"} <= checks
    assert {p: p.read_bytes() for p in before} == before
