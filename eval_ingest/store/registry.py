"""registry.json: compiled from the datasets' metadata.json, under a lock, replaced at once."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from eval_ingest.core.entry import METADATA_VERSION, REGISTRY_VERSION, Metadata, registry_entry
from eval_ingest.errors import LockedError, StoreError, UnknownDatasetError
from eval_ingest.store.atomic import read_json, store_error, write_json
from eval_ingest.store.layout import DatasetLayout, EvalRoot

LOCK_TIMEOUT_S = 120.0

_REMOVED = ".removed."


@contextmanager
def locked(path: Path, timeout_s: float, waiting_for: str) -> Iterator[None]:
    """Hold a lock file.

    Raises:
        LockedError: another process holds it for longer than the timeout.
        StoreError: the lock file can't be made.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=timeout_s)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise LockedError(
            f"{waiting_for}: another process holds {path}; wait for it to finish and run again"
        ) from error
    except OSError as error:
        raise store_error(path, "locking", error) from error
    try:
        yield
    finally:
        lock.release()


def read_metadata(layout: DatasetLayout) -> Metadata | None:
    """A dataset's metadata.json, or None if it isn't published.

    Raises:
        StoreError: it can't be read, or is of another version.
    """
    content = read_json(layout.metadata)
    if content is None:
        return None
    version = content.get("version") if isinstance(content, dict) else None
    if version != METADATA_VERSION:
        raise StoreError(
            f"{layout.metadata} has version {version}, this eval_ingest reads {METADATA_VERSION}; "
            f"ingest {layout.name} again"
        )
    try:
        return Metadata.model_validate(content)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise StoreError(
            f"{layout.metadata} is damaged at {where}; ingest {layout.name} again"
        ) from error


def require_metadata(root: EvalRoot, name: str) -> Metadata:
    """A published dataset's metadata.

    Raises:
        UnknownDatasetError: it isn't there; names the near ones.
    """
    metadata = read_metadata(root.dataset(name))
    if metadata is None:
        raise UnknownDatasetError(
            name,
            root.dataset_names(),
            f"the eval root {root.path}",
            f"To ingest it: eval-ingest ingest --name {name}",
        )
    return metadata


def read_registry(root: EvalRoot) -> dict[str, Any]:
    """The registry's entries by name; empty if there is none."""
    content = read_json(root.registry)
    if content is None:
        return {}
    datasets = content.get("datasets") if isinstance(content, dict) else None
    if not isinstance(datasets, dict):
        raise StoreError(f"{root.registry} is damaged; run: eval-ingest registry rebuild")
    return datasets


def rebuild_registry(root: EvalRoot) -> dict[str, Any]:
    """Compile registry.json from every published dataset, and return the entries.

    Datasets whose metadata can't be read keep the entry that they had.

    Raises:
        StoreError: the registry can't be written.
    """
    with locked(root.registry_lock, LOCK_TIMEOUT_S, "registry.json"):
        for stray in root.path.glob(f".{root.registry.name}.*.tmp"):
            stray.unlink(missing_ok=True)  # of a process that was killed while it held the lock
        entries: dict[str, Any] = {}
        before = _entries_or_empty(root)
        for name in root.dataset_names():
            layout = root.dataset(name)
            try:
                metadata = read_metadata(layout)
            except StoreError:
                if name in before:
                    entries[name] = before[name]
                continue
            if metadata is not None:
                entries[name] = registry_entry(metadata, str(layout.path))
        if entries != before or not root.registry.exists():
            write_json(
                root.registry,
                {
                    "version": REGISTRY_VERSION,
                    "updated_at": datetime.now(UTC).isoformat(),
                    "datasets": entries,
                },
            )
    for removed in root.path.glob(f"{_REMOVED}*"):
        shutil.rmtree(removed, ignore_errors=True)
    return entries


def _entries_or_empty(root: EvalRoot) -> dict[str, Any]:
    try:
        return read_registry(root)
    except StoreError:
        return {}


def remove_dataset(root: EvalRoot, name: str) -> None:
    """Delete a dataset: out of sight first, then from the registry, then from the disk.

    Raises:
        StoreError: it can't be removed.
    """
    layout = root.dataset(name)
    aside = root.path / f"{_REMOVED}{name}.{time.time_ns()}"
    with locked(layout.lock, LOCK_TIMEOUT_S, f"removing {name}"):
        try:
            layout.path.rename(aside)
        except OSError as error:
            raise store_error(layout.path, "removing", error) from error
    rebuild_registry(root)  # which also removes what was set aside
