"""Work that fans out: shards of windows over a `concurrent.futures.Executor`.

Threads are the default: decoding, copying and BLAS release the GIL, and nothing is pickled.
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


@contextlib.contextmanager
def executor(settings: Settings) -> Iterator[Executor]:
    """The executor that EVAL_INGEST_ENGINE names, with EVAL_INGEST_WORKERS workers.

    Raises:
        SettingsError: there is no such engine.
    """
    if settings.engine == "threads":
        with ThreadPoolExecutor(settings.workers, thread_name_prefix="eval_ingest") as pool:
            yield pool
    elif settings.engine == "processes":
        import multiprocessing

        # Not fork: Arrow and BLAS have threads of their own by now.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(settings.workers, mp_context=context) as processes:
            yield processes
    elif "://" in settings.engine:
        from distributed import Client

        with Client(settings.engine) as client:  # type: ignore[no-untyped-call]
            yield client.get_executor(pure=False, retries=2)
    else:
        raise SettingsError(
            f"EVAL_INGEST_ENGINE={settings.engine!r} must be threads, processes, "
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
