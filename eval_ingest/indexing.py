"""From the windows of a source to the rows of a window index."""

import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from eval_ingest.core.digest import pixel_digest
from eval_ingest.core.fingerprint import fingerprint
from eval_ingest.core.index import INDEX_VERSION, index_schema, moments_struct
from eval_ingest.core.norm import measure
from eval_ingest.core.resolved import ResolvedConfig
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.core.task import IGNORE_LABEL, TaskKind
from eval_ingest.engine import map_ordered
from eval_ingest.store.index_file import read_table, write_table
from eval_ingest.store.pack import MAX_SHARD_BYTES, PackRow, ShardWriter, plan_arrays
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


@dataclass
class Pool:
    """Rows of earlier runs, to be used again where window and row key are unchanged."""

    tables: list[pa.Table]
    places: dict[tuple[str, str, str], tuple[int, int]]
    """(group, name, source_digest) to (table, row)."""

    @classmethod
    def of(cls, tables: Iterable[pa.Table]) -> "Pool":
        """All rows of the tables; the last one of a window counts."""
        kept = list(tables)
        places = {}
        for number, table in enumerate(kept):
            columns = (table[name].to_pylist() for name in ("group", "name", "source_digest"))
            for row, key in enumerate(zip(*columns, strict=True)):
                places[key] = (number, row)
        return cls(kept, places)

    def take(self, places: Sequence[tuple[int, int]]) -> list[pa.Table]:
        """The rows at these places, as tables."""
        rows: dict[int, list[int]] = {}
        for number, row in places:
            rows.setdefault(number, []).append(row)
        return [self.tables[number].take(sorted(found)) for number, found in rows.items()]


@dataclass(frozen=True)
class IndexTask:
    """How windows become rows, and perhaps samples; pickled for worker processes."""

    source: Source
    config: ResolvedConfig
    window_filter: WindowFilter
    packer: "Packer | None" = None
    copies: bool = True
    """True: the copy stage will want the bytes of valid windows."""

    def __call__(self, shard: "list[tuple[int, Listed]]") -> "IndexedShard":
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
            if self.copies or not packed:
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
    items: Sequence[Listed],
    executor: Executor,
    workers: int,
    parts: "PartialRows",
    progress: Progress,
) -> list[IndexedShard]:
    """Read, decode and judge windows: one row each, in tables of some windows.

    Windows that the filter doesn't want get no row.
    Every finished table is kept by `parts`, so that a stopped run goes on where it was.
    """
    found = []
    places = list(enumerate(items))
    shards = (places[k : k + SHARD_WINDOWS] for k in range(0, len(places), SHARD_WINDOWS))
    for number, shard in enumerate(map_ordered(executor, task, shards, in_flight=2 * workers), 1):
        parts.add(shard.table)
        found.append(shard)
        progress("windows read", min(number * SHARD_WINDOWS, len(places)), len(places))
    return found


def selected(config: ResolvedConfig, files: WindowFiles, metadata: WindowMetadata) -> bool:
    """False for windows that model.yaml gives to no split."""
    selectors = config.selectors.values()
    return not selectors or any(
        selector.selects(files.group, files.name, metadata.options) for selector in selectors
    )


