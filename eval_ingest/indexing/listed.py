"""The windows of a source as columns: a hundred bytes each.

Belongs here: holding them, and their order. Does not: which are wanted (wanted.py), and their files
(sources/).
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eval_ingest.core.columns import arrow_rows, arrow_table, encoded, row_numbers
from eval_ingest.core.keyed import KEY, name_hashes
from eval_ingest.engine import batched
from eval_ingest.sources.base import Listed

_SCHEMA = pa.schema([(name, pa.string()) for name in KEY])
_TOGETHER = 1 << 12


class WindowList:
    """Windows of a listing, each given as it was listed."""

    def __init__(self, windows: Iterable[Listed]) -> None:
        self._odd: dict[int, Listed] = {}
        """Those whose names no text can hold, by their row."""
        parts, count = [arrow_rows([], _SCHEMA)], 0
        for some in batched(windows, _TOGETHER):
            spelled = [window.spelled for window in some]
            for row, (window, text) in enumerate(zip(some, spelled, strict=True), count):
                if window is not text:
                    self._odd[row] = window
            columns = dict(zip(KEY, zip(*spelled, strict=True), strict=True))
            parts.append(arrow_table(columns, _SCHEMA))
            count += len(some)
        self.table = pa.concat_tables(parts).combine_chunks()
        """As the index spells them."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[Listed]:
        return self.take(np.arange(len(self)))

    def take(self, rows: NDArray[np.int64]) -> Iterator[Listed]:
        """Some of them."""
        for start in range(0, len(rows), _TOGETHER):
            some = rows[start : start + _TOGETHER]
            columns = self.table.take(row_numbers(some)).columns
            values = zip(*(column.to_pylist() for column in columns), strict=True)
            for row, known in zip(some.tolist(), values, strict=True):
                yield self._odd.get(row) or Listed(*known)

    def reading_order(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Some of them by the SHA-256 of the name: as splits have them, so that packs are read from
        front to end; those of one name by their group.
        """
        names = (os.fsencode(window.name) for window in self.take(rows))
        groups = self.table["group"].take(row_numbers(rows))
        return rows[np.lexsort((_ranks(groups), *name_hashes(names).T[::-1]))]


def _ranks(column: pa.ChunkedArray) -> NDArray[np.int64]:
    found, values = encoded(column)
    names = values.to_pylist()
    ranks = np.empty(len(names), np.int64)
    ranks[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    return ranks[found]


class ToRead(Sequence[tuple[int, Listed]]):
    """Windows that have to be read, each with its place among those that are new."""

    def __init__(
        self, windows: WindowList, new: NDArray[np.int64], places: NDArray[np.int64]
    ) -> None:
        self._windows, self._new, self._places = windows, new, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, wanted: Any) -> Any:
        if not isinstance(wanted, slice):
            return self[wanted : wanted + 1][0]
        places = self._places[wanted]
        return list(zip(places.tolist(), self._windows.take(self._new[places]), strict=True))

    def __iter__(self) -> Iterator[tuple[int, Listed]]:
        windows = self._windows.take(self._new[self._places])
        return zip(self._places.tolist(), windows, strict=True)
