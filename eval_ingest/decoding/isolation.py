"""What may crash, hang or fill the memory runs in a process beside this one, with limits on both.

Most rasters are decoded here by our own code, or by libtiff once their header has been checked.
Everything else goes through GDAL's or rslearn's hands: unusual compressions, headers that we don't
understand, other formats. Their process is kept for the next raster; if one ends it, that raster
is unreadable, and the ingest goes on.
"""

import contextlib
import errno
import fcntl
import io
import mmap
import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_ingest.decoding.machine import blame, machine_faults_told
from eval_ingest.decoding.problems import Unreadable, shortened
from eval_ingest.engine import (
    killed_because,
    leave_removed_folder,
    oom_kills,
    prepare_worker,
    start_alone,
)
from eval_ingest.errors import EvalIngestError, MachineError, SourceError, lacking

MIB = 1 << 20
MEMORY_BYTES = 512 * MIB
"""That a decoder may take beyond what its libraries take, for one raster and its pixels."""
SECONDS = 60.0
"""That a decoder may take for one raster."""

_IDLE_S = 10.0
"""A process that isn't asked for anything ends by itself."""
_CHUNK = 16 * MIB
_ENVIRONMENT = {
    "GDAL_CACHEMAX": "32",
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # nothing beside a raster is looked for
    "GDAL_SKIP": "VRT,WMS,WMTS,WCS,HTTP,GTI,DERIVED,EEDAI,MRF",  # these follow paths and URLs
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".none",
    "PROJ_NETWORK": "OFF",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}

Result = tuple[NDArray[Any] | None, Any]
"""Pixels, and anything small beside them."""


class Isolated:
    """Processes that run functions with limits: as many as threads ask for at a time."""

    def __init__(self) -> None:
        self._idle: list[_Helper] = []
        self._lock = threading.Lock()

    def run(
        self,
        function: Callable[..., Result],
        *args: Any,
        seconds: float = SECONDS,
        shared: Sequence["Shared"] = (),
    ) -> Result:
        """What a function gives, called in another process.

        Its module has a function `load_libraries`, which is called before the limits are set.

        Args:
            function: gets the arguments, and after them what is shared.
            args: of which the first may be bytes of any size; the others are pickled.
            seconds: that it may take.
            shared: memory that counts for no limit, and of which there is no second copy.

        Raises:
            Unreadable: `decoder_stopped` if it crashed, took too long or too much memory; or
                what the function raises.
            MachineError: this machine can't do it, whatever the data.
            SourceError: the source can't be reached.
        """
        if multiprocessing.current_process().daemon:
            # A dask worker may start no process.
            return _call(function, (*args, *shared), limited=False)
        request = function, args, seconds, shared
        try:
            return self._ask(self._take(), request)
        except _GoneError:  # it was idle for too long just now
            return self._ask(_Helper(), request)

    def _ask(self, helper: "_Helper", request: tuple[Any, ...]) -> Result:
        try:
            return helper.ask(*request)
        finally:
            if not helper.ended:
                with self._lock:
                    self._idle.append(helper)

    def close(self) -> None:
        """End the processes that wait; they would soon end by themselves."""
        with self._lock:
            while self._idle:
                self._idle.pop().end()

    def _take(self) -> "_Helper":
        with self._lock:
            while self._idle:
                helper = self._idle.pop()
                if helper.process.is_alive():
                    return helper
        return _Helper()


class _GoneError(Exception):
    """A process had ended before it was asked."""


class _Helper:
    """One process that waits for a function, calls it, and waits for the next."""

    def __init__(self) -> None:
        self.ended = False
        self._kills = oom_kills()
        self._pipe, theirs = multiprocessing.Pipe()
        try:
            self.process: BaseProcess = start_alone(_serve, theirs, dict(os.environ))
            theirs.close()
            self._pipe.recv()  # from now on, what it reads may be what ends it
        except (OSError, EOFError) as error:
            raise MachineError(
                f"no process can be started to decode a raster: {error}; free memory or process "
                "ids, and run again: it goes on where it stopped"
            ) from error
        finally:
            theirs.close()

    def ask(
        self,
        function: Callable[..., Result],
        args: tuple[Any, ...],
        seconds: float,
        shared: Sequence["Shared"],
    ) -> Result:
        try:
            large = [value for value in args[:1] if isinstance(value, bytes)]
            _send(self._pipe, (function, args[len(large) :], len(shared)), *large)
            if shared:
                _send_files(self._pipe, [memory.file for memory in shared])
            if not self._pipe.poll(seconds):
                self.end()
                raise Unreadable("decoder_stopped", f"decoding took more than {seconds:.0f} s")
            return self._receive()
        except (Unreadable, EvalIngestError):
            raise
        except (EOFError, OSError) as error:
            self.end()
            raise lacking(error) or self._ended() from error
        except BaseException:
            self.end()
            raise

    def _receive(self) -> Result:
        (kind, *told), large = _receive(self._pipe)
        if kind == "problem":
            raise Unreadable(*told)
        if kind == "error":
            name, text = told
            raise (SourceError if name == "SourceError" else MachineError)(text)
        meta, shape, dtype = told
        if shape is None:
            return None, meta
        return np.frombuffer(large[0], dtype).reshape(shape), meta

    def end(self) -> None:
        """End it, whatever it does."""
        self.ended = True
        self._pipe.close()
        self.process.kill()
        self.process.join()

    def _ended(self) -> Exception:
        """What to say of a process that has ended by itself."""
        code = self.process.exitcode
        if code == 0:
            return _GoneError()
        if code == -signal.SIGKILL:  # by nothing that it read: that would have had an error first
            return MachineError(
                f"a process that decoded a raster was killed, {killed_because(self._kills)}"
            )
        return Unreadable("decoder_stopped", f"the decoder crashed (exit code {code})")


