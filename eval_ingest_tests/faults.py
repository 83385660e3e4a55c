"""An ingest in a process of its own that is killed at a chosen moment, and what is true after it.

There are two kinds of moments: before the n-th change to the eval root (an audit hook counts
files that are opened for writing, renames, removals and new folders), and after some seconds.
The short form of these checks is test_faults.py, the long one `make torture`.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from eval_ingest import EvalDataset, indexing, pipeline, transfer
from eval_ingest.core.spec import SPLITS, DatasetSpec
from eval_ingest.errors import EvalIngestError
from eval_ingest.settings import Settings
from eval_ingest.store.layout import EvalRoot
from eval_ingest.store.registry import read_metadata, read_registry
from eval_ingest.store.verify import verify
from eval_ingest_tests import factories

KILLED = -signal.SIGKILL
OUR_ERROR, OTHER_ERROR = 3, 4
"""Exit codes of a run that ended with an EvalIngestError, or with anything else."""

_CONTEXT = multiprocessing.get_context("forkserver")
# The server imports what an ingest needs, once; each run is then a fork that begins at once.
_CONTEXT.set_forkserver_preload([__name__, "shapely", "pandas", "pyproj", "filelock"])

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.utime"}


@dataclass(frozen=True)
class Run:
    """One ingest of one dataset."""

    source: str
    root: Path
    name: str = "crops"
    engine: str = "threads"
    overwrite: bool = False
    spec: Mapping[str, Any] = field(default_factory=dict)
    shard_bytes: int | None = None
    """Samples that a shard holds at most, where the real limit is far too large for a test."""

    def job(self, progress: Callable[[str, int, int], None] = pipeline.no_progress) -> pipeline.Job:
        """What pipeline.ingest takes."""
        values = {"name": self.name, "source": self.source, **self.spec}
        settings = Settings(eval_root=str(self.root), workers=2, engine=self.engine)
        return pipeline.open_job(DatasetSpec.parse(values, "test"), settings, progress=progress)

    def do(self, progress: Callable[[str, int, int], None] = pipeline.no_progress) -> None:
        """Ingest, in steps of two windows, so that there are many moments to be stopped at."""
        with (
            patch.multiple(indexing, SHARD_WINDOWS=2, PARTIAL_ROWS=4, **self._limits),
            patch.multiple(transfer, _TASK_WINDOWS=2, _MOVED_TOGETHER=2, **self._limits),
        ):
            job = self.job(progress)
            if self.overwrite:
                pipeline.forget(job)
            pipeline.ingest(job)

    @property
    def _limits(self) -> dict[str, int]:
        return {} if self.shard_bytes is None else {"MAX_SHARD_BYTES": self.shard_bytes}

    def into(self, root: Path, **changes: Any) -> "Run":
        """The same run elsewhere."""
        return replace(self, root=root, **changes)


@dataclass
class Process:
    """A run in a process of its own."""

    process: Any
    log: Path

    def wait(self, seconds: float = 120) -> int:
        """The exit code: 0, KILLED, OUR_ERROR or OTHER_ERROR; a run that hangs is a failure."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.kill()
            raise AssertionError(f"the ingest hangs\n{self.text}")
        return int(self.process.exitcode)

    def kill(self) -> None:
        """SIGKILL to the process itself, and to none of its children."""
        self.process.kill()
        self.process.join()

    @property
    def alive(self) -> bool:
        """False once it has ended."""
        return bool(self.process.is_alive())

    @property
    def workers(self) -> list[int]:
        """Its child processes that decode and copy, with the engine `processes`."""
        pid = self.process.pid
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
            return [int(child) for child in text.split() if "spawn_main" in _command(child)]
        return []

    @property
    def text(self) -> str:
        """What it said when it failed, or how many changes it made."""
        return self.log.read_text() if self.log.exists() else ""


def start(run: Run, log: Path, kill_at: int | None = None) -> Process:
    """Begin a run.

    Args:
        run: what is to be ingested.
        log: takes the error, if it fails, and the number of changes, if it doesn't.
        kill_at: the process ends by SIGKILL instead of making this change (the first is 1).
    """
    log.unlink(missing_ok=True)
    process = _CONTEXT.Process(target=_main, args=(run, log, kill_at), daemon=False)
    process.start()
    return Process(process, log)


def _main(run: Run, log: Path, kill_at: int | None) -> None:
    changes = 0
    root = f"{run.root}/"

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        if not writes and event not in _CHANGES:
            return
        # rmtree gives names relative to a folder that it holds open.
        path = os.fspath(arguments[0]) if isinstance(arguments[0], str | Path) else ""
        if path.startswith("/") and not f"{path}/".startswith(root):
            return
        changes += 1
        if changes == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    try:
        run.do()
    except EvalIngestError as error:
        log.write_text(f"{type(error).__name__}: {error}")
        os._exit(OUR_ERROR)
    except BaseException:
        log.write_text(traceback.format_exc())
        os._exit(OTHER_ERROR)
    log.write_text(str(changes))


