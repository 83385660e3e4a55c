"""A split's index, {split}/index.<fingerprint>.parquet: its schema, its writer and its reader.

A row is a sample: which window it is of, where it lies in the shards, and its dates. Which samples
a split has, and in which order, is decided elsewhere (copying/places.py).
"""

import operator
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from eval_ingest.core.bounds import MOST_PIXELS
from eval_ingest.core.columns import (
    Column,
    Texts,
    arrow,
    arrow_table,
    inner_values,
    lengths,
    numbers,
    one_array,
    row_numbers,
)
from eval_ingest.core.entry import SPLIT_INDEX_VERSION
from eval_ingest.core.forms import ColumnForm, TableForm
from eval_ingest.errors import IntegrityError
from eval_ingest.store.records import undamaged
from eval_ingest.store.seal import cure_for
from eval_ingest.store.tables import read_table, write_table

TARGET = "target"

_TOGETHER = 1 << 13
"""Samples whose dates are worked out at a time: on the way there are ten numbers for each."""

# --------------------------------------------------------------------------------------- schema


def _dates_of(values: pa.Array) -> bool:
    """True if the lists are of days, months from 0 and years."""
    found = numbers(inner_values(values))
    most = (np.max(found[k::3], initial=0) for k in range(3))
    return len(found) % 3 == 0 and all(map(operator.le, most, (31, 11, 9999)))


SPLIT_INDEX_FORM = TableForm(
    "split_index",
    SPLIT_INDEX_VERSION,
    {
        "group": ColumnForm(pa.string(), whole=True),
        "name": ColumnForm(pa.string(), whole=True),
        "shard": ColumnForm(pa.int32(), whole=True, low=-1),
        "row": ColumnForm(pa.int64(), whole=True, low=-1),
        "source_digest": ColumnForm(pa.string(), whole=True, needed=False),
        "height": ColumnForm(pa.int32(), whole=True, low=1, high=MOST_PIXELS),
        "width": ColumnForm(pa.int32(), whole=True, low=1, high=MOST_PIXELS),
        "*.offset": ColumnForm(pa.int64(), whole=True),
        "*.timesteps": ColumnForm(pa.int32(), whole=True, high=MOST_PIXELS),
        "*.timestamps": ColumnForm(pa.list_(pa.int32()), whole=True, high=9999, right=_dates_of),
        "top": ColumnForm(pa.int32(), whole=True, needed=False, high=MOST_PIXELS),
        "left": ColumnForm(pa.int32(), whole=True, needed=False, high=MOST_PIXELS),
        TARGET: ColumnForm(pa.float64(), whole=True, needed=False),
    },
)
"""The columns of a split's index, a row for each sample in the order of the split.

| column | |
|---|---|
| group, name | of the window |
| shard, row | the number of the shard in metadata.json, and the row in it; -1 where samples are read from the source |
| source_digest | of the files that the sample is made of; only where they are read from the source |
| height, width | of the window, in pixels |
| top, left | the sample's first row and column in its window; only where every crop is a sample |
| target | class or number of the crop; only there, and where a window has but one |
| `<array>.offset` | first element in the shard's file, where its rows differ in shape |
| `<modality>.timesteps` | T; 0 where the window lacks the modality |
| `<modality>.timestamps` | T x [day, month from 0, year], flat: see `timestamps_column` |
"""  # noqa: E501


def split_index_schema(modalities: Sequence[str], optional: Container[str] = ()) -> pa.Schema:
    """The columns that a split's index has: those of these modalities, and what it may have."""
    return SPLIT_INDEX_FORM.schema(_names(modalities, optional))


def _names(modalities: Sequence[str], optional: Container[str] = ()) -> list[str]:
    first, last = list(SPLIT_INDEX_FORM.columns)[:7], list(SPLIT_INDEX_FORM.columns)[-3:]
    names = [name for name in first if name != "source_digest" or name in optional]
    names += [f"{name}.offset" for name in (*modalities, TARGET)]
    names += [f"{name}.{what}" for name in modalities for what in ("timesteps", "timestamps")]
    return names + [name for name in last if name in optional]


