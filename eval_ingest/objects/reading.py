"""A folder of objects behind a URL, as others use it: from any thread, with retries, verified.

What doesn't belong here: how a kind of store is spoken to (backend.py and what is behind it), and
writing (writing.py).
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any

from eval_ingest.background import OwnLock
from eval_ingest.errors import EvalIngestError, SourceError, SourceNotFoundError
from eval_ingest.objects.backend import Entry, Truncated, is_content
from eval_ingest.objects.connection import Connection, connect
from eval_ingest.objects.explain import SourceWords
from eval_ingest.objects.filesystems import refused_login
from eval_ingest.objects.fsspec_backend import FsspecBackend
from eval_ingest.objects.greeting import greet
from eval_ingest.objects.retry import FIRST_LOOK, Limits, Result, gather_or_cancel, retrying


class Objects:
    """The folder of objects at a URL; safe to use from several threads.

    Args:
        url: gs://bucket/path, s3://bucket/path, weka://bucket/path, or another that fsspec knows.
        limits: of each request.
        endpoint: of Weka's S3; default WEKA_ENDPOINT_URL.
        resumes: True if a run that failed here goes on where it stopped.
    """

    changed: type[EvalIngestError] = SourceError
    """What is raised where an object isn't any more what was listed."""
    speaks: type[SourceWords] = SourceWords
    """Says what went wrong."""

    def __init__(
        self,
        url: str,
        limits: Limits | None = None,
        endpoint: str | None = None,
        resumes: bool = True,
    ) -> None:
        self.url = url.rstrip("/")
        self.limits = limits or Limits()
        self._endpoint = endpoint
        self._etag_is_md5 = True
        self._connection: Connection | None = None
        self._opening = OwnLock()
        self._resumes = resumes
        self.words = self.speaks(self.url, resumes)

    # ------------------------------------------------------------------------- the connection

    @property
    def _open(self) -> Connection:
        """The connection of this process, made when it is first asked for."""
        found = self._connection
        if found is not None and found.pid == os.getpid():
            return found
        with self._opening:
            if self._connection is None or self._connection.pid != os.getpid():
                self._connection = self._connect()
            return self._connection

    def _connect(self) -> Connection:
        refused = refused_login(self.url)
        if refused:
            raise self.words.refused(refused)
        try:
            return connect(self.url, self._endpoint)
        except (ImportError, ValueError) as error:
            raise self.words.unusable(error) from error
        except Exception as error:
            raise self._explain("opening it", error) from error

    @property
    def _backend(self) -> FsspecBackend:
        return self._open.backend

    def submit(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        """Begin something on the loop that all requests run on."""
        try:
            loop = self._open.server.loop
        except BaseException:
            work.close()
            raise
        return asyncio.run_coroutine_threadsafe(work, loop)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do something on that loop, and wait for it."""
        return self.submit(work).result()

    def run_all(self, work: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
        """Do several things at once; the first error ends the others before it is raised."""
        return self.run(gather_or_cancel(work))

    def greet(self) -> None:
        """Have the server say anything at all, so that one that is out of reach is told soon.

        Raises:
            EvalIngestError: nothing comes, or it can't be connected to at all.
        """
        try:
            greet(self.url, self._endpoint, lambda: self._open, self.words, self._resumes)
        except RuntimeError as error:  # no thread can be started to wait for it
            raise self._explain("opening it", error) from error

    async def _retrying(
        self, doing: str, call: Callable[[], Awaitable[Result]], n_bytes: int = 0
    ) -> Result:
        """Try again after what may pass, and explain what doesn't.

        Raises:
            FileNotFoundError: there is no such object.
            Conflict: the condition of a write isn't met.
            EvalIngestError: it keeps failing, or won't ever work.
        """
        here = self._open.server
        explain = partial(self._explain, doing)
        result = await retrying(call, self.limits, here.slots, n_bytes, explain)
        here.contact.answered = True
        return result

    def _explain(self, doing: str, error: Exception) -> EvalIngestError:
        return self.words.failed(doing, error, self.limits, self._who())

    def _who(self) -> str:
        """Whose credentials are used, for messages."""
        here = self._connection  # None if opening it is what failed
        credentials = getattr(here.server.fs, "credentials", None) if here is not None else None
        if credentials is None:
            return "your credentials"
        if getattr(credentials, "credentials", None) is None:
            return "no credentials (none were found, so it was tried anonymously)"
        account = getattr(credentials.credentials, "service_account_email", "")
        return str(account) or "your Google credentials"

    # -------------------------------------------------------------------------------- listing

    async def list_folder(self, name: str) -> list[Entry]:
        """What lies right below a folder; empty if there is no such folder."""
        try:
            return await self._retrying(f"listing {name or 'it'}", lambda: self._backend.list(name))
        except FileNotFoundError:
            return []

    def below(self, name: str) -> list[Entry]:
        """The same, waited for."""
        return self.run(self.list_folder(name))

    def folders(self, name: str) -> list[str]:
        """The names of the folders right below a folder, sorted."""
        return sorted(entry.last for entry in self.below(name) if entry.folder)

    async def find(self, folder: str, prefix: str = "") -> list[Entry]:
        """All objects at any depth below a folder, whose path in it begins with a prefix."""
        try:
            return await self._retrying(
                f"listing {folder}/{prefix}", lambda: self._backend.find(folder, prefix)
            )
        except FileNotFoundError:
            return []

    @property
    def finds_prefixes(self) -> bool:
        """True if objects can be listed by a prefix that isn't a folder."""
        return self._backend.lists_prefixes

    def require(self) -> list[Entry]:
        """What lies in the folder itself.

        Raises:
            SourceNotFoundError: there is no such folder, or no such bucket.
            SourceError: it can't be listed.
        """
        first = type(self)(self.url, FIRST_LOOK, self._endpoint, self._resumes)
        first.greet()
        found = first.below("")
        if not found:
            scheme, _, rest = self.url.partition("://")
            bucket, _, inner = rest.partition("/")
            above = Objects(f"{scheme}://{bucket}", FIRST_LOOK, self._endpoint)
            if inner and above.below(""):
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

        size = listed.size if listed else 0
        fetch = partial(self._fetch, name, listed)
        return (await self._retrying(f"reading {name}", fetch, size))[1]

    async def _fetch(self, name: str, listed: Entry | None) -> tuple[Entry | None, bytes]:
        """An object's bytes, whole, and what the server says of it; as listed, where it was."""
        found, data = await self._backend.get(name)
        expected = listed or found
        is_it = None if expected is None else self._is(data, expected)
        if expected is not None and is_it is False:
            await self._differs(name, data, expected)
        elif is_it is None and listed is not None and listed.version:
            # No checksum: what the answer says of the object, or the store after it, has to do.
            if found is None or found.is_as(listed) is None:
                found = await self._backend.head(name)
            self._require(found, listed)
        return found, data

    def _is(self, data: bytes, listed: Entry) -> bool | None:
        """Whether these bytes are an object's; None if its version says nothing of them."""
        if len(data) != listed.size:
            return False
        is_sum = self._etag_is_md5 or not listed.version.startswith("etag:")
        return is_content(data, listed.version) if is_sum else None

    def _require(self, now: Entry, listed: Entry) -> None:
        if now.is_as(listed) is False:
            raise self.changed(
                f"{self.url}/{listed.name} has changed since it was listed "
                f"({listed.size} bytes, {listed.version}; now {now.size} bytes, {now.version}); "
                "run again when the source is still: only what changed is read anew"
            )

    async def _differs(self, name: str, data: bytes, listed: Entry) -> None:
        """Find out whether the object has changed, or didn't arrive whole."""
        self._require(await self._backend.head(name), listed)
        if len(data) == listed.size and listed.version.startswith("etag:"):
            # Whole and unchanged, so this server's ETags aren't the MD5 (encrypted with KMS).
            _, again = await self._backend.get(name)
            if again == data:
                self._etag_is_md5 = False
                return
        raise Truncated(f"{len(data)} of {listed.size} bytes arrived whole")

    def open(self) -> Any:
        """A binary stream of the object at the URL itself, to be read from front to end."""
        here = self._open
        try:
            return here.server.fs.open(here.backend.path(""), "rb")
        except FileNotFoundError:
            raise
        except Exception as error:
            raise self._explain("opening it", error) from error

    async def stat(self, name: str = "") -> Entry | None:
        """An object as it is now, or None; without a name that at the URL itself."""
        doing = f"looking at {name or 'it'}"
        try:
            entry = await self._retrying(doing, lambda: self._backend.head(name))
        except FileNotFoundError:
            return None
        return None if entry.folder else entry
