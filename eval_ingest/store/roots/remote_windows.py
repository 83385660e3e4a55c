"""The rslearn copy of a dataset's windows as objects: written straight to the store.

Nothing of them lies on the local disk. A window's metadata.json comes last, so a window that has
one is whole; each object is checked by the server, or by what it answers.
"""

import asyncio
import contextlib
from collections.abc import Collection, Container, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from eval_ingest.errors import IntegrityError, StoreError
from eval_ingest.objects.backend import Conflict, Entry
from eval_ingest.objects.retry import gather_or_cancel
from eval_ingest.objects.writing import WritableObjects
from eval_ingest.store.manifest import CopiedWindow
from eval_ingest.store.roots.holding import written_meanwhile
from eval_ingest.store.roots.lease import Lease
from eval_ingest.store.roots.mirror import Mirror
from eval_ingest.store.window_files import (
    METADATA,
    Contents,
    Key,
    Measured,
    Windows,
    with_metadata,
    with_split,
)

_TOGETHER = 16
"""Windows that are read back at a time."""

_REMOVED_TOGETHER = 1000


@dataclass(frozen=True)
class RemoteWindows(Windows):
    """The windows under a remote root: see `window_files.Windows`."""

    mirror: Mirror
    lease: Lease | None = None
    """Of the dataset; None: they are only read."""
    takes_folders = False

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "mirror": self.mirror, "lease": self.lease}

    @property
    def _objects(self) -> WritableObjects:
        return self.mirror.objects

    @property
    def _lease(self) -> Lease:
        assert self.lease is not None, f"the dataset of {self.folder} is not held"
        return self.lease

    def _name(self, key: Key) -> str:
        return self.mirror.name(self.folder / key[0] / key[1])

    @cached_property
    def _present(self) -> dict[str, set[str]]:
        """Window names by group, as they were when they were first asked for."""
        return {}

    def has(self, group: str, name: str) -> bool:
        if group not in self._present:
            self._present[group] = self._listed(group)
        return name in self._present[group]

    def _listed(self, group: str) -> set[str]:
        folder = self.mirror.name(self.folder / group)
        entries = self._objects.run(self._objects.list_folder(folder))
        return {entry.name.rpartition("/")[2] for entry in entries if entry.folder}

    def clear(self, keys: Iterable[Key]) -> None:
        self._remove(key for key in keys if self.has(*key))

    def write(
        self,
        group: str,
        name: str,
        source_digest: str,
        split: str,
        files: Contents,
        folder: str = "",
        others: Collection[str] = (),
    ) -> CopiedWindow:
        objects, base = self._objects, self._name((group, name))
        data: dict[str, bytes] = {}
        for path, read, *_ in files:
            data[path] = with_split(read(), split) if path == METADATA else read()
        known = Measured.of(data)

        async def put(path: str) -> None:
            try:  # `clear` has made way, so what is there now is another process's
                await objects.replace(Entry(f"{base}/{path}", 0, ""), data[path])
            except Conflict as error:
                raise written_meanwhile(objects, f"{base}/{path}") from error

        async def send() -> None:
            await self._lease.check(objects)
            await gather_or_cancel(put(path) for path in data if path != METADATA)
            if METADATA in data:
                await self._lease.check(objects)
                await put(METADATA)

        objects.run(send())
        return CopiedWindow(
            group, name, source_digest, split, known.n_files, known.n_bytes, known.checksum
        )

    def change_splits(self, windows: Iterable[tuple[CopiedWindow, str]]) -> list[CopiedWindow]:
        objects = self._objects

        async def change(copied: CopiedWindow, split: str) -> CopiedWindow:
            name = f"{self._name(copied.key)}/{METADATA}"
            try:
                entry, old = await objects.read_current(name)
            except FileNotFoundError as error:
                raise IntegrityError(
                    f"{objects.url}/{name} is missing; ingest again with --overwrite"
                ) from error
            new = with_split(old, split)
            # After it was read: then what another process writes from now on is another version.
            await self._lease.check(objects)
            try:
                await objects.replace(entry, new)
            except Conflict as error:
                raise written_meanwhile(objects, name) from error
            return with_metadata(copied, split, old, new)

        return objects.run(gather_or_cancel([change(copied, split) for copied, split in windows]))

    def measured(self, keys: Iterable[Key]) -> Iterator[tuple[Key, Measured | StoreError]]:
        waiting = list(keys)
        for k in range(0, len(waiting), _TOGETHER):
            some = waiting[k : k + _TOGETHER]
            yield from zip(some, self._objects.run(self._measure_all(some)), strict=True)

    async def _measure_all(self, keys: list[Key]) -> list[Measured | StoreError]:
        return await asyncio.gather(*map(self._measure, keys))

    async def _measure(self, key: Key) -> Measured | StoreError:
        try:
            return Measured.of(await self._contents(key, None))
        except StoreError as error:
            return error

    def contents(self, key: Key, paths: Collection[str] | None = None) -> dict[str, bytes]:
        return self._objects.run(self._contents(key, paths))

    async def _contents(self, key: Key, paths: Collection[str] | None) -> dict[str, bytes]:
        objects, base = self._objects, f"{self._name(key)}/"
        listed: dict[str, Entry | None] = dict.fromkeys(paths or ())
        if paths is None:
            found = await objects.find(base.rstrip("/"))
            listed = {entry.name.removeprefix(base): entry for entry in found}

        async def read(path: str) -> bytes | None:
            with contextlib.suppress(FileNotFoundError):
                return await objects.read(base + path, listed[path])
            return None

        data = await gather_or_cancel([read(path) for path in listed])
        return {path: one for path, one in zip(listed, data, strict=True) if one is not None}

    def paths(self) -> Iterator[str]:
        base = self.mirror.name(self.folder)
        for group in self._groups():
            entries = self._objects.run(self._objects.find(f"{base}/{group}"))
            yield from sorted(entry.name.removeprefix(f"{base}/") for entry in entries)

    def _groups(self) -> list[str]:
        base = self.mirror.name(self.folder)
        entries = self._objects.run(self._objects.list_folder(base))
        return sorted(e.name.rpartition("/")[2] for e in entries if e.folder)

    def keep_only(self, keys: Container[Key]) -> None:
        there = [(group, name) for group in self._groups() for name in self._listed(group)]
        self._remove(key for key in there if key not in keys)

    def _remove(self, keys: Iterable[Key]) -> None:
        objects = self._objects

        async def remove(key: Key) -> None:
            entries = await objects.find(self._name(key))
            await self._lease.check(objects)
            try:
                await objects.delete(entries)
            except Conflict as error:
                raise written_meanwhile(objects, str(error)) from error

        waiting = list(keys)
        for k in range(0, len(waiting), _REMOVED_TOGETHER):
            objects.run(gather_or_cancel(map(remove, waiting[k : k + _REMOVED_TOGETHER])))
