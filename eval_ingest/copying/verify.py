"""Read back what was ingested and compare it with what was recorded."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from eval_ingest.copying.rslearn_index import wrong_indexes
from eval_ingest.core.entry import CopyResult, Metadata
from eval_ingest.errors import IntegrityError, StoreError
from eval_ingest.store.manifest import CopiedWindows, read_manifest
from eval_ingest.store.outcomes import read_outcome
from eval_ingest.store.paths import RSLEARN_INDEX, DatasetLayout
from eval_ingest.store.roots.base import DatasetStore, Recorded
from eval_ingest.store.window_files import Measured


class Verified(NamedTuple):
    """What was found."""

    checked: str
    """What was read."""
    problems: list[str]
    """One text per damaged thing."""
    cure: str = ""
    """What to do about them."""


def verify(
    store: DatasetStore, metadata: Metadata, progress: Callable[[str, int, int], None]
) -> Verified:
    """Compare sizes and checksums of the copied windows, and what is recorded of every packed file.

    rslearn's own indexes are compared with the windows' splits: rslearn itself wouldn't notice.

    Raises:
        StoreError: a remote root can't be read.
    """
    layout = store.layout
    copy = None
    with contextlib.suppress(IntegrityError):  # told by whoever looks at the stages' outcomes
        copy = read_outcome(store, "weka_copy")
    store.root.fetch_folder(layout.path / RSLEARN_INDEX)
    problems = [error.what for error in _damage(store, metadata, copy)]
    windows, unsure = _copied(store, metadata, copy)
    problems += unsure
    for done, (key, now) in enumerate(store.windows.measured(windows), start=1):
        window = windows[key]
        recorded = Measured(window.n_files, window.n_bytes, window.checksum)
        if isinstance(now, StoreError):
            problems.append(str(now))
        elif now != recorded:
            problems.append(
                f"windows/{window.group}/{window.name}: {now.n_files} files, {now.n_bytes} "
                f"bytes, checksum {now.checksum}; recorded {recorded.n_files}, "
                f"{recorded.n_bytes}, {recorded.checksum}"
            )
        progress("windows verified", done, len(windows))
    if not metadata.spec.adopted:  # else they are another tool's, of windows of its own
        splits = {key: window.split for key, window in windows.items()}
        problems += wrong_indexes(layout.path, splits)
    total = sum(window.n_bytes for window in windows.values())
    checked = (
        f"{len(windows)} windows ({total / 2**20:.1f} MiB), "
        f"{len(metadata.shards)} shard{'s' * (len(metadata.shards) != 1)}, "
        f"{len(metadata.splits)} split indexes read"
    )
    return Verified(checked, problems)


def _copied(
    store: DatasetStore, metadata: Metadata, copy: CopyResult | None
) -> tuple[CopiedWindows, list[str]]:
    """The windows that the manifest vouches for, and what is wrong with it."""
    try:
        path = store.layout.copy_manifest
        windows = store.read(path, lambda: read_manifest(store.layout))
        if copy is not None and copy.manifest is not None:
            store.verify(path, copy.manifest)
    except IntegrityError as error:
        return CopiedWindows(), [error.what]
    wanted = sum(found.n_windows for found in metadata.splits.values())
    if metadata.spec.copy_mode == "windows" and len(windows) != wanted:
        return windows, [f"{len(windows)} windows are copied, {wanted} are in the splits"]
    return windows, []


def look_at(store: DatasetStore, copy: CopyResult) -> CopyResult:
    """The outcome of a held dataset's copy stage, if what it names is there and looks right.

    Raises:
        IntegrityError: something is missing or damaged, as far as a quick look tells.
    """
    if copy.mode == "windows":
        store.look_at(store.layout.copy_manifest, copy.manifest)
    for path, recorded in (*_packed(store.layout, copy), *_beside(store.layout, copy)):
        store.look_at(path, recorded)
    return copy


def _damage(
    store: DatasetStore, metadata: Metadata, copy: CopyResult | None
) -> Iterator[IntegrityError]:
    """What is wrong with split indexes, shards, and the files beside the copied windows."""
    layout = store.layout
    parts = [(layout.opening, None), *_packed(layout, metadata)]
    parts += [] if copy is None else _beside(layout, copy)
    for path, recorded in parts:
        try:
            store.verify(path, recorded)
        except IntegrityError as error:
            yield error


def _packed(layout: DatasetLayout, named: Metadata | CopyResult) -> Iterator[tuple[Path, Recorded]]:
    """The split indexes and the shards' files."""
    for split in named.splits.values():
        yield layout.path / split.index, None
    for shard in named.shards:
        yield layout.samples / shard.name / "index.parquet", None
        for name, array in shard.arrays.items():
            yield layout.array(shard.name, name), array


def _beside(layout: DatasetLayout, copy: CopyResult) -> Iterator[tuple[Path, Recorded]]:
    """The files beside the copied windows."""
    yield from ((layout.path / name, crc32c) for name, crc32c in copy.files.items())
