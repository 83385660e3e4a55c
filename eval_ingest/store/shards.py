"""Packed samples: shards of .npy files that EvalDataset maps into memory.

A shard holds some windows of a dataset, once, whatever their split:

    samples/{shard}/<modality>.npy    (N, H, W, T, C) where all windows agree in shape, else flat
    samples/{shard}/target.npy        (N, H, W) or (N,), else flat
    samples/{shard}/index.parquet     group, name, source_digest, row, height, width, and per
                                      array the timesteps and the offset of the first element

Pixels keep the source's integer or float type; nothing is padded on disk. A shard appears by a
rename when it is complete and is never changed after that.
"""

import contextlib
import errno
import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from eval_ingest.core.bounds import MOST_PIXELS, Pixels
from eval_ingest.core.columns import arrow_table
from eval_ingest.core.entry import ArrayName, ShardArray
from eval_ingest.core.forms import ColumnForm, Facts, TableForm
from eval_ingest.core.resolved import ResolvedConfig
from eval_ingest.core.task import TaskKind
from eval_ingest.errors import IntegrityError
from eval_ingest.store.atomic import store_errors
from eval_ingest.store.npy import check_npy, create_npy, npy_header
from eval_ingest.store.roots.base import DatasetStore
from eval_ingest.store.split_index import TARGET
from eval_ingest.store.tables import read_table, write_table


class ShardFacts(Facts):
    """What a shard's index says of itself."""

    row_key: str
    arrays: dict[ArrayName, ShardArray]


SHARD_FORM = TableForm(
    "shard",
    3,
    {
        "group": ColumnForm(pa.string(), whole=True),
        "name": ColumnForm(pa.string(), whole=True),
        "source_digest": ColumnForm(pa.string(), whole=True),
        "row": ColumnForm(pa.int64(), whole=True),
        "height": ColumnForm(pa.int32(), whole=True),
        "width": ColumnForm(pa.int32(), whole=True),
        "*.offset": ColumnForm(pa.int64(), whole=True),
        "*.timesteps": ColumnForm(pa.int32(), whole=True),
    },
    ShardFacts,
)


@dataclass(frozen=True)
class PackRow:
    """One window's place in a shard that is to be written."""

    group: str
    name: str
    source_digest: str
    height: Pixels
    """Of the window."""
    width: Pixels
    timesteps: dict[str, Annotated[int, Field(ge=0, le=MOST_PIXELS)]]
    """Per modality; 0 where an optional modality is absent."""


@dataclass(frozen=True)
class ArrayPlan:
    """One .npy file of a shard: room for `count` rows."""

    name: str
    """A modality, or `target`."""
    dtype: str
    count: int
    shape: tuple[int, ...] | None
    """Of every row, if all agree; a scalar target has the shape ()."""
    shapes: tuple[tuple[int, ...], ...] = ()
    """Per row, if they differ."""

    @classmethod
    def of(cls, name: str, dtype: str, shapes: Sequence[tuple[int, ...]]) -> "ArrayPlan":
        """A plan for rows of these shapes."""
        if len(set(shapes)) == 1:
            return cls(name, dtype, len(shapes), shapes[0])
        return cls(name, dtype, len(shapes), None, tuple(shapes))

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """First element of each row, and the total at the end: count + 1 numbers."""
        if self.shape is not None:
            return np.arange(self.count + 1, dtype=np.int64) * math.prod(self.shape)
        sizes = [math.prod(shape) for shape in self.shapes]
        return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Shape of the .npy file."""
        if self.shape is not None:
            return (self.count, *self.shape)
        return (int(self.offsets[-1]),)

    def offset(self, row: int) -> int:
        """First element of a row; the end of the last one for `count`."""
        return int(self.offsets[row]) if self.shape is None else row * math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Bytes of all rows."""
        return self.offset(self.count) * np.dtype(self.dtype).itemsize

    def shape_of(self, row: int) -> tuple[int, ...]:
        """Shape of a row."""
        return self.shapes[row] if self.shape is None else self.shape


def target_dtype(config: ResolvedConfig) -> str:
    """The narrowest type that holds -1 and every class id, or float32."""
    if not config.task.kind.has_classes:
        return "float32"
    if config.task.kind is TaskKind.CLASSIFICATION:
        return "int64"
    return "int8" if config.task.num_classes <= 128 else "int16"


