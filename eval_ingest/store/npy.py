"""The .npy files of shards: made at their full size, looked at without reading them, and mapped."""

import ctypes
import errno
import functools
import io
import math
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eval_ingest.core.entry import ShardArray
from eval_ingest.errors import EvalIngestError, IntegrityError, lacking
from eval_ingest.store.atomic import store_error

_DAMAGE = {None, errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
"""Of errors: what a file, or what lies in its place, may be the cause of."""


@functools.lru_cache(maxsize=256)
def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """What stands before the first element of an .npy file."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream,
        {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": shape,
        },
    )
    return stream.getvalue()


def create_npy(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """An .npy file of that shape, at its full size, without content.

    Raises:
        OSError: it can't be written.
    """
    header = npy_header(shape, dtype)
    with open(path, "wb") as stream:
        stream.write(header)
        stream.truncate(len(header) + math.prod(shape) * dtype.itemsize)


def check_npy(path: Path, recorded: ShardArray, cure: str) -> None:
    """Compare a file's size and header with what is recorded; no element is read.

    Raises:
        IntegrityError: it is missing, or differs; the message ends with the cure.
    """
    header = npy_header(recorded.shape, np.dtype(recorded.dtype))
    try:
        with open(path, "rb", buffering=0) as stream:
            size, found = os.fstat(stream.fileno()).st_size, stream.read(len(header))
    except FileNotFoundError as error:
        raise IntegrityError(f"the packed samples {path} are missing", cure) from error
    except OSError as error:
        raise unreadable(path, error, cure) from error
    if found != header:
        what = f"their header isn't that of {recorded.dtype} values in the shape {recorded.shape}"
        raise IntegrityError(f"the packed samples {path} are damaged: {what}", cure)
    if {size, len(header) + _n_bytes(recorded)} != {recorded.n_bytes}:
        raise IntegrityError(
            f"the packed samples {path} have {size} bytes, recorded are {recorded.n_bytes}", cure
        )


def unreadable(path: Path | str, error: Exception, cure: str) -> EvalIngestError:
    """What to say of packed samples that can't be read: only some errors are their own fault."""
    if isinstance(error, OSError) and error.errno not in _DAMAGE:
        return store_error(path, "reading the packed samples", error)
    return lacking(error) or IntegrityError(
        f"the packed samples {path} can't be read ({error})", cure
    )


def map_npy(path: Path, recorded: ShardArray) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """A file's bytes in memory that the system fills from it, and the array in there, read-only.

    No file descriptor is kept, as Python's mmap does: datasets of many shards would run out of
    them.

    Raises:
        ValueError: it isn't what was recorded.
        OSError: it can't be read.
    """
    dtype = np.dtype(recorded.dtype)
    header = npy_header(recorded.shape, dtype)
    with pa.memory_map(str(path)) as file:
        size = file.size()
        # All that is read is paged in at once: so only this, which keeps the whole file mapped.
        begin = file.read_buffer(len(header))
    if size != len(header) + _n_bytes(recorded) or begin != pa.py_buffer(header):
        raise ValueError("it isn't what was recorded")
    memory = np.frombuffer(pa.foreign_buffer(begin.address, size, begin), np.uint8)
    return memory, np.ndarray(recorded.shape, dtype, memory, len(header))


def page_in(address: int, length: int) -> None:
    """Have the system read bytes of a mapped file soon, all at once, if they are many."""
    before = address % mmap.PAGESIZE
    if length > mmap.PAGESIZE:
        _madvise(address - before, length + before, mmap.MADV_WILLNEED)


_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


def _n_bytes(recorded: ShardArray) -> int:
    return math.prod(recorded.shape) * np.dtype(recorded.dtype).itemsize
