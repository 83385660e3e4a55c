"""Samples are packed while their windows are indexed: nothing is decoded twice."""

import secrets
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from eval_ingest.core.fingerprint import fingerprint
from eval_ingest.core.resolved import ResolvedConfig
from eval_ingest.decoding.judge import WindowSample, sample_arrays
from eval_ingest.indexing.wanted import selected
from eval_ingest.store.roots.base import DatasetStore
from eval_ingest.store.seal import read_sealed_json, unless_damaged, write_sealed_json
from eval_ingest.store.shards import PackRow, ShardWriter, plan_arrays

_PACKING = "packing.json"


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
        # Rows that were packed into shards which are gone must not count as packed into these.
        packer.key = f"{key}-{secrets.token_hex(8)}"
        facts = {"key": packer.key, "count": count, "like": asdict(like)}
        write_sealed_json(folder / _PACKING, facts)  # last: with it, the shards are all there
        return packer

    @classmethod
    def resume(
        cls, folder: Path, config: ResolvedConfig, key: str, shard_bytes: int
    ) -> "Packer | None":
        """Go on where a stopped run was; None if it packed other windows, or none that are left."""
        facts = unless_damaged(lambda: read_sealed_json(folder / _PACKING, "run again"))
        if facts is None or facts["key"].partition("-")[0] != key:
            return None
        like = PackRow(**facts["like"])
        packer = cls(folder, config, facts["count"], like, facts["key"], shard_bytes)
        # A shard that isn't there any more was complete, and has its name already.
        packer._writers = [
            writer if writer is not None and writer.folder.is_dir() else None
            for writer in packer._writers
        ]
        return unless_damaged(packer._checked)

    def _checked(self) -> "Packer":
        for writer in self._writers:
            if writer is not None:
                writer.check()
        return self

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
        store: DatasetStore,
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
                writer.commit(store, fingerprint(row_key, keys), row_key, here)
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
        store: the dataset.
        row_key: what the rows depend on besides the windows' files.
        packed: what stopped runs have packed already.
    """

    def __init__(
        self,
        packer: Packer,
        store: DatasetStore,
        row_key: str,
        packed: Sequence[tuple[int, PackRow]],
    ) -> None:
        self._packer, self._store, self._row_key = packer, store, row_key
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
        self._packer.commit(self._store, self._packed, self._row_key, before)
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
            row["height"],
            row["width"],
            {name: row[column] for name, column in steps.items()},
        )
        for row in found
    ]
