"""Values of the stage assets: the files of an eval dataset, and nothing beside them.

What is read and written here is what `EvalDataset` loads; how, says store/.
"""

from pathlib import Path
from typing import Any

import dagster as dg
from upath import UPath

from eval_ingest import pipeline
from eval_ingest.defs.failures import as_failure
from eval_ingest.defs.metadata import stage_file, stage_path
from eval_ingest.errors import NotIngestedError
from eval_ingest.job import open_job
from eval_ingest.settings import Settings
from eval_ingest.store.catalog import find_spec
from eval_ingest.store.outcomes import read_outcome
from eval_ingest.store.roots.base import DatasetStore
from eval_ingest.store.roots.open import open_root


class StageIOManager(dg.UPathIOManager):
    """window_index and split_assignment as Parquet, the other stages as JSON: see store/paths.py.

    An asset's name is its stage, and its partition the dataset.
    """

    def __init__(self, settings: Settings) -> None:
        # Base path unused: the eval root is looked for when a run needs it, since the code
        # location has to load where Weka isn't mounted.
        super().__init__(base_path=UPath("."))
        self._settings = settings

    def get_path_for_partition(
        self, context: dg.InputContext | dg.OutputContext, path: UPath, partition: str
    ) -> UPath:
        with as_failure(partition):
            store = open_root(self._settings).dataset(partition)
            return UPath(stage_file(store.layout, context.asset_key.path[-1]))

    def get_metadata(self, context: dg.OutputContext, obj: Any) -> dict[str, dg.MetadataValue]:
        """Where the value is, as people know it: the URL of a remote root's."""
        store = open_root(self._settings).dataset(context.partition_key)
        return {"path": dg.MetadataValue.path(stage_path(store, context.asset_key.path[-1]))}

    def dump_to_path(self, context: dg.OutputContext, obj: Any, path: UPath) -> None:
        """Write a value, unless it is what is on disk.

        It is, if our stage assets made it: they write under the lock that they build under.
        """
        name, stage = context.partition_key, context.asset_key.path[-1]
        with as_failure(name):
            old = read_outcome(self._store(path), stage)
            if old is None or old.fingerprint != obj.fingerprint:
                job = open_job(find_spec(self._settings, name), self._settings)
                with pipeline.dataset_lock(job):
                    pipeline.write_stage(job, stage, obj)

    def load_from_path(self, context: dg.InputContext, path: UPath) -> Any:
        """Read a stage's outcome; a Failure that says what to run if it isn't there."""
        store, stage = self._store(path), context.asset_key.path[-1]
        with as_failure(store.name):
            value = read_outcome(store, stage)
            if value is None:
                find_spec(self._settings, store.name)  # a mistyped name has another cure
                # Of what it is made from, the first that is missing: others need that too.
                needed = (*pipeline.INPUTS[stage], stage)
                first = next(s for s in needed if s == stage or read_outcome(store, s) is None)
                raise NotIngestedError(
                    f"{store.name}: {first} has not run yet, and this stage needs it; run: "
                    f"dagster asset materialize --select {first} --partition {store.name}"
                )
            return value

    def _store(self, path: UPath) -> DatasetStore:
        return open_root(self._settings).dataset(Path(str(path)).parent.name)
