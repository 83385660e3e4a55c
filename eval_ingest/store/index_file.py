"""The window index and the split assignment as Parquet files that carry their fingerprint."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eval_ingest.core.index import INDEX_VERSION, WindowIndex
from eval_ingest.core.splits import SPLITS_VERSION, SplitAssignment
from eval_ingest.errors import StoreError
from eval_ingest.store.atomic import store_error, written_aside

_KEY = b"eval_ingest"

_GEO = {
    "version": "1.1.0",
    "primary_column": "geometry",
    "columns": {"geometry": {"encoding": "WKB", "geometry_types": ["Polygon"]}},
}
"""GeoParquet metadata: longitude and latitude (OGC:CRS84, the default)."""


def write_index(path: Path, index: WindowIndex) -> None:
    """Write the window index as GeoParquet 1.1."""
    facts = {
        "kind": "window_index",
        "version": INDEX_VERSION,
        "fingerprint": index.fingerprint,
        "row_key": index.row_key,
        "source": index.source,
        "extra": dict(index.extra),
    }
    write_table(path, index.table, facts, geo=True)


def read_index(path: Path) -> WindowIndex | None:
    """The window index, or None if there is none of this version."""
    found = read_table(path, "window_index", INDEX_VERSION)
    if found is None:
        return None
    table, facts = found
    return WindowIndex(
        table, facts["fingerprint"], facts["row_key"], facts["source"], facts["extra"]
    )


def write_splits(path: Path, splits: SplitAssignment) -> None:
    """Write the split assignment."""
    facts = {
        "kind": "split_assignment",
        "version": SPLITS_VERSION,
        "fingerprint": splits.fingerprint,
        "report": splits.report,
    }
    write_table(path, splits.table, facts)


def read_splits(path: Path) -> SplitAssignment | None:
    """The split assignment, or None if there is none of this version."""
    found = read_table(path, "split_assignment", SPLITS_VERSION)
    if found is None:
        return None
    table, facts = found
    return SplitAssignment(table, facts["fingerprint"], facts["report"])


def write_table(path: Path, table: pa.Table, facts: dict[str, Any], geo: bool = False) -> None:
    """Write a table with facts in its schema metadata, whole or not at all."""
    metadata = {_KEY: json.dumps(facts).encode()}
    if geo:
        metadata[b"geo"] = json.dumps(_GEO).encode()
    with written_aside(path) as temporary:
        pq.write_table(
            table.replace_schema_metadata(metadata), temporary, compression="zstd", version="2.6"
        )


def read_facts(path: Path) -> dict[str, Any] | None:
    """The facts alone, without reading the table; None if there is no such file."""
    try:
        return _facts(pq.read_schema(path), path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise store_error(path, "reading", error) from error
    except pa.ArrowException:
        return None  # a damaged file is as good as none: it is made anew


def read_table(path: Path, kind: str, version: int) -> tuple[pa.Table, dict[str, Any]] | None:
    """A table and its facts; None if it isn't there, is damaged, or is of another version."""
    facts = read_facts(path)
    if facts is None or facts.get("kind") != kind or facts.get("version") != version:
        return None
    try:
        with pq.ParquetFile(path) as file:
            return file.read(), facts
    except OSError as error:
        raise store_error(path, "reading", error) from error
    except pa.ArrowException:
        return None


def _facts(schema: pa.Schema, path: Path) -> dict[str, Any] | None:
    text = (schema.metadata or {}).get(_KEY)
    if text is None:
        raise StoreError(f"{path} was not written by eval_ingest; move it away and ingest again")
    facts: dict[str, Any] = json.loads(text)
    return facts
