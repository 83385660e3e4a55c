"""The sensor known_datasets: the page shows what catalog and registry hold, whoever ingested it.

It adds a partition for each dataset that is registered or can be ingested here, and notes as
materialised what was ingested by `eval-ingest`, by another Dagster, or by a sensor's run of the
stages alone, with its pictures and checks. What is no more goes, unless the eval root has gone as
a whole: then it isn't mounted. It runs nothing.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any, TypeAlias

import dagster as dg

from eval_ingest.core.bounds import Record, kept, read_kept
from eval_ingest.core.entry import Metadata, is_ours
from eval_ingest.core.fingerprint import fingerprint
from eval_ingest.core.spec import is_name
from eval_ingest.defs.checks import evaluations
from eval_ingest.defs.front_door import TAKEN
from eval_ingest.defs.metadata import draw_pictures, entry_metadata, stage_path
from eval_ingest.defs.mounted import require_registry
from eval_ingest.defs.partitions import studio_datasets
from eval_ingest.defs.running import is_going_on, set_up_pools
from eval_ingest.defs.versions import DATA_VERSION_TAG, last_record, version_of
from eval_ingest.errors import EvalIngestError
from eval_ingest.pipeline import STAGES
from eval_ingest.redaction import in_lines, redacted
from eval_ingest.settings import Settings
from eval_ingest.store.catalog import out_of_reach, read_catalog
from eval_ingest.store.claims import their_counts
from eval_ingest.store.registry import read_metadata, read_registry
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.store.roots.open import open_root
from eval_ingest.watching import fault_text

LOOK_S = 20.0
"""After that the datasets that are left wait for the next tick: pictures take a second or two."""

Event: TypeAlias = dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation


@dg.sensor(
    name="known_datasets",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Adds a partition for each dataset that is registered or can be ingested here, removes "
        "what is no more, and shows as materialised what was ingested without this Dagster. It "
        "runs nothing."
    ),
)
def known_datasets(
    context: dg.SensorEvaluationContext, settings: dg.ResourceParam[Settings]
) -> dg.SensorResult | dg.SkipReason:
    """List datasets as partitions, and note those that are registered."""
    set_up_pools(context.instance)
    tick = _Tick(context, redacted(settings.eval_root))
    registered: Set[str] | None = None
    try:
        root = open_root(settings)
        require_registry(context.instance, root, tick.shown)
        entries = {n: e for n, e in read_registry(root).items() if is_name(n)}
        registered = entries.keys()
        tick.show_theirs({n: entry for n, entry in entries.items() if not is_ours(entry)})
        tick.show_ours(root, {n: str(e["fingerprint"]) for n, e in entries.items() if is_ours(e)})
        tick.forget(registered)
    except EvalIngestError as error:
        tick.problems.append(str(error))
    requests = tick.partitions(settings, registered)
    text = in_lines("; ".join([*tick.news, *tick.problems]))
    if not (requests or tick.events or tick.news):
        return dg.SkipReason(text or "every dataset of catalog and registry is shown")
    return dg.SensorResult(
        skip_reason=text,  # else the page would speak of an empty result
        asset_events=tick.events,
        dynamic_partitions_requests=requests,
        cursor=kept({"root": tick.root, "shown": dict(sorted(tick.shown.items()))}),
    )


class _Tick:
    """What one look at the registry gives."""

    def __init__(self, context: dg.SensorEvaluationContext, root: str) -> None:
        self.instance = context.instance
        self.root = root
        self.shown = _parse(context.cursor, root)
        """Dataset to the version that is shown, and where."""
        self.events: list[Event] = []
        self.news: list[str] = []
        self.problems: list[str] = []
        self._has_asset = _own_assets(context)

    def show_theirs(self, entries: Mapping[str, Any]) -> None:
        """Note what another tool has registered: it exists, and isn't ours."""
        for name, entry in entries.items():
            if self.shown.get(name) != fingerprint(entry):
                self.events.append(_theirs(name, entry))
                self.shown[name] = fingerprint(entry)

    def show_ours(self, root: EvalRoot, versions: Mapping[str, str]) -> None:
        """Collect the events of what this instance doesn't know, as far as the time allows."""
        began = time.monotonic()
        for name, version in versions.items():
            own = self._has_asset(name)
            wanted = f"{version} at its own asset" if own else version
            if self.shown.get(name) == wanted or is_going_on(self.instance, name):
                continue  # a run will say so itself
            if time.monotonic() - began > LOOK_S:
                return
            try:
                entry = read_metadata(root.dataset(name))
                if entry is not None and entry.fingerprint == version:
                    events = list(_unknown(self.instance, root, entry, own))
                    self.events += events
                    self.news += [f"{name} shows what was ingested elsewhere"] if events else []
                    self.shown[name] = wanted
            except EvalIngestError as error:
                self.problems.append(str(error))
            except Exception as error:
                self.problems.append(f"{name} could not be looked at: {fault_text(error)}")

    def forget(self, registered: Set[str]) -> None:
        """Show as never materialised what has been removed."""
        for name in sorted(self.shown.keys() - registered):
            if is_going_on(self.instance, name):
                continue
            del self.shown[name]
            if name not in TAKEN:
                self.instance.wipe_assets([dg.AssetKey(name)])
            self.events.append(
                dg.AssetObservation(STAGES[-1], partition=name, description="no longer registered")
            )
            self.news.append(f"{name} is no longer registered")

    def partitions(
        self, settings: Settings, registered: Set[str] | None
    ) -> list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest]:
        """What makes the partitions those that are registered or can be ingested here.

        None is removed while catalog or registry can't be read in full: it may be there.
        """
        listed = set(self.instance.get_dynamic_partitions(str(studio_datasets.name)))
        broken: dict[str, EvalIngestError] = {}
        catalog = read_catalog(settings, broken)
        here = catalog.keys() - out_of_reach(settings, catalog).keys()
        new, gone = sorted((here | (registered or set())) - listed), []
        if registered is not None and not broken:
            gone = sorted(listed - catalog.keys() - registered)
            gone = [name for name in gone if not is_going_on(self.instance, name)]
        requests: list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest] = []
        if new:
            requests.append(studio_datasets.build_add_request(new))
            self.news.append(f"{len(new)} datasets are new as partitions")
        if gone:
            requests.append(studio_datasets.build_delete_request(gone))
            self.news.append(f"no longer in catalog or registry: {', '.join(gone)}")
        return requests


