"""Terminate, Ctrl-C and SIGTERM end a stage, whatever it is at.

What belongs here: not losing the signal. What doesn't: what a stopped ingest leaves (pipeline.py).

Dagster raises an exception wherever the main thread is. A library that is just being imported may
swallow it, and Ctrl-C goes to the worker processes too, whose end looks like a failure that is
worth another try. So the signal is remembered, and told again.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import dagster as dg

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Give a function that raises if there was a signal to stop; what fails then was stopped.

    Raises:
        dg.DagsterExecutionInterruptedError: a signal came.
    """
    received: list[int] = []

    def check() -> None:
        if received:
            raise dg.DagsterExecutionInterruptedError

    if threading.current_thread() is not threading.main_thread():
        yield check  # signals are the main thread's
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for number in _SIGNALS:
        signal.signal(number, remember)
    try:
        yield check
        check()
    except Exception:
        check()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