def _command(pid: str) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def wait_until(true: Callable[[], bool], seconds: float = 60) -> bool:
    """Wait for something; False if it doesn't come true in time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def is_running(pid: int) -> bool:
    """True for a process that has not ended; one that only waits to be collected has."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


# ----------------------------------------------------------------------- what lies under a root

_TIMES = {"published_at", "updated_at", "ingested_at"}
"""Fields that say when something was done: all that may differ between two ingests."""


def snapshot(root: Path, name: str = "crops") -> dict[str, str]:
    """Every file of a dataset, and its entry in the registry: relative path to digest.

    Two ingests of the same source into roots of the same path give the same snapshot, byte for
    byte, but for the fields in _TIMES. `weka_path` is given relative to the root.
    """
    found = {}
    for path in sorted((root / name).rglob("*")):
        if path.is_file():
            found[str(path.relative_to(root))] = _digest(path, root)
        elif not any(path.iterdir()):
            found[f"{path.relative_to(root)}/"] = "empty folder"
    entry = read_registry(EvalRoot(root)).get(name)
    found["registry.json"] = _plain(entry, root)
    return found


def _digest(path: Path, root: Path) -> str:
    if path.suffix == ".json" and "windows" not in path.relative_to(root).parts:
        return _plain(json.loads(path.read_text()), root)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _plain(content: Any, root: Path) -> str:
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key not in _TIMES}
    return json.dumps(content, sort_keys=True).replace(str(root), "ROOT")


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """What two snapshots don't have in common, as lines."""
    lines = [f"missing: {path}" for path in sorted(expected.keys() - found.keys())]
    lines += [f"more: {path}" for path in sorted(found.keys() - expected.keys())]
    both = sorted(found.keys() & expected.keys())
    return lines + [f"differs: {path}" for path in both if found[path] != expected[path]]


def strays(root: Path) -> list[str]:
    """Files right below a root that belong to nothing."""
    return [
        path.name
        for path in sorted(root.iterdir())
        if path.name.startswith(".") and not path.name.endswith(".lock")
    ]


def values(root: Path, name: str = "crops") -> dict[str, str]:
    """What EvalDataset gives: split and window to a digest of the sample."""
    found = {}
    for split in SPLITS:
        dataset = EvalDataset(name, split, root=root, normalize=None, crop=None)
        for k, sample in enumerate(dataset):
            text = hashlib.sha256()
            for modality in dataset.bands:
                text.update(sample[modality].numpy().tobytes())
                text.update(sample["timestamps"][modality].numpy().tobytes())
            text.update(sample["target"].numpy().tobytes())
            found[f"{split} {k} {sample['window']}"] = text.hexdigest()
    return found


def damage(root: Path) -> list[str]:
    """What is wrong under a root, as lines: the registry, and each dataset that it names."""
    eval_root = EvalRoot(root)
    entries = read_registry(eval_root)
    lines = []
    for name in sorted({*entries, *eval_root.dataset_names()}):
        metadata = read_metadata(eval_root.dataset(name))
        if metadata is None:
            lines.append(f"{name} is in the registry but has no metadata.json")
            continue
        counts = {split: found.count for split, found in metadata.splits.items()}
        read = Counter(key.split()[0] for key in values(root, name))
        lines += [
            f"{name} {split}: {read[split]} of {count} samples"
            for split, count in counts.items()
            if read[split] != count
        ]
    return lines


def verified(root: Path, name: str = "crops") -> list[str]:
    """What `eval-ingest verify` finds."""
    layout = EvalRoot(root).dataset(name)
    metadata = read_metadata(layout)
    assert metadata is not None
    problems: list[str] = verify(layout, metadata, pipeline.no_progress).problems
    return problems


# ------------------------------------------------------------------------------------ scenarios


