"""The five stages as assets, one partition per dataset.

    window_index -> split_assignment -> norm_stats -> weka_copy -> registry_entry

Which stages there are, what each is made from and what it does stands in pipeline.py; here it is
wired and reported.
"""
# No `from __future__ import annotations` here: Dagster reads the annotation of `context`.

import inspect
from typing import Any

import dagster as dg

from eval_ingest.defs.metadata import stage_metadata
from eval_ingest.defs.partitions import studio_datasets
from eval_ingest.defs.resources import STAGE_IO
from eval_ingest.defs.running import INGEST_POOL, run_stage, step_on
from eval_ingest.pipeline import BUILD, INPUTS
from eval_ingest.settings import Settings

GROUP = "studio_ingest"
POOLED = ("window_index", "weka_copy")
_KINDS = {"window_index": "parquet", "split_assignment": "parquet", "weka_copy": "numpy"}


def _stage_asset(stage: str, inputs: tuple[str, ...]) -> dg.AssetsDefinition:
    """The asset of a stage, whose description is the beginning of the stage's docstring."""

    @dg.asset(
        name=stage,
        ins={name: dg.AssetIn() for name in inputs},
        description=str(inspect.getdoc(BUILD[stage])).partition("\n\n")[0],
        group_name=GROUP,
        partitions_def=studio_datasets,
        io_manager_key=STAGE_IO,
        kinds={_KINDS.get(stage, "json")},
        pool=INGEST_POOL if stage in POOLED else None,
    )
    def run(
        context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings], **values: Any
    ) -> dg.Output[Any]:
        """Run the stage on the dataset that is the partition."""
        with step_on(context.partition_key) as check:
            done = run_stage(context, settings, context.partition_key, stage, check, values)
            assert done is not None  # in a run of one dataset none is left out
            metadata = stage_metadata(*done)
        del metadata["path"]  # the IO manager adds it
        context.set_data_version(context.asset_key, dg.DataVersion(done.outcome.fingerprint))
        return dg.Output(done.outcome.value, metadata=metadata)

    return run


STAGE_ASSETS = [_stage_asset(stage, inputs) for stage, inputs in INPUTS.items()]
registry_entry = STAGE_ASSETS[-1]
