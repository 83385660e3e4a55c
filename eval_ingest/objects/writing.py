"""A folder of objects that is written as well: eval roots.

An object is put whole or not at all, under a condition where two writers could meet: S3's If-Match
and If-None-Match, Google's ifGenerationMatch. Other file systems of fsspec have none; there the
object is looked at just before it is written.
"""

import asyncio
import base64
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from eval_ingest.errors import IntegrityError, StoreError
from eval_ingest.objects.backend import Conflict, Entry, Truncated
from eval_ingest.objects.explain import EvalRootWords
from eval_ingest.objects.reading import Objects
from eval_ingest.objects.retry import gather_or_cancel

PART_BYTES = 32 << 20
"""Of one request of a large download."""
PARTS_AHEAD = 4
CHANGING_S = 30.0
"""How long an object that is written again and again is read anew."""


class Changed(StoreError):
    """An object was written while it was being read."""


class WritableObjects(Objects):
    """The objects of an eval root; safe to use from several threads."""

    changed = Changed
    speaks = EvalRootWords
    words: EvalRootWords

    @property
    def has_conditions(self) -> bool:
        """True if of two writers at once one is refused."""
        return self._backend.has_conditions

    # ---------------------------------------------------------------------------- small objects

    async def read_current(self, name: str, entry: Entry | None = None) -> tuple[Entry, bytes]:
        """An object as it is now, with its bytes.

        Args:
            name: the object.
            entry: what was just seen of it.

        Raises:
            FileNotFoundError: there is none.
            StoreError: it can't be read.
        """
        deadline = time.monotonic() + CHANGING_S
        pause_s = 0.05
        while True:
            try:
                return await self._read_current(name, entry)
            except Changed as error:  # written at this very moment
                if time.monotonic() > deadline:
                    raise self.words.error(
                        f"{self.words.kind} {self.url}: {name} has been changing all the time for "
                        f"{CHANGING_S:.0f} s; run again"
                    ) from error
            entry = None
            await asyncio.sleep(random.uniform(0.2, 1.0) * pause_s)
            pause_s = min(2 * pause_s, 1.0)

    async def _read_current(self, name: str, entry: Entry | None) -> tuple[Entry, bytes]:
        """The same, once; Changed if it was written meanwhile."""
        if self.has_conditions:
            size, fetch = entry.size if entry else 0, partial(self._fetch, name, None)
            found, data = await self._retrying(f"reading {name}", fetch, size)
            if found is not None and found.token:
                return found, data
        entry = entry or await self.stat(name)
        if entry is None:
            raise FileNotFoundError(name)
        return entry, await self.read(name, entry)

    async def put(self, name: str, data: bytes) -> Entry:
        """Write an object, whatever was there.

        Raises:
            StoreError: it can't be written.
        """
        try:
            return await self._put(name, data, None)
        except FileNotFoundError as error:
            raise self.words.no_bucket() from error

    async def replace(self, entry: Entry, data: bytes) -> Entry:
        """Write an object that must be as it was seen; without a token: not be there.

        Raises:
            Conflict: it isn't, and has other content.
            StoreError: it can't be written.
        """
        name = entry.name
        try:
            return await self._put(name, data, entry)
        except (Conflict, FileNotFoundError) as error:
            if not entry.token and isinstance(error, FileNotFoundError):
                raise self.words.no_bucket() from error
            # The write may have been ours: its answer was lost, and it was tried again.
            try:
                now, found = await self.read_current(name)
            except FileNotFoundError:
                raise Conflict(f"{name} has gone") from error
            if found == data:
                return now
            raise Conflict(f"{name} was written by somebody else") from error

    async def _put(self, name: str, data: bytes, seen: Entry | None) -> Entry:
        """Put an object; `seen` is what it must be now, without a token: not there."""
        return await self._retrying(
            f"writing {name}", lambda: self._backend.put(name, data, seen), len(data)
        )

    # ---------------------------------------------------------------------------- large objects

    async def upload(self, name: str, file: Path, crc32c: str) -> Entry:
        """Write an object that must not exist from a file, in parts where it is large.

        Args:
            name: the object.
            file: the file.
            crc32c: of the file, as `crc32c_text` writes it.

        Raises:
            Conflict: it exists, with other content.
            StoreError: it can't be written.
        """
        n_bytes = file.stat().st_size

        async def send() -> Entry:
            entry = await self._backend.put_file(name, file)
            kind, _, value = entry.version.partition(":")
            if entry.size != n_bytes or (kind == "crc32c" and value != crc32c):
                await self._delete([entry])
                raise Truncated(f"{name} arrived with {entry.size} bytes, {entry.version}")
            return entry

        try:
            return await self._retrying(f"writing {name}", send, n_bytes)
        except Conflict:
            # It may be ours: the answer was lost, and it was tried again.
            found = await self.stat(name)
            if found is not None and await self.crc32c_of(found) == crc32c:
                return found
            raise

    async def crc32c_of(self, entry: Entry) -> str:
        """CRC32C of an object's bytes, which are read; as `crc32c_text` writes it.

        Raises:
            FileNotFoundError: there is no such object.
            StoreError: it can't be read, or has another size.
        """
        import google_crc32c

        checksum = google_crc32c.Checksum()
        await self.stream(entry.name, entry.size, checksum.update)
        return base64.b64encode(checksum.digest()).decode()

    async def stream(self, name: str, n_bytes: int, take: Callable[[bytes], object]) -> None:
        """Hand on the bytes of an object of known size, in turn, while the next ones arrive.

        Raises:
            FileNotFoundError: there is no such object.
            StoreError: it can't be read, or has another size.
        """

        async def part(start: int) -> bytes:
            end = min(start + PART_BYTES, n_bytes)

            async def fetch() -> bytes:
                data = await self._backend.range(name, start, end)
                if len(data) != end - start:
                    await self._check_size(name, n_bytes)
                    raise Truncated(f"{len(data)} of {end - start} bytes arrived")
                return data

            return await self._retrying(f"reading {name}", fetch, end - start)

        waiting: deque[asyncio.Task[bytes]] = deque()
        try:
            for start in range(0, n_bytes, PART_BYTES):
                waiting.append(asyncio.ensure_future(part(start)))
                if len(waiting) >= PARTS_AHEAD:
                    take(await waiting.popleft())
            while waiting:
                take(await waiting.popleft())
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _check_size(self, name: str, n_bytes: int) -> None:
        now = await self._backend.head(name)
        if now.size != n_bytes:
            raise IntegrityError(
                f"{self.url}/{name} has {now.size} bytes, recorded are {n_bytes}; "
                "see eval-ingest verify"
            )

    # --------------------------------------------------------------------------------- deleting

    async def delete(self, found: Iterable[Entry | str]) -> None:
        """Delete objects; one that isn't there is as good as deleted.

        Args:
            found: the objects, as they must be still to be deleted; or names, whatever is there.

        Raises:
            Conflict: one isn't as it was seen.
            StoreError: one can't be deleted.
        """
        entries = [one if isinstance(one, Entry) else Entry(one, 0, "") for one in found]
        most = self._backend.deleted_at_once
        some = (entries[k : k + most] for k in range(0, len(entries), most))
        await gather_or_cancel(map(self._delete, some))

    async def _delete(self, entries: Sequence[Entry]) -> None:
        what = entries[0].name + (" and others" if len(entries) > 1 else "")
        try:
            await self._retrying(f"deleting {what}", lambda: self._backend.delete(entries))
        except FileNotFoundError:
            pass
        except Conflict as error:
            # It may have been us: the answer was lost, and it was tried again.
            if any([await self.stat(entry.name) for entry in entries]):
                raise Conflict(str(error) or entries[0].name) from error
