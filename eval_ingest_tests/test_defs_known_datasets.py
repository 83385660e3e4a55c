"""The code location, and the sensor that shows what catalog and registry hold."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import (
    StaleStatus,
)

from eval_ingest import pipeline
from eval_ingest.definitions import build_defs
from eval_ingest.defs import sensors
from eval_ingest.defs.assets import STAGE_ASSETS
from eval_ingest.defs.checks import registry_entry_checks
from eval_ingest.defs.known_datasets import known_datasets
from eval_ingest.defs.partitions import add_partition, studio_datasets
from eval_ingest.defs.resources import build_resources
from eval_ingest.errors import StoreError
from eval_ingest.settings import Settings
from eval_ingest.store.registry import rebuild_registry, remove_dataset
from eval_ingest.store.roots.open import open_root
from eval_ingest.store.seal import sealed_json
from eval_ingest_tests.support import dagster_world
from eval_ingest_tests.support.dagster_world import World, failure_text, log_lines

# Outside of pytest defs/running.py silences it, and says why.
world = dagster_world.world


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


def tick(world: World, cursor: str | None = None, defined: dg.Definitions | None = None) -> Any:
    """One tick of known_datasets, and what Dagster does about it."""
    with dg.build_sensor_context(
        instance=world.instance,
        cursor=cursor,
        resources={"settings": world.settings},
        definitions=defined,
    ) as context:
        result = known_datasets(context)
    if isinstance(result, dg.SensorResult):
        for request in result.dynamic_partitions_requests or ():
            for name in request.partition_keys:
                if isinstance(request, dg.AddDynamicPartitionsRequest):
                    add_partition(world.instance, name)
                else:
                    world.instance.delete_dynamic_partition(str(studio_datasets.name), name)
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
    events = first.asset_events
    assert sum(isinstance(event, dg.AssetMaterialization) for event in events) == 6
    assert {e.check_name for e in events if isinstance(e, dg.AssetCheckEvaluation)} == {
        key.name for key in registry_entry_checks.check_keys
    }
    assert "data:image/png;base64," in world.shown("registry_entry")["pictures"]
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
    assert log_lines(world, result)[5].startswith("crops: up to date, nothing to do")
    assert world.stale("crops") is StaleStatus.FRESH


def test_the_partition_of_a_dataset_that_is_no_more_goes(world: World) -> None:
    def partitions() -> set[str]:
        return set(world.instance.get_dynamic_partitions(str(studio_datasets.name)))

    world.add("fields")
    tick(world)
    assert {"crops", "fields"} <= partitions()
    spec = world.folder / "catalog" / "fields.yaml"
    spec.write_text("name: [")  # a catalog that can't be read in full proves nothing
    tick(world)
    assert "fields" in partitions()
    spec.unlink()
    assert "no longer in catalog or registry: fields" in str(tick(world).skip_reason)
    assert "crops" in partitions() and "fields" not in partitions()


def test_a_dataset_that_the_stages_ingested_shows_at_its_own_asset_too(world: World) -> None:
    assert world.stages().success
    assert world.stale("crops") is StaleStatus.MISSING
    events = tick(world).asset_events
    assert {event.asset_key for event in events} == {dg.AssetKey("crops")}
    assert sum(isinstance(event, dg.AssetMaterialization) for event in events) == 1
    assert world.stale("crops") is StaleStatus.FRESH


def test_a_dataset_without_an_asset_of_its_own_is_shown_at_its_partition_alone(
    world: World,
) -> None:
    pipeline.ingest(world.job())
    without = dg.Definitions(assets=STAGE_ASSETS, resources=build_resources(world.settings))
    first = tick(world, defined=without)
    assert {event.partition for event in first.asset_events} == {"crops"}
    crops = dg.AssetKey("crops")
    assert not world.instance.fetch_materializations(crops, limit=1).records
    assert isinstance(tick(world, first.cursor, without), dg.SkipReason)
    second = tick(world, first.cursor, build_defs(world.settings))  # after Reload definitions
    assert {event.asset_key for event in second.asset_events} == {crops}
    assert world.stale("crops") is StaleStatus.FRESH


def test_what_is_removed_is_no_longer_shown_as_there(world: World) -> None:
    assert world.front_door().success
    first = tick(world)
    remove_dataset(open_root(world.settings), "crops")
    second = tick(world, first.cursor)
    assert "crops is no longer registered" in str(second.skip_reason)
    assert world.stale("crops") is StaleStatus.MISSING
    assert isinstance(tick(world, second.cursor), dg.SkipReason)


def test_what_cannot_be_had_from_here_is_shown_as_such_and_fails_no_run_of_all(
    world: World,
) -> None:
    world.add("elsewhere", source=str(world.folder / "nowhere"))
    world.add("unset", source="${NO_SUCH_VARIABLE}/crops")
    names = ("crops", "elsewhere", "unset")
    defs = build_defs(world.settings)
    nodes = {name: defs.resolve_asset_graph().get(dg.AssetKey(name)) for name in names}
    groups = [node.group_name for node in nodes.values()]
    assert groups == ["eval_datasets", "not_reachable_here", "not_reachable_here"]
    assert f"{world.folder}/nowhere is not on this machine" in str(nodes["elsewhere"].description)
    tick(world)
    assert not {"elsewhere", "unset"} & set(
        world.instance.get_dynamic_partitions("studio_datasets")
    )
    job = defs.resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        instance=world.instance, asset_selection=[dg.AssetKey(name) for name in names]
    )
    assert result.success
    assert world.outcome("registry_entry").name == "crops"
    logged = [e.user_message for e in world.instance.all_logs(result.run_id) if e.level == 30]
    assert [text.partition(":")[0] for text in logged] == [
        "elsewhere is left out",
        "unset is left out",
    ]
    assert "does not exist" in failure_text(world.front_door("elsewhere"))


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


@pytest.mark.parametrize(
    ("emptied", "with_cursor"), [("gone", True), ("empty", False), ("with a catalog", True)]
)
def test_an_eval_root_that_is_not_mounted_costs_no_history(
    emptied: str, with_cursor: bool, world: World
) -> None:
    assert world.front_door().success
    cursor = tick(world).cursor if with_cursor else None
    partitions = world.instance.get_dynamic_partitions(str(studio_datasets.name))
    spec = world.folder / "catalog" / "crops.yaml"
    root, aside = world.folder / "evals", world.folder / "elsewhere"
    root.rename(aside)
    spec.rename(world.folder / "crops.yaml")  # as if the catalog lay under it
    if emptied != "gone":
        (root / "catalog" if emptied == "with a catalog" else root).mkdir(parents=True)
    told = tick(world, cursor)
    text = told.skip_message if isinstance(told, dg.SkipReason) else told.skip_reason.skip_message
    assert "holds no registry.json, and datasets were registered there; is it mounted?" in text
    assert not isinstance(told, dg.SensorResult) or told.asset_events == []
    assert set(partitions) <= set(world.instance.get_dynamic_partitions(str(studio_datasets.name)))
    assert world.materializations("registry_entry")
    (world.folder / "crops.yaml").rename(spec)
    assert world.stale("crops") is StaleStatus.FRESH
    if root.exists():
        shutil.rmtree(root)
    aside.rename(root)
    assert "is it mounted" not in str(tick(world, cursor))
    assert world.stale("crops") is StaleStatus.FRESH


def test_an_eval_root_that_is_new_or_was_emptied_on_purpose_is_no_fault(world: World) -> None:
    assert world.front_door().success
    cursor = tick(world).cursor
    shutil.rmtree(world.folder / "evals")
    rebuild_registry(open_root(world.settings))
    assert "crops is no longer registered" in str(tick(world, cursor).skip_reason)
    world.settings = Settings(
        eval_root=str(world.folder / "others"), catalog=world.settings.catalog
    )
    assert "mounted" not in str(tick(world, cursor))


def test_below_an_eval_root_that_is_not_mounted_nothing_is_asked_for(world: World) -> None:
    assert world.front_door().success
    root = world.folder / "evals"
    root.rename(world.folder / "elsewhere")
    cache = str(world.folder / "cache")
    settings = replace(world.settings, studio_roots=(str(world.source.parent),), cache=cache)
    with (
        dg.build_sensor_context(instance=world.instance) as context,
        pytest.raises(StoreError, match=r"is it mounted\?"),
    ):
        sensors.look(context, settings)
    assert not root.exists()
