"""A folder of objects that is written as well: eval roots.

An object is put whole or not at all, under a condition where two writers could meet: S3's If-Match
and If-None-Match, Google's ifGenerationMatch. Other file systems of fsspec have none; there the
object is looked at just before it is written.
"""

import asyncio
import base64
import contextlib
import glob
import hashlib
import json
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from eval_ingest.errors import IntegrityError, StoreError
from eval_ingest.objects.faults import Conflict, Truncated, is_conflict
from eval_ingest.objects.reading import Entry, Objects, Result, crc32c_text

PART_BYTES = 32 << 20
"""Of one request of a large download."""
PARTS_AHEAD = 4
CHANGING_S = 30.0
"""How long an object that is written again and again is read anew."""
_WHOLE_BYTES = 8 << 20
DELETED_AT_ONCE = 1000
"""What S3 takes in one request."""


class Changed(StoreError):
    """An object was written while it was being read."""


class WritableObjects(Objects):
    """The objects of an eval root; safe to use from several threads."""

    kind = "eval root"
    error = StoreError
    changed = Changed
    google_role = "Storage Object User"
    rights = "list, read, write and delete in"

    def _cure_of_url(self, error: Exception) -> str:
        if self.url.startswith("weka://") and not isinstance(error, ImportError):
            return (
                "set WEKA_ENDPOINT_URL to the address of Weka's S3, or OLMOEARTH_EVAL_DATASETS "
                "to a folder or URL, such as OLMOEARTH_EVAL_DATASETS=$HOME/evals"
            )
        return super()._cure_of_url(error)

    def _cure_of_network(self) -> str:
        also = " and WEKA_ENDPOINT_URL" if self.url.startswith("weka://") else ""
        return f"check the network{also}, or set OLMOEARTH_EVAL_DATASETS to another place"

    @property
    def has_conditions(self) -> bool:
        """True if of two writers at once one is refused."""
        return bool(self._dialect)

    @property
    def _dialect(self) -> str:
        """How conditions are said: `s3`, `gs`, or not at all."""
        protocol = self._fs.protocol
        known = {protocol} if isinstance(protocol, str) else set(protocol)
        return next((name for name in ("s3", "gs") if name in known), "")

    # ---------------------------------------------------------------------------- small objects

    async def stat(self, name: str) -> Entry | None:
        """An object as it is now, or None."""
        path = self.path(name)
        try:
            info = await self._retrying(f"looking at {name}", lambda: self._ask("info", path))
        except FileNotFoundError:
            return None
        entry = self._entry(info)
        return None if entry.folder else entry

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
                    raise self.error(
                        f"{self.kind} {self.url}: {name} has been changing all the time for "
                        f"{CHANGING_S:.0f} s; run again"
                    ) from error
            entry = None
            await asyncio.sleep(random.uniform(0.2, 1.0) * pause_s)
            pause_s = min(2 * pause_s, 1.0)

    async def _read_current(self, name: str, entry: Entry | None) -> tuple[Entry, bytes]:
        """The same, once; Changed if it was written meanwhile."""
        if self._dialect:
            found = await self._retrying(
                f"reading {name}", lambda: self._get(name), entry.size if entry else 0
            )
            if found is not None:
                return found
        entry = entry or await self.stat(name)
        if entry is None:
            raise FileNotFoundError(name)
        return entry, await self.read(name, entry)

    async def _get(self, name: str) -> tuple[Entry, bytes] | None:
        """An object and its bytes from one answer; None from a server that doesn't say which
        version it sends.
        """
        path = self.path(name)
        get = self._get_s3 if self._dialect == "s3" else self._get_gs
        info, data = await get(path)
        entry = self._entry({"name": path, "size": len(data), **info})
        if not entry.token:
            return None
        if not self._is(data, entry):
            await self._differs(path, data, entry)
        return entry, data

    async def _get_s3(self, path: str) -> tuple[dict[str, Any], bytes]:
        bucket, key, _ = self._fs.split_path(path)
        answer = await self._fs._call_s3("get_object", Bucket=bucket, Key=key)
        async with answer["Body"] as body:
            data = await body.read()
        return {field: answer.get(field) for field in ("ETag", "LastModified")}, data

    async def _get_gs(self, path: str) -> tuple[dict[str, Any], bytes]:
        headers, data = await self._fs._call("GET", self._fs.url(path))
        sums = ",".join(headers.getall("X-Goog-Hash", ())).replace(" ", "").split(",")
        crc32c = next((s.removeprefix("crc32c=") for s in sums if s.startswith("crc32c=")), None)
        return {"generation": headers.get("X-Goog-Generation"), "crc32c": crc32c}, data

    async def put(self, name: str, data: bytes) -> Entry:
        """Write an object, whatever was there.

        Raises:
            StoreError: it can't be written.
        """
        try:
            return await self._put(name, data, None)
        except FileNotFoundError as error:
            raise self._no_bucket(error) from error

    async def create(self, name: str, data: bytes) -> Entry:
        """Write an object that must not exist.

        Raises:
            Conflict: it exists, with other content.
            StoreError: it can't be written.
        """
        return await self._conditionally(name, data, Entry(name, 0, ""))

    async def replace(self, entry: Entry, data: bytes) -> Entry:
        """Write an object that must be as it was seen.

        Raises:
            Conflict: it isn't.
            StoreError: it can't be written.
        """
        return await self._conditionally(entry.name, data, entry)

    async def _conditionally(self, name: str, data: bytes, seen: Entry) -> Entry:
        try:
            return await self._put(name, data, seen)
        except (Conflict, FileNotFoundError) as error:
            if not seen.token and isinstance(error, FileNotFoundError):
                raise self._no_bucket(error) from error
            # The write may have been ours: its answer was lost, and it was tried again.
            try:
                entry, found = await self.read_current(name)
            except FileNotFoundError:
                raise Conflict(f"{name} has gone") from error
            if found == data:
                return entry
            raise Conflict(f"{name} was written by somebody else") from error

    def _no_bucket(self, error: FileNotFoundError) -> StoreError:
        bucket = self.url.partition("://")[2].partition("/")[0]
        return StoreError(f"{self.kind} {self.url}: there is no bucket {bucket}; check the URL")

    async def _put(self, name: str, data: bytes, seen: Entry | None) -> Entry:
        """Put an object; `seen` is what it must be now, without a token: not there."""

        async def put() -> Entry:
            try:
                match self._dialect:
                    case "s3":
                        return await self._put_s3(name, data, seen)
                    case "gs":
                        return await self._put_gs(name, data, seen)
                    case _:
                        return await self._put_plainly(name, data, seen)
            except Exception as error:
                if seen is not None and is_conflict(error):
                    raise Conflict(name) from error
                raise

        return await self._retrying(f"writing {name}", put, len(data))

    async def _put_s3(self, name: str, data: bytes, seen: Entry | None) -> Entry:
        bucket, key, _ = self._fs.split_path(self.path(name))
        condition = {}
        if seen is not None:
            etag = seen.token.removeprefix("etag:")
            condition = {"IfMatch": f'"{etag}"'} if etag else {"IfNoneMatch": "*"}
        answer = await self._fs._call_s3(
            "put_object",
            Bucket=bucket,
            Key=key,
            Body=data,
            ContentMD5=base64.b64encode(_md5(data).digest()).decode(),
            **condition,
        )
        etag = f"etag:{answer['ETag'].strip(chr(34))}"
        return Entry(name, len(data), etag, token=etag)

    async def _put_gs(self, name: str, data: bytes, seen: Entry | None) -> Entry:
        bucket, key, _ = self._fs.split_path(self.path(name))
        condition = {}
        if seen is not None:
            condition = {"ifGenerationMatch": seen.token.removeprefix("generation:") or "0"}
        crc32c = crc32c_text(data)  # which the server compares with what arrives
        boundary = f"=={secrets.token_hex(16)}=="
        # With CRLF, as the standard has it: after a bare LF, a CR at the end of the data is lost.
        head = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n"
            f"{json.dumps({'name': key, 'crc32c': crc32c})}\r\n"
            f"--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n"
        )
        answer = await self._fs._call(
            "POST",
            f"{self._fs._location}/upload/storage/v1/b/{quote(bucket)}/o",
            uploadType="multipart",
            name=key,
            headers={"Content-Type": f'multipart/related; boundary="{boundary}"'},
            data=head.encode() + data + f"\r\n--{boundary}--\r\n".encode(),
            json_out=True,
            **condition,
        )
        entry = self._entry(self._fs._process_object(bucket, answer))
        if entry.size != len(data) or entry.version != f"crc32c:{crc32c}":
            raise Truncated(f"{name} arrived with {entry.size} bytes, {entry.version}")
        return entry

    async def _put_plainly(self, name: str, data: bytes, seen: Entry | None) -> Entry:
        path = self.path(name)
        if seen is not None:
            now = await self._stat_once(path)
            if (now.token if now else "") != seen.token or (now is None) != (not seen.token):
                raise Conflict(name)
        parent = path.rpartition("/")[0]
        await self._ask("makedirs", parent, exist_ok=True)
        await self._ask("pipe_file", path, data)
        return await self._stat_once(path) or Entry(name, len(data), "")

    async def _stat_once(self, path: str) -> Entry | None:
        try:
            return self._entry(await self._ask("info", path))
        except FileNotFoundError:
            return None

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
        path, n_bytes = self.path(name), file.stat().st_size
        if n_bytes < _WHOLE_BYTES:  # gcsfs would lose a CR at its end
            return await self.create(name, file.read_bytes())

        async def send() -> Entry:
            more: dict[str, Any] = {"mode": "create"}
            if self._dialect == "s3":
                more["max_concurrency"] = PARTS_AHEAD
            if not self._dialect:
                more = {}
                await self._ask("makedirs", path.rpartition("/")[0], exist_ok=True)
                if await self._stat_once(path) is not None:
                    raise Conflict(name)
            try:
                await self._ask("put_file", str(file), path, **more)
            except Exception as error:
                if is_conflict(error):
                    raise Conflict(name) from error
                raise
            entry = self._entry(await self._ask("info", path))
            kind, _, value = entry.version.partition(":")
            if entry.size != n_bytes or (kind == "crc32c" and value != crc32c):
                await self._delete_one(name)
                raise Truncated(f"{name} arrived with {entry.size} bytes, {entry.version}")
            return entry

        try:
            return await self._retrying(f"writing {name}", send, n_bytes)
        except Conflict:
            # It may be ours: the answer was lost, and it was tried again.
            found = await self.stat(name)
            if found is not None and await self._crc32c(found) == crc32c:
                return found
            raise

    async def _crc32c(self, entry: Entry) -> str:
        """Of an object's bytes, read if the server doesn't say."""
        import google_crc32c

        kind, _, value = entry.version.partition(":")
        if kind == "crc32c":
            return value
        checksum = google_crc32c.Checksum()
        await self.stream(entry.name, entry.size, checksum.update)
        return base64.b64encode(checksum.digest()).decode()

    async def stream(self, name: str, n_bytes: int, take: Callable[[bytes], object]) -> None:
        """Hand on the bytes of an object of known size, in turn, while the next ones arrive.

        Raises:
            FileNotFoundError: there is no such object.
            StoreError: it can't be read, or has another size.
        """
        path = self.path(name)

        async def part(start: int) -> bytes:
            end = min(start + PART_BYTES, n_bytes)

            async def fetch() -> bytes:
                data: bytes = await self._ask("cat_file", path, start=start, end=end)
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
        now = self._entry(await self._ask("info", self.path(name)))
        if now.size != n_bytes:
            raise IntegrityError(
                f"{self.url}/{name} has {now.size} bytes, recorded are {n_bytes}; "
                "see eval-ingest verify"
            )

    # --------------------------------------------------------------------------------- deleting

    async def delete(self, names: Sequence[str]) -> None:
        """Delete objects; one that isn't there is as good as deleted.

        Raises:
            StoreError: one can't be deleted.
        """
        if self._dialect == "s3":
            some = [names[k : k + DELETED_AT_ONCE] for k in range(0, len(names), DELETED_AT_ONCE)]
            await together(map(self._delete_s3, some))
        else:
            await together(map(self._delete_one, names))

    async def _delete_s3(self, names: Sequence[str]) -> None:
        split = [self._fs.split_path(self.path(name)) for name in names]

        async def call() -> None:
            answer: dict[str, Any] = await self._fs._call_s3(
                "delete_objects",
                Bucket=split[0][0],
                Delete={"Objects": [{"Key": key} for _, key, _ in split], "Quiet": True},
            )
            for problem in answer.get("Errors") or ():
                if problem.get("Code") != "NoSuchKey":
                    raise OSError(f"{problem.get('Key')}: {problem.get('Code')}")

        await self._retrying(f"deleting {names[0]} and others", call)

    async def _delete_one(self, name: str) -> None:
        path = self.path(name)
        remove = "rm_file" if self._dialect == "gs" else "rm"
        if remove == "rm":
            path = glob.escape(path)  # it takes patterns
        with contextlib.suppress(FileNotFoundError):
            await self._retrying(f"deleting {name}", lambda: self._ask(remove, path))


async def together(work: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """All results in turn; the first error ends the others before it is raised."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _md5(data: bytes) -> Any:
    return hashlib.md5(data, usedforsecurity=False)
