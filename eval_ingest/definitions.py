"""Everything that Dagster sees: `dagster asset materialize -m eval_ingest.definitions ...`."""

import logging

import dagster as dg

from eval_ingest.defs.assets import STAGE_ASSETS
from eval_ingest.defs.front_door import dataset_assets
from eval_ingest.defs.partitions import catalog_partitions
from eval_ingest.defs.resources import build_resources
from eval_ingest.errors import EvalIngestError
from eval_ingest.settings import Settings
from eval_ingest.store.catalog import read_catalog


def build_defs(settings: Settings | None = None) -> dg.Definitions:
    """The code location: stage assets, a front door per dataset of the catalog, sensors.

    A spec that can't be read costs a warning, not the code location.
    """
    settings = settings or Settings.load()
    broken: dict[str, EvalIngestError] = {}
    specs = read_catalog(settings, broken)
    for error in broken.values():
        logging.getLogger("dagster").warning("left out of the catalog: %s", error)
    return dg.Definitions(
        assets=[*STAGE_ASSETS, *dataset_assets(specs.values())],
        sensors=[catalog_partitions],
        resources=build_resources(settings),
        # Stages use all cores by themselves; a process per step would only add its start.
        executor=dg.in_process_executor,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """What Dagster loads; the environment is read when it asks, not when this is imported."""
    return build_defs()
