"""`make scale WORKERS="1 2 4"`: how an ingest grows with the workers of a dask cluster.

Scheduler and workers are processes of this machine. Each open of a file below the source waits 30
ms, as a request to a bucket far away does (slow_opens.c), so that several workers find something to
gain on few cores. Whatever goes to the scheduler and comes from it passes a relay, which counts it.
"""

import argparse
import contextlib
import json
import logging
import os
import pickle
import shutil
import socket
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from benchmarks.bench import CACHE, WORKERS, dataset, machine, run_ingest
from benchmarks.cluster import cluster
from benchmarks.places import cpu_seconds, slow_opens

STAGES = ("window_index", "weka_copy")
"""Of the five, those that workers do."""


class Measured(NamedTuple):
    """An ingest over so many workers."""

    workers: int
    seconds: float
    index_s: float
    copy_s: float
    busy: float
    """Part of this machine's cores that workers used."""
    to_scheduler: int
    """Bytes that whoever ingests sends: tasks."""
    from_scheduler: int
    """Bytes that it receives: rows."""
    to_workers: int
    from_workers: int


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="make scale", description=__doc__)
    parser.add_argument("--windows", type=int, default=1000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--latency-ms", type=float, default=30.0)
    parser.add_argument("--at", type=Path, default=CACHE, help="where evals go: /dev/shm, for one")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    source = dataset(options.windows).resolve()
    print(f"{machine()}; {options.windows} windows, {options.latency_ms:g} ms a request; "
          f"load {os.getloadavg()[0]:.1f} at the start")  # fmt: skip
    print(_LINE.format("workers", "seconds", "index", "copy", "faster", "efficiency", "cores in "
                       "use", "to workers", "rows back"))  # fmt: skip
    found: list[Measured] = []
    options.at.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="scale", dir=options.at.absolute()) as at:
        root = Path(at, "root")
        for workers in options.workers:
            found.append(measured(source, root, workers, options.latency_ms))
            print(told(found, options.windows), flush=True)
        rows = _bytes_of_rows(root)
    print(f"of a window there are {rows / options.windows:,.0f} bytes of rows, as they are pickled,"
          f" and {_bytes_of(source) / options.windows:,.0f} in its files")  # fmt: skip
    if options.json:
        facts = [one._asdict() for one in found]
        options.json.write_text(json.dumps({"machine": machine(), "rows": facts}, indent=2))
    return 0


_LINE = "{:>7}  {:>8}  {:>7}  {:>7}  {:>7}  {:>10}  {:>12}  {:>12}  {:>12}"


def told(found: list[Measured], windows: int) -> str:
    """The last line of the table: bytes are those of a window."""
    first, one = found[0], found[-1]
    faster = first.seconds / one.seconds
    there, back = one.to_scheduler + one.to_workers, one.from_scheduler
    return _LINE.format(
        one.workers, f"{one.seconds:.1f}", f"{one.index_s:.1f}", f"{one.copy_s:.1f}",
        f"{faster:.2f}x", f"{faster * first.workers / one.workers:.0%}", f"{one.busy:.0%}",
        f"{there / windows:,.0f} B", f"{back / windows:,.0f} B",
    )  # fmt: skip


def measured(source: Path, root: Path, workers: int, latency_ms: float) -> Measured:
    """An ingest into an empty root."""
    shutil.rmtree(root, ignore_errors=True)
    os.sync()
    slow = slow_opens(source, latency_ms)
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        relays: list[Relay] = []

        def through_relay(address: str) -> str:
            relays.append(stack.enter_context(relay(address)))
            return relays[-1].address

        running = stack.enter_context(cluster(Path(scratch), workers, slow, through_relay))
        _wait_for_workers(running.address, workers)
        through_relay(running.address)
        pids = [process.pid for process in running.workers]
        before = sum(map(cpu_seconds, pids))
        relays[0].bytes.clear()
        found = run_ingest(
            source, root, environment={**slow, "EVAL_INGEST_ENGINE": relays[1].address}
        )
        used = sum(map(cpu_seconds, pids)) - before
    theirs, ours = relays[0].bytes, relays[1].bytes
    return Measured(
        workers, found["seconds"], *(found[stage] for stage in STAGES),
        used / found["seconds"] / WORKERS,
        ours["there"], ours["back"], theirs["back"], theirs["there"],
    )  # fmt: skip


def _wait_for_workers(address: str, workers: int) -> None:
    from distributed import Client

    with Client(address) as client:  # type: ignore[no-untyped-call]
        client.wait_for_workers(workers, timeout=120)  # type: ignore[no-untyped-call]
        client.run(_imported)  # type: ignore[no-untyped-call]  # once in a worker's life


def _imported() -> None:
    for module in ("eval_ingest.indexing.work", "eval_ingest.copying.worker"):
        import_module(module)


# ------------------------------------------------------------------------------------- counting


class Relay(NamedTuple):
    """Passes connections on to an address."""

    address: str
    bytes: Counter[str]
    """`there`: to what is behind it; `back`: from that."""


@contextlib.contextmanager
def relay(behind: str) -> Iterator[Relay]:
    """A relay in front of tcp://host:port."""
    host, _, port = behind.removeprefix("tcp://").rpartition(":")
    counted: Counter[str] = Counter()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):  # it was closed
                while True:
                    near = server.accept()[0]
                    far = socket.create_connection((host, int(port)))
                    for source, target, way in ((near, far, "there"), (far, near, "back")):
                        _begin(_pass_on, source, target, counted, way)

        _begin(accept)
        yield Relay(f"tcp://127.0.0.1:{server.getsockname()[1]}", counted)


def _begin(work: object, *args: object) -> None:
    threading.Thread(target=work, args=args, daemon=True).start()  # type: ignore[arg-type]


def _pass_on(source: socket.socket, target: socket.socket, counted: Counter[str], way: str) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            counted[way] += len(data)
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _bytes_of_rows(root: Path) -> int:
    """The index of the dataset that was ingested there, as its rows were sent."""
    from eval_ingest.store.outcomes import read_outcome
    from eval_ingest.store.roots.base import EvalRoot

    opened = EvalRoot(root)
    (name,) = opened.dataset_names()
    index = read_outcome(opened.dataset(name), "window_index")
    assert index is not None
    return len(pickle.dumps(index.table))


def _bytes_of(source: Path) -> int:
    return sum(path.stat().st_size for path in source.glob("windows/**/*") if path.is_file())


if __name__ == "__main__":
    sys.exit(main())
