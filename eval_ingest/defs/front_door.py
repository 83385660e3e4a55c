"""The front door: for each dataset of the catalog an asset of its name that does the whole job.

`dagster asset materialize --select tolbi_crops` runs five ops, one per stage, and a last one that
sums up. Each runs its stage if it is missing or stale, and logs the materialisation of the stage
asset's partition. So there is one step per stage to watch and to retry, and the stage assets show
what was done.

No edge leads from registry_entry to a front door: `--select 'window_index*' --partition aaa` means
one dataset, not the whole catalog; known_datasets shows what the stages did without it. In a run of
another dataset's partition a front door does nothing. In a run of many datasets, those whose source
can't be had from here are left out.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any

import dagster as dg

from eval_ingest.core.spec import DatasetSpec
from eval_ingest.defs.assets import POOLED, registry_entry
from eval_ingest.defs.checks import asset_checks, evaluations, step_of
from eval_ingest.defs.metadata import UP_TO_DATE, entry_metadata, shown_pictures, stage_metadata
from eval_ingest.defs.partitions import identifier
from eval_ingest.defs.running import INGEST_POOL, PARTITION_TAG, run_stage, step_on
from eval_ingest.defs.versions import last_record, version_of, version_tags
from eval_ingest.errors import NotIngestedError
from eval_ingest.pipeline import STAGES
from eval_ingest.redaction import in_markdown
from eval_ingest.report.terminal import counts_text
from eval_ingest.settings import Settings
from eval_ingest.store.catalog import shown_source
from eval_ingest.store.registry import read_metadata
from eval_ingest.store.roots.open import open_root

GROUP = "eval_datasets"
ELSEWHERE = "not_reachable_here"
"""Group of the datasets whose source isn't on this machine."""
SUMMARY = "summary"
"""The last step, which the asset's own materialisation comes from."""
TAKEN = frozenset({*STAGES, "eval_sweep"})
"""Assets that are not datasets."""


def dataset_assets(
    specs: Mapping[str, DatasetSpec], settings: Settings, out_of_reach: Mapping[str, str]
) -> list[dg.AssetsDefinition | dg.AssetChecksDefinition]:
    """The front doors of some datasets, with checks of those that can be ingested here.

    One whose name is taken can't have one.

    Args:
        specs: of the datasets, by name.
        settings: say where their sources are.
        out_of_reach: why the source of some can't be had from this machine.
    """
    found: list[dg.AssetsDefinition | dg.AssetChecksDefinition] = []
    for name, spec in specs.items():
        why = out_of_reach.get(name, "")
        group = ELSEWHERE if why else GROUP
        if name not in TAKEN:
            found.append(_dataset_asset(name, _description(spec, settings, why), group))
            found += [] if why else [asset_checks(dg.AssetKey([name]))]
    return found


@cache  # `dagster asset materialize` loads the definitions six times, at milliseconds a dataset
def _dataset_asset(name: str, description: str, group: str) -> dg.AssetsDefinition:
    # By hand: the decorator takes each dataset's graph apart anew, and turns - into _.
    graph = dg.GraphDefinition(name=identifier(name), **_steps())
    return dg.AssetsDefinition.from_graph(
        graph,
        keys_by_output_name={"result": dg.AssetKey([name])},
        group_name=group,
        descriptions_by_output_name={"result": description},
    )


@cache  # the same for all datasets: to make six ops a dataset takes a thousand of them seconds
def _steps() -> dict[str, Any]:
    """Ops in their order, as a graph takes them."""
    ops = {**{stage: _stage_op(stage) for stage in STAGES}, SUMMARY: _summary_op()}
    order = {
        dg.NodeInvocation(op.name, alias=step): {"start": dg.DependencyDefinition(before)}
        for before, (step, op) in zip(["", *STAGES], ops.items(), strict=True)
    }
    order[next(iter(order))] = {}
    return {
        "node_defs": list(ops.values()),
        "dependencies": order,
        "output_mappings": [dg.OutputMapping("result", SUMMARY, "result")],
    }


