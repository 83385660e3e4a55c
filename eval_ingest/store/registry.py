"""registry.json: our entries are compiled from the datasets' metadata.json, those of others stay.

What belongs here: which entries are to stand there, and the metadata that they are made of. What
doesn't: how the file is written beside others who write it (registry_file.py, roots/).
"""

import contextlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from eval_ingest.core.adoption import corrections
from eval_ingest.core.bounds import JsonText, Record
from eval_ingest.core.entry import (
    OURS_ALONE,
    THEIRS_NEVER,
    Metadata,
    Opening,
    is_ours,
    opening,
    registry_entry,
    their_values,
)
from eval_ingest.core.registry_text import (
    Entry,
    RegistryText,
    extended,
    members_of,
    object_of,
)
from eval_ingest.core.spec import NAME_PATTERN, is_name
from eval_ingest.errors import (
    EvalIngestError,
    IntegrityError,
    NotOursError,
    StoreError,
    UnknownDatasetError,
)
from eval_ingest.objects.filesystems import is_unmounted
from eval_ingest.store.atomic import read_bytes, remove_path
from eval_ingest.store.locks import locked
from eval_ingest.store.ownership import Whose, disclaim, holds_ours, whose
from eval_ingest.store.paths import DatasetLayout
from eval_ingest.store.records import read_record, record_of
from eval_ingest.store.registry_file import intact, look
from eval_ingest.store.roots.base import DatasetStore, EvalRoot
from eval_ingest.store.seal import is_sealed, sealed_json

LOCK_TIMEOUT_S = 120.0


def read_metadata(store: DatasetStore) -> Metadata | None:
    """A dataset's metadata.json, or None if it isn't published.

    Raises:
        StoreError: it can't be read, or is of another version.
    """
    path = store.layout.metadata

    def read() -> Metadata | None:
        if is_another_tools(path) and not holds_ours(store.names()):
            return None
        return read_record(Metadata, path)

    return store.read(path, read)


def metadata_at_hand(layout: DatasetLayout) -> Metadata | None:
    """The same of the file that is here: of a root in a bucket, as it was when it was read last.

    Raises:
        StoreError: it can't be read, or is of another version.
    """
    names = (path.name for path in layout.path.glob("*"))
    if is_another_tools(layout.metadata) and not holds_ours(names):
        return None
    return read_record(Metadata, layout.metadata)


def is_another_tools(path: Path) -> bool:
    """True for a metadata.json that is whole, and none of ours."""
    try:
        data = path.read_bytes()
        return not is_sealed(data) and "fingerprint" not in json.loads(data)
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def read_opening(store: DatasetStore) -> Opening | None:
    """A dataset's opening.json, or None if there is none: see `core.entry.opening`.

    Raises:
        StoreError: it can't be read, or is of another version.
    """
    path = store.layout.opening
    return store.read(path, lambda: read_record(Opening, path))


def require_opening(root: EvalRoot, name: str) -> Metadata:
    """What EvalDataset has to know of a published dataset.

    Raises:
        UnknownDatasetError, NotOursError: as `require_metadata` does.
    """
    with contextlib.suppress(IntegrityError):  # or an earlier version has published the dataset
        found = read_opening(root.dataset(name))
        if found is not None:
            return found
    return opening(require_metadata(root, name))


def write_metadata(store: DatasetStore, metadata: Metadata) -> None:
    """Write metadata.json, the commit point, and opening.json, of a dataset that is held.

    Raises:
        StoreError: it can't be written, or another process has published the dataset meanwhile.
    """
    whole = metadata.model_dump(mode="json", by_alias=True)
    few = opening(metadata).model_dump(mode="json", by_alias=True, exclude_defaults=True)
    store.publish(sealed_json(whole), sealed_json({"version": metadata.version, **few}))


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
                f"it loadable here, where it is: eval-ingest adopt {name}"
            )
        raise UnknownDatasetError(name, root.dataset_names(), f"the eval root {root.url}")
    return metadata


def read_registry(root: EvalRoot) -> dict[str, Any]:
    """The registry's entries by name, ours and those of others; empty if there is none.

    Which are ours is told by `core.entry.is_ours`.

    Raises:
        IntegrityError: the file is damaged.
        StoreError: it can't be read.
    """
    entries = _registry_text(root).values
    return {name: value for name, value in entries.items() if isinstance(value, dict)}


def has_registry(root: EvalRoot) -> bool:
    """True if there is a registry.json: there is one where a dataset was ever registered.

    Raises:
        StoreError: it can't be read.
    """
    path = root.layout.registry
    return root.read(path, lambda: read_bytes(path) is not None)


def standing_entry(root: EvalRoot, name: str) -> Entry | None:
    """The entry of this name, be its value an object or not; None if there is none.

    Raises:
        IntegrityError: the file is damaged.
        StoreError: it can't be read.
    """
    entries = _registry_text(root).entries
    return next((entry for entry in reversed(entries) if entry.name == name), None)


