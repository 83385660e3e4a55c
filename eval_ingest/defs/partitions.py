"""Partitions: one per dataset, named after it.

What belongs here: which keys there are. What doesn't: what a dataset is (store/catalog.py).
"""

from datetime import datetime
from typing import Any

import dagster as dg
from dagster import DagsterInstance

from eval_ingest.core.spec import NAME_PATTERN
from eval_ingest.settings import Settings
from eval_ingest.store.catalog import read_catalog


class DatasetPartitions(dg.DynamicPartitionsDefinition):
    """Dynamic partitions that take any dataset name, so that nobody has to add one by hand.

    `dagster asset materialize --select window_index --partition NAME` checks the key against the
    instance before anything of ours runs, and a new instance has none. The stages check it
    against the catalog instead, which knows the near names, and add it to the instance.
    """

    def has_partition_key(
        self,
        partition_key: str,
        current_time: datetime | None = None,
        dynamic_partitions_store: Any = None,
    ) -> bool:
        return NAME_PATTERN.fullmatch(partition_key) is not None


studio_datasets = DatasetPartitions(name="studio_datasets")


def add_partition(instance: DagsterInstance, name: str) -> None:
    """Make a dataset's partition known to the instance, so that the web page lists it."""
    partitions = str(studio_datasets.name)
    if not instance.has_dynamic_partition(partitions, name):
        instance.add_dynamic_partitions(partitions, [name])


@dg.sensor(
    name="catalog_partitions",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Adds a partition for each dataset of the catalog, so that the page lists it.",
)
def catalog_partitions(
    context: dg.SensorEvaluationContext, settings: dg.ResourceParam[Settings]
) -> dg.SensorResult | dg.SkipReason:
    """List the catalog's datasets as partitions before anybody has ingested them."""
    listed = set(context.instance.get_dynamic_partitions(str(studio_datasets.name)))
    new = [name for name in read_catalog(settings, broken={}) if name not in listed]
    if not new:
        return dg.SkipReason("every dataset of the catalog is listed")
    return dg.SensorResult(dynamic_partitions_requests=[studio_datasets.build_add_request(new)])
