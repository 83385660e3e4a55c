"""The index of a source: which windows have to be read, and the rows of all."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eval_ingest.core.columns import is_text
from eval_ingest.core.fingerprint import fingerprint
from eval_ingest.core.index import INDEX_VERSION, WindowIndex, index_schema
from eval_ingest.core.keyed import KEY, RowsByKey
from eval_ingest.engine import Progress, executor, map_ordered
from eval_ingest.indexing.apart import Apart
from eval_ingest.indexing.filters import WindowFilter
from eval_ingest.indexing.listed import ToRead, WindowList
from eval_ingest.indexing.packer import Packer, fresh_packer, pack_rows, resumed_packer
from eval_ingest.indexing.partial import ARRIVED, PartialRows, Rows, right_rows
from eval_ingest.indexing.wanted import enough, list_windows, wanted_groups
from eval_ingest.indexing.work import CopyAhead, IndexedShard, IndexTask
from eval_ingest.job import Job
from eval_ingest.sources.base import Listed
from eval_ingest.store.ahead import WindowsAhead
from eval_ingest.store.index_file import read_index, write_index
from eval_ingest.store.manifest import CopiedWindow
from eval_ingest.store.room import has_room
from eval_ingest.store.seal import unless_damaged
from eval_ingest.store.shards import PackRow
from eval_ingest.store.tables import LazyTable, MergedTable

SHARD_WINDOWS = 64
"""Windows per task: enough to drown its overhead, few enough to balance and to show progress."""

_WAITING = 4
"""So many times more where a worker waits for a task's first window, and for its last."""

_ROOM_TO_COPY, _ROOM_OF_FILES = 3, 256 << 10
"""Where windows are copied before all are known, so many bytes are free for each byte of a sample,
for the pack and the copy, and so many for each window's files and folders."""

_LOOK_AT = 16
"""Windows of which the first valid one is looked for."""

_FEW = 1 << 12
"""Rows that are objects at a time."""

Publish = Callable[[Iterable[tuple[int, PackRow]], int | None], object]
"""Told what was packed, with its places, and before which place all is done; None: all is."""


def index_source(job: Job, copy_ahead: CopyAhead | None = None) -> WindowIndex:
    """The index of a source as it is now, from the last one and from what is new or has changed.

    Valid windows are packed on the way, unless only some of them will be in a split, so that the
    copy stage needs not decode them again, and copied, where that is told how: it needs not read
    them again.

    Raises:
        SourceError: the source can't be read.
        StoreError: the eval root can't be written.
    """
    old = unless_damaged(lambda: read_index(job.layout.window_index))
    task = replace(index_task(job), copy_ahead=copy_ahead)
    parts = partial_rows(job)
    stopped = parts.read()
    known = known_rows(job, old)
    groups = wanted_groups(job)
    names = job.source.names(groups) if known is None and not stopped else None
    if names is not None:
        # Nothing to compare with: the workers may list each window's files as they read it.
        return _build(job, task, IndexWork.of(enough(job, WindowList(names))), None, parts)
    listed = enough(job, list_windows(job, groups))
    if old is not None and known is not None:
        now = _index_fingerprint(job, listed.table, known, task.judged_by)
        if old.fingerprint == now:
            parts.clear()  # a run was stopped when it had just written the index
            return old
    right = partial(_still_right, task)
    work = IndexWork.of(listed, known, stopped, right, parts.read_left_out())
    return _build(job, task, work, listed.table, parts)


def known_rows(job: Job, old: WindowIndex | None) -> LazyTable | None:
    """The rows of the last index, if they hold what those of this one would."""
    if old is None or old.row_key != job.row_key:
        return None
    names, path = index_schema(job.config).names, job.layout.window_index
    return unless_damaged(lambda: right_rows(old.table, names, path, job.layout.name))


def index_task(job: Job) -> IndexTask:
    """What a worker does with some windows."""
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
    columns = index_schema(job.config).names
    wanted = fingerprint("wanted", job.spec.tags, job.spec.temporal_range)
    return PartialRows(job.layout.path / ".window_index", job.row_key, columns, wanted)


def _all_right(table: pa.Table) -> NDArray[np.bool_]:
    return np.ones(table.num_rows, bool)


