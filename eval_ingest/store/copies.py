"""Files of windows that copies under the same eval root hold as their source has them.

So one source under two names is fetched once, and a dataset whose windows are all indexed again
isn't fetched again; nor is an archive.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from eval_ingest.background import OwnLock
from eval_ingest.core.entry import is_ours
from eval_ingest.core.spec import SPLIT_OPTION, SPLITS
from eval_ingest.errors import EvalIngestError
from eval_ingest.objects.backend import is_content
from eval_ingest.store.manifest import CopiedWindow, read_manifest
from eval_ingest.store.paths import DatasetLayout
from eval_ingest.store.registry import read_registry
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.store.window_files import Measured, Windows

_REMEMBERED = 4

Listed = tuple[str, int, str]
"""A file as it was listed: its path in the window's folder, its bytes, its version."""


@dataclass(frozen=True)
class Copies:
    """Copies of one source; pickled for worker processes."""

    windows: tuple[Windows, ...]
    """Of datasets under the eval root."""
    archives: tuple[Path, ...] = ()
    """Where these have unpacked their source, if it is an archive."""

    def __call__(self, window: tuple[str, str, str], files: Iterable[Listed]) -> dict[str, bytes]:
        """Some of a window's files, by path, as far as a copy holds them just as the source does.

        Nothing where no copy is of these very files, or where it isn't as it was written.

        Args:
            window: group, name, and the digest of the source's files.
            files: those that are wanted.
        """
        left = {file[0]: file for file in files}
        found: dict[str, bytes] = {}
        for windows in self.windows:
            copied = _copied(windows.folder.parent).get(window[:2])
            if copied is not None and left:
                found |= _held(windows, copied, window[2], left)
                left = {path: file for path, file in left.items() if path not in found}
        return found


def copies_of(root: EvalRoot, name: str, origin: str) -> Copies | None:
    """A dataset's own copy, and those of others of the same source; None if there is none.

    Args:
        root: the eval root.
        name: the dataset's.
        origin: the source, as the registry records it.
    """
    others = [other for other in _of_source(root, origin) if other != name]
    stores = [root.dataset(one) for one in (name, *others)]
    there = [s for s in stores if s.read(s.layout.copy_manifest, s.layout.copy_manifest.is_file)]
    if not there:
        return None
    archives = (root.layout.dataset(other).archive for other in others)
    return Copies(tuple(store.windows for store in there), tuple(archives))


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


_reading = OwnLock()


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
    return read_manifest(DatasetLayout(folder))


def _held(
    windows: Windows, copied: CopiedWindow, digest: str, files: Mapping[str, Listed]
) -> dict[str, bytes]:
    """Those of a window's files that the copy holds, by path.

    Either a file's version is the checksum of its bytes, or the copy was made of the very files
    that are listed, and is as it was written: its checksum is of all files together, so if one is
    damaged, none is taken.
    """
    try:
        found = {
            path: original
            for path, data in windows.contents(copied.key, files).items()
            for original in _originals(path, data)
            if len(original) == files[path][1] and is_content(original, files[path][2])
        }
        left = [path for path in files if path not in found and not _may_be_rewritten(path)]
        if left and copied.source_digest.partition("-")[0] == digest:  # and what was mapped
            there = windows.contents(copied.key)
            recorded = Measured(copied.n_files, copied.n_bytes, copied.checksum)
            if Measured.of(there) == recorded:
                found |= {path: there[path] for path in left if path in there}
    except EvalIngestError:
        return {}
    return found


def _may_be_rewritten(path: str) -> bool:
    """A copy's metadata.json has `eval_split`, its GeoJSON labels may have mapped categories."""
    return path == "metadata.json" or path.endswith("/data.geojson")


def _originals(path: str, data: bytes) -> Iterator[bytes]:
    """What a file of a copy may have been: see `window_files.with_split`."""
    yield data
    if path != "metadata.json":
        return
    try:
        content = json.loads(data)
        options = content["options"]
        for split in SPLITS:  # it was a copy already
            yield json.dumps({**content, "options": {**options, SPLIT_OPTION: split}}).encode()
        del options[SPLIT_OPTION]
    except (ValueError, TypeError, KeyError, RecursionError):
        return
    yield json.dumps(content).encode()
    if not options:
        yield json.dumps({**content, "options": None}).encode()
        del content["options"]
        yield json.dumps(content).encode()
