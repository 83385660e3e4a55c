"""Files read ahead: in bounded memory, whatever the order in which windows are listed.

And what else is done with many windows on a disk that keeps everybody waiting.
"""

import hashlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eval_ingest.errors import SourceError
from eval_ingest.sources import base, listing
from eval_ingest.sources.base import Had, Source, SourceFile, WindowFiles
from eval_ingest.sources.local import LocalSource
from eval_ingest.store.window_files import Measured, Windows
from eval_ingest.waiting import ALWAYS, COPIES, SOURCES, Room, Waiting, remove_folder

SIZE = 100


class Slow(Source):
    """A source whose windows are of one file each, and listed the later the lower their number."""

    url, waiting = "slow", ALWAYS

    def __init__(self, count: int) -> None:
        self.count = count
        self.lock = threading.Lock()
        self.fetched: list[int] = []
        self.held = self.most = 0

    def listed(self, number: int) -> Callable[[], WindowFiles]:
        def look() -> WindowFiles:
            time.sleep(0.02 * (self.count - number) / self.count)
            if number == 13:
                raise SourceError("window 13 has gone")
            return WindowFiles("g", str(number), (SourceFile("metadata.json", SIZE, "1"),))

        return look

    def fetch(self, files: WindowFiles, wanted: Any) -> dict[str, Had]:
        with self.lock:
            self.held += SIZE
            self.most = max(self.most, self.held)
            self.fetched.append(int(files.name))
        return {"metadata.json": Had(b"x" * SIZE, 0o644)}

    def look(self, numbers: range) -> list[int]:
        seen = []
        for files, _ in self.readers([self.listed(k) for k in numbers]):
            seen.append(int(files.name))
            with self.lock:
                self.held -= SIZE
        return seen

    read_text = groups = windows = window = have = None  # type: ignore[assignment]


@pytest.mark.parametrize(("room", "most"), [(3 * SIZE, 3), (SIZE // 2, 1), (1000 * SIZE, 12)])
def test_windows_come_in_order_and_no_more_are_in_memory_than_may_be(
    room: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "BYTES_AHEAD", room)
    monkeypatch.setattr(base, "WINDOWS_AHEAD", 12)
    source = Slow(12)
    assert source.look(range(12)) == list(range(12))
    # The one that is looked at is given back when the next is asked for.
    assert 1 <= source.most <= (most + 1) * SIZE
    if most < 12:
        assert source.fetched == sorted(source.fetched)


def test_a_window_that_can_not_be_listed_holds_up_none_and_is_told_in_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base, "BYTES_AHEAD", 2 * SIZE)
    source = Slow(20)
    with pytest.raises(SourceError, match="window 13 has gone"):
        source.look(range(20))
    assert set(range(13)) <= set(source.fetched)


def test_who_stops_early_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "BYTES_AHEAD", SIZE)
    source = Slow(10)
    readers = source.readers([source.listed(k) for k in range(10)])
    next(readers)
    started = time.monotonic()
    readers.close()  # type: ignore[attr-defined]
    assert time.monotonic() - started < 5


def test_room_without_turns_is_had_as_soon_as_it_is_there() -> None:
    room, taken = Room(10), threading.Event()
    room.wait(25)  # more than there is, but nobody has any

    def take() -> None:
        room.wait(4)
        taken.set()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(take)
        assert not taken.wait(0.05)
        room.give_back(25)
        assert taken.wait(5)


@dataclass(eq=False)
class Window:
    """Something that may be large."""

    number: int


def test_windows_are_let_go_of_as_soon_as_they_are_done_with() -> None:
    windows, others, most = weakref.WeakSet[Window](), threading.Semaphore(0), 64

    def given() -> Iterator[Window]:
        for number in range(150):
            window = Window(number)
            windows.add(window)
            yield window

    def work(window: Window) -> int:
        """How many windows there are: the first waits until the others at a time are done."""
        if window.number == 0:
            for _ in range(most - 1):
                assert others.acquire(timeout=20)
            time.sleep(0.1)  # the last of them is let go of
        others.release()
        return len(windows)

    results = list(Waiting(is_long=True).each(work, given(), most))
    assert len(results) == 150
    assert results[0] < 8


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[None]:
    """Two threads that do something again and again."""
    done = threading.Event()

    def go_on() -> None:
        while not done.is_set():
            work()

    threads = [threading.Thread(target=go_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_turns_at_the_interpreter_are_not_taken_for_a_slow_disk(tmp_path: Path) -> None:
    waiting, path = Waiting(), tmp_path / "file"
    path.write_bytes(b"x" * 1000)

    def look(_: int) -> None:
        for _ in range(4):
            path.read_bytes()
            time.sleep(0.0001)  # a disk at hand; others take the turn meanwhile

    with beside(lambda: sum(range(1000))):
        list(waiting.each(look, range(7), 8, files=4))
    assert not waiting.is_long


def test_a_slow_disk_is_noticed_beside_threads_that_are_busy() -> None:
    waiting, large, looks = Waiting(), bytes(1 << 20), 0

    def look(_: int) -> None:
        nonlocal looks
        looks += not waiting.is_long
        for _ in range(8):
            time.sleep(0.001)

    with beside(lambda: hashlib.sha256(large)):
        list(waiting.each(look, range(40), 8, files=8))
    assert waiting.is_long and looks <= 30


class Busy:
    """Has every open of a folder wait, and knows how many threads waited at a time."""

    def __init__(self) -> None:
        self.lock, self.now, self.most = threading.Lock(), 0, 0
        self.scandir = os.scandir

    def __call__(self, path: Any = ".") -> Any:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        for _ in range(8):
            time.sleep(0.002)
        with self.lock:
            self.now -= 1
        return self.scandir(path)


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> Busy:
    busy = Busy()
    for known in (SOURCES, COPIES):
        monkeypatch.setattr(known, "is_long", False)
    monkeypatch.setattr(os, "scandir", busy)
    monkeypatch.setattr(listing, "_listing", None)
    return busy


def test_windows_of_a_slow_disk_are_listed_read_back_and_removed_many_at_a_time(
    tmp_path: Path, busy: Busy
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    windows = Windows(tmp_path / "data" / "windows")
    keys = [("group", f"w{k:02d}") for k in range(60)]
    for group, name in keys:
        (windows.folder / group / name / "layers").mkdir(parents=True)
        (windows.folder / group / name / "metadata.json").write_text("{}")
        (windows.folder / group / name / "link").symlink_to(outside)
    (tmp_path / "linked").symlink_to(tmp_path / "data")

    found = LocalSource(str(tmp_path / "data")).listing(["group"], frozenset())
    assert [(window.group, window.name) for window in found] == keys
    assert busy.most > 8
    busy.most = 0
    assert {now.n_files for _, now in windows.measured(keys) if isinstance(now, Measured)} == {1}
    assert busy.most > 8
    busy.most = 0
    remove_folder(tmp_path / "linked")  # a link leads to what is another's
    assert len(list(windows.folder.iterdir())) == 1
    windows.keep_only(keys[:5])
    assert sorted(path.name for path in windows.folder.glob("*/*")) == [n for _, n in keys[:5]]
    assert busy.most > 8
    remove_folder(windows.folder)
    assert not windows.folder.exists()
    assert (outside / "kept").exists()
