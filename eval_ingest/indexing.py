"""From the windows of a source to the rows of a window index."""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from eval_ingest.core.digest import pixel_digest
from eval_ingest.core.fingerprint import fingerprint
from eval_ingest.core.index import INDEX_VERSION, index_schema, moments_struct
from eval_ingest.core.norm import count_nodata, measure
from eval_ingest.core.resolved import ResolvedConfig
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.core.task import IGNORE_LABEL, TaskKind
from eval_ingest.engine import map_ordered
from eval_ingest.store.atomic import read_json, write_json
from eval_ingest.store.index_file import read_table, write_table
from eval_ingest.store.layout import DatasetLayout
from eval_ingest.store.pack import PackRow, ShardWriter, plan_arrays
from eval_ingest.studio.source import Listed, Source, WindowFiles, WindowReader
from eval_ingest.studio.window import (
    WindowMetadata,
    WindowSample,
    apply_pad,
    read_metadata,
    read_window,
    sample_arrays,
    sample_size,
)

PARTIAL_VERSION = 2
PARTIAL_ROWS = 2048
"""Finished rows between two writes: a stopped run loses at most ten seconds of work."""
_PACKING = "packing.json"

SHARD_WINDOWS = 64
"""Windows per task: enough to drown its overhead, few enough to balance and to show progress."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and how many there are."""


def row_key(config: ResolvedConfig) -> str:
    """What a row's values depend on besides the window's files."""
    pixels = config.model_dump(
        mode="json",
        include={"task", "label", "modalities", "layers", "crop_size", "data_storage"},
    )
    for known in pixels["task"]["classes"]:
        known.pop("color")
    return fingerprint("row", INDEX_VERSION, pixels)


@dataclass(frozen=True)
class WindowFilter:
    """Which windows are wanted, by their metadata."""

    tags: dict[str, str] = field(default_factory=dict)
    temporal_range: tuple[str, str] | None = None

    @classmethod
    def of(cls, spec: DatasetSpec) -> "WindowFilter":
        """The spec's filter."""
        return cls(spec.tags, spec.temporal_range)

    @property
    def takes_all(self) -> bool:
        """True if there is nothing that a window could lack."""
        return not self.tags and self.temporal_range is None

    def wants(self, metadata: WindowMetadata) -> bool:
        """True if the options have every tag and the time range lies within (whole days)."""
        for key, value in self.tags.items():
            if key not in metadata.options or (value and str(metadata.options[key]) != value):
                return False
        if self.temporal_range is None:
            return True
        if metadata.time_range is None:
            return False
        first, last = self.temporal_range
        start, end = (time.date().isoformat() for time in metadata.time_range)
        return first <= start and end <= last


@dataclass(frozen=True)
class IndexWork:
    """Which windows have to be read, and which rows of earlier runs are still right."""

    new: list[Listed]
    """Windows that the last index doesn't have, in the order in which they are read and packed."""
    known: list[pa.Table] = field(default_factory=list)
    """Rows of the last index."""
    stopped: list[tuple["PartTable", list[int]]] = field(default_factory=list)
    """Rows of new windows that a stopped run has finished."""

    @classmethod
    def of(
        cls,
        windows: Sequence[Listed],
        known: pa.Table | None = None,
        stopped: "Sequence[PartTable]" = (),
    ) -> "IndexWork":
        """Compare windows, as they are now, with the last index and with what was left undone."""
        rows = {} if known is None else _rows_by_window(known)
        same = sorted(rows[window] for window in windows if window in rows)
        new = sorted((window for window in windows if window not in rows), key=_reading_order)
        left = set(new)
        finished = []
        for part in stopped:
            here = {w: row for w, row in _rows_by_window(part.table).items() if w in left}
            left -= here.keys()
            finished.append((part, sorted(here.values())))
        return cls(new, [] if known is None else [_take(known, same)], finished)

    @property
    def kept(self) -> list[pa.Table]:
        """All rows that are still right."""
        return [*self.known, *(_take(part.table, rows) for part, rows in self.stopped)]

    @property
    def to_read(self) -> list[tuple[int, Listed]]:
        """The windows without a row, each with its place among the new ones."""
        done = {w for part, rows in self.stopped for w in _rows_by_window(_take(part.table, rows))}
        return [(place, w) for place, w in enumerate(self.new) if w not in done]

    def packed(self, packer: "Packer", config: ResolvedConfig) -> list[tuple[int, PackRow]]:
        """What a stopped run has packed, with its places."""
        return [
            item
            for part, rows in self.stopped
            if part.packing == packer.key
            for item in part.packed(rows, config)
        ]


