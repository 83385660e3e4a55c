"""Names that are one to some disks: these take `A` for `a`, or `é` in one character for one in two.

What belongs here: refusing to write what would take another file's place there. What doesn't: which
names are allowed at all (core/forms.py).
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from unicodedata import normalize

from eval_ingest.errors import StoreError
from eval_ingest.store.atomic import store_errors

_FOLDS = (
    str.casefold,
    partial(normalize, "NFC"),
    lambda name: normalize("NFC", normalize("NFD", name).casefold()),
)
"""What such disks go by, after which the names are one."""


def require_told_apart(folder: Path, paths: Iterable[str]) -> None:
    """Check that files or folders of these paths can lie side by side below a folder.

    The disk is asked only where two of them are alike.

    Raises:
        StoreError: two of them are one to its disk.
    """
    for one, other in _alike(paths):
        with store_errors("writing in", folder):
            if _are_one(folder, one, other):
                raise StoreError(
                    f"{one!r} and {other!r} are one name to the disk of {folder}, so that one "
                    "would take the other's place; nothing was written there: rename one of them "
                    "where they come from, or give a folder on a disk that tells capitals and "
                    "accents apart, as those of Linux do"
                )


def _alike(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Two different ones for each way in which some are one, with the folders above them."""
    known = set[str]()
    for path in paths:
        while path and path not in known:
            known.add(path)
            path = path.rpartition("/")[0]
    for fold in _FOLDS[: 1 if all(map(str.isascii, known)) else None]:
        seen = dict[str, str]()
        for path in sorted(known):
            other = seen.setdefault(fold(path), path)
            if other != path:
                yield other, path
                break


def _are_one(folder: Path, one: str, other: str) -> bool:
    with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=folder) as aside:
        os.makedirs(f"{aside}/{one}")
        return os.path.exists(f"{aside}/{other}")
