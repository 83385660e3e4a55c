"""A bucket in this process's memory, with S3's conditions: a request takes microseconds, it can be
put back to what it was, and any of its writes and deletions can go wrong.
"""

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import fsspec.asyn

from eval_ingest.objects import reading
from eval_ingest.objects.backend import Conflict, Entries, Entry
from eval_ingest.objects.connection import Connection, Server
from eval_ingest.objects.filesystems import Contact, root_of
from eval_ingest.objects.fsspec_backend import FsspecBackend

Fault = Literal["dies before", "dies after", "refused", "done and refused"]
"""What becomes of a change: whoever makes it dies, before it is made or once it is; or an error is
all that is heard of it, and the next request is answered as always.
"""


class Died(BaseException):
    """Whoever asks is dead."""


class MemoryBucket:
    """Objects by path, and what is to happen to those that change them."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.changes: list[str] = []
        self._fail_at, self._fault = 0, "refused"
        self._dead = False

    @contextlib.contextmanager
    def failing(self, number: int = 0, fault: Fault = "refused") -> Iterator[list[str]]:
        """Have a change fail, by its number from 1 on; gives what all of them are about."""
        self.changes, self._fail_at, self._fault = [], number, fault
        try:
            yield self.changes
        finally:
            self._fail_at, self._dead = 0, False

    def look(self) -> None:
        """Called by each request that only looks."""
        if self._dead:
            raise Died

    @contextlib.contextmanager
    def change(self, what: str) -> Iterator[None]:
        """Around each change."""
        self.look()
        self.changes.append(what)
        hit = len(self.changes) == self._fail_at
        if hit and self._fault == "dies before":
            self._dead = True
            raise Died
        if hit and self._fault == "refused":
            raise PermissionError(13, "AccessDenied", what)
        yield
        if hit and self._fault == "dies after":
            self._dead = True
            raise Died
        if hit:
            raise PermissionError(13, "AccessDenied, and it was done", what)


class MemoryBackend(FsspecBackend):
    """A folder of a bucket in memory."""

    has_conditions = True
    deleted_at_once = 3

    def __init__(self, bucket: MemoryBucket, root: str) -> None:
        self.fs: Any = None
        self.bucket, self.root, self.lists_prefixes = bucket, root.rstrip("/"), True

    def _entry_of(self, name: str) -> Entry:
        if self.path(name) not in self.bucket.objects:
            raise FileNotFoundError(name)
        data, modified = self.bucket.objects[self.path(name)]
        etag = f"etag:{hashlib.md5(data, usedforsecurity=False).hexdigest()}"
        return Entry(name, len(data), etag, False, etag, modified)

    def _check(self, name: str, seen: Entry | None) -> None:
        now = self._entry_of(name).token if self.path(name) in self.bucket.objects else ""
        if seen is not None and now != seen.token:
            raise Conflict(name)

    async def list(self, folder: str) -> Entries:
        found = {}
        for entry in await self.find(folder):
            rest = entry.name.removeprefix(f"{folder}/" if folder else "")
            first, _, deeper = rest.partition("/")
            name = f"{folder}/{first}" if folder else first
            found[name] = Entry(name, 0, "", folder=True) if deeper else entry
        return list(found.values())

    async def find(self, folder: str, prefix: str = "") -> Entries:
        self.bucket.look()
        start = f"{self.path(folder)}/{prefix}"
        names = sorted(path for path in self.bucket.objects if path.startswith(start))
        return [self._entry_of(path.removeprefix(f"{self.root}/")) for path in names]

    async def head(self, name: str) -> Entry:
        self.bucket.look()
        return self._entry_of(name)

    async def get(self, name: str) -> tuple[Entry | None, bytes]:
        entry = await self.head(name)
        return entry, self.bucket.objects[self.path(name)][0]

    async def range(self, name: str, start: int, end: int) -> bytes:
        return (await self.get(name))[1][start:end]

    async def put(self, name: str, data: bytes, seen: Entry | None = None) -> Entry:
        await asyncio.sleep(0)  # so that others come in between
        with self.bucket.change(f"put {name}"):
            self._check(name, seen)
            self.bucket.objects[self.path(name)] = bytes(data), time.time()
            entry = self._entry_of(name)
        return entry

    async def put_file(self, name: str, file: Path) -> Entry:
        return await self.put(name, file.read_bytes(), Entry(name, 0, ""))

    async def delete(self, entries: Sequence[Entry]) -> None:
        await asyncio.sleep(0)
        with self.bucket.change(f"delete {', '.join(entry.name for entry in entries)}"):
            for entry in entries:
                if entry.token and self.path(entry.name) in self.bucket.objects:
                    self._check(entry.name, entry)
                self.bucket.objects.pop(self.path(entry.name), None)


@contextlib.contextmanager
def in_memory() -> Iterator[MemoryBucket]:
    """Have every URL of a bucket lead to one in memory."""
    bucket = MemoryBucket()
    threads = ThreadPoolExecutor(8)
    server = Server(None, fsspec.asyn.get_loop(), threads, asyncio.Semaphore(16), Contact(True))

    def connect(url: str, endpoint: str | None) -> Connection:
        return Connection(os.getpid(), server, MemoryBackend(bucket, root_of(url)))

    with patch.object(reading, "connect", connect):
        yield bucket
    threads.shutdown()
