"""An ingest in a process of its own that is killed at a chosen moment.

There are two kinds of moments: before the n-th change to the eval root (an audit hook counts
files that are opened for writing, renames, removals and new folders), and after some seconds.

Worker processes are not the ingest's children: it has them forked by a server. So everything that
it starts is found by a mark in its environment, also when the ingest itself is gone.
"""

import contextlib
import functools
import multiprocessing
import multiprocessing.forkserver
import os
import resource
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from eval_ingest import pipeline
from eval_ingest.copying import transfer
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.engine import no_progress
from eval_ingest.errors import EvalIngestError
from eval_ingest.indexing import arriving, build, partial
from eval_ingest.job import Job, open_job
from eval_ingest.settings import DEFAULT_CACHE, Settings
from eval_ingest.sources import window_table
from eval_ingest.store.roots import base

MARK = "TESTS_OF_EVAL_INGEST"
"""An environment variable: whoever has the same value belongs together."""

KILLED = -signal.SIGKILL
OUR_ERROR, OTHER_ERROR = 3, 4
"""Exit codes of a run that ended with an EvalIngestError, or with anything else."""

ENDS_WITHIN_S = 10.0
"""Time that what an ingest has started may outlive it."""

_REPOSITORY = str(Path(__file__).parents[2])
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.utime"}


@dataclass(frozen=True)
class Run:
    """One ingest of one dataset."""

    source: str
    root: Path | str
    """A folder, or the URL of a bucket's."""
    name: str = "crops"
    engine: str = "threads"
    overwrite: bool = False
    spec: Mapping[str, Any] = field(default_factory=dict)
    shard_bytes: int = base.MAX_SHARD_BYTES
    """Of a shard at most; the real limit is far too large for a test."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """More of it, for a process of its own."""
    limits: Mapping[int, int] = field(default_factory=dict)
    """resource.RLIMIT_* and the soft limit, for a process of its own; of memory (RLIMIT_DATA) what
    it may take beyond what it has."""

    def job(self, progress: Callable[[str, int, int], None] = no_progress) -> Job:
        """What pipeline.ingest takes."""
        values = {"name": self.name, "source": self.source, **self.spec}
        cache = self.environment.get("EVAL_INGEST_CACHE", DEFAULT_CACHE)
        root = str(self.root)
        settings = Settings(eval_root=root, workers=2, engine=self.engine, cache=cache)
        return open_job(DatasetSpec.parse(values, "test"), settings, progress=progress)

    def do(self, progress: Callable[[str, int, int], None] = no_progress) -> None:
        """Ingest, in steps of two windows, so that there are many moments to be stopped at."""
        with (
            patch.multiple(build, SHARD_WINDOWS=2),
            patch.multiple(partial, PARTIAL_ROWS=4),
            patch.multiple(transfer, _TASK_WINDOWS=2, _MOVED_TOGETHER=2),
            patch.multiple(arriving, _TOGETHER=2),
            patch.multiple(window_table, _WAITING=1),
            patch.object(base, "MAX_SHARD_BYTES", self.shard_bytes),
        ):
            job = self.job(progress)
            if self.overwrite:
                pipeline.forget(job)
            pipeline.ingest(job)

    def stop(self, at: str = "windows read", after: int = 6) -> None:
        """Ingest until so many windows are at a step, and no further."""

        def stop(what: str, done: int, total: int) -> None:
            if what == at and done >= after:
                raise KeyboardInterrupt

        try:
            self.do(stop)
        except KeyboardInterrupt:
            return
        raise AssertionError(f"the ingest ended without {after} {at}")

    def into(self, root: Path | str, **changes: Any) -> "Run":
        """The same run elsewhere."""
        return replace(self, root=root, **changes)


@dataclass
class Process:
    """A run in a process of its own."""

    process: Any
    log: Path
    mark: str

    def wait(self, seconds: float = 120) -> int:
        """The exit code: 0, KILLED, OUR_ERROR or OTHER_ERROR; a run that hangs is a failure.

        Nothing that it has started may outlive it for long.
        """
        if not wait_until(lambda: not self.process.is_alive(), seconds):
            self.kill()
            raise AssertionError(f"the ingest hangs\n{self.text}")
        self._alone()
        return int(self.process.exitcode)

    def kill(self) -> None:
        """SIGKILL to the process itself, and to nothing that it has started: that ends by itself.

        Raises:
            AssertionError: something lives on.
        """
        self.process.kill()
        self.process.join()
        self._alone()

    def _alone(self) -> None:
        if not wait_until(lambda: not marked(self.mark), ENDS_WITHIN_S):
            left = {pid: command(pid) for pid in marked(self.mark)}
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"{ENDS_WITHIN_S} s after the ingest's end there are still {left}")

    @property
    def started(self) -> list[int]:
        """Every process that it has started, and those that these have: server and workers."""
        return marked(self.mark)

    @property
    def alive(self) -> bool:
        """False once it has ended."""
        return bool(self.process.is_alive())

    @property
    def workers(self) -> list[int]:
        """Processes that decode and copy for it: its fork server's children."""
        return [
            worker
            for server in _children(self.process.pid)
            if "forkserver" in command(server)
            for worker in _children(server)
        ]

    @property
    def text(self) -> str:
        """What it said when it failed, or how many changes it made."""
        return self.log.read_text() if self.log.exists() else ""


