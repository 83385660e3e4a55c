"""Tables of ours as files: sealed, and with facts such as a fingerprint in their metadata.

Parquet, but for those that are opened in training: Arrow's own format (`.arrow`) is five times
faster to open and to read.
"""

import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eval_ingest.core.columns import numbers, row_numbers
from eval_ingest.core.forms import Facts, TableForm
from eval_ingest.errors import IntegrityError, StoreError
from eval_ingest.store.atomic import store_errors, written_aside
from eval_ingest.store.records import record_of, undamaged
from eval_ingest.store.seal import UNSEALED, check_sealed, cure_for, read_sealed, seal_file

_KEY = b"eval_ingest"
_CHECKSUM = b"eval_ingest.checksum"

_GROUP_ROWS = 1 << 12
"""Rows that are read at a time: what decoding takes beside them is gone before the next ones."""

_COLUMNS = 32
"""Of a table whose rows are merged so many at a time; of fewer columns more rows."""

_LARGE = 1 << 20
"""Tables of more bytes are compressed in Arrow's own format as well."""

_GEO = {
    "version": "1.1.0",
    "primary_column": "geometry",
    "columns": {"geometry": {"encoding": "WKB", "geometry_types": ["Polygon", "MultiPolygon"]}},
}
"""GeoParquet metadata: longitude and latitude (OGC:CRS84, the default)."""


def write_table(path: Path, table: "pa.Table | LazyTable", form: TableForm, **facts: Any) -> None:
    """Write a table with its facts in its schema metadata, sealed, whole or not at all."""
    metadata = {_KEY: form.said(**facts).model_dump_json().encode()}
    if form.geo:
        metadata[b"geo"] = json.dumps(_GEO).encode()
    metadata[_CHECKSUM] = UNSEALED.encode()  # last, as `store.seal` wants it
    schema = table.schema.with_metadata(metadata)
    with written_aside(path) as temporary:
        if path.suffix == ".arrow":
            packed = pa.ipc.IpcWriteOptions(compression="lz4" if table.nbytes > _LARGE else None)
            with pa.ipc.new_file(temporary, schema, options=packed) as writer:
                writer.write_table(table.combine_chunks(), form.together)
        else:
            import pyarrow.parquet as pq  # training needs none of it

            # for other readers, who don't know of our checksum
            pages = {"compression": "zstd", "version": "2.6", "write_page_checksum": True}
            with pq.ParquetWriter(temporary, schema, **pages) as writer:
                for part in [table] if isinstance(table, pa.Table) else table.to_batches():
                    writer.write(part, _GROUP_ROWS)
        seal_file(temporary)


def read_table(path: Path, form: TableForm, name: str) -> tuple[pa.Table, Any] | None:
    """A table and its facts; None if it isn't there, or is of another kind or version.

    Args:
        path: the file.
        form: what it has to be; anything else is damage.
        name: the dataset, for messages.

    Raises:
        IntegrityError: it is damaged.
        NewerVersionError: a newer eval_ingest has written it.
        StoreError: it can't be read.
    """
    if path.suffix != ".arrow":
        found = open_table(path, form, name)
        return None if found is None else (found[0].whole(), found[1])
    content = read_sealed(path, cure_for(name))
    if content is None:
        return None
    with readable(path, name):
        file = pa.ipc.open_file(_in_arrows_memory(content))
    facts = _facts(file.schema, path, form, name)
    if facts is None:
        return None
    with readable(path, name):
        table = file.read_all()
        table.validate(full=True)  # buffers are as large as they are said to be, texts are texts
    undamaged(form.wrong_column(table), path, cure_for(name))
    return table, facts


@contextlib.contextmanager
def readable(path: Path, name: str) -> Iterator[None]:
    """What Arrow says of a file that is no table of its kind is damage.

    Raises:
        IntegrityError: it does.
    """
    try:
        yield
    except MemoryError:  # Arrow's own is an ArrowException too, and nothing is wrong with the file
        raise
    except pa.ArrowException as error:
        raise IntegrityError(f"{path} is no table ({error})", cure_for(name)) from error


