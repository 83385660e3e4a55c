"""Engines: threads, processes and a dask cluster give the same result, also when a worker dies."""

import inspect
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.cluster import Cluster, cluster
from eval_ingest import pipeline
from eval_ingest.engine import Processes, executor, map_ordered
from eval_ingest.errors import EvalIngestError, SettingsError
from eval_ingest.job import open_job
from eval_ingest.settings import Settings
from eval_ingest_tests.conftest import make_job


def test_results_come_in_order_and_few_are_in_flight() -> None:
    started: list[int] = []

    def work(k: int) -> int:
        started.append(k)
        time.sleep(0.001 * (5 - k % 5))
        return k

    with ThreadPoolExecutor(4) as pool:
        results = map_ordered(pool, work, range(50), in_flight=6)
        for expected, found in enumerate(results):
            assert found == expected
            assert len(started) <= expected + 6 + 1


def test_the_first_error_ends_it() -> None:
    done: list[int] = []

    def work(k: int) -> None:
        if k == 3:
            raise ValueError("broken")
        done.append(k)

    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="broken"):
        list(map_ordered(pool, work, range(1000), in_flight=4))
    assert len(done) < 20


def test_an_unknown_engine_is_told() -> None:
    with pytest.raises(SettingsError, match="must be auto, threads, processes, or a dask"):
        Settings.load({"EVAL_INGEST_ENGINE": "fibres"})


def test_many_windows_are_worth_starting_processes() -> None:
    for windows, expected in ((10, ThreadPoolExecutor), (400, Processes)):
        with executor(Settings(workers=2), windows) as pool:
            assert isinstance(pool, expected)
    with executor(Settings(workers=1), 4000) as pool:
        assert isinstance(pool, ThreadPoolExecutor)


@pytest.fixture
def two_workers(tmp_path: Path) -> Iterator[Cluster]:
    """A dask scheduler on 127.0.0.1 and two worker processes."""
    with cluster(tmp_path) as running:
        yield running


