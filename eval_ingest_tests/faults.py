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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from eval_ingest import EvalDataset, pipeline
from eval_ingest.core.spec import SPLITS, DatasetSpec
from eval_ingest.errors import EvalIngestError
from eval_ingest.settings import Settings
from eval_ingest.store.layout import EvalRoot
from eval_ingest.store.registry import read_metadata, read_registry
from eval_ingest.store.verify import verify

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

    def job(self) -> pipeline.Job:
        """What pipeline.ingest takes."""
        values = {"name": self.name, "source": self.source, **self.spec}
        settings = Settings(eval_root=str(self.root), workers=2, engine=self.engine)
        return pipeline.open_job(DatasetSpec.parse(values, "test"), settings)

    def do(self) -> None:
        """Ingest in this process."""
        job = self.job()
        if self.overwrite:
            pipeline.forget(job)
        pipeline.ingest(job)

    def into(self, root: Path) -> "Run":
        """The same run elsewhere."""
        return replace(self, root=root)


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
            raise AssertionError(f"the ingest hangs\n{self.text()}")
        return int(self.process.exitcode)

    def kill(self) -> None:
        """SIGKILL to the process itself, and to none of its children."""
        self.process.kill()
        self.process.join()

    @property
    def children(self) -> list[int]:
        """Its child processes: the workers of the engine `processes` and what looks after them."""
        pid = self.process.pid
        with contextlib.suppress(OSError):
            return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return []

    @property
    def workers(self) -> list[int]:
        """Those of its children that decode and copy."""
        return [pid for pid in self.children if "spawn_main" in _command(pid)]

    def text(self) -> str:
        """What it said when it failed."""
        return self.log.read_text() if self.log.exists() else ""


def start(run: Run, log: Path, kill_at: int | None = None, times: int = 1) -> Process:
    """Begin a run.

    Args:
        run: what is to be ingested.
        log: takes the error, if it fails, and the number of changes, if it doesn't.
        kill_at: the process ends by SIGKILL instead of making this change (the first is 1).
        times: how often it is done: 0 for a process that only gets ready.
    """
    process = _CONTEXT.Process(target=_main, args=(run, log, kill_at, times), daemon=False)
    process.start()
    return Process(process, log)


def count_changes(run: Run, log: Path) -> int:
    """How many changes a whole run makes: the moments at which it can be killed."""
    assert start(run, log).wait() == 0, log.read_text()
    return int(log.read_text())


def _main(run: Run, log: Path, kill_at: int | None, times: int) -> None:
    changes = 0
    root = str(run.root)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        if event == "open":
            path, _, flags = arguments
            counts = isinstance(flags, int) and bool(flags & _WRITING)
        else:
            path = arguments[0] if arguments else None
            counts = event in _CHANGES
        if counts and (not isinstance(path, str | os.PathLike) or os.fspath(path) != str(log)):
            if isinstance(path, str | os.PathLike) and str(path).startswith("/dev/"):
                return
            changes += 1
            if changes == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    assert root
    sys.addaudithook(watch)
    try:
        for _ in range(times):
            run.do()
    except EvalIngestError as error:
        log.write_text(f"{type(error).__name__}: {error}")
        os._exit(OUR_ERROR)
    except BaseException:
        log.write_text(traceback.format_exc())
        os._exit(OTHER_ERROR)
    log.write_text(str(changes))


def _command(pid: int) -> str:
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

_LOCKS = (".lock",)


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
    """Files right below a root that belong to no dataset."""
    known = {"registry.json", ".registry.lock", "catalog"}
    return [
        path.name
        for path in sorted(root.iterdir())
        if path.name not in known and not path.name.endswith(".lock") and path.name[0] == "."
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
    """What is wrong under a root: the registry, each dataset in it, each checksum; as lines."""
    lines = []
    eval_root = EvalRoot(root)
    entries = read_registry(eval_root)
    for name in sorted({*entries, *eval_root.dataset_names()}):
        layout = eval_root.dataset(name)
        metadata = read_metadata(layout)
        if metadata is None:
            lines.append(f"{name} is in the registry but has no metadata.json")
            continue
        for split in SPLITS:
            dataset = EvalDataset(name, split, root=root)
            if len(dataset) != metadata.splits[split].count:
                lines.append(f"{name} {split}: {len(dataset)} samples")
            for sample in dataset:
                lines += [f"{name}: {sample['window']}"] * (not sample["window"])
    return lines


def verified(root: Path, name: str = "crops") -> list[str]:
    """What `eval-ingest verify` finds."""
    layout = EvalRoot(root).dataset(name)
    metadata = read_metadata(layout)
    assert metadata is not None
    problems: list[str] = verify(layout, metadata, pipeline.no_progress)["problems"]
    return problems


@contextlib.contextmanager
def copy_of(root: Path, target: Path) -> Iterator[Path]:
    """A copy of an eval root that may be damaged, and is gone afterwards."""
    shutil.copytree(root, target, symlinks=True)
    try:
        yield target
    finally:
        shutil.rmtree(target, ignore_errors=True)


def index_facts(path: Path) -> dict[str, Any]:
    """The facts in a Parquet file of ours."""
    facts: dict[str, Any] = json.loads(pq.read_schema(path).metadata[b"eval_ingest"])
    return facts