def start(run: Run, log: Path, kill_at: int | None = None) -> Process:
    """Begin a run.

    Args:
        run: what is to be ingested.
        log: takes the error, if it fails, and the number of changes, if it doesn't.
        kill_at: the process ends by SIGKILL instead of making this change (the first is 1).
    """
    log.unlink(missing_ok=True)
    mark = uuid.uuid4().hex
    process = context().Process(target=_main, args=(run, log, kill_at, mark), daemon=False)
    process.start()
    return Process(process, log, mark)


def context() -> multiprocessing.context.ForkServerContext:
    """Processes forked from one that has imported what an ingest needs: they begin at once."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload([__name__, "shapely", "pandas", "pyproj", "filelock"])
    # The server finds modules from its working folder alone, and tests work elsewhere.
    with patch.dict(os.environ, PYTHONPATH=_REPOSITORY):
        multiprocessing.forkserver.ensure_running()
    return found


@dataclass
class Changes:
    """An audit hook that counts the changes to a root, and stops whoever makes one of them."""

    root: Path | str
    stop_at: int
    """The number of that change, from 1 on; 0: none."""
    stop: Callable[[], object]
    number: int = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        if not writes and event not in _CHANGES:
            return
        # rmtree gives names relative to a folder that it holds open.
        path = os.fspath(arguments[0]) if isinstance(arguments[0], str | Path) else ""
        if path.startswith("/") and not f"{path}/".startswith(f"{self.root}/"):
            return
        self.number += 1
        if self.number == self.stop_at:
            self.stop()


_counting: list[Changes] = []


def _count(event: str, arguments: tuple[Any, ...]) -> None:
    for counted in _counting:
        counted(event, arguments)


@functools.cache
def _add_hook() -> None:
    sys.addaudithook(_count)  # for good: none can be taken away


@contextlib.contextmanager
def changes(
    root: Path, stop_at: int = 0, error: type[BaseException] = KeyboardInterrupt
) -> Iterator[Changes]:
    """Count the changes that this process makes to a root, and raise in the place of one."""

    def stop() -> None:
        raise error

    _add_hook()
    counted = Changes(root, stop_at, stop)
    _counting.append(counted)
    try:
        yield counted
    finally:
        _counting.remove(counted)


def _main(run: Run, log: Path, kill_at: int | None, mark: str) -> None:
    os.environ.update(run.environment)
    for limit, value in run.limits.items():
        more = _data_bytes() if limit == resource.RLIMIT_DATA else 0
        resource.setrlimit(limit, (value + more, resource.getrlimit(limit)[1]))
    os.environ[MARK] = mark  # of what is started from here on
    counted = Changes(run.root, kill_at or 0, lambda: os.kill(os.getpid(), signal.SIGKILL))
    sys.addaudithook(counted)
    try:
        run.do()
    except EvalIngestError as error:
        log.write_text(f"{type(error).__name__}: {error}")
        os._exit(OUR_ERROR)
    except BaseException:
        log.write_text(traceback.format_exc())
        os._exit(OTHER_ERROR)
    log.write_text(str(counted.number))


def _data_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData"))


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def marked(mark: str) -> list[int]:
    """Running processes that were started with a mark in their environment."""
    entry = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if entry in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return [pid for pid in found if pid != os.getpid() and is_running(pid)]


def command(pid: int) -> str:
    """The command line of a process; empty once it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def wait_until(true: Callable[[], bool], seconds: float = 60) -> bool:
    """Wait for something; False if it doesn't come true in so many seconds of a quiet machine."""
    started = time.monotonic()
    while not true():
        if time.monotonic() - started > seconds * slower():
            return False
        time.sleep(0.005)
    return True


def slower() -> float:
    """How many times as long everything takes while other work keeps this machine busy.

    What waits for a processor hasn't gone on, and still it doesn't hang.
    """
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def is_running(pid: int) -> bool:
    """True for a process that has not ended; one that only waits to be collected has."""
    return _stat(pid)[0] != "Z"


def parent(pid: int) -> int:
    """The process that it was forked from, or that has taken it over; 0 once it is gone."""
    return int(_stat(pid)[1])


def _stat(pid: int) -> list[str]:
    """State, parent, and more."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return ["Z", "0"]
