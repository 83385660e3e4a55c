"""Packed samples: shards of .npy files that EvalDataset maps into memory.

A shard holds some windows of a dataset, once, whatever their split:

    samples/{shard}/<modality>.npy    (N, H, W, T, C) where all windows agree in shape, else flat
    samples/{shard}/target.npy        (N, H, W) or (N,), else flat
    samples/{shard}/index.parquet     group, name, source_digest, height, width, and per array
                                      the timesteps and the offset of the first element

Pixels keep the source's integer or float type; nothing is padded on disk. A shard appears by a
rename when it is complete and is never changed after that.
"""

import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eval_ingest.core.resolved import ResolvedConfig
from eval_ingest.core.task import TaskKind
from eval_ingest.store.atomic import store_error, umask
from eval_ingest.store.index_file import read_table, write_table

TARGET = "target"

SHARD_VERSION = 1


@dataclass(frozen=True)
class PackRow:
    """One window's place in a shard that is to be written."""

    group: str
    name: str
    source_digest: str
    height: int
    """Of the sample, after padding."""
    width: int
    timesteps: dict[str, int]
    """Per modality; 0 where an optional modality is absent."""


@dataclass(frozen=True)
class ArrayPlan:
    """One .npy file of a shard."""

    name: str
    """A modality, or `target`."""
    dtype: str
    shapes: tuple[tuple[int, ...], ...]
    """Per row; a scalar target has the shape ()."""

    @property
    def uniform(self) -> bool:
        """True if all rows have the same shape."""
        return len(set(self.shapes)) <= 1

    @property
    def offsets(self) -> NDArray[np.int64]:
        """First element of each row, and the total at the end: N + 1 numbers."""
        sizes = [int(np.prod(shape, dtype=np.int64)) for shape in self.shapes]
        return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Shape of the .npy file."""
        if self.uniform:
            return (len(self.shapes), *(self.shapes[0] if self.shapes else ()))
        return (int(self.offsets[-1]),)


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
        ArrayPlan(
            modality.name,
            modality.dtype,
            tuple(
                (row.height, row.width, row.timesteps[modality.name], len(modality.bands))
                for row in rows
            ),
        )
        for modality in config.modalities
    ]
    shapes: tuple[tuple[int, ...], ...]
    if config.task.kind.per_pixel:
        shapes = tuple((row.height, row.width) for row in rows)
    else:
        shapes = tuple(() for _ in rows)
    return [*plans, ArrayPlan(TARGET, target_dtype(config), shapes)]


class ShardWriter:
    """Writes a shard in place into memory maps; rows may be written in any order, by any thread.

    Pickled, it opens the same files again: worker processes write their rows themselves.
    """

    def __init__(self, folder: Path, config: ResolvedConfig, rows: Sequence[PackRow]) -> None:
        self.rows = list(rows)
        self.plans = plan_arrays(config, rows)
        self.folder = folder
        self._offsets = {plan.name: plan.offsets for plan in self.plans}
        self._maps: dict[str, NDArray[Any]] = {}

    @classmethod
    def create(
        cls, samples: Path, config: ResolvedConfig, rows: Sequence[PackRow]
    ) -> "ShardWriter":
        """Make the files, aside, at their full size.

        Raises:
            StoreError: there is no room or no permission.
        """
        try:
            samples.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=".shard.", suffix=".tmp", dir=samples))
            folder.chmod(0o777 & ~umask())
            writer = cls(folder, config, rows)
            for plan in writer.plans:
                _create_npy(folder / f"{plan.name}.npy", plan.file_shape, np.dtype(plan.dtype))
        except OSError as error:
            raise store_error(samples, "making a shard of samples in", error) from error
        return writer

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}

    def _map(self, name: str) -> NDArray[Any]:
        if name not in self._maps:
            path = self.folder / f"{name}.npy"
            self._maps[name] = np.lib.format.open_memmap(path, mode="r+")
        return self._maps[name]

    def write(self, row: int, arrays: dict[str, NDArray[Any]]) -> None:
        """Put a window's arrays, each of its planned shape, into their place."""
        for plan in self.plans:
            shape = plan.shapes[row]
            array = arrays[plan.name]
            if array.shape != shape:
                raise ValueError(f"{plan.name} has shape {array.shape}, planned was {shape}")
            target = self._map(plan.name)
            if plan.uniform:
                target[row] = array
            else:
                start = self._offsets[plan.name][row]
                target[start : start + array.size] = array.reshape(-1)

    def commit(self, samples: Path, shard: str, row_key: str) -> str:
        """Flush everything, give the shard its name, and return it.

        Args:
            samples: the samples folder.
            shard: the name wanted; a number is added if a retired shard still has it.
            row_key: what the values depend on besides the windows' files; kept in the index.

        Raises:
            StoreError: it can't be written.
        """
        try:
            for array in self._maps.values():
                if isinstance(array, np.memmap):
                    array.flush()
            self._maps.clear()
            for plan in self.plans:
                with open(self.folder / f"{plan.name}.npy", "rb+") as stream:
                    os.fsync(stream.fileno())
            facts = {"kind": "shard", "version": SHARD_VERSION, "row_key": row_key}
            write_table(self.folder / "index.parquet", self.index_table(), facts)
            name = shard
            for number in itertools.count(2):
                if not (samples / name).exists():
                    break
                name = f"{shard}-{number}"
            os.rename(self.folder, samples / name)
        except OSError as error:
            raise store_error(samples / shard, "writing", error) from error
        return name

    def abandon(self) -> None:
        """Remove what was written."""
        self._maps.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def index_table(self) -> pa.Table:
        """Where each row lies."""
        columns: dict[str, Any] = {
            "group": [row.group for row in self.rows],
            "name": [row.name for row in self.rows],
            "source_digest": [row.source_digest for row in self.rows],
            "height": pa.array([row.height for row in self.rows], pa.int32()),
            "width": pa.array([row.width for row in self.rows], pa.int32()),
        }
        for plan in self.plans:
            columns[f"{plan.name}.offset"] = pa.array(plan.offsets[:-1], pa.int64())
            if plan.name != TARGET:
                steps = [row.timesteps[plan.name] for row in self.rows]
                columns[f"{plan.name}.timesteps"] = pa.array(steps, pa.int32())
        return pa.table(columns)


