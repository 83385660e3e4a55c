"""docs/deployment.md and dagster.yaml: what they show is what Dagster and Kubernetes take."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._config import process_config, resolve_to_config_type
from dagster._core.instance.config import PoolGranularity
from dagster._core.instance.ref import InstanceRef
from dagster._core.test_utils import create_test_daemon_workspace_context
from dagster._core.workspace.config_schema import process_workspace_config
from dagster._core.workspace.load_target import ModuleTarget
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import (
    QueuedRunCoordinatorDaemon,
)
from dagster._serdes import ConfigurableClassData
from dagster_graphql.schema import create_schema

from eval_ingest.defs.assets import STAGE_ASSETS
from eval_ingest.defs.known_datasets import known_datasets
from eval_ingest.defs.partitions import studio_datasets
from eval_ingest.defs.running import INGEST_POOL
from eval_ingest.defs.sweep import eval_sweep
from eval_ingest.settings import Settings
from eval_ingest_tests.support.checkout import REPOSITORY

BLOCK = re.compile(r"^```yaml\n# (?P<kind>[\w.]+)\n(?P<text>.*?)^```$", re.M | re.S)
TEXT = (REPOSITORY / "docs" / "deployment.md").read_text()
BLOCKS = [(match["kind"], match["text"]) for match in BLOCK.finditer(TEXT)]
INSTANCE = [text for kind, text in BLOCKS if kind == "dagster.yaml"]
OURS = (REPOSITORY / "dagster.yaml").read_text()
ENVIRONMENT = {
    "DAGSTER_PG_HOST": "127.0.0.1",
    "DAGSTER_PG_USERNAME": "somebody",
    "DAGSTER_PG_PASSWORD": "secret",
    "DAGSTER_LOGS_BUCKET": "bucket",
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def check(part: ConfigurableClassData) -> None:
    """Fail unless the class exists and takes the configuration; it isn't connected to anything."""
    cls = getattr(__import__(part.module_name, fromlist=[part.class_name]), part.class_name)
    result = process_config(resolve_to_config_type(cls.config_type()), part.config_dict)
    assert result.success, [error.message for error in result.errors or ()]
    if part.class_name == "K8sRunLauncher":  # whose own schema takes any pod
        kubernetes_takes("V1Volume", *result.value["volumes"])
        kubernetes_takes("V1VolumeMount", *result.value["volume_mounts"])
        of_run = result.value["run_k8s_config"]
        kubernetes_takes("V1Container", {"name": "set by Dagster", **of_run["container_config"]})
        kubernetes_takes("V1JobSpec", {"template": {}, **of_run["job_spec_config"]})


def kubernetes_takes(model: str, *values: Any) -> None:
    """Fail unless objects have no field that their kind doesn't have."""
    import kubernetes
    from dagster_k8s.models import k8s_model_from_dict, k8s_snake_case_dict

    kind = getattr(kubernetes.client, model)
    for value in values:
        assert k8s_model_from_dict(kind, k8s_snake_case_dict(kind, value)) is not None


def instance_of(text: str, folder: Path) -> InstanceRef:
    (folder / "dagster.yaml").write_text(text)
    ref = InstanceRef.from_dir(str(folder))
    parts = (
        ref.local_artifact_storage_data, ref.compute_logs_data, ref.run_launcher_data,
        ref.run_coordinator_data, ref.scheduler_data, ref.storage_data,
        ref.run_storage_data, ref.event_storage_data, ref.schedule_storage_data,
    )  # fmt: skip
    for part in parts:
        if part is not None:
            check(part)
    return ref


def test_every_yaml_block_of_the_document_is_checked_here() -> None:
    assert len(BLOCKS) == TEXT.count("```yaml")
    assert {kind for kind, _ in BLOCKS} == {"dagster.yaml", "workspace.yaml", "kubernetes"}


@pytest.mark.parametrize("text", INSTANCE)
def test_each_piece_of_dagster_yaml_loads(text: str, tmp_path: Path) -> None:
    instance_of(text, tmp_path)


