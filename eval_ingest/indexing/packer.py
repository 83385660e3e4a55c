"""Samples are packed into shards by whichever stage has their windows decoded.

Belongs here: which sample goes to which row of which shard, and when a shard is published. Does
not: the files of a shard (store/shards.py). window_index packs as it judges, in places that are
fixed before it knows which windows are valid; weka_copy packs what is missing then.
"""

import secrets
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eval_ingest.core.bounds import Count, Record
from eval_ingest.core.columns import row_numbers
from eval_ingest.core.fingerprint import fingerprint
from eval_ingest.core.resolved import ResolvedConfig
from eval_ingest.decoding.judge import WindowSample
from eval_ingest.indexing.listed import WindowList
from eval_ingest.sources.base import Listed
from eval_ingest.store.records import read_record
from eval_ingest.store.roots.base import DatasetStore
from eval_ingest.store.seal import unless_damaged, write_sealed_json
from eval_ingest.store.shards import PackRow, ShardWriter, plan_arrays
from eval_ingest.waiting import remove_folder

_PACKING = "packing.json"
_MOST_ROWS = 1 << 14
"""Of a shard for windows that nobody has counted: room is planned, and notes are kept, for each."""


class Packer:
    """Packs samples: each of a row of places has its row in one of the shards.

    A row stays empty if its window turns out to be invalid, or to differ in shape from what was
    planned. The shards grow aside and are published one by one, so that what is packed takes no
    more room there than a shard or two.

    Args:
        folder: where the shards grow.
        config: what samples are made of.
        rows: the shape that is planned for each place.
        shard_bytes: of a shard at most, if it holds more than one sample.
        key: of the windows and their places: rows packed under another key lie elsewhere.
    """

    def __init__(
        self,
        folder: Path,
        config: ResolvedConfig,
        rows: Sequence[PackRow],
        shard_bytes: int,
        key: str = "",
    ) -> None:
        self.key = key
        self._config = config
        self._starts, self.n_bytes = _divided(config, rows, shard_bytes)
        self._ends = [*self._starts, len(rows)][1:]
        self._writers: list[ShardWriter | None] = [
            ShardWriter(folder / f"{start}.shard", plan_arrays(config, rows[start:end]))
            for start, end in zip(self._starts, self._ends, strict=True)
        ]
        self._packed: dict[int, PackRow] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": {}}

    def create(self) -> "Packer":
        """Make the shards' files.

        Raises:
            StoreError: there is no room or no permission.
        """
        for writer in self._writers:
            assert writer is not None
            ShardWriter.create(writer.folder, writer.plans)
        return self

    # -------------------------------------------------------------------------------- in workers

    def pack(
        self, place: int, sample: WindowSample, arrays: dict[str, NDArray[Any]]
    ) -> list[tuple[int, PackRow]]:
        """Write a valid window's arrays; its place and row, or nothing if they don't fit."""
        writer, row = self.at(place)
        if writer is None or not writer.fits(row, arrays):
            return []
        writer.write(row, arrays)
        return [(place, pack_row(sample, arrays, self._config))]

    def at(self, place: int) -> tuple[ShardWriter | None, int]:
        """The shard of a place, None if that is published, and the row in it."""
        number = bisect_right(self._starts, place) - 1
        return self._writers[number], place - self._starts[number]

    # ----------------------------------------------------------------------- in whoever starts them

    @property
    def shards(self) -> Iterator[tuple[ShardWriter, range]]:
        """Those that aren't published, each with its places."""
        for writer, start, end in zip(self._writers, self._starts, self._ends, strict=True):
            if writer is not None:
                yield writer, range(start, end)

    def move_to(self, other: "Packer", places: Sequence[int]) -> None:
        """Move what is packed in the only shard into that of another, its places in this order."""
        [(writer, _)], [(target, _)] = self.shards, other.shards
        for place, before in enumerate(places):
            if before in self._packed:
                target.write(place, writer.read(before))
                other.note([(place, self._packed[before])])
        writer.abandon()

    def sync(self) -> None:
        """Bring what was packed to the disk, so that it can be relied on."""
        for writer, _ in self.shards:
            writer.sync()

    def note(self, packed: Iterable[tuple[int, PackRow]]) -> None:
        """Note what was packed."""
        self._packed |= dict(packed)

    def publish(
        self,
        store: DatasetStore,
        row_key: str,
        packed: Iterable[tuple[int, PackRow]],
        before: int | None = None,
    ) -> list[str]:
        """Note what was packed, and publish the shards all of whose places are done; their names.

        Args:
            store: the dataset.
            row_key: what the samples depend on besides the windows' files.
            packed: places and rows.
            before: all places before this one are done; None: all are.

        Raises:
            StoreError: a shard can't be published.
        """
        self.note(packed)
        names: list[str] = []
        for number, (writer, start, end) in enumerate(
            zip(self._writers, self._starts, self._ends, strict=True)
        ):
            if before is not None and end > before:
                break
            if writer is None:
                continue
            places = [place for place in range(start, end) if place in self._packed]
            here = [(place - start, self._packed.pop(place)) for place in places]
            if here:
                keys = [(row.group, row.name, row.source_digest) for _, row in here]
                names.append(writer.commit(store, fingerprint(row_key, keys), row_key, here))
            else:
                writer.abandon()
            self._writers[number] = None
        return names


