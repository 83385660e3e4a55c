"""Whose a folder under the eval root is. Others keep their datasets there too.

What belongs here: telling ours from theirs by what lies in a folder. What doesn't: refusing to
touch theirs (claims.py), and taking a dataset over in its place (eval_ingest/adopting.py).

A folder of ours holds a file that says so from the first moment on; those of earlier versions are
known by what else only we write. Everything else is somebody's, and nothing is written into it.
"""

import contextlib
from enum import StrEnum
from pathlib import Path

from eval_ingest.store.atomic import remove_file, write_bytes
from eval_ingest.store.paths import DatasetLayout
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


_MARKS = {Whose.INGESTED: ".ingested_by_eval_ingest", Whose.ADOPTED: ".adopted_by_eval_ingest"}
_TEXTS = {
    Whose.INGESTED: "Written by eval_ingest, which replaces and removes what is in this folder.\n",
    Whose.ADOPTED: "Adopted by eval_ingest, which leaves alone what was in this folder before.\n",
}
_OURS_ALONE = (".window_index", "window_index.parquet", "copy_manifest.parquet", "weka_copy.json")
"""What folders of versions without the marks hold, and those of no other tool."""


def whose(layout: DatasetLayout) -> Whose:
    """Whose a dataset's folder is, as it lies on this machine.

    Raises:
        StoreError: it can't be read.
    """
    for kind, mark in _MARKS.items():
        if (layout.path / mark).is_file():
            return kind
    try:
        names = {path.name for path in layout.path.iterdir()}
    except FileNotFoundError:
        return Whose.NOBODYS
    except OSError:
        return Whose.THEIRS  # a file, or a folder that only others may read
    if names.intersection(_OURS_ALONE) or _is_ours(layout.metadata):
        return Whose.INGESTED
    # Hidden files are what we keep of a remote source, and of a remote root, before anything else.
    return Whose.THEIRS if any(name[0] != "." for name in names) else Whose.NOBODYS


def _is_ours(metadata: Path) -> bool:
    with contextlib.suppress(OSError):
        return is_sealed(metadata.read_bytes())
    return False


def mark(layout: DatasetLayout, kind: Whose) -> None:
    """Say in a dataset's folder that it is ours.

    Raises:
        StoreError: it can't be written.
    """
    path = layout.path / _MARKS[kind]
    if not path.is_file():
        write_bytes(path, _TEXTS[kind].encode())
        layout.root.push(path)


def disclaim(layout: DatasetLayout) -> None:
    """Take the mark from a folder that is another tool's alone again."""
    remove_file(layout.path / _MARKS[Whose.ADOPTED])
    layout.root.push(layout.path / _MARKS[Whose.ADOPTED])
