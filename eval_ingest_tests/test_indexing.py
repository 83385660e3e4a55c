"""Reading windows shard by shard."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from eval_ingest.indexing.build import SHARD_WINDOWS, index_windows
from eval_ingest.indexing.partial import PartialRows
from eval_ingest.indexing.work import IndexedShard
from eval_ingest.store.pack import PackRow


class Counting(list[Any]):
    """Counts the items that slices of it hold."""

    copied = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        self.copied += len(found) if isinstance(key, slice) else 1
        return found


class Places:
    """What commits are told to be done."""

    def __init__(self) -> None:
        self.before: list[int | None] = []

    def add(self, packed: Sequence[tuple[int, PackRow]], before: int | None) -> None:
        self.before.append(before)


def test_handing_out_windows_costs_as_much_per_window_however_many_there_are(
    tmp_path: Path,
) -> None:
    shards = 100
    items = Counting((place, None) for place in range(shards * SHARD_WINDOWS - 5))
    nothing = pa.table({"group": pa.array([], pa.string()), "name": pa.array([], pa.string())})
    places = Places()
    with ThreadPoolExecutor(2) as pool:
        found = index_windows(
            lambda shard: IndexedShard(nothing),  # type: ignore[arg-type]
            items, pool, 2, PartialRows(tmp_path, ""), places, lambda *_: None,  # type: ignore[arg-type]
        )  # fmt: skip
    assert len(found) == shards
    assert places.before == [n * SHARD_WINDOWS for n in range(1, shards)] + [None]
    assert items.copied <= len(items) + shards
