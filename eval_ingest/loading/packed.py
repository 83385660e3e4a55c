"""Packed samples mapped into memory: a local root's where they lie, a remote one's in the cache."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.crops import Corner
from eval_ingest.core.entry import Metadata, Shard
from eval_ingest.core.kernels import Runs, can_gather
from eval_ingest.errors import (
    EvalIngestError,
    IntegrityError,
    OutdatedError,
    StoreError,
    brief,
)
from eval_ingest.store.npy import map_npy, page_in, unreadable
from eval_ingest.store.registry import read_metadata, require_metadata
from eval_ingest.store.roots.base import DatasetStore, EvalRoot
from eval_ingest.store.seal import cure_for, cured
from eval_ingest.store.split_index import TARGET, SplitIndex

_ATTEMPTS = 5


class _Map(NamedTuple):
    """An array of a shard, in memory that the system fills from its file."""

    memory: NDArray[np.uint8]
    array: NDArray[Any]

    @property
    def begin(self) -> int:
        """Where in `memory` the array's first byte is."""
        return self.memory.nbytes - self.array.nbytes


def _size(mapped: _Map) -> int:
    return mapped.array.nbytes


class PackedSamples:
    """The samples of a split, as they lie in the dataset's shards.

    Args:
        store: the dataset.
        metadata: names its shards.
        index: says which row of which shard a sample is.

    Raises:
        IntegrityError: a shard isn't what was recorded, by its size and header, or the index
            speaks of places that it doesn't have. What lies in a bucket is looked at when it is
            fetched.
    """

    reads_in_background = True
    """True: `read_ahead` returns at once."""

    def __init__(self, store: DatasetStore, metadata: Metadata, index: SplitIndex) -> None:
        self._store, self._metadata, self._index = store, metadata, index
        self._maps: dict[tuple[int, str], _Map] = {}
        self._cure = cure_for(metadata.name, metadata)
        self._check_places()
        for number in np.unique(index.shards).tolist():
            shard = metadata.shards[number]
            for name, array in shard.arrays.items():
                store.look_at(store.layout.array(shard.name, name), array)

    def _check_places(self) -> None:
        """Every sample lies within its shard, in the shape that the shard's arrays have."""
        index, shards = self._index, self._metadata.shards
        fits = (index.shards >= 0) & (index.shards < len(shards))
        for number, shard in enumerate(shards):
            mine = index.shards == number
            here = slice(None) if mine.all() else np.flatnonzero(mine)
            for name, array in shard.arrays.items():
                shape = [column[here] for column in self._shape_columns(name)]
                if array.uniform:
                    first = last = index.rows[here]
                    fits[here] &= len(shape) == len(array.shape) - 1
                    for column, size in zip(shape, array.shape[1:], strict=False):
                        fits[here] &= column == size
                else:
                    first = index.offsets[name][here]
                    last = first + np.prod(shape, axis=0, dtype=np.int64) - 1
                fits[here] &= (first >= 0) & (last < array.shape[0])
        if not fits.all():
            raise IntegrityError(
                f"the index of {self._metadata.name} says that {(~fits).sum()} of {len(fits)} "
                f"samples, such as {index.window(int(fits.argmin()))}, lie where its shards have "
                "no room",
                self._cure,
            )

    def _shape_columns(self, name: str) -> list[NDArray[Any]]:
        """Sizes of the axes of an array, per sample."""
        sides = [self._index.heights, self._index.widths]
        if name == TARGET:
            return sides if self._metadata.config.task.kind.per_pixel else []
        bands = len(self._metadata.config.modality(name).bands)
        return [*sides, self._index.timesteps[name], np.full(len(self._index), bands)]

    def array(self, row: int, name: str) -> NDArray[Any]:
        """A modality's pixels (H, W, T, C), or the target, of a row: a view of the memory map.

        Raises:
            IntegrityError: the shard can't be read, or isn't what was recorded.
            StoreError: the shard can't be fetched.
        """
        return self._view(self._map(int(self._index.shards[row]), name).array, row, name)

    def runs(
        self, rows: Sequence[int], corners: NDArray[np.int64], size: tuple[int, int], name: str
    ) -> list[Runs] | None:
        """Where in the shards' files samples of one size lie, side by side in windows' rows.

        None where they can't be gathered from there: by their type, or without a compiler.

        Args:
            rows: of the index.
            corners: first row and column of each in its window.
            size: height and width of all of them, which lie within their windows.
            name: a modality with as many timesteps in each; or a target that has pixels.
        """
        index, chosen = self._index, np.asarray(rows, np.int64)
        shards, widths = index.shards[chosen], index.widths[chosen].astype(np.int64)
        groups = set(zip(shards.tolist(), widths.tolist(), strict=True))
        dtypes = {self._metadata.shards[shard].arrays[name].dtype for shard, _ in groups}
        values = math.prod(self._shape(name, rows[0])[2:])
        if not (values and all(size) and can_gather(dtypes, as_is=name == TARGET)):
            return None
        inside, runs = (corners[:, 0] * widths + corners[:, 1]) * values, []
        for shard, width in groups:
            here = np.flatnonzero((shards == shard) & (widths == width))
            found = self._map(shard, name)
            array, dtype = self._metadata.shards[shard].arrays[name], found.array.dtype
            if array.uniform:
                starts = index.rows[chosen[here]] * math.prod(array.shape[1:])
            else:
                starts = index.offsets[name][chosen[here]]
            starts = found.begin + (starts + inside[here]) * dtype.itemsize
            row_bytes = width * values * dtype.itemsize
            runs.append(
                Runs(found.memory, dtype, starts, here, size[0], row_bytes, size[1] * values)
            )
        return runs

    def read_ahead(
        self, rows: Sequence[int], corners: Sequence[Corner], height: int | None, names: list[str]
    ) -> None:
        """Tell the system what will be asked for soon, so that it reads all of it at once.

        Touched page by page it would come in small pieces, one after the other.

        Args:
            rows: of the index.
            corners: first row and column of each sample in its window.
            height: of the samples; None: all of their windows, wherever the samples begin.
            names: of modalities.
        """
        for row, (top, _) in zip(rows, corners, strict=True):
            for name in names:
                window = self.array(row, name)
                row_bytes = window.strides[0] if window.size else 0
                first, last = (0, len(window)) if height is None else (top, top + height)
                length = (min(last, len(window)) - first) * row_bytes
                page_in(window.__array_interface__["data"][0] + first * row_bytes, length)

    def _view(self, array: NDArray[Any], row: int, name: str) -> NDArray[Any]:
        shard = self._metadata.shards[int(self._index.shards[row])]
        if shard.arrays[name].uniform:
            return np.asarray(array[int(self._index.rows[row])])
        shape = self._shape(name, row)
        start = int(self._index.offsets[name][row])
        return array[start : start + int(np.prod(shape))].reshape(shape)

    def _shape(self, name: str, row: int) -> tuple[int, ...]:
        size = self._index.size(row)
        if name == TARGET:
            return size
        bands = self._metadata.config.modality(name).bands
        return (*size, int(self._index.timesteps[name][row]), len(bands))

    def _map(self, shard: int, name: str) -> _Map:
        found = self._maps.get((shard, name))
        if found is None:
            found = self._open(self._metadata.shards[shard], name)
            self._keep((shard, name), found)
        return found

    def _keep(self, key: tuple[int, str], found: _Map) -> None:
        maps, limit = {**self._maps, key: found}, self._store.root.cache_bytes
        # What is mapped takes room on the disk even when the cache has dropped it.
        while limit is not None and len(maps) > 1 and sum(map(_size, maps.values())) > limit:
            del maps[next(iter(maps))]
        self._maps = maps  # exchanged whole: other threads are looking

    def _open(self, shard: Shard, name: str) -> _Map:
        """Map an array; of a remote root it is fetched first, if the cache doesn't have it."""
        for attempt in range(1, _ATTEMPTS + 1):
            path = self._path(shard, name)
            try:
                return _Map(*map_npy(path, shard.arrays[name]))
            except FileNotFoundError as error:
                # Another process may have needed the room between fetching and opening.
                if attempt == _ATTEMPTS:
                    raise self._unreadable(shard, name, error) from error
            except (OSError, ValueError) as error:
                raise self._unreadable(shard, name, error) from error
        raise AssertionError("unreachable")

    def _path(self, shard: Shard, name: str) -> Path:
        try:
            with cured(self._metadata):
                return self._store.array(shard.name, name, shard.arrays[name])
        except IntegrityError as error:
            if is_replaced(self._store, self._metadata):
                raise version_is_gone(self._metadata) from error
            raise

    def _unreadable(self, shard: Shard, name: str, error: Exception) -> EvalIngestError:
        if isinstance(error, FileNotFoundError) and is_replaced(self._store, self._metadata):
            return version_is_gone(self._metadata)
        path = self._store.root.shown(self._store.layout.array(shard.name, name))
        return unreadable(path, error, self._cure)