def _registry_text(root: EvalRoot) -> RegistryText:
    path = root.layout.registry
    return root.read(path, lambda: intact(path, look(path)))


def rebuild_registry(root: EvalRoot) -> dict[str, Any]:
    """Put the entry of every published dataset into registry.json; returns all entries.

    Entries of others stay as they are, to the byte of their values, and so do those of datasets
    whose metadata can't be read. The file of others is kept, dated, before the first change.

    Raises:
        StoreError: the registry can't be written.
    """
    return change_registry(root, ()).values


def change_registry(root: EvalRoot, drop: Collection[str]) -> RegistryText:
    """The same, without our entries of these names.

    An entry of another tool stays: it registered a dataset of the same name after we did.
    """
    layout = root.layout
    with locked(layout.registry_lock, LOCK_TIMEOUT_S, "registry.json"):
        for stray in layout.path.glob(f".{layout.registry.stem}.*.tmp"):
            stray.unlink(missing_ok=True)  # of a process that was killed while it held the lock
        return root.update_registry(lambda before: _compiled(root, before, drop))


def _compiled(root: EvalRoot, before: RegistryText, drop: Collection[str]) -> RegistryText:
    """The registry as it should be."""
    names = root.fetch_metadata()
    known = {entry.name: entry for entry in before.entries}
    ours: dict[str, Entry] = {}
    for name in names:
        store = root.dataset(name)
        try:
            metadata = metadata_at_hand(store.layout)
        except StoreError:
            continue  # what stands there stays
        if metadata is None:
            continue
        wanted = registry_entry(metadata, store.registered_path)
        found = known.get(name)
        if metadata.spec.adopted:
            ours[name] = _joined(name, metadata, wanted, found)
            continue
        value = found.value if found is not None else None
        another = isinstance(value, dict) and not (is_ours(value) or _is_of(store, value))
        if value == wanted or another:
            continue  # as it should be; or another tool's dataset, which lies elsewhere
        ours[name] = Entry.of(name, wanted)

    def is_stale(entry: Entry) -> bool:
        if entry.name in drop:
            return is_ours(entry.value) or _is_of(root.dataset(entry.name), entry.value)
        if entry.name in names or not is_name(entry.name):
            return False
        value = entry.value
        if not is_ours(value) or whose(root.dataset(entry.name)) is Whose.ADOPTED:
            return False
        return _is_of(root.dataset(entry.name), value) or _is_gone(value.get("weka_path"))

    left = [_as_it_was(root, entry) for entry in before.entries if entry.name not in names]
    return before.without(is_stale).put([*ours.values(), *filter(None, left)])


def _is_gone(path: Any) -> bool:
    """True for a path that isn't there any more; what is none, or out of reach, may be anywhere."""
    if not isinstance(path, str) or "://" in path:
        return False
    with contextlib.suppress(OSError, ValueError):  # no path can be written so
        return not (is_unmounted(path) or Path(path).exists())
    return False


def _as_it_was(root: EvalRoot, entry: Entry) -> Entry | None:
    """Their own entry of a dataset that is being given back; None for all others."""
    if not is_name(entry.name) or not is_ours(entry.value):
        return None  # or they have just written it
    note = _note(root, entry.name)  # here it is known to whoever gives it back
    raw = _noted(note)
    return Entry(entry.name, entry.key, raw.their_entry) if raw and raw.their_entry else None


def _joined(name: str, metadata: Metadata, ours: Mapping[str, Any], found: Entry | None) -> Entry:
    """The entry of an adopted dataset: what the other tool says, and beside it what we add.

    Its values are those that stand there now. Which of them are its own is said by `their_entry`,
    or, where that tool has registered the dataset again since, by what it wrote.
    """
    standing = found if found is not None and isinstance(found.value, dict) else None
    again = standing is not None and not is_ours(standing.value)
    theirs = standing.value if standing and again else their_values(metadata.their_entry)
    if not theirs:
        return Entry.of(name, {**ours, "weka_path": metadata.source})
    corrected = corrections(theirs, ours) if metadata.spec.correct else {}
    added = {key: v for key, v in ours.items() if key not in theirs or key in OURS_ALONE}
    raw = standing.raw if standing is not None else metadata.their_entry
    key = found.key if found is not None else json.dumps(name)
    return Entry(name, key, extended(raw, {**added, **corrected}))


def their_raw_entry(store: DatasetStore) -> str:
    """The JSON of another tool's entry of a dataset, without what we have added to it.

    To the byte as it was before we did; with what that tool has changed since.

    Raises:
        StoreError: it can't be read.
    """
    metadata, standing = None, None
    with contextlib.suppress(IntegrityError):
        metadata = read_metadata(store)
    with contextlib.suppress(IntegrityError):
        standing = standing_entry(store.root, store.name)
    if metadata is None:
        left = _left_to_do(store)
        return (left and left.their_entry) or (standing.raw if standing is not None else "")
    if standing is None or not isinstance(standing.value, dict):
        return metadata.their_entry
    if not is_ours(standing.value):
        return standing.raw
    ours = registry_entry(metadata, store.registered_path)
    written = _joined(store.name, metadata, ours, None)
    if written.value == standing.value or written.raw == standing.raw:
        return metadata.their_entry
    return _without_ours(standing.raw, written.raw, metadata.their_entry)