class Packers:
    """Packs windows that come one after the other, nobody knows how many: shard after shard.

    A shard is published with its rows in the order of splits, as if all of its windows had been
    known.

    Args:
        folder: where the shards grow.
        config: what samples are made of.
        like: the shape that is planned for all.
        shard_bytes: of a shard at most, if it holds more than one sample.
    """

    def __init__(
        self, folder: Path, config: ResolvedConfig, like: PackRow, shard_bytes: int
    ) -> None:
        self._folder, self._config, self._like = folder, config, like
        n_bytes = sum(plan.n_bytes for plan in plan_arrays(config, [like]))
        self._rows = min(max(1, shard_bytes // n_bytes), _MOST_ROWS)
        self._windows: dict[Packer, list[Listed]] = {}
        """Those of each shard that isn't published, in their places."""

    def places(self, windows: Sequence[Listed]) -> tuple[Packer, range]:
        """Room for some windows, or for the first ones, where a shard ends."""
        packer, known = next(reversed(self._windows.items()), (None, []))
        if packer is None or len(known) == self._rows:
            packer, known = self._made("growing", self._rows), []
            self._windows[packer] = known
        first = len(known)
        known += windows[: self._rows - first]
        return packer, range(first, len(known))

    def publish(self, store: DatasetStore, row_key: str, before: Packer | None) -> list[str]:
        """Publish the shards before one of them, or all; their names.

        Raises:
            StoreError: a shard can't be published.
        """
        names: list[str] = []
        while self._windows and (packer := next(iter(self._windows))) is not before:
            windows = self._windows[packer]
            ordered = self._made("ordered", len(windows))
            order = WindowList(windows).reading_order(np.arange(len(windows)))
            packer.move_to(ordered, order.tolist())
            names += ordered.publish(store, row_key, [])
            del self._windows[packer]
        return names

    def _made(self, name: str, rows: int) -> Packer:
        folder = self._folder / f"{name}.{secrets.token_hex(8)}"
        return Packer(folder, self._config, [self._like] * rows, sys.maxsize).create()


def _divided(config: ResolvedConfig, rows: Sequence[PackRow], most: int) -> tuple[list[int], int]:
    """The first place of each shard of at most so many bytes; and the bytes of all rows."""
    starts: list[int] = []
    total = size = 0
    bytes_of: dict[tuple[int, ...], int] = {}
    for place, row in enumerate(rows):
        shape = row.height, row.width, *row.timesteps.values()
        if shape not in bytes_of:
            bytes_of[shape] = sum(plan.n_bytes for plan in plan_arrays(config, [row]))
        n_bytes = bytes_of[shape]
        if not starts or size + n_bytes > most:
            starts.append(place)
            size = 0
        size += n_bytes
        total += n_bytes
    return starts, total


class _Packing(Record):
    """What a stopped run's packer was made of."""

    key: str
    count: Count
    like: PackRow


def fresh_packer(
    folder: Path, config: ResolvedConfig, count: int, like: PackRow, key: str, shard_bytes: int
) -> Packer:
    """A packer whose places are all planned alike, which a stopped run can go on with.

    Raises:
        StoreError: there is no room or no permission.
    """
    remove_folder(folder)
    # Rows that were packed into shards which are gone must not count as packed into these.
    key = f"{key}-{secrets.token_hex(8)}"
    packer = Packer(folder, config, [like] * count, shard_bytes, key).create()
    packing = _Packing(key=key, count=count, like=like)
    # Last: with it, the shards are all there.
    write_sealed_json(folder / _PACKING, packing.model_dump())
    return packer


def resumed_packer(
    folder: Path, config: ResolvedConfig, count: int, key: str, shard_bytes: int
) -> Packer | None:
    """Go on where a stopped run was; None if it packed other windows, or none that are left."""
    found = unless_damaged(lambda: read_record(_Packing, folder / _PACKING, "run again"))
    if found is None or (found.key.partition("-")[0], found.count) != (key, count):
        return None
    if found.like.timesteps.keys() != {modality.name for modality in config.modalities}:
        return None
    packer = Packer(folder, config, [found.like] * found.count, shard_bytes, found.key)
    # A shard that isn't there any more was complete, and has its name already.
    packer._writers = [w if w is not None and w.folder.is_dir() else None for w in packer._writers]
    return unless_damaged(lambda: _checked(packer))


def _checked(packer: Packer) -> Packer:
    for writer, _ in packer.shards:
        writer.check()
    return packer


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
    own = ["group", "name", "source_digest", "height", "width"]
    found = table.select([*own, *steps.values()]).take(row_numbers(rows)).to_pylist()
    return [
        PackRow(
            **{name: row[name] for name in own},
            timesteps={name: row[column] for name, column in steps.items()},
        )
        for row in found
    ]