def test_an_ingest_over_dask_survives_the_death_of_a_worker(
    two_workers: Cluster,
    written: Callable[[str], Path],
    ingested: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from distributed import Client

    address, workers = two_workers.address, two_workers.workers
    with Client(address) as client:
        client.wait_for_workers(2, timeout=60)
    # Small tasks, so that there is something left to do when one worker is gone.
    monkeypatch.setattr("eval_ingest.indexing.build.SHARD_WINDOWS", 2)
    killed: list[int] = []

    def kill_one(what: str, done: int, total: int) -> None:
        if what == "windows read" and not killed:
            killed.append(done)
            workers[0].kill()

    job = make_job(written("segmentation"), tmp_path, "segmentation", max_invalid_fraction=0.5)
    settings = Settings(eval_root=str(tmp_path), workers=2, engine=address)
    job = open_job(job.spec, settings, progress=kill_one)
    pipeline.ingest(job)
    assert killed
    reference = ingested("segmentation") / "segmentation"
    arrays = sorted(reference.rglob("*.npy"))
    assert arrays
    for path in arrays:
        other = job.layout.path / path.relative_to(reference)
        assert other.read_bytes() == path.read_bytes()


def test_workers_have_the_environment_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(workers=1, engine="processes")
    for endpoint in ("http://127.0.0.1:1", None, "http://127.0.0.1:2"):
        if endpoint is None:
            monkeypatch.delenv("STORAGE_EMULATOR_HOST")
        else:
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
        with executor(settings) as pool:
            assert pool.submit(os.getenv, "STORAGE_EMULATOR_HOST").result() == endpoint


def test_two_threads_that_start_workers_at_once_leave_the_script_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Workers are kept from running the script again by hiding its name while they start."""
    start = multiprocessing.context.ForkServerProcess.start

    def start_slowly(process: multiprocessing.context.ForkServerProcess) -> None:
        time.sleep(0.05)
        start(process)

    monkeypatch.setattr(multiprocessing.context.ForkServerProcess, "start", start_slowly)
    main = vars(sys.modules["__main__"])
    if "__file__" not in main:  # a test worker's main module has none
        monkeypatch.setitem(main, "__file__", __file__)
    before = {name: main[name] for name in ("__file__", "__spec__")}

    def work(k: int) -> list[int]:
        time.sleep(0.02 * k)  # so that one begins while the other is at it
        with executor(Settings(workers=2, engine="processes")) as pool:
            return list(map_ordered(pool, abs, range(-4, 0), in_flight=2))

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(work, range(2))) == [[4, 3, 2, 1]] * 2
    assert {name: main.get(name) for name in before} == before


def test_workers_that_stop_answering_when_all_is_done_hold_up_nobody() -> None:
    with executor(Settings(workers=2, engine="processes")) as pool:
        assert list(map_ordered(pool, abs, range(8), in_flight=4)) == list(range(8))
        for pid in pool.pids:  # type: ignore[attr-defined]
            os.kill(pid, signal.SIGSTOP)


def test_a_script_without_a_main_guard_can_ingest(tmp_path: Path, small: Path) -> None:
    script = tmp_path / "script.py"
    settings = f"eval_root={str(tmp_path / 'root')!r}, workers=2, engine='processes'"
    script.write_text(
        "from eval_ingest import pipeline\n"
        "from eval_ingest.core.spec import DatasetSpec\n"
        "from eval_ingest.job import open_job\n"
        "from eval_ingest.settings import Settings\n"
        f"spec = DatasetSpec(name='crops', source={str(small)!r})\n"
        f"print(len(pipeline.ingest(open_job(spec, Settings({settings})))))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr


def test_a_program_forks_its_workers_from_itself(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        "import signal\n"
        "from eval_ingest import engine\n"
        "from eval_ingest.settings import Settings\n"
        "settings = Settings(workers=2, engine='processes')\n"
        "signal.signal(signal.SIGTERM, lambda number, frame: None)\n"
        "engine.MANY_WINDOWS = 7\n"
        "asked = 'engine.MANY_WINDOWS, signal.getsignal(signal.SIGTERM) == signal.SIG_DFL'\n"
        "asked = f'(exec(\"import signal; from eval_ingest import engine\"), {asked})[1:]'\n"
        "engine.fork_ahead(settings)\n"
        "with engine.executor(settings) as pool:\n"
        "    print(len(pool.pids), pool.submit(eval, asked, {}).result())\n"
        "    pool.renew()\n"
        "    print(pool.submit(eval, asked, {}).result())\n"
        "with engine.executor(settings) as pool:\n"
        "    print(pool.submit(eval, asked, {}).result())\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    anew = "(400, True)"
    assert done.stdout.splitlines() == ["2 (7, True)", anew, anew], done.stderr


FORKS = """
import os, signal, sys, time
from eval_ingest import engine
from eval_ingest.settings import Settings
settings = Settings(workers=3, engine='processes')
"""


def test_a_program_that_may_not_fork_as_often_gets_its_workers_elsewhere_and_ends() -> None:
    script = FORKS + (
        "forks, fork = iter(range(9)), os.fork\n"
        "def fork_twice():\n"
        "    if next(forks) == 2:\n"
        "        raise BlockingIOError(11, 'Resource temporarily unavailable')\n"
        "    return fork()\n"
        "os.fork = fork_twice\n"
        "engine.fork_ahead(settings)\n"
        "with engine.executor(settings) as pool:\n"
        "    print(type(pool._workers).__name__, pool.submit(abs, -1).result())\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "_Workers 1\n"), done.stderr


def test_forked_workers_ignore_what_the_program_was_told_to_ignore() -> None:
    script = FORKS + (
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "engine.fork_ahead(settings)\n"
        "with engine.executor(settings) as pool:\n"
        "    numbers = signal.SIGINT, signal.SIGTERM\n"
        "    print([pool.submit(signal.getsignal, n).result().name for n in numbers])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "['SIG_IGN', 'SIG_DFL']\n", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="forked workers are Linux's")
def test_no_forked_worker_outlives_a_killed_program_not_even_beside_one_that_hangs() -> None:
    script = FORKS + (
        "engine.fork_ahead(settings)\n"
        "with engine.executor(settings) as pool:\n"
        "    pool.submit(abs, 0).result()\n"
        "    os.kill(pool.pids[-1], signal.SIGSTOP)\n"
        "    print(*pool.pids, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        pids = [int(pid) for pid in program.stdout.readline().split()]
        program.kill()
    assert len(pids) == 3
    try:
        until = time.monotonic() + 5
        while any(map(_is_at_work, pids)) and time.monotonic() < until:
            time.sleep(0.02)
        assert not any(map(_is_at_work, pids))
    finally:
        for pid in filter(_is_at_work, pids):
            os.kill(pid, signal.SIGKILL)


def _is_at_work(pid: int) -> bool:
    """False for a process that has ended, even if nobody has asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _kinds(kind: type[EvalIngestError]) -> Iterator[type[EvalIngestError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds(below)


def test_an_error_comes_from_another_process_as_it_was_raised_there() -> None:
    for kind in _kinds(EvalIngestError):
        raised = kind(*("text" for _ in inspect.signature(kind).parameters))
        found = pickle.loads(pickle.dumps(raised))
        assert type(found) is kind and str(found) == str(raised) != ""
        assert vars(found) == vars(raised)
