"""Tables of ours as files: sealed, and with facts such as a fingerprint in their metadata.

Parquet, but for those that are opened in training: Arrow's own format (`.arrow`) is five times
faster to open and to read.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from eval_ingest.errors import IntegrityError, NewerVersionError, StoreError
from eval_ingest.store.atomic import written_aside
from eval_ingest.store.seal import UNSEALED, check_sealed, cure_for, read_sealed, seal_file

_KEY = b"eval_ingest"
_CHECKSUM = b"eval_ingest.checksum"

_GROUP_ROWS = 1 << 14
"""Rows that are read at a time: what decoding takes beside them is gone before the next ones."""

_LARGE = 1 << 20
"""Tables of more bytes are compressed in Arrow's own format as well."""

_GEO = {
    "version": "1.1.0",
    "primary_column": "geometry",
    "columns": {"geometry": {"encoding": "WKB", "geometry_types": ["Polygon", "MultiPolygon"]}},
}
"""GeoParquet metadata: longitude and latitude (OGC:CRS84, the default)."""


def write_table(path: Path, table: pa.Table, facts: dict[str, Any], geo: bool = False) -> None:
    """Write a table with facts in its schema metadata, sealed, whole or not at all."""
    metadata = {_KEY: json.dumps(facts).encode()}
    if geo:
        metadata[b"geo"] = json.dumps(_GEO).encode()
    metadata[_CHECKSUM] = UNSEALED.encode()  # last, as `store.seal` wants it
    table = table.replace_schema_metadata(metadata)
    with written_aside(path) as temporary:
        if path.suffix == ".arrow":
            packed = pa.ipc.IpcWriteOptions(compression="lz4" if table.nbytes > _LARGE else None)
            with pa.ipc.new_file(temporary, table.schema, options=packed) as writer:
                writer.write_table(table.combine_chunks())
        else:
            import pyarrow.parquet as pq  # training needs none of it

            # for other readers, who don't know of our checksum
            pages = {"compression": "zstd", "version": "2.6", "write_page_checksum": True}
            pq.write_table(table, temporary, row_group_size=_GROUP_ROWS, **pages)
        seal_file(temporary)


def read_table(
    path: Path, kind: str, version: int, name: str
) -> tuple[pa.Table, dict[str, Any]] | None:
    """A table and its facts; None if it isn't there, or is of another kind or version.

    Args:
        path: the file.
        kind: in its facts.
        version: in its facts.
        name: the dataset, for messages.

    Raises:
        IntegrityError: it is damaged.
        NewerVersionError: a newer eval_ingest has written it.
        StoreError: it can't be read.
    """
    if path.suffix != ".arrow":
        found = open_table(path, kind, version, name)
        return None if found is None else (found[0].whole(), found[1])
    content = read_sealed(path, cure_for(name))
    if content is None:
        return None
    with readable(path, name):
        file = pa.ipc.open_file(_in_arrows_memory(content))
    facts = _facts(file.schema, path)
    if not _is(facts, path, kind, version, name):
        return None
    with readable(path, name):
        table = file.read_all()
        table.validate()  # buffers are as large as they are said to be
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


class StoredTable:
    """A Parquet file of ours as a table whose columns are read when they are asked for.

    It has what an Arrow table has; but what isn't below reads all of it.
    """

    def __init__(self, file: Any, names: Sequence[str]) -> None:
        self._file = file
        self.column_names = list(names)

    @property
    def schema(self) -> pa.Schema:
        """Of its columns."""
        known = self._file.schema_arrow
        return pa.schema([_field(known.field(name)) for name in self.column_names])

    @property
    def num_rows(self) -> int:
        """Of each column."""
        return int(self._file.metadata.num_rows)

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        """A column; KeyError if there is none."""
        if name not in self.column_names:
            raise KeyError(name)
        return self.select([name]).whole()[name]

    def select(self, names: Sequence[str]) -> "StoredTable":
        """Some of its columns."""
        return StoredTable(self._file, names)

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        """Its rows, some at a time."""
        asked = {"columns": self.column_names, "use_threads": False}
        schema = self.schema
        for batch in self._file.iter_batches(_GROUP_ROWS, **asked):
            yield batch if batch.schema.types == schema.types else batch.cast(schema)

    def whole(self) -> pa.Table:
        """As an Arrow table."""
        return pa.Table.from_batches(self.to_batches(), self.schema)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole(), name)

    def __reduce__(self) -> tuple[Any, ...]:
        return pa.Table.from_batches, (self.whole().to_batches(), self.schema)


def _field(field: pa.Field) -> pa.Field:
    """Lists of a fixed size, as 0.1.0 began with, as the lists that are written now."""
    is_old = pa.types.is_fixed_size_list(field.type)
    return field.with_type(pa.list_(field.type.value_type)) if is_old else field


def open_table(
    path: Path, kind: str, version: int, name: str
) -> tuple[StoredTable, dict[str, Any]] | None:
    """A Parquet file as a table that isn't read yet, and its facts: see `read_table`."""
    import pyarrow.parquet as pq  # training needs none of it

    if not check_sealed(path, cure_for(name)):
        return None
    with readable(path, name):
        # Not pq.read_table: that imports pandas, which takes longer than all of the rest.
        file = pq.ParquetFile(pa.memory_map(str(path)))
    facts = _facts(file.schema_arrow, path)
    if not _is(facts, path, kind, version, name):
        return None
    return StoredTable(file, file.schema_arrow.names), facts


_FACTS: dict[str, dict[str, type]] = {
    "window_index": {"fingerprint": str, "row_key": str, "source": str, "extra": dict},
    "split_assignment": {"fingerprint": str, "report": dict},
    "shard": {"row_key": str, "arrays": dict},
}
"""What tables of a kind say of themselves."""


def _is(facts: dict[str, Any], path: Path, kind: str, version: int, name: str) -> bool:
    found = facts.get("version")
    if facts.get("kind") == kind and isinstance(found, int) and found > version:
        raise NewerVersionError(path, found, version)
    if (facts.get("kind"), found) != (kind, version):
        return False
    for fact, its_type in _FACTS.get(kind, {}).items():
        if not isinstance(facts.get(fact), its_type):
            raise IntegrityError(f"{path} is damaged at {fact}", cure_for(name))
    return True


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


def _facts(schema: pa.Schema, path: Path) -> dict[str, Any]:
    text = (schema.metadata or {}).get(_KEY)
    if text is None:
        raise StoreError(f"{path} was not written by eval_ingest; move it away and ingest again")
    try:
        facts: dict[str, Any] = dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise StoreError(f"{path} says of itself what no eval_ingest does; ingest again") from error
    return facts
