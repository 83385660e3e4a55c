"""Files of windows that copies under the same eval root hold as their source has them.

So one source under two names is fetched once, and a dataset whose windows are all indexed again
isn't fetched again. Only of roots on a disk: from a bucket, a copy costs what the source costs.
"""

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from eval_ingest.core.entry import is_ours
from eval_ingest.errors import EvalIngestError
from eval_ingest.store.manifest import CopiedWindow, Manifest
from eval_ingest.store.paths import DatasetLayout
from eval_ingest.store.registry import read_registry
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.store.window_files import measure

_REMEMBERED = 4


@dataclass(frozen=True)
class Copies:
    """Copies of one source; pickled for worker processes."""

    folders: tuple[Path, ...]
    """Of datasets under the eval root."""

    def __call__(self, window: tuple[str, str, str], paths: Collection[str]) -> dict[str, bytes]:
        """Some of a window's files, as far as a copy holds them just as the source does.

        Nothing where no copy is of these very files, or where it isn't as it was written.

        Args:
            window: group, name, and the digest of the source's files.
            paths: of the files, in the window's folder.
        """
        group, name, digest = window
        wanted = {path for path in paths if not _may_be_rewritten(path)}
        for folder in self.folders if wanted else ():
            copied = _copied(folder).get((group, name))
            if copied is not None and copied.source_digest == digest:
                found = _read(DatasetLayout(folder).windows / group / name, copied, wanted)
                if found:
                    return found
        return {}


def copies_of(root: EvalRoot, name: str, origin: str) -> Copies | None:
    """A dataset's own copy, and those of others of the same source; None if there can be none.

    Args:
        root: the eval root.
        name: the dataset's.
        origin: the source, as the registry records it.
    """
    if root.cache_bytes is not None:  # a bucket
        return None
    names = [name, *(other for other in _of_source(root, origin) if other != name)]
    folders = [root.layout.dataset(one) for one in names]
    there = tuple(layout.path for layout in folders if layout.copy_manifest.is_file())
    return Copies(there) if there else None


def _of_source(root: EvalRoot, origin: str) -> list[str]:
    """Our datasets of a source, by the registry: one file, however many datasets there are."""
    try:
        registry = read_registry(root)
    except EvalIngestError:  # damaged: nothing is known of others
        return []
    return [
        name for name, entry in registry.items()
        if is_ours(entry) and entry.get("source_path") == origin
    ]  # fmt: skip


def _may_be_rewritten(path: str) -> bool:
    """A copy's metadata.json has `eval_split`, its GeoJSON labels may have mapped categories."""
    return path == "metadata.json" or path.endswith("/data.geojson")


_reading = threading.Lock()


def _copied(folder: Path) -> Mapping[tuple[str, str], CopiedWindow]:
    """The windows that are in a copy; a worker process gets a task anew with every batch."""
    try:
        version = DatasetLayout(folder).copy_manifest.stat().st_mtime_ns
        with _reading:
            return _windows(folder, version)
    except (OSError, EvalIngestError):
        return {}


@lru_cache(maxsize=_REMEMBERED)
def _windows(folder: Path, version: int) -> Mapping[tuple[str, str], CopiedWindow]:
    return Manifest(DatasetLayout(folder)).windows


def _read(folder: Path, copied: CopiedWindow, wanted: Collection[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}

    def keep(path: str, data: bytes) -> None:
        if path in wanted:
            found[path] = data

    try:
        now = measure(folder, keep)
    except OSError:
        return {}
    # The checksum is of all of the window's files together: if one is damaged, none is taken.
    whole = (copied.n_files, copied.n_bytes, copied.checksum) == tuple(now)
    return found if whole else {}
