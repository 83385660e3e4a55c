"""One pass over the windows that are in a split: copied to the eval root, and packed."""

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eval_ingest.copying.places import Place, Places, places_in_splits
from eval_ingest.copying.worker import (
    CopyingAhead,
    MoveTask,
    ToPlace,
    TransferTask,
    mapping_of,
)
from eval_ingest.core.columns import arrow, arrow_rows, numbers, row_numbers
from eval_ingest.core.crops import corners
from eval_ingest.core.entry import SPLIT_INDEX_VERSION, CopyResult, Shard, SplitFile
from eval_ingest.core.fingerprint import fingerprint
from eval_ingest.core.index import WindowIndex
from eval_ingest.core.keyed import KEY, RowsByKey
from eval_ingest.core.resolved import ResolvedConfig
from eval_ingest.core.spec import SPLITS
from eval_ingest.core.splits import SplitAssignment
from eval_ingest.engine import Item, batched, executor, map_ordered
from eval_ingest.errors import EngineError, StoreError
from eval_ingest.indexing.apart import Apart
from eval_ingest.indexing.packer import Packer, pack_rows
from eval_ingest.job import Job
from eval_ingest.store.ahead import WindowsAhead
from eval_ingest.store.atomic import store_error, umask
from eval_ingest.store.manifest import CopiedWindow, Manifest
from eval_ingest.store.room import window_bytes
from eval_ingest.store.roots.base import DatasetStore
from eval_ingest.store.seal import unless_damaged
from eval_ingest.store.shards import ShardWriter, read_shard, shard_names
from eval_ingest.store.split_index import TARGET, Crops, timestamps_column, write_split_index
from eval_ingest.store.window_files import Key, Windows
from eval_ingest.waiting import remove_folder

_TASK_WINDOWS = 64
_MOVES = 8
"""Windows that were copied ahead are moved in the time in which one is copied."""
_MOVED_TOGETHER = 256
"""Windows whose split is changed between two notes in the journal."""


