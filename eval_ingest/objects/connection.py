"""From a URL to a backend that is connected: one client per server and process, made in time.

What doesn't belong here: what a file system is set up with (filesystems.py).
"""

import asyncio
import os
import threading
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from eval_ingest.objects.backend import Backend
from eval_ingest.objects.filesystems import (
    BUCKET_SCHEMES,
    Contact,
    open_filesystem,
    payer_of,
    root_of,
)
from eval_ingest.objects.fsspec_backend import FsspecBackend
from eval_ingest.settings import storage_environment

IN_FLIGHT = 64
"""Requests at a time, per server and process."""
S3_SCHEMES = ("s3", "s3a", "weka")
_SERVERS = 16
"""So many clients are kept; those used first go first."""


@dataclass(frozen=True)
class Server:
    """A file system, what its requests run on, and what is known of it."""

    fs: Any
    loop: asyncio.AbstractEventLoop
    threads: ThreadPoolExecutor
    slots: asyncio.Semaphore
    contact: Contact


@dataclass(frozen=True)
class Connection:
    """A folder on a server. A forked process needs one of its own."""

    pid: int
    server: Server
    backend: Backend


def connect(url: str, endpoint: str | None) -> Connection:
    """The folder at a URL; nothing is asked of its server yet.

    Raises:
        ImportError, ValueError: as `open_filesystem` does.
        Exception: whatever else the file system's library raises.
    """
    payer = payer_of(url)
    # Making a client takes half a second, so everything that lies on a server shares one.
    server = _server(url, endpoint, payer)
    root, scheme = root_of(url), url.partition("://")[0]
    backend: Backend
    if scheme in S3_SCHEMES:
        from eval_ingest.objects.s3 import S3Backend

        backend = S3Backend(server.fs, root, server.threads, payer)
    elif scheme in ("gs", "gcs"):
        from eval_ingest.objects.gcs import GcsBackend

        backend = GcsBackend(server.fs, root, server.threads)
    else:
        backend = FsspecBackend(server.fs, root, server.threads)
    return Connection(os.getpid(), server, backend)


def _server(url: str, endpoint: str | None, payer: str) -> Server:
    import fsspec.asyn

    scheme, _, rest = url.partition("://")
    host = "" if scheme in BUCKET_SCHEMES else rest.partition("/")[0]
    key = (os.getpid(), scheme, host, endpoint, payer, storage_environment())
    with _making:
        if key not in _servers:
            while len(_servers) >= _SERVERS:
                del _servers[next(iter(_servers))]
            contact = Contact()
            fs = open_filesystem(url, endpoint, payer, contact)
            if scheme in S3_SCHEMES and not _is_on_a_loop():
                fs.connect()  # the client: half a second; longer where credentials are asked for
            _servers[key] = Server(
                fs,
                fsspec.asyn.get_loop(),
                ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="eval_ingest_fetch"),
                asyncio.Semaphore(IN_FLIGHT),
                contact,
            )
        return _servers[key]


_servers: dict[Hashable, Server] = {}
_making = threading.Lock()


def _is_on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _after_fork() -> None:
    global _making
    _making = threading.Lock()  # whoever held it is not in this process


os.register_at_fork(after_in_child=_after_fork)
