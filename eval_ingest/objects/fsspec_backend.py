"""Any file system of fsspec as a backend; the only file that knows private names of dependencies.

fsspec's documentation for asynchronous callers says to await its methods with a leading
underscore (`_ls`, `_info`, `_cat_file`, ...): the ones without it block a thread each, and hand
every request from the caller's thread to fsspec's loop and back. `_call` of gcsfs is its request
with credentials, retries and requester-pays, and the only way in it to name a generation in a
write: its public `call` is the same behind such a thread. Both are asked for here and nowhere else.

What doesn't belong here: what one kind of store does otherwise (s3.py, gcs.py).
"""

import asyncio
import contextlib
import glob
import inspect
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from eval_ingest.objects.backend import Conflict, Entries, Entry


class FsspecBackend:
    """A folder of objects, each request tried once; names are relative to the folder.

    Every method raises FileNotFoundError where there is no such object or bucket, and otherwise
    whatever the store's library raises: see faults.py for what these errors mean.
    """

    has_conditions = False
    """True if of two writers at once one is refused."""
    deleted_at_once = 1
    """How many objects one request deletes."""

    def __init__(self, fs: Any, root: str, threads: ThreadPoolExecutor) -> None:
        self.fs = fs
        self.root = root.rstrip("/")
        self._threads = threads
        self.lists_prefixes = "prefix" in self._find_parameters
        """True if objects can be listed by a prefix that isn't a folder."""

    def path(self, name: str) -> str:
        """An object's path in the store: for a bucket, bucket/folder/name."""
        return f"{self.root}/{name}" if name else self.root

    async def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """One call of the file system, whether it is an asynchronous one or not."""
        if getattr(self.fs, "async_impl", False):
            return await getattr(self.fs, f"_{method}")(*args, **kwargs)
        return await self.in_thread(getattr(self.fs, method), *args, **kwargs)

    async def in_thread(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A call that blocks."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: call(*args, **kwargs))

    # ---------------------------------------------------------------------------------- looking

    async def list(self, folder: str) -> Entries:
        """What lies right below a folder."""
        found = await self.ask("ls", self.path(folder), detail=True)
        entries = (self.entry(info) for info in found)
        return [entry for entry in entries if entry.name.strip("/") != folder]

    async def find(self, folder: str, prefix: str = "") -> Entries:
        """Every object at any depth below a folder, whose path in it begins with a prefix."""
        path, kwargs = self.path(folder), dict[str, Any](detail=True)
        if "update_cache" in self._find_parameters:
            kwargs["update_cache"] = False
        if prefix and self.lists_prefixes:
            kwargs["prefix"] = prefix
        elif prefix:
            # The prefix is a window's whole name then: see sources/prefixes.py.
            path = f"{path}/{prefix.rstrip('/')}"
        found = await self.ask("find", path, **kwargs)
        # Some tools leave empty objects that stand for folders.
        return [self.entry(info) for info in found.values() if not info["name"].endswith("/")]

    @cached_property
    def _find_parameters(self) -> frozenset[str]:
        name = "_find" if getattr(self.fs, "async_impl", False) else "find"
        return frozenset(inspect.signature(getattr(self.fs, name)).parameters)

    async def head(self, name: str) -> Entry:
        """An object as it is now."""
        return self.entry(await self.ask("info", self.path(name)))

    def entry(self, info: dict[str, Any]) -> Entry:
        """What the file system says of an object."""
        root = self.root.lstrip("/")
        name = str(info["name"]).lstrip("/")
        relative = name.removeprefix(root).strip("/") if root else name.strip("/")
        if info.get("type") == "directory":
            return Entry(relative, 0, "", folder=True)
        size = int(info.get("size") or 0)
        return Entry(relative, size, _version(info), False, _token(info), _modified(info))

    # ---------------------------------------------------------------------------------- reading

    async def get(self, name: str) -> tuple[Entry | None, bytes]:
        """An object's bytes, and what the same answer says of it: None where it says nothing."""
        return None, await self.ask("cat_file", self.path(name))

    async def range(self, name: str, start: int, end: int) -> bytes:
        """The bytes from `start` to before `end`."""
        data: bytes = await self.ask("cat_file", self.path(name), start=start, end=end)
        return data

    # ---------------------------------------------------------------------------------- writing

    async def put(self, name: str, data: bytes, seen: Entry | None = None) -> Entry:
        """Write an object, whole or not at all.

        Here without a condition of the server's: the object is looked at just before.

        Args:
            name: the object.
            data: its bytes.
            seen: what it has to be still, by its token; without a token: not there. None: whatever
                is there.

        Raises:
            Conflict: it is something else.
            Truncated: the server says that it got something else.
        """
        if seen is not None:
            now = await self._head_or_none(name)
            if (now.token if now else "") != seen.token or (now is None) != (not seen.token):
                raise Conflict(name)
        await self._make_parent(name)
        await self.ask("pipe_file", self.path(name), data)
        return await self._head_or_none(name) or Entry(name, len(data), "")

    async def _head_or_none(self, name: str) -> Entry | None:
        try:
            return await self.head(name)
        except FileNotFoundError:
            return None

    async def _make_parent(self, name: str) -> None:
        await self.ask("makedirs", self.path(name).rpartition("/")[0], exist_ok=True)

    async def put_file(self, name: str, file: Path) -> Entry:
        """Write an object that isn't there from a file, in parts where it is large.

        Raises:
            Conflict: it is there.
        """
        with contextlib.suppress(FileNotFoundError):
            raise Conflict(f"{name} is there: {await self.head(name)}")
        await self._make_parent(name)
        await self.ask("put_file", str(file), self.path(name))
        return await self.head(name)

    async def delete(self, entries: Sequence[Entry]) -> None:
        """Delete objects, `deleted_at_once` at the most, that have the tokens they were seen with.

        Raises:
            Conflict: one is something else by now; without a token, whatever is there goes.
        """
        for entry in entries:
            now = await self._head_or_none(entry.name) if entry.token else None
            if now is not None and now.token != entry.token:
                raise Conflict(entry.name)
            await self.ask("rm", glob.escape(self.path(entry.name)))  # it takes patterns


async def gcsfs_request(fs: Any, method: str, url: str, **parameters: Any) -> tuple[Any, bytes]:
    """A request by gcsfs: the answer's headers and body."""
    headers, body = await fs._call(method, url, **parameters)
    return headers, body


_TIMES = ("LastModified", "mtime", "last_modified", "updated", "created")


def _version(info: dict[str, Any]) -> str:
    """What the server says that changes with the content; a checksum if there is one."""
    crc32c = info.get("crc32c")
    etag = info.get("ETag") or info.get("etag") or info.get("blob_id")  # the last is the Hub's
    return f"crc32c:{crc32c}" if crc32c else f"etag:{_bare(etag)}" if etag else _token(info)


def _token(info: dict[str, Any]) -> str:
    """What the server says that a conditional write names."""
    known = {
        "generation": info.get("generation"),
        "etag": info.get("ETag") or info.get("etag"),
        "time": _modified(info),
    }
    return next((f"{kind}:{_bare(value)}" for kind, value in known.items() if value), "")


def _bare(value: object) -> str:
    return str(value).strip('"')


def _modified(info: dict[str, Any]) -> float:
    for key in _TIMES:
        value = info.get(key)
        if isinstance(value, datetime):
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        if isinstance(value, int | float):
            return float(value)
    return 0.0