def _take(table: pa.Table, rows: Sequence[int]) -> pa.Table:
    return table.take(pa.array(rows, pa.int64()))  # an empty list would be of type null


def _rows_by_window(table: pa.Table) -> dict[Listed, int]:
    columns = (table[name].to_pylist() for name in ("group", "name", "source_digest"))
    return {window: row for row, window in enumerate(map(Listed, *columns))}


def _reading_order(item: Listed) -> tuple[str, str]:
    """By the SHA-256 of the name: the order of splits, so that packs are read from front to end."""
    return hashlib.sha256(item.name.encode()).hexdigest(), item.group


@dataclass(frozen=True)
class IndexTask:
    """How windows become rows, and perhaps samples; pickled for worker processes."""

    source: Source
    config: ResolvedConfig
    window_filter: WindowFilter
    packer: "Packer | None" = None
    copy_mode: str = "windows"
    """Of the spec: whether the copy stage will want the bytes of valid windows."""

    def __call__(self, shard: "Sequence[tuple[int, Listed]]") -> "IndexedShard":
        """Rows of some windows, each with its place among the samples; runs in a worker."""
        result = IndexedShard()
        rows = []
        windows = self.readers([item for _, item in shard])
        for (place, _), (files, reader) in zip(shard, windows, strict=True):
            sample = read_window(reader, files, self.config, self.window_filter.wants)
            if sample is None:
                result.filtered_out.append(files.listed)
                continue
            rows.append(index_row(sample, self.config))
            if sample.problems:
                continue
            packed = self.packer.pack(place, sample) if self.packer is not None else []
            result.packed += packed
            if self.copy_mode == "windows" or (self.copy_mode == "stream" and not packed):
                reader.keep()
        result.table = pa.Table.from_pylist(rows, schema=index_schema(self.config))
        return result

    def readers(self, items: Sequence[Listed]) -> Iterator[tuple[WindowFiles, WindowReader]]:
        """The windows' files and readers, in turn."""
        layers = self.config.layer_names
        windows = (self.source.window(item.group, item.name, layers) for item in items)
        return self.source.readers(windows, whole=self.window_filter.takes_all)


@dataclass
class IndexedShard:
    """What became of some windows."""

    table: pa.Table = None
    filtered_out: list[Listed] = field(default_factory=list)
    """Windows that the filter doesn't want."""
    packed: list[tuple[int, PackRow]] = field(default_factory=list)


def index_windows(
    task: IndexTask,
    items: "Sequence[tuple[int, Listed]]",
    executor: Executor,
    workers: int,
    parts: "PartialRows",
    commits: "Commits | None",
    progress: Progress,
) -> list[IndexedShard]:
    """Read, decode and judge windows, each given with its place among the samples.

    The result is one row each, in tables of some windows; windows that the filter doesn't want
    get no row. What is done is kept by `parts`, so that a stopped run goes on where it was;
    `commits` publishes shards of samples when all their windows are read.
    """
    found = []
    shards = (items[k : k + SHARD_WINDOWS] for k in range(0, len(items), SHARD_WINDOWS))
    for number, shard in enumerate(map_ordered(executor, task, shards, in_flight=2 * workers), 1):
        parts.add(shard)
        found.append(shard)
        if commits is not None:
            following = number * SHARD_WINDOWS
            place = items[following][0] if following < len(items) else None
            commits.add(shard.packed, before=place)
        progress("windows read", min(number * SHARD_WINDOWS, len(items)), len(items))
    return found


