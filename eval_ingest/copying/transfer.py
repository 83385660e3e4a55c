"""One pass over the windows that are in a split: copied to the eval root, and packed."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from eval_ingest.copying.places import Key, Place, places_in_splits
from eval_ingest.copying.worker import CopyingAhead, MoveTask, Ready, ToPlace, TransferTask
from eval_ingest.core.columns import arrow, arrow_rows, numbers, row_numbers
from eval_ingest.core.crops import corners
from eval_ingest.core.entry import SPLIT_INDEX_VERSION, CopyResult, Shard, SplitFile
from eval_ingest.core.fingerprint import fingerprint
from eval_ingest.core.index import WindowIndex
from eval_ingest.core.resolved import ResolvedConfig
from eval_ingest.core.spec import SPLITS
from eval_ingest.core.splits import SplitAssignment
from eval_ingest.engine import Item, executor, map_ordered
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
from eval_ingest.store.window_files import Windows

_TASK_WINDOWS = 32
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
    lying, ahead = (
        _Lying.in_shards(store, index.row_key),
        WindowsAhead(store.layout.ahead, index.row_key),
    )
    manifest, windows = Manifest(store.layout, store.send), store.windows
    to_copy = set()
    if mode == "windows":
        to_copy = {place.key for place in places if not _is_copied(place, manifest, windows)}
        manifest.forget((group, name) for group, name, _ in to_copy)
        windows.clear((group, name) for group, name, _ in to_copy)
        _move_between_splits(places, to_copy, manifest, windows)

    new = [place for place in places if place.key not in lying.rows]
    fresh = {place.key for place in new}
    ready = _ready([p for p in places if p.key in to_copy - fresh], ahead)
    total = len(fresh | to_copy) - len(ready)
    if total:
        keys = ((group, name) for group, name, _ in chain((p.key for p in new), to_copy))
        groups = sorted({place.group for place in places})
        job.source.ensure_listed(groups, job.config.layer_names, keys)
    with executor(job.settings, total + len(ready) // _MOVES) as pool:
        placing = _Placing(job, windows, manifest, pool, total + len(ready))
        to_copy -= placing.move(ready, ahead)
        _pack(placing, index, places, new, to_copy)
        left = [p for p in places if p.key in to_copy and p.key not in fresh]
        placing.place([(place, None, True) for place in left])
    if mode == "windows":
        windows.keep_only(manifest.windows)
        manifest.close()
    ahead.clear()

    if new:
        lying = _Lying.in_shards(store, index.row_key)
    result = _write_split_indexes(job, index, places, lying, stage_fingerprint)
    if mode != "windows":
        return result
    copied_bytes = sum(copied.n_bytes for copied in manifest.windows.values())
    return result.model_copy(update={"n_copied": len(manifest.windows), "n_bytes": copied_bytes})


def copying_ahead(job: Job) -> CopyingAhead | None:
    """How windows are copied while they are indexed; None where the copy stage does it.

    So it is where they are sent, and where windows are in place already: what of them is to be
    copied is known when all are indexed.
    """
    layout = job.layout
    begun = layout.windows.exists() or layout.copy_manifest.exists()
    if begun or job.spec.copy_mode != "windows" or not job.store.windows.takes_folders:
        return None
    return CopyingAhead(job.config, WindowsAhead(layout.ahead, job.row_key))


class _Placing:
    """Windows are handed to workers, and noted in the manifest when they are in their places."""

    def __init__(
        self, job: Job, windows: Windows, manifest: Manifest, pool: Executor, total: int
    ) -> None:
        self.job = job
        self._windows, self._manifest = windows, manifest
        self._pool, self._total, self._done = pool, total, 0

    def place(self, work: list[ToPlace], writer: ShardWriter | None = None) -> None:
        """Pack and copy some windows; the writer's rows are those in the work."""
        task = TransferTask(self.job.source, self.job.config, self._windows, writer)
        what = "windows copied" if writer is None else "windows copied and packed"
        self._run(task, work, what)

    def move(self, ready: list[Ready], ahead: WindowsAhead) -> set[Key]:
        """Put windows that were copied ahead into their places; those that are there now."""
        moved = self._run(MoveTask(ahead, self._windows), ready, "windows copied")
        return {(window.group, window.name, window.source_digest) for window in moved}

    def _run(
        self, task: Callable[[list[Item]], list[CopiedWindow]], work: list[Item], what: str
    ) -> list[CopiedWindow]:
        batches = (work[k : k + _TASK_WINDOWS] for k in range(0, len(work), _TASK_WINDOWS))
        in_flight = 2 * self.job.settings.workers
        apart = Apart[Item, list[CopiedWindow]](task, lambda all_: [*chain(*all_)], _key_of, _lost)
        done: list[CopiedWindow] = []
        for copied in map_ordered(self._pool, task, batches, in_flight, apart):
            self._manifest.add(copied)
            done += copied
            self._done = min(self._done + _TASK_WINDOWS, self._total)
            self.job.progress(what, self._done, self._total)
        return done


