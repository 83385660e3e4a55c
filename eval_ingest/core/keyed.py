"""Rows of a table by their key, such as windows by group, name and digest.

Belongs here: finding the rows of one table in another, and the order of windows. Does not: columns
as arrays (columns.py).
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from operator import eq

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eval_ingest.core.columns import row_numbers

KEY = ("group", "name", "source_digest")
"""The columns of an index that a window is known by: equal keys, equal samples."""

_TOGETHER = 1 << 14


class RowsByKey:
    """The row of each key in a table, found by the key's hash: 16 bytes a row.

    A dictionary of a million keys takes as much as everything else.

    >>> rows = RowsByKey(pa.table({"name": ["a", "b", "a"]}), ["name"])
    >>> rows.find(pa.table({"name": ["a", "c", "b"]})).tolist()
    [2, -1, 1]
    """

    def __init__(self, table: pa.Table, key: Sequence[str]) -> None:
        self._keys = table.select(key)
        hashes = np.concatenate([np.zeros(0, np.int64), *map(_hashes, _some(self._keys))])
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]

    def find(self, wanted: pa.Table) -> NDArray[np.int64]:
        """The row of each key of another table, the last one if there are several; -1: none."""
        wanted = wanted.select(self._keys.column_names)
        return np.concatenate([np.zeros(0, np.int64), *map(self._find, _some(wanted))])

    def _find(self, wanted: pa.RecordBatch) -> NDArray[np.int64]:
        hashes = _hashes(wanted)
        found = np.full(len(hashes), -1)
        places = np.searchsorted(self._sorted, hashes, "right") - 1
        left = np.arange(len(hashes))
        while len(left := left[places[left] >= 0]):
            left = left[self._sorted[places[left]] == hashes[left]]
            rows = self._order[places[left]]
            same = _equal(self._keys.take(row_numbers(rows)), wanted.take(row_numbers(left)))
            found[left[same]] = rows[same]
            left = left[~same]  # another key has this hash
            places[left] -= 1
        return found


def name_hashes(names: Iterable[bytes]) -> NDArray[np.uint64]:
    """(N, 4): the SHA-256 of names, by which rslearn orders windows, as numbers from the left.

    >>> name_hashes([b"a"]).tolist()[0][0] == int(hashlib.sha256(b"a").hexdigest()[:16], 16)
    True
    """
    hashed = b"".join(hashlib.sha256(name).digest() for name in names)
    return np.frombuffer(hashed, ">u8").reshape(-1, 4)


def _some(table: pa.Table) -> Iterator[pa.RecordBatch]:
    """A table, or one that is read from a file, some rows at a time."""
    for batch in table.to_batches():
        for start in range(0, len(batch), _TOGETHER):
            yield batch.slice(start, _TOGETHER)


def _hashes(batch: pa.RecordBatch) -> NDArray[np.int64]:
    keys = zip(*(column.to_pylist() for column in batch.columns), strict=True)
    return np.fromiter(map(hash, keys), np.int64, len(batch))


def _equal(table: pa.Table, other: pa.RecordBatch) -> NDArray[np.bool_]:
    same = np.ones(len(other), bool)
    for column, its in zip(table.columns, other.columns, strict=True):
        pairs = map(eq, column.to_pylist(), its.to_pylist())
        same &= np.fromiter(pairs, bool, len(same))
    return same
