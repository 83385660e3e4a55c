"""Ctrl-C and SIGTERM end what is going on, whatever it is at.

What belongs here: not losing the signal. What doesn't: what a stopped ingest leaves (pipeline.py).

An exception is raised wherever the main thread is. A library that is just being imported may
swallow it, and Ctrl-C goes to the worker processes too, whose end looks like a failure that is
worth another try. So the signal is remembered, and told again.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOPPED = 130
"""Exit code of a command that was stopped."""


@contextmanager
def interruptible(
    error: Callable[[], BaseException], handle: Callable[[], None] | None = None
) -> Iterator[Callable[[], None]]:
    """Give a function that raises if there was a signal to stop; what fails then was stopped.

    Args:
        error: makes what is raised.
        handle: is called when a signal comes; default: raise, or do what was done before.

    Raises:
        BaseException: the error, if a signal came.
    """
    received: list[int] = []

    def check() -> None:
        if received:
            raise error()

    if threading.current_thread() is not threading.main_thread():
        yield check  # signals are the main thread's
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)
        earlier = before[signal.Signals(number)]
        if handle is not None:
            handle()
        elif callable(earlier):
            with suppress(BaseException):  # what it raises doesn't say what to do
                earlier(number, frame)
        raise error()

    taken = [number for number in _SIGNALS if before[number] is not signal.SIG_IGN]
    for number in taken:
        signal.signal(number, remember)
    try:
        yield check
        check()
    except Exception:
        check()
        raise
    finally:
        for number in taken:
            signal.signal(number, before[number])


def leave() -> None:
    """End the process at once: nothing has been begun that would have to be left tidy."""
    print("stopped before anything was begun", file=sys.stderr, flush=True)
    os._exit(STOPPED)