def transfer(
    job: Job, index: WindowIndex, splits: SplitAssignment, stage_fingerprint: str
) -> CopyResult:
    """Copy and pack what isn't there yet, and write the three split indexes.

    Windows that are already packed are not read, and of those already copied to another split
    only metadata.json is rewritten.

    Raises:
        SourceError: a window changed since it was indexed.
        StoreError: the eval root can't be written.
    """
    store, mode = job.store, job.spec.copy_mode
    places = places_in_splits(index, splits)
    if mode == "index":
        unpacked = _Lying.in_source(index, places, job.config)
        return _write_split_indexes(job, index, places, unpacked, stage_fingerprint)
    lying = _Lying.in_shards(store, index.row_key)
    new = lying.rows.find(places.table) < 0
    manifest, windows = Manifest(store.layout, store.send), store.windows
    to_copy = np.zeros(len(places), bool)
    if mode == "windows":
        to_copy = _to_copy(job, places, manifest, windows)

    ahead = WindowsAhead(store.layout.ahead)
    noted = ahead.noted() if to_copy.any() else {}
    ready = np.flatnonzero(to_copy & ~new)
    ready = ready[_are_of(places[ready], noted, job)]
    to_copy[ready] = False
    work = int((new | to_copy).sum())
    with executor(job.settings, work + len(ready) // _MOVES) as pool:
        placing = _Placing(job, windows, manifest, pool, work + len(ready))
        to_copy[ready] = ~placing.move(places[ready], noted, ahead)
        wanted = places[new | to_copy]
        if len(wanted):
            groups = sorted({place.group for place in places})
            keys = (place.window for place in wanted)
            job.source.ensure_listed(groups, job.config.layer_names, keys)
        _pack(placing, index, places, new, to_copy)
        placing.place((place, None, True) for place in places[to_copy & ~new])
    if mode == "windows":
        windows.keep_only(manifest.windows)
        manifest.close()
    ahead.clear()

    if new.any():
        lying = _Lying.in_shards(store, index.row_key)
    result = _write_split_indexes(job, index, places, lying, stage_fingerprint)
    if mode != "windows":
        return result
    copied_bytes = sum(copied.n_bytes for copied in manifest.windows.values())
    return result.model_copy(update={"n_copied": len(manifest.windows), "n_bytes": copied_bytes})


def _are(places: Places, what: Callable[[Place], bool]) -> NDArray[np.bool_]:
    return np.fromiter(map(what, places), bool, len(places))


def _are_of(places: Places, known: Mapping[Key, CopiedWindow], job: Job) -> NDArray[np.bool_]:
    """True for windows of which a copy is known, of what they are now."""
    mapping = mapping_of(job.config)

    def is_of(place: Place) -> bool:
        copied = known.get(place.window)
        return copied is not None and copied.source_digest == place.source_digest + mapping

    return _are(places, is_of)


def copying_ahead(job: Job, arriving: bool = False) -> CopyingAhead | None:
    """How windows are copied while they are indexed; None where the copy stage does it.

    So it is where they are moved or sent, and where windows are in place already: what of them is
    to be copied is known when all are indexed. What is `arriving`, off a stream, is written in any
    case.
    """
    layout = job.layout
    begun = layout.windows.exists() or layout.copy_manifest.exists()
    if begun or job.spec.copy_mode != "windows" or not job.store.windows.takes_folders:
        return None
    if job.source.moves and not arriving:
        return None
    return CopyingAhead(job.config, WindowsAhead(layout.ahead))


class _Placing:
    """Windows are handed to workers, and noted in the manifest when they are in their places."""

    def __init__(
        self, job: Job, windows: Windows, manifest: Manifest, pool: Executor, total: int
    ) -> None:
        self.job = job
        self._windows, self._manifest = windows, manifest
        self._pool, self._total, self._done = pool, total, 0

    def place(self, work: Iterable[ToPlace], writer: ShardWriter | None = None) -> None:
        """Pack and copy some windows; the writer's rows are those in the work."""
        task = TransferTask(self.job.source, self.job.config, self._windows, writer)
        what = "windows copied" if writer is None else "windows copied and packed"
        for _ in self._run(task, work, what):
            pass

    def move(
        self,
        places: Places,
        noted: Mapping[tuple[str, str], CopiedWindow],
        ahead: WindowsAhead,
    ) -> NDArray[np.bool_]:
        """Put windows that were copied ahead into their places; True for those that are there."""
        work = ((place, noted[place.window]) for place in places)
        there = self._run(MoveTask(ahead, self._windows), work, "windows copied")
        return np.fromiter(chain.from_iterable(there), bool, len(places))

    def _run(
        self,
        task: Callable[[list[Item]], list[CopiedWindow | None]],
        work: Iterable[Item],
        what: str,
    ) -> Iterator[list[bool]]:
        """Of each of the items, whether it is copied now; some at a time."""
        in_flight = 2 * self.job.settings.workers
        apart = Apart[Item, list[CopiedWindow | None]](
            task, lambda all_: [*chain(*all_)], _key_of, _lost
        )
        batches = batched(work, _TASK_WINDOWS)
        for copied in map_ordered(self._pool, task, batches, in_flight, apart):
            self._manifest.add(window for window in copied if window is not None)
            self._done = min(self._done + len(copied), self._total)
            self.job.progress(what, self._done, self._total)
            yield [window is not None for window in copied]


def _key_of(item: Any) -> str:
    place: Place = item[0]
    return "/".join(place.window)


def _lost(item: Any, why: str) -> list[CopiedWindow | None]:
    raise EngineError(
        f"{_key_of(item)} was valid when it was indexed, and now {why}; free memory, "
        "or leave the window out of the source, and run again: it goes on where it stopped"
    )


def _pack(
    placing: _Placing,
    index: WindowIndex,
    places: Places,
    new: NDArray[np.bool_],
    to_copy: NDArray[np.bool_],
) -> None:
    """Pack the new ones of some windows, and copy those of them that are to be copied."""
    job, store = placing.job, placing.job.store
    rows = pack_rows(index.table, places.rows[new].tolist(), job.config)
    with _scratch(store.layout.samples) as folder:
        packer = Packer(folder, job.config, rows, store.shard_bytes)
        copied = places.rows[to_copy]
        n_bytes, n_files = (
            int(numbers(index.table[name], 0)[copied].sum()) for name in ("n_bytes", "n_files")
        )
        store.require_room(window_bytes(n_bytes, n_files), packer.n_bytes)
        packer.create()
        for writer, here in packer.shards:
            some = np.flatnonzero(new)[here.start : here.stop]
            work = zip(places[some], range(len(here)), to_copy[some].tolist(), strict=True)
            placing.place(work, writer)
            packer.publish(store, index.row_key, [(k, rows[k]) for k in here], here.stop)


@contextlib.contextmanager
def _scratch(samples: Path) -> Iterator[Path]:
    """A folder that is removed in the end; by the next run, if this one is killed."""
    try:
        samples.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".shard.", suffix=".tmp", dir=samples))
        folder.chmod(0o777 & ~umask())
    except OSError as error:
        raise store_error(samples, "making a shard of samples in", error) from error
    try:
        yield folder
    finally:
        remove_folder(folder)


