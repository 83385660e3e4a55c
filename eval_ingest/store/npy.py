"""The .npy files of shards: made at their full size, looked at without reading them, and mapped."""

import errno
import functools
import io
import math
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
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


def map_npy(path: Path, recorded: ShardArray) -> tuple[mmap.mmap, NDArray[Any]]:
    """A file in memory that the system fills from it, and the array in there, read-only.

    Raises:
        ValueError: it isn't what was recorded.
        OSError: it can't be read.
    """
    with open(path, "rb", buffering=0) as stream:
        memory = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    dtype = np.dtype(recorded.dtype)
    header = npy_header(recorded.shape, dtype)
    if len(memory) != len(header) + _n_bytes(recorded) or memory[: len(header)] != header:
        raise ValueError("it isn't what was recorded")
    return memory, np.ndarray(recorded.shape, dtype, memory, len(header))


def _n_bytes(recorded: ShardArray) -> int:
    return math.prod(recorded.shape) * np.dtype(recorded.dtype).itemsize
