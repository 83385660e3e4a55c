"""registry.json: our entries are compiled from the datasets' metadata.json, those of others stay.

It is written under a lock and replaced at once (registry_file.py); under a remote root on the
condition that nobody else has written it meanwhile.
"""

import contextlib
import json
import random
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from eval_ingest.core.entry import METADATA_VERSION, Metadata, is_ours, registry_entry
from eval_ingest.core.registry_text import Entry, RegistryText
from eval_ingest.core.spec import NAME_PATTERN
from eval_ingest.errors import (
    IntegrityError,
    LockedError,
    NotOursError,
    OutdatedError,
    StoreError,
    UnknownDatasetError,
)
from eval_ingest.store.atomic import store_error, write_bytes
from eval_ingest.store.ownership import Whose, whose
from eval_ingest.store.paths import DatasetLayout, EvalRoot
from eval_ingest.store.registry_file import content, copies, exchange, intact, keep_copy, look
from eval_ingest.store.seal import again, is_sealed, read_sealed_json, sealed_json

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
    if is_another_tools(layout.metadata):
        return None
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


def is_another_tools(path: Path) -> bool:
    """True for a metadata.json that is whole, and none of ours."""
    try:
        data = path.read_bytes()
        return not is_sealed(data) and "fingerprint" not in json.loads(data)
    except (OSError, ValueError, TypeError):
        return False


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
        NotOursError: another tool has registered it.
    """
    metadata = read_metadata(root.dataset(name))
    if metadata is None:
        entry: dict[str, Any] = {}
        with contextlib.suppress(StoreError):
            entry = read_registry(root).get(name, {})
        if entry and not is_ours(entry):
            raise NotOursError(
                f"{name} is registered by another tool, in {entry.get('weka_path', '?')}; to make "
                f"it loadable here, where it is: eval-ingest adopt --name {name}"
            )
        raise UnknownDatasetError(
            name,
            root.dataset_names(),
            f"the eval root {root.url}",
            f"To ingest it: eval-ingest ingest --name {name}",
        )
    return metadata


def read_registry(root: EvalRoot) -> dict[str, Any]:
    """The registry's entries by name, ours and those of others; empty if there is none.

    Which are ours is told by `core.entry.is_ours`.

    Raises:
        IntegrityError: the file is damaged.
        StoreError: it can't be read.
    """
    root.pull(root.registry)
    found = root.intact(root.registry, lambda: intact(root.registry, look(root.registry)))
    return {name: value for name, value in found.values.items() if isinstance(value, dict)}


def rebuild_registry(root: EvalRoot) -> dict[str, Any]:
    """Put the entry of every published dataset into registry.json; returns all entries.

    Entries of others stay as they are, to the byte of their values, and so do those of datasets
    whose metadata can't be read. The file of others is kept, dated, before the first change.

    Raises:
        StoreError: the registry can't be written.
    """
    return change_registry(root, ()).values


def change_registry(root: EvalRoot, drop: Collection[str]) -> RegistryText:
    """The same, without the entries of these names, whosever they are."""
    with locked(root.registry_lock, LOCK_TIMEOUT_S, "registry.json"):
        for stray in root.path.glob(f".{root.registry.name}.*.tmp"):
            stray.unlink(missing_ok=True)  # of a process that was killed while it held the lock
        if root.remote is not None:
            return _change_remote(root, root.remote, drop)
        names = root.dataset_names()
        text = exchange(root.registry, lambda before: _compiled(root, names, before, drop))
    for removed in root.path.glob(f"{_REMOVED}*"):
        shutil.rmtree(removed, ignore_errors=True)
    return text


def _change_remote(root: EvalRoot, remote: "RemoteRoot", drop: Collection[str]) -> RegistryText:
    """Compile and write; if another machine was faster, do it again from what there is then."""
    for attempt in range(REGISTRY_ATTEMPTS):
        time.sleep(random.uniform(0, 0.2 * attempt))
        remote.pull([root.registry])
        standing = look(root.registry, 0)
        wanted = _compiled(root, remote.pull_metadata(), standing.text, drop)
        if wanted == standing.text and standing.data is not None and not standing.damage:
            return wanted
        if standing.data is not None and not standing.ours:
            keep_copy(root.registry, standing)
            root.push(*copies(root.registry))
        try:
            remote.mirror.publish(root.registry, content(wanted))
        except OutdatedError:
            continue
        if remote.objects.has_conditions:
            return wanted  # else look again whether another one has written at the same time
    raise StoreError(
        f"{root.shown(root.registry)} was written by others each time; "
        "run: eval-ingest registry rebuild"
    )


def _compiled(
    root: EvalRoot, names: Sequence[str], before: RegistryText, drop: Collection[str]
) -> RegistryText:
    """The registry as it should be."""
    known = {entry.name: entry for entry in before.entries}
    ours: dict[str, Entry] = {}
    for name in names:
        layout = root.dataset(name)
        try:
            metadata = _metadata_at_hand(layout)
        except StoreError:
            continue  # what stands there stays
        if metadata is None:
            continue
        wanted = registry_entry(metadata, layout.registered_path)
        found = known.get(name)
        value = found.value if found is not None else None
        if value == wanted or not (value is None or is_ours(value) or _is_of(layout, value)):
            continue  # as it should be; or another tool's dataset, which lies elsewhere
        ours[name] = Entry.of(name, wanted)

    def is_stale(entry: Entry) -> bool:
        if entry.name in drop:
            return True
        if entry.name in names or not NAME_PATTERN.fullmatch(entry.name):
            return False
        value = entry.value
        if not is_ours(value):
            return False
        return _is_of(root.dataset(entry.name), value) or not Path(value["weka_path"]).exists()

    return before.without(is_stale).put(ours.values())


def _is_of(layout: DatasetLayout, value: Any) -> bool:
    """True if an entry is of the dataset in this folder, whoever wrote it."""
    return isinstance(value, dict) and value.get("weka_path") == layout.registered_path


def remove_dataset(root: EvalRoot, name: str) -> None:
    """Delete a dataset: out of sight first, then from the registry, then from the disk.

    Raises:
        NotOursError: it is another tool's.
        StoreError: it can't be removed.
    """
    layout = root.dataset(name)
    what = f"removing {name}"
    with locked(layout.lock, LOCK_TIMEOUT_S, what), layout.held(LOCK_TIMEOUT_S, what):
        if whose(layout) is Whose.THEIRS:
            raise NotOursError(
                f"{layout.url} is another tool's, and it is not removed; if that is what you "
                "want, remove the folder and its entry in registry.json by hand"
            )
        if layout.remote is not None:
            # There is nothing to rename; without metadata.json, nobody sees the rest.
            layout.remote.remove([layout.metadata])
            change_registry(root, [name])
            layout.remote.remove_below(layout.path)
            shutil.rmtree(layout.path, ignore_errors=True)
            return
        aside = root.path / f"{_REMOVED}{name}.{time.time_ns()}"
        try:
            layout.path.rename(aside)
        except OSError as error:
            raise store_error(layout.path, "removing", error) from error
    change_registry(root, [name])  # which also removes what was set aside
