"""What killed runs and replaced versions leave behind, and when it may be removed.

Whoever holds a dataset's lock is the only one that writes in its folder, so what is unfinished
there was left by a run that is gone. Replaced versions stay a while, for readers that hold them.
"""

from pathlib import Path

from eval_ingest.core.entry import Metadata
from eval_ingest.core.spec import SPLITS
from eval_ingest.store.atomic import remove_tree
from eval_ingest.store.manifest import UNFINISHED
from eval_ingest.store.paths import RSLEARN_INDEX, DatasetLayout
from eval_ingest.store.roots.base import DatasetStore

GRACE_S = 3600.0
"""Files that metadata.json no longer names stay this long, for readers of the old version."""

_WRITTEN_ASIDE = (
    "metadata.json", "norm_stats.json", "window_index.parquet", "split_assignment.parquet",
    "weka_copy.json", "copy_manifest.parquet", "source_state.json", "resolved.json",
    "config.json", "model.yaml", "model.original.yaml", "olmoearth_run.yaml",
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
            remove_tree(path)


def retire(store: DatasetStore, old: Metadata | None, new: Metadata) -> None:
    """Let the grace of what the new version doesn't name begin now; call it before publishing."""
    if old is not None:
        store.retire(_named(store.layout, old) - _named(store.layout, new))


def remove_retired(store: DatasetStore, metadata: Metadata, grace_s: float) -> None:
    """Remove shards and split indexes that metadata.json hasn't named for that long."""
    store.remove_retired(_named(store.layout, metadata), grace_s)


def _named(layout: DatasetLayout, metadata: Metadata) -> set[Path]:
    shards = {layout.samples / shard.name for shard in metadata.shards}
    return shards | {layout.path / found.index for found in metadata.splits.values()}
