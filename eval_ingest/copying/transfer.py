"""One pass over the windows that are in a split: copied to the eval root, and packed."""

from collections.abc import Container, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa

from eval_ingest.copying.places import Key, Place, places_in_splits
from eval_ingest.copying.worker import ToPlace, TransferTask
from eval_ingest.core.columns import numbers
from eval_ingest.core.crops import corners
from eval_ingest.core.entry import SPLIT_INDEX_VERSION, CopyResult, Shard, SplitFile
from eval_ingest.core.fingerprint import fingerprint
from eval_ingest.core.index import WindowIndex
from eval_ingest.core.resolved import CropGrid, ResolvedConfig
from eval_ingest.core.spec import SPLITS
from eval_ingest.core.splits import SplitAssignment
from eval_ingest.engine import executor, map_ordered
from eval_ingest.errors import StoreError
from eval_ingest.indexing.packer import pack_rows
from eval_ingest.job import Job
from eval_ingest.store.manifest import CopiedWindow, Manifest
from eval_ingest.store.room import window_bytes
from eval_ingest.store.roots.base import DatasetStore
from eval_ingest.store.seal import unless_damaged
from eval_ingest.store.shards import ShardWriter, plan_arrays, read_shard, shard_names
from eval_ingest.store.split_index import TARGET, Crops, timestamps_column, write_split_index
from eval_ingest.store.window_files import Windows

_TASK_WINDOWS = 16
_UNPACKED = ""
"""Stands for the shard of samples that are read from the source."""

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
        return _write_split_indexes(job, index, places, None, stage_fingerprint)
    packed = _packed_already(store, index.row_key)
    manifest, windows = Manifest(store.layout, store.send), store.windows
    to_copy = set()
    if mode == "windows":
        to_copy = {place.key for place in places if not _is_copied(place, manifest, windows)}
        manifest.forget((group, name) for group, name, _ in to_copy)
        windows.clear((group, name) for group, name, _ in to_copy)
        _move_between_splits(places, to_copy, manifest, windows)

    new = [place for place in places if place.key not in packed]
    _require_room(store, index, job.config, places, to_copy, new)
    total = len({place.key for place in new} | to_copy)
    if total:
        job.source.ensure_listed(sorted({p.group for p in places}), job.config.layer_names)
    with executor(job.settings, total) as pool:
        placing = _Placing(job, windows, manifest, pool, total)
        for chunk in _shards(index, job.config, new, store.shard_bytes):
            packed |= _pack(placing, chunk, index, to_copy)
            to_copy -= {place.key for place in chunk}
        placing.place([(place, None, True) for place in places if place.key in to_copy])
    if mode == "windows":
        windows.keep_only(manifest.windows)
        manifest.close()

    result = _write_split_indexes(job, index, places, packed, stage_fingerprint)
    if mode != "windows":
        return result
    copied_bytes = sum(copied.n_bytes for copied in manifest.windows.values())
    return result.model_copy(update={"n_copied": len(manifest.windows), "n_bytes": copied_bytes})


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
        batches = (work[k : k + _TASK_WINDOWS] for k in range(0, len(work), _TASK_WINDOWS))
        in_flight = 2 * self.job.settings.workers
        what = "windows copied" if writer is None else "windows copied and packed"
        for copied in map_ordered(self._pool, task, batches, in_flight):
            self._manifest.add(copied)
            self._done = min(self._done + _TASK_WINDOWS, self._total)
            self.job.progress(what, self._done, self._total)


def _pack(
    placing: _Placing, chunk: list[Place], index: WindowIndex, to_copy: Container[Key]
) -> dict[Key, tuple[str, int]]:
    """Pack some windows into a shard of their own, and copy those to copy; where each lies."""
    store, config = placing.job.store, placing.job.config
    rows = pack_rows(index.table, [place.row for place in chunk], config)
    writer = ShardWriter.create(store.layout.samples, plan_arrays(config, rows))
    try:
        work: list[ToPlace] = [
            (place, row, place.key in to_copy) for row, place in enumerate(chunk)
        ]
        placing.place(work, writer)
        name = fingerprint(index.row_key, [place.key for place in chunk])
        name = writer.commit(store, name, index.row_key, list(enumerate(rows)))
    except BaseException:
        writer.abandon()
        raise
    return {place.key: (name, row) for row, place in enumerate(chunk)}


def _packed_already(store: DatasetStore, row_key: str) -> dict[Key, tuple[str, int]]:
    """Where samples lie in the shards that are there: key to (shard, row)."""
    packed = {}
    for shard in shard_names(store.layout.samples):
        found = unless_damaged(partial(read_shard, store, shard, row_key))
        if found is None:
            continue
        table, _ = found
        columns = (table[name].to_pylist() for name in ("group", "name", "source_digest", "row"))
        for group, name, digest, row in zip(*columns, strict=True):
            packed[group, name, digest] = (shard, row)
    return packed


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


def _shards(
    index: WindowIndex, config: ResolvedConfig, places: Sequence[Place], shard_bytes: int
) -> list[list[Place]]:
    """Consecutive places whose samples together stay below that many bytes."""
    shards: list[list[Place]] = []
    size = 0
    rows = pack_rows(index.table, [place.row for place in places], config)
    for place, row in zip(places, rows, strict=True):
        n_bytes = sum(plan.n_bytes for plan in plan_arrays(config, [row]))
        if not shards or size + n_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(place)
        size += n_bytes
    return shards


