"""Windows whose worker process was lost, read again one at a time where no other can be lost.

What belongs here: telling the window that ends its process from a process that something else
ended. What doesn't: handing out windows (build.py), reading them (work.py).
"""

from collections.abc import Sequence
from concurrent.futures import BrokenExecutor

import pyarrow as pa

from eval_ingest.core.index import index_schema
from eval_ingest.core.validate import Problem
from eval_ingest.decoding.isolation import limit_memory
from eval_ingest.decoding.judge import WindowSample
from eval_ingest.engine import Processes
from eval_ingest.errors import EngineError, MachineError
from eval_ingest.indexing.rows import index_row
from eval_ingest.indexing.work import IndexedShard, IndexTask
from eval_ingest.sources.base import Listed

Item = tuple[int, Listed]
"""A window with its place among the samples."""

TRIES = 3
"""Processes that a window has to end, each fresh and its own: an OOM killer may strike twice."""
IN_A_ROW = 8
"""Windows that end all of theirs with none between that doesn't: rather this machine's fault."""
UNEXPLAINED = 3
"""Times that workers may be lost without a window that is to blame."""
MEMORY_FACTOR = 16
"""Bytes that a process may take for each that a window may have: labels are eight as numbers."""
SECONDS = 900.0
"""That a window may take, with what it has rslearn fetch."""

_CURE = (
    "most often because memory ran out; free some or set EVAL_INGEST_WORKERS to fewer, and run "
    "again: it goes on where it stopped"
)


class Apart:
    """Indexes windows that lost workers were at; those that end every process are invalid."""

    def __init__(self, task: IndexTask) -> None:
        self._task = task
        self._crashed = self._in_a_row = self._unexplained = 0

    def __call__(self, shards: Sequence[Sequence[Item]]) -> list[IndexedShard]:
        """What became of the windows of some shards.

        Raises:
            EngineError: processes are lost whatever they read.
        """
        before = self._crashed
        with Processes(1) as process:
            try:
                found = [_joined([self._one(process, item) for item in shard]) for shard in shards]
            finally:
                process.kill()
        self._unexplained += self._crashed == before
        if self._unexplained > UNEXPLAINED:
            raise EngineError(
                f"a worker process was killed, {self._unexplained} times and by no window that it "
                f"read, {_CURE}"
            )
        return found

    def _one(self, process: Processes, item: Item) -> IndexedShard:
        for _ in range(TRIES):
            try:
                found = process.submit(_index_one, self._task, item).result(SECONDS)
            except TimeoutError:
                process.renew()
                return self._invalid(item, f"reading it took more than {SECONDS:.0f} s")
            except BrokenExecutor:
                process.renew()
                continue
            self._in_a_row = 0
            if isinstance(found, IndexedShard):
                return found
            return self._invalid(item, f"reading it takes more than {found >> 20} MiB of memory")
        self._in_a_row += 1
        if self._in_a_row >= IN_A_ROW:
            raise EngineError(
                f"a worker process was killed, and so was that of each of {IN_A_ROW} windows in a "
                f"row that were read alone, the last {item[1].group}/{item[1].name}, {_CURE}"
            )
        return self._invalid(item, f"reading it alone ended {TRIES} processes")

    def _invalid(self, item: Item, why: str) -> IndexedShard:
        self._crashed += 1
        task, listed = self._task, item[1]
        files = task.source.window(listed.group, listed.name, task.config.layer_names)
        sample = WindowSample(files, problems=[Problem("window_crashes", why)])
        row = index_row(sample, task.config, task.judged_by)
        return IndexedShard(pa.Table.from_pylist([row], schema=index_schema(task.config)))


def _index_one(task: IndexTask, item: Item) -> IndexedShard | int:
    """Runs in a process of its own: the window's row, or the bytes that don't suffice."""
    most = MEMORY_FACTOR * task.window_bytes
    limit_memory(most)
    try:
        return task([item])
    except MachineError as error:
        if not isinstance(error.__cause__, MemoryError):
            raise
        return most
    except MemoryError:
        return most
    finally:
        limit_memory(None)


def _joined(shards: Sequence[IndexedShard]) -> IndexedShard:
    return IndexedShard(
        pa.concat_tables([shard.table for shard in shards]),
        [window for shard in shards for window in shard.filtered_out],
        [packed for shard in shards for packed in shard.packed],
    )
