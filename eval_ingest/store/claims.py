"""Nothing of others is written into or removed: what an ingest asks before it begins.

What belongs here: whose a name and its folder are, and what people are told about it. What
doesn't: how folders are told apart (ownership.py).
"""

import contextlib
from collections.abc import Mapping
from typing import Any

from eval_ingest.core.entry import UNTOLD, is_ours, split_counts
from eval_ingest.core.spec import SPLITS, DatasetSpec, check_not_reserved
from eval_ingest.errors import IntegrityError, NotOursError, SpecError, StoreError
from eval_ingest.store.outcomes import read_outcome
from eval_ingest.store.ownership import Whose, is_marked, mark, whose
from eval_ingest.store.registry import finish_removal, read_metadata, standing_entry
from eval_ingest.store.roots.base import DatasetStore, EvalRoot
from eval_ingest.store.shards import forget_shards


def claim(store: DatasetStore, spec: DatasetSpec, overwrite: bool = False) -> None:
    """Make sure that a dataset's folder is ours, under its lock: a new one becomes ours now.

    Of one that was published elsewhere, and is overwritten, stays what its readers hold: rows,
    shards and windows by somebody else are never taken for the source's.

    Raises:
        NotOursError: it is somebody's, or the name is registered for a dataset of somebody.
        SpecError: it was published elsewhere, and isn't to be overwritten.
        StoreError: it can't be written.
    """
    refuse_theirs(store, spec, overwrite)
    finish_removal(store)
    if is_published_elsewhere(store):
        layout = store.layout
        held = [layout.metadata, layout.opening, layout.samples, layout.windows]
        names = [path.name for path in held]
        store.keep_only(layout.path, [*names, *SPLITS, "config.json", "model.yaml"])
        forget_shards(store)
    mark(store, Whose.ADOPTED if spec.adopted else Whose.INGESTED)


def is_published_elsewhere(store: DatasetStore) -> bool:
    """True of a dataset that was pulled, or exported, and that no ingest has begun to replace.

    Raises:
        StoreError: it can't be read.
    """
    if is_marked(store) or whose(store) is not Whose.INGESTED:
        return False
    return holds_published(store)


def holds_published(store: DatasetStore) -> bool:
    """True if what readers get is what was pulled, or exported, also while it is being replaced.

    Raises:
        StoreError: it can't be read.
    """
    with contextlib.suppress(IntegrityError):
        metadata = read_metadata(store)
        if metadata is not None:
            return metadata.is_untold
    with contextlib.suppress(IntegrityError):
        index = read_outcome(store, "window_index")
        return index is not None and index.source == UNTOLD
    return False


def refuse_theirs(store: DatasetStore, spec: DatasetSpec, overwrite: bool = False) -> None:
    """Nothing, if an ingest by this spec touches nothing of others.

    Raises:
        NotOursError: it would.
        SpecError: the eval root uses the name itself; or the dataset was published elsewhere, and
            isn't to be overwritten: what lies there may not be what its source holds.
    """
    name, found = store.name, whose(store)
    if found in (Whose.NOBODYS, Whose.THEIRS):
        check_not_reserved(name)
    if spec.adopted:
        if found is Whose.INGESTED:
            raise nothing_to_adopt(name)
        return
    if found is Whose.ADOPTED:
        raise NotOursError(
            f"{name} is adopted: the windows in {store.url} are another tool's, and an ingest "
            f"would replace them; give the new dataset another --name, or bring what was made of "
            f"them up to date: eval-ingest adopt {name}"
        )
    entry = None if found is Whose.INGESTED else their_entry(store.root, name)
    if found is Whose.THEIRS or entry is not None:
        raise NotOursError(f"{name}: {_told(store, found, entry)}")
    if not overwrite and is_published_elsewhere(store):
        raise SpecError(
            f"{name} is not ingested in {store.url}: it was published elsewhere, and copied there; "
            "to have it as it is published now, or undamaged, pull or copy it again; to ingest, "
            f"give another --name, or replace it: eval-ingest ingest {name} --overwrite"
        )


def nothing_to_adopt(name: str) -> NotOursError:
    """A dataset is no other tool's."""
    return NotOursError(
        f"{name} was ingested by eval_ingest itself, so there is nothing to adopt; "
        f"to bring it up to date: eval-ingest ingest {name}"
    )


def _told(store: DatasetStore, found: Whose, entry: Mapping[str, Any] | None) -> str:
    """Whose it is, and what to do."""
    what = f"{store.url} holds no metadata.json of eval_ingest, so it is somebody else's"
    if entry is not None:
        where = entry.get("weka_path") or entry.get("source_path") or "a place it doesn't name"
        what = (
            f"the name is registered by another tool, for {entry.get('task_type', 'a dataset')} "
            f"({their_counts(entry)}) in {where}"
        )
    take = "look who made it; nothing is written into it"
    if entry is not None or "windows" in store.names():
        take = f"take it over where it is: eval-ingest adopt {store.name}"
    return f"{what}; give the new dataset another --name, or {take}"


def their_entry(root: EvalRoot, name: str) -> dict[str, Any] | None:
    """The entry of another tool that has this name; None if there is none.

    It is empty where it says nothing that could be read, for the name is taken all the same.
    """
    with contextlib.suppress(StoreError):
        entry = standing_entry(root, name)
        if entry is None or is_ours(entry.value):
            return None
        # A folder of ours may have an entry that another tool has written again, without our keys.
        if whose(root.dataset(name)) is not Whose.INGESTED:
            return entry.value if isinstance(entry.value, dict) else {}
    return None


def their_counts(entry: Mapping[str, Any]) -> str:
    """`train 84, val 18, test 18`, as another tool has counted."""
    counts = split_counts(entry)
    return ", ".join(f"{s} {n}" for s, n in counts.items()) or "samples not counted"
