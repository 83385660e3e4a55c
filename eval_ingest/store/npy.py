"""The .npy files of shards: made at their full size, and looked at without reading them."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from eval_ingest.core.entry import ShardArray
from eval_ingest.errors import IntegrityError


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


def data_start(path: Path) -> int:
    """Where the first element lies, in bytes."""
    with open(path, "rb") as stream:
        np.lib.format.read_magic(stream)
        np.lib.format.read_array_header_1_0(stream)
        return stream.tell()


def check_npy(path: Path, recorded: ShardArray, cure: str) -> None:
    """Compare a file's size and header with what is recorded; no element is read.

    Raises:
        IntegrityError: it is missing, or differs; the message ends with the cure.
    """
    expected = (recorded.shape, False, np.dtype(recorded.dtype))
    found: Any
    try:
        size = path.stat().st_size
        with open(path, "rb") as stream:
            version = np.lib.format.read_magic(stream)
            found = np.lib.format.read_array_header_1_0(stream)
            start = stream.tell()
            found = found if version == (1, 0) else f"it is of version {version}"
    except FileNotFoundError as error:
        raise IntegrityError(f"the packed samples {path} are missing", cure) from error
    except Exception as error:  # numpy parses a header as Python: damage may lead to anything
        found = f"{type(error).__name__}: {error}"
    if found != expected:
        raise IntegrityError(
            f"the packed samples {path} are damaged: the header says {found}, recorded is "
            f"{expected}",
            cure,
        )
    n_bytes = start + math.prod(recorded.shape) * expected[2].itemsize
    if {size, n_bytes} != {recorded.n_bytes}:
        raise IntegrityError(
            f"the packed samples {path} have {size} bytes, recorded are {recorded.n_bytes}", cure
        )
