"""The five stages as assets, one partition per dataset.

    window_index -> split_assignment -> norm_stats -> weka_copy -> registry_entry

A body wires and reports; what a stage does stands in pipeline.py.
"""
# No `from __future__ import annotations` here: Dagster reads the annotation of `context`.

from functools import partial
from typing import Any

import dagster as dg

from eval_ingest.core.entry import CopyResult, Metadata, NormStats
from eval_ingest.core.index import WindowIndex
from eval_ingest.core.splits import SplitAssignment
from eval_ingest.defs.metadata import stage_metadata
from eval_ingest.defs.partitions import studio_datasets
from eval_ingest.defs.resources import STAGE_IO
from eval_ingest.defs.running import INGEST_POOL, run_stage, step_on
from eval_ingest.settings import Settings

GROUP = "studio_ingest"
POOLED = ("window_index", "weka_copy")

_stage_asset = partial(
    dg.asset,
    group_name=GROUP,
    partitions_def=studio_datasets,
    io_manager_key=STAGE_IO,
)

SettingsParam = dg.ResourceParam[Settings]


def _stage(context: dg.AssetExecutionContext, settings: Settings, **values: Any) -> dg.Output[Any]:
    """Run the stage that is named like the asset, on the dataset that is the partition."""
    stage = context.asset_key.path[-1]
    with step_on(context.partition_key) as check:
        done = run_stage(context, settings, context.partition_key, stage, check, values)
        assert done is not None  # in a run of one dataset none is left out
        metadata = stage_metadata(*done)
    del metadata["path"]  # the IO manager adds it
    outcome = done.outcome
    context.set_data_version(context.asset_key, dg.DataVersion(outcome.fingerprint))
    return dg.Output(outcome.value, metadata=metadata)


@_stage_asset(kinds={"parquet"}, pool=INGEST_POOL)
def window_index(
    context: dg.AssetExecutionContext, settings: SettingsParam
) -> dg.Output[WindowIndex]:
    """Every window of the source, read once and judged: one row per window."""
    return _stage(context, settings)


@_stage_asset(kinds={"parquet"})
def split_assignment(
    context: dg.AssetExecutionContext, settings: SettingsParam, window_index: WindowIndex
) -> dg.Output[SplitAssignment]:
    """Train, val, test or none for each window, and why."""
    return _stage(context, settings, window_index=window_index)


@_stage_asset(kinds={"json"})
def norm_stats(
    context: dg.AssetExecutionContext,
    settings: SettingsParam,
    window_index: WindowIndex,
    split_assignment: SplitAssignment,
) -> dg.Output[NormStats]:
    """Mean, standard deviation, min and max of each band over the train windows."""
    return _stage(context, settings, window_index=window_index, split_assignment=split_assignment)


@_stage_asset(kinds={"numpy"}, pool=INGEST_POOL)
def weka_copy(
    context: dg.AssetExecutionContext,
    settings: SettingsParam,
    window_index: WindowIndex,
    split_assignment: SplitAssignment,
) -> dg.Output[CopyResult]:
    """The windows beside the GPUs: as an rslearn dataset, and packed for EvalDataset."""
    return _stage(context, settings, window_index=window_index, split_assignment=split_assignment)


@_stage_asset(kinds={"json"})
def registry_entry(
    context: dg.AssetExecutionContext,
    settings: SettingsParam,
    window_index: WindowIndex,
    split_assignment: SplitAssignment,
    norm_stats: NormStats,
    weka_copy: CopyResult,
) -> dg.Output[Metadata]:
    """metadata.json and the entry in registry.json: from here on, EvalDataset finds it."""
    return _stage(
        context,
        settings,
        window_index=window_index,
        split_assignment=split_assignment,
        norm_stats=norm_stats,
        weka_copy=weka_copy,
    )


STAGE_ASSETS = [window_index, split_assignment, norm_stats, weka_copy, registry_entry]
