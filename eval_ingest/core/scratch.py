"""Buffers that a thread uses again and again.

A fresh array of a megabyte is fresh memory from the system, and touching it for the first time
costs more than the arithmetic that is done on it.
"""

import threading
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_buffers = threading.local()


def scratch(purpose: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An uninitialised array, valid until this thread asks for the same purpose again."""
    wanted = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * wanted.itemsize
    buffer = getattr(_buffers, purpose, None)
    if buffer is None or buffer.nbytes < size:
        buffer = np.empty(size, np.uint8)
        setattr(_buffers, purpose, buffer)
    result: NDArray[Any] = buffer[:size].view(wanted).reshape(shape)
    return result