# --------------------------------------------------------------------------------------- writer


class Crops(NamedTuple):
    """Every crop of a split's windows, in order."""

    window: list[int]
    """Which of the split's windows each is of."""
    corners: list[tuple[int, int]]
    """Its first row and column."""
    targets: list[float] | None
    """Classes or numbers, where the crops' targets aren't cut from the windows'."""


def write_split_index(
    path: Path,
    modalities: Sequence[str],
    columns: Mapping[str, Any],
    crops: Crops | None = None,
) -> None:
    """Write a split's index.

    Args:
        path: see DatasetLayout.split_index.
        modalities: of the dataset, all of them.
        columns: by name, those of `split_index_schema`, a value a window.
        crops: the samples, where they are crops; default: a sample a window.

    Raises:
        StoreError: it can't be written.
    """
    table = arrow_table(columns, split_index_schema(modalities, columns))
    if crops is not None:
        table = _repeated(table, crops)
    write_table(path, table, SPLIT_INDEX_FORM)


def _repeated(table: pa.Table, crops: Crops) -> pa.Table:
    """A row for each crop, from a row for each window."""
    table = table.take(row_numbers(crops.window))
    for k, name in enumerate(("top", "left")):
        corner = arrow([corner[k] for corner in crops.corners], pa.int32())
        table = table.append_column(name, corner)
    if crops.targets is not None:
        table = table.append_column(TARGET, arrow(crops.targets, pa.float64()))
    return table


def timestamps_column(
    index: pa.Table, modality: str, rows: Sequence[int], steps: ArrayLike
) -> pa.ChunkedArray:
    """Per sample its timesteps' dates, flat: T x [day, month from 0, year].

    A date is the middle of the timestep's interval, or of the window's time range where the
    rasters don't say; zeros where that is unknown too.

    Args:
        index: the rows of a window index.
        modality: one of its modalities.
        rows: of the samples' windows in it.
        steps: timesteps of each sample.
    """
    table = index.select([f"{modality}.timestamps", "time_start", "time_end"])
    table = pa.Table.from_batches(table.to_batches(), table.schema)
    counts = np.asarray(steps, np.int64)
    some = [slice(start, start + _TOGETHER) for start in range(0, len(rows), _TOGETHER)]
    parts = [_stamps(table.take(row_numbers(rows[part])), modality, counts[part]) for part in some]
    return pa.chunked_array(parts, pa.list_(pa.int32()))


