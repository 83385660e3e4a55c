"""registry.json: compiled from the datasets' metadata.json, under a lock, replaced at once.

Under a remote root it is written on the condition that nobody else has written it meanwhile.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from eval_ingest.core.entry import METADATA_VERSION, REGISTRY_VERSION, Metadata, registry_entry
from eval_ingest.errors import IntegrityError, NewerVersionError, StoreError, UnknownDatasetError
from eval_ingest.store.locks import locked
from eval_ingest.store.paths import DatasetLayout
from eval_ingest.store.roots.base import DatasetStore, EvalRoot
from eval_ingest.store.seal import again, read_sealed_json, sealed_json

LOCK_TIMEOUT_S = 120.0


def read_metadata(store: DatasetStore) -> Metadata | None:
    """A dataset's metadata.json, or None if it isn't published.

    Raises:
        StoreError: it can't be read, or is of another version.
    """
    layout = store.layout
    return store.read(layout.metadata, lambda: _metadata_at_hand(layout))


def _metadata_at_hand(layout: DatasetLayout) -> Metadata | None:
    content = read_sealed_json(layout.metadata, again(layout.name))
    if content is None:
        return None
    version = content.get("version")
    if isinstance(version, int) and version > METADATA_VERSION:
        raise NewerVersionError(layout.metadata, version, METADATA_VERSION)
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


def write_metadata(store: DatasetStore, metadata: Metadata) -> None:
    """Write metadata.json, the commit point, of a dataset that is held.

    Raises:
        StoreError: it can't be written, or another process has published the dataset meanwhile.
    """
    store.publish(metadata_bytes(metadata))


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
    return root.read(root.layout.registry, lambda: _registry_at_hand(root))


def _registry_at_hand(root: EvalRoot) -> dict[str, Any]:
    content = read_sealed_json(root.layout.registry, "run: eval-ingest registry rebuild")
    datasets: dict[str, Any] = {} if content is None else content["datasets"]
    return datasets


def rebuild_registry(root: EvalRoot) -> dict[str, Any]:
    """Compile registry.json from every published dataset, and return the entries.

    Datasets whose metadata can't be read keep the entry that they had.

    Raises:
        StoreError: the registry can't be written.
    """
    layout = root.layout
    entries: dict[str, Any] = {}

    def compiled() -> bytes | None:
        nonlocal entries
        entries, before = _compiled(root, root.fetch_metadata())
        same = entries == before and layout.registry.exists()
        return None if same else _registry_bytes(entries)

    with locked(layout.registry_lock, LOCK_TIMEOUT_S, "registry.json"):
        for stray in layout.path.glob(f".{layout.registry.name}.*.tmp"):
            stray.unlink(missing_ok=True)  # of a process that was killed while it held the lock
        root.update(layout.registry, compiled)
    return entries


def _compiled(root: EvalRoot, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The registry's entries as they should be, and as they are."""
    try:
        before = _registry_at_hand(root)
    except StoreError:
        before = {}
    entries: dict[str, Any] = {}
    for name in names:
        store = root.dataset(name)
        try:
            metadata = _metadata_at_hand(store.layout)
        except StoreError:
            if name in before:
                entries[name] = before[name]
            continue
        if metadata is not None:
            entries[name] = registry_entry(metadata, store.registered_path)
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
    store = root.dataset(name)
    with store.hold(LOCK_TIMEOUT_S, f"removing {name}"):
        store.withdraw()
        rebuild_registry(root)
        store.erase()
