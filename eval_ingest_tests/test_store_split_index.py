"""What split indexes say about samples."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from eval_ingest.errors import IntegrityError
from eval_ingest.store.split_index import (
    SplitIndex,
    split_index_schema,
    timestamps_column,
    write_split_index,
)

TIME = pa.timestamp("us", tz="UTC")
INTERVAL = pa.struct([("start", TIME), ("end", TIME)])

Interval = dict[str, Any]


def dates_by_hand(
    intervals: Sequence[Interval] | None, start: datetime | None, end: datetime | None, steps: int
) -> list[int]:
    times = [found["start"] + (found["end"] - found["start"]) / 2 for found in intervals or ()]
    if len(times) != steps:
        if start is None or end is None:
            return [0, 0, 0] * steps
        times = [start + (end - start) / 2] * steps
    return [number for time in times for number in (time.day, time.month - 1, time.year)]


def test_dates_are_the_rasters_else_the_windows_else_zeros() -> None:
    rng = random.Random(0)

    def moment() -> datetime:
        return datetime(1965, 1, 1, tzinfo=UTC) + timedelta(seconds=rng.randrange(2 * 10**9))

    def interval() -> Interval:
        start = moment()
        return {"start": start, "end": start + timedelta(seconds=2 * rng.randrange(10**7))}

    told = [rng.choice([None, [], [interval()], [interval(), interval()]]) for _ in range(300)]
    starts = [rng.choice([None, moment()]) for _ in told]
    ends = [start and start + timedelta(seconds=2 * rng.randrange(10**7)) for start in starts]
    steps = [rng.choice([0, 1, 2]) for _ in told]
    table = pa.table(
        {
            "m.timestamps": pa.array(told, pa.list_(INTERVAL)),
            "time_start": pa.array(starts, TIME),
            "time_end": pa.array(ends, TIME),
        }
    )
    index = pa.concat_tables([table[:7], table[7:]])
    order = rng.sample(range(len(told)), 250)
    found = timestamps_column(index, "m", order, [steps[row] for row in order])
    assert found.type == pa.list_(pa.int32())
    assert found.to_pylist() == [
        dates_by_hand(told[row], starts[row], ends[row], steps[row]) for row in order
    ]
    assert len(timestamps_column(index, "m", [], [])) == 0


def test_texts_of_an_index_that_anybody_may_have_written_lie_within_it(tmp_path: Path) -> None:
    path, count = tmp_path / "index.0.arrow", 3
    columns: dict[str, Any] = {
        field.name: pa.array([0] * count, field.type)
        for field in split_index_schema(["x"])
        if field.type in (pa.int32(), pa.int64())
    }
    columns |= {"height": [8] * count, "width": [8] * count}
    columns |= {"group": ["g"] * count, "name": ["a", "b", "c"], "x.timestamps": [[]] * count}
    write_split_index(path, ["x"], columns)
    index = SplitIndex(path, "crops", ["x"])
    assert index.window(2) == "g/c"
    offsets = pa.py_buffer(np.array([0, 10**8, 2, 3], np.int32).tobytes())
    columns["name"] = pa.Array.from_buffers(
        pa.string(), count, [None, offsets, pa.py_buffer(b"abc")]
    )
    write_split_index(path, ["x"], columns)
    with pytest.raises(IntegrityError, match="is no table"):
        SplitIndex(path, "crops", ["x"])
