"""Tables of ours as files: sealed, and with facts such as a fingerprint in their metadata.

Parquet, but for those that are opened in training: Arrow's own format (`.arrow`) is five times
faster to open and to read.
"""

import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from eval_ingest.core.forms import Facts, TableForm
from eval_ingest.errors import IntegrityError, StoreError
from eval_ingest.store.atomic import written_aside
from eval_ingest.store.records import record_of, undamaged
from eval_ingest.store.seal import UNSEALED, check_sealed, cure_for, read_sealed, seal_file

_KEY = b"eval_ingest"
_CHECKSUM = b"eval_ingest.checksum"

_GROUP_ROWS = 1 << 14
"""Rows that are read at a time: what decoding takes beside them is gone before the next ones."""

_SORTED_IN = 8
"""Pieces in which a large table is sorted."""

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
                writer.write_table(table.combine_chunks())
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


class SortedTable(LazyTable):
    """A table whose rows are put in another order when they are asked for.

    Sorted as a whole it would be there twice.
    """

    def __init__(self, table: pa.Table, order: pa.Array) -> None:
        self._table, self._order = table, order
        self.column_names, self.schema = table.column_names, table.schema
        self.num_rows = table.num_rows

    def select(self, names: Sequence[str]) -> "SortedTable":
        return SortedTable(self._table.select(names), self._order)

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        # Each time, Arrow puts a column that is in pieces together.
        step = max(_GROUP_ROWS, -(-self.num_rows // _SORTED_IN // _GROUP_ROWS) * _GROUP_ROWS)
        for start in range(0, self.num_rows, step):
            part = self._table.take(self._order.slice(start, step))
            yield from part.combine_chunks().to_batches(_GROUP_ROWS)


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
        file = pq.ParquetFile(pa.memory_map(str(path)))
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
