"""A folder of objects behind a URL: listed in parallel, read with retries, verified.

Everything that talks to gcsfs, s3fs and the other file systems of fsspec is here; what the
objects mean is said in remote.py.
"""

import asyncio
import base64
import contextlib
import errno
import hashlib
import inspect
import logging
import os
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from eval_ingest.errors import SourceError, SourceNotFoundError

Result = TypeVar("Result")

IN_FLIGHT = 64
"""Requests at a time, per source and process."""
ATTEMPTS = 5
"""How often a request is tried, beyond what the file system's own library tries."""
TIMEOUT_S = 60.0
"""For a request, beside a second for each SLOWEST_BYTES."""
FIRST_TIMEOUT_S = 20.0
"""For the first look at a place that may be mistyped, or out of reach from here."""
SLOWEST_BYTES = 250_000

_PASSING_ERRNO = {
    errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.EPIPE, errno.ETIMEDOUT,
    errno.EIO, errno.EBUSY, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EAGAIN,
}  # fmt: skip
_PASSING_MODULES = {"aiohttp", "aiobotocore", "botocore", "requests", "urllib3", "http", "ssl"}


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


class Truncated(Exception):
    """What arrived isn't what was listed, though the listing still holds."""


class Objects:
    """The folder of objects at a URL; safe to use from several threads."""

    def __init__(self, url: str, attempts: int = ATTEMPTS, timeout_s: float = TIMEOUT_S) -> None:
        self.url = url.rstrip("/")
        self._attempts = attempts
        self._timeout_s = timeout_s
        self._etag_is_md5 = True

    # ---------------------------------------------------------------------- the file system

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system, and the folder's path in it."""
        import fsspec

        # gcsfs would ask the Storage Control API about each bucket, which emulators and many
        # service accounts don't have; it only matters for writing to hierarchical buckets.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        protocol = self.url.partition("://")[0]
        log = logging.getLogger("gcsfs")
        if log.level == logging.NOTSET:
            log.setLevel(logging.CRITICAL)  # it logs a traceback for what our errors say
        # A listing is wanted as it is now, and kept nowhere: it may hold millions of objects.
        options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        if protocol in ("s3", "s3a"):
            options["max_concurrency"] = 1  # more, and it asks for every object's size first
        try:
            if protocol in ("gs", "gcs"):
                options["token"] = _google_token()
            fs, root = fsspec.core.url_to_fs(self.url, **options)
        except (ImportError, ValueError) as error:
            raise SourceError(
                f"source {self.url} can't be opened: {error}; "
                "give a path, gs://bucket/path, s3://bucket/path, or another URL that fsspec knows"
            ) from error
        except Exception as error:
            raise self.explain("opening it", error) from error
        return fs, root.rstrip("/")

    @property
    def _fs(self) -> Any:
        return self._opened[0]

    def path(self, name: str) -> str:
        """The file system's path of an object."""
        root = self._opened[1]
        return f"{root}/{name}" if name else root

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        import fsspec.asyn

        loop: asyncio.AbstractEventLoop = fsspec.asyn.get_loop()
        return loop

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="eval_ingest_fetch")

    @cached_property
    def _slots(self) -> asyncio.Semaphore:
        return asyncio.Semaphore(IN_FLIGHT)

    def submit(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        """Begin something on the loop that all requests run on."""
        try:
            self._opened, self._slots, self._threads  # noqa: B018  made here, once, not by a race
        except BaseException:
            work.close()
            raise
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do something on that loop, and wait for it."""
        return self.submit(work).result()

    async def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """One call of the file system, whether it is an asynchronous one or not."""
        if getattr(self._fs, "async_impl", False):
            return await getattr(self._fs, f"_{method}")(*args, **kwargs)
        call = getattr(self._fs, method)
        return await self._loop.run_in_executor(self._threads, lambda: call(*args, **kwargs))

    async def _retrying(
        self, doing: str, call: Callable[[], Awaitable[Result]], n_bytes: int = 0
    ) -> Result:
        """Try again after what may pass: 429, 5xx, resets, timeouts, truncated answers.

        Raises:
            FileNotFoundError: there is no such object.
            SourceError: it keeps failing, or won't ever work.
        """
        for attempt in range(1, self._attempts + 1):
            try:
                async with self._slots:
                    return await asyncio.wait_for(call(), self._timeout_s + n_bytes / SLOWEST_BYTES)
            except (FileNotFoundError, SourceError):
                raise
            except Exception as error:
                if attempt == self._attempts or not may_pass(error):
                    raise self.explain(doing, error) from error
            # Full jitter, so that many readers that failed together don't come back together.
            await asyncio.sleep(random.uniform(0.2, 1.0) * min(0.3 * 2**attempt, 20.0))
        raise AssertionError("unreachable")

    def explain(self, doing: str, error: Exception) -> SourceError:
        """What went wrong as one sentence that says what to do."""
        where = f"source {self.url}"
        if _is_forbidden(error):
            return SourceError(
                f"{where}: {doing} is not allowed with {self._who()} "
                f"({_first_line(error)}); {self._cure()}"
            )
        times = f" {self._attempts} times" if self._attempts > 1 and may_pass(error) else ""
        late = isinstance(error, TimeoutError) and not str(error)
        problem = f"no answer within {self._timeout_s:.0f} s" if late else _first_line(error)
        return SourceError(
            f"{where}: {doing} failed{times}: {problem}; "
            "check the network, and run again: it goes on where it stopped"
        )

    def _who(self) -> str:
        credentials = getattr(self._opened[0], "credentials", None)
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
                f"ask for the role Storage Object Viewer on gs://{bucket}, "
                "or log in: gcloud auth application-default login"
            )
        return f"check that they may list and read {scheme}://{bucket}"

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
        root = self._opened[1].lstrip("/")
        name = str(info["name"]).lstrip("/")
        relative = name.removeprefix(root).strip("/") if root else name.strip("/")
        folder = info.get("type") == "directory"
        return Entry(relative, 0 if folder else int(info.get("size") or 0), _version(info), folder)

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
            SourceError: it has changed since it was listed, or can't be read.
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
            raise SourceError(
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


def _google_token() -> str:
    """How gcsfs is to log in: Google's default credentials, or not at all if there are none.

    gcsfs left alone would do so too, but only after asking for a machine's account several times.
    """
    import google.auth
    from gcsfs import GCSFileSystem

    if not GCSFileSystem(token="anon", skip_instance_cache=True).on_google:
        return "anon"  # STORAGE_EMULATOR_HOST
    try:
        google.auth.default()
    except google.auth.exceptions.DefaultCredentialsError:
        return "anon"
    return "google_default"


def may_pass(error: BaseException) -> bool:
    """True for what the network or an overloaded server does, and a second try may not meet."""
    if isinstance(error, Truncated | TimeoutError | asyncio.TimeoutError | ConnectionError):
        return True
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    code = getattr(error, "code", None) or getattr(error, "status", None)
    with contextlib.suppress(TypeError, ValueError):
        return int(code) in (408, 425, 429) or 500 <= int(code) < 600  # type: ignore[arg-type]
    if isinstance(error, OSError) and error.errno in _PASSING_ERRNO:
        return True
    return type(error).__module__.partition(".")[0] in _PASSING_MODULES


def _is_forbidden(error: BaseException) -> bool:
    code = str(getattr(error, "code", None) or getattr(error, "status", None) or "")
    text = str(error)
    return (
        isinstance(error, PermissionError)
        or code in ("401", "403")
        or text.startswith("Forbidden")
        or "Unable to locate credentials" in text
        or "does not have storage.objects" in text
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _version(info: dict[str, Any]) -> str:
    """What the server says that changes with the content; a checksum if there is one."""
    for kind, keys in (
        ("crc32c", ("crc32c",)),
        ("etag", ("ETag", "etag")),
        ("generation", ("generation",)),
        ("time", ("LastModified", "mtime", "last_modified", "created")),
    ):
        for key in keys:
            if info.get(key):
                return f"{kind}:{str(info[key]).strip(chr(34))}"
    return ""


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
