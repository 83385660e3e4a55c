"""Work that fans out: shards of windows over a `concurrent.futures.Executor`.

Decoding releases the GIL, but half of the work on a window is Python: two threads index hardly more
windows than one, two processes twice as many. Starting processes takes a second or two, so they
are for datasets where that is little.
"""

import contextlib
import ctypes
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from functools import partial
from itertools import islice
from multiprocessing import forkserver
from typing import Any, TypeAlias, TypeVar

from eval_ingest.background import OwnLock
from eval_ingest.errors import EngineError, SettingsError, optional_part
from eval_ingest.settings import Settings

Item = TypeVar("Item")
Result = TypeVar("Result")
Value = TypeVar("Value")


Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and how many there are (0: unknown)."""


def no_progress(what: str, done: int, total: int) -> None:
    """Tells nobody."""


MANY_WINDOWS = 400
"""From here on `auto` takes processes."""


def is_worth_workers(settings: Settings, windows: int) -> bool:
    """True if so many windows are decoded by worker processes."""
    many = windows >= MANY_WINDOWS and settings.workers > 1
    return settings.engine == "processes" or (settings.engine == "auto" and many)


def import_ahead() -> None:
    """Have the process that workers are forked from begin to import what they need, and go on."""
    with contextlib.suppress(OSError, EOFError):  # whoever needs it will be told
        _Workers()
        forkserver.ensure_running()


PROGRAM = threading.Event()
"""Set where this process is a program of our own, and not one that others import us into."""
_forked: "deque[Processes]" = deque(maxlen=1)
"""Workers that wait for the first executor of processes."""


def fork_ahead(settings: Settings) -> None:
    """Fork the workers now, from this process, which has imported what they need.

    For a PROGRAM that has just begun: it has no threads, locks or open files yet that a fork would
    take along. Elsewhere, see `import_ahead`.
    """
    if sys.platform != "linux" or threading.active_count() > 1:
        import_ahead()
        return
    processes = Processes(settings.workers, _Forks())
    try:
        processes.submit(abs, 0)  # starts all of them
    except OSError:  # too many processes, or too little memory: whoever needs them will be told
        processes.kill()
        import_ahead()
        return
    _forked.append(processes)


@contextlib.contextmanager
def executor(settings: Settings, windows: int = 0) -> Iterator[Executor]:
    """The executor that EVAL_INGEST_ENGINE names, with EVAL_INGEST_WORKERS workers.

    Args:
        settings: engine and workers.
        windows: how many windows have to be decoded.

    Raises:
        EngineError: the workers were lost on the way, or no scheduler answers.
    """
    engine = settings.engine
    if engine == "auto":
        engine = "processes" if is_worth_workers(settings, windows) else "threads"
    if engine == "threads":
        with ThreadPoolExecutor(settings.workers, thread_name_prefix="eval_ingest") as pool:
            yield pool
    elif engine == "processes":
        kills = oom_kills()
        with _forked.pop() if _forked else Processes(settings.workers) as processes:
            try:
                yield processes
                # They are idle now. One that was killed as such may have held the lock of the
                # queue, for which the others would wait for ever.
                processes.kill()
            except EngineError:
                processes.kill()
                raise
            except BrokenExecutor as error:
                processes.kill()
                raise EngineError(
                    f"a worker process was killed, {killed_because(kills)} "
                    f"(EVAL_INGEST_WORKERS={settings.workers})"
                ) from error
    else:  # a dask scheduler's address
        with _dask_client(engine) as client:
            from distributed.scheduler import KilledWorker

            try:
                yield Cluster(client)
            except (KilledWorker, CancelledError) as error:
                raise EngineError(
                    f"EVAL_INGEST_ENGINE={engine}: the scheduler lost its workers, or was lost "
                    f"({type(error).__name__}); see its log, and run again: it goes on where it "
                    "stopped"
                ) from error


_starting = OwnLock()
"""Held while a worker is started: two at once would each hide what the other has hidden."""


class _Worker(multiprocessing.context.ForkServerProcess):
    """A worker that doesn't run the user's script again, as others do to find its functions.

    It needs none of them, and a script without `if __name__ == "__main__":` would start an ingest
    in each worker.
    """

    def start(self) -> None:
        main = vars(sys.modules["__main__"])
        names = ("__file__", "__spec__")
        with _starting:
            hidden: dict[str, Any] = {name: main.pop(name) for name in names if name in main}
            main["__spec__"] = None
            try:
                super().start()
            finally:
                main.update(hidden)


class _Fork(multiprocessing.context.ForkProcess):
    """A worker that goes on from what this process has imported."""

    def run(self) -> None:
        self._end_with_parent()
        # What we do is not for it to do; what is ignored stays so, as after `nohup` or `&`.
        own: dict[int, Any] = {
            signal.SIGINT: signal.default_int_handler,
            signal.SIGTERM: signal.SIG_DFL,
        }
        for number, handler in own.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)
        super().run()

    def _end_with_parent(self) -> None:
        """Have Linux end it with its parent: a sibling that hangs may hold the pipe that tells."""
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self._parent_pid:  # type: ignore[attr-defined]
            os._exit(1)


_PR_SET_PDEATHSIG = 1
"""Of sys/prctl.h."""


class _Made:
    """What both kinds of workers' contexts do: they remember the workers, to end them.

    A broken pool does so itself, but for a worker that is just being started: CPython 3.11 waits
    for that one for ever.
    """

    kind: type[_Worker | _Fork]

    def __init__(self) -> None:
        self.made: list[_Worker | _Fork] = []

    def Process(self, *args: Any, **options: Any) -> _Worker | _Fork:
        """A worker, which a pool asks for and starts."""
        worker = self.kind(*args, **options)
        self.made.append(worker)
        return worker

    def kill(self) -> None:
        """End the workers."""
        for worker in self.made:
            if worker.pid is not None:
                worker.kill()


class _Forks(_Made, multiprocessing.context.ForkContext):  # type: ignore[misc]
    """Workers are forked from this process: see `fork_ahead`."""

    kind = _Fork


class _Workers(_Made, multiprocessing.context.ForkServerContext):  # type: ignore[misc]
    """Workers are forked from a clean process that has imported what they need.

    Not from ours: Arrow and BLAS have threads of their own by now. And they don't start by
    themselves: sixty workers would import the same modules sixty times.
    """

    kind = _Worker

    def __init__(self) -> None:
        super().__init__()
        self.set_forkserver_preload(["eval_ingest.copying.preloaded"])


class Processes(Executor):
    """Worker processes, which are started anew when one of them was lost."""

    def __init__(self, count: int, workers: _Workers | _Forks | None = None) -> None:
        self.count = count
        self._begin(workers or _Workers())

    def _begin(self, workers: _Workers | _Forks) -> None:
        self._workers = workers
        environment = (dict(os.environ),)
        self._pool = ProcessPoolExecutor(self.count, self._workers, prepare_worker, environment)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        return self._pool.submit(fn, *args, **options)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._pool.shutdown(wait, cancel_futures=cancel_futures)

    def kill(self) -> None:
        """End the workers, whatever they do."""
        self._workers.kill()

    def renew(self) -> list[int | None]:
        """End the workers, and have others; what was handed out fails with BrokenExecutor.

        Gives the exit codes of those that there were.
        """
        self.kill()
        self._pool.shutdown()  # from now on nobody else asks how they ended
        ended = [worker.exitcode for worker in self._workers.made]
        self._begin(_Workers())
        return ended

    @property
    def pids(self) -> list[int]:
        """The workers' process ids."""
        return [worker.pid for worker in self._workers.made if worker.pid is not None]