def _stamps(table: pa.Table, modality: str, counts: NDArray[np.int64]) -> pa.ListArray:
    """The dates of some samples, whose windows' rows these are, each with so many timesteps."""
    lists = one_array(table[f"{modality}.timestamps"])
    known = lists.flatten()
    found = lengths(lists)
    first, told = np.cumsum(found) - found, found == counts
    # The rasters' own, then the windows'.
    middles = np.concatenate(
        [
            _middles(*(known.flatten()[known.type.get_field_index(n)] for n in ("start", "end"))),
            _middles(table["time_start"], table["time_end"]),
        ]
    )
    sample = np.repeat(np.arange(len(counts)), counts)
    step = np.arange(len(sample)) - np.repeat(np.cumsum(counts) - counts, counts)
    places = np.where(told[sample], first[sample] + step, len(known) + sample)
    dates = _dates(middles[places])
    offsets = np.concatenate([[0], np.cumsum(3 * counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(
        *(arrow(part.reshape(-1), pa.int32()) for part in (offsets, dates))
    )


def _middles(start: Column, end: Column) -> NDArray[np.datetime64]:
    """The middle of each interval; NaT where it has no start or end."""
    nat = np.iinfo(np.int64).min
    first, last = (numbers(one_array(c).cast(pa.int64()), nat) for c in (start, end))
    unknown = (first == nat) | (last == nat)
    return np.where(unknown, nat, first + (last - first) // 2).astype("datetime64[us]")


def _dates(times: NDArray[np.datetime64]) -> NDArray[np.int32]:
    """Times as (N, 3): day, month from 0, year; zeros for NaT."""
    days, months, years = (times.astype(f"datetime64[{unit}]") for unit in "DMY")
    day = (days - months.astype("datetime64[D]")).astype(np.int64) + 1
    month = (months - years.astype("datetime64[M]")).astype(np.int64)
    dates = np.column_stack([day, month, years.astype(np.int64) + 1970])
    dates[np.isnat(times)] = 0
    return dates.astype(np.int32)


# --------------------------------------------------------------------------------------- reader


class SplitIndex:
    """A split's index as arrays, a row for each sample; texts are only decoded when asked for.

    Args:
        path: the index file.
        name: the dataset, for messages.
        modalities: of the dataset, all of them.

    Raises:
        IntegrityError: it is missing or damaged.
    """

    def __init__(self, path: Path, name: str, modalities: list[str]) -> None:
        found = read_table(path, SPLIT_INDEX_FORM, name)
        if found is None:
            raise IntegrityError(
                f"the index {path} is missing, or of another version", cure_for(name)
            )
        table = found[0]
        columns = dict(zip(table.column_names, table.columns, strict=True))
        lacking = (n for n in _names(modalities) if n not in columns)
        undamaged(next(lacking, ""), path, cure_for(name))

        def column(name: str) -> NDArray[Any]:
            return numbers(columns[name])

        self.shards, self.rows = column("shard"), column("row")
        self.heights, self.widths = column("height"), column("width")
        self.offsets = {name: column(f"{name}.offset") for name in (*modalities, TARGET)}
        self.timesteps = {name: column(f"{name}.timesteps") for name in modalities}
        self._stamps: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
        for modality in modalities:
            stamps = one_array(columns[f"{modality}.timestamps"])
            ends = numbers(stamps.offsets)
            dated = np.array_equal(np.diff(ends), 3 * self.timesteps[modality])
            undamaged("" if dated else f"{modality}.timestamps", path, cure_for(name))
            self._stamps[modality] = ends, numbers(stamps.values)
        self.corners = (column("top"), column("left")) if "top" in columns else None
        self.targets = column(TARGET) if TARGET in columns else None
        self.groups = Texts(columns["group"])
        self.names = Texts(columns["name"])
        self._windows = Texts(columns["group"], columns["name"])
        if "source_digest" in columns:
            self.digests = Texts(columns["source_digest"])

    def __len__(self) -> int:
        return len(self.rows)

    def window(self, row: int) -> str:
        """`group/name`."""
        return str(self._windows[row])

    def windows(self, rows: NDArray[np.int64]) -> list[str]:
        """`group/name` of several."""
        return self._windows.some(rows)

    def corner(self, row: int) -> tuple[int, int] | None:
        """First row and column of the crop in its window; None where it isn't fixed here."""
        if self.corners is None:
            return None
        return int(self.corners[0][row]), int(self.corners[1][row])

    def size(self, row: int) -> tuple[int, int]:
        """Height and width of the window, in pixels."""
        return int(self.heights[row]), int(self.widths[row])

    def sizes(self, rows: Sequence[int]) -> NDArray[np.int32]:
        """The same of several (N, 2)."""
        found = np.empty((len(rows), 2), np.int32)
        found[:, 0], found[:, 1] = self.heights[rows], self.widths[rows]
        return found

    def timestamps(self, modality: str, row: int) -> NDArray[np.int64]:
        """(T, 3): day, month from 0, year."""
        offsets, values = self._stamps[modality]
        found = values[offsets[row] : offsets[row + 1]].astype(np.int64)
        return found.reshape(-1, 3)

    def stacked_timestamps(self, modality: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N, T, 3) of rows with as many timesteps."""
        offsets, values = self._stamps[modality]
        first = offsets[rows].astype(np.int64)
        places = first[:, None] + np.arange(offsets[rows[0] + 1] - first[0])
        return values[places].astype(np.int64).reshape(len(rows), -1, 3)