@dataclass(frozen=True)
class IndexWork:
    """Which windows have to be read, and which rows of earlier runs are still right."""

    windows: WindowList
    """All of them."""
    new: NDArray[np.int64]
    """Those that the last index doesn't have, in the order in which they are read and packed."""
    to_read: ToRead
    """Those that nothing is known of, each with its place among the new ones."""
    kept: list[Rows]
    """Rows of the last index, if there is one, then of what stopped runs have done."""
    n_arrived: int = 0
    """Windows that were read as they came off an archive's stream."""
    n_left_out: int = 0
    """Windows that stopped runs have left out, by their filter."""

    @classmethod
    def of(
        cls,
        windows: WindowList,
        known: LazyTable | None = None,
        stopped: Sequence[Rows] = (),
        still_right: Callable[[pa.Table], NDArray[np.bool_]] = _all_right,
        left_out: Sequence[Rows] = (),
    ) -> "IndexWork":
        """Compare windows, as they are now, with the last index and with what was left undone.

        Args:
            windows: all of them.
            known: the last index.
            stopped: what stopped runs have done of another.
            still_right: tells of each row whether it need not be looked at again.
            left_out: windows that they have found, and that aren't wanted.
        """
        listed = RowsByKey(windows.table, KEY)
        left = np.ones(len(windows), bool)
        kept: list[Rows] = []
        unwanted: list[Rows] = []

        def keep(
            rows: Rows,
            kept: list[Rows] = kept,
            right: Callable[[pa.Table], NDArray[np.bool_]] = still_right,
        ) -> None:
            found = listed.find(rows.table)
            here = np.flatnonzero((found >= 0) & right(rows.table))
            here = here[left[found[here]]]
            # The last of a window's rows counts.
            _, last = np.unique(found[here][::-1], return_index=True)
            here = np.sort(here[len(here) - 1 - last])
            left[found[here]] = False
            kept.append(replace(rows, rows=here))

        if known is not None:
            keep(Rows.of(known))
        before = int(left.sum())

        def go_on(arrived: bool) -> None:
            for rows in stopped:
                if (rows.packing == ARRIVED) is arrived:
                    keep(rows)
            for rows in left_out:
                if (rows.packing == ARRIVED) is arrived:
                    keep(rows, unwanted, _all_right)

        go_on(arrived=True)
        new = windows.reading_order(np.flatnonzero(left))
        go_on(arrived=False)
        to_read = ToRead(windows, new, np.flatnonzero(left[new]))
        n_left_out = sum(len(rows.rows) for rows in unwanted)
        return cls(windows, new, to_read, kept, before - len(new), n_left_out)


def _still_right(task: IndexTask, table: pa.Table) -> NDArray[np.bool_]:
    """False for windows that are judged again.

    Tags or dates that leave them out were given since, or they were found invalid by anything but
    what judges now.
    """
    judged = is_text(table["status"], "valid") | is_text(table["judged_by"], task.judged_by)
    wanted = np.zeros(table.num_rows, bool)
    wanted[task.window_filter.wanted_rows(table)] = True
    return judged & wanted


def _index_fingerprint(job: Job, keys: pa.Table, table: pa.Table, judged_by: str) -> str:
    """Of every window's group, name and digest, and of what decides over rows.

    Who judged counts where a window was found invalid: another might find it valid.
    """
    return fingerprint(
        "window_index",
        INDEX_VERSION,
        job.row_key,
        job.spec.tags,
        job.spec.temporal_range,
        _rows_in_order(keys),
        "" if is_text(table["status"], "valid").all() else judged_by,
    )


def _rows_in_order(keys: pa.Table) -> Iterator[tuple[Any, ...]]:
    import pyarrow.compute as pc

    order = pc.sort_indices(keys, [(name, "ascending") for name in KEY])
    for start in range(0, len(order), _FEW):
        columns = keys.take(order[start : start + _FEW]).columns
        yield from zip(*(column.to_pylist() for column in columns), strict=True)


