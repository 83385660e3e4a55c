"""Partitions: one per dataset, named after it.

What belongs here: which keys there are. What doesn't: what a dataset is (store/catalog.py).
"""

from datetime import datetime
from typing import Any

import dagster as dg
from dagster import DagsterInstance

from eval_ingest.core.spec import is_name


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
        return is_name(partition_key)


studio_datasets = DatasetPartitions(name="studio_datasets")


def add_partition(instance: DagsterInstance, name: str) -> None:
    """Make a dataset's partition known to the instance, so that the web page lists it."""
    partitions = str(studio_datasets.name)
    if not instance.has_dynamic_partition(partitions, name):
        instance.add_dynamic_partitions(partitions, [name])


def identifier(name: str) -> str:
    """A dataset's name as Dagster takes it for ops; names are lower-case, so a-b isn't a_b."""
    return name.replace("-", "_DASH_")