def is_replaced(store: DatasetStore, metadata: Metadata) -> bool:
    """True if another version of a dataset is published by now, or none."""
    try:
        now = read_metadata(store)
    except StoreError:
        return False
    return now is None or not is_same(now, metadata)


def is_same(one: Metadata, other: Metadata) -> bool:
    """True if two records are of one version of a dataset."""
    return (one.fingerprint, one.shards) == (other.fingerprint, other.shards)


def require_version(metadata: Metadata, version: str, root: EvalRoot) -> None:
    """Check that a dataset is of the version that is asked for, or begins like it.

    Raises:
        OutdatedError: it isn't; says which it is, and what became of the other.
    """
    if version and metadata.fingerprint.startswith(version):
        return
    history = require_metadata(root, metadata.name).history
    old = [found for found in history if version and found.fingerprint.startswith(version)]
    what = f"that of {old[-1].published_at} was replaced" if old else "no version of it is known"
    raise OutdatedError(
        f"{metadata.name} is of version {metadata.fingerprint}, published "
        f"{metadata.published_at}, and not {brief(version, 60)}: {what}; ingest it again as it "
        f"was, or open it with version={metadata.fingerprint!r}"
    )


def version_is_gone(metadata: Metadata) -> OutdatedError:
    """What was opened has been replaced for so long that its files were removed."""
    return OutdatedError(
        f"{metadata.name}: the version of {metadata.published_at} that was opened is gone: it was "
        "ingested anew or removed since, and files of an old version are kept for an hour; open "
        f"it again: EvalDataset({metadata.name!r}, ...)"
    )