def _create_npy(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """An .npy file of that shape whose space is reserved, so that a full disk is told at once."""
    with open(path, "wb") as stream:
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(stream, header)
        size = stream.tell() + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        stream.flush()
        if hasattr(os, "posix_fallocate") and size:
            try:
                os.posix_fallocate(stream.fileno(), 0, size)
            except OSError as error:
                if error.errno not in (22, 95):  # not every network file system can reserve
                    raise
                os.ftruncate(stream.fileno(), size)
        else:
            stream.truncate(size)


def shard_names(samples: Path) -> list[str]:
    """The complete shards, sorted."""
    if not samples.is_dir():
        return []
    return sorted(p.parent.name for p in samples.glob("*/index.parquet") if p.parent.name[0] != ".")


def read_shard_index(samples: Path, shard: str, row_key: str) -> pa.Table | None:
    """A shard's index.parquet, or None if it was packed by another row key."""
    found = read_table(samples / shard / "index.parquet", "shard", SHARD_VERSION)
    if found is None or found[1].get("row_key") != row_key:
        return None
    return found[0]


def remove_leftovers(samples: Path, keep: Sequence[str], older_than_s: float) -> Iterator[Path]:
    """Remove shards that nothing names and unfinished ones, once they have been left that long."""
    if not samples.is_dir():
        return
    for folder in samples.iterdir():
        if folder.name in keep or not folder.is_dir():
            continue
        if time.time() - folder.stat().st_mtime >= older_than_s:
            shutil.rmtree(folder, ignore_errors=True)
            yield folder


def retire_shards(samples: Path) -> None:
    """Make the shards that are there unknown to the next run, without taking them from readers."""
    for shard in shard_names(samples):
        index = samples / shard / "index.parquet"
        index.rename(index.with_suffix(".retired"))
