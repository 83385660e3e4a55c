"""The window index and the split assignment as Parquet files that carry their fingerprint."""

from pathlib import Path

from eval_ingest.core.index import INDEX_FORM, WindowIndex
from eval_ingest.core.splits import SPLITS_FORM, SplitAssignment
from eval_ingest.store.tables import open_table, read_table, write_table


def write_index(path: Path, index: WindowIndex) -> None:
    """Write the window index as GeoParquet 1.1."""
    extra = dict(index.extra)
    facts = {"fingerprint": index.fingerprint, "row_key": index.row_key, "source": index.source}
    write_table(path, index.table, INDEX_FORM, **facts, extra=extra)


def read_index(path: Path) -> WindowIndex | None:
    """A dataset's window index, or None if there is none of this version.

    Raises:
        IntegrityError: it is damaged.
        StoreError: it can't be read.
    """
    found = open_table(path, INDEX_FORM, path.parent.name)
    if found is None:
        return None
    table, facts = found
    return WindowIndex(table, facts.fingerprint, facts.row_key, facts.source, facts.extra)


def write_splits(path: Path, splits: SplitAssignment) -> None:
    """Write the split assignment."""
    facts = {"fingerprint": splits.fingerprint, "report": splits.report}
    write_table(path, splits.table, SPLITS_FORM, **facts)


def read_splits(path: Path) -> SplitAssignment | None:
    """A dataset's split assignment, or None if there is none of this version.

    Raises:
        IntegrityError: it is damaged.
        StoreError: it can't be read.
    """
    found = read_table(path, SPLITS_FORM, path.parent.name)
    if found is None:
        return None
    table, facts = found
    return SplitAssignment(table, facts.fingerprint, dict(facts.report))
