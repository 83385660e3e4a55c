"""S3's dialect, and Weka's: aiobotocore's client, whose methods are S3's own, as s3fs sets it up.

What doesn't belong here: which server and whose credentials (filesystems.py).
"""

import base64
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from eval_ingest.objects.backend import Conflict, Entries, Entry
from eval_ingest.objects.faults import is_conflict
from eval_ingest.objects.fsspec_backend import FsspecBackend

PARTS_AHEAD = 4


class S3Backend(FsspecBackend):
    """A folder of a bucket of S3: `root` is bucket/path."""

    has_conditions = True
    deleted_at_once = 1000

    def __init__(self, fs: Any, root: str, threads: ThreadPoolExecutor, payer: str = "") -> None:
        super().__init__(fs, root, threads)
        self.bucket, _, self._folder = self.root.partition("/")
        self._more = {"RequestPayer": "requester"} if payer else {}

    def _key(self, name: str) -> str:
        return "/".join(part for part in (self._folder, name) if part)

    def _name(self, key: str) -> str:
        return key.removeprefix(f"{self._folder}/" if self._folder else "")

    async def _request(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One request.

        Raises:
            OSError: what s3fs makes of S3's error codes: FileNotFoundError, PermissionError, ...
        """
        from botocore.exceptions import ClientError
        from s3fs.errors import translate_boto_error

        await self.fs.set_session()
        client = await self.fs.get_s3(self.bucket)
        try:
            answer: dict[str, Any] = await getattr(client, method)(
                Bucket=self.bucket, **parameters, **self._more
            )
            return answer
        except ClientError as error:
            translated = translate_boto_error(error)
            if is_conflict(translated):
                raise Conflict(str(parameters.get("Key", ""))) from error
            raise translated from error

    # ---------------------------------------------------------------------------------- looking

    async def list(self, folder: str) -> Entries:
        return await self._listed(folder, "", Delimiter="/")

    async def find(self, folder: str, prefix: str = "") -> Entries:
        return await self._listed(folder, prefix)

    async def _listed(self, folder: str, prefix: str, **more_parameters: Any) -> Entries:
        key = self._key(folder)
        parameters = {"Prefix": f"{key}/{prefix}" if key else prefix, **more_parameters}
        found, more = Entries(), True
        while more:
            page = await self._request("list_objects_v2", **parameters)
            for below in page.get("CommonPrefixes", ()):
                found.append(Entry(self._name(below["Prefix"]).rstrip("/"), 0, "", folder=True))
            found += [self._entry(o["Key"], o) for o in page.get("Contents", ())]
            more = page.get("IsTruncated", False)
            parameters["ContinuationToken"] = page.get("NextContinuationToken")
        # Some tools leave empty objects that stand for folders.
        return [entry for entry in found if entry.name and not entry.name.endswith("/")]

    async def head(self, name: str) -> Entry:
        key = self._key(name)
        answer = await self._request("head_object", Key=key)
        return self._entry(key, answer)

    def _entry(self, key: str, answer: dict[str, Any], size: int | None = None) -> Entry:
        if size is None:
            size = int(answer.get("Size", answer.get("ContentLength", 0)))
        etag = f"etag:{answer['ETag'].strip(chr(34))}" if answer.get("ETag") else ""
        modified = answer.get("LastModified")
        return Entry(
            self._name(key), size, etag, False, etag, modified.timestamp() if modified else 0.0
        )

    # ---------------------------------------------------------------------------------- reading

    async def get(self, name: str) -> tuple[Entry | None, bytes]:
        key = self._key(name)
        answer, data = await self._body(Key=key)
        return self._entry(key, answer, len(data)) if answer.get("ETag") else None, data

    async def range(self, name: str, start: int, end: int) -> bytes:
        _, data = await self._body(Key=self._key(name), Range=f"bytes={start}-{end - 1}")
        return data

    async def _body(self, **parameters: Any) -> tuple[dict[str, Any], bytes]:
        answer = await self._request("get_object", **parameters)
        async with answer["Body"] as body:
            return answer, await body.read()

    # ---------------------------------------------------------------------------------- writing

    async def put(self, name: str, data: bytes, seen: Entry | None = None) -> Entry:
        condition = {}
        if seen is not None:
            condition = {"IfMatch": _etag(seen)} if seen.token else {"IfNoneMatch": "*"}
        md5 = hashlib.md5(data, usedforsecurity=False).digest()
        answer = await self._request(
            "put_object",
            Key=self._key(name),
            Body=data,
            ContentMD5=base64.b64encode(md5).decode(),
            **condition,
        )
        return self._entry(self._key(name), answer, len(data))

    async def put_file(self, name: str, file: Any) -> Entry:
        more = {"mode": "create", "max_concurrency": PARTS_AHEAD, **self._more}
        try:
            await self.in_thread(self.fs.put_file, str(file), self.path(name), **more)
        except Exception as error:
            if is_conflict(error):
                raise Conflict(name) from error
            raise
        return await self.head(name)

    async def delete(self, entries: Sequence[Entry]) -> None:
        keys = [
            {"Key": self._key(entry.name)} | ({"ETag": _etag(entry)} if entry.token else {})
            for entry in entries
        ]
        answer = await self._request("delete_objects", Delete={"Objects": keys, "Quiet": True})
        for problem in answer.get("Errors") or ():
            if problem.get("Code") == "PreconditionFailed":
                raise Conflict(self._name(str(problem.get("Key"))))
            if problem.get("Code") != "NoSuchKey":
                raise OSError(f"{problem.get('Key')}: {problem.get('Code')}")


def _etag(entry: Entry) -> str:
    return f'"{entry.token.removeprefix("etag:")}"'
