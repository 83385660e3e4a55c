"""Parquet files of ours: sealed, and with facts such as a fingerprint in their metadata."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eval_ingest.errors import IntegrityError, NewerVersionError, StoreError
from eval_ingest.store.atomic import written_aside
from eval_ingest.store.seal import UNSEALED, cure_for, read_sealed, seal_file

_KEY = b"eval_ingest"
_CHECKSUM = b"eval_ingest.checksum"

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
    with written_aside(path) as temporary:
        pq.write_table(
            table.replace_schema_metadata(metadata),
            temporary,
            compression="zstd",
            version="2.6",
            write_page_checksum=True,  # for other readers, who don't know of ours
        )
        seal_file(temporary)


def read_facts(path: Path, name: str) -> dict[str, Any] | None:
    """The facts alone, without decoding the table; None if there is no such file.

    Raises:
        IntegrityError: it is damaged; the message says what to do about the dataset `name`.
        StoreError: it can't be read.
    """
    with _opened(path, name) as file:
        return None if file is None else _facts(file, path)


def read_table(
    path: Path, kind: str, version: int, name: str, use_threads: bool = True
) -> tuple[pa.Table, dict[str, Any]] | None:
    """A table and its facts; None if it isn't there, or is of another kind or version.

    Args:
        path: the file.
        kind: in its facts.
        version: in its facts.
        name: the dataset, for messages.
        use_threads: worth it where there is much to decode.

    Raises:
        IntegrityError: it is damaged.
        NewerVersionError: a newer eval_ingest has written it.
        StoreError: it can't be read.
    """
    with _opened(path, name) as file:
        if file is None:
            return None
        facts = _facts(file, path)
        found = facts.get("version")
        if facts.get("kind") == kind and isinstance(found, int) and found > version:
            raise NewerVersionError(path, found, version)
        if (facts.get("kind"), found) != (kind, version):
            return None
        return file.read(use_threads=use_threads), facts


@contextlib.contextmanager
def _opened(path: Path, name: str) -> Iterator[pq.ParquetFile | None]:
    content = read_sealed(path, cure_for(name))
    if content is None:
        yield None
        return
    try:
        # Not pq.read_table: that imports pandas, which takes longer than all of the rest.
        file = pq.ParquetFile(pa.BufferReader(_in_arrows_memory(content)))
    except MemoryError:  # Arrow's own is an ArrowException too, and nothing is wrong with the file
        raise
    except pa.ArrowException as error:
        raise IntegrityError(f"{path} is no Parquet file ({error})", cure_for(name)) from error
    with file:
        yield file


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


def _facts(file: pq.ParquetFile, path: Path) -> dict[str, Any]:
    text = (file.schema_arrow.metadata or {}).get(_KEY)
    if text is None:
        raise StoreError(f"{path} was not written by eval_ingest; move it away and ingest again")
    facts: dict[str, Any] = json.loads(text)
    return facts
