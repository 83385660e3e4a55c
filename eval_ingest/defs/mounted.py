"""A root that isn't mounted looks empty: on that ground nothing is removed, or ingested below it.

What belongs here: telling such a root from a new one, by what Dagster knows of it. What doesn't:
what is then left alone, which the sensors say.
"""

from collections.abc import Collection

import dagster as dg

from eval_ingest.defs.metadata import stage_path
from eval_ingest.defs.versions import last_record
from eval_ingest.errors import StoreError
from eval_ingest.pipeline import STAGES
from eval_ingest.store.registry import has_registry
from eval_ingest.store.roots.base import EvalRoot


def require_registry(
    instance: dg.DagsterInstance, root: EvalRoot, seen: Collection[str] = ()
) -> None:
    """Check that an eval root in which datasets were registered has a registry.

    Args:
        instance: knows what was registered, and where.
        root: the eval root.
        seen: datasets that earlier ticks have found registered there.

    Raises:
        StoreError: it has none: it isn't mounted, most often.
    """
    if has_registry(root):
        return
    known = instance.get_materialized_partitions(dg.AssetKey(STAGES[-1]))
    if seen or any(_was_in(root, instance, name) for name in known):
        raise StoreError(
            f"{root.url} holds no registry.json, and datasets were registered there; is it "
            "mounted? Until it is back nothing is removed here, or asked for; if it was emptied on "
            "purpose, run: eval-ingest registry rebuild"
        )


def _was_in(root: EvalRoot, instance: dg.DagsterInstance, name: str) -> bool:
    record = last_record(instance, dg.AssetKey(STAGES[-1]), name)
    shown = None if record is None else record.asset_materialization
    path = None if shown is None else shown.metadata.get("path")
    return path is not None and path.value == stage_path(root.dataset(name), STAGES[-1])