class Shared:
    """Zeros that a helper sees too, and may change, but neither of us can make shorter."""

    def __init__(self, file: int) -> None:
        self.file = file

    @classmethod
    @contextlib.contextmanager
    def of(cls, n_bytes: int) -> Iterator["Shared"]:
        """So many of them; views of them may be kept for longer."""
        linux = sys.platform == "linux"
        if linux:
            file = os.memfd_create("eval_ingest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        else:
            with tempfile.TemporaryFile() as stream:
                file = os.dup(stream.fileno())
        try:
            os.truncate(file, n_bytes)
            if linux:
                fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            yield cls(file)
        finally:
            os.close(file)

    def write(self, data: bytes) -> None:
        """Put bytes at the beginning."""
        view, at = memoryview(data), 0
        while at < len(view):
            at += os.pwrite(self.file, view[at : at + _CHUNK], at)

    def view(self) -> mmap.mmap:
        """All of it."""
        return mmap.mmap(self.file, 0)


def _send_files(pipe: Connection, files: list[int]) -> None:
    with socket.socket(fileno=os.dup(pipe.fileno())) as way:
        socket.send_fds(way, [b"f"], files)


def _receive_files(pipe: Connection, count: int) -> list[Shared]:
    with socket.socket(fileno=os.dup(pipe.fileno())) as way:
        files = socket.recv_fds(way, 1, count)[1]
    if len(files) < count:  # the system leaves out those that this process can't have
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return [Shared(file) for file in files]


def _send(pipe: Connection, message: Any, *large: bytes | NDArray[Any]) -> None:
    """Send a message, and bytes beside it of which no copy is made."""
    views = [np.frombuffer(data, np.uint8).data for data in large]
    pipe.send((message, [len(view) for view in views]))
    for view in views:
        for start in range(0, len(view), _CHUNK):
            pipe.send_bytes(view[start : start + _CHUNK])


def _receive(pipe: Connection) -> tuple[Any, list[bytes]]:
    message, sizes = pipe.recv()
    large = []
    for size in sizes:
        stream = io.BytesIO()
        while stream.tell() < size:
            stream.write(pipe.recv_bytes())
        large.append(stream.getvalue())
    return message, large


def _serve(pipe: Connection, environment: dict[str, str]) -> None:
    """Runs in the helper: answer until nobody asks any more."""
    prepare_worker(environment | _ENVIRONMENT)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")  # what they are about is told as a problem
    with contextlib.suppress(EOFError, OSError):
        pipe.send("ready")
        while pipe.poll(_IDLE_S):
            _answer(pipe, *_receive(pipe))
    os._exit(0)  # no library is asked whether it would end well


def _answer(pipe: Connection, request: tuple[Callable[..., Result], Any, int], large: Any) -> None:
    function, args, n_shared = request
    shared: list[Shared] = []
    leave_removed_folder()
    try:
        with machine_faults_told():
            shared = _receive_files(pipe, n_shared) if n_shared else []
        pixels, meta = _call(function, (*large, *args, *shared), limited=True)
    except Unreadable as problem:
        return _send(pipe, ("problem", problem.code, problem.detail))
    except EvalIngestError as error:
        return _send(pipe, ("error", type(error).__name__, str(error)))
    finally:
        for memory in shared:
            os.close(memory.file)
    large.clear()  # as large as the pixels, which stand here and there for a while
    if pixels is None:
        return _send(pipe, ("ok", meta, None, None))
    pixels = np.ascontiguousarray(pixels)
    told = "ok", meta, pixels.shape, pixels.dtype.str
    return _send(pipe, told, pixels)


def _call(function: Callable[..., Result], args: tuple[Any, ...], limited: bool) -> Result:
    has_enough = False
    try:
        sys.modules[function.__module__].load_libraries()  # these count for nothing
        has_enough = limited and limit_memory(MEMORY_BYTES)
        return function(*args)
    except (Unreadable, EvalIngestError):
        raise
    except Exception as error:  # a decoder may raise anything
        blame(error, memory_is_limited=has_enough)
        if _is_of_memory(error):
            raise Unreadable(
                "decoder_stopped", f"decoding needs more than {MEMORY_BYTES // MIB} MiB of memory"
            ) from error
        raise Unreadable("raster_unreadable", shortened(error)) from error
    finally:
        if limited:
            limit_memory(None)


def limit_memory(n_bytes: int | None) -> bool:
    """Let this process take so many bytes more than it has now; None lifts the limit.

    False if the machine doesn't let it take as many.
    """
    if sys.platform != "linux":  # elsewhere the limit on time stands alone
        return True
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if n_bytes is None:
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
        return True
    with open("/proc/self/statm") as stream:
        taken = int(stream.read().split()[5]) * resource.getpagesize()
    limit = taken + n_bytes
    allowed = limit if hard < 0 else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))
    return allowed == limit


def _is_of_memory(error: BaseException) -> bool:
    text = str(error).lower()[:2_000]
    return isinstance(error, MemoryError) or any(
        words in text for words in ("out of memory", "cannot allocate", "bad_alloc", "std::bad")
    )


isolated = Isolated()
"""This process's helpers."""

# Those of a parent answer the parent; a lock that one of its threads held would stay locked.
os.register_at_fork(after_in_child=isolated.__init__)  # type: ignore[misc]
