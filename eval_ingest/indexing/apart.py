"""Windows whose worker process was lost, taken again one at a time where no other can be lost.

What belongs here: telling the window that ends its process from a process that something else
ended. What doesn't: handing windows out (build.py, copying/transfer.py), and reading them.
"""

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from typing import Generic, TypeVar

from eval_ingest.decoding.isolation import limit_memory
from eval_ingest.engine import Processes, killed_because, oom_kills
from eval_ingest.errors import EngineError, MachineError

Item = TypeVar("Item")
Result = TypeVar("Result")

TRIES = 3
"""Processes that a window has to end, each fresh and its own: what ends two may be something else.

None that was killed counts: nothing that a window holds does that, but what is short of memory.
"""
IN_A_ROW = 8
"""Windows that end all of theirs with none between that doesn't: rather this machine's fault."""
UNEXPLAINED = 3
"""Times that workers may be lost without a window that is to blame."""
MEMORY_FACTOR = 16
"""Bytes that a process may take for each that a window may have: labels are eight as numbers."""
SECONDS = 900.0
"""That a window may take, with what it has rslearn fetch."""


class Apart(Generic[Item, Result]):
    """Does what lost workers were at, window by window.

    Args:
        task: what workers do with some windows; a window alone is a list of one.
        joined: puts the results of a list's windows together.
        named: what a window is called.
        lost: what becomes of a window that ends every process, and why.
        window_bytes: that a window may have; None: it has shown that it may.
    """

    def __init__(
        self,
        task: Callable[[list[Item]], Result],
        joined: Callable[[list[Result]], Result],
        named: Callable[[Item], str],
        lost: Callable[[Item, str], Result],
        window_bytes: int | None = None,
    ) -> None:
        self._task, self._joined, self._named, self._lost = task, joined, named, lost
        self._kills = oom_kills()
        self._most = None if window_bytes is None else MEMORY_FACTOR * window_bytes
        self._ended = self._in_a_row = self._unexplained = 0

    def __call__(self, batches: Sequence[Sequence[Item]]) -> list[Result]:
        """What became of the windows of some lists.

        Raises:
            EngineError: processes are lost whatever they read.
        """
        before = self._ended
        with Processes(1) as process:
            try:
                found = [self._joined([self._one(process, w) for w in batch]) for batch in batches]
            finally:
                process.kill()
        self._unexplained += self._ended == before
        if self._unexplained > UNEXPLAINED:
            raise EngineError(
                f"a worker process was killed, {self._unexplained} times and by no window that it "
                f"read, {killed_because(self._kills)}"
            )
        return found

    def _one(self, process: Processes, item: Item) -> Result:
        crashes = kills = 0
        while crashes < TRIES and kills < TRIES:
            try:
                done = process.submit(_alone, self._task, item, self._most)
                found: Result | _NoMemory = done.result(SECONDS)
            except TimeoutError:
                process.renew()
                return self._gone(item, f"reading it took more than {SECONDS:.0f} s")
            except BrokenExecutor:
                if -signal.SIGKILL in process.renew():
                    kills += 1
                else:
                    crashes += 1
                continue
            self._in_a_row = 0
            if isinstance(found, _NoMemory):
                return self._gone(item, f"reading it takes more than {found >> 20} MiB of memory")
            return found
        if kills == TRIES:
            raise EngineError(self._killed(item))
        self._in_a_row += 1
        if self._in_a_row >= IN_A_ROW:
            raise EngineError(
                f"a worker process ended, and so did that of each of {IN_A_ROW} windows in a row "
                "that were read alone: rather this machine's fault than theirs; see to its memory "
                "(EVAL_INGEST_WORKERS sets how many there are) and its libraries, and run again: "
                "it goes on where it stopped"
            )
        return self._gone(item, f"reading it alone ended {TRIES} processes")

    def _killed(self, item: Item) -> str:
        most = f" and up to {self._most >> 20} MiB for it" if self._most else ""
        return (
            f"the process that reads {self._named(item)} alone was killed {TRIES} times, "
            f"{killed_because(self._kills)}. A window may take what its pixels take several times"
            f"{most}: where that isn't to be had, set EVAL_INGEST_WINDOW_MIB to less, or leave it "
            "out of the source"
        )

    def _gone(self, item: Item, why: str) -> Result:
        self._ended += 1
        return self._lost(item, why)


class _NoMemory(int):
    """So many bytes of memory don't suffice."""


def _alone(
    task: Callable[[list[Item]], Result], item: Item, most: int | None
) -> "Result | _NoMemory":
    """Runs in a process of its own: what the task gives."""
    limit_memory(most)
    try:
        return task([item])
    except MachineError as error:
        if most is None or not isinstance(error.__cause__, MemoryError):
            raise
        return _NoMemory(most)
    except MemoryError:
        if most is None:
            raise
        return _NoMemory(most)
    finally:
        limit_memory(None)