def plan_arrays(config: ResolvedConfig, rows: Sequence[PackRow]) -> list[ArrayPlan]:
    """The files of a shard of these rows."""
    plans = [
        ArrayPlan.of(
            modality.name,
            modality.dtype,
            [(r.height, r.width, r.timesteps[modality.name], len(modality.bands)) for r in rows],
        )
        for modality in config.modalities
    ]
    per_pixel = config.task.kind.per_pixel
    shapes = [(row.height, row.width) if per_pixel else () for row in rows]
    return [*plans, ArrayPlan.of(TARGET, target_dtype(config), shapes)]


class ShardWriter:
    """Writes a shard in place; rows may be written in any order, by any thread or process.

    Pickled, it opens the same files again. Rows that are never written take no room on the disk.
    """

    def __init__(self, folder: Path, plans: Sequence[ArrayPlan]) -> None:
        self.plans = list(plans)
        self.folder = folder
        self._files: dict[str, int] = {}

    @classmethod
    def create(cls, folder: Path, plans: Sequence[ArrayPlan]) -> "ShardWriter":
        """Make the files, at their full size, in a folder that the next run will find again.

        Raises:
            StoreError: there is no room or no permission.
        """
        with store_errors("making a shard of samples in", folder):
            folder.mkdir(parents=True, exist_ok=True)
            for plan in plans:
                create_npy(folder / f"{plan.name}.npy", plan.file_shape, np.dtype(plan.dtype))
        return cls(folder, plans)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}

    def __del__(self) -> None:
        # A worker process gets a writer with every task, and may get thousands.
        self._close()

    def _file(self, name: str) -> int:
        """The file descriptor of an array."""
        found = self._files.get(name)
        if found is None:
            opened = os.open(self.folder / f"{name}.npy", os.O_RDWR)
            found = self._files.setdefault(name, opened)
            if found != opened:  # another thread was faster
                os.close(opened)
        return found

    def check(self) -> None:
        """Look at the files that are there, as a stopped run has left them.

        Raises:
            IntegrityError: one is missing or damaged.
        """
        for plan in self.plans:
            path = self.folder / f"{plan.name}.npy"
            check_npy(path, self._recorded(plan), "run again")

    def fits(self, row: int, arrays: dict[str, NDArray[Any]]) -> bool:
        """True if the arrays have the shapes that are planned for the row."""
        return all(arrays[plan.name].shape == plan.shape_of(row) for plan in self.plans)

    def write(self, row: int, arrays: dict[str, NDArray[Any]]) -> None:
        """Put a window's arrays, each of its planned shape, into their place.

        Raises:
            StoreError: it can't be written; the disk is full, for example.
        """
        for plan in self.plans:
            array = np.asarray(arrays[plan.name], dtype=plan.dtype, order="C")
            if array.shape != plan.shape_of(row):
                raise ValueError(
                    f"{plan.name} has shape {array.shape}, planned was {plan.shape_of(row)}"
                )
            opened = self._file(plan.name)
            # Not through a memory map: a full disk would be a fatal signal there.
            view = memoryview(array.reshape(-1).view(np.uint8).data)
            at = self._place(plan, row)
            with store_errors("writing", self.folder / plan.name):
                while view:
                    written = os.pwrite(opened, view, at)
                    view, at = view[written:], at + written

    def read(self, row: int) -> dict[str, NDArray[Any]]:
        """The arrays of a window that were written.

        Raises:
            StoreError: they can't be read.
        """
        found = {}
        for plan in self.plans:
            dtype, shape = np.dtype(plan.dtype), plan.shape_of(row)
            n_bytes = math.prod(shape) * dtype.itemsize
            # Not through a memory map: all of the shard would count as this process's memory.
            with store_errors("reading", self.folder / plan.name):
                data = _read(self._file(plan.name), n_bytes, self._place(plan, row))
            found[plan.name] = np.frombuffer(data, dtype).reshape(shape)
        return found

    @staticmethod
    def _place(plan: ArrayPlan, row: int) -> int:
        """Where a row begins in its file."""
        dtype = np.dtype(plan.dtype)
        return len(npy_header(plan.file_shape, dtype)) + plan.offset(row) * dtype.itemsize

    def sync(self) -> None:
        """Bring what was written to the disk.

        Raises:
            StoreError: it can't be written.
        """
        for plan in self.plans:
            path = self.folder / f"{plan.name}.npy"
            with store_errors("writing", path), open(path, "rb+") as stream:
                os.fsync(stream.fileno())

    def commit(
        self, store: DatasetStore, shard: str, row_key: str, rows: Sequence[tuple[int, PackRow]]
    ) -> str:
        """Flush everything, give the shard its name, and return it.

        Args:
            store: the dataset.
            shard: the name wanted; a number is added if a retired shard still has it.
            row_key: what the values depend on besides the windows' files; kept in the index.
            rows: which window was written to which row.

        Raises:
            StoreError: it can't be written.
        """
        self._close()
        samples, table = store.layout.samples, self._index_table(rows)
        with contextlib.suppress(IntegrityError):  # a damaged shard keeps its name
            found = read_shard(store, shard, row_key)
            if found is not None and found[0] == table:
                self.abandon()  # a run that was stopped later, or elsewhere, has written the same
                return shard
        self.sync()
        with store_errors("writing", samples / shard):
            samples.mkdir(parents=True, exist_ok=True)
            for stray in self.folder.glob(".*.tmp"):
                stray.unlink()  # a run was stopped right here
            arrays = {plan.name: self._recorded(plan, store) for plan in self.plans}
            facts = {"row_key": row_key, "arrays": arrays}
            write_table(self.folder / "index.parquet", table, SHARD_FORM, **facts)
            name = shard
            for number in itertools.count(2):
                if not (samples / name).exists():
                    break
                name = f"{shard}-{number}"
            store.put_shard(self.folder, samples / name, arrays)
        return name

    def _recorded(self, plan: ArrayPlan, store: DatasetStore | None = None) -> ShardArray:
        """What is kept about an array's file, in a dataset or on the way to one."""
        path, dtype = self.folder / f"{plan.name}.npy", np.dtype(plan.dtype)
        return ShardArray(
            dtype=str(dtype),
            uniform=plan.shape is not None,
            shape=plan.file_shape,
            n_bytes=len(npy_header(plan.file_shape, dtype)) + plan.n_bytes,
            crc32c=None if store is None else store.checksum(path),
        )

    def abandon(self) -> None:
        """Remove what was written."""
        self._close()
        from eval_ingest.waiting import remove_folder  # a machine that only loads removes none

        remove_folder(self.folder)

    def _close(self) -> None:
        for opened in self._files.values():
            os.close(opened)
        self._files.clear()

    def _index_table(self, rows: Sequence[tuple[int, PackRow]]) -> pa.Table:
        """Where each window lies."""
        places = [place for place, _ in rows]
        found: dict[str, Any] = {
            name: [getattr(row, name) for _, row in rows]
            for name in ("group", "name", "source_digest", "height", "width")
        }
        found["row"] = places
        for plan in self.plans:
            found[f"{plan.name}.offset"] = plan.offsets[places]
            if plan.name != TARGET:
                steps = [row.timesteps[plan.name] for _, row in rows]
                found[f"{plan.name}.timesteps"] = steps
        return arrow_table(found, SHARD_FORM.schema(found))


