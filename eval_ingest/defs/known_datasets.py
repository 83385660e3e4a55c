"""The sensor known_datasets: the page shows what catalog and registry hold, whoever ingested it.

It adds a partition for each dataset of the catalog, and notes as materialised what was ingested
by `eval-ingest`, by another Dagster, or by a sensor's run of the stages alone, with its pictures
and checks. It runs nothing.
"""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from eval_ingest.core.entry import Metadata, is_ours
from eval_ingest.core.fingerprint import fingerprint
from eval_ingest.core.spec import NAME_PATTERN
from eval_ingest.defs.checks import evaluations
from eval_ingest.defs.front_door import TAKEN
from eval_ingest.defs.metadata import draw_pictures, entry_metadata, stage_path
from eval_ingest.defs.partitions import studio_datasets
from eval_ingest.defs.running import is_going_on, set_up_pools
from eval_ingest.defs.versions import CHECKED_TAG, DATA_VERSION_TAG, last_record, version_of
from eval_ingest.errors import EvalIngestError
from eval_ingest.pipeline import STAGES
from eval_ingest.redaction import redacted
from eval_ingest.settings import Settings
from eval_ingest.store.catalog import read_catalog
from eval_ingest.store.claims import their_counts
from eval_ingest.store.registry import read_metadata, read_registry
from eval_ingest.store.roots.base import DatasetStore, EvalRoot
from eval_ingest.store.roots.open import open_root
from eval_ingest.watching import fault_text

LOOK_S = 20.0
"""After that the datasets that are left wait for the next tick: pictures take a second or two."""


@dg.sensor(
    name="known_datasets",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Adds a partition for each dataset of the catalog, removes those of datasets that are no "
        "more, and shows as materialised what was ingested without this Dagster. It runs nothing."
    ),
)
def known_datasets(
    context: dg.SensorEvaluationContext, settings: dg.ResourceParam[Settings]
) -> dg.SensorResult | dg.SkipReason:
    """List datasets as partitions, and note those that are registered."""
    set_up_pools(context.instance)
    tick = _Tick(context.instance, _parse(context.cursor, redacted(settings.eval_root)))
    registered: dict[str, str] | None = None
    try:
        root = open_root(settings)
        entries = read_registry(root)
        entries = {n: entry for n, entry in entries.items() if NAME_PATTERN.fullmatch(n)}
        registered = {
            name: str(entry["fingerprint"]) if is_ours(entry) else fingerprint(entry)
            for name, entry in entries.items()
        }
        tick.show_theirs({n: entry for n, entry in entries.items() if not is_ours(entry)})
        tick.look_at(root, registered)
    except EvalIngestError as error:
        tick.problems.append(str(error))
    requests = _partitions(context.instance, settings, registered, tick)
    if not requests and not tick.events:
        return dg.SkipReason(
            "; ".join(tick.problems) or "every dataset of catalog and registry is shown"
        )
    for problem in tick.problems:
        context.log.warning(problem)
    for name in tick.told:
        context.log.info(f"{name} is registered, and its asset shows it now")
    if tick.told:
        tick.news.append(f"{len(tick.told)} datasets show what was ingested elsewhere")
    shown = {name: tick.shown[name] for name in sorted(tick.shown) if name in (registered or ())}
    return dg.SensorResult(
        # else the page would speak of an empty result
        skip_reason="; ".join([*tick.news, *tick.problems]),
        asset_events=tick.events,
        dynamic_partitions_requests=requests,
        cursor=json.dumps({"root": redacted(settings.eval_root), "shown": shown}),
    )