def _own_assets(context: dg.SensorEvaluationContext) -> Callable[[str], bool]:
    """Which datasets have an asset of their own; others get it when definitions are reloaded."""
    defined = context.repository_def
    if defined is None:  # in a test: as if all had
        return lambda name: name not in TAKEN
    keys = defined.asset_graph.get_all_asset_keys()
    return lambda name: name not in TAKEN and dg.AssetKey(name) in keys


class _Kept(Record):
    root: str
    shown: dict[str, str]


def _parse(cursor: str | None, root: str) -> dict[str, str]:
    """Dataset to the version that is shown, if the cursor is of this eval root."""
    found = read_kept(_Kept, cursor)
    return found.shown if found is not None and found.root == root else {}


def _theirs(name: str, entry: Mapping[str, Any]) -> dg.AssetObservation:
    """What is shown of a dataset that another tool has registered: it exists, and isn't ours."""
    return dg.AssetObservation(
        STAGES[-1],
        partition=name,
        description="registered by another tool",
        metadata={
            "whose": f"another tool's; to load it here: eval-ingest adopt {name}",
            "path": dg.MetadataValue.path(str(entry.get("weka_path", ""))),
            "task": str(entry.get("task_type", "")),
            "splits": their_counts(entry),
        },
    )


def _unknown(
    instance: dg.DagsterInstance, root: EvalRoot, entry: Metadata, own: bool
) -> Iterator[Event]:
    """What this instance doesn't know of: stages in order, the dataset's own asset, the checks."""
    store = root.dataset(entry.name)
    wanted: list[tuple[dg.AssetKey, str | None, str]] = [
        (dg.AssetKey(stage), entry.name, entry.fingerprints.get(stage, "")) for stage in STAGES
    ]
    wanted += [(dg.AssetKey(entry.name), None, entry.fingerprint)] if own else []
    checked = []
    for key, partition, version in wanted:
        if not version or version_of(last_record(instance, key, partition)) == version:
            continue
        metadata: dict[str, Any] = {}
        if version == entry.fingerprint:
            checked.append(key)
            metadata = entry_metadata(store, entry, draw_pictures(store, entry.fingerprint))
        if partition is not None:
            metadata["path"] = dg.MetadataValue.path(stage_path(store, key.path[-1]))
        yield dg.AssetMaterialization(
            key, partition=partition, metadata=metadata, tags={DATA_VERSION_TAG: version}
        )
    if checked:
        yield from evaluations(root, entry.name, checked)
