"""Which window goes to which split, in which order."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eval_ingest.core.columns import row_numbers
from eval_ingest.core.index import WindowIndex
from eval_ingest.core.keyed import KEY, name_hashes
from eval_ingest.core.spec import SPLITS
from eval_ingest.core.splits import SplitAssignment

_TOGETHER = 1 << 12


@dataclass(frozen=True, slots=True)
class Place:
    """A window that is in a split, and where its sample goes or is."""

    group: str
    name: str
    source_digest: str
    split: str
    row: int
    """In the window index."""

    @property
    def window(self) -> tuple[str, str]:
        """Group and name."""
        return self.group, self.name


@dataclass(frozen=True)
class Places:
    """Windows that are in splits, as columns; one by one while they are iterated over."""

    keys: pa.Table
    """The index's columns that make up KEY."""
    rows: NDArray[np.int64]
    """In the window index."""
    splits: NDArray[np.int8]
    """Numbers of SPLITS."""

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Place]:
        for start in range(0, len(self), _TOGETHER):
            some = self[start : start + _TOGETHER]
            columns = (column.to_pylist() for column in some.table.columns)
            splits = [SPLITS[number] for number in some.splits]
            for values in zip(*columns, splits, some.rows.tolist(), strict=True):
                yield Place(*values)

    def __getitem__(self, wanted: slice | NDArray[Any]) -> "Places":
        return Places(self.keys, self.rows[wanted], self.splits[wanted])

    @property
    def table(self) -> pa.Table:
        """Their keys."""
        return self.keys.take(row_numbers(self.rows))

    def in_split(self, split: str) -> "Places":
        """Those of one split."""
        return self[self.splits == SPLITS.index(split)]


def places_in_splits(index: WindowIndex, splits: SplitAssignment) -> Places:
    """The windows of all splits, in the order of packs and split indexes.

    train, val, test; within a split by the SHA-256 of the name, as rslearn orders windows. So
    sample i of a split is the same window here and in rslearn's ModelDataset, and the label
    fractions that the existing evals take are the same subsets.
    """
    used = splits.used
    split = np.array([SPLITS.index(name) for name in splits.splits[used].tolist()], np.int8)
    keys = pa.Table.from_arrays([index.table[name] for name in KEY], names=list(KEY))
    names = keys["name"].take(row_numbers(used))
    hashes = name_hashes(
        name.encode()
        for start in range(0, len(used), _TOGETHER)
        for name in names.slice(start, _TOGETHER).to_pylist()
    )
    # Rows are sorted by group already, and the sort is stable.
    order = np.lexsort((*hashes.T[::-1], split))
    return Places(keys, used[order], split[order])
