"""Reading windows shard by shard."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from eval_ingest.decoding.grid import Grid
from eval_ingest.decoding.metadata import WindowMetadata
from eval_ingest.indexing.build import SHARD_WINDOWS, index_windows
from eval_ingest.indexing.filters import WindowFilter
from eval_ingest.indexing.partial import PartialRows
from eval_ingest.indexing.work import IndexedShard
from eval_ingest.store.shards import PackRow


class Counting(list[Any]):
    """Counts the items that slices of it hold."""

    copied = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        self.copied += len(found) if isinstance(key, slice) else 1
        return found


class Nothing:
    """Reads no window."""

    window_bytes = crashed = name_of = None

    def __call__(self, shard: Any) -> IndexedShard:
        names = {name: pa.array([], pa.string()) for name in ("group", "name")}
        return IndexedShard(pa.table(names))


class Places:
    """What a packer is told to be done."""

    def __init__(self) -> None:
        self.before: list[int | None] = []

    def publish(self, packed: Sequence[tuple[int, PackRow]], before: int | None) -> None:
        self.before.append(before)


def test_what_a_stopped_run_left_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "000003.left_out.arrow").touch()  # it was stopped before it wrote 000003.arrow
    assert PartialRows(tmp_path, "", [])._count == 4


def test_handing_out_windows_costs_as_much_per_window_however_many_there_are(
    tmp_path: Path,
) -> None:
    shards = 100
    items = Counting((place, None) for place in range(shards * SHARD_WINDOWS - 5))
    places = Places()
    with ThreadPoolExecutor(2) as pool:
        index_windows(
            Nothing(), items, pool, 2,  # type: ignore[arg-type]
            PartialRows(tmp_path, "", []), places.publish, lambda *_: None,  # type: ignore[arg-type]
        )  # fmt: skip
    assert places.before == [n * SHARD_WINDOWS for n in range(1, shards)] + [None]
    assert items.copied <= len(items) + shards


@pytest.mark.parametrize(
    ("start", "end", "wanted"),
    [
        ("2023-01-01T00:00", "2024-01-01T00:00", True),  # the year 2023
        ("2023-12-31T23:59", "2024-01-01T00:01", False),
        ("2022-12-31T23:59", "2023-02-01T00:00", False),
        ("2024-01-01T00:00", "2024-01-01T00:00", False),  # a moment
        ("2023-12-31T00:00", "2023-12-31T00:00", True),
    ],
)
def test_a_time_range_lies_within_whole_days(start: str, end: str, wanted: bool) -> None:
    times = tuple(datetime.fromisoformat(text).replace(tzinfo=UTC) for text in (start, end))
    metadata = WindowMetadata(Grid("EPSG:32630", 10, -10, (0, 0, 1, 1)), times, {})  # type: ignore[arg-type]
    assert WindowFilter({}, ("2023-01-01", "2023-12-31")).wants(metadata) is wanted