@dataclass
class Scenario:
    """A run that is going to be disturbed, in a root where there is something to lose."""

    name: str
    run: Run
    base: Path
    """An eval root with the dataset `other` and perhaps an older version of `crops`."""
    work: Path
    """Where it happens; `base` is copied there for each case."""
    same_bytes: bool = True
    """False where an undisturbed run and a repeated one may name shards differently."""
    expected: dict[str, str] = field(default_factory=dict)
    """The snapshot after an undisturbed run."""
    before: dict[str, str] = field(default_factory=dict)
    """Values of the older version, if there is one."""
    after: dict[str, str] = field(default_factory=dict)
    other: dict[str, str] = field(default_factory=dict)
    changes: int = 0
    """Changes that an undisturbed run makes."""

    def __post_init__(self) -> None:
        self.other = values(self.base, "other")
        if (self.base / "crops" / "metadata.json").exists():
            self.before = values(self.base)
        with self.fresh():
            process = start(self.run, self.log)
            assert process.wait() == 0, process.text
            self.changes = int(process.text)
            self.expected = snapshot(self.work)
            self.after = values(self.work)
            assert verified(self.work) == []

    @property
    def log(self) -> Path:
        """What a process of the scenario says."""
        return self.work.with_suffix(".log")

    @contextlib.contextmanager
    def fresh(self) -> Iterator[Path]:
        """The base, ready to be damaged, and gone afterwards."""
        shutil.copytree(self.base, self.work, symlinks=True)
        try:
            yield self.work
        finally:
            shutil.rmtree(self.work, ignore_errors=True)

    def check_stopped(self) -> None:
        """What must be true at any moment: nothing is damaged, and nothing is half published."""
        _expect("damaged after the stop", damage(self.work), [])
        _expect("the other dataset", values(self.work, "other"), self.other)
        if (self.work / "crops" / "metadata.json").exists():
            if (found := values(self.work)) != self.before:
                _expect("the values after the stop", found, self.after)
        else:
            _expect("the older version, which is gone", {}, self.before)

    def check_repeated(self) -> None:
        """The next run completes what was stopped, as if nothing had happened."""
        replace(self.run, overwrite=False, engine="threads").do()
        _expect("the values after the next run", values(self.work), self.after)
        _expect("the other dataset after the next run", values(self.work, "other"), self.other)
        _expect("damaged after the next run", verified(self.work), [])
        _expect("left in the root", strays(self.work), [])
        found, expected = snapshot(self.work), self.expected
        if not self.same_bytes:
            found, expected = _copies(found), _copies(expected)
        _expect("files after the next run", differences(found, expected), [])

    def kill_at(self, change: int) -> None:
        """One case: killed instead of making a change."""
        with self.fresh():
            process = start(self.run, self.log, kill_at=change)
            assert process.wait() == KILLED, process.text
            self.check_stopped()
            self.check_repeated()

    def kill_after(self, seconds: float) -> bool:
        """One case: killed after some time; False if the run was faster."""
        with self.fresh():
            process = start(self.run, self.log)
            process.process.join(seconds)
            workers = process.workers
            process.kill()
            assert wait_until(lambda: not any(map(is_running, workers))), "its workers live on"
            self.check_stopped()
            self.check_repeated()
            return process.process.exitcode == KILLED

    def kill_worker(self, seconds: float) -> bool:
        """One case: one worker is killed some time after it began; False if there was none."""
        with self.fresh():
            process = start(self.run, self.log)
            wait_until(lambda: bool(process.workers) or not process.alive)
            process.process.join(seconds)
            workers = process.workers
            for pid in workers[:1]:
                os.kill(pid, signal.SIGKILL)
            code = process.wait()
            assert code in (0, OUR_ERROR), process.text
            assert code == 0 or "a worker process was killed" in process.text, process.text
            self.check_stopped()
            self.check_repeated()
            return bool(workers)


def _copies(files: dict[str, str]) -> dict[str, str]:
    return {path: digest for path, digest in files.items() if "/windows/" in path}


def _expect(what: str, found: Any, expected: Any) -> None:
    if found == expected:
        return
    if isinstance(found, dict):
        found, expected = differences(found, expected), []
    raise AssertionError(f"{what}: {found}")


def scenarios(folder: Path) -> Iterator[tuple[str, Callable[[], Scenario]]]:
    """Ingests of every kind, by name; each is prepared when it is asked for."""
    source = factories.segmentation(folder / "plain", windows=10, timesteps=2)
    ragged = factories.ragged_segmentation(folder / "ragged", windows=10)
    changed = folder / "changed"
    first = folder / "root" / "other_only"
    Run(str(source), first, "other").do()
    published = folder / "root" / "published"
    shutil.copytree(first, published)
    Run(str(source), published).do()
    _edit(source, changed)
    work = folder / "root" / "work"
    seeded = {"splits": {"strategy": "random", "seed": 5}}
    again = Run(str(source), work)

    def of(name: str, run: Run, base: Path, **more: Any) -> tuple[str, Callable[[], Scenario]]:
        return name, lambda: Scenario(name, run, base, work, **more)

    yield of("first", again, first)
    yield of("split", replace(again, spec=seeded), published)
    yield of("changed", Run(str(changed), work), published)
    yield of("ragged", Run(str(ragged), work, spec={"max_invalid_fraction": 0.5}), first)
    yield of("shards", replace(again, shard_bytes=90_000), first)
    yield of("stream", replace(again, spec={"copy": "stream"}), first)
    # The same folder through fsspec, as a bucket would be read.
    yield of("remote", Run(f"local://{source}", work), first)
    yield of("overwrite", replace(again, overwrite=True), published, same_bytes=False)


def _edit(source: Path, target: Path) -> None:
    """A later version of a dataset: a window more, a window less, and one with other pixels."""
    shutil.copytree(source, target)
    windows = sorted(path.parent for path in target.glob("windows/*/*/metadata.json"))
    shutil.copytree(windows[1], windows[1].with_name("added"))
    shutil.rmtree(windows[2])
    labels = [next(windows[k].glob("layers/label_raster/*/geotiff.tif")) for k in (3, 4)]
    shutil.copyfile(labels[0], labels[1])
