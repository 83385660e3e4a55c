"""Packed arrays mapped into memory: a local root's where they lie, a remote one's in the cache."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.entry import Shard
from eval_ingest.errors import IntegrityError
from eval_ingest.store.layout import DatasetLayout

Maps = dict[tuple[int, str], NDArray[Any]]
"""By shard number and array, in the order in which they were opened."""

_ATTEMPTS = 5


def open_array(layout: DatasetLayout, shard: Shard, name: str, maps: Maps) -> NDArray[Any]:
    """Map an array; of a remote root it is fetched first, if the cache doesn't have it.

    Args:
        layout: the dataset.
        shard: the array's shard.
        name: a modality, or `target`.
        maps: those that are open. Where the cache is too small for all of them, the oldest are
            let go, since what is mapped takes room on the disk even when the cache has dropped it.

    Raises:
        IntegrityError: it can't be read, or isn't what was recorded.
        StoreError: it can't be fetched.
    """
    recorded = shard.arrays[name]
    for attempt in range(1, _ATTEMPTS + 1):
        path = layout.array(shard.name, name, recorded)
        try:
            # As a plain array: a memmap object makes every slice of it expensive.
            found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
            break
        except FileNotFoundError as error:
            # Another process may have needed the room between fetching and opening.
            if layout.remote is None or attempt == _ATTEMPTS:
                raise _unreadable(layout, shard, name, error) from error
        except (OSError, ValueError) as error:
            raise _unreadable(layout, shard, name, error) from error
    if layout.remote is not None:
        room = layout.remote.cache.limit - found.nbytes
        while maps and sum(array.nbytes for array in maps.values()) > room:
            maps.pop(next(iter(maps)), None)
    return found


def _unreadable(layout: DatasetLayout, shard: Shard, name: str, error: Exception) -> IntegrityError:
    path = layout.root.shown(layout.samples / shard.name / f"{name}.npy")
    return IntegrityError(
        f"the packed samples {path} can't be read ({error}); ingest {layout.name} again"
    )
