"""What the stages have left on disk: a file each, which carries the fingerprint of its inputs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from eval_ingest.core.entry import CopyResult, Metadata, NormStats
from eval_ingest.core.index import WindowIndex
from eval_ingest.core.splits import SplitAssignment
from eval_ingest.errors import IntegrityError, NotIngestedError
from eval_ingest.store.index_file import read_index, read_splits
from eval_ingest.store.paths import DatasetLayout
from eval_ingest.store.registry import read_metadata
from eval_ingest.store.seal import again, read_sealed_json, unless_damaged

Model = TypeVar("Model", bound=BaseModel)


def read_window_index(layout: DatasetLayout) -> WindowIndex | None:
    """window_index.parquet, or None if it isn't there."""
    layout.root.pull(layout.window_index)
    return read_index(layout.window_index)


def read_split_assignment(layout: DatasetLayout) -> SplitAssignment | None:
    """split_assignment.parquet, or None if it isn't there."""
    layout.root.pull(layout.split_assignment)
    return read_splits(layout.split_assignment)


def read_norm_stats(layout: DatasetLayout) -> NormStats | None:
    """norm_stats.json, or None if it isn't there."""
    layout.root.pull(layout.norm_stats)
    return _model(layout.norm_stats, NormStats, layout)


def read_copy(layout: DatasetLayout) -> CopyResult | None:
    """weka_copy.json, or None if it isn't there."""
    layout.root.pull(layout.weka_copy)
    return _model(layout.weka_copy, CopyResult, layout)


def _model(path: Path, kind: type[Model], layout: DatasetLayout) -> Model | None:
    content = read_sealed_json(path, again(layout.name))
    try:
        return None if content is None else kind.model_validate(content)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        what = f"{path} is damaged at {where}, or of another version of eval_ingest"
        raise IntegrityError(what, again(layout.name)) from error


def read_source_state(layout: DatasetLayout) -> dict[str, Any]:
    """What the source looked like when it was indexed last; empty where that isn't known."""
    layout.root.pull(layout.source_state)
    cure = again(layout.name)
    return unless_damaged(lambda: read_sealed_json(layout.source_state, cure)) or {}


_READERS: dict[str, Callable[[DatasetLayout], Any]] = {
    "window_index": read_window_index,
    "split_assignment": read_split_assignment,
    "norm_stats": read_norm_stats,
    "weka_copy": read_copy,
    "registry_entry": read_metadata,
}


def read_outcome(layout: DatasetLayout, stage: str) -> Any | None:
    """The outcome of a stage that is on disk, or None.

    Raises:
        IntegrityError: it is damaged.
        StoreError: it can't be read.
    """
    return _READERS[stage](layout)


def read_published(layout: DatasetLayout, metadata: Metadata, stage: str) -> Any:
    """The outcome of a stage that belongs to what is published.

    Raises:
        NotIngestedError: it is gone, or belongs to a version that isn't published (yet).
        IntegrityError: it is damaged.
        StoreError: it can't be read.
    """
    found = read_outcome(layout, stage)
    if found is None or found.fingerprint != metadata.fingerprints[stage]:
        what = "isn't there" if found is None else "is of another version than what is published"
        raise NotIngestedError(
            f"{layout.name}: {stage} {what}: the dataset is being ingested, or only some stages "
            f"were run; run: eval-ingest ingest --name {layout.name}"
        )
    return found