class Packer:
    """Packs samples while their windows are indexed, so that nothing is decoded twice.

    Window k of the run gets row k of the shards; rows of windows that turn out to be invalid, or
    to differ in shape from the first one, stay empty, and the copy stage packs what is missing.
    """

    def __init__(self, samples: Path, config: ResolvedConfig, count: int, like: PackRow) -> None:
        self._samples, self._config = samples, config
        row_bytes = sum(plan.n_bytes for plan in plan_arrays(config, [like]))
        self._per_shard = max(MAX_SHARD_BYTES // max(row_bytes, 1), 1)
        self._writers = [
            ShardWriter.create(
                samples, plan_arrays(config, [like] * min(self._per_shard, count - first))
            )
            for first in range(0, count, self._per_shard)
        ]

    def pack(self, place: int, sample: WindowSample) -> list[tuple[int, PackRow]]:
        """Write a valid window's arrays; returns its place and row, or nothing."""
        assert sample.metadata is not None
        if not selected(self._config, sample.files, sample.metadata):
            return []
        arrays = sample_arrays(sample, self._config)
        number, row = divmod(place, self._per_shard)
        if not self._writers[number].fits(row, arrays):
            return []
        self._writers[number].write(row, arrays)
        return [(place, pack_row(sample, arrays, self._config))]

    def commit(self, packed: Sequence[tuple[int, PackRow]], key: str) -> None:
        """Publish the shards with what was packed."""
        for number, writer in enumerate(self._writers):
            first = number * self._per_shard
            rows = [
                (place - first, row)
                for place, row in packed
                if first <= place < first + self._per_shard
            ]
            if not rows:
                writer.abandon()
                continue
            keys = [(row.group, row.name, row.source_digest) for _, row in rows]
            writer.commit(self._samples, fingerprint(key, keys), key, rows)

    def abandon(self) -> None:
        """Remove what was packed."""
        for writer in self._writers:
            writer.abandon()


def pack_row(
    sample: WindowSample, arrays: dict[str, NDArray[Any]], config: ResolvedConfig
) -> PackRow:
    """A sample's place in a shard's index."""
    height, width = arrays[config.modalities[0].name].shape[:2]
    steps = {modality.name: arrays[modality.name].shape[2] for modality in config.modalities}
    files = sample.files
    return PackRow(files.group, files.name, files.digest, height, width, steps)


def pack_row_of(table: pa.Table, row: int, config: ResolvedConfig) -> PackRow:
    """The shape of a valid window's sample, from its row in the index."""
    found = table.slice(row, 1).select(
        ["group", "name", "source_digest", "height", "width"]
        + [f"{modality.name}.timesteps" for modality in config.modalities]
    )
    values = found.to_pylist()[0]
    return PackRow(
        values["group"],
        values["name"],
        values["source_digest"],
        *sample_size(config, values["height"], values["width"]),
        {m.name: values[f"{m.name}.timesteps"] for m in config.modalities},
    )


def make_packer(
    task: IndexTask,
    items: Sequence[Listed],
    known: Sequence[pa.Table],
    samples: Path,
    look_at: int = 16,
) -> Packer | None:
    """A packer for samples shaped like the first valid window, or None if none is near.

    The first valid window is looked for in the rows that are known already, then by reading.
    """
    for table in known:
        valid = table.filter(pc.equal(table["status"], "valid"))
        if valid.num_rows and items:
            return Packer(samples, task.config, len(items), pack_row_of(valid, 0, task.config))
    for item in items[:look_at]:
        [(files, reader)] = task.readers([item])  # one by one: most often, the first will do
        sample = read_window(reader, files, task.config, task.window_filter.wants)
        if sample is not None:
            reader.keep()  # it is read again when its turn comes
        if sample is not None and not sample.problems:
            like = pack_row(sample, sample_arrays(sample, task.config), task.config)
            return Packer(samples, task.config, len(items), like)
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
    """Finished rows of an index that isn't complete yet, in files beside it."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder = folder
        self._key = key
        self._waiting: list[pa.Table] = []
        self._count = len(list(folder.glob("*.parquet"))) if folder.is_dir() else 0

    def tables(self) -> list[pa.Table]:
        """What earlier runs left, if their row key is ours."""
        found = []
        for path in sorted(self._folder.glob("*.parquet")) if self._folder.is_dir() else []:
            part = read_table(path, "partial_rows", INDEX_VERSION)
            if part is not None and part[1].get("row_key") == self._key:
                found.append(part[0])
        return found

    def add(self, table: pa.Table, every: int = 2048) -> None:
        """Keep some rows; they reach the disk in files of about `every` rows."""
        self._waiting.append(table)
        if sum(part.num_rows for part in self._waiting) >= every:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        if not self._waiting:
            return
        facts = {"kind": "partial_rows", "version": INDEX_VERSION, "row_key": self._key}
        path = self._folder / f"{self._count:06d}.parquet"
        write_table(path, pa.concat_tables(self._waiting), facts)
        self._waiting.clear()
        self._count += 1

    def clear(self) -> None:
        """Remove all of it: the index is written."""
        self._waiting.clear()
        shutil.rmtree(self._folder, ignore_errors=True)
