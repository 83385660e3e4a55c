"""registry.json: compiled from the datasets' metadata.json, under a lock, replaced at once.

Under a remote root it is written on the condition that nobody else has written it meanwhile.
"""

import random
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from eval_ingest.core.entry import METADATA_VERSION, REGISTRY_VERSION, Metadata, registry_entry
from eval_ingest.errors import (
    IntegrityError,
    LockedError,
    OutdatedError,
    StoreError,
    UnknownDatasetError,
)
from eval_ingest.store.atomic import store_error, write_bytes
from eval_ingest.store.paths import DatasetLayout, EvalRoot
from eval_ingest.store.seal import again, read_sealed_json, sealed_json

if TYPE_CHECKING:  # a local root doesn't pay for it
    from eval_ingest.store.roots.remote import RemoteRoot

LOCK_TIMEOUT_S = 120.0
REGISTRY_ATTEMPTS = 20

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
    except FileNotFoundError as error:  # of a place such as /proc, where nothing can be made
        raise StoreError(
            f"the folder {path.parent} can't be made; set OLMOEARTH_EVAL_DATASETS to another one"
        ) from error
    except OSError as error:
        raise store_error(path.parent, "making", error) from error
    try:
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
    layout.root.pull(layout.metadata)
    return layout.root.intact(layout.metadata, lambda: _metadata_at_hand(layout))


def _metadata_at_hand(layout: DatasetLayout) -> Metadata | None:
    content = read_sealed_json(layout.metadata, again(layout.name))
    if content is None:
        return None
    version = content.get("version")
    if version != METADATA_VERSION:
        raise IntegrityError(
            f"{layout.metadata} has version {version}, this eval_ingest reads {METADATA_VERSION}",
            again(layout.name),
        )
    try:
        return Metadata.model_validate(content)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise IntegrityError(
            f"{layout.metadata} is damaged at {where}", again(layout.name)
        ) from error


def metadata_bytes(metadata: Metadata) -> bytes:
    """The content of metadata.json."""
    return sealed_json(metadata.model_dump(mode="json", by_alias=True))


def write_metadata(layout: DatasetLayout, metadata: Metadata) -> None:
    """Write metadata.json, the commit point; of a remote dataset under its lease.

    Raises:
        StoreError: it can't be written, or another process has published the dataset meanwhile.
    """
    data = metadata_bytes(metadata)
    if layout.remote is None:
        write_bytes(layout.metadata, data)
    else:
        layout.remote.publish(layout.metadata, data)


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
            f"the eval root {root.url}",
            f"To ingest it: eval-ingest ingest --name {name}",
        )
    return metadata


def read_registry(root: EvalRoot) -> dict[str, Any]:
    """The registry's entries by name; empty if there is none."""
    root.pull(root.registry)
    return root.intact(root.registry, lambda: _registry_at_hand(root))


def _registry_at_hand(root: EvalRoot) -> dict[str, Any]:
    content = read_sealed_json(root.registry, "run: eval-ingest registry rebuild")
    datasets: dict[str, Any] = {} if content is None else content["datasets"]
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
        if root.remote is not None:
            return _rebuild_remote(root, root.remote)
        entries, before = _compiled(root, root.dataset_names())
        if entries != before or not root.registry.exists():
            write_bytes(root.registry, _registry_bytes(entries))
    for removed in root.path.glob(f"{_REMOVED}*"):
        shutil.rmtree(removed, ignore_errors=True)
    return entries


def _rebuild_remote(root: EvalRoot, remote: "RemoteRoot") -> dict[str, Any]:
    """Compile and write; if another machine was faster, do it again from what there is then."""
    for attempt in range(REGISTRY_ATTEMPTS):
        time.sleep(random.uniform(0, 0.2 * attempt))
        remote.pull([root.registry])
        entries, before = _compiled(root, remote.pull_metadata())
        if entries == before and root.registry.exists():
            return entries
        try:
            remote.mirror.publish(root.registry, _registry_bytes(entries))
        except OutdatedError:
            continue
        if remote.objects.has_conditions:
            return entries  # else look again whether another one has written at the same time
    raise StoreError(
        f"{root.shown(root.registry)} was written by others each time; "
        "run: eval-ingest registry rebuild"
    )


def _compiled(root: EvalRoot, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The registry's entries as they should be, and as they are."""
    try:
        before = _registry_at_hand(root)
    except StoreError:
        before = {}
    entries: dict[str, Any] = {}
    for name in names:
        layout = root.dataset(name)
        try:
            metadata = _metadata_at_hand(layout)
        except StoreError:
            if name in before:
                entries[name] = before[name]
            continue
        if metadata is not None:
            entries[name] = registry_entry(metadata, layout.registered_path)
    return entries, before


def _registry_bytes(entries: dict[str, Any]) -> bytes:
    return sealed_json(
        {
            "version": REGISTRY_VERSION,
            "updated_at": datetime.now(UTC).isoformat(),
            "datasets": entries,
        }
    )


def remove_dataset(root: EvalRoot, name: str) -> None:
    """Delete a dataset: out of sight first, then from the registry, then from the disk.

    Raises:
        StoreError: it can't be removed.
    """
    layout = root.dataset(name)
    aside = root.path / f"{_REMOVED}{name}.{time.time_ns()}"
    what = f"removing {name}"
    with locked(layout.lock, LOCK_TIMEOUT_S, what), layout.held(LOCK_TIMEOUT_S, what):
        if layout.remote is not None:
            # There is nothing to rename; without metadata.json, nobody sees the rest.
            layout.remote.remove([layout.metadata])
            rebuild_registry(root)
            layout.remote.remove_below(layout.path)
            shutil.rmtree(layout.path, ignore_errors=True)
            return
        try:
            layout.path.rename(aside)
        except OSError as error:
            raise store_error(layout.path, "removing", error) from error
    rebuild_registry(root)  # which also removes what was set aside