class LazyTable(ABC):
    """A table whose columns, or some rows, are had when they are asked for.

    It has what an Arrow table has; but what isn't below has all of it at once.
    """

    column_names: list[str]
    schema: pa.Schema
    num_rows: int

    @abstractmethod
    def select(self, names: Sequence[str]) -> "LazyTable":
        """Some of its columns."""

    @abstractmethod
    def to_batches(self) -> Iterator[pa.RecordBatch]:
        """Its rows, some at a time."""

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        return self.select([name]).whole()[name]

    def whole(self) -> pa.Table:
        """As an Arrow table."""
        return pa.Table.from_batches(self.to_batches(), self.schema)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole(), name)

    def __reduce__(self) -> tuple[Any, ...]:
        return pa.Table.from_batches, (self.whole().to_batches(), self.schema)


class AsideTable(LazyTable):
    """A file that `write_table` has written in Arrow's own format, and whose rows are right.

    It is opened for each of its batches: of a large index there are thousands of such files.
    """

    def __init__(self, path: Path, schema: pa.Schema, num_rows: int, name: str) -> None:
        self._path, self._name = path, name
        self.column_names, self.schema, self.num_rows = schema.names, schema, num_rows

    def select(self, names: Sequence[str]) -> "AsideTable":
        schema = pa.schema([self.schema.field(name) for name in names])
        return AsideTable(self._path, schema, self.num_rows, self._name)

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        """Its rows, some at a time.

        Raises:
            IntegrityError: it has been damaged since.
            StoreError: it can't be read.
        """
        path, number, done = self._path, 0, 0
        check_sealed(path, cure_for(self._name))
        while done < self.num_rows:
            guarded = store_errors("reading", path), readable(path, self._name)
            with guarded[0], guarded[1], pa.OSFile(str(path)) as source:
                there = pa.ipc.open_file(source).schema
                wanted = [there.get_field_index(name) for name in self.column_names]
                asked = pa.ipc.IpcReadOptions(included_fields=wanted, use_threads=False)
                batch = pa.ipc.open_file(source, options=asked).get_batch(number)
            yield batch.select(self.column_names)
            number, done = number + 1, done + len(batch)


@dataclass(frozen=True)
class Chosen:
    """Some rows of a table, in their order."""

    table: "pa.Table | LazyTable"
    rows: NDArray[np.int64]

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns of them."""
        first = 0
        for batch in self.table.select(names).to_batches():
            begin, end = np.searchsorted(self.rows, (first, first + len(batch)))
            if begin < end:
                yield batch.take(row_numbers(self.rows[begin:end] - first))
            first += len(batch)


class MergedTable(LazyTable):
    """Rows of several tables, each of which is sorted, in the order of all.

    Args:
        schema: the columns.
        parts: where the rows are.
        part_of: of each row, which part it comes from: it is the next one there.
    """

    def __init__(
        self, schema: pa.Schema, parts: Sequence[Chosen], part_of: NDArray[np.int32]
    ) -> None:
        self.schema, self.column_names, self.num_rows = schema, schema.names, len(part_of)
        self._parts, self._part_of = parts, part_of
        self._step = _GROUP_ROWS * -(-_COLUMNS // max(1, len(schema)))

    @classmethod
    def by(cls, names: Sequence[str], schema: pa.Schema, parts: Sequence[Chosen]) -> "MergedTable":
        """Of parts that are sorted by these columns."""
        import pyarrow.compute as pc  # training needs none of it

        batches = chain.from_iterable(part.batches(names) for part in parts)
        keys = pa.Table.from_batches(batches, pa.schema([schema.field(name) for name in names]))
        order = numbers(pc.sort_indices(keys, [(name, "ascending") for name in names]))
        sizes = [len(part.rows) for part in parts]
        return cls(schema, parts, np.repeat(np.arange(len(parts), dtype=np.int32), sizes)[order])

    def select(self, names: Sequence[str]) -> "MergedTable":
        schema = pa.schema([self.schema.field(name) for name in names])
        return MergedTable(schema, self._parts, self._part_of)

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        runs = [_Run(part.batches(self.column_names)) for part in self._parts]
        for start in range(0, self.num_rows, self._step):
            parts = self._part_of[start : start + self._step]
            counts = np.bincount(parts, minlength=len(runs)).tolist()
            found = [batch for run, n in zip(runs, counts, strict=True) for batch in run.take(n)]
            rows = np.empty(len(parts), np.int64)
            rows[np.argsort(parts, kind="stable")] = np.arange(len(parts))
            columns = pa.Table.from_batches(found).take(row_numbers(rows)).columns
            merged = pa.Table.from_arrays(columns, schema=self.schema).combine_chunks()
            yield from merged.to_batches(_GROUP_ROWS)


class _Run:
    """Batches of which so many rows are taken at a time."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches, self._left = batches, pa.record_batch([], pa.schema([]))

    def take(self, count: int) -> Iterator[pa.RecordBatch]:
        """The next ones."""
        while count:
            if not len(self._left):
                self._left = next(self._batches)
            some, self._left = self._left.slice(0, count), self._left.slice(count)
            count -= len(some)
            yield some


