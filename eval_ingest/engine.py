"""Work that fans out: shards of windows over a `concurrent.futures.Executor`.

Decoding releases the GIL, but half of the work on a window is Python: two threads index hardly more
windows than one, two processes twice as many. Starting processes takes a second or two, so they
are for datasets where that is little.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import TypeVar

from eval_ingest.errors import SettingsError
from eval_ingest.settings import Settings

Item = TypeVar("Item")
Result = TypeVar("Result")


MANY_WINDOWS = 400
"""From here on `auto` takes processes."""


@contextlib.contextmanager
def executor(settings: Settings, windows: int = 0) -> Iterator[Executor]:
    """The executor that EVAL_INGEST_ENGINE names, with EVAL_INGEST_WORKERS workers.

    Args:
        settings: engine and workers.
        windows: how many windows have to be decoded.

    Raises:
        SettingsError: there is no such engine.
    """
    engine = settings.engine
    if engine == "auto":
        many = windows >= MANY_WINDOWS and settings.workers > 1
        engine = "processes" if many else "threads"
    if engine == "threads":
        with ThreadPoolExecutor(settings.workers, thread_name_prefix="eval_ingest") as pool:
            yield pool
    elif engine == "processes":
        import multiprocessing

        # Not fork: Arrow and BLAS have threads of their own by now.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(settings.workers, mp_context=context) as processes:
            yield processes
    elif "://" in engine:
        from distributed import Client

        with Client(engine) as client:  # type: ignore[no-untyped-call]
            yield client.get_executor(pure=False, retries=2)
    else:
        raise SettingsError(
            f"EVAL_INGEST_ENGINE={settings.engine!r} must be auto, threads, processes, "
            "or a dask scheduler's address such as tcp://scheduler:8786"
        )


def map_ordered(
    pool: Executor, work: Callable[[Item], Result], items: Iterable[Item], in_flight: int
) -> Iterator[Result]:
    """Results in the order of the items, with at most `in_flight` items handed out at a time.

    So memory stays flat however many items there are. The first error ends it.
    """
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= in_flight:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
