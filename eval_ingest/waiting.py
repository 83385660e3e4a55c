"""Whoever opens the files of many windows: how many are worked at at a time, how much is in memory.

On a network mount each open costs about a millisecond, and a window has fifty of them: there tens
of windows are listed, read, written, compared or removed at a time, however few cores there are,
and memory holds a bounded part of what comes next. A disk that keeps nobody waiting is gone through
window by window, which costs the least.
"""

import os
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from eval_ingest.engine import Item, Result, map_ordered

WINDOWS_AHEAD = 64
"""That a worker has read, is reading, or is listing before it needs them."""
LONG_S = 0.0003
"""That a file of a disk at hand doesn't keep anybody waiting for."""
BYTES_AHEAD = 64 << 20
"""That it holds of them, if it has more than one; the others wait for their turn."""
WINDOWS_BEHIND = 64
"""That a worker has in hand at a time: to be packed, or on their way into the copy."""
BYTES_BEHIND = 64 << 20
"""Of their files, if it has more than one."""


class Room:
    """Bytes that may be in memory at a time; safe to use from several threads."""

    def __init__(self, n_bytes: int) -> None:
        self._all = self._left = n_bytes
        self._turn, self._closed = 0, False
        self._changed = threading.Condition()

    def wait(self, n_bytes: int, turn: int | None = None) -> None:
        """Take so many as soon as there are, or as nobody has any.

        With turns, which are numbers from 0 on, nobody takes any before those with lower ones: who
        gives back in that order is then never waited for by one that it waits for.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._closed
                    or (turn in (None, self._turn) and (n_bytes <= self._left or self._is_free))
                )
            )
            self._left -= n_bytes
            self._turn += turn is not None
            self._changed.notify_all()

    @property
    def _is_free(self) -> bool:
        return self._left == self._all

    def give_back(self, n_bytes: int) -> None:
        """Have no more use for so many."""
        with self._changed:
            self._left += n_bytes
            self._changed.notify_all()

    def close(self) -> None:
        """Have nobody wait any more: nothing is made of what they took."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _waits() -> int:
    """How often this thread has let go of its core because it had to wait for something."""
    whose = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)  # Linux knows of each
    return resource.getrusage(whose).ru_nvcsw


def _turn() -> float:
    """Seconds that a thread which has waited for nothing waits for its turn at the interpreter."""

    def once() -> float:
        began = time.monotonic()
        time.sleep(_BRIEFLY)  # long enough for another thread to take the turn
        return time.monotonic() - began - _BRIEFLY

    return min(once() for _ in range(3))


_BRIEFLY = 0.0001
SURE = 5
"""So many looks of a thread in a row: one alone may have met another thread or process."""
_SURE_S = 0.5
"""Seconds that two or more of them have waited, which are as many."""


class _Looks(threading.local):
    """What each thread has seen by itself: what holds it up may hold the others up as well."""

    in_a_row, waited = 0, 0.0

    def are_sure(self, waited: float) -> bool:
        """Add one that waited so many seconds, or 0; True if those in a row tell of the disk."""
        if waited:
            self.in_a_row, self.waited = self.in_a_row + 1, self.waited + waited
        else:
            self.in_a_row, self.waited = 0, 0.0
        return self.in_a_row >= SURE or (self.in_a_row > 1 and self.waited > _SURE_S)


class Waiting:
    """Whether the disks of one kind keep this process waiting; once they have, they always may."""

    def __init__(self, is_long: bool = False) -> None:
        self.is_long = is_long
        self._looks = _Looks()

    @contextmanager
    def watched(self, files: Callable[[], int]) -> Iterator[None]:
        """Something that opens so many files, of which it is found out how long it waits."""
        wall, own, before = time.monotonic(), time.thread_time(), _waits()
        yield
        if self.is_long:
            return
        waited = (time.monotonic() - wall) - (time.thread_time() - own)
        count, waits = max(files(), 4), _waits() - before
        # Not for one long wait, such as for a turn on a busy machine's cores; nor for turns at the
        # interpreter, which are about as long without a disk.
        seems_long = waited > LONG_S * count and waits >= count // 2
        seems_long = seems_long and waited - 2 * waits * _turn() > LONG_S * count
        self.is_long |= self._looks.are_sure(waited if seems_long else 0)

    def each(
        self,
        work: Callable[[Item], Result],
        items: Iterable[Item],
        most: int,
        stop: Callable[[], None] = lambda: None,
        files: int = 0,
    ) -> Iterator[Result]:
        """The results in order: one by one, or of so many at a time where each has to wait.

        Whether that is so is found out by the work itself, see `watched`, or here, if it is told
        how many files each item opens. In the end `stop` lets go of those that are still waiting,
        whose results nobody wants.
        """
        if files:
            work = partial(self._watched, work, files)
        left = iter(items)
        for item in left:
            if self.is_long:
                with ThreadPoolExecutor(most, thread_name_prefix="eval_ingest_files") as pool:
                    try:
                        left = chain([item], left)
                        del item  # with all that a window may hold
                        yield from map_ordered(pool, work, left, most)
                    finally:
                        stop()
                return
            yield work(item)

    def _watched(self, work: Callable[[Item], Result], files: int, item: Item) -> Result:
        with self.watched(lambda: files):
            return work(item)


SOURCES, COPIES, ALWAYS = Waiting(), Waiting(), Waiting(is_long=True)


_FEW = 32
"""Folders that are removed one after the other."""
_FILES = 32
"""That each of many folders holds, most often."""


def remove_folder(path: str | Path) -> OSError | None:
    """Remove a folder, on a disk that keeps us waiting many of those in it at a time.

    Nothing is done where there is none. What can't be removed stays: the error says why.
    """
    failed: list[OSError] = []

    def note(_function: object, _path: str, raised: tuple[Any, Any, Any]) -> None:
        if not isinstance(raised[1], FileNotFoundError):  # another process was faster
            failed.append(raised[1])

    remove = partial(shutil.rmtree, onerror=note)
    level = [] if os.path.islink(path) else [str(path)]
    while 0 < len(level) <= _FEW:
        level = [folder for above in level for folder in _folders_in(above)]
    for _ in COPIES.each(remove, level, WINDOWS_BEHIND, files=_FILES):
        pass
    remove(path)
    return failed[0] if failed else None


def _folders_in(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []  # whoever removes it will be told
