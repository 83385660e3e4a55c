"""Object stores on 127.0.0.1 that tests start and stop, and a proxy that breaks things."""

import http.client
import logging
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from eval_ingest.objects import retry
from eval_ingest.objects.filesystems import open_filesystem

BUCKET = "studio-bucket"


@dataclass
class ObjectServer:
    """A running object store with one bucket."""

    address: str
    """http://127.0.0.1:port."""
    scheme: str
    environment: dict[str, str]

    @property
    def url(self) -> str:
        return f"{self.scheme}://{BUCKET}"

    def reached_at(self, address: str) -> dict[str, str]:
        """The environment in which its clients go to another address, such as a proxy's."""
        return {
            key: value.replace(self.address, address) for key, value in self.environment.items()
        }

    def filesystem(self) -> Any:
        """fsspec's file system, by the server's own address; the environment has to be set."""
        return open_filesystem(self.url)

    def upload(self, folder: Path, name: str) -> str:
        """Put a folder's files below the bucket; returns their URL."""
        files = {
            f"{BUCKET}/{name}/{path.relative_to(folder)}": path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        self.filesystem().pipe(files)
        return f"{self.url}/{name}"


@contextmanager
def gcs_server() -> Iterator[ObjectServer]:
    """gcp-storage-emulator, made to answer several requests at a time."""
    from gcp_storage_emulator.exceptions import NotFound
    from gcp_storage_emulator.handlers import buckets
    from gcp_storage_emulator.server import RequestHandler
    from gcp_storage_emulator.storage import Storage

    class MemoryStorage(Storage):
        def _write_config_to_file(self) -> None:
            """Nothing: it would write all it knows, for each object that is put."""

    class Handler(RequestHandler):
        lock = threading.Lock()

        def log_message(self, format: str, *args: object) -> None:
            pass

        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            if not name.startswith("do_"):
                return found

            def locked() -> None:
                with Handler.lock:  # it keeps everything in plain dicts
                    if self._as_expected():
                        found()

            return locked

        def end_headers(self) -> None:
            """Say which generation is sent, as Google does."""
            match = _GCS_OBJECT.match(self.path)
            if match is not None and self.command == "GET":
                with suppress(NotFound):
                    sent = storage.get_file_obj(unquote(match["bucket"]), unquote(match["name"]))
                    self.send_header("X-Goog-Generation", sent["generation"])
            super().end_headers()

        def _as_expected(self) -> bool:
            """Answer 412 where ifGenerationMatch isn't met: the emulator ignores it."""
            parts = urlsplit(self.path)
            query = parse_qs(parts.query)
            match = re.match(r"/(?:upload/)?storage/v1/b/([^/]+)/o/?(.*)", parts.path)
            if match is None or "ifGenerationMatch" not in query:
                return True
            name = unquote(match[2]) or query["name"][0]
            try:
                now = storage.get_file_obj(unquote(match[1]), name)["generation"]
            except NotFound:
                now = "0"
            if now == "0" and self.command == "DELETE":
                return True  # Google says that there is none
            if now == query["ifGenerationMatch"][0]:
                return True
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(412)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return False

    storage = MemoryStorage(use_memory_fs=True)
    buckets.create_bucket(BUCKET, storage)
    with _serving(partial(Handler, storage)) as address:
        yield ObjectServer(
            address, "gs", {"STORAGE_EMULATOR_HOST": address, "EVAL_INGEST_ANSWER_SECONDS": "30"}
        )


@contextmanager
def s3_server() -> Iterator[ObjectServer]:
    """moto's S3, answering one request at a time: its objects don't bear two."""
    import boto3
    from moto.s3.exceptions import PreconditionFailed
    from moto.s3.models import S3Backend
    from moto.server import ThreadedMotoServer

    delete = S3Backend.delete_objects

    def if_match(backend: Any, bucket: str, objects: list[Any], *more: Any) -> Any:
        """Delete nothing where an ETag that is given isn't the object's: moto ignores them."""
        for wanted in objects:
            found = backend.get_object(bucket, wanted["Key"])
            if found is not None and wanted.get("ETag") not in (None, found.etag):
                raise PreconditionFailed("If-Match")
        return delete(backend, bucket, objects, *more)

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # it says a line a request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    running: Any = server._server
    # moto would look through its folders for each request's service: here all are S3's.
    lock, app = threading.Lock(), running.app.create_app("s3")

    def one_at_a_time(environ: Any, start_response: Any) -> list[bytes]:
        with lock, patch.object(S3Backend, "delete_objects", if_match):
            return [b"".join(app(environ, start_response))]

    running.app = one_at_a_time
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    environment = {
        "AWS_ENDPOINT_URL": address,
        "EVAL_INGEST_ANSWER_SECONDS": "30",  # this machine may be busy
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    client = boto3.client(
        "s3",
        endpoint_url=address,
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=BUCKET)
    try:
        yield ObjectServer(address, "s3", environment)
    finally:
        server.stop()


class _Server(ThreadingHTTPServer):
    request_queue_size = 256  # with the default, 5, many connections at once are refused


@contextmanager
def _serving(handler: Any) -> Iterator[str]:
    server = _Server(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Have no client wait before it tries again."""
    import asyncio

    import gcsfs.retry

    async def at_once(_: float) -> None:
        await asyncio.sleep(0)

    patch.setattr(gcsfs.retry, "asyncio", SimpleNamespace(sleep=at_once))
    patch.setattr(retry.random, "uniform", lambda *_: 0.0)


@dataclass
class Proxy:
    """Passes requests on to a server, counts what is fetched and written, and breaks some answers.

    Which requests fail is drawn by what they are about, so it is the same in every run.
    """

    upstream: str
    address: str = ""
    faults: float = 0.0
    """Share of objects whose first fetch goes wrong in one of the ways of READING."""
    looking_faults: float = 0.0
    """Share of listings and looks at an object whose first answer goes wrong: LOOKING."""
    writing_faults: float = 0.0
    """Share of objects whose first write, or deletion, goes wrong: WRITING."""
    stall_s: float = 0.0
    """If set, the first answer about each object comes so late."""
    refused: int = 0
    """If set, every request is answered with this status."""
    fetched: Counter[str] = field(default_factory=Counter)
    """Object to the number of whole answers that went out."""
    n_bytes: int = 0
    """Of objects, in whole answers."""
    lists: int = 0
    requests: int = 0
    """Of any kind."""
    asked: list[str] = field(default_factory=list)
    """Path and headers of each."""
    written: Counter[str] = field(default_factory=Counter)
    """Object to the number of writes that the server accepted."""
    done: Counter[str] = field(default_factory=Counter)
    """Kind of fault to how often."""
    drawn: Counter[str] = field(default_factory=Counter)
    alike: Counter[str] = field(default_factory=Counter)
    """What is left of paths without what differs from run to run, to how often it was seen."""
    seen: set[tuple[str, str]] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    READING = ("503", "500", "429", "truncated", "short", "corrupt", "reset", "slow")
    LOOKING = ("503", "truncated", "reset", "slow")
    WRITING = ("503", "reset", "lost", "slow")
    """lost: it is written, and nobody is told."""

    def fault_of(self, kind: str, path: str) -> str | None:
        """The fault of this request: the first one of its kind for a path may have one."""
        share, ways = {
            "reading": (self.faults, self.READING),
            "looking": (self.looking_faults, self.LOOKING),
            "writing": (self.writing_faults, self.WRITING),
        }[kind]
        with self.lock:
            if (kind, path) in self.seen:
                return None
            self.seen.add((kind, path))
            what = f"{kind} {_VARIES.sub('', path)}"
            self.alike[what] += 1
            if random.Random(f"{what} {self.alike[what]}").random() >= share:
                return None
            self.drawn[kind] += 1  # each way in turn
            return ways[self.drawn[kind] % len(ways)]

    def reset(self) -> None:
        """Count anew."""
        with self.lock:
            self.fetched.clear()
            self.written.clear()
            self.n_bytes = self.lists = self.requests = 0


_GCS_OBJECT = re.compile(
    r"/(?:download/)?storage/v1/b/(?P<bucket>[^/]+)/o/(?P<name>[^?]+)\?.*alt=media"
)
_S3_OBJECT = re.compile(rf"/{BUCKET}/(?P<name>[^?]+)(\?x-id=GetObject)?$")
_GCS_UPLOAD = re.compile(r"/upload/storage/v1/b/[^/]+/o\?.*name=(?P<name>[^&]+)")
_VARIES = re.compile(r"[0-9a-f]{12,}|(?i:upload_?id|token)=[^&]*|pytest-[0-9]+")
"""Of a path: digests, of which files' times are a part, and what a server makes up."""
_LIST = re.compile(r"(/storage/v1/b/[^/]+/o/?(\?|$))|(list-type=2)")


@contextmanager
def proxy(upstream: str) -> Iterator[Proxy]:
    """A proxy in front of a server."""
    state = Proxy(upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with state.lock:
                state.requests += 1
                state.asked.append(f"{self.path} {self.headers}")
            match = None
            if self.command == "GET":
                match = _GCS_OBJECT.match(self.path) or _S3_OBJECT.match(self.path)
                if _LIST.search(self.path) and not match:
                    with state.lock:
                        state.lists += 1
            if state.refused:
                self._answer(state.refused, {}, b"{}")
                return
            name = unquote(match["name"]) if match else None
            written = None
            if self.command == "POST":
                written = _GCS_UPLOAD.match(self.path)
            elif self.command == "PUT":
                written = _S3_OBJECT.match(self.path)
            kind = "reading" if name else "looking"
            if self.command in ("PUT", "POST", "DELETE"):
                kind = "writing"
            first = (kind, name or self.path) not in state.seen
            fault = state.fault_of(kind, name or self.path)
            if fault is not None:
                with state.lock:
                    state.done[fault] += 1
            if state.stall_s and name and first:
                time.sleep(state.stall_s)
            if fault in ("503", "500", "429"):
                self._answer(int(fault), {}, b"")
                return
            if fault == "reset":
                self._reset()
                return
            status, headers, data = self._upstream(body)
            if written and status < 300:
                with state.lock:
                    state.written[unquote(written["name"])] += 1
            if fault == "lost":
                self._reset()
                return
            if fault == "slow":
                time.sleep(0.2)
            if fault == "short" and data:  # whole, to all appearances
                self._answer(status, headers, data[: len(data) // 2])
                return
            if fault == "corrupt" and data:
                self._answer(status, headers, bytes([data[0] ^ 1]) + data[1:])
                return
            if fault == "truncated":
                self._answer(status, headers, data, send=len(data) // 2)
                return
            if name and status < 300:
                with state.lock:
                    state.fetched[name] += 1
                    state.n_bytes += len(data)
            self._answer(status, headers, data)

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = _pass_on

        def _reset(self) -> None:
            # Closing with something unsent and no lingering sends RST.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

        def _upstream(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            parts = urlsplit(state.upstream)
            connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
            try:
                # Host stays the client's: AWS signatures cover it.
                connection.putrequest(
                    self.command, self.path, skip_host=True, skip_accept_encoding=True
                )
                for key, value in self.headers.items():
                    connection.putheader(key, value)
                connection.endheaders(body)
                answer = connection.getresponse()
                dropped = ("transfer-encoding", "connection", "content-length", "date", "server")
                headers = {k: v for k, v in answer.getheaders() if k.lower() not in dropped}
                if self.command == "HEAD":
                    headers["X-Length"] = answer.getheader("Content-Length") or "0"
                return answer.status, headers, answer.read()
            finally:
                connection.close()

        def _answer(
            self, status: int, headers: dict[str, str], data: bytes, send: int | None = None
        ) -> None:
            length = headers.pop("X-Length", str(len(data)))
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[:send])
            self.wfile.flush()
            if send is not None:
                self.close_connection = True

    with _serving(Handler) as address:
        state.address = address
        yield state
