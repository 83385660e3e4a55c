"""Read back what was ingested and compare it with what was recorded."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from eval_ingest.core.entry import Metadata
from eval_ingest.errors import StoreError
from eval_ingest.store.copy import Manifest, Measured
from eval_ingest.store.index_file import read_facts
from eval_ingest.store.layout import DatasetLayout
from eval_ingest.store.rslearn_index import wrong_indexes
from eval_ingest.store.windows import windows_of


class Verified(NamedTuple):
    """What was found."""

    checked: str
    """What was read."""
    problems: list[str]
    """One text per damaged thing."""


def verify(
    layout: DatasetLayout, metadata: Metadata, progress: Callable[[str, int, int], None]
) -> Verified:
    """Compare sizes and checksums of the copied windows, and the shape of every packed file.

    rslearn's own indexes are compared with the windows' splits: rslearn itself wouldn't notice.

    Of a remote dataset the packed files' checksums too; nothing of it is kept on this machine.

    Raises:
        StoreError: a remote root can't be read.
    """
    problems = []
    for split, found in metadata.splits.items():
        layout.root.pull(layout.path / found.index)
        if read_facts(layout.path / found.index) is None:
            problems.append(f"the index of {split}, {found.index}, can't be read")
    for shard in metadata.shards:
        for name, array in shard.arrays.items():
            path = layout.samples / shard.name / f"{name}.npy"
            if layout.remote is not None:
                wrong = layout.remote.check_array(path, array)
                if wrong is not None:
                    problems.append(f"{path.relative_to(layout.path)}: {wrong}")
                continue
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
    layout.root.pull(layout.copy_manifest)
    windows = Manifest(layout).windows
    for done, (key, now) in enumerate(windows_of(layout).measured(windows), start=1):
        window = windows[key]
        recorded = Measured(window.n_files, window.n_bytes, window.checksum)
        if isinstance(now, StoreError):
            problems.append(str(now))
        elif now != recorded:
            problems.append(
                f"windows/{window.group}/{window.name}: {now.n_files} files, {now.n_bytes} "
                f"bytes, checksum {now.checksum}; recorded {recorded.n_files}, "
                f"{recorded.n_bytes}, {recorded.checksum}"
            )
        progress("windows verified", done, len(windows))
    if layout.remote is None:
        splits = {key: window.split for key, window in windows.items()}
        problems += wrong_indexes(layout.path, splits)
    total = sum(window.n_bytes for window in windows.values())
    checked = (
        f"{len(windows)} windows ({total / 2**20:.1f} MiB), "
        f"{len(metadata.shards)} shard{'s' * (len(metadata.shards) != 1)}, "
        f"{len(metadata.splits)} split indexes read"
    )
    return Verified(checked, problems)
