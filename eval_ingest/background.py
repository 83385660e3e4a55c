"""Waiting for several things at once, but not for ever."""

import os
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class OwnLock:
    """A lock of each process: one that another thread held at a fork would stay locked for ever.

    The thread that has it may take it again.
    """

    def __init__(self) -> None:
        self._locks: dict[int, threading.RLock] = {}

    def __enter__(self) -> None:
        self._locks.setdefault(os.getpid(), threading.RLock()).acquire()

    def __exit__(self, *_: object) -> None:
        self._locks[os.getpid()].release()


class Background(Generic[Key, Value]):
    """Work by key, each in a thread of its own, so that what hangs holds up nothing else.

    What isn't done in time goes on, and its outcome is had by asking for the same key again.
    The threads are daemons: a mount that never answers doesn't keep a process alive.
    """

    def __init__(self) -> None:
        self._begun: dict[Key, Call[Value]] = {}

    def outcomes(
        self, work: Mapping[Key, Callable[[], Value]], timeout_s: float | None
    ) -> dict[Key, Future[Value]]:
        """Begin what isn't under way yet, wait, and return what is done: a value or an error."""
        for key, call in work.items():
            if key not in self._begun:
                self._begun[key] = Call(call)
        asked = {key: self._begun[key].future for key in work}
        wait(asked.values(), timeout_s)
        done = {key: future for key, future in asked.items() if future.done()}
        for key in done:
            del self._begun[key]
        return done


class Call(Generic[Value]):
    """A call in a thread of its own, which doesn't keep the process alive."""

    def __init__(self, call: Callable[[], Value]) -> None:
        self.future: Future[Value] = Future()
        self._began = time.monotonic()

        def run() -> None:
            try:
                self.future.set_result(call())
            except BaseException as error:
                self.future.set_exception(error)

        threading.Thread(target=run, name="eval_ingest_background", daemon=True).start()

    @property
    def waited(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    def wait(self, timeout_s: float) -> bool:
        """Wait for so long; True if it is over."""
        return bool(wait([self.future], timeout_s).done)

    def result(self) -> Value:
        """What it gave; raises what it raised."""
        return self.future.result()