def _without_ours(standing: str, written: str, theirs: str) -> str:
    """What an entry that we had written says, and another tool has changed, without what is ours.

    Args:
        standing: the entry as it is now.
        written: as we had written it.
        theirs: as it was before that; "" if there was none, and then all may be theirs by now.
    """
    before = members_of(theirs) if theirs else {}
    known = members_of(written)

    def left(entry: Entry) -> Entry | None:
        same = entry.name in known and known[entry.name].value == entry.value
        if same and entry.name in before:
            return before[entry.name]
        added = entry.name in THEIRS_NEVER or (same and bool(before))
        return None if added and entry.name not in before else entry

    return object_of(filter(None, map(left, members_of(standing).values())))


def _is_of(store: DatasetStore, value: Any) -> bool:
    """True if an entry is of the dataset in this folder, whoever wrote it."""
    return isinstance(value, dict) and value.get("weka_path") == store.registered_path


# ----------------------------------------------------------------------------------- removing


def remove_dataset(
    root: EvalRoot, name: str, last: Callable[[str], object] = lambda name: None
) -> None:
    """Delete a dataset: out of sight first, then from the registry, then from the disk.

    Of an adopted one what is ours is deleted, and its entry is as it was before. Before anything
    is touched a note is written right in the root, and it goes when all is done: what is stopped
    in between is completed by `finish_removals`.

    Args:
        root: where it is.
        name: the dataset.
        last: does what else belongs to it, given its name, before the note goes.

    Raises:
        NotOursError: it is another tool's.
        StoreError: it can't be removed.
    """
    store = root.dataset(name)
    with store.hold(LOCK_TIMEOUT_S, f"removing {name}"):
        kind = whose(store)
        if kind is Whose.THEIRS and _left_to_do(store) is None:
            raise NotOursError(
                f"{store.url} is another tool's, and it is not removed; if that is what you "
                "want, remove the folder and its entry in registry.json by hand"
            )
        if _left_to_do(store) is None:
            theirs = their_raw_entry(store) if kind is Whose.ADOPTED else None
            note = json.dumps({"name": name, "their_entry": theirs})
            root.write(_note(root, name), note.encode())
        finish_removal(store, last)


def finish_removals(root: EvalRoot, last: Callable[[str], object] = lambda name: None) -> list[str]:
    """Complete removals that were stopped, but for those that go on in another process.

    Returns the datasets that are gone now; one that this user can't complete is left.

    Raises:
        StoreError: the root can't be reached.
    """
    notes = (_REMOVING.fullmatch(found) for found in root.names())
    done = []
    for name in sorted({note[1] for note in notes if note}):
        store = root.dataset(name)
        with contextlib.suppress(EvalIngestError), store.hold(0.0, f"removing {name}"):
            finish_removal(store, last)
            done.append(name)
    return done


def finish_removal(store: DatasetStore, last: Callable[[str], object] = lambda name: None) -> None:
    """Do what is left of a held dataset's removal, if one was begun.

    Raises:
        StoreError: it can't be completed.
    """
    root, name, left = store.root, store.name, _left_to_do(store)
    for stray in root.path.glob(f".{_note(root, name).name}.*.tmp"):
        stray.unlink(missing_ok=True)  # a removal was stopped before it began
    if left is None:
        return
    theirs = left.their_entry
    if theirs is None:
        store.withdraw()
        change_registry(root, [name])
        store.erase()
    else:
        store.remove([store.layout.opening, store.layout.metadata])
        change_registry(root, [] if theirs else [name])
        disclaim(store)
    last(name)
    remove_path(_note(root, name))
    root.send(_note(root, name))


_REMOVING = re.compile(rf"\.?\.removing\.({NAME_PATTERN.pattern})\.json(?:\..*\.tmp)?")


def _note(root: EvalRoot, name: str) -> Path:
    return root.path / f".removing.{name}.json"


class _Removal(Record, extra="ignore"):
    """The note of a removal that was begun."""

    their_entry: JsonText | None
    """None: the dataset is all ours."""


def _left_to_do(store: DatasetStore) -> _Removal | None:
    """The note of a removal, if one was begun.

    Raises:
        StoreError: it can't be read.
    """
    note = _note(store.root, store.name)
    return store.root.read(note, lambda: _noted(note))


def _noted(note: Path) -> _Removal | None:
    text = read_bytes(note)
    return None if text is None else record_of(_Removal, text, note, "remove that file", {})
