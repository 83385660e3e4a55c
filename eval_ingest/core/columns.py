"""Columns of an Arrow table as numpy arrays.

Not by Arrow's own to_numpy, array or scalar: those import pandas (0.6 s); nor by to_pylist, which
makes an object of every value: a hundred times slower and larger where there are 100,000 rows.
"""

from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Column: TypeAlias = pa.ChunkedArray | pa.Array


def one_array(column: Column) -> pa.Array:
    """The column as one array, copied only if it is in pieces."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # one piece, or none, stays chunked in some versions
        return column.chunk(0) if column.num_chunks else pa.nulls(0, column.type)
    return column


def numbers(column: Column, null: float | None = None) -> NDArray[Any]:
    """A column of numbers, in its own type.

    Args:
        column: numbers, not booleans.
        null: stands for what is null; None: nothing is.
    """
    array = one_array(column)
    if not array.null_count:
        return np.from_dlpack(array)
    if null is None:
        raise ValueError(f"{array.null_count} of {len(array)} values are null")
    bare = pa.Array.from_buffers(
        array.type, len(array), [None, array.buffers()[1]], offset=array.offset
    )
    return np.where(valid(array), np.from_dlpack(bare), array.type.to_pandas_dtype()(null))


def valid(column: Column) -> NDArray[np.bool_]:
    """True where a column isn't null."""
    return np.from_dlpack(one_array(column).is_valid().cast(pa.uint8())).astype(bool)


def floats(column: Column) -> NDArray[np.float64]:
    """Numbers or times (in the column's unit since 1970) as float64; null is NaN."""
    array = one_array(column)
    if pa.types.is_temporal(array.type):
        array = array.cast(pa.int64())
    return numbers(array.cast(pa.float64(), safe=False), np.nan)


def codes(column: Column) -> NDArray[np.int64]:
    """A number per row that is equal where the values are; -1 for null."""
    return encoded(column)[0]


def encoded(column: Column) -> tuple[NDArray[np.int64], pa.Array]:
    """Codes as `codes` gives them, and the values that they stand for."""
    found = one_array(column).dictionary_encode()
    return numbers(found.indices, -1).astype(np.int64), found.dictionary


def lengths(column: Column) -> NDArray[np.int64]:
    """Lengths of the lists in a column; 0 for null."""
    import pyarrow.compute as pc  # 0.2 s, which training does without

    return numbers(pc.list_value_length(one_array(column)), 0).astype(np.int64)


def matrix(column: Column, width: int, fill: float, dtype: type) -> NDArray[Any]:
    """Lists of numbers as rows (N, width); `fill` where a list is null or too short."""
    lists = one_array(column)
    there = lengths(lists)
    result: NDArray[Any] = np.full((len(lists), width), fill, dtype)
    values = numbers(lists.flatten(), fill)
    if len(there) and (there == width).all():
        result[:] = values.reshape(result.shape)
    else:
        result[np.arange(width) < there[:, None]] = values
    return result
