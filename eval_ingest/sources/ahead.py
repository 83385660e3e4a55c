"""Windows of a local disk or a mount, read ahead of whoever decodes them.

On a network mount each open costs about a millisecond, and a window has fifty of them: there tens
of windows are listed and read at a time, however few cores there are, and memory holds a bounded
part of what comes next. A disk that keeps nobody waiting is read window by window, which costs the
least. Does not belong here: buckets, whose client has a way of its own (remote.py).
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from typing import Protocol

from eval_ingest.engine import Item, Result, map_ordered
from eval_ingest.sources.base import Fetchable, SourceFile, Window, WindowFiles, every_file
from eval_ingest.sources.listing import Had

WINDOWS_AHEAD = 32
"""That a worker has read, or is reading, before it needs them."""
LONG_S = 0.0003
"""That a file of a disk at hand doesn't keep anybody waiting for."""
BYTES_AHEAD = 32 << 20
"""That it holds of them; what is beyond is read when its turn comes."""


class _InPlace(Protocol):
    @property
    def url(self) -> str: ...

    def fetch(self, files: WindowFiles, wanted: Sequence[SourceFile]) -> dict[str, Had]:
        """What can be had of some files of a window at once, as they were listed."""
        ...

    def read(self, group: str, name: str, file: SourceFile) -> bytes: ...

    def permissions(self, group: str, name: str, file: SourceFile) -> int: ...

    def ours(self, group: str, name: str, file: SourceFile) -> tuple[str, int] | None: ...


class ReadAhead:
    """What sources share whose files are on this machine, or look as if they were."""

    moves = False

    def readers(
        self: _InPlace,
        windows: Iterable[Window],
        whole: bool = True,
        fetchable: Fetchable = every_file,
    ) -> Iterator[tuple[WindowFiles, "FetchedWindow"]]:
        """Each window with its reader; those that come next are read meanwhile."""
        if isinstance(windows, Sequence) and len(windows) == 1:
            reader = FetchedWindow(self, windows[0], whole, fetchable, Room(0))
            yield reader.files, reader
            return
        room = Room(BYTES_AHEAD)

        def begin(window: Window) -> FetchedWindow:
            return FetchedWindow(self, window, whole, fetchable, room)

        for reader in SOURCES.each(begin, windows, WINDOWS_AHEAD):
            yield reader.files, reader
            room.give_back(reader.taken)

    def ours(self, group: str, name: str, file: SourceFile) -> tuple[str, int] | None:
        """Nothing here was written by us."""
        return None


class Room:
    """Bytes that may be in memory at a time; safe to use from several threads."""

    def __init__(self, n_bytes: int) -> None:
        self._all = self._left = n_bytes
        self._changed = threading.Condition()

    def take(self, n_bytes: int) -> bool:
        """Take so many, if there are."""
        with self._changed:
            fits = n_bytes <= self._left
            self._left -= n_bytes if fits else 0
        return fits

    def wait(self, n_bytes: int) -> None:
        """Take so many as soon as there are, or as nobody has any."""
        with self._changed:
            self._changed.wait_for(lambda: n_bytes <= self._left or self._left == self._all)
            self._left -= n_bytes

    def give_back(self, n_bytes: int) -> None:
        """Have no more use for so many."""
        with self._changed:
            self._left += n_bytes
            self._changed.notify()


class Waiting:
    """Whether the disks of one kind keep this process waiting; once they have, they always may."""

    def __init__(self) -> None:
        self.is_long = False

    @contextmanager
    def watched(self, files: Callable[[], int]) -> Iterator[None]:
        """Something that opens so many files, of which it is found out how long it waits."""
        wall, own = time.monotonic(), time.thread_time()
        yield
        waited = (time.monotonic() - wall) - (time.thread_time() - own)
        self.is_long |= waited > LONG_S * max(files(), 4)

    def each(
        self, work: Callable[[Item], Result], items: Iterable[Item], most: int
    ) -> Iterator[Result]:
        """The results in order: one by one, or of so many at a time where each has to wait."""
        left = iter(items)
        for item in left:
            if self.is_long:
                with ThreadPoolExecutor(most, thread_name_prefix="eval_ingest_files") as pool:
                    yield from map_ordered(pool, work, chain([item], left), most)
                return
            yield work(item)


SOURCES, COPIES = Waiting(), Waiting()


class FetchedWindow:
    """Reads one window: of each file the bytes are remembered."""

    def __init__(
        self, source: _InPlace, window: Window, whole: bool, fetchable: Fetchable, room: Room
    ) -> None:
        self.url = source.url
        self._source = source
        self._had: dict[str, Had] = {}
        self.taken = 0
        with SOURCES.watched(lambda: len(self.files.files)):
            self.files = window if isinstance(window, WindowFiles) else window()
            self._fetchable = fetchable(self.files)
            first = self._fetchable if whole else self._fetchable & {"metadata.json"}
            n_bytes = sum(file.size for file in self.files.files if file.path in first)
            if room.take(n_bytes):
                self.taken = n_bytes
                self._fetch(first)

    def _fetch(self, paths: frozenset[str]) -> None:
        wanted = [f for f in self.files.files if f.path in paths and f.path not in self._had]
        self._had |= self._source.fetch(self.files, wanted)

    def read(self, group: str, name: str, file: SourceFile) -> bytes:
        if file.path not in self._had:
            self._fetch(self._fetchable)
        if file.path not in self._had:  # the source says what is wrong with it
            data = self._source.read(group, name, file)
            self._had[file.path] = Had(data, self._source.permissions(group, name, file))
        return self._had[file.path].data

    def permissions(self, group: str, name: str, file: SourceFile) -> int:
        had = self._had.get(file.path)
        return self._source.permissions(group, name, file) if had is None else had.permissions

    def ours(self, group: str, name: str, file: SourceFile) -> tuple[str, int] | None:
        return self._source.ours(group, name, file)

    def keep(self) -> None:
        """Its files stay where they are."""

    def drop(self) -> None:
        """Its files stay where they are."""
