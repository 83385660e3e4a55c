"""Is there room for what will be written? Told before it is, not when the disk is full."""

import shutil
from pathlib import Path

from eval_ingest.errors import StoreError
from eval_ingest.store.paths import DatasetLayout
from eval_ingest.store.roots.cache import LEFT_FREE

FILE_BYTES = 4096
"""A file takes so much more than its size: half of its last block, its name, its folder."""
_SHARDS_AT_ONCE = 2
"""Of a remote dataset: one that is being written, one that is being sent."""


def require_room(layout: DatasetLayout, windows: int, samples: int) -> None:
    """Check that a disk has room for what a dataset's ingest will write.

    Args:
        layout: the dataset.
        windows: bytes of the windows that will be copied, see `window_bytes`.
        samples: bytes of the samples that will be packed.

    Raises:
        StoreError: it hasn't; says how much is needed and free, and what to do.
    """
    if layout.remote is not None:
        _require_cache(layout, samples)
        return
    free = shutil.disk_usage(_existing(layout.path)).free
    if windows + samples <= free:
        return
    parts = [(windows, "copied windows"), (samples, "packed samples")]
    cures = ["free space there"]
    if windows and samples <= free:
        alone = _size(samples) if samples else "which are there already"
        cures.append(f"ingest with --copy stream: packed samples alone, {alone}")
    cures.append("ingest with --copy index: nothing is copied, samples are read from the source")
    raise StoreError(
        f"{layout.name} needs {_size(windows + samples)} in {layout.path.parent} "
        f"({', '.join(f'{what} {_size(size)}' for size, what in parts if size)}), "
        f"and {_size(free)} are free; {', or '.join(cures)}"
    )


def _require_cache(layout: DatasetLayout, samples: int) -> None:
    """Windows go straight to the store; shards wait here until they are sent."""
    needed = min(samples, _SHARDS_AT_ONCE * layout.shard_bytes) + LEFT_FREE
    free = shutil.disk_usage(_existing(layout.path)).free
    if samples and needed > free:
        raise StoreError(
            f"packing {layout.name} needs {_size(needed)} in {layout.path}, until it is sent to "
            f"{layout.root.url}, and {_size(free)} are free; free space there, set "
            "EVAL_INGEST_CACHE to a folder on another disk, or ingest with --copy index: nothing "
            "is copied, samples are read from the source"
        )


def window_bytes(n_bytes: int, n_files: int) -> int:
    """What windows take on a disk."""
    return n_bytes + n_files * FILE_BYTES


def _existing(path: Path) -> Path:
    """A path, or the first of its parents that exists."""
    return path if path.exists() else _existing(path.parent)


def _size(n_bytes: int) -> str:
    if n_bytes < 2**30:
        return f"{n_bytes / 2**20:.1f} MiB ({n_bytes:,} bytes)"
    return f"{n_bytes / 2**30:.2f} GiB ({n_bytes:,} bytes)"
