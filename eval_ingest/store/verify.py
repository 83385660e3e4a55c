"""Read back what was ingested and compare it with what was recorded."""

from collections.abc import Callable
from typing import Any

import numpy as np

from eval_ingest.core.entry import Metadata
from eval_ingest.errors import StoreError
from eval_ingest.store.copy import Manifest, measure_copy
from eval_ingest.store.index_file import read_facts
from eval_ingest.store.layout import DatasetLayout


def verify(
    layout: DatasetLayout, metadata: Metadata, progress: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """Compare sizes and checksums of the copied windows, and the shape of every packed file.

    Returns `checked`, a text, and `problems`, one text per damaged thing.
    """
    problems = []
    for split, found in metadata.splits.items():
        if read_facts(layout.path / found.index) is None:
            problems.append(f"the index of {split}, {found.index}, can't be read")
    for shard in metadata.shards:
        for name, array in shard.arrays.items():
            path = layout.samples / shard.name / f"{name}.npy"
            try:
                stored = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                problems.append(f"{path.relative_to(layout.path)}: {error}")
                continue
            # A shard may have room for windows that turned out to be invalid: rows without content.
            rows = len(stored) if array.uniform else shard.rows
            if str(stored.dtype) != array.dtype or rows < shard.rows:
                problems.append(
                    f"{path.relative_to(layout.path)}: {stored.dtype} with {rows} rows, "
                    f"recorded {array.dtype} with at least {shard.rows}"
                )
    windows = list(Manifest(layout).windows.values())
    for done, window in enumerate(windows, start=1):
        folder = layout.windows / window.group / window.name
        try:
            n_files, n_bytes, checksum = measure_copy(folder)
        except StoreError as error:
            problems.append(str(error))
            continue
        if (n_files, n_bytes, checksum) != (window.n_files, window.n_bytes, window.checksum):
            problems.append(
                f"windows/{window.group}/{window.name}: {n_files} files, {n_bytes} bytes, "
                f"CRC32C {checksum}; recorded {window.n_files}, {window.n_bytes}, {window.checksum}"
            )
        progress("windows verified", done, len(windows))
    total = sum(window.n_bytes for window in windows)
    checked = (
        f"{len(windows)} windows ({total / 2**20:.1f} MiB), {len(metadata.shards)} shards, "
        f"{len(metadata.splits)} split indexes read"
    )
    return {"checked": checked, "problems": problems}
