"""Data versions of materialisations that are logged for an asset by something else than itself."""

import dagster as dg
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)

from eval_ingest.defs.assets import STAGE_ASSETS

_STAGE_DEPS = {asset.key.path[-1]: sorted(asset.dependency_keys) for asset in STAGE_ASSETS}
"""By stage the assets that it is made from."""


def last_record(
    instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None = None
) -> dg.EventLogRecord | None:
    """The last materialisation of an asset, or of one of its partitions."""
    partitions = None if partition is None else [partition]
    wanted = dg.AssetRecordsFilter(key, asset_partitions=partitions)
    found = instance.fetch_materializations(wanted, limit=1).records
    return found[0] if found else None


def version_of(record: dg.EventLogRecord | None) -> str:
    """The data version of a materialisation; "" without one."""
    materialization = None if record is None else record.asset_materialization
    tags = None if materialization is None else materialization.tags
    return (tags or {}).get(DATA_VERSION_TAG, "")


def version_tags(
    instance: dg.DagsterInstance, code_version: str, name: str, stage: str, fingerprint: str
) -> dict[str, str]:
    """A stage's data version, and those of what it was made from, as Dagster notes them itself.

    Without the latter the page calls a stage stale as soon as one before it has run again, even
    if that did nothing.

    Args:
        instance: where the versions are noted.
        code_version: anything; Dagster takes the run's id where an asset gives none.
        name: the dataset.
        stage: the stage asset.
        fingerprint: of the stage's outcome.
    """
    tags = {
        DATA_VERSION_TAG: fingerprint,
        DATA_VERSION_IS_USER_PROVIDED_TAG: "true",
        CODE_VERSION_TAG: code_version,
    }
    for key in _STAGE_DEPS[stage]:
        record = last_record(instance, key, name)
        if record is not None:
            tags[get_input_data_version_tag(key)] = version_of(record)
            tags[get_input_event_pointer_tag(key)] = str(record.storage_id)
    return tags
