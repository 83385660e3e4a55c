"""Whose a folder under the eval root is. Others keep their datasets there too.

What belongs here: telling ours from theirs by what lies in a folder. What doesn't: refusing to
touch theirs (claims.py), and taking a dataset over in its place (eval_ingest/adopting.py).

A folder of ours holds a file that says so from the first moment on; those of earlier versions are
known by what else only we write. Everything else is somebody's, and nothing is written into it.
"""

import contextlib
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

from eval_ingest.core.spec import SPLITS
from eval_ingest.store.atomic import write_bytes
from eval_ingest.store.paths import ADOPTED_MARK, INGESTED_MARK
from eval_ingest.store.roots.base import DatasetStore
from eval_ingest.store.seal import is_sealed


class Whose(StrEnum):
    """Whose a dataset's folder is."""

    NOBODYS = "nobody's"
    """There is none, or it is empty."""
    INGESTED = "ingested"
    """All that is in it was written by us."""
    ADOPTED = "adopted"
    """Windows and configuration are another tool's; beside them lies what we have made of them."""
    THEIRS = "another tool's"


_MARKS = {Whose.INGESTED: INGESTED_MARK, Whose.ADOPTED: ADOPTED_MARK}
_TEXTS = {
    Whose.INGESTED: "Written by eval_ingest, which replaces and removes what is in this folder.\n",
    Whose.ADOPTED: "Adopted by eval_ingest, which leaves alone what was in this folder before.\n",
}
_OURS_ALONE = (".window_index", "window_index.parquet", "copy_manifest.parquet", "weka_copy.json")
"""What folders of versions without the marks hold, and those of no other tool."""


def whose(store: DatasetStore) -> Whose:
    """Whose a dataset's folder is.

    Raises:
        StoreError: it can't be looked into.
    """
    names = store.names()
    for kind, mark in _MARKS.items():
        if mark in names:
            return kind
    if names.intersection(_OURS_ALONE):
        return Whose.INGESTED
    metadata = store.layout.metadata
    if metadata.name in names and store.read(metadata, lambda: _is_ours(metadata)):
        return Whose.INGESTED
    # Hidden files are what we keep of a remote source before anything else.
    return Whose.THEIRS if any(name[0] != "." for name in names) else Whose.NOBODYS


def is_marked(store: DatasetStore) -> bool:
    """True if an ingest by a version that leaves the marks has begun in a dataset's folder."""
    return not store.names().isdisjoint(_MARKS.values())


def holds_ours(names: Iterable[str]) -> bool:
    """True if a folder of these names holds what no other tool writes, beside metadata.json."""
    return not {*_MARKS.values(), *_OURS_ALONE}.isdisjoint(names)


def _is_ours(metadata: Path) -> bool:
    with contextlib.suppress(OSError):
        return is_sealed(metadata.read_bytes())
    return False


OUR_NAMES = (
    "opening.json", "metadata.json", "norm_stats.json", "window_index.parquet",
    "split_assignment.parquet", "weka_copy.json", "source_state.json", "resolved.json",
    "retired.json", "samples", *SPLITS, "report", ".window_index", ".staging", ".copied_ahead",
)  # fmt: skip
"""What we write beside the windows of another tool."""


def ours_in_the_way(store: DatasetStore) -> list[str]:
    """What a folder of another tool holds where ours would lie, were the dataset adopted."""
    there = store.names()
    return [name for name in OUR_NAMES if name in there]


def mark(store: DatasetStore, kind: Whose) -> None:
    """Say in a dataset's folder that it is ours.

    Raises:
        StoreError: it can't be written.
    """
    path = store.layout.path / _MARKS[kind]
    if not path.is_file():
        write_bytes(path, _TEXTS[kind].encode())
        store.send(path)


WRITTEN = (*OUR_NAMES, *_MARKS.values())
"""The same, with what says so; the mark of an adopted folder is the last."""


def disclaim(store: DatasetStore) -> None:
    """Remove what is ours from a folder of another tool; the mark last.

    Who reads meanwhile finds it not published any more: that goes first.

    Raises:
        StoreError: it can't be removed.
    """
    # Whoever was killed while he wrote one of ours has left it under its temporary name.
    strays = [
        name
        for name in sorted(store.names())
        if name.endswith(".tmp") and name.startswith(tuple(f".{ours}." for ours in WRITTEN))
    ]
    store.remove(store.layout.path / name for name in (*strays, *WRITTEN))