@dataclass(frozen=True)
class _Lying:
    """Where the samples lie: a row each, with what a shard's index says of it."""

    shards: list[Shard]
    table: pa.Table
    """The shards' indexes, one after the other, and in `shard` the number of each."""
    rows: RowsByKey
    """In the table, by window."""

    @classmethod
    def in_shards(cls, store: DatasetStore, row_key: str) -> "_Lying":
        """The shards that are there and were packed by this row key."""
        shards: list[Shard] = []
        tables: list[pa.Table] = []
        for name in shard_names(store.layout.samples):
            found = unless_damaged(partial(read_shard, store, name, row_key))
            if found is not None:
                table, arrays = found
                number = arrow(np.full(table.num_rows, len(shards)), pa.int32())
                tables.append(table.append_column("shard", number))
                shards.append(Shard(name=name, rows=table.num_rows, arrays=arrays))
        none = arrow_rows([], pa.schema([(name, pa.string()) for name in KEY]))
        table = pa.concat_tables(tables) if tables else none
        return cls(shards, table, RowsByKey(table, KEY))

    @classmethod
    def in_source(cls, index: WindowIndex, places: Places, config: ResolvedConfig) -> "_Lying":
        """Samples that stay in the source, with what a shard's index would say of them."""
        steps = [f"{modality.name}.timesteps" for modality in config.modalities]
        table = index.table.select([*KEY, "height", "width", *steps])
        table = table.take(row_numbers(places.rows))
        nothing = np.zeros(len(places), np.int64)
        for name in (*(modality.name for modality in config.modalities), TARGET):
            table = table.append_column(f"{name}.offset", row_numbers(nothing))
        for name in ("shard", "row"):
            table = table.append_column(name, row_numbers(nothing - 1))
        return cls([], table, RowsByKey(table, KEY))

    def of(self, places: Places) -> pa.Table:
        """What is known of some samples, in their order.

        Raises:
            StoreError: some can't be found.
        """
        rows = self.rows.find(places.table)
        if (rows < 0).any():
            raise StoreError(
                f"{int((rows < 0).sum())} of {len(rows)} samples that were just packed can't be "
                "read; run again: it goes on where it stopped"
            )
        return self.table.take(row_numbers(rows))

    def used(self, places: Places) -> list[int]:
        """The numbers of the shards that some samples lie in."""
        found = np.unique(numbers(self.of(places)["shard"]))
        return [number for number in found.tolist() if number >= 0]


def _to_copy(job: Job, places: Places, manifest: Manifest, windows: Windows) -> NDArray[np.bool_]:
    """Which windows are to be copied; for these way is made, the others have their splits."""
    known = manifest.windows
    there = _are_of(places, known, job)
    there[there] = _are(places[there], lambda place: windows.has(*place.window))
    to_copy = ~there
    if to_copy.any():
        windows.require_told_apart(place.window for place in places)
    lost = _move_between_splits(places[~to_copy], manifest, windows)
    if lost:
        to_copy |= _are(places, lambda place: place.window in lost)
    manifest.forget(place.window for place in places[to_copy])
    windows.clear(place.window for place in places[to_copy])
    if len(known) > len(places) - int(to_copy.sum()):
        wanted = {place.window for place in places}
        manifest.forget([key for key in known if key not in wanted])  # in no split any more
    return to_copy


