"""The sensor known_datasets: the page shows what catalog and registry hold, whoever ingested it.

It adds a partition for each dataset of the catalog, and notes as materialised what was ingested
by `eval-ingest`, by another Dagster, or by a sensor's run of the stages alone. It runs nothing.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from eval_ingest.core.entry import Metadata, is_ours
from eval_ingest.core.fingerprint import fingerprint
from eval_ingest.core.spec import NAME_PATTERN
from eval_ingest.defs.front_door import TAKEN
from eval_ingest.defs.metadata import entry_metadata, stage_path
from eval_ingest.defs.partitions import studio_datasets
from eval_ingest.defs.running import is_going_on, set_up_pools
from eval_ingest.defs.versions import last_record, version_of
from eval_ingest.errors import EvalIngestError
from eval_ingest.pipeline import STAGES
from eval_ingest.redaction import redacted
from eval_ingest.settings import Settings
from eval_ingest.store.catalog import read_catalog
from eval_ingest.store.claims import their_counts
from eval_ingest.store.paths import DatasetLayout, EvalRoot
from eval_ingest.store.registry import read_metadata, read_registry
from eval_ingest.store.roots.open import open_root
from eval_ingest.watching import fault_text


@dg.sensor(
    name="known_datasets",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Adds a partition for each dataset of the catalog, and shows as materialised what was "
        "ingested without this Dagster. It runs nothing."
    ),
)
def known_datasets(
    context: dg.SensorEvaluationContext, settings: dg.ResourceParam[Settings]
) -> dg.SensorResult | dg.SkipReason:
    """List datasets as partitions, and note those that are registered."""
    set_up_pools(context.instance)
    problems: list[str] = []
    shown = _parse(context.cursor, redacted(settings.eval_root))
    events: list[dg.AssetMaterialization | dg.AssetObservation] = []
    registered: dict[str, str] = {}
    try:
        root = open_root(settings)
        entries = read_registry(root)
        entries = {n: entry for n, entry in entries.items() if NAME_PATTERN.fullmatch(n)}
        registered = {
            name: str(entry["fingerprint"]) if is_ours(entry) else fingerprint(entry)
            for name, entry in entries.items()
        }
        for name in [name for name in registered if shown.get(name) != registered[name]]:
            if is_going_on(context.instance, name):
                continue  # it will say so itself
            if not is_ours(entries[name]):
                events.append(_theirs(root, name, entries[name]))
                shown[name] = registered[name]
                continue
            try:
                entry = read_metadata(root.dataset(name))
                if entry is not None and entry.fingerprint == registered[name]:
                    events += list(_unknown(context.instance, root.dataset(name), entry))
                    shown[name] = entry.fingerprint
            except EvalIngestError as error:
                problems.append(str(error))
            except Exception as error:
                problems.append(f"{name} could not be looked at: {fault_text(error)}")
    except EvalIngestError as error:
        problems.append(str(error))
    partitions = str(studio_datasets.name)
    listed = set(context.instance.get_dynamic_partitions(partitions))
    names = {*read_catalog(settings, broken={}), *registered}
    new = sorted(names - listed)
    if not new and not events:
        return dg.SkipReason(
            "; ".join(problems) or "every dataset of catalog and registry is shown"
        )
    for problem in problems:
        context.log.warning(problem)
    for name in sorted({str(event.asset_key.path[-1]) for event in events} - TAKEN):
        context.log.info(f"{name} is registered, and its asset shows it now")
    told = [f"{len(new)} datasets are new as partitions"] if new else []
    told += [f"{len(events)} assets show what was ingested elsewhere"] if events else []
    return dg.SensorResult(
        skip_reason="; ".join([*told, *problems]),  # else the page would speak of an empty result
        asset_events=list(events),
        dynamic_partitions_requests=[studio_datasets.build_add_request(new)] if new else [],
        cursor=json.dumps(
            {
                "root": redacted(settings.eval_root),
                "shown": {name: shown[name] for name in sorted(shown) if name in registered},
            }
        ),
    )


def _parse(cursor: str | None, root: str) -> dict[str, str]:
    """Dataset to the version that is shown, if the cursor is of this eval root."""
    try:
        values = json.loads(cursor or "{}")
        return dict(values["shown"]) if values["root"] == root else {}
    except (ValueError, TypeError, KeyError):
        return {}


def _theirs(root: EvalRoot, name: str, entry: Mapping[str, Any]) -> dg.AssetObservation:
    """What is shown of a dataset that another tool has registered: it exists, and isn't ours."""
    return dg.AssetObservation(
        STAGES[-1],
        partition=name,
        description="registered by another tool",
        metadata={
            "whose": f"another tool's; to load it here: eval-ingest adopt --name {name}",
            "path": dg.MetadataValue.path(str(entry.get("weka_path", ""))),
            "task": str(entry.get("task_type", "")),
            "splits": their_counts(entry),
        },
    )


def _unknown(
    instance: dg.DagsterInstance, layout: DatasetLayout, entry: Metadata
) -> Iterator[dg.AssetMaterialization]:
    """Materialisations that this instance doesn't know of: stages in order, then the front door."""
    for stage in STAGES:
        version = entry.fingerprints.get(stage, "")
        if version and version_of(last_record(instance, dg.AssetKey(stage), entry.name)) != version:
            metadata = {"path": dg.MetadataValue.path(stage_path(layout, stage))}
            if stage == STAGES[-1]:
                metadata = entry_metadata(layout, entry, pictures=False) | metadata
            yield dg.AssetMaterialization(
                stage, partition=entry.name, metadata=metadata, tags={DATA_VERSION_TAG: version}
            )
    if entry.name in TAKEN:
        return
    if version_of(last_record(instance, dg.AssetKey(entry.name))) != entry.fingerprint:
        yield dg.AssetMaterialization(
            entry.name,
            metadata=entry_metadata(layout, entry, pictures=False),
            tags={DATA_VERSION_TAG: entry.fingerprint},
        )