def selected(config: ResolvedConfig, files: WindowFiles, metadata: WindowMetadata) -> bool:
    """False for windows that model.yaml gives to no split."""
    selectors = config.selectors.values()
    return not selectors or any(
        selector.selects(files.group, files.name, metadata.options) for selector in selectors
    )


class Packer:
    """Packs samples while their windows are indexed, so that nothing is decoded twice.

    Window k of those that are to be packed gets row k of the shards; rows of windows that turn
    out to be invalid, or to differ in shape from the first one, stay empty, and the copy stage
    packs what is missing. The shards grow in a folder that outlives a stopped run, whose next one
    writes the missing rows into the same places: the result is the same as without the stop.
    """

    def __init__(
        self,
        folder: Path,
        config: ResolvedConfig,
        count: int,
        like: PackRow,
        key: str,
        shard_bytes: int,
    ) -> None:
        self.key = key
        """Of the windows and their places: rows packed under another key lie elsewhere."""
        self._config = config
        self.row_bytes = sum(plan.n_bytes for plan in plan_arrays(config, [like]))
        """Of one sample."""
        self._per_shard = max(shard_bytes // max(self.row_bytes, 1), 1)
        self._writers: list[ShardWriter | None] = [
            ShardWriter(
                folder / f"{first}.shard",
                plan_arrays(config, [like] * min(self._per_shard, count - first)),
            )
            for first in range(0, count, self._per_shard)
        ]

    @classmethod
    def create(
        cls,
        folder: Path,
        config: ResolvedConfig,
        count: int,
        like: PackRow,
        key: str,
        shard_bytes: int,
    ) -> "Packer":
        """Begin anew: what an earlier run left in the folder is removed.

        Raises:
            StoreError: there is no room or no permission.
        """
        shutil.rmtree(folder, ignore_errors=True)
        packer = cls(folder, config, count, like, key, shard_bytes)
        for writer in packer._writers:
            assert writer is not None
            ShardWriter.create_in(writer.folder, writer.plans)
        facts = {"key": key, "count": count, "like": asdict(like)}
        write_json(folder / _PACKING, facts)  # last: with it, the shards are all there
        return packer

    @classmethod
    def resume(
        cls, folder: Path, config: ResolvedConfig, key: str, shard_bytes: int
    ) -> "Packer | None":
        """Go on where a stopped run was; None if that one packed other windows, or none."""
        facts = read_json(folder / _PACKING)
        if facts is None or facts["key"] != key:
            return None
        like = PackRow(**facts["like"])
        packer = cls(folder, config, facts["count"], like, key, shard_bytes)
        # A shard that isn't there any more was complete, and has its name already.
        packer._writers = [
            writer if writer is not None and writer.folder.is_dir() else None
            for writer in packer._writers
        ]
        return packer

    def pack(self, place: int, sample: WindowSample) -> list[tuple[int, PackRow]]:
        """Write a valid window's arrays; returns its place and row, or nothing."""
        assert sample.metadata is not None
        if not selected(self._config, sample.files, sample.metadata):
            return []
        arrays = sample_arrays(sample, self._config)
        number, row = divmod(place, self._per_shard)
        writer = self._writers[number]
        if writer is None or not writer.fits(row, arrays):
            return []
        writer.write(row, arrays)
        return [(place, pack_row(sample, arrays, self._config))]

    def sync(self) -> None:
        """Bring what was packed to the disk, so that it can be relied on."""
        for writer in self._writers:
            if writer is not None:
                writer.sync()

    def commit(
        self,
        layout: DatasetLayout,
        packed: Iterable[tuple[int, PackRow]],
        row_key: str,
        before: int | None,
    ) -> None:
        """Publish the shards all of whose places lie before one, with what was packed."""
        rows: dict[int, list[tuple[int, PackRow]]] = {}
        for place, row in packed:
            rows.setdefault(place // self._per_shard, []).append((place % self._per_shard, row))
        for number, writer in enumerate(self._writers):
            if before is not None and (number + 1) * self._per_shard > before:
                return
            if writer is None:
                continue
            here = sorted(rows.get(number, ()), key=lambda item: item[0])
            if here:
                keys = [(row.group, row.name, row.source_digest) for _, row in here]
                writer.commit(layout, fingerprint(row_key, keys), row_key, here)
            else:
                writer.abandon()
            self._writers[number] = None

    @property
    def per_shard(self) -> int:
        """Places of a shard."""
        return self._per_shard


class Commits:
    """Publishes a packer's shards, each as soon as the last of its windows is read.

    So what is packed takes no more room aside than a shard or two, and a stopped run has lost no
    more.

    Args:
        packer: packs the samples.
        layout: the dataset.
        row_key: what the rows depend on besides the windows' files.
        packed: what stopped runs have packed already.
    """

    def __init__(
        self,
        packer: Packer,
        layout: DatasetLayout,
        row_key: str,
        packed: Sequence[tuple[int, PackRow]],
    ) -> None:
        self._packer, self._layout, self._row_key = packer, layout, row_key
        self._packed = list(packed)
        self._done = 0

    def add(self, packed: Sequence[tuple[int, PackRow]], before: int | None) -> None:
        """Note what was packed; all places before `before` are done, or all if it is None.

        Raises:
            StoreError: a shard can't be published.
        """
        self._packed += packed
        done = None if before is None else before // self._packer.per_shard
        if done is not None and done <= self._done:
            return
        self._packer.commit(self._layout, self._packed, self._row_key, before)
        self._done = done or 0
        first = self._done * self._packer.per_shard
        self._packed = [item for item in self._packed if item[0] >= first]


def pack_row(
    sample: WindowSample, arrays: dict[str, NDArray[Any]], config: ResolvedConfig
) -> PackRow:
    """A sample's place in a shard's index."""
    height, width = arrays[config.modalities[0].name].shape[:2]
    steps = {modality.name: arrays[modality.name].shape[2] for modality in config.modalities}
    files = sample.files
    return PackRow(files.group, files.name, files.digest, height, width, steps)


def pack_rows(table: pa.Table, rows: Sequence[int], config: ResolvedConfig) -> list[PackRow]:
    """The shapes of valid windows' samples, from their rows in an index."""
    steps = {modality.name: f"{modality.name}.timesteps" for modality in config.modalities}
    columns = ["group", "name", "source_digest", "height", "width", *steps.values()]
    found = table.select(columns).take(pa.array(rows, pa.int64())).to_pylist()
    return [
        PackRow(
            row["group"],
            row["name"],
            row["source_digest"],
            *sample_size(config, row["height"], row["width"]),
            {name: row[column] for name, column in steps.items()},
        )
        for row in found
    ]


def make_packer(
    task: IndexTask,
    items: Sequence[Listed],
    known: Sequence[pa.Table],
    folder: Path,
    shard_bytes: int,
    look_at: int = 16,
) -> Packer | None:
    """A packer for these windows in these places, shaped like the first valid one.

    What a stopped run has packed of the same windows is kept. The first valid window is looked
    for in the rows that are known already, then by reading; None if none is near.
    """
    windows = [(item.group, item.name) for item in items]
    key = fingerprint("packing", row_key(task.config), shard_bytes, windows)
    packer = Packer.resume(folder, task.config, key, shard_bytes)
    if packer is not None:
        return packer
    for table in known:
        valid = table.filter(pc.equal(table["status"], "valid"))
        if valid.num_rows and items:
            [like] = pack_rows(valid, [0], task.config)
            return Packer.create(folder, task.config, len(items), like, key, shard_bytes)
    for item in items[:look_at]:
        [(files, reader)] = task.readers([item])  # one by one: most often, the first will do
        sample = read_window(reader, files, task.config, task.window_filter.wants)
        if sample is not None:
            reader.keep()  # it is read again when its turn comes
        if sample is not None and not sample.problems:
            like = pack_row(sample, sample_arrays(sample, task.config), task.config)
            return Packer.create(folder, task.config, len(items), like, key, shard_bytes)
    return None


def index_row(sample: WindowSample, config: ResolvedConfig) -> dict[str, Any]:
    """The row of one window; its geometry is added later, for all windows at once."""
    files, metadata = sample.files, sample.metadata
    row: dict[str, Any] = {
        "group": files.group,
        "name": files.name,
        "layers": sample.layers,
        "n_files": len(files.files),
        "n_bytes": files.n_bytes,
        "source_digest": files.digest,
        "status": "invalid" if sample.problems else "valid",
        "problems": [
            {"code": found.code, "detail": found.detail[:500]} for found in sample.problems
        ],
    }
    if metadata is not None:
        row |= _metadata_columns(metadata)
    moments: dict[str, NDArray[np.float64]] = {}
    for modality in config.modalities:
        found = sample.modalities.get(modality.name)
        row[f"{modality.name}.timesteps"] = found.pixels.shape[2] if found else 0
        if found is None:
            continue
        pixels = apply_pad(found.pixels, modality.pad)
        moments[modality.name] = measure(pixels, decibels=modality.decibels)
        row[f"{modality.name}.moments"] = moments_struct(moments[modality.name])
        row[f"{modality.name}.nodata"] = count_nodata(
            pixels, moments[modality.name], decibels=modality.decibels
        )
        if found.timestamps is not None:
            row[f"{modality.name}.timestamps"] = [
                {"start": start, "end": end} for start, end in found.timestamps
            ]
    arrays = {name: found.pixels for name, found in sample.modalities.items()}
    row["pixel_digest"] = pixel_digest(arrays, moments)
    return row | _label_columns(sample, config)


def metadata_row(
    reader: WindowReader, files: WindowFiles, wanted: Callable[[WindowMetadata], bool]
) -> dict[str, Any] | None:
    """The row of a window of which nothing but metadata.json is read, for a dry run.

    Returns None if it isn't wanted.
    """
    row = {"group": files.group, "name": files.name, "status": "valid", "problems": []}
    metadata = read_metadata(reader, files)
    if metadata is None:
        return row | {"status": "invalid"}
    return row | _metadata_columns(metadata) if wanted(metadata) else None


def _metadata_columns(metadata: WindowMetadata) -> dict[str, Any]:
    start, end = metadata.time_range or (None, None)
    return {
        "crs": metadata.crs,
        "x_resolution": metadata.x_resolution,
        "y_resolution": metadata.y_resolution,
        "bounds": list(metadata.bounds),
        "height": metadata.height,
        "width": metadata.width,
        "time_start": start,
        "time_end": end,
        "options": json.dumps(metadata.options, sort_keys=True),
    }


def _label_columns(sample: WindowSample, config: ResolvedConfig) -> dict[str, Any]:
    task, target = config.task, sample.target
    if target is None:
        return {}
    if not task.kind.has_classes:
        target = apply_pad(target, config.label.pad, np.nan) if target.ndim else target
        values = target.reshape(-1, 1)
        moments = measure(values)
        return {
            "label.moments": moments_struct(moments),
            "label.invalid": values.size - int(moments[0, 0]),
        }
    if task.kind is TaskKind.SEGMENTATION:
        target = apply_pad(target, config.label.pad, IGNORE_LABEL)
    labels = target.reshape(-1)
    inside = labels[(labels >= 0) & (labels < task.num_classes)]
    return {
        "label.class_counts": np.bincount(inside, minlength=task.num_classes).tolist(),
        "label.invalid": int((labels == IGNORE_LABEL).sum()),
    }


def add_geometry(table: pa.Table) -> pa.Table:
    """Fill the geometry column: window outlines in longitude and latitude, as WKB.

    All windows of one CRS are transformed together. A CRS that can't be understood leaves null.
    """
    import pyproj
    import shapely

    geometry = np.full(table.num_rows, None, dtype=object)
    crs = np.array(table["crs"].to_pylist(), dtype=object)
    known = np.flatnonzero([text is not None for text in crs])
    bounds = np.array([table["bounds"][int(k)].as_py() for k in known], dtype=float).reshape(-1, 4)
    scale = (
        np.column_stack(
            [table[name].take(known).to_pylist() for name in ("x_resolution", "y_resolution") * 2]
        )
        if len(known)
        else np.zeros((0, 4))
    )
    corners = bounds * scale
    for text in set(crs[known]):
        here = np.flatnonzero(crs[known] == text)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                transformer = pyproj.Transformer.from_crs(text, "EPSG:4326", always_xy=True)
        except pyproj.exceptions.ProjError:
            continue
        x0, y0, x1, y1 = corners[here].T
        xs, ys = np.stack([x0, x1, x1, x0, x0], axis=1), np.stack([y0, y0, y1, y1, y0], axis=1)
        lon, lat = transformer.transform(xs, ys)
        finite = np.isfinite(lon).all(axis=1) & np.isfinite(lat).all(axis=1)
        shapes = shapely.polygons(np.stack([lon[finite], lat[finite]], axis=-1))
        geometry[known[here[finite]]] = shapely.to_wkb(shapely.normalize(shapes))
    place = table.schema.get_field_index("geometry")
    return table.set_column(place, "geometry", pa.array(geometry.tolist(), pa.binary()))


class PartialRows:
    """What is done of an index that isn't complete yet, in a folder: rows and packed samples."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder = folder
        self._key = key
        self._waiting: list[pa.Table] = []
        self._count = len(list(folder.glob("*.parquet"))) if folder.is_dir() else 0
        self.packer: Packer | None = None
        """Packs the samples of the rows that are added."""

    @property
    def packing(self) -> Path:
        """Where the packer's shards grow."""
        return self._folder / "packing"

    def read(self) -> "list[PartTable]":
        """What earlier runs left, if their row key is ours."""
        found = []
        for path in sorted(self._folder.glob("*.parquet")) if self._folder.is_dir() else []:
            part = read_table(path, "partial_rows", PARTIAL_VERSION)
            if part is not None and part[1].get("row_key") == self._key:
                table, facts = part
                places = table["place"].to_pylist()
                found.append(PartTable(table.drop_columns("place"), places, facts["packing"]))
        return found

    def add(self, shard: IndexedShard) -> None:
        """Keep some rows; they reach the disk in files of about PARTIAL_ROWS rows."""
        places = {(row.group, row.name): place for place, row in shard.packed}
        names = zip(shard.table["group"].to_pylist(), shard.table["name"].to_pylist(), strict=True)
        column = pa.array([places.get(name) for name in names], pa.int64())
        self._waiting.append(shard.table.append_column("place", column))
        if sum(part.num_rows for part in self._waiting) >= PARTIAL_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting, after the samples that it speaks of."""
        if not self._waiting:
            return
        if self.packer is not None:
            self.packer.sync()
        facts = {
            "kind": "partial_rows",
            "version": PARTIAL_VERSION,
            "row_key": self._key,
            "packing": self.packer.key if self.packer is not None else "",
        }
        path = self._folder / f"{self._count:06d}.parquet"
        write_table(path, pa.concat_tables(self._waiting), facts)
        self._waiting.clear()
        self._count += 1

    def clear(self) -> None:
        """Remove all of it: the index is written."""
        self._waiting.clear()
        shutil.rmtree(self._folder, ignore_errors=True)


@dataclass(frozen=True)
class PartTable:
    """Rows that a stopped run has finished."""

    table: pa.Table
    places: list[int | None]
    """Of each row's sample among those that were packed; None: it wasn't packed."""
    packing: str
    """The key of the packer, see `Packer.key`."""

    def packed(self, rows: Sequence[int], config: ResolvedConfig) -> list[tuple[int, PackRow]]:
        """Those of some rows that were packed, with their places."""
        done = [row for row in rows if self.places[row] is not None]
        found = pack_rows(self.table, done, config)
        return [(self.places[row] or 0, at) for row, at in zip(done, found, strict=True)]