def _move_between_splits(
    places: Places, manifest: Manifest, windows: Windows
) -> set[tuple[str, str]]:
    """Rewrite eval_split where it changed; gives the windows that are gone or damaged."""
    lost: set[tuple[str, str]] = set()
    known = ((place, manifest.windows[place.window]) for place in places)
    moving = ((copied, place.split) for place, copied in known if copied.split != place.split)
    for some in batched(moving, _MOVED_TOGETHER):
        # Not vouched for while metadata.json may say the one split or the other.
        manifest.forget(copied.key for copied, _ in some)
        moved = windows.change_splits(some)
        manifest.add(moved)
        lost |= {copied.key for copied, _ in some} - {copied.key for copied in moved}
    return lost


def _write_split_indexes(
    job: Job,
    index: WindowIndex,
    places: Places,
    lying: _Lying,
    stage_fingerprint: str,
) -> CopyResult:
    """The three split indexes."""
    layout, config = job.layout, job.config
    used = lying.used(places)
    shards = [lying.shards[number] for number in used]
    files = {}
    for split in SPLITS:
        rows = places.in_split(split)
        columns = _columns(config, index, rows, lying, used)
        # With the shards: packed anew, the same windows may lie elsewhere.
        named = [shard.name for shard in shards]
        short = fingerprint(SPLIT_INDEX_VERSION, stage_fingerprint, split, named)
        path = layout.split_index(split, short)
        crops = _crops(config, split, index, rows.rows.tolist())
        write_split_index(path, [m.name for m in config.modalities], columns, crops)
        files[split] = SplitFile(
            count=len(rows) if crops is None else len(crops.window),
            windows=len(rows),
            index=str(path.relative_to(layout.path)),
        )
    return CopyResult(
        fingerprint=stage_fingerprint,
        mode=job.spec.copy_mode,
        shards=shards,
        splits=files,
        n_copied=0,
        n_bytes=0,
        packed_bytes=sum(a.n_bytes for shard in shards for a in shard.arrays.values()),
    )


def _crops(
    config: ResolvedConfig, split: str, index: WindowIndex, rows: Sequence[int]
) -> Crops | None:
    """Every crop of the windows in these rows of the index; None where there are none."""
    grid = config.all_crops.get(split)
    if grid is None:
        return None
    earlier = config.cuts[: config.cut_of(split)]
    before = [config.all_crops[other] for other in earlier if other in config.all_crops]
    heights, widths = (numbers(index.table[name])[rows].tolist() for name in ("height", "width"))
    sizes = list(zip(heights, widths, strict=True))
    by_size = {size: corners(*size, grid) for size in set(sizes)}
    per_pixel = config.task.kind.per_pixel
    all_targets = () if per_pixel else index.table["label.crop_targets"]
    crops = Crops([], [], None if per_pixel else [])
    for number, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        here = by_size[size]
        crops.window.extend([number] * len(here))
        crops.corners.extend(here)
        if crops.targets is not None:
            first = sum(len(corners(*size, other)) for other in before)
            targets = all_targets[row].as_py()
            crops.targets.extend(targets[first : first + len(here)])
    return crops


def _columns(
    config: ResolvedConfig,
    index: WindowIndex,
    places: Places,
    lying: _Lying,
    used: Sequence[int],
) -> dict[str, Any]:
    """The columns of a split's index: see `store.split_index.split_index_schema`."""
    table = lying.of(places)
    columns: dict[str, Any] = {name: table[name] for name in ("group", "name", "row")}
    shards = numbers(table["shard"])
    columns["shard"] = np.where(shards < 0, -1, np.searchsorted(used, shards))
    if not lying.shards:
        columns["source_digest"] = table["source_digest"]
    for name in ("height", "width"):
        columns[name] = table[name]
    windows = places.rows.tolist()
    for modality in config.modalities:
        name = modality.name
        columns[f"{name}.offset"] = table[f"{name}.offset"]
        columns[f"{name}.timesteps"] = steps = table[f"{name}.timesteps"]
        columns[f"{name}.timestamps"] = timestamps_column(
            index.table, name, windows, numbers(steps)
        )
    columns[f"{TARGET}.offset"] = table[f"{TARGET}.offset"]
    return columns
