"""What is done of an index: a run that was stopped goes on from there."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eval_ingest.core.columns import row_numbers
from eval_ingest.core.forms import ColumnForm, Facts, TableForm
from eval_ingest.core.index import INDEX_FORM
from eval_ingest.core.resolved import ResolvedConfig
from eval_ingest.engine import batched
from eval_ingest.indexing.packer import Packer, pack_rows
from eval_ingest.indexing.work import IndexedShard
from eval_ingest.store.seal import unless_damaged
from eval_ingest.store.shards import PackRow
from eval_ingest.store.tables import read_table, write_table


class PartialFacts(Facts):
    """What rows of a stopped run say of themselves."""

    row_key: str
    packing: str


PARTIAL_FORM = TableForm(
    "partial_rows", 3, {**INDEX_FORM.columns, "place": ColumnForm(pa.int64())}, PartialFacts
)
ARRIVED = "arrived"
"""The packing key of rows whose samples, if they were packed, lie among the dataset's others."""
_JOINED = 8
PARTIAL_ROWS = 2048
"""Finished rows between two writes: a stopped run loses at most ten seconds of work."""


class PartialRows:
    """What is done of an index that isn't complete yet, in a folder: rows and packed samples."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder = folder
        self._key = key
        self._waiting: list[pa.Table] = []
        self._count = len(list(folder.glob("*.parquet"))) if folder.is_dir() else 0
        self.packer: Packer | None = None
        """Packs the samples of the rows that are added."""
        self.packing_key = ""
        """Kept with rows that no packer of this folder has packed."""

    @property
    def packing(self) -> Path:
        """Where the packer's shards grow."""
        return self._folder / "packing"

    def read(self) -> "list[Rows]":
        """What earlier runs left, if their row key is ours; in pieces of many rows.

        Of small ones, memory would stay in use when they are gone.
        """
        found = []
        for packing, parts in groupby(self._parts(), lambda part: part[1]):
            for some in batched(parts, _JOINED):
                table = pa.concat_tables([table for table, _ in some]).combine_chunks()
                found.append(Rows(table.drop_columns("place"), table["place"], packing))
        return found

    def _parts(self) -> Iterator[tuple[pa.Table, str]]:
        for path in sorted(self._folder.glob("*.parquet")) if self._folder.is_dir() else []:
            part = unless_damaged(partial(self._read, path))
            if part is not None and part[1].row_key == self._key:
                yield part[0], part[1].packing

    def _read(self, path: Path) -> tuple[pa.Table, PartialFacts] | None:
        return read_table(path, PARTIAL_FORM, self._folder.parent.name)

    def add(self, shard: IndexedShard) -> bool:
        """Keep some rows, in files of about PARTIAL_ROWS rows; True if all are on the disk now."""
        places = {(row.group, row.name): place for place, row in shard.packed}
        names = zip(shard.table["group"].to_pylist(), shard.table["name"].to_pylist(), strict=True)
        column = row_numbers([places.get(name) for name in names])
        self._waiting.append(shard.table.append_column("place", column))
        if sum(part.num_rows for part in self._waiting) >= PARTIAL_ROWS:
            self.flush()
        return not self._waiting

    def flush(self) -> None:
        """Write what is waiting, after the samples that it speaks of."""
        if not self._waiting:
            return
        if self.packer is not None:
            self.packer.sync()
        packing = self.packer.key if self.packer is not None else self.packing_key
        facts = {"row_key": self._key, "packing": packing}
        path = self._folder / f"{self._count:06d}.parquet"
        write_table(path, pa.concat_tables(self._waiting), PARTIAL_FORM, **facts)
        self._waiting.clear()
        self._count += 1

    def clear(self) -> None:
        """Remove all of it: the index is written."""
        self._waiting.clear()
        shutil.rmtree(self._folder, ignore_errors=True)


@dataclass(frozen=True)
class Rows:
    """Rows that an earlier run has finished."""

    table: pa.Table
    places: pa.ChunkedArray | None = None
    """Of each row's sample among those that were packed; null: it wasn't packed."""
    packing: str = ""
    """The key of the packer, see `Packer.key`."""

    def take(self, rows: NDArray[np.int64]) -> "Rows":
        """Some of them, each once and in their order."""
        if len(rows) == self.table.num_rows and isinstance(self.table, pa.Table):
            return self  # of a stored table the rows are read, and put together with others
        wanted = row_numbers(rows)
        places = None if self.places is None else self.places.take(wanted)
        return Rows(self.table.take(wanted), places, self.packing)

    def packed(self, key: str, config: ResolvedConfig) -> list[tuple[int, PackRow]]:
        """What a packer with this key has packed of them, with its places."""
        if self.places is None or self.packing != key:
            return []
        places = {row: k for row, k in enumerate(self.places.to_pylist()) if k is not None}
        return list(zip(places.values(), pack_rows(self.table, list(places), config), strict=True))
