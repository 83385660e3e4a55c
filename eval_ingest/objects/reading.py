"""A folder of objects behind a URL: listed in parallel, read with retries, verified."""

import asyncio
import base64
import hashlib
import inspect
import os
import random
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, TypeVar

from eval_ingest.errors import EvalIngestError, SourceError, SourceNotFoundError
from eval_ingest.objects.faults import (
    Conflict,
    Truncated,
    first_line,
    is_forbidden,
    is_mistyped,
    may_pass,
)
from eval_ingest.objects.filesystems import open_filesystem, refused_login
from eval_ingest.redaction import without_secrets_of
from eval_ingest.settings import storage_environment

Result = TypeVar("Result")

IN_FLIGHT = 64
"""Requests at a time, per server and process."""
ATTEMPTS = 5
"""How often a request is tried, beyond what the file system's own library tries."""
TIMEOUT_S = 60.0
"""For a request, beside a second for each SLOWEST_BYTES."""
FIRST_TIMEOUT_S = 20.0
"""For the first look at a place that may be mistyped, or out of reach from here."""
SLOWEST_BYTES = 250_000


@dataclass(frozen=True, slots=True)
class Entry:
    """An object, or a folder of objects, as listed."""

    name: str
    """Relative to the store's folder, with forward slashes."""
    size: int
    """Bytes; 0 for folders."""
    version: str
    """Changes when the content does: `crc32c:...`, `etag:...`, `generation:...` or `time:...`."""
    folder: bool = False
    token: str = ""
    """Changes with every write, also of the same content: what a conditional write names."""
    modified: float = 0.0
    """When it was written, in seconds since 1970; 0 if the server doesn't say."""


@dataclass(frozen=True)
class _Server:
    """A file system, and what its requests run on."""

    fs: Any
    loop: asyncio.AbstractEventLoop
    threads: ThreadPoolExecutor
    slots: asyncio.Semaphore


class _Connection:
    """A server, and a folder's path on it. A forked process needs one of its own."""

    def __init__(self, url: str, endpoint: str | None) -> None:
        import fsspec.asyn

        self.pid = os.getpid()
        # Making a client takes half a second, so everything that lies on a server shares one.
        key = (self.pid, url.partition("://")[0], endpoint, storage_environment())
        if key not in _servers:
            _servers[key] = _Server(
                open_filesystem(url, endpoint),
                fsspec.asyn.get_loop(),
                ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="eval_ingest_fetch"),
                asyncio.Semaphore(IN_FLIGHT),
            )
        server = _servers[key]
        self.fs, self.loop = server.fs, server.loop
        self.threads, self.slots = server.threads, server.slots
        self.root: str = self.fs._strip_protocol(url.replace("weka://", "s3://", 1)).rstrip("/")


_servers: dict[Any, _Server] = {}


