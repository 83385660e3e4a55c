"""Everything that Dagster sees: `dagster asset materialize -m eval_ingest.definitions ...`."""

import contextlib
import logging
import sys
from functools import cache

import dagster as dg

from eval_ingest.defs.console import is_command, speak_plainly
from eval_ingest.interrupts import interruptible, leave

# A person at a terminal may stop the command while this is imported: Dagster would only note it.
with interruptible(KeyboardInterrupt, leave) if is_command() else contextlib.nullcontext():
    from eval_ingest.defs.assets import STAGE_ASSETS
    from eval_ingest.defs.checks import registry_entry_checks
    from eval_ingest.defs.front_door import TAKEN, dataset_assets
    from eval_ingest.defs.known_datasets import known_datasets
    from eval_ingest.defs.resources import build_resources
    from eval_ingest.defs.running import ONE_PROCESS
    from eval_ingest.defs.sensors import discovery_sensor, ingest_studio_dataset
    from eval_ingest.defs.sweep import eval_sweep
    from eval_ingest.errors import EvalIngestError
    from eval_ingest.redaction import redacted
    from eval_ingest.settings import Settings
    from eval_ingest.store.catalog import out_of_reach, read_catalog


def build_defs(settings: Settings | None = None) -> dg.Definitions:
    """The code location: stage assets, a front door per dataset of the catalog, sensors.

    A spec that can't be read costs a warning, not the code location.
    """
    settings = settings or Settings.load()
    broken: dict[str, EvalIngestError] = {}
    specs = read_catalog(settings, broken)
    for error in broken.values():
        _warn(f"left out of the catalog: {error}")
    for name in specs.keys() & TAKEN:
        _warn(
            f"the dataset {name} has no asset of its own, since another is named so; rename it, "
            f"or materialise the partition {name} of the five stages"
        )
    front_doors = dataset_assets(specs, settings, out_of_reach(settings, specs))
    return dg.Definitions(
        assets=[*STAGE_ASSETS, eval_sweep, *front_doors],
        asset_checks=[registry_entry_checks],
        jobs=[ingest_studio_dataset],
        sensors=[known_datasets, discovery_sensor(settings)],
        resources=build_resources(settings),
        executor=ONE_PROCESS,
    )


@cache  # once per text: Dagster loads the definitions several times per command
def _warn(text: str) -> None:
    logging.getLogger("dagster").warning(text)


@cache
def _say(text: str) -> None:
    print(text, file=sys.stderr)


@dg.definitions
def defs() -> dg.Definitions:
    """What Dagster loads; the environment is read when it asks, not when this is imported."""
    speak_plainly()
    settings = Settings.load()
    if is_command():
        _say(f"eval root: {redacted(settings.eval_root)}")
    return build_defs(settings)
