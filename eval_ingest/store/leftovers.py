"""What killed runs and replaced versions leave behind, and when it may be removed.

Whoever holds a dataset's lock is the only one that writes in its folder, so what is unfinished
there was left by a run that is gone. Replaced versions stay a while, for readers that hold them.
"""

import contextlib
import os
from functools import partial

from eval_ingest.core.entry import Metadata, Retired
from eval_ingest.core.spec import SPLITS
from eval_ingest.errors import StoreError
from eval_ingest.redaction import spelled
from eval_ingest.store.atomic import remove_path
from eval_ingest.store.manifest import JOURNAL, UNFINISHED
from eval_ingest.store.ownership import WRITTEN
from eval_ingest.store.paths import RSLEARN_INDEX, DatasetLayout
from eval_ingest.store.records import read_record
from eval_ingest.store.roots.base import DatasetStore
from eval_ingest.store.seal import unless_damaged, write_sealed_json

GRACE_S = 3600.0
"""Files that metadata.json no longer names stay this long, for readers of the old version."""

_OF_A_COPY = ("copy_manifest.parquet", "config.json", "model.yaml", "model.original.yaml",
              "olmoearth_run.yaml", "README.md")  # fmt: skip


def remove_unfinished(layout: DatasetLayout) -> None:
    """Remove what a killed run was about to write; call it under the dataset's lock.

    The finished rows of a stopped index stay: the next run goes on from them.
    """
    begins = {
        layout.path: tuple(f".{name}." for name in (*WRITTEN, *_OF_A_COPY)),
        layout.path / RSLEARN_INDEX: (".",),
        layout.samples: (".shard.",),
        **{layout.path / split: (".index.",) for split in SPLITS},
    }
    found = [p for folder in begins for p in folder.glob(".*.tmp")
             if p.name.startswith(begins[folder])]  # fmt: skip
    for path in (*found, layout.path / UNFINISHED):
        with contextlib.suppress(StoreError):
            remove_path(path)


def remove_retired(store: DatasetStore, metadata: Metadata, grace_s: float) -> None:
    """Remove shards and split indexes that metadata.json hasn't named for that long.

    Since when which of them have been unnamed is kept in retired.json: the time at which a file
    was written says nothing about that.

    Args:
        store: the dataset, which is held.
        metadata: what is published.
        grace_s: seconds.
    """
    layout = store.layout
    store.remove([layout.path / JOURNAL])  # of a copy that was sent, but for its end
    named = {layout.samples / shard.name for shard in metadata.shards}
    named |= {layout.path / found.index for found in metadata.splits.values()}
    retired = unless_damaged(partial(read_record, Retired, layout.retired))
    since = {} if retired is None else retired.root
    spare = sorted(set(store.versions()) - named)
    now = _now(layout) if spare else 0.0
    kept = {}
    for place in spare:
        known = spelled(place.relative_to(layout.path).as_posix())
        kept[known] = min(since.get(known, now), now)  # the clock may have gone back
        if now - kept[known] >= grace_s:
            with contextlib.suppress(StoreError):  # another time, then
                store.remove([place])
                del kept[known]
    if kept == since:
        return
    if kept:
        write_sealed_json(layout.retired, kept)
    else:
        remove_path(layout.retired)
    store.send()


def _now(layout: DatasetLayout) -> float:
    """The file system's time, which is one for all machines that mount it."""
    os.utime(layout.lock)
    return layout.lock.stat().st_mtime
