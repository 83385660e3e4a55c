"""Is a dataset still what was ingested? What was written, and where nothing was, the source."""

from collections.abc import Iterator

import pyarrow as pa

from eval_ingest.core.entry import Metadata
from eval_ingest.core.index import WindowIndex
from eval_ingest.core.splits import SplitAssignment
from eval_ingest.engine import Progress
from eval_ingest.errors import EvalIngestError
from eval_ingest.store.layout import EvalRoot
from eval_ingest.store.outcomes import read_outcome
from eval_ingest.store.registry import require_metadata
from eval_ingest.store.verify import Verified, verify
from eval_ingest.studio.source import open_source

_TOLD = 20
"""Windows that are told one by one."""


def verify_dataset(root: EvalRoot, name: str, progress: Progress) -> Verified:
    """Read everything back and compare it with what was recorded.

    Raises:
        UnknownDatasetError: there is no such dataset.
        StoreError: the eval root can't be read.
    """
    metadata = require_metadata(root, name)
    layout = root.dataset(name)
    found = verify(layout, metadata, progress)
    if metadata.spec.copy_mode != "index":
        return found
    index, splits = read_outcome(layout, "window_index"), read_outcome(layout, "split_assignment")
    if index is None or splits is None:
        missing = "window_index" if index is None else "split_assignment"
        return Verified(found.checked, [*found.problems, f"{missing}.parquet can't be read"])
    try:
        problems = list(_changed(metadata, index, splits, progress))
    except EvalIngestError as error:
        return Verified(found.checked, [*found.problems, str(error)])
    if len(problems) > _TOLD:
        problems = [*problems[:_TOLD], f"and {len(problems) - _TOLD} more windows"]
    checked = f"{found.checked}; {len(splits.used)} windows of {metadata.source} compared"
    return Verified(checked, [*found.problems, *problems])


def _changed(
    metadata: Metadata, index: WindowIndex, splits: SplitAssignment, progress: Progress
) -> Iterator[str]:
    """Windows of the splits whose files aren't those that were indexed."""
    used = index.table.take(pa.array(splits.used))
    names = (used[name].to_pylist() for name in ("group", "name", "source_digest"))
    expected = {(group, name): digest for group, name, digest in zip(*names, strict=True)}
    groups = sorted({group for group, _ in expected})
    total = len(expected)
    source = open_source(metadata.source)
    for window in source.windows(groups, metadata.config.layer_names):
        digest = expected.pop((window.group, window.name), None)
        if digest not in (None, window.digest):
            yield f"{window.key} has changed since it was indexed"
        progress("windows compared", total - len(expected), total)
    yield from (f"{group}/{name} is not in the source any more" for group, name in expected)
