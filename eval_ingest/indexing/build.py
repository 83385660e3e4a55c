"""The index of a source: which windows have to be read, and the rows of all."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from eval_ingest.core.fingerprint import fingerprint
from eval_ingest.core.index import INDEX_VERSION, WindowIndex, row_key
from eval_ingest.core.resolved import ResolvedConfig
from eval_ingest.engine import Progress, executor, map_ordered
from eval_ingest.indexing.apart import Apart
from eval_ingest.indexing.packer import Commits, Packer, pack_rows
from eval_ingest.indexing.partial import PartialRows, PartTable
from eval_ingest.indexing.rows import add_geometry
from eval_ingest.indexing.wanted import WindowFilter, enough, list_windows, wanted_groups
from eval_ingest.indexing.work import IndexTask
from eval_ingest.job import Job
from eval_ingest.sources.base import Listed
from eval_ingest.sources.local import LocalSource
from eval_ingest.store.index_file import read_index, write_index
from eval_ingest.store.seal import unless_damaged
from eval_ingest.store.shards import PackRow

SHARD_WINDOWS = 64
"""Windows per task: enough to drown its overhead, few enough to balance and to show progress."""

_JOINED = 32
"""Tables of shards that are put together: each by itself takes twice the room of its rows."""


def index_source(job: Job) -> WindowIndex:
    """The index of a source as it is now, from the last one and from what is new or has changed.

    Valid windows are packed on the way, unless only some of them will be in a split, so that the
    copy stage needs not decode them again.

    Raises:
        SourceError: the source can't be read.
        StoreError: the eval root can't be written.
    """
    old = unless_damaged(lambda: read_index(job.layout.window_index))
    task = _task(job)
    parts = partial_rows(job)
    stopped = parts.read()
    known = old.table if old is not None and old.row_key == job.row_key else None
    if known is None and not stopped and isinstance(job.source, LocalSource):
        # Nothing to compare with: the workers may list each window's files as they read it.
        names = enough(job, list(job.source.names(wanted_groups(job))))
        return _build(job, task, IndexWork.of(names), [], parts)
    listed = enough(job, list_windows(job))
    if old is not None and known is not None:
        now = _index_fingerprint(job, listed, known, task.judged_by)
        if old.fingerprint == now:
            parts.clear()  # a run was stopped when it had just written the index
            return old
    work = IndexWork.of(listed, known, stopped, task.judged_by, task.window_filter.wanted_rows)
    return _build(job, task, work, listed, parts)


def _task(job: Job) -> IndexTask:
    return IndexTask(
        job.source,
        job.config,
        WindowFilter.of(job.spec),
        copy_mode=job.spec.copy_mode,
        window_bytes=job.settings.window_mib << 20,
    )


def finish_index(job: Job, index: WindowIndex) -> None:
    """Write the index and drop the partial rows that a stopped run would have gone on from."""
    write_index(job.layout.window_index, index)
    partial_rows(job).clear()


def partial_rows(job: Job) -> PartialRows:
    """What stopped runs have left of the index."""
    return PartialRows(job.layout.path / ".window_index", job.row_key)


@dataclass(frozen=True)
class IndexWork:
    """Which windows have to be read, and which rows of earlier runs are still right."""

    new: list[Listed]
    """Windows that the last index doesn't have, in the order in which they are read and packed."""
    known: list[pa.Table] = field(default_factory=list)
    """Rows of the last index."""
    stopped: list[tuple[PartTable, list[int]]] = field(default_factory=list)
    """Rows of new windows that a stopped run has finished."""

    @classmethod
    def of(
        cls,
        windows: Sequence[Listed],
        known: pa.Table | None = None,
        stopped: Sequence[PartTable] = (),
        judged_by: str = "",
        takes: Callable[[pa.Table], list[int]] | None = None,
    ) -> "IndexWork":
        """Compare windows, as they are now, with the last index and with what was left undone.

        Windows that were found invalid by anything but `judged_by` are read again, and so are those
        that `takes` doesn't name: tags or dates that leave them out were given since.
        """
        rows = {} if known is None else _judged_rows(known, judged_by, takes)
        same = sorted(rows[w.spelled] for w in windows if w.spelled in rows)
        new = sorted((w for w in windows if w.spelled not in rows), key=_reading_order)
        left = {window.spelled for window in new}
        finished = []
        for part in stopped:
            rows_here = _judged_rows(part.table, judged_by, takes).items()
            here = {w: k for w, k in rows_here if w in left}
            left -= here.keys()
            finished.append((part, sorted(here.values())))
        return cls(new, [] if known is None else [_take(known, same)], finished)

    @property
    def kept(self) -> list[pa.Table]:
        """All rows that are still right."""
        return [*self.known, *(_take(part.table, rows) for part, rows in self.stopped)]

    @property
    def to_read(self) -> list[tuple[int, Listed]]:
        """The windows without a row, each with its place among the new ones."""
        done = {w for part, rows in self.stopped for w in _rows_by_window(_take(part.table, rows))}
        return [(place, w) for place, w in enumerate(self.new) if w.spelled not in done]

    def packed(self, packer: Packer, config: ResolvedConfig) -> list[tuple[int, PackRow]]:
        """What a stopped run has packed, with its places."""
        return [
            item
            for part, rows in self.stopped
            if part.packing == packer.key
            for item in part.packed(rows, config)
        ]