class Objects:
    """The folder of objects at a URL; safe to use from several threads.

    Args:
        url: gs://bucket/path, s3://bucket/path, weka://bucket/path, or another that fsspec knows.
        attempts: how often a request is tried.
        timeout_s: for each try.
        endpoint: of Weka's S3; default WEKA_ENDPOINT_URL.
    """

    kind = "source"
    """What lies at the URL, for messages."""
    error: type[EvalIngestError] = SourceError
    changed: type[EvalIngestError] = SourceError
    """What is raised where an object isn't any more what was listed."""
    google_role = "Storage Object Viewer"
    rights = "list and read"

    def __init__(
        self,
        url: str,
        attempts: int = ATTEMPTS,
        timeout_s: float = TIMEOUT_S,
        endpoint: str | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._attempts = attempts
        self._timeout_s = timeout_s
        self._endpoint = endpoint
        self._etag_is_md5 = True
        self._connection: _Connection | None = None
        self._opening = threading.Lock()

    # ---------------------------------------------------------------------- the file system

    @property
    def _open(self) -> _Connection:
        """The connection of this process, made when it is first asked for."""
        found = self._connection
        if found is not None and found.pid == os.getpid():
            return found
        with self._opening:
            found = self._connection
            if found is not None and found.pid == os.getpid():
                return found
            refused = refused_login(self.url)
            if refused:
                raise self.error(f"{self.kind} {self.url} can't be opened: {refused}")
            try:
                self._connection = _Connection(self.url, self._endpoint)
            except (ImportError, ValueError) as error:
                raise self.error(
                    f"{self.kind} {self.url} can't be opened: "
                    f"{without_secrets_of(self.url, str(error))}; {self._cure_of_url(error)}"
                ) from error
            except Exception as error:
                raise self.explain("opening it", error) from error
            return self._connection

    def _cure_of_url(self, error: Exception) -> str:
        scheme = self.url.partition("://")[0]
        extra = {"s3": "s3", "s3a": "s3", "weka": "s3", "gs": "gs", "gcs": "gs"}.get(scheme)
        if isinstance(error, ImportError) and extra is not None:
            return f"run: pip install 'eval-ingest[{extra}]'"
        if scheme == "weka":
            return "set it to the address of Weka's S3, or give a path"
        return "give a path, gs://bucket/path, s3://bucket/path, or another URL that fsspec knows"

    @property
    def _fs(self) -> Any:
        return self._open.fs

    def path(self, name: str) -> str:
        """The file system's path of an object."""
        root = self._open.root
        return f"{root}/{name}" if name else root

    def submit(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        """Begin something on the loop that all requests run on."""
        try:
            loop = self._open.loop
        except BaseException:
            work.close()
            raise
        return asyncio.run_coroutine_threadsafe(work, loop)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do something on that loop, and wait for it."""
        return self.submit(work).result()

    async def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """One call of the file system, whether it is an asynchronous one or not."""
        if getattr(self._fs, "async_impl", False):
            return await getattr(self._fs, f"_{method}")(*args, **kwargs)
        call, here = getattr(self._fs, method), self._open
        return await here.loop.run_in_executor(here.threads, lambda: call(*args, **kwargs))

    async def _retrying(
        self, doing: str, call: Callable[[], Awaitable[Result]], n_bytes: int = 0
    ) -> Result:
        """Try again after what may pass: 429, 5xx, resets, timeouts, truncated answers.

        Raises:
            FileNotFoundError: there is no such object.
            Conflict: the condition of a write isn't met.
            EvalIngestError: it keeps failing, or won't ever work.
        """
        for attempt in range(1, self._attempts + 1):
            try:
                async with self._open.slots:
                    return await asyncio.wait_for(call(), self._timeout_s + n_bytes / SLOWEST_BYTES)
            except (FileNotFoundError, Conflict, EvalIngestError):
                raise
            except Exception as error:
                if attempt == self._attempts or not may_pass(error):
                    raise self.explain(doing, error) from error
            # Full jitter, so that many readers that failed together don't come back together.
            await asyncio.sleep(random.uniform(0.2, 1.0) * min(0.3 * 2**attempt, 20.0))
        raise AssertionError("unreachable")

    def explain(self, doing: str, error: Exception) -> EvalIngestError:
        """What went wrong as one sentence that says what to do."""
        where = f"{self.kind} {self.url}"
        said = without_secrets_of(self.url, first_line(error))
        if is_forbidden(error):
            return self.error(
                f"{where}: {doing} is not allowed with {self._who()} ({said}); {self._cure()}"
            )
        if is_mistyped(error):
            return self.error(f"{where}: {doing} failed: {said}; check the URL")
        times = f" {self._attempts} times" if self._attempts > 1 and may_pass(error) else ""
        late = isinstance(error, TimeoutError) and not str(error)
        if late:
            said = f"no answer within {self._timeout_s:.0f} s, or only that it is busy"
        return self.error(
            f"{where}: {doing} failed{times}: {said}; "
            f"{self._cure_of_network()}, and run again: it goes on where it stopped"
        )

    def _cure_of_network(self) -> str:
        return "check the network"

    def _who(self) -> str:
        here = self._connection  # None if opening it is what failed
        credentials = getattr(here.fs, "credentials", None) if here is not None else None
        if credentials is None:
            return "your credentials"
        if getattr(credentials, "credentials", None) is None:
            return "no credentials (none were found, so it was tried anonymously)"
        account = getattr(credentials.credentials, "service_account_email", "")
        return str(account) or "your Google credentials"

    def _cure(self) -> str:
        scheme, _, rest = self.url.partition("://")
        bucket = rest.partition("/")[0]
        if scheme in ("gs", "gcs"):
            return (
                f"ask for the role {self.google_role} on gs://{bucket}, "
                "or log in: gcloud auth application-default login"
            )
        return f"check that they may {self.rights} {scheme}://{bucket}"

    # -------------------------------------------------------------------------------- listing

    async def list_folder(self, name: str) -> list[Entry]:
        """What lies right below a folder; empty if there is no such folder."""
        path = self.path(name)
        try:
            found = await self._retrying(
                f"listing {name or 'it'}", lambda: self._ask("ls", path, detail=True)
            )
        except FileNotFoundError:
            return []
        entries = (self._entry(info) for info in found)
        return [entry for entry in entries if entry.name.strip("/") != name]

    async def find(self, folder: str, prefix: str = "") -> list[Entry]:
        """All objects at any depth below a folder, whose path in it begins with a prefix."""
        path, kwargs = self.path(folder), {"detail": True}
        if "update_cache" in self._find_parameters:
            kwargs["update_cache"] = False
        if prefix and self.finds_prefixes:
            kwargs["prefix"] = prefix  # type: ignore[assignment]
        elif prefix:
            # The prefix is a window's whole name then: see prefixes().
            path = f"{path}/{prefix.rstrip('/')}"
        try:
            found = await self._retrying(
                f"listing {folder}/{prefix}", lambda: self._ask("find", path, **kwargs)
            )
        except FileNotFoundError:
            return []
        # Some tools leave empty objects that stand for folders.
        return [self._entry(info) for info in found.values() if not info["name"].endswith("/")]

    @cached_property
    def _find_parameters(self) -> frozenset[str]:
        name = "_find" if getattr(self._fs, "async_impl", False) else "find"
        return frozenset(inspect.signature(getattr(self._fs, name)).parameters)

    @property
    def finds_prefixes(self) -> bool:
        """True if objects can be listed by a prefix that isn't a folder."""
        return "prefix" in self._find_parameters

    def _entry(self, info: dict[str, Any]) -> Entry:
        root = self._open.root.lstrip("/")
        name = str(info["name"]).lstrip("/")
        relative = name.removeprefix(root).strip("/") if root else name.strip("/")
        folder = info.get("type") == "directory"
        if folder:
            return Entry(relative, 0, "", folder=True)
        size = int(info.get("size") or 0)
        return Entry(relative, size, _version(info), False, _token(info), _modified(info))

    def require(self) -> list[Entry]:
        """What lies in the folder itself.

        Raises:
            SourceNotFoundError: there is no such folder, or no such bucket.
            SourceError: it can't be listed.
        """
        found = self.run(self.list_folder(""))
        if not found:
            scheme, _, rest = self.url.partition("://")
            bucket, _, inner = rest.partition("/")
            above = Objects(f"{scheme}://{bucket}", self._attempts, self._timeout_s)
            if inner and above.run(above.list_folder("")):
                raise SourceNotFoundError(
                    f"source {self.url} does not exist in {scheme}://{bucket}; "
                    "give the folder that holds config.json and windows/"
                )
            raise SourceNotFoundError(
                f"source {self.url}: there is no bucket {bucket}, or nothing in it; check the URL"
            )
        return found

    # -------------------------------------------------------------------------------- reading

    async def read(self, name: str, listed: Entry | None = None) -> bytes:
        """An object's bytes; where it was listed, the very bytes that were.

        Raises:
            FileNotFoundError: there is no such object.
            EvalIngestError: it has changed since it was listed, or can't be read.
        """
        if listed is not None and listed.size == 0:
            return b""  # the `completed` markers: a third of all files

        async def fetch() -> bytes:
            data: bytes = await self._ask("cat_file", path)
            if listed is not None and not self._is(data, listed):
                await self._differs(path, data, listed)
            return data

        path = self.path(name)
        return await self._retrying(f"reading {name}", fetch, listed.size if listed else 0)

    def _is(self, data: bytes, listed: Entry) -> bool:
        kind, _, value = listed.version.partition(":")
        if len(data) != listed.size:
            return False
        if kind == "crc32c":
            return crc32c_text(data) == value
        if kind == "etag" and self._etag_is_md5 and len(value) == 32:
            return hashlib.md5(data, usedforsecurity=False).hexdigest() == value
        return True

    async def _differs(self, path: str, data: bytes, listed: Entry) -> None:
        """Find out whether the object has changed, or didn't arrive whole."""
        now = self._entry(await self._ask("info", path))
        if (now.size, now.version) != (listed.size, listed.version):
            raise self.changed(
                f"{self.url}/{listed.name} has changed since it was listed "
                f"({listed.size} bytes, {listed.version}; now {now.size} bytes, {now.version}); "
                "run again when the source is still: only what changed is read anew"
            )
        if len(data) == listed.size and listed.version.startswith("etag:"):
            # Whole and unchanged, so this server's ETags aren't the MD5 (encrypted with KMS).
            again: bytes = await self._ask("cat_file", path)
            if again == data:
                self._etag_is_md5 = False
                return
        raise Truncated(f"{len(data)} of {listed.size} bytes arrived whole")

    def open(self, name: str = "") -> Any:
        """A binary stream of an object, to be read from front to end."""
        try:
            return self._fs.open(self.path(name), "rb")
        except FileNotFoundError:
            raise
        except Exception as error:
            raise self.explain(f"opening {name or 'it'}", error) from error

    def info(self) -> Entry | None:
        """The object at the URL itself; None if there is none."""
        try:
            path = self.path("")
            found = self.run(self._retrying("looking at it", lambda: self._ask("info", path)))
        except FileNotFoundError:
            return None
        return self._entry(found)


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


def crc32c_text(data: bytes) -> str:
    """CRC32C as Google Cloud Storage writes it.

    >>> crc32c_text(b"windows")
    'yo7OoA=='
    """
    import google_crc32c

    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


def prefixes(names: Sequence[str], most: int) -> list[str]:
    """Prefixes that cover some folder names, each one `most` of them at most.

    Objects are listed by prefix in pages, one after the other; many prefixes are many at once.

    >>> prefixes(["a1", "a2", "b1", "b2", "b3"], 3)
    ['a', 'b']
    >>> prefixes(["a", "ab"], 1)
    ['a/', 'ab/']
    """
    found: list[str] = []

    def divide(texts: list[str]) -> None:
        common = os.path.commonprefix(texts)  # noqa: RUF071  of texts: half a name will do
        if len(texts) <= most:
            found.append(common)
            return
        branches: dict[str, list[str]] = {}
        for text in texts:
            branches.setdefault(text[: len(common) + 1], []).append(text)
        for branch in branches.values():
            divide(branch)

    if names:
        # With its slash, no name is the beginning of another.
        divide(sorted(f"{name}/" for name in names))
    return found