def _require_room(
    store: DatasetStore,
    index: WindowIndex,
    config: ResolvedConfig,
    places: Sequence[Place],
    to_copy: Container[Key],
    new: Sequence[Place],
) -> None:
    """Raise StoreError if the disk has no room for what is to be copied and packed."""
    sizes, files = (numbers(index.table[name], 0) for name in ("n_bytes", "n_files"))
    copied = [place.row for place in places if place.key in to_copy]
    rows = pack_rows(index.table, [place.row for place in new], config)
    store.require_room(
        window_bytes(int(sizes[copied].sum()), int(files[copied].sum())),
        sum(plan.n_bytes for plan in plan_arrays(config, rows)) if rows else 0,
    )


def _write_split_indexes(
    job: Job,
    index: WindowIndex,
    places: Sequence[Place],
    packed: dict[Key, tuple[str, int]] | None,
    stage_fingerprint: str,
) -> CopyResult:
    """The three split indexes; `packed` is None where samples are read from the source."""
    layout, config = job.layout, job.config
    used = sorted({packed[place.key][0] for place in places}) if packed is not None else []
    tables = {}
    shards = []
    packed_bytes = 0
    for shard in used:
        found = read_shard(job.store, shard, index.row_key)
        assert found is not None, f"shard {shard} was listed as packed"
        tables[shard], arrays = found
        packed_bytes += sum(array.n_bytes for array in arrays.values())
        shards.append(Shard(name=shard, rows=tables[shard].num_rows, arrays=arrays))
    files = {}
    lookup = {shard: _by_row(table) for shard, table in tables.items()}
    if packed is None:
        packed = {place.key: (_UNPACKED, row) for row, place in enumerate(places)}
        lookup = {_UNPACKED: _shapes_by_row(index, config, places)}
    for split in SPLITS:
        rows = [place for place in places if place.split == split]
        columns = _columns(config, index, rows, packed, used, lookup)
        # With the shards: packed anew, the same windows may lie elsewhere.
        short = fingerprint(SPLIT_INDEX_VERSION, stage_fingerprint, split, used)
        path = layout.split_index(split, short)
        crops = _crops(config, config.all_crops.get(split), index, [place.row for place in rows])
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
        packed_bytes=packed_bytes,
    )


def _crops(
    config: ResolvedConfig, grid: CropGrid | None, index: WindowIndex, rows: Sequence[int]
) -> Crops | None:
    """Every crop of the windows in these rows of the index; None where there are none."""
    if grid is None:
        return None
    before = [other for other in config.cuts[: config.cuts.index(grid)] if other is not None]
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
    rows: Sequence[Place],
    packed: dict[Key, tuple[str, int]],
    shards: Sequence[str],
    lookup: dict[str, dict[str, dict[int, Any]]],
) -> dict[str, Any]:
    """The columns of a split's index: see `store.split_index.split_index_schema`."""
    number = {shard: k for k, shard in enumerate(shards)} | {_UNPACKED: -1}
    where = [packed[place.key] for place in rows]
    columns: dict[str, Any] = {
        "group": [place.group for place in rows],
        "name": [place.name for place in rows],
        "shard": [number[shard] for shard, _ in where],
        "row": [-1 if shard == _UNPACKED else row for shard, row in where],
    }
    if _UNPACKED in lookup:
        columns["source_digest"] = [place.source_digest for place in rows]
    for name in ("height", "width"):
        columns[name] = [lookup[s][name][r] for s, r in where]
    for name in [*(m.name for m in config.modalities), TARGET]:
        columns[f"{name}.offset"] = [lookup[s][f"{name}.offset"][r] for s, r in where]
    windows = [place.row for place in rows]
    for modality in config.modalities:
        name = f"{modality.name}.timesteps"
        columns[name] = [lookup[s][name][r] for s, r in where]
        stamps = timestamps_column(index.table, modality.name, windows, columns[name])
        columns[f"{modality.name}.timestamps"] = stamps
    return columns


def _by_row(table: pa.Table) -> dict[str, dict[int, Any]]:
    """A shard index's columns, each by the row in the shard."""
    rows = table["row"].to_pylist()
    return {
        name: dict(zip(rows, table[name].to_pylist(), strict=True)) for name in table.column_names
    }


def _shapes_by_row(
    index: WindowIndex, config: ResolvedConfig, places: Sequence[Place]
) -> dict[str, dict[int, Any]]:
    """What a shard's index would say about samples that are in none, each by its place."""
    rows = list(enumerate(pack_rows(index.table, [place.row for place in places], config)))
    columns: dict[str, dict[int, Any]] = {
        "height": {k: row.height for k, row in rows},
        "width": {k: row.width for k, row in rows},
        f"{TARGET}.offset": dict.fromkeys(range(len(rows)), 0),
    }
    for modality in config.modalities:
        name = modality.name
        columns[f"{name}.offset"] = dict.fromkeys(range(len(rows)), 0)
        columns[f"{name}.timesteps"] = {k: row.timesteps[name] for k, row in rows}
    return columns