def _ready(places: Sequence[Place], ahead: WindowsAhead) -> list[Ready]:
    """Those of some windows that were copied when they were indexed, just as they were."""
    noted = ahead.noted() if places else {}
    found = ((place, noted.get((place.group, place.name))) for place in places)
    return [
        (place, copied)
        for place, copied in found
        if copied is not None and copied.source_digest == place.source_digest
    ]


def _key_of(item: Any) -> str:
    place: Place = item[0]
    return f"{place.group}/{place.name}"


def _lost(item: Any, why: str) -> list[CopiedWindow]:
    raise EngineError(
        f"{_key_of(item)} was valid when it was indexed, and now {why}; free memory, "
        "or leave the window out of the source, and run again: it goes on where it stopped"
    )


def _pack(
    placing: _Placing,
    index: WindowIndex,
    places: Sequence[Place],
    new: Sequence[Place],
    to_copy: Container[Key],
) -> None:
    """Pack some windows, and copy those of them that are to be copied."""
    job, store = placing.job, placing.job.store
    rows = pack_rows(index.table, [place.row for place in new], job.config)
    with _scratch(store.layout.samples) as folder:
        packer = Packer(folder, job.config, rows, store.shard_bytes)
        copied = [place.row for place in places if place.key in to_copy]
        n_bytes, n_files = (
            int(numbers(index.table[name], 0)[copied].sum()) for name in ("n_bytes", "n_files")
        )
        store.require_room(window_bytes(n_bytes, n_files), packer.n_bytes)
        packer.create()
        for writer, here in packer.shards:
            first = here.start
            placing.place([(new[k], k - first, new[k].key in to_copy) for k in here], writer)
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
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _Lying:
    """Where the samples lie: a row each, with what a shard's index says of it."""

    shards: list[Shard]
    table: pa.Table
    """The shards' indexes, one after the other, and in `shard` the number of each."""
    rows: "_Rows"
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
        none = arrow_rows([], pa.schema([(name, pa.string()) for name in _KEY]))
        table = pa.concat_tables(tables) if tables else none
        return cls(shards, table, _Rows(table))

    @classmethod
    def in_source(
        cls, index: WindowIndex, places: Sequence[Place], config: ResolvedConfig
    ) -> "_Lying":
        """Samples that stay in the source, with what a shard's index would say of them."""
        steps = [f"{modality.name}.timesteps" for modality in config.modalities]
        table = index.table.select([*_KEY, "height", "width", *steps])
        table = table.take(row_numbers([place.row for place in places]))
        nothing = np.zeros(len(places), np.int64)
        for name in (*(modality.name for modality in config.modalities), TARGET):
            table = table.append_column(f"{name}.offset", row_numbers(nothing))
        for name in ("shard", "row"):
            table = table.append_column(name, row_numbers(nothing - 1))
        return cls([], table, _Rows(table))

    def of(self, places: Sequence[Place]) -> pa.Table:
        """What is known of some samples, in their order."""
        return self.table.take(row_numbers([self.rows[place.key] for place in places]))

    def used(self, places: Sequence[Place]) -> list[int]:
        """The numbers of the shards that some samples lie in."""
        return sorted(set(self.of(places)["shard"].to_pylist()) - {-1})


_KEY = ["group", "name", "source_digest"]
_KEYS_TOGETHER = 1 << 14


class _Rows:
    """The row of each window in a table, found by the hash of its key: 16 bytes a window.

    A dictionary of a million keys takes as much as everything else.
    """

    def __init__(self, table: pa.Table) -> None:
        self._columns = [table[name] for name in _KEY]
        batches = (zip(*(c.to_pylist() for c in b), strict=True) for b in self._batches(table))
        hashes = np.fromiter(map(hash, chain.from_iterable(batches)), np.int64, len(table))
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]

    @staticmethod
    def _batches(table: pa.Table) -> Iterator[list[pa.Array]]:
        for batch in table.select(_KEY).to_batches(_KEYS_TOGETHER):
            yield batch.columns

    def get(self, key: Key) -> int | None:
        """The row of a window, the last one if there are several; None if there is none."""
        place = int(np.searchsorted(self._sorted, hash(key), "right"))
        while place and self._sorted[place - 1] == hash(key):
            row = int(self._order[place - 1])
            if tuple(column[row].as_py() for column in self._columns) == key:
                return row
            place -= 1
        return None

    def __contains__(self, key: Key) -> bool:
        return self.get(key) is not None

    def __getitem__(self, key: Key) -> int:
        row = self.get(key)
        if row is None:
            raise KeyError(key)
        return row


