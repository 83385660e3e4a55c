"""What the stages have left on disk: a file each, which carries the fingerprint of its inputs."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from eval_ingest.core.entry import CopyResult, Metadata, NormStats, SourceState
from eval_ingest.errors import StaleStageError
from eval_ingest.store.index_file import read_index, read_splits
from eval_ingest.store.records import read_record
from eval_ingest.store.registry import read_metadata
from eval_ingest.store.roots.base import DatasetStore
from eval_ingest.store.seal import unless_damaged

_READERS: Mapping[str, Callable[[Path], Any]] = {
    "window_index": read_index,
    "split_assignment": read_splits,
    "norm_stats": partial(read_record, NormStats),
    "weka_copy": partial(read_record, CopyResult),
}
"""By stage, which is also what `DatasetLayout` calls its file."""


def read_outcome(store: DatasetStore, stage: str) -> Any | None:
    """The outcome of a stage that is on disk, or None.

    Raises:
        IntegrityError: it is damaged.
        StoreError: it can't be read.
    """
    if stage == "registry_entry":
        return read_metadata(store)
    path: Path = getattr(store.layout, stage)
    return store.read(path, lambda: _READERS[stage](path))


def read_source_state(store: DatasetStore, at_hand: bool = False) -> SourceState | None:
    """What the source looked like when it was indexed last; None where that isn't known.

    With `at_hand`, by the file that is here: of a root in a bucket, as it was read last.
    """
    path = store.layout.source_state
    read = partial(read_record, SourceState, path)
    return unless_damaged(read if at_hand else lambda: store.read(path, read))


def read_published(store: DatasetStore, metadata: Metadata, stage: str) -> Any:
    """The outcome of a stage that belongs to what is published.

    Raises:
        StaleStageError: it is gone, or belongs to a version that isn't published (yet).
        IntegrityError: it is damaged.
        StoreError: it can't be read.
    """
    found = read_outcome(store, stage)
    if found is None:
        raise StaleStageError(metadata.name, "registry_entry", f"{stage} isn't there any more")
    if found.fingerprint != metadata.fingerprints[stage]:
        why = f"{stage} has run again since, without the stages after it"
        raise StaleStageError(metadata.name, "registry_entry", why)
    return found
