"""From a URL to a backend that is connected: one client per server and process, made in time.

What doesn't belong here: what a file system is set up with (filesystems.py).
"""

import asyncio
import contextlib
import functools
import os
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from eval_ingest.objects import filesystems
from eval_ingest.objects.fsspec_backend import FsspecBackend
from eval_ingest.settings import storage_environment

IN_FLIGHT = 64
"""Requests at a time, per server and process."""
_SERVERS = 16
"""So many clients are kept; those used longest ago go first."""


@dataclass(frozen=True)
class Server:
    """A file system, what its requests run on, and what is known of it."""

    fs: Any
    loop: asyncio.AbstractEventLoop
    threads: ThreadPoolExecutor
    slots: asyncio.Semaphore
    contact: filesystems.Contact


@dataclass(frozen=True)
class Connection:
    """A folder on a server. A forked process needs one of its own."""

    pid: int
    server: Server
    backend: FsspecBackend


def connect(url: str, endpoint: str | None) -> Connection:
    """The folder at a URL; nothing is asked of its server yet.

    Raises:
        ImportError, ValueError: as `open_filesystem` does.
        Exception: whatever else the file system's library raises.
    """
    payer = filesystems.payer_of(url)
    root, scheme = filesystems.root_of(url), url.partition("://")[0]
    if scheme == "weka":
        endpoint = filesystems.weka_endpoint(url, endpoint)
    server = _server(
        os.getpid(), filesystems.server_url(url), endpoint, payer, storage_environment()
    )
    backend: FsspecBackend
    if scheme in filesystems.S3_SCHEMES:
        from eval_ingest.objects.s3 import S3Backend

        backend = S3Backend(server.fs, root, server.threads, payer)
    elif scheme in filesystems.GOOGLE_SCHEMES:
        from eval_ingest.objects.gcs import GcsBackend

        backend = GcsBackend(server.fs, root, server.threads)
    else:
        backend = FsspecBackend(server.fs, root, server.threads)
    return Connection(os.getpid(), server, backend)


@functools.lru_cache(maxsize=_SERVERS)
def _server(pid: int, url: str, endpoint: str | None, payer: str, environment: Hashable) -> Server:
    """What everything that lies on a server shares: making a client takes half a second."""
    import fsspec.asyn

    contact = filesystems.Contact()
    fs = filesystems.open_filesystem(url, endpoint, payer, contact)
    if url.partition("://")[0] in filesystems.S3_SCHEMES:
        with contextlib.suppress(NotImplementedError):  # on fsspec's own loop: when it is asked
            fs.connect()  # the client: half a second; longer where credentials are asked for
    return Server(
        fs,
        fsspec.asyn.get_loop(),
        ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="eval_ingest_fetch"),
        asyncio.Semaphore(IN_FLIGHT),
        contact,
    )