def _read(opened: int, n_bytes: int, at: int) -> bytes:
    """Bytes of a file: one call of the system gives at most 2 GiB, and may give fewer."""
    parts: list[bytes] = []
    while n_bytes:
        parts.append(data := os.pread(opened, n_bytes, at))
        if not data:
            raise OSError(errno.EIO, "it ends too early")
        n_bytes, at = n_bytes - len(data), at + len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def shard_names(samples: Path) -> list[str]:
    """The complete shards, sorted."""
    if not samples.is_dir():
        return []
    return sorted(p.parent.name for p in samples.glob("*/index.parquet") if p.parent.name[0] != ".")


def forget_shards(store: DatasetStore) -> None:
    """Have no run know what is packed; the samples stay for readers.

    Raises:
        StoreError: it can't be written.
    """
    samples = store.layout.samples
    store.remove(samples / name / "index.parquet" for name in shard_names(samples))


def read_shard(
    store: DatasetStore, shard: str, row_key: str
) -> tuple[pa.Table, dict[str, ShardArray]] | None:
    """A shard's index.parquet, and what it records about the shard's arrays.

    None if it was packed by another row key. A cheap look is taken at the arrays.

    Raises:
        IntegrityError: the shard is damaged.
    """
    path = store.layout.samples / shard / "index.parquet"
    found = read_table(path, SHARD_FORM, store.name)
    if found is None or found[1].row_key != row_key:
        return None
    table, facts = found
    for name, array in facts.arrays.items():
        store.look_at(store.layout.array(shard, name), array)
    return table, facts.arrays
