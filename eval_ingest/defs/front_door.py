"""The front door: for each dataset of the catalog an asset of its name that does the whole job.

`dagster asset materialize --select tolbi_crops` runs five ops, one per stage, and a last one that
sums up. Each runs its stage if it is missing or stale, and logs the materialisation of the stage
asset's partition. So there is one step per stage to watch and to retry, and the stage assets show
what was done.

In a run of another dataset's partition they do nothing: `--select 'window_index*'` selects all that
lies below, every dataset of the catalog too, and means the one of `--partition`.
"""

from collections.abc import Iterable, Iterator
from functools import cache

import dagster as dg

from eval_ingest.core.spec import DatasetSpec
from eval_ingest.defs.assets import POOLED
from eval_ingest.defs.checks import evaluations
from eval_ingest.defs.failures import as_failure
from eval_ingest.defs.metadata import (
    UP_TO_DATE,
    entry_metadata,
    shown_pictures,
    stage_metadata,
)
from eval_ingest.defs.running import INGEST_POOL, PARTITION_TAG, run_stage
from eval_ingest.defs.versions import (
    CHECKED_TAG,
    last_record,
    tag_of,
    version_of,
    version_tags,
)
from eval_ingest.errors import NotIngestedError
from eval_ingest.pipeline import STAGES
from eval_ingest.report.terminal import counts_text
from eval_ingest.settings import Settings
from eval_ingest.store.registry import read_metadata
from eval_ingest.store.roots.open import open_root

GROUP = "eval_datasets"
DATASET_TAG = "eval_ingest/dataset"
"""On an op of a front door: whose it is."""
TAKEN = frozenset({*STAGES, "eval_sweep"})
"""Assets that are not datasets."""


def dataset_assets(specs: Iterable[DatasetSpec]) -> list[dg.AssetsDefinition]:
    """The front doors of some datasets; one whose name is taken can't have one."""
    return [
        _dataset_asset(spec.name, _description(spec)) for spec in specs if spec.name not in TAKEN
    ]


@cache  # `dagster asset materialize` loads the definitions six times, at milliseconds a dataset
def _dataset_asset(name: str, description: str) -> dg.AssetsDefinition:
    tag = {DATASET_TAG: name}
    stages = [_stage_op(stage).tag(tag).alias(stage) for stage in STAGES]
    summary = _summary_op().tag(tag).alias("summary")

    # graph_asset would do, but it names its graph after the asset with - turned into _.
    @dg.graph(name=_identifier(name), ins={"registered": dg.GraphIn()}, out=dg.GraphOut())
    def ingest(registered):  # type: ignore[no-untyped-def]
        done = registered
        for stage in stages:
            done = stage(start=done)
        return summary(start=done)

    return dg.AssetsDefinition.from_graph(
        ingest,
        # The edge that the page draws. It carries no value and asks for no run of its own.
        keys_by_input_name={"registered": dg.AssetKey("registry_entry")},
        partition_mappings={"registered": dg.SpecificPartitionsPartitionMapping([name])},
        keys_by_output_name={"result": dg.AssetKey([name])},
        group_name=GROUP,
        descriptions_by_output_name={"result": description},
    )


def _description(spec: DatasetSpec) -> str:
    lines = [spec.display_name or spec.name, f"Source: `{spec.source}`"]
    lines += [text for text in (spec.notes, spec.licence and f"Licence: {spec.licence}") if text]
    return "\n\n".join(lines)


def _identifier(name: str) -> str:
    """A dataset's name as Dagster takes it for ops; names are lower-case, so a-b isn't a_b."""
    return name.replace("-", "_DASH_")


@cache  # the same for all datasets: to make six ops a dataset takes a thousand of them seconds
def _stage_op(stage: str) -> dg.OpDefinition:
    # Ops hand on nothing but their order: values go through the eval root, so a re-execution
    # from any op finds them.
    @dg.op(
        name=f"{stage}_OF_ITS_DATASET",
        description=f"Run {stage} if it is missing or stale.",
        ins={"start": dg.In(dg.Nothing)},
        out=dg.Out(dg.Nothing, is_required=False),
        pool=INGEST_POOL if stage in POOLED else None,
    )
    def run(
        context: dg.OpExecutionContext, settings: dg.ResourceParam[Settings]
    ) -> Iterator[dg.Output[None]]:
        name = context.op.tags[DATASET_TAG]
        if context.run.tags.get(PARTITION_TAG, name) != name:
            return  # what needs this op is skipped, too
        done = run_stage(context, settings, name, stage)
        last = last_record(context.instance, dg.AssetKey(stage), name)
        if done.outcome.ran or version_of(last) != done.outcome.fingerprint:
            context.log_event(
                dg.AssetMaterialization(
                    asset_key=stage,
                    partition=name,
                    metadata=stage_metadata(done.job, done.outcome),
                    tags=version_tags(
                        context.instance, context.run.run_id, name, stage, done.outcome.fingerprint
                    ),
                )
            )
        yield dg.Output(None)

    return run


@cache
def _summary_op() -> dg.OpDefinition:
    """The op that the asset's own materialisation comes from.

    It can't be the registry_entry op: Dagster looks up the version of registry_entry when a step
    begins, and would call the asset stale for what the step itself had logged.
    """

    @dg.op(
        name="summary_OF_ITS_DATASET",
        description="Say what the dataset is now.",
        ins={"start": dg.In(dg.Nothing)},
        out=dg.Out(dg.Nothing, is_required=False),
    )
    def run(
        context: dg.OpExecutionContext, settings: dg.ResourceParam[Settings]
    ) -> Iterator[dg.Output[None]]:
        name = context.op.tags[DATASET_TAG]
        with as_failure(name):
            root = open_root(settings)
            store = root.dataset(name)
            entry = read_metadata(store)
            if entry is None:
                raise NotIngestedError(
                    f"{root.shown(store.layout.metadata)} has been removed; run {name} again"
                )
            last = last_record(context.instance, dg.AssetKey(name))
            if tag_of(last, CHECKED_TAG) != entry.fingerprint:
                for evaluation in evaluations(root, name):
                    context.log_event(evaluation)  # type: ignore[arg-type]  # hints lag behind
        same = last if version_of(last) == entry.fingerprint else None
        pictures = shown_pictures(same, store, entry)
        counts = counts_text({split: found.count for split, found in entry.splits.items()})
        if _anything_ran(context, name):
            context.log.info(f"{name}: registered in {store.url}: {counts}")
        else:
            context.log.info(f"{name}: up to date, nothing to do: {counts} in {store.url}")
        yield dg.Output(
            None,
            data_version=dg.DataVersion(entry.fingerprint),
            metadata=entry_metadata(store, entry, pictures),
            tags={CHECKED_TAG: entry.fingerprint},
        )

    return run


def _anything_ran(context: dg.OpExecutionContext, name: str) -> bool:
    """True if a stage of this run did something, by the materialisations that the ops logged."""
    logged = context.instance.all_logs(
        context.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION
    )
    found = (entry.asset_materialization for entry in logged)
    return any(
        materialization is not None
        and materialization.partition == name
        and materialization.metadata[UP_TO_DATE].value is False
        for materialization in found
    )
