"""Columns of an Arrow table as numpy arrays, and made of numpy arrays and lists.

Not by Arrow's own to_numpy, array, table or scalar: those import pandas, in every process of an
ingest (0.2 to 0.6 s); nor by to_pylist, which makes an object of every value: a hundred times
slower and larger where there are 100,000 rows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Column: TypeAlias = pa.ChunkedArray | pa.Array

_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)


class Texts(Sequence[str]):
    """Columns of texts without null as one, joined by a slash: each is an object while it is used.

    >>> list(Texts(pa.chunked_array([["a", "b"]]), pa.chunked_array([["c", "d"]])))
    ['a/c', 'b/d']
    """

    def __init__(self, *columns: Column) -> None:
        self._columns = columns

    def __len__(self) -> int:
        return len(self._columns[0])

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return list(Texts(*(column[row] for column in self._columns)))
        return "/".join(column[int(row)].as_py() for column in self._columns)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _FEW):
            parts = (column.slice(start, _FEW).to_pylist() for column in self._columns)
            yield from map("/".join, zip(*parts, strict=True))

    def some(self, rows: NDArray[np.int64]) -> list[str]:
        """Those of some rows: at a fifth of the time that one by one takes."""
        parts = []
        for ends, text in self._buffers:
            spans = zip(ends[rows].tolist(), ends[rows + 1].tolist(), strict=True)
            parts.append([str(text[first:last], "utf-8") for first, last in spans])
        return list(map("/".join, zip(*parts, strict=True)))

    @cached_property
    def _buffers(self) -> list[tuple[NDArray[np.int32], memoryview]]:
        found = []
        for array in map(one_array, self._columns):
            _, ends, text = array.buffers()
            found.append((np.frombuffer(ends, np.int32)[array.offset :], memoryview(text or b"")))
        return found


_FEW = 1 << 12


@contextmanager
def memory_given_back() -> Iterator[None]:
    """Meanwhile Arrow's memory comes from jemalloc, where it was built with it.

    Mimalloc, its own choice, keeps half as much again as tables of many rows take.
    """
    before = pa.default_memory_pool()
    with suppress(NotImplementedError):
        pa.set_memory_pool(pa.jemalloc_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


def one_array(column: Column) -> pa.Array:
    """The column as one array, copied only if it is in pieces."""
    if isinstance(column, pa.ChunkedArray) and column.num_chunks != 1:
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


def values_of(column: Column) -> list[Any]:
    """What to_pylist gives, which imports pandas where there are times: for pieces of a table."""
    if not pa.types.is_timestamp(column.type):
        return list(column.to_pylist())
    microseconds = column.cast(pa.int64()).to_pylist()
    return [None if n is None else _EPOCH + n * _MICROSECOND for n in microseconds]


def digest_numbers(column: pa.Array) -> NDArray[np.int64] | None:
    """Digests of 16 hexadecimal digits as their upper 63 bits, -1 for null; None if some aren't.

    Their number is an eighth of their text in memory, and of what a dictionary of them takes.

    >>> digest_numbers(pa.array(["00000000000000ff", None])).tolist()
    [127, -1]
    """
    known = valid(column)
    _, offsets, data = column.buffers()
    begin = np.frombuffer(offsets, np.int32)[column.offset :][: len(column) + 1]
    if (np.diff(begin)[known] != 16).any():
        return None
    found = np.full(len(column), -1, np.int64)
    letters = np.frombuffer(data or b"", np.uint8)
    value = np.zeros(int(known.sum()), np.uint64)
    for digit in range(16):
        letter = letters[begin[:-1][known] + digit]
        value = value << np.uint64(4) | ((letter & 15) + 9 * (letter >> 6)).astype(np.uint64)
    found[known] = (value >> np.uint64(1)).astype(np.int64)
    return found


def encoded(column: Column) -> tuple[NDArray[np.int64], pa.Array]:
    """A number per row, -1 for null, and the values that they stand for."""
    found = one_array(column).dictionary_encode()
    return numbers(found.indices, -1).astype(np.int64), found.dictionary


def inner_values(lists: pa.ListArray) -> pa.Array:
    """What the lists hold, one after the other; unlike flatten it imports no compute functions."""
    first, last = (int(lists.offsets[k].as_py()) for k in (0, -1))
    return lists.values.slice(first, last - first)


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


def is_text(column: Column, text: str) -> NDArray[np.bool_]:
    """True where a column of texts holds this one."""
    places, values = encoded(column)
    known = values.to_pylist()
    return np.asarray(places == (known.index(text) if text in known else len(known)))


def arrow(values: Sequence[Any] | NDArray[Any], kind: pa.DataType) -> pa.Array:
    """An Arrow array of some values; None stands for null.

    Args:
        values: numbers, texts, bytes, times with their time zone, lists, or mappings, as in `kind`.
        kind: any of the types that our tables have.

    Raises:
        OverflowError: a number doesn't fit the type, or texts are more than 2 GiB.

    >>> arrow([[1, 2], None, []], pa.list_(pa.int32())).to_pylist()
    [[1, 2], None, []]
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "iuf":
        bare = np.ascontiguousarray(values, kind.to_pandas_dtype())
        return pa.Array.from_buffers(kind, len(bare), [None, pa.py_buffer(bare)])
    known = np.fromiter((value is not None for value in values), bool, len(values))
    nulls = len(values) - int(known.sum())
    valid_ = pa.py_buffer(np.packbits(known, bitorder="little")) if nulls else None
    some = [value for value in values if value is not None] if nulls else values
    if pa.types.is_struct(kind):
        columns = [
            arrow([None if value is None else value.get(field.name) for value in values],
                  field.type)
            for field in kind
        ]  # fmt: skip
        return pa.Array.from_buffers(kind, len(values), [valid_], nulls, children=columns)
    if pa.types.is_list(kind):
        inner = arrow([*chain(*some)], kind.value_type)
        buffers = [valid_, _offsets(known, map(len, some))]
        return pa.Array.from_buffers(kind, len(values), buffers, nulls, children=[inner])
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        texts = [v.encode() for v in some] if pa.types.is_string(kind) else some
        buffers = [valid_, _offsets(known, map(len, texts)), pa.py_buffer(b"".join(texts))]
        return pa.Array.from_buffers(kind, len(values), buffers, nulls)
    is_time = pa.types.is_timestamp(kind)
    bare = np.zeros(len(values), np.int64 if is_time else kind.to_pandas_dtype())
    bare[known] = [(time - _EPOCH) // _MICROSECOND for time in some] if is_time else some
    return pa.Array.from_buffers(kind, len(values), [valid_, pa.py_buffer(bare)], nulls)


def _offsets(known: NDArray[np.bool_], sizes: Iterable[int]) -> pa.Buffer:
    """Where each value of a column begins, and the last one ends."""
    ends = np.zeros(len(known) + 1, np.int64)
    ends[1:][known] = np.fromiter(sizes, np.int64)
    ends = ends.cumsum()
    if ends[-1] > np.iinfo(np.int32).max:
        raise OverflowError(f"a column of {ends[-1]:,} bytes or values is more than Arrow's 2 GiB")
    return pa.py_buffer(ends.astype(np.int32))


def arrow_table(columns: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    """A table of columns, each an Arrow array or what `arrow` takes."""
    arrays = [
        column if isinstance(column, Column) else arrow(column, field.type)
        for field, column in ((field, columns[field.name]) for field in schema)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def arrow_rows(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """A table of rows; what a row lacks is null."""
    return arrow_table({name: [row.get(name) for row in rows] for name in schema.names}, schema)


def row_numbers(rows: Sequence[int | None] | NDArray[np.integer[Any]]) -> pa.Array:
    """Numbers of rows, as `take` wants them; the row of None is null."""
    return arrow(rows, pa.int64())