class Cluster(Executor):
    """The workers of a dask cluster, of which there may be more or fewer from task to task."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._pool: Executor = client.get_executor(pure=False, retries=2)

    @property
    def count(self) -> int:
        """Threads of all workers, now."""
        return sum(self._client.nthreads().values())

    def submit(self, fn: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        return self._pool.submit(fn, *args, **options)


# A forked process needs a server of its own: it can't wait for its parent's, and fails at that.
os.register_at_fork(after_in_child=forkserver.ensure_running.__self__.__init__)  # type: ignore[attr-defined]


def start_alone(target: Callable[..., None], *args: Any) -> multiprocessing.process.BaseProcess:
    """Start a process that is no pool's, as a pool's workers are started; it ends when we do."""
    process = _Workers().Process(target=target, args=args, daemon=True)
    process.start()
    return process


_OOM_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_COUNTERS: tuple[str, ...] = (
    "/sys/fs/cgroup/memory.events",
    "/sys/fs/cgroup/memory/memory.oom_control",
    "/proc/vmstat",
)
"""Where Linux says how many processes it has ended for lack of memory: of ours, and of all."""


def oom_kills() -> int:
    """Processes that this machine has ended for lack of memory so far; 0 where it doesn't say."""
    found = [0]
    for path in _COUNTERS:
        with contextlib.suppress(OSError), open(path) as stream:
            found += [int(number) for number in _OOM_KILLS.findall(stream.read())]
    return sum(found)


def killed_because(before: int) -> str:
    """Why a process was killed by nothing of its own, and what to do about it.

    Args:
        before: what `oom_kills` said when it was started.
    """
    why = (
        "as memory ran out: so says Linux"
        if oom_kills() > before
        else "most often by lack of memory"
    )
    return (
        f"{why}; free some, or set EVAL_INGEST_WORKERS to fewer, and run again: it goes on where "
        "it stopped"
    )