def test_the_pieces_are_no_second_source_of_what_our_own_dagster_yaml_says(tmp_path: Path) -> None:
    pieces = [yaml.safe_load(text) for text in INSTANCE]
    named = [key for piece in pieces for key in piece]
    assert sorted(named) == ["compute_logs", "run_launcher", "storage"]
    whole = yaml.safe_load(OURS)
    for piece in pieces:
        whole |= piece
    ref = instance_of(yaml.safe_dump(whole), tmp_path)
    assert ref.run_launcher_data is not None and ref.storage_data is not None
    assert ref.run_launcher_data.class_name == "K8sRunLauncher"
    assert ref.storage_data.class_name == "DagsterPostgresStorage"


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("claimName", "claim"), ("bucket:", "buket:"), ("hostname", "host"), ("max_retries", "max")],
)
def test_a_mistake_in_a_block_would_be_found(right: str, wrong: str, tmp_path: Path) -> None:
    (text,) = [text for text in [*INSTANCE, OURS] if right in text]
    with pytest.raises(Exception, match=wrong.strip(":")):
        instance_of(text.replace(right, wrong), tmp_path)


def test_the_workspace_loads() -> None:
    for text in [text for kind, text in BLOCKS if kind == "workspace.yaml"]:
        assert process_workspace_config(yaml.safe_load(text)).success


def test_the_kubernetes_objects_are_what_kubernetes_takes() -> None:
    for text in [text for kind, text in BLOCKS if kind == "kubernetes"]:
        values = yaml.safe_load(text)
        kubernetes_takes(f"V1{values['kind']}", values)


def test_what_the_blocks_name_is_there() -> None:
    """ConfigMaps and variables that one block asks for and another one sets."""
    (environment,) = [
        values["data"]
        for kind, text in BLOCKS
        if kind == "kubernetes" and (values := yaml.safe_load(text))["kind"] == "ConfigMap"
    ]
    wanted = {name for text in INSTANCE for name in re.findall(r"env: (\w+)", text)}
    secret = {"DAGSTER_PG_USERNAME", "DAGSTER_PG_PASSWORD"}
    assert wanted == set(ENVIRONMENT)
    assert wanted - secret <= environment.keys()


def test_a_pod_has_the_cores_and_the_disk_that_its_settings_count_on() -> None:
    (run,) = [
        piece["run_launcher"]
        for text in INSTANCE
        if "run_launcher" in (piece := yaml.safe_load(text))
    ]
    has = run["config"]["run_k8s_config"]["container_config"]["resources"]["requests"]
    (text,) = [text for _, text in BLOCKS if "kind: ConfigMap\n" in text]
    settings = Settings.load(yaml.safe_load(text)["data"], Path("none"))
    assert settings.workers == int(has["cpu"])
    assert settings.cache_gib < int(has["ephemeral-storage"].removesuffix("Gi"))


# ------------------------------------------------------------------------------- our dagster.yaml


