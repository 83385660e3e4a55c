"""A dask scheduler and its workers, as processes of this machine."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cluster:
    """What runs."""

    address: str
    """Of the scheduler."""
    workers: list[subprocess.Popen[str]]


@contextlib.contextmanager
def cluster(
    folder: Path,
    workers: int = 2,
    environment: Mapping[str, str] | None = None,
    reached_at: Callable[[str], str] = lambda address: address,
) -> Iterator[Cluster]:
    """A cluster of workers with one thread each.

    Args:
        folder: for logs and what workers spill.
        workers: how many.
        environment: of the workers, beside this process's.
        reached_at: from the scheduler's address to the one that workers are given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "scheduler.log"
    local = ["--host", "127.0.0.1", "--no-dashboard"]
    with open(log, "w") as stream:
        scheduler = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_scheduler", *local, "--port", "0"],
            stderr=stream,
            text=True,
        )
    processes = [scheduler]
    try:
        address = _wait_for(lambda: re.search(r"Scheduler at:\s+(tcp://\S+)", log.read_text()))[1]
        worker = [sys.executable, "-m", "distributed.cli.dask_worker", reached_at(address), *local]
        worker += ["--nthreads", "1", "--no-nanny", "--local-directory", str(folder / "dask")]
        processes += [
            subprocess.Popen(
                worker, stderr=subprocess.DEVNULL, text=True,
                env={**os.environ, **(environment or {})},
            )
            for _ in range(workers)
        ]  # fmt: skip
        yield Cluster(address, processes[1:])
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _wait_for(look: Callable[[], re.Match[str] | None], seconds: float = 60) -> re.Match[str]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.1)
    raise TimeoutError("the scheduler doesn't start")
