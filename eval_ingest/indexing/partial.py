"""What is done of an index: a run that was stopped goes on from there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from eval_ingest.core.columns import numbers, row_numbers
from eval_ingest.core.forms import ColumnForm, Facts, TableForm
from eval_ingest.core.index import INDEX_FORM
from eval_ingest.core.keyed import KEY
from eval_ingest.core.resolved import ResolvedConfig
from eval_ingest.indexing.listed import WindowList
from eval_ingest.indexing.packer import Packer, pack_rows
from eval_ingest.indexing.rows import add_geometry
from eval_ingest.indexing.work import IndexedShard
from eval_ingest.sources.base import Listed
from eval_ingest.store.records import undamaged
from eval_ingest.store.seal import cure_for, unless_damaged
from eval_ingest.store.shards import PackRow
from eval_ingest.store.tables import AsideTable, Chosen, LazyTable, read_table, write_table
from eval_ingest.waiting import remove_folder


class PartialFacts(Facts):
    """What rows of a stopped run say of themselves."""

    row_key: str
    packing: str


PARTIAL_FORM = TableForm(
    "partial_rows",
    4,
    {**INDEX_FORM.columns, "place": ColumnForm(pa.int64())},
    PartialFacts,
    together=128,  # read at a time, of each of many files
)


class LeftOutFacts(PartialFacts):
    """What a stopped run says of the windows that its filter left out."""

    wanted: str
    """The filter's fingerprint."""


LEFT_OUT_FORM = TableForm(
    "left_out_windows", 1, {name: INDEX_FORM.columns[name] for name in KEY}, LeftOutFacts
)
ARRIVED = "arrived"
"""The packing key of rows whose samples, if they were packed, lie among the dataset's others."""
PARTIAL_ROWS = 2048
"""Finished rows between two writes: a stopped run loses at most ten seconds of work."""
_ROW = KEY[:2]
_ROWS, _LEFT_OUT, _ALL = "??????.arrow", "??????.left_out.arrow", "??????.*arrow"

Some = TypeVar("Some", pa.Table, LazyTable)


class PartialRows:
    """What is done of an index that isn't complete yet, in a folder: rows and packed samples."""

    def __init__(self, folder: Path, key: str, columns: Sequence[str], wanted: str = "") -> None:
        self._folder = folder
        self._key, self._wanted = key, wanted
        self._columns = columns
        self._waiting: list[pa.Table] = []
        self._left_out: list[Listed] = []
        """Those that wait: windows without a row, which the filter doesn't want."""
        self._count = 1 + max((int(path.name[:6]) for path in self._files(_ALL)), default=-1)
        self.written: list[Rows] = []
        """What was added, as far as it is on the disk."""
        self.packer: Packer | None = None
        """Packs the samples of the rows that are added."""
        self.packing_key = ""
        """Kept with rows that no packer of this folder has packed."""

    @property
    def packing(self) -> Path:
        """Where the packer's shards grow."""
        return self._folder / "packing"

    def _files(self, names: str) -> list[Path]:
        return sorted(self._folder.glob(names))

    def read(self) -> "list[Rows]":
        """What earlier runs left, if their row key is ours."""
        return self._read_all(_ROWS, self._read)

    def read_left_out(self) -> "list[Rows]":
        """The windows that earlier runs left out, by the filter that is ours."""
        return self._read_all(_LEFT_OUT, self._read_left_out)

    def _read_all(self, names: str, read: "Callable[[Path], Rows | None]") -> "list[Rows]":
        found = (unless_damaged(partial(read, path)) for path in self._files(names))
        return [rows for rows in found if rows is not None]

    def _read(self, path: Path) -> "Rows | None":
        name = self._folder.parent.name
        part = read_table(path, PARTIAL_FORM, name)
        if part is None or part[1].row_key != self._key:
            return None
        table = right_rows(part[0], self._columns, path, name)
        return Rows.of(AsideTable(path, table.schema, len(table), name), part[1].packing)

    def _read_left_out(self, path: Path) -> "Rows | None":
        part = read_table(path, LEFT_OUT_FORM, self._folder.parent.name)
        if part is None or (part[1].row_key, part[1].wanted) != (self._key, self._wanted):
            return None
        lacking = next((name for name in KEY if name not in part[0].column_names), "")
        undamaged(lacking, path, cure_for(self._folder.parent.name))
        return Rows.of(part[0], part[1].packing)

    def add(self, shard: IndexedShard) -> bool:
        """Keep some rows, in files of about PARTIAL_ROWS, and which windows have none.

        True if all are on the disk now.
        """
        places = {(row.group, row.name): place for place, row in shard.packed}
        names = zip(shard.table["group"].to_pylist(), shard.table["name"].to_pylist(), strict=True)
        column = row_numbers([places.get(name) for name in names])
        self._waiting.append(shard.table.append_column("place", column))
        self._left_out += shard.filtered_out
        if sum(part.num_rows for part in self._waiting) + len(self._left_out) >= PARTIAL_ROWS:
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
        if self._left_out:
            path = self._folder / f"{self._count:06d}.left_out.arrow"
            keys = WindowList(self._left_out).table
            write_table(path, keys, LEFT_OUT_FORM, **facts, wanted=self._wanted)
            self._left_out.clear()
        path = self._folder / f"{self._count:06d}.arrow"
        table = add_geometry(pa.concat_tables(self._waiting))
        table = table.take(_order(table))
        write_table(path, table, PARTIAL_FORM, **facts)
        written = AsideTable(path, table.schema, len(table), self._folder.parent.name)
        self.written.append(Rows.of(written, packing))
        self._waiting.clear()
        self._count += 1

    def clear(self) -> None:
        """Remove all of it: the index is written."""
        self._waiting.clear()
        self._left_out.clear()
        remove_folder(self._folder)


def right_rows(table: Some, columns: Sequence[str], path: Path, name: str) -> Some:
    """Rows that may be merged into an index.

    Args:
        table: the rows.
        columns: of the index.
        path: where they are.
        name: the dataset.

    Raises:
        IntegrityError: they lack a column, or aren't in the order of an index.
    """
    wrong = next((column for column in columns if column not in table.column_names), "")
    if not wrong and not np.array_equal(numbers(_order(table)), np.arange(len(table))):
        wrong = "the order of its rows"
    undamaged(wrong, path, cure_for(name))
    return table


def _order(table: pa.Table | LazyTable) -> pa.Array:
    import pyarrow.compute as pc

    some = table.select(_ROW)
    rows = pa.Table.from_batches(some.to_batches(), some.schema)
    return pc.sort_indices(rows, [(name, "ascending") for name in _ROW])


@dataclass(frozen=True)
class Rows(Chosen):
    """Finished rows, sorted by window: of an earlier run, or of this one."""

    packing: str = ""
    """The key of the packer, see `Packer.key`; "": their samples lie elsewhere."""

    @classmethod
    def of(cls, table: Any, packing: str = "") -> "Rows":
        """All of a table."""
        return cls(table, np.arange(table.num_rows), packing)

    def packed(self, key: str, config: ResolvedConfig) -> list[tuple[int, PackRow]]:
        """What a packer with this key has packed of them, with its places."""
        if self.packing != key:
            return []
        places = numbers(self.table["place"], -1)[self.rows]
        there = places >= 0
        rows = pack_rows(self.table, self.rows[there].tolist(), config)
        return list(zip(places[there].tolist(), rows, strict=True))