def _take(table: pa.Table, rows: Sequence[int]) -> pa.Table:
    return table.take(pa.array(rows, pa.int64()))  # an empty list would be of type null


def _rows_by_window(table: pa.Table) -> dict[Listed, int]:
    columns = (table[name].to_pylist() for name in ("group", "name", "source_digest"))
    return {window: row for row, window in enumerate(map(Listed, *columns))}


def _judged_rows(
    table: pa.Table, judged_by: str, takes: Callable[[pa.Table], list[int]] | None
) -> dict[Listed, int]:
    """The rows by window that need not be looked at again."""
    right = pc.or_kleene(
        pc.equal(table["status"], "valid"), pc.equal(table["judged_by"], judged_by)
    ).to_pylist()
    wanted = set(range(table.num_rows) if takes is None else takes(table))
    rows = _rows_by_window(table).items()
    return {window: row for window, row in rows if right[row] and row in wanted}


def _reading_order(item: Listed) -> tuple[bytes, str]:
    """By the SHA-256 of the name: the order of splits, so that packs are read from front to end."""
    return hashlib.sha256(os.fsencode(item.name)).digest(), item.group


def _index_fingerprint(job: Job, windows: list[Listed], table: pa.Table, judged_by: str) -> str:
    """Of every window's group, name and digest, and of what decides over rows.

    Who judged counts where a window was found invalid: another might find it valid.
    """
    invalid = pc.any(pc.not_equal(table["status"], "valid")).as_py()
    return fingerprint(
        "window_index",
        INDEX_VERSION,
        job.row_key,
        job.spec.tags,
        job.spec.temporal_range,
        sorted(window.spelled for window in windows),
        judged_by if invalid else "",
    )


