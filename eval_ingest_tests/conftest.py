"""Shared fixtures: small real rslearn datasets, ingested once per test session."""

import gc
import os
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from eval_ingest import pipeline
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.decoding.isolation import isolated
from eval_ingest.job import Job, open_job
from eval_ingest.settings import Settings
from eval_ingest.store import registry_file
from eval_ingest_tests.support import factories, killing
from eval_ingest_tests.support.servers import ObjectServer, gcs_server, s3_server

IN_MEMORY = Path("/dev/shm")
ROOM = 6 << 30
"""Bytes that must be free in memory, for the files of tests to be put there."""

# A worker takes whole files, so that what a file shares is made once. These take the longest, by
# processor time, and come first: else one of them would begin when the others have ended.
LONGEST = (
    "service", "remote_roots", "corpus", "peers", "adopting", "adopting_roots", "sweep_run",
    "store_roots", "sources_remote",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Have tests write to memory, if there is room: they write and remove many small files.

    What they start listens to Ctrl-C, which shells have what runs in the background ignore. And
    workers are as many as cores: threads of torch in each would spin while they wait for another.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with suppress(OSError):
        told = Path("/proc/meminfo").read_text().split("MemAvailable:")[1]
        if min(shutil.disk_usage(IN_MEMORY).free, int(told.split()[0]) << 10) > ROOM:
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(IN_MEMORY))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first; within a file the order stays."""
    rank = {f"test_{name}.py": k for k, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def pytest_collection_finish() -> None:
    """What is imported by now stays: looking for garbage in it takes longer than some tests."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in filter(_is_a_setting, list(os.environ)):
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)  # away from a .env of the checkout


def _is_a_setting(name: str) -> bool:
    others = ("OLMOEARTH_EVAL_DATASETS", "STUDIO_ROOT", "WEKA_ENDPOINT_URL")
    return name.startswith("EVAL_INGEST_") or name in others


@pytest.fixture(scope="session", autouse=True)
def _no_power_is_lost() -> Iterator[None]:
    """Files are not waited for to reach the disk: tests kill processes, and not the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_process_is_left() -> Iterator[None]:
    """Whatever tests start has ended when they have, but for our own helpers of Python's."""
    mark = os.environ[killing.MARK] = uuid.uuid4().hex

    def left() -> list[str]:
        commands = {pid: killing.command(pid) for pid in killing.marked(mark)}
        helpers = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
        return [
            f"{pid}: {text}"
            for pid, text in commands.items()
            if not (killing.parent(pid) == os.getpid() and any(name in text for name in helpers))
        ]

    yield
    isolated.close()
    killing.wait_until(lambda: not left(), 20)
    assert left() == []


@pytest.fixture
def nobody_else_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged registry.json isn't waited for: no other tool is at it."""
    for name in ("READING_S", "WRITING_S"):
        monkeypatch.setattr(registry_file, name, 0.1)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Source dataset of a case of `factories.CASES`, written once; don't change it."""
    cache: dict[str, Path] = {}

    def write(case: str) -> Path:
        if case not in cache:
            cache[case] = factories.CASES[case](tmp_path_factory.mktemp(case))
        return cache[case]

    return write


@pytest.fixture
def copied(written: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a case's source dataset, to be changed at will."""

    def copy(case: str) -> Path:
        target = tmp_path / f"source_{case}"
        shutil.copytree(written(case), target)
        return target

    return copy


def make_job(source: Path, root: Path, name: str = "crops", **spec: Any) -> Job:
    """A job with two threads."""
    parsed = DatasetSpec.parse({"name": name, "source": str(source), **spec}, "test")
    return open_job(parsed, Settings(eval_root=str(root), workers=2))


@pytest.fixture(scope="session")
def ingested(
    written: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Eval root in which a case is ingested under its own name; don't change it."""
    cache: dict[str, Path] = {}

    def ingest(case: str) -> Path:
        if case not in cache:
            root = tmp_path_factory.mktemp(f"root_{case}")
            pipeline.ingest(make_job(written(case), root, case, max_invalid_fraction=0.5))
            cache[case] = root
        return cache[case]

    return ingest


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source dataset of ten windows of two timesteps; don't change it."""
    return factories.segmentation(
        tmp_path_factory.mktemp("studio") / "small", windows=10, timesteps=2
    )


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six windows of one timestep, for buckets, where a file is requests; don't change it."""
    return factories.segmentation(tmp_path_factory.mktemp("few"), windows=6, timesteps=1)


@pytest.fixture(scope="session")
def reference(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eval root with the small dataset, ingested from its folder as `crops`; don't change it."""
    root = tmp_path_factory.mktemp("reference")
    pipeline.ingest(make_job(small, root))
    return root


@pytest.fixture(scope="session")
def few_reference(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of the six windows."""
    root = tmp_path_factory.mktemp("few_reference")
    pipeline.ingest(make_job(few, root))
    return root


@pytest.fixture(scope="session")
def servers() -> Iterator[dict[str, ObjectServer]]:
    """Object stores by the scheme of their URLs; have each test write below a name of its own."""
    with gcs_server() as gcs, s3_server() as s3:
        yield {"gs": gcs, "s3": s3, "weka": s3}
