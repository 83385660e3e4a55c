"""What killed runs and replaced versions leave behind, and when it may be removed.

Whoever holds a dataset's lock is the only one that writes in its folder, so what is unfinished
there was left by a run that is gone. Replaced versions stay a while, for readers that hold them.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from eval_ingest.core.entry import Metadata
from eval_ingest.core.spec import SPLITS
from eval_ingest.store.manifest import UNFINISHED
from eval_ingest.store.paths import RSLEARN_INDEX as RSLEARN_INDEX
from eval_ingest.store.paths import DatasetLayout

GRACE_S = 3600.0
"""Files that metadata.json no longer names stay this long, for readers of the old version."""

_WRITTEN_ASIDE = (
    "metadata.json", "norm_stats.json", "window_index.parquet", "split_assignment.parquet",
    "weka_copy.json", "copy_manifest.parquet", "source_state.json", "config.json", "model.yaml",
    "model.original.yaml", "olmoearth_run.yaml",
)  # fmt: skip


def remove_unfinished(layout: DatasetLayout) -> None:
    """Remove what a killed run was about to write; call it under the dataset's lock.

    The finished rows of a stopped index stay: the next run goes on from them.
    """
    patterns = [f".{name}.*.tmp" for name in _WRITTEN_ASIDE]
    patterns += [f"{split}/.index.*.tmp" for split in SPLITS]
    patterns += [f"{RSLEARN_INDEX}/.*.tmp", "samples/.shard.*.tmp", UNFINISHED]
    for pattern in patterns:
        for path in layout.path.glob(pattern):
            _remove(path)


def retire(layout: DatasetLayout, old: Metadata | None, new: Metadata) -> None:
    """Let the grace of what the new version doesn't name begin now; call it before publishing."""
    if old is None or layout.remote is not None:  # a remote root's grace begins by itself
        return
    for path in _named(layout, old) - _named(layout, new):
        with contextlib.suppress(OSError):
            os.utime(path)


def remove_retired(layout: DatasetLayout, metadata: Metadata, grace_s: float) -> None:
    """Remove shards and split indexes that metadata.json hasn't named for that long.

    Ages are by the clock of the file system, which may differ from this machine's.
    """
    if layout.remote is not None:
        layout.remote.remove_retired(layout.name, _named(layout, metadata), grace_s)
        return
    with contextlib.suppress(OSError):
        spare = set(_present(layout)) - _named(layout, metadata)
        if not spare:
            return
        os.utime(layout.lock)
        now = layout.lock.stat().st_mtime
        for path in spare:
            age = now - path.stat().st_mtime
            if age < 0:
                os.utime(path)  # the clock has gone back: its grace begins anew
            elif age >= grace_s:
                _remove(path)


def _named(layout: DatasetLayout, metadata: Metadata) -> set[Path]:
    shards = {layout.samples / shard.name for shard in metadata.shards}
    return shards | {layout.path / found.index for found in metadata.splits.values()}


def _present(layout: DatasetLayout) -> Iterator[Path]:
    yield from layout.samples.glob("[!.]*")
    for split in SPLITS:
        yield from layout.path.glob(f"{split}/index.*.parquet")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
