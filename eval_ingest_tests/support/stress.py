"""More that disturbs an ingest: a machine that lacks something, signals, writers that stand still.

What belongs here: cases of `make torture` beside those of faults.py, which says what must be true
afterwards.
"""

import os
import random
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from eval_ingest import pipeline
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.engine import no_progress
from eval_ingest.errors import StoreError
from eval_ingest.job import Job, open_job
from eval_ingest.settings import Settings
from eval_ingest.verifying import verify_dataset
from eval_ingest_tests.support import factories
from eval_ingest_tests.support.deadly import deadly
from eval_ingest_tests.support.faults import Scenario, expect, opened
from eval_ingest_tests.support.killing import MARK, OUR_ERROR, marked, start, wait_until
from eval_ingest_tests.support.servers import ObjectServer
from eval_ingest_tests.support.stalled import Stalled

ENDS_WITHIN_S = 20.0
"""After SIGINT or SIGTERM."""

_SEES_ITSELF = "import eval_ingest.cli; raise SystemExit(eval_ingest.cli.main())"


def _few_handles(rng: random.Random) -> dict[str, Any]:
    return {"limits": {resource.RLIMIT_NOFILE: rng.randint(14, 120)}}


def _little_memory(rng: random.Random) -> dict[str, Any]:
    # With less, threads die before they say that they have begun, and Python waits for ever.
    return {"limits": {resource.RLIMIT_DATA: rng.randint(40, 600) << 20}}


def _small_files(rng: random.Random) -> dict[str, Any]:
    """What a quota does, or a disk that is full for large files alone."""
    return {"limits": {resource.RLIMIT_FSIZE: rng.randint(1, 300) << 10}}


def _broken_proj(rng: random.Random) -> dict[str, Any]:
    nowhere = rng.choice(("/proc", "/nowhere"))
    return {"environment": dict.fromkeys(("PROJ_DATA", "PROJ_LIB", "GDAL_DATA"), nowhere)}


LACKS: Mapping[str, Callable[[random.Random], dict[str, Any]]] = {
    "file handles": _few_handles,
    "memory": _little_memory,
    "room for large files": _small_files,
    "PROJ's data": _broken_proj,
}
"""What a machine may lack."""


def starve(case: Scenario, lack: str, rng: random.Random) -> None:
    """One case: the machine lacks something. That is told, and no window is judged by it."""
    with case.fresh():
        process = start(replace(case.run, **LACKS[lack](rng)), case.log)
        code = process.wait()
        # Libraries in C end the process where there is no memory: as if it was killed.
        assert code in (0, OUR_ERROR) or (lack == "memory" and code != 0), process.text
        case.check_stopped()
        case.check_repeated()


def stop_from_outside(case: Scenario, rng: random.Random) -> bool:
    """One case: `eval-ingest ingest`, and a signal from outside; False if the run was faster."""
    chosen = rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP))
    mark = uuid.uuid4().hex
    environment = {**os.environ, MARK: mark, "OLMOEARTH_EVAL_DATASETS": str(case.work)}
    environment["EVAL_INGEST_ENGINE"] = rng.choice(("threads", "processes"))
    command = [sys.executable, "-c", _SEES_ITSELF, "ingest", "--name", "crops", "--source"]
    with case.fresh():
        process = subprocess.Popen(
            [*command, case.run.source], env=environment, cwd=Path(__file__).parents[2],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        time.sleep(rng.uniform(1.0, 6.0))
        process.send_signal(chosen)
        started = time.monotonic()
        if not wait_until(lambda: process.poll() is not None, ENDS_WITHIN_S):
            process.kill()
            raise AssertionError(f"{chosen.name}: it goes on after {ENDS_WITHIN_S} s")
        code = process.wait()
        took = time.monotonic() - started
        assert wait_until(lambda: not marked(mark), ENDS_WITHIN_S), f"{chosen.name}: {marked(mark)}"
        assert code == 0 or code in (-chosen, 128 + chosen, 130, 143), (chosen, code, took)
        case.check_stopped()
        case.check_repeated()
    return code != 0


def crash_windows(source: Path, folder: Path, rng: random.Random) -> None:
    """One case: a window ends every process that reads it, or some windows end one or two."""
    (folder / "killed").mkdir()
    names = sorted(name for _, name in factories.windows_of(source))
    chosen = set(rng.sample(names, rng.choice((1, 1, 2))))
    times = rng.choice((None, 1, 2))
    spec = DatasetSpec.parse(
        {"name": "crops", "source": str(source), "max_invalid_fraction": 0.5}, "test"
    )
    settings = Settings(eval_root=str(folder / "root"), workers=2, engine="processes")
    sound = pipeline.window_index(
        open_job(spec, replace(settings, eval_root=str(folder / "sound"), engine="threads"))
    )
    # What the kernel kills each time is the machine's fault, and ends the run.
    by = (signal.SIGSEGV,) if times is None else (signal.SIGKILL, signal.SIGSEGV)
    with deadly(folder / "killed", chosen, times, by):
        index = pipeline.window_index(open_job(spec, settings))
    reasons = {"window_crashes": len(chosen)} if times is None else {}
    expect("invalid windows", index.summary.reasons, reasons)
    rows = [
        [row for row in found.table.to_pylist() if times is not None or row["name"] not in chosen]
        for found in (index, sound)
    ]
    expect("the other windows' rows", rows[0] == rows[1], True)


class StalledScenario:
    """A writer into a bucket stands still before any of its writes, and another one publishes."""

    def __init__(self, server: ObjectServer, source: Path, folder: Path) -> None:
        self._server, self._source, self._folder, self._number = server, source, folder, 0

    def stall(self, rng: random.Random) -> bool:
        """One case; False if it was done before it could stand still."""
        self._number += 1
        root = f"{self._server.url}/stalled_{self._number}"
        left = rng.randint(0, 60)

        def stops(name: str) -> bool:
            nonlocal left
            left -= not name.endswith(".lease")
            return left < 0 and not name.endswith(".lease")

        with patch.dict(os.environ, {**self._server.environment, "EVAL_INGEST_ENGINE": "threads"}):
            stalled = Stalled(self._job(root, "a"), stops)
            stalled.start()
            wait_until(lambda: stalled.stopped.is_set() or not stalled.is_alive(), 120)
            if not stalled.stopped.is_set():
                return False
            eval_root: Any = opened(root)
            objects = eval_root.mirror.objects
            objects.run(objects.delete([".crops.lease"]))  # as if it had ended
            pipeline.ingest(self._job(root, "b", splits={"strategy": "random", "seed": 7}))
            published = self._objects(root)
            stalled.goes_on.set()
            stalled.join(120)
            expect("what it says", isinstance(stalled.error, StoreError), True)
            expect("what was published", published.items() <= self._objects(root).items(), True)
            problems = verify_dataset(opened(root), "crops", no_progress).problems
            expect("damaged", problems, [])
        return True

    def _job(self, root: str, machine: str, **more: Any) -> Job:
        spec = DatasetSpec.parse({"name": "crops", "source": str(self._source), **more}, "test")
        cache = self._folder / f"cache_{machine}_{self._number}"
        return open_job(spec, Settings(eval_root=root, workers=2, cache=str(cache)))

    def _objects(self, root: str) -> dict[str, bytes]:
        eval_root: Any = opened(root)
        objects = eval_root.mirror.objects
        names = [entry.name for entry in objects.run(objects.find("crops"))]
        return {name: objects.run(objects.read_current(name))[1] for name in names}
