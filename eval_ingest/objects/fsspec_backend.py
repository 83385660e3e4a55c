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
    """A folder of a file system that fsspec knows."""

    has_conditions = False
    deleted_at_once = 1

    def __init__(self, fs: Any, root: str, threads: ThreadPoolExecutor) -> None:
        self.fs = fs
        self.root = root.rstrip("/")
        self._threads = threads
        self.lists_prefixes = "prefix" in self._find_parameters

    def path(self, name: str) -> str:
        """The file system's path of an object."""
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
        found = await self.ask("ls", self.path(folder), detail=True)
        entries = (self.entry(info) for info in found)
        return [entry for entry in entries if entry.name.strip("/") != folder]

    async def find(self, folder: str, prefix: str = "") -> Entries:
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
        return None, await self.ask("cat_file", self.path(name))

    async def range(self, name: str, start: int, end: int) -> bytes:
        data: bytes = await self.ask("cat_file", self.path(name), start=start, end=end)
        return data

    # ---------------------------------------------------------------------------------- writing

    async def put(self, name: str, data: bytes, seen: Entry | None = None) -> Entry:
        """Without a condition of the server's: the object is looked at just before."""
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
        with contextlib.suppress(FileNotFoundError):
            raise Conflict(f"{name} is there: {await self.head(name)}")
        await self._make_parent(name)
        await self.ask("put_file", str(file), self.path(name))
        return await self.head(name)

    async def delete(self, names: Sequence[str]) -> None:
        for name in names:
            await self.ask("rm", glob.escape(self.path(name)))  # it takes patterns


async def gcsfs_request(fs: Any, method: str, url: str, **parameters: Any) -> tuple[Any, bytes]:
    """A request by gcsfs: the answer's headers and body."""
    headers, body = await fs._call(method, url, **parameters)
    return headers, body


_TIMES = ("LastModified", "mtime", "last_modified", "updated", "created")
_VERSIONS = {
    "crc32c": ("crc32c",),
    "etag": ("ETag", "etag"),
    "generation": ("generation",),
    "time": _TIMES,
}


def _version(info: dict[str, Any]) -> str:
    """What the server says that changes with the content; a checksum if there is one."""
    return _first(info, "crc32c", "etag", "generation", "time")


def _token(info: dict[str, Any]) -> str:
    """What the server says that a conditional write names."""
    return _first(info, "generation", "etag", "time")


def _first(info: dict[str, Any], *kinds: str) -> str:
    for kind in kinds:
        for key in _VERSIONS[kind]:
            if info.get(key):
                return f"{kind}:{str(info[key]).strip(chr(34))}"
    return ""


def _modified(info: dict[str, Any]) -> float:
    for key in _TIMES:
        value = info.get(key)
        if isinstance(value, datetime):
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        if isinstance(value, int | float):
            return float(value)
    return 0.0