def _description(spec: DatasetSpec, settings: Settings, out_of_reach: str) -> str:
    lines = [spec.display_name or spec.name, f"Source: {shown_source(settings, spec)}"]
    lines += [f"Can't be had from here: {out_of_reach}"] if out_of_reach else []
    lines += [text for text in (spec.notes, spec.licence and f"Licence: {spec.licence}") if text]
    return "\n\n".join(in_markdown(line, 2_000) for line in lines)


_make_op: Callable[..., Callable[..., dg.OpDefinition]] = partial(
    dg.op,
    # Ops hand on nothing but their order: values go through the eval root, so a re-execution
    # from any op finds them.
    ins={"start": dg.In(dg.Nothing)},
    out=dg.Out(dg.Nothing, is_required=False),
)


def _stage_op(stage: str) -> dg.OpDefinition:
    @_make_op(
        name=f"{stage}_OF_ITS_DATASET",
        description=f"Run {stage} if it is missing or stale.",
        pool=INGEST_POOL if stage in POOLED else None,
    )
    def run(
        context: dg.OpExecutionContext, settings: dg.ResourceParam[Settings]
    ) -> Iterator[dg.Output[None]]:
        name = _dataset(context)
        if context.run.tags.get(PARTITION_TAG, name) != name:
            return  # what needs this op is skipped, too
        with step_on(name) as check:
            done = run_stage(
                context, settings, name, stage, check, of_many=_is_of_many(context.run)
            )
            if done is None:
                return
            last = last_record(context.instance, dg.AssetKey(stage), name)
            if done.outcome.ran or version_of(last) != done.outcome.fingerprint:
                context.log_event(
                    dg.AssetMaterialization(
                        asset_key=stage,
                        partition=name,
                        metadata=stage_metadata(done.job, done.outcome),
                        tags=version_tags(
                            context.instance,
                            context.run.run_id,
                            name,
                            stage,
                            done.outcome.fingerprint,
                        ),
                    )
                )
            yield dg.Output(None)

    return run


def _dataset(context: dg.OpExecutionContext) -> str:
    """Whose front door an op stands in: all share their ops."""
    (key,) = context.assets_def.keys
    return key.path[-1]


def _is_of_many(run: dg.DagsterRun) -> bool:
    """True for a run of several datasets' own assets, such as of all there are."""
    return len((run.asset_selection or frozenset()) - {dg.AssetKey(name) for name in TAKEN}) > 1


def _summary_op() -> dg.OpDefinition:
    @_make_op(name="summary_OF_ITS_DATASET", description="Say what the dataset is now.")
    def run(
        context: dg.OpExecutionContext, settings: dg.ResourceParam[Settings]
    ) -> Iterator[dg.Output[None]]:
        name = _dataset(context)
        with step_on(name):
            root = open_root(settings)
            store = root.dataset(name)
            entry = read_metadata(store)
            if entry is None:
                raise NotIngestedError(
                    f"{root.shown(store.layout.metadata)} has been removed; run {name} again"
                )
            last = last_record(context.instance, dg.AssetKey(name))
            same = last if version_of(last) == entry.fingerprint else None
            counts = counts_text({split: found.count for split, found in entry.splits.items()})
            if _anything_ran(context, name):
                context.log.info(f"{name}: registered in {store.url}: {counts}")
            else:
                context.log.info(f"{name}: up to date, nothing to do: {counts} in {store.url}")
            context.set_data_version(dg.AssetKey(name), dg.DataVersion(entry.fingerprint))
            yield dg.Output(
                None,
                metadata=entry_metadata(store, entry, shown_pictures(same, store, entry)),
            )
            if step_of(name) not in context.job_def.graph.node_names():  # checks weren't selected
                for found in evaluations(root, name, [registry_entry.key, dg.AssetKey(name)]):
                    context.log_event(found)  # type: ignore[arg-type]

    return run


def _anything_ran(context: dg.OpExecutionContext, name: str) -> bool:
    """True if a stage of this run did something, by the materialisations that the ops logged."""
    logged = context.instance.all_logs(
        context.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION
    )
    found = (entry.asset_materialization for entry in logged)
    return any(
        m.partition == name and m.metadata.get(UP_TO_DATE) == dg.MetadataValue.bool(False)
        for m in found
        if m is not None
    )
