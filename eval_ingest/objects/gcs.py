"""Google Cloud Storage's dialect, by gcsfs.

What doesn't belong here: which server and whose credentials (filesystems.py).
"""

import contextlib
import json
import secrets
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from eval_ingest.objects.backend import Conflict, Entry, Truncated, crc32c_text
from eval_ingest.objects.fsspec_backend import FsspecBackend, gcsfs_request

_WHOLE_BYTES = 8 << 20
_RENEW_S = 310
"""gcsfs renews what ends in less than 300 s."""


class GcsBackend(FsspecBackend):
    """A folder of a bucket of Google's: `root` is bucket/path."""

    has_conditions = True

    async def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        await self._renew_credentials()
        return await super().ask(method, *args, **kwargs)

    async def _renew_credentials(self) -> None:
        """As gcsfs would, but not on the loop, where all other requests would wait for it."""
        credentials = self.fs.credentials.credentials
        if credentials is None:
            return
        soon = datetime.now(UTC).replace(tzinfo=None) + timedelta(seconds=_RENEW_S)
        if credentials.valid and (credentials.expiry is None or credentials.expiry > soon):
            return
        await self.in_thread(self.fs.credentials.maybe_refresh)

    async def head(self, name: str) -> Entry:
        """One request; gcsfs's own would list what isn't there."""
        answer = await self._object("GET", name)
        return self.entry({**json.loads(answer), "name": self.path(name)})

    async def _object(self, method: str, name: str, **parameters: Any) -> bytes:
        """A request about an object: the answer's body."""
        await self._renew_credentials()
        bucket, _, key = self.path(name).partition("/")
        if not key:
            raise FileNotFoundError(bucket)
        url = f"b/{quote(bucket)}/o/{quote(key, safe='')}"
        with _conflicts(name):
            return (await gcsfs_request(self.fs, method, url, **parameters))[1]

    async def get(self, name: str) -> tuple[Entry | None, bytes]:
        await self._renew_credentials()
        path = self.path(name)
        headers, data = await gcsfs_request(self.fs, "GET", self.fs.url(path))
        sums = ",".join(headers.getall("X-Goog-Hash", ())).replace(" ", "").split(",")
        crc32c = next((s.removeprefix("crc32c=") for s in sums if s.startswith("crc32c=")), None)
        generation = headers.get("X-Goog-Generation")
        if not generation:
            return None, data
        info = {"name": path, "size": len(data), "generation": generation, "crc32c": crc32c}
        return self.entry(info), data

    async def put(self, name: str, data: bytes, seen: Entry | None = None) -> Entry:
        await self._renew_credentials()
        bucket, _, key = self.path(name).partition("/")
        condition = {}
        if seen is not None:
            condition = {"ifGenerationMatch": _generation(seen)}
        crc32c = crc32c_text(data)  # which the server compares with what arrives
        boundary = f"=={secrets.token_hex(16)}=="
        # With CRLF, as the standard has it: after a bare LF, a CR at the end of the data is lost.
        head = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n"
            f"{json.dumps({'name': key, 'crc32c': crc32c})}\r\n"
            f"--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n"
        )
        server = urlsplit(self.fs.base)
        with _conflicts(name):
            _, answer = await gcsfs_request(
                self.fs,
                "POST",
                f"{server.scheme}://{server.netloc}/upload/storage/v1/b/{quote(bucket)}/o",
                uploadType="multipart",
                name=key,
                headers={"Content-Type": f'multipart/related; boundary="{boundary}"'},
                data=head.encode() + data + f"\r\n--{boundary}--\r\n".encode(),
                **condition,
            )
        entry = self.entry({**json.loads(answer), "name": f"{bucket}/{key}"})
        if entry.size != len(data) or entry.version != f"crc32c:{crc32c}":
            raise Truncated(f"{name} arrived with {entry.size} bytes, {entry.version}")
        return entry

    async def put_file(self, name: str, file: Path) -> Entry:
        if file.stat().st_size < _WHOLE_BYTES:
            return await self.put(
                name, file.read_bytes(), Entry(name, 0, "")
            )  # gcsfs would lose a CR at its end
        with _conflicts(name):
            await self.ask("put_file", str(file), self.path(name), mode="create")
        return await self.head(name)

    async def delete(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            condition = {"ifGenerationMatch": _generation(entry)} if entry.token else {}
            await self._object("DELETE", entry.name, **condition)


def _generation(entry: Entry) -> str:
    """What a condition names: 0 stands for no object."""
    return entry.token.removeprefix("generation:") or "0"


@contextlib.contextmanager
def _conflicts(name: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:  # what gcsfs makes of the answer 412
        raise Conflict(name) from error