def _build(
    job: Job, task: IndexTask, work: IndexWork, listed: pa.Table | None, parts: PartialRows
) -> WindowIndex:
    """Read the windows that have to be read, and add them to the rows that are there.

    `listed` are the keys of all windows, if their files were looked at before.
    """
    to_read = work.to_read
    if to_read:
        groups = sorted({window.group for _, window in to_read})
        windows = ((window.group, window.name) for _, window in to_read)
        job.source.ensure_listed(groups, job.config.layer_names, windows)
    publish: Publish = lambda packed, before: None  # noqa: E731  nothing is packed
    try:
        with executor(job.settings, len(to_read)) as pool:
            parts.packer = packer = _packer(job, task, work, parts.packing, pool)
            if packer is not None:
                publish = partial(packer.publish, job.store, job.row_key)
                done = (rows.packed(packer.key, job.config) for rows in work.kept)
                publish(chain.from_iterable(done), 0)
                job.store.require_room(0, packer.n_bytes * len(to_read) // len(work.new))
            if packer is None or not _has_room_to_copy(job, packer, len(work.new)):
                task = replace(task, copy_ahead=None)
            filtered_out = index_windows(
                replace(task, packer=packer), to_read, pool, job.settings.workers, parts, publish,
                job.progress, WindowsAhead(job.layout.ahead).note,
            )  # fmt: skip
    finally:
        parts.flush()  # kept until the index itself is on disk: see finish_index
    publish([], None)
    table = MergedTable.by(KEY[:2], index_schema(job.config), [*work.kept, *parts.written])
    if listed is None:
        listed = pa.concat_tables([table.select(KEY).whole(), WindowList(filtered_out).table])
    n_filtered_out = work.n_left_out + len(filtered_out)
    extra = {"n_filtered_out": n_filtered_out, "n_read": work.n_arrived + len(work.new)}
    wanted = _index_fingerprint(job, listed, table, task.judged_by)
    return WindowIndex(table, wanted, job.row_key, job.origin, extra)


def _has_room_to_copy(job: Job, packer: Packer, windows: int) -> bool:
    needed = _ROOM_TO_COPY * packer.n_bytes + _ROOM_OF_FILES * windows
    return has_room(job.layout.path, needed)


def _packer(
    job: Job, task: IndexTask, work: IndexWork, folder: Path, pool: Executor
) -> Packer | None:
    """A packer for the windows that are new, all planned like the first valid one.

    What a stopped run has packed of the same windows is kept. None if only some of the windows
    will be in a split, if samples stay where they are, or if no valid window is near.
    """
    if job.spec.max_samples is not None or task.copy_mode == "index" or not len(work.new):
        return None
    most = job.store.shard_bytes
    windows = ((window.group, window.name) for window in work.windows.take(work.new))
    key = fingerprint("packing", job.row_key, most, windows)
    packer = resumed_packer(folder, task.config, len(work.new), key, most)
    if packer is not None:
        return packer
    like = _first_shape(task, work, pool)
    if like is None:
        return None
    return fresh_packer(folder, task.config, len(work.new), like, key, most)


def _first_shape(task: IndexTask, work: IndexWork, pool: Executor) -> PackRow | None:
    """The shape of a valid window: one that is known, else one of the first that are new."""
    for rows in work.kept:
        valid = rows.rows[is_text(rows.table["status"], "valid")[rows.rows]]
        if len(valid):
            return pack_rows(rows.table, valid[:1].tolist(), task.config)[0]
    for window in work.windows.take(work.new[:_LOOK_AT]):
        # One by one: most often, the first will do. By a worker, which it may end; it is judged
        # in its turn.
        (found,) = map_ordered(pool, task.shape_of, [window], 1, no_shapes)
        if found is not None:
            return found
    return None


def no_shapes(lost: Sequence[object]) -> list[PackRow | None]:
    """Of what a worker was lost at nothing is known."""
    return [None] * len(lost)


def index_windows(
    task: IndexTask,
    items: Sequence[tuple[int, Listed]],
    executor: Executor,
    workers: int,
    parts: PartialRows,
    publish: Publish,
    progress: Progress,
    note: Callable[[Sequence[CopiedWindow]], None] = lambda _: None,
) -> list[Listed]:
    """Read, decode and judge windows, each given with its place among the samples.

    `parts` takes one row each, so that a stopped run goes on where it was; `publish` is told what
    was packed, and the place that comes next, `note` what was copied. The result is the windows
    that the filter doesn't want, which get no row.
    """
    filtered_out: list[Listed] = []
    ends = deque[int]()
    most = SHARD_WINDOWS

    def shards() -> Iterator[Sequence[tuple[int, Listed]]]:
        end = 0
        while (left := len(items) - end) > 0:
            end += max(SHARD_WINDOWS, min(most, left // (2 * workers)))
            ends.append(min(end, len(items)))
            yield items[len(items) - left : end]

    apart = Apart(task, IndexedShard.joined, task.name_of, task.crashed, task.window_bytes)
    results = map_ordered(executor, task, shards(), 2 * workers, apart)
    for shard in results:
        parts.add(shard)
        note(shard.copied)
        filtered_out += shard.filtered_out
        most = _WAITING * SHARD_WINDOWS if shard.waited else SHARD_WINDOWS
        done = ends.popleft()
        publish(shard.packed, items[done][0] if done < len(items) else None)
        progress("windows read", done, len(items))
    return filtered_out