def _build(
    job: Job, task: IndexTask, work: IndexWork, listed: list[Listed], parts: PartialRows
) -> WindowIndex:
    """Read the windows that have to be read, and add them to the rows that are there."""
    to_read = work.to_read
    if to_read:
        groups = sorted({window.group for _, window in to_read})
        job.source.ensure_listed(groups, job.config.layer_names)
    packer = commits = None
    try:
        with executor(job.settings, len(to_read)) as pool:
            if job.spec.max_samples is None and task.copy_mode != "index":
                packer = make_packer(
                    task, work.new, work.known, parts.packing, job.store.shard_bytes, pool
                )
            if packer is not None:
                commits = Commits(packer, job.store, job.row_key, work.packed(packer, job.config))
                job.store.require_room(0, len(to_read) * packer.row_bytes)
            parts.packer = packer
            tables, filtered_out = index_windows(
                replace(task, packer=packer), to_read, pool, job.settings.workers, parts, commits,
                job.progress,
            )  # fmt: skip
    finally:
        parts.flush()  # kept until the index itself is on disk: see finish_index
    if commits is not None:
        commits.add([], before=None)
    empty = WindowIndex.empty(job.config, "", job.row_key).table
    table = pa.concat_tables([empty, *work.kept, *tables])
    tables.clear()  # as many bytes again, as soon as they are sorted
    table = table.sort_by([("group", "ascending"), ("name", "ascending")])
    table = add_geometry(table)
    if not listed:
        columns = (table[name].to_pylist() for name in ("group", "name", "source_digest"))
        listed = [*map(Listed, *columns), *filtered_out]
    extra = {"n_filtered_out": len(filtered_out), "n_read": len(work.new)}
    wanted = _index_fingerprint(job, listed, table, task.judged_by)
    return WindowIndex(table, wanted, job.row_key, job.origin, extra)


def make_packer(
    task: IndexTask,
    items: Sequence[Listed],
    known: Sequence[pa.Table],
    folder: Path,
    shard_bytes: int,
    pool: Executor,
    look_at: int = 16,
) -> Packer | None:
    """A packer for these windows in these places, shaped like the first valid one.

    What a stopped run has packed of the same windows is kept. The first valid window is looked
    for in the rows that are known already, then by reading; None if none is near.
    """
    windows = [(item.group, item.name) for item in items]
    key = fingerprint("packing", row_key(task.config), shard_bytes, windows)
    packer = Packer.resume(folder, task.config, key, shard_bytes)
    if packer is not None:
        return packer
    for table in known:
        valid = table.filter(pc.equal(table["status"], "valid"))
        if valid.num_rows and items:
            [like] = pack_rows(valid, [0], task.config)
            return Packer.create(folder, task.config, len(items), like, key, shard_bytes)
    for item in items[:look_at]:
        # One by one: most often, the first will do. By a worker, which it may end.
        [found] = map_ordered(pool, task.shape_of, [item], 1, _none_of)
        if found is not None:
            return Packer.create(folder, task.config, len(items), found, key, shard_bytes)
    return None


def _none_of(lost: list[Listed]) -> list[PackRow | None]:
    """What ended its worker has no shape; it is judged in its turn."""
    return [None] * len(lost)


def index_windows(
    task: IndexTask,
    items: Sequence[tuple[int, Listed]],
    executor: Executor,
    workers: int,
    parts: PartialRows,
    commits: Commits | None,
    progress: Progress,
) -> tuple[list[pa.Table], list[Listed]]:
    """Read, decode and judge windows, each given with its place among the samples.

    The result is one row each, in tables of some windows, and the windows that the filter doesn't
    want, which get no row. What is done is kept by `parts`, so that a stopped run goes on where it
    was; `commits` publishes shards of samples when all their windows are read.
    """
    tables: list[pa.Table] = []
    filtered_out: list[Listed] = []
    shards = (items[k : k + SHARD_WINDOWS] for k in range(0, len(items), SHARD_WINDOWS))
    results = map_ordered(executor, task, shards, 2 * workers, Apart(task))
    for number, shard in enumerate(results, 1):
        parts.add(shard)
        tables.append(shard.table)
        filtered_out += shard.filtered_out
        if number % _JOINED == 0:
            tables[-_JOINED:] = [pa.concat_tables(tables[-_JOINED:]).combine_chunks()]
        if commits is not None:
            following = number * SHARD_WINDOWS
            place = items[following][0] if following < len(items) else None
            commits.add(shard.packed, before=place)
        progress("windows read", min(number * SHARD_WINDOWS, len(items)), len(items))
    return tables, filtered_out
