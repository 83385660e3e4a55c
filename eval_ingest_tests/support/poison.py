"""Values that would run, open or fetch something if anybody believed them, and who tells if so.

Python's audit hooks tell of what Python opens, runs, imports and connects to; inotify of files that
a C library opens; and a loopback server counts requests.
"""

import contextlib
import copy
import ctypes
import http.server
import os
import select
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_IN_OPEN, _IN_NONBLOCK = 0x20, 0x800
_RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.startfile")


@dataclass
class Watch:
    """What was noticed: nothing, if the product is right."""

    secret: Path
    """A folder that nobody has to look into."""
    port: int
    noticed: list[str] = field(default_factory=list)

    def values(self) -> Iterator[tuple[str, Any]]:
        """Poisoned values by what they would do."""
        url = f"http://127.0.0.1:{self.port}/x.tif"
        touch = ["touch", str(self.secret / "ran")]
        run = {"class_path": "subprocess.Popen", "init_args": {"args": touch}}
        yield "class_path", run
        yield "nested", {"x": {"y": [run]}}
        yield "class_path text", "evil_module.Evil"
        yield "url", url
        yield "vsicurl", f"/vsicurl/{url}"
        yield "vrt", _vrt(f"/vsicurl/{url}")
        yield "path", str(self.secret / "hidden.tif")
        yield "dots", "../" * 12 + str(self.secret / "hidden.tif").lstrip("/")
        yield "variable", "${EVAL_INGEST_TEST_SECRET}"
        yield "grid", f"+proj=utm +zone=30 +nadgrids={self.secret}/hidden.tif"
        yield "json", f'{{"$schema": "{url}", "type": "GeographicCRS"}}'


def _vrt(source: str) -> str:
    return (
        '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1">'
        f"<SimpleSource><SourceFilename>{source}</SourceFilename></SimpleSource>"
        "</VRTRasterBand></VRTDataset>"
    )


_watching: list[Watch] = []


def _audit(event: str, args: tuple[Any, ...]) -> None:
    for watch in _watching:
        text = repr(args)[:2_000]
        if event in _RUNS and str(watch.secret) in text:
            watch.noticed.append(f"{event} {text}")
        elif event == "open" and str(watch.secret) in text:
            watch.noticed.append(f"open {text}")
        elif event == "socket.connect" and str(watch.port) in text:
            watch.noticed.append(f"connect {text}")
        elif event == "import" and "evil_module" in text:
            watch.noticed.append(f"import {text}")


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[Watch]:
    """Watch what a folder's poisoned values would do, and fail if anything was done."""
    if not getattr(sys, "_eval_ingest_audited", False):
        sys.addaudithook(_audit)  # it can't be taken away again
        sys._eval_ingest_audited = True  # type: ignore[attr-defined]
    secret = folder / "secret_folder"
    secret.mkdir(parents=True)
    (secret / "hidden.tif").write_bytes(b"II*\0" + bytes(64))

    class Counting(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            watch.noticed.append(f"request {self.path}")
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Counting)
    watch = Watch(secret, server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    libc = ctypes.CDLL(None, use_errno=True)
    notify = libc.inotify_init1(_IN_NONBLOCK)
    libc.inotify_add_watch(notify, os.fsencode(secret), _IN_OPEN)
    _watching.append(watch)
    try:
        yield watch
        if select.select([notify], [], [], 0)[0]:
            watch.noticed.append(f"a file was opened: {os.read(notify, 4096)!r}")
        if (secret / "ran").exists():
            watch.noticed.append("a program ran")
        assert watch.noticed == [], watch.noticed
    finally:
        _watching.remove(watch)
        os.close(notify)
        server.shutdown()
        server.server_close()
        thread.join()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in JSON, containers and all."""
    if path:
        yield path
    if not isinstance(value, dict | list):
        return
    for key, child in value.items() if isinstance(value, dict) else enumerate(value):
        yield from places(child, (*path, key))


def class_paths(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping of a configuration that names a class."""
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            yield from class_paths(inner)
    if isinstance(value, dict) and "class_path" in value:
        yield value


def poisoned(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a path."""
    result = copy.deepcopy(content)
    holder = result
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return result


def added(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with a further entry in the mapping at a path; the same where there is none."""
    result = copy.deepcopy(content)
    holder = result
    for key in path:
        holder = holder[key]
    if isinstance(holder, dict):
        holder["added"] = value
    return result
