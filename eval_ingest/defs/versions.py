"""Data versions of materialisations that are logged for an asset by something else than itself.

Dagster notes versions as tags of a materialisation; their names are what its storage holds, and
what other versions of it read. It has no public constants for them.
"""

import dagster as dg

from eval_ingest.pipeline import INPUTS

DATA_VERSION_TAG = "dagster/data_version"
_USER_PROVIDED_TAG = "dagster/data_version_is_user_provided"
_CODE_VERSION_TAG = "dagster/code_version"
_INPUT_VERSION_TAG = "dagster/input_data_version/"
_INPUT_RECORD_TAG = "dagster/input_event_pointer/"


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
        _USER_PROVIDED_TAG: "true",
        _CODE_VERSION_TAG: code_version,
    }
    for before in INPUTS[stage]:
        record = last_record(instance, dg.AssetKey(before), name)
        if record is not None:
            tags[_INPUT_VERSION_TAG + before] = version_of(record)
            tags[_INPUT_RECORD_TAG + before] = str(record.storage_id)
    return tags
