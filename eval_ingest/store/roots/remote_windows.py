"""The rslearn copy of a dataset's windows as objects: written straight to the store.

Nothing of them lies on the local disk. A window's metadata.json comes last, so a window that has
one is whole; each object is checked by the server, or by what it answers.
"""

import contextlib
from collections.abc import Collection, Container, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

from eval_ingest.engine import batched
from eval_ingest.errors import IntegrityError, StoreError
from eval_ingest.objects.backend import Entry
from eval_ingest.objects.retry import gather_or_cancel
from eval_ingest.objects.writing import WritableObjects
from eval_ingest.store.manifest import CopiedWindow
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

_LISTED_TOGETHER = 100
"""The same whose files are listed: all of a large dataset's are millions."""


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
            self._present[group] = set(self._folders(group))
        return name in self._present[group]

    def _folders(self, group: str = "") -> list[str]:
        """The groups, or the windows of one."""
        return self._objects.folders(self.mirror.name(self.folder / group))

    def require_told_apart(self, keys: Iterable[Key]) -> None:
        pass

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
            name = f"{base}/{path}"
            # `clear` has made way, so what is there now is another process's
            async with self._lease.writing(objects, name):
                await objects.replace(Entry(name, 0, ""), data[path])

        async def send() -> None:
            await gather_or_cancel(put(path) for path in data if path != METADATA)
            if METADATA in data:
                await put(METADATA)

        objects.run(send())
        return CopiedWindow(group, name, source_digest, split, *known)

    def change_splits(self, windows: Iterable[tuple[CopiedWindow, str]]) -> list[CopiedWindow]:
        objects = self._objects

        async def change(copied: CopiedWindow, split: str) -> CopiedWindow | None:
            name = f"{self._name(copied.key)}/{METADATA}"
            try:
                entry, old = await objects.read_current(name)
                new = with_split(old, split)
            except (FileNotFoundError, IntegrityError):
                return None
            # After it was read: then what another process writes from now on is another version.
            async with self._lease.writing(objects, name):
                await objects.replace(entry, new)
            return with_metadata(copied, split, new)

        found = objects.run_all([change(copied, split) for copied, split in windows])
        return [copied for copied in found if copied is not None]

    def measured(self, keys: Iterable[Key]) -> Iterator[tuple[Key, Measured | StoreError]]:
        for some in batched(keys, _TOGETHER):
            yield from zip(some, self._objects.run_all(map(self._measure, some)), strict=True)

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
        base = f"{self.mirror.name(self.folder)}/"
        for group in self._folders():
            below = self._objects.below(f"{base}{group}")
            yield from sorted(one.name.removeprefix(base) for one in below if not one.folder)
            for entries in self._found(sorted((group, one.last) for one in below if one.folder)):
                yield from sorted(entry.name.removeprefix(base) for entry in entries)

    def _found(self, keys: Iterable[Key]) -> Iterator[list[Entry]]:
        """The files of windows, those of some at a time."""
        find = self._objects.find
        for some in batched(keys, _LISTED_TOGETHER):
            found = self._objects.run_all(find(self._name(key)) for key in some)
            yield list(chain.from_iterable(found))

    def keep_only(self, keys: Container[Key]) -> None:
        there = ((group, name) for group in self._folders() for name in self._folders(group))
        self._remove(key for key in there if key not in keys)

    def _remove(self, keys: Iterable[Key]) -> None:
        async def remove(entries: list[Entry]) -> None:
            async with self._lease.writing(self._objects):
                await self._objects.delete(entries)

        for entries in self._found(keys):
            self._objects.run(remove(entries))
