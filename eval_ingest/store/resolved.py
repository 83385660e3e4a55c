"""resolved.json: what the first stage made of a dataset's configuration, for the stages after it.

The source's own files are read once, when the windows are: a model.yaml that is edited between two
stages must not give samples another meaning than the index that they are packed by.
"""

from typing import Any

from pydantic import Field

from eval_ingest.core.bounds import JsonObject, Record
from eval_ingest.core.resolved import ResolvedConfig
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.store.records import read_record
from eval_ingest.store.roots.base import DatasetStore
from eval_ingest.store.seal import unless_damaged, write_sealed_json

RESOLVED_VERSION = 1

_ASKED = {
    "source", "config", "groups", "tags", "task_type", "classes", "property_name", "modalities",
    "temporal_range", "crop_size", "all_crops",
}  # fmt: skip
"""Fields of a spec by which windows are chosen and read; the others are for the stages after."""


class Resolved(Record):
    """A dataset's configuration as its index was made by."""

    version: int = RESOLVED_VERSION
    window_index: str
    """The fingerprint of the index."""
    asked: JsonObject
    """What the spec asked for."""
    config: ResolvedConfig
    permissions: dict[str, int] = Field(default_factory=dict)
    """By configuration file, the mode bits that a copy of it may have."""
    config_json: str
    model_yaml: str | None
    run_yaml: str | None
    """The files as they were."""
    where: str
    """They were."""

    @property
    def wrong_field(self) -> str:
        return self.config.wrong_field


def asked_by(spec: DatasetSpec) -> dict[str, Any]:
    """What a spec says about which windows are read, and how."""
    return spec.model_dump(mode="json", include=_ASKED)


def write_resolved(store: DatasetStore, resolved: Resolved) -> None:
    """Write resolved.json, unless it is what is there.

    Raises:
        StoreError: it can't be written.
    """
    path = store.layout.resolved
    if unless_damaged(lambda: read_record(Resolved, path)) != resolved:
        write_sealed_json(path, resolved.model_dump(mode="json"))


def read_resolved(store: DatasetStore) -> Resolved | None:
    """resolved.json, or None if no index was made yet.

    Raises:
        IntegrityError: it is damaged.
        StoreError: it can't be read.
    """
    path = store.layout.resolved
    return store.read(path, lambda: read_record(Resolved, path))
