"""What an ingest would do, from the listing and the windows' metadata alone: nothing is written."""

from typing import Any

from eval_ingest.core.columns import arrow_rows
from eval_ingest.core.index import WindowIndex, index_schema
from eval_ingest.core.splits import assign_splits
from eval_ingest.decoding.limits import fetchable
from eval_ingest.indexing.filters import WindowFilter
from eval_ingest.indexing.rows import add_geometry, metadata_row
from eval_ingest.indexing.wanted import wanted_groups
from eval_ingest.job import Job
from eval_ingest.redaction import redacted


def dry_run(job: Job) -> dict[str, Any]:
    """What an ingest would read and write: counts, splits, bytes and the path."""
    groups = wanted_groups(job)
    wants = WindowFilter.of(job.spec).wants
    rows = []
    listed = n_files = n_bytes = 0
    windows = job.source.windows(groups, job.config.layer_names)
    for files, reader in job.source.readers(windows, whole=False, fetchable=fetchable):
        row = metadata_row(reader, files, wants)
        if row is not None:
            rows.append(row)
        listed, n_files, n_bytes = listed + 1, n_files + len(files.files), n_bytes + files.n_bytes
        job.progress("metadata read", listed, 0)
    schema = index_schema(job.config)
    index = WindowIndex(add_geometry(arrow_rows(rows, schema)), "", "")
    splits = assign_splits(index, job.config, job.spec, "")
    return {
        "name": job.spec.name,
        "source": redacted(job.source.url),
        "groups": groups,
        "n_windows": len(rows),
        "n_filtered_out": listed - len(rows),
        "n_files": n_files,
        "n_bytes": n_bytes,
        "path": job.store.url,
        "counts": splits.counts(),
        "strategy": splits.report["strategy"],
        "left_out": splits.report["left_out"],
    }