def test_our_own_instance_queues_by_pools_that_assets_are_in(tmp_path: Path) -> None:
    instance_of(OURS, tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        pools = instance.get_concurrency_config().pool_config
        # By ops, a command that was killed would keep its slot, and the next would wait for ever.
        assert pools.pool_granularity is PoolGranularity.RUN
        assert pools.default_pool_limit == 2
        assert instance.run_monitoring_enabled and instance.run_retries_enabled
        assert not instance.telemetry_enabled
    pooled = {asset.key.path[-1] for asset in STAGE_ASSETS if INGEST_POOL in asset.op.pools}
    assert pooled == {"window_index", "weka_copy"}
    assert eval_sweep.op.pools == {"sweep"}


NO_POOL = None
"""What Dagster answers for a run that is in none."""


class Queue:
    """The run queue of our dagster.yaml with our definitions. No process is started for a run."""

    LAUNCH = """mutation($params: ExecutionParams!) {
        launchRun(executionParams: $params) {
            ... on LaunchRunSuccess { run { runId allPools } }
            ... on Error { message }
        }
    }"""

    def __init__(self, instance: dg.DagsterInstance, workspace: Any) -> None:
        self.instance = instance
        self.workspace = workspace
        self.daemon = QueuedRunCoordinatorDaemon(interval_seconds=1)

    def launch(self, dataset: str, job: str, *assets: str) -> list[str]:
        """Ask for a run as the page does; returns the pools that it counts for."""
        partition = [] if dataset in assets else [{"key": "dagster/partition", "value": dataset}]
        params = {
            "selector": {
                "repositoryLocationName": "location",
                "repositoryName": "__repository__",
                "jobName": job,
                "assetSelection": [{"path": [asset]} for asset in assets] or None,
                "assetCheckSelection": [] if assets else None,
            },
            "executionMetadata": {"tags": [{"key": "dataset", "value": dataset}, *partition]},
        }
        context = self.workspace.create_request_context()
        answer = asyncio.run(
            create_schema().execute_async(
                self.LAUNCH, context=context, variables={"params": params}
            )
        )
        assert answer.errors is None
        return answer.data["launchRun"]["run"]["allPools"]  # type: ignore[no-any-return]

    def under_way(self) -> set[str]:
        """The datasets that are worked on, after the daemon has started what it may."""
        list(self.daemon.run_iteration(self.workspace))
        started = self.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTING]))
        return {run.tags["dataset"] for run in started}

    def end(self, dataset: str) -> None:
        """Let a dataset's run have ended."""
        (run,) = self.instance.get_runs(dg.RunsFilter(tags={"dataset": dataset}))
        self.instance.report_dagster_event(
            dg.DagsterEvent(dg.DagsterEventType.RUN_SUCCESS.value, run.job_name), run.run_id
        )


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(tmp_path / "evals"))
    launcher = {"module": "dagster._core.test_utils", "class": "MockedRunLauncher"}
    ours = yaml.safe_load(OURS)
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump({**ours, "run_launcher": launcher}))
    target = ModuleTarget("eval_ingest.definitions", None, None, "location")
    with (
        dg.DagsterInstance.from_config(str(tmp_path)) as instance,
        create_test_daemon_workspace_context(target, instance) as workspace,
    ):
        instance.add_dynamic_partitions(str(studio_datasets.name), ["a", "b", "c"])
        # What the daemon does first of all; the page would show the pools from here on.
        known_datasets(
            dg.build_sensor_context(instance=instance, resources={"settings": Settings.load()})
        )
        yield Queue(instance, workspace)


def test_of_all_ingests_two_at_a_time_run_whoever_asks_for_them(queue: Queue) -> None:
    for dataset in ("a", "b"):
        assert queue.launch(dataset, "ingest_studio_dataset") == ["ingest"]  # as the sensor
    for dataset in ("nandi", "awf"):
        assert queue.launch(dataset, "__ASSET_JOB", dataset) == ["ingest"]  # its own asset
    assert queue.launch("c", "__ASSET_JOB", "weka_copy") == ["ingest"]  # one stage
    assert queue.under_way() == {"a", "b"}
    assert queue.under_way() == {"a", "b"}
    queue.end("a")
    assert queue.under_way() == {"b", "nandi"}
    queue.end("b")
    queue.end("nandi")
    assert queue.under_way() == {"awf", "c"}


def test_sweeps_and_stages_that_read_no_pixel_wait_for_no_ingest(queue: Queue) -> None:
    for dataset in ("a", "b"):
        queue.launch(dataset, "ingest_studio_dataset")
    assert queue.launch("c", "__ASSET_JOB", "eval_sweep") == ["sweep"]
    assert queue.launch("d", "__ASSET_JOB", "split_assignment") == NO_POOL
    assert queue.under_way() == {"a", "b", "c", "d"}


def test_two_runs_of_one_dataset_wait_for_each_other(queue: Queue) -> None:
    queue.launch("a", "__ASSET_JOB", "norm_stats")
    queue.launch("a", "__ASSET_JOB", "split_assignment")
    assert queue.under_way() == {"a"}
    statuses = {run.status for run in queue.instance.get_runs()}
    assert statuses == {dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING}
