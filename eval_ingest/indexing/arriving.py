"""The windows of an archive, judged and packed as they come off its stream.

Belongs here: the first pass over an archive, in which workers index each window by the bytes that
they have in hand, and write the files of those that the copy will want. Does not: what a row is
(rows.py), and the index itself (build.py). What is done here counts like the work of a run that was
stopped: `index_source` goes on from there. So a window that came in two parts, or lies where it
isn't looked for, is read from the disk then, and an archive whose configuration stands behind its
windows is unpacked and judged by that.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import NamedTuple

from eval_ingest.core.columns import arrow_rows
from eval_ingest.core.index import index_schema
from eval_ingest.engine import MANY_WINDOWS, executor, map_ordered
from eval_ingest.errors import SourceError
from eval_ingest.indexing.apart import Apart
from eval_ingest.indexing.build import index_task, known_rows, no_shapes, partial_rows
from eval_ingest.indexing.packer import Packer, Packers
from eval_ingest.indexing.partial import ARRIVED
from eval_ingest.indexing.wanted import check_storage, groups_named
from eval_ingest.indexing.work import CopyAhead, IndexedShard, IndexTask
from eval_ingest.job import Job, read_again
from eval_ingest.sources.archive import ArchiveSource
from eval_ingest.sources.base import ANYBODY, Listed
from eval_ingest.sources.unpacking import ArrivedWindow, Unpacking
from eval_ingest.store.ahead import WindowsAhead
from eval_ingest.store.index_file import read_index
from eval_ingest.store.seal import unless_damaged
from eval_ingest.store.shards import PackRow
from eval_ingest.store.window_files import write_checked
from eval_ingest.waiting import COPIES, WINDOWS_BEHIND, remove_folder

_TOGETHER, _TOGETHER_BYTES = 32, 4 << 20
"""Windows that a worker gets at a time, and their bytes, if they are more than one."""
_WAITING = 8
"""So many times more of both where the disk keeps workers waiting, ..."""
_WAITING_BYTES = 256 << 20
"""... unless all that are handed out have more than this."""
_MANY_BYTES = 64 << 20
"""Of an archive that is worth starting processes for."""
_FILES = 8
"""That are opened to write a window, at least."""
_SHARD_BYTES = 2 << 30
"""Of a shard: a run that is stopped loses what it has packed of one."""


def index_arriving(job: Job, copy_ahead: CopyAhead | None = None) -> Job:
    """Unpack an archive, if that is left to do, and index its windows on the way where that can be.

    They are copied, too, where that is told how. Gives the job with the configuration that all of
    the archive has.

    Raises:
        SourceError: the archive is damaged, or refused.
        StoreError: the eval root can't be written.
    """
    source = job.source
    if not isinstance(source, ArchiveSource) or source.is_whole:
        return job
    # Elsewhere there are other disks; and a part that is chosen of all windows needs them all.
    apart = "://" in job.settings.engine or job.spec.max_samples is not None
    old = unless_damaged(lambda: read_index(job.layout.window_index))
    if apart or known_rows(job, old) is not None:
        source.complete()
    else:
        check_storage(source, job.config)
        _Arrivals(job, source, copy_ahead).take_all()
    return read_again(job)


class Arriving(NamedTuple):
    """A window on its way to a worker."""

    window: ArrivedWindow
    place: int
    packer: Packer | None
    is_wanted: bool
    """False if nobody asks for its group."""


@dataclass(frozen=True)
class ArrivingTask:
    """What a worker does with some windows; pickled for worker processes."""

    source: ArchiveSource
    index: IndexTask

    def __call__(self, batch: Sequence[Arriving]) -> IndexedShard:
        """Index the windows that are wanted, and write the files of those that are needed again."""
        wanted = [item for item in batch if item.is_wanted]
        if not wanted:
            return IndexedShard(arrow_rows([], index_schema(self.index.config)))
        source = self.source.arrived([item.window for item in wanted])
        task = replace(self.index, source=source, packer=wanted[0].packer)
        shard = task([(item.place, self.listed(item.window)) for item in wanted])
        for _ in COPIES.each(self._write, source.kept, WINDOWS_BEHIND, files=_FILES):
            pass
        return shard

    def shape_of(self, batch: Sequence[Arriving]) -> PackRow | None:
        """The shape of the first of some windows that is valid."""
        found = (self._reading([w]).shape_of(self.listed(w.window)) for w in batch if w.is_wanted)
        return next((row for row in found if row is not None), None)

    def name_of(self, item: Arriving) -> str:
        """What a window is called."""
        return self.source.key_of(item.window)

    def crashed(self, item: Arriving, why: str) -> IndexedShard:
        """See `IndexTask.crashed`."""
        return self._reading([item]).crashed((item.place, self.listed(item.window)), why)

    def _reading(self, batch: Sequence[Arriving]) -> IndexTask:
        return replace(self.index, source=self.source.arrived([item.window for item in batch]))

    def listed(self, window: ArrivedWindow) -> Listed:
        """Its group and name."""
        group, _, name = self.source.key_of(window).partition("/")
        return Listed(group, name)

    def _write(self, window: ArrivedWindow) -> None:
        folder = f"{self.source.url}/windows/{self.source.key_of(window)}"
        files = [(os.fsdecode(path), data, ANYBODY) for path, data in window.files.items()]
        try:
            os.makedirs(folder)
        except FileExistsError:  # a worker that was lost, or a run that was stopped, was at it
            if (error := remove_folder(folder)) is not None:
                raise error from None
            os.makedirs(folder)
        write_checked(folder, files)


class _Arrivals:
    """One pass over an archive."""

    def __init__(self, job: Job, source: ArchiveSource, copy_ahead: CopyAhead | None) -> None:
        self._job, self._source = job, source
        self._parts = partial_rows(job)
        self._parts.packing_key = ARRIVED
        self._groups = groups_named(job.spec, job.config)
        self._task = ArrivingTask(source, replace(index_task(job), copy_ahead=copy_ahead))
        self._ahead = WindowsAhead(job.layout.ahead)
        self._waiting: deque[tuple[Packer | None, list[ArrivedWindow]]] = deque()
        self._packers: Packers | None = None
        self._published: list[str] = []
        self._held: list[ArrivedWindow] = []
        """Windows that the archive's table may not speak of yet."""
        self._is_slow = False

    def take_all(self) -> None:
        """Index what comes, and unpack the rest."""
        remove_folder(self._parts.packing)  # of a run that was stopped
        try:
            self._source.arrive(self._take)
        except SourceError:
            if not self._source.unpacked.exists():  # of a bad archive nothing stays
                self._parts.clear()
                self._ahead.clear()
                samples = self._job.layout.samples
                self._job.store.remove(samples / name for name in self._published)
            raise
        finally:
            self._parts.flush()

    def _take(self, unpacking: Unpacking) -> bool:
        workers = self._job.settings.workers
        many = MANY_WINDOWS if self._source.n_bytes > _MANY_BYTES else 0
        task = self._task
        apart = Apart(
            task, IndexedShard.joined, task.name_of, task.crashed, task.index.window_bytes
        )
        with executor(self._job.settings, many) as pool:
            batches = self._batches(unpacking.windows(self._source.windows_folder), pool)
            for shard in map_ordered(pool, self._task, batches, 2 * workers, apart):
                self._note(unpacking, shard)
        self._publish(unpacking, None)
        self._release(unpacking)
        return False

    def _batches(
        self, windows: Iterable[ArrivedWindow], pool: Executor
    ) -> Iterator[list[Arriving]]:
        for number, some in enumerate(self._together(windows)):
            if number == 0:
                self._plan(some, pool)
            while some:
                wanted = [window for window in some if self._is_wanted(window)]
                packer, places = None, range(len(wanted))
                if self._packers is not None and wanted:
                    packer, places = self._packers.places([self._task.listed(w) for w in wanted])
                left = wanted[len(places) :]
                end = some.index(left[0]) if left else len(some)
                here, some = some[:end], some[end:]
                self._waiting.append((packer, here))
                numbers = iter(places)
                yield [
                    Arriving(window, next(numbers), packer, True)
                    if self._is_wanted(window)
                    else Arriving(window, -1, None, False)
                    for window in here
                ]

    def _together(self, windows: Iterable[ArrivedWindow]) -> Iterator[list[ArrivedWindow]]:
        """Some windows at a time."""
        some: list[ArrivedWindow] = []
        n_bytes, handed_out = 0, 2 * self._job.settings.workers
        for window in windows:
            times = _WAITING if self._is_slow else 1
            most = min(times * _TOGETHER_BYTES, max(_TOGETHER_BYTES, _WAITING_BYTES // handed_out))
            if some and (len(some) >= times * _TOGETHER or n_bytes + window.n_bytes > most):
                yield some
                some, n_bytes = [], 0
            some.append(window)
            n_bytes += window.n_bytes
        if some:
            yield some

    def _plan(self, first: list[ArrivedWindow], pool: Executor) -> None:
        """Plan shards for windows like the first valid one; without one, nothing is packed here."""
        batch = [Arriving(window, 0, None, self._is_wanted(window)) for window in first]
        (like,) = map_ordered(pool, self._task.shape_of, [batch], 1, no_shapes)
        if like is not None:
            most = min(self._job.store.shard_bytes, _SHARD_BYTES)
            self._packers = Packers(self._parts.packing, self._job.config, like, most)

    def _is_wanted(self, window: ArrivedWindow) -> bool:
        group, _, name = self._source.key_of(window).partition("/")
        hidden = group.startswith(".") or name.startswith(".")
        return not hidden and (self._groups is None or group in self._groups)

    def _note(self, unpacking: Unpacking, shard: IndexedShard) -> None:
        packer, windows = self._waiting.popleft()
        if packer is not None:
            self._publish(unpacking, packer)
            packer.note(shard.packed)
        for window in windows:
            window.files.clear()
        self._held += windows
        self._ahead.note(shard.copied)
        self._is_slow |= shard.waited
        # One that waits for its split is read no more: its sample, too, is to be in its place.
        is_kept = self._job.spec.copy_mode == "windows" and self._task.index.copy_ahead is None
        if self._parts.add(shard) and (is_kept or self._packers is None):
            self._release(unpacking)

    def _publish(self, unpacking: Unpacking, before: Packer | None) -> None:
        if self._packers is not None:
            store, key = self._job.store, self._job.row_key
            if names := self._packers.publish(store, key, before):
                self._published += names
                self._release(unpacking)

    def _release(self, unpacking: Unpacking) -> None:
        """Have a stopped run go on behind the windows that are held.

        Their rows are on the disk, and if they are valid, so are their samples or their files.
        """
        self._parts.flush()
        for window in self._held:
            unpacking.note(window, window is self._held[-1])
        self._held.clear()
