"""A small catalog under Dagster: what its assets did, show, and hold for stale."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.data_version import (
    CachingStaleStatusResolver,
    StaleStatus,
)
from dagster._core.loader import LoadingContextForTest

from eval_ingest.definitions import build_defs
from eval_ingest.defs.assets import STAGE_ASSETS
from eval_ingest.defs.resources import build_resources
from eval_ingest.job import Job, open_job
from eval_ingest.settings import Settings
from eval_ingest.store.catalog import find_spec
from eval_ingest.store.outcomes import read_outcome
from eval_ingest.store.roots.base import EvalRoot


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
        return EvalRoot(self.folder / "evals").dataset(name)

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