class _Tick:
    """What one look at the registry gives."""

    def __init__(self, instance: dg.DagsterInstance, shown: dict[str, str]) -> None:
        self.instance = instance
        self.shown = shown
        """Dataset to the version that its asset shows."""
        self.events: list[dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation]
        self.events = []
        self.told: list[str] = []
        self.news: list[str] = []
        self.problems: list[str] = []

    def show_theirs(self, entries: Mapping[str, Any]) -> None:
        """Note what another tool has registered: it exists, and isn't ours."""
        for name, entry in entries.items():
            if self.shown.get(name) != fingerprint(entry):
                self.events.append(_theirs(name, entry))
                self.shown[name] = fingerprint(entry)

    def look_at(self, root: EvalRoot, registered: Mapping[str, str]) -> None:
        """Collect the events of what this instance doesn't know, as far as the time allows."""
        began = time.monotonic()
        waiting = [name for name in registered if self.shown.get(name) != registered[name]]
        for name in waiting:
            if is_going_on(self.instance, name):
                continue  # it will say so itself
            if time.monotonic() - began > LOOK_S:
                return
            try:
                entry = read_metadata(root.dataset(name))
                if entry is not None and entry.fingerprint == registered[name]:
                    events = list(_unknown(self.instance, root, entry))
                    self.events += events
                    self.told += [name] if events else []
                    self.shown[name] = entry.fingerprint
            except EvalIngestError as error:
                self.problems.append(str(error))
            except Exception as error:
                self.problems.append(f"{name} could not be looked at: {fault_text(error)}")


def _partitions(
    instance: dg.DagsterInstance,
    settings: Settings,
    registered: Mapping[str, str] | None,
    tick: _Tick,
) -> list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest]:
    """What makes the partitions those of catalog and registry.

    None is removed while either of them can't be read in full: what it holds may be there.
    """
    listed = set(instance.get_dynamic_partitions(str(studio_datasets.name)))
    broken: dict[str, EvalIngestError] = {}
    names = {*read_catalog(settings, broken), *(registered or ())}
    new, gone = sorted(names - listed), []
    if registered is not None and not broken:
        gone = [name for name in sorted(listed - names) if not is_going_on(instance, name)]
    requests: list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest] = []
    if new:
        requests.append(studio_datasets.build_add_request(new))
        tick.news.append(f"{len(new)} datasets are new as partitions")
    if gone:
        requests.append(studio_datasets.build_delete_request(gone))
        tick.news.append(f"no longer in catalog or registry: {', '.join(gone)}")
    return requests


def _parse(cursor: str | None, root: str) -> dict[str, str]:
    """Dataset to the version that is shown, if the cursor is of this eval root."""
    try:
        values = json.loads(cursor or "{}")
        return dict(values["shown"]) if values["root"] == root else {}
    except (ValueError, TypeError, KeyError):
        return {}


def _theirs(name: str, entry: Mapping[str, Any]) -> dg.AssetObservation:
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
    instance: dg.DagsterInstance, root: EvalRoot, entry: Metadata
) -> Iterator[dg.AssetMaterialization | dg.AssetCheckEvaluation]:
    """What this instance doesn't know of: stages in order, the checks, then the front door."""
    store = root.dataset(entry.name)
    checked = False
    for stage in STAGES:
        version = entry.fingerprints.get(stage, "")
        if version and version_of(last_record(instance, dg.AssetKey(stage), entry.name)) != version:
            metadata = {"path": dg.MetadataValue.path(stage_path(store, stage))}
            if stage == STAGES[-1]:
                metadata = _shown(store, entry) | metadata
            yield dg.AssetMaterialization(
                stage, partition=entry.name, metadata=metadata, tags={DATA_VERSION_TAG: version}
            )
            if stage == STAGES[-1]:
                yield from evaluations(root, entry.name)
                checked = True
    if entry.name in TAKEN:
        return
    if version_of(last_record(instance, dg.AssetKey(entry.name))) != entry.fingerprint:
        tags = {DATA_VERSION_TAG: entry.fingerprint}
        yield dg.AssetMaterialization(
            entry.name,
            metadata=_shown(store, entry),
            tags=tags | ({CHECKED_TAG: entry.fingerprint} if checked else {}),
        )


def _shown(store: DatasetStore, entry: Metadata) -> dict[str, Any]:
    return entry_metadata(store, entry, draw_pictures(store, entry.fingerprint))