def _is_copied(place: Place, manifest: Manifest, windows: Windows) -> bool:
    known = manifest.windows.get((place.group, place.name))
    return (
        known is not None
        and known.source_digest == place.source_digest
        and windows.has(place.group, place.name)
    )


def _move_between_splits(
    places: Sequence[Place],
    to_copy: set[Key],
    manifest: Manifest,
    windows: Windows,
) -> None:
    """Rewrite eval_split where it changed; drop windows that are in no split any more."""
    wanted = {(place.group, place.name): place for place in places}
    manifest.forget([key for key in manifest.windows if key not in wanted])
    moving = [
        copied
        for key, copied in manifest.windows.items()
        if wanted[key].key not in to_copy and copied.split != wanted[key].split
    ]
    for k in range(0, len(moving), _MOVED_TOGETHER):
        chunk = moving[k : k + _MOVED_TOGETHER]
        # Not vouched for while metadata.json may say the one split or the other.
        manifest.add(replace(copied, split="") for copied in chunk)
        changed = windows.change_splits((c, wanted[c.key].split) for c in chunk)
        manifest.add(_measured_again(changed, {c.key for c in chunk if not c.split}, windows))


def _measured_again(
    copied: list[CopiedWindow], unsure: set[tuple[str, str]], windows: Windows
) -> list[CopiedWindow]:
    """Copied windows, those read back whose checksum isn't known: a run was stopped at them."""
    known = {window.key: window for window in copied}
    for key, found in windows.measured(unsure):
        if isinstance(found, StoreError):
            raise found
        known[key] = replace(known[key], **found._asdict())
    return list(known.values())


def _write_split_indexes(
    job: Job,
    index: WindowIndex,
    places: Sequence[Place],
    lying: _Lying,
    stage_fingerprint: str,
) -> CopyResult:
    """The three split indexes."""
    layout, config = job.layout, job.config
    used = lying.used(places)
    shards = [lying.shards[number] for number in used]
    files = {}
    for split in SPLITS:
        rows = [place for place in places if place.split == split]
        columns = _columns(config, index, rows, lying, used)
        # With the shards: packed anew, the same windows may lie elsewhere.
        named = [shard.name for shard in shards]
        short = fingerprint(SPLIT_INDEX_VERSION, stage_fingerprint, split, named)
        path = layout.split_index(split, short)
        crops = _crops(config, split, index, [place.row for place in rows])
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
    crops = Crops([], [], None if config.task.kind.per_pixel else [])
    for number, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        here = by_size[size]
        crops.window.extend([number] * len(here))
        crops.corners.extend(here)
        if crops.targets is not None:
            first = sum(len(corners(*size, other)) for other in before)
            targets = index.table["label.crop_targets"][row].as_py()
            crops.targets.extend(targets[first : first + len(here)])
    return crops


def _columns(
    config: ResolvedConfig,
    index: WindowIndex,
    places: Sequence[Place],
    lying: _Lying,
    used: Sequence[int],
) -> dict[str, Any]:
    """The columns of a split's index: see `store.split_index.split_index_schema`."""
    table = lying.of(places)
    number = {shard: k for k, shard in enumerate(used)}
    columns: dict[str, Any] = {name: table[name] for name in ("group", "name", "row")}
    columns["shard"] = [number.get(shard, -1) for shard in table["shard"].to_pylist()]
    if not lying.shards:
        columns["source_digest"] = table["source_digest"]
    for name in ("height", "width"):
        columns[name] = table[name]
    windows = [place.row for place in places]
    for modality in config.modalities:
        name = modality.name
        columns[f"{name}.offset"] = table[f"{name}.offset"]
        columns[f"{name}.timesteps"] = steps = table[f"{name}.timesteps"]
        columns[f"{name}.timestamps"] = timestamps_column(
            index.table, name, windows, numbers(steps)
        )
    columns[f"{TARGET}.offset"] = table[f"{TARGET}.offset"]
    return columns