_replaced = threading.Event()


def is_replaced() -> bool:
    """True in a worker process of ours: if what it reads ends it, another takes its place.

    A process that others have started needn't be one: Dagster starts one for each run, and a
    DataLoader for reading.
    """
    return _replaced.is_set()


def prepare_worker(environment: dict[str, str]) -> None:
    """Runs in every worker: give it our environment, and let it end when we do.

    The process that it is forked from may be older than what is set by now. And workers of a
    process that is killed would otherwise finish what is queued, while the next run is at work
    already, and then wait for ever.
    """
    _replaced.set()
    os.environ.clear()
    os.environ.update(environment)
    _keep_freed_memory()
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def leave_removed_folder() -> None:
    """Stand elsewhere if the working directory is gone: oneMKL ends a process that stands there."""
    try:
        os.getcwd()
    except OSError:
        os.chdir("/")


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of malloc.h."""


def _keep_freed_memory() -> None:
    """Have the C library keep buffers that were freed: the next window needs as many again.

    Else the system takes them back and fills new ones with zeros, page by page: half a millisecond
    a window. Larger ones than 16 MiB still go back at once.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, 16 << 20)
        mallopt(_TRIM_THRESHOLD, 128 << 20)


def _dask_client(address: str) -> Any:
    with optional_part("dask", f"EVAL_INGEST_ENGINE={address!r}", SettingsError):
        from distributed import Client
    try:
        return Client(address)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise EngineError(
            f"EVAL_INGEST_ENGINE={address}: no scheduler answers ({error}); start one, or correct "
            "the address"
        ) from error


Apart: TypeAlias = Callable[[list[Item]], list[Result]]
"""Does what lost workers may have been at, in a way that can lose no more than it has to."""


def map_ordered(
    pool: Executor,
    work: Callable[[Item], Result],
    items: Iterable[Item],
    in_flight: int,
    apart: Apart[Item, Result] | None = None,
) -> Iterator[Result]:
    """Results in the order of the items, with at most `in_flight` items handed out at a time.

    So memory stays flat however many items there are. A cluster gets two for each of its workers,
    if that is more. The first error ends it; but where `apart` is given, what a lost worker process
    may have been at is done by that, and the rest by others; nothing else keeps an item, which may
    be large, beyond its work.
    """
    waiting: deque[tuple[Any, Future[Result]]] = deque()

    def unbroken(call: Callable[[], Value]) -> Value:
        try:
            return call()
        except BrokenExecutor:
            if apart is None or not isinstance(pool, Processes):
                raise
            _redo(pool, work, waiting, apart)
            return call()

    def first() -> Result:
        try:
            return unbroken(lambda: waiting[0][1].result())
        finally:
            waiting.popleft()

    try:
        for item in items:
            future = unbroken(partial(_submit, pool, work, item))
            waiting.append((None if apart is None else item, future))
            most = max(in_flight, 2 * pool.count) if isinstance(pool, Cluster) else in_flight
            while len(waiting) >= most:
                yield first()
        while waiting:
            yield first()
    finally:
        for _, future in waiting:
            future.cancel()


def _redo(
    pool: Processes,
    work: Callable[[Item], Result],
    waiting: deque[tuple[Item, Future[Result]]],
    apart: Apart[Item, Result],
) -> None:
    """Have new workers do again what the lost ones have left.

    Items are begun in order, so those that were being worked at are the first that aren't done.
    """
    pool.renew()
    left = [k for k, (_, future) in enumerate(waiting) if _is_lost(future)]
    begun = left[: pool.count]
    for k, result in zip(begun, apart([waiting[k][0] for k in begun]), strict=True):
        done: Future[Result] = Future()
        done.set_result(result)
        waiting[k] = waiting[k][0], done
    for k in left[pool.count :]:
        waiting[k] = waiting[k][0], _submit(pool, work, waiting[k][0])


def _is_lost(future: Future[Any]) -> bool:
    return future.cancelled() or isinstance(future.exception(), BrokenExecutor)


def _submit(pool: Executor, work: Callable[[Item], Result], item: Item) -> Future[Result]:
    try:
        return pool.submit(work, item)
    except (OSError, EOFError) as error:  # of processes: they are started when first needed
        raise EngineError(
            f"no worker can be started: {type(error).__name__}: {error}; run again: it goes on "
            "where it stopped (EVAL_INGEST_WORKERS sets how many there are)"
        ) from error


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items each, the last of what is left.

    >>> list(batched("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    source = iter(items)
    while some := list(islice(source, size)):
        yield some
