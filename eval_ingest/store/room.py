"""Is there room for what will be written? Told before it is, not when the disk is full."""

import shutil
from pathlib import Path

from eval_ingest.errors import StoreError

LEFT_FREE = 1 << 30
"""Bytes of a cache's disk that are left to others."""
FILE_BYTES = 4096
"""A file takes so much more than its size: half of its last block, its name, its folder."""
_SHARDS_AT_ONCE = 2
"""Of a remote dataset: one that is being written, one that is being sent."""


def require_disk(path: Path, windows: int, samples: int) -> None:
    """Check that a disk has room for what an ingest will write into a dataset's folder.

    Args:
        path: the folder; it may have yet to be made.
        windows: bytes of the windows that will be copied, see `window_bytes`.
        samples: bytes of the samples that will be packed.

    Raises:
        StoreError: it hasn't; says how much is needed and free, and what to do.
    """
    free = _free(path)
    if windows + samples <= free:
        return
    parts = [(windows, "copied windows"), (samples, "packed samples")]
    cures = ["free space there"]
    if windows and samples <= free:
        alone = _size(samples) if samples else "which are there already"
        cures.append(f"ingest with --copy stream: packed samples alone, {alone}")
    cures.append("ingest with --copy index: nothing is copied, samples are read from the source")
    raise StoreError(
        f"{path.name} needs {_size(windows + samples)} in {path.parent} "
        f"({', '.join(f'{what} {_size(size)}' for size, what in parts if size)}), "
        f"and {_size(free)} are free; {', or '.join(cures)}"
    )


def require_cache(path: Path, samples: int, shard_bytes: int, url: str) -> None:
    """The same for a remote root: windows go straight to it, shards wait here until they are sent.

    Args:
        path: the dataset's folder in the cache.
        samples: bytes of the samples that will be packed.
        shard_bytes: of a shard at the most.
        url: of the root.
    """
    needed = min(samples, _SHARDS_AT_ONCE * shard_bytes) + LEFT_FREE
    free = _free(path)
    if samples and needed > free:
        raise StoreError(
            f"packing {path.name} needs {_size(needed)} in {path}, until it is sent to "
            f"{url}, and {_size(free)} are free; free space there, set "
            "EVAL_INGEST_CACHE to a folder on another disk, or ingest with --copy index: nothing "
            "is copied, samples are read from the source"
        )


def has_room(path: Path, n_bytes: int) -> bool:
    """True if so many bytes are free where a path is, or will be, and some are left to others."""
    return _free(path) > n_bytes + LEFT_FREE


def window_bytes(n_bytes: int, n_files: int) -> int:
    """What windows take on a disk."""
    return n_bytes + n_files * FILE_BYTES


def _free(path: Path) -> int:
    """Free bytes where a path is, or will be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _size(n_bytes: int) -> str:
    if n_bytes < 2**30:
        return f"{n_bytes / 2**20:.1f} MiB ({n_bytes:,} bytes)"
    return f"{n_bytes / 2**30:.2f} GiB ({n_bytes:,} bytes)"