class StoredTable(LazyTable):
    """A Parquet file of ours as a table whose columns are read when they are asked for."""

    def __init__(
        self, file: Any, names: Sequence[str], path: Path, form: TableForm, name: str
    ) -> None:
        self._file, self._of = file, (path, form, name)
        self.column_names, self.num_rows = list(names), int(file.metadata.num_rows)
        known = file.schema_arrow
        self.schema = pa.schema([_field(known.field(name)) for name in names])

    def select(self, names: Sequence[str]) -> "StoredTable":
        """Some of its columns.

        Raises:
            IntegrityError: they aren't there.
        """
        path, _, name = self._of
        lacking = next((n for n in names if n not in self.column_names), "")
        undamaged(lacking, path, cure_for(name))
        return StoredTable(self._file, names, *self._of)

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        """Its rows, some at a time.

        Raises:
            IntegrityError: they hold what rows of this form don't.
        """
        asked = {"columns": self.column_names, "use_threads": False}
        schema, (path, form, name) = self.schema, self._of
        with readable(path, name):
            for batch in self._file.iter_batches(_GROUP_ROWS, **asked):
                batch.validate(full=True)
                found = batch if batch.schema.types == schema.types else batch.cast(schema)
                undamaged(form.wrong_column(found), path, cure_for(name))
                yield found


def _field(field: pa.Field) -> pa.Field:
    """Lists of a fixed size, as 0.1.0 began with, as the lists that are written now."""
    is_old = pa.types.is_fixed_size_list(field.type)
    return field.with_type(pa.list_(field.type.value_type)) if is_old else field


def open_table(path: Path, form: TableForm, name: str) -> tuple[StoredTable, Any] | None:
    """A Parquet file as a table that isn't read yet, and its facts: see `read_table`."""
    import pyarrow.parquet as pq  # training needs none of it

    if not check_sealed(path, cure_for(name)):
        return None
    with readable(path, name):
        # Not pq.read_table: that imports pandas, which takes longer than all of the rest.
        file = pq.ParquetFile(pa.OSFile(str(path)))
        schema = file.schema_arrow
    facts = _facts(schema, path, form, name)
    return None if facts is None else (StoredTable(file, schema.names, path, form, name), facts)


def _in_arrows_memory(content: bytes) -> pa.Buffer:
    """A copy that no thread of Arrow's needs Python for.

    A thread of its pool may be the last that lets go of the buffer, after the table has been
    handed over. Were it Python's memory, the thread would have to take the GIL, and if the
    interpreter is on its way out by then, CPython ends the thread, which C++ answers with
    SIGABRT: "terminate called without an active exception".
    """
    buffer = pa.allocate_buffer(len(content))
    with pa.FixedSizeBufferWriter(buffer) as writer:
        writer.write(content)
    return buffer


def _facts(schema: pa.Schema, path: Path, form: TableForm, name: str) -> Facts | None:
    """What a table says of itself; None if it is of another kind or version."""
    text = (schema.metadata or {}).get(_KEY)
    if text is None:
        raise StoreError(f"{path} was not written by eval_ingest; move it away and ingest again")
    known, cure = {"kind": form.kind, "version": form.version}, cure_for(name)
    found = record_of(form.facts, text, path, cure, known)
    if found is not None:
        undamaged(form.missing_column(schema.names), path, cure)
    return found
