"""`make profile`: where the processor time of a whole ingest goes, in its parent and its workers.

    make profile                      1,000 windows
    make profile WINDOWS="1000 4000"
    make profile AT=/dev/shm          the eval root in memory: what a disk takes is left out
    make profile SOURCE=/data/crops   a dataset of yours, in LZW as rslearn writes it

A clock of the thread's own CPU time stands around each named part; what a part does by way of
another one is the other's alone. What no clock saw is told, too, since the total is what the kernel
says of all processes. The clocks take about a tenth of a millisecond a window.

The floor is what nothing could do without, done alone, one window after the other: reading its
files, decoding, moments, packing, writing its files.
"""

import argparse
import functools
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from mmap import mmap
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

PARTS: dict[str, tuple[str, ...]] = {
    "imports": ("importlib._bootstrap:_find_and_load",),
    "start of workers": ("eval_ingest.engine:_Worker.start", "eval_ingest.engine:Processes.kill"),
    "configuration": ("eval_ingest.job:open_job",),
    "listing files": (
        "eval_ingest.sources.local:list_window",
        "eval_ingest.sources.local:LocalSource._visible_folders",
        "eval_ingest.sources.local:_window_files",
    ),
    "reading files": ("eval_ingest.sources.local:read_files",),
    "JSON beside rasters": (
        "eval_ingest.decoding.judge:parse_json",
        "eval_ingest.decoding.judge:parse_metadata",
        "eval_ingest.decoding.judge:parse_items",
        "eval_ingest.decoding.sidecars:Sidecar.parse",
        "eval_ingest.decoding.judge:check_beside",
        "eval_ingest.decoding.judge:check_unread",
    ),
    "headers of rasters": ("eval_ingest.decoding.geotiff:read_header",),
    "decoding": (
        "eval_ingest.decoding.judge:decode_geotiff",
        "eval_ingest.decoding.judge:assemble",
    ),
    "moments, digests": (
        "eval_ingest.indexing.rows:measure",
        "eval_ingest.indexing.rows:pixel_digest",
        "eval_ingest.indexing.rows:label_digest",
        "eval_ingest.indexing.rows:_label_facts",
        "eval_ingest.decoding.judge:_check_pixels",
        "eval_ingest.decoding.judge:_check_target",
    ),
    "judging a window": ("eval_ingest.indexing.work:read_window",),
    "packing": ("eval_ingest.store.shards:ShardWriter.write",),
    "rows": ("eval_ingest.indexing.work:index_row",),
    "index, in a worker": ("eval_ingest.indexing.work:IndexTask.__call__",),
    "hand-over": (
        "multiprocessing.reduction:ForkingPickler.dumps",
        "multiprocessing.reduction:ForkingPickler.loads",
    ),
    "shards published": ("eval_ingest.store.shards:ShardWriter.commit",),
    "unfinished rows kept": (
        "eval_ingest.indexing.partial:PartialRows.add",
        "eval_ingest.indexing.partial:PartialRows.flush",
    ),
    "index, in the parent": (
        "eval_ingest.pipeline:index_source",
        "eval_ingest.indexing.partial:add_geometry",
    ),
    "outcomes written, compared": (
        "eval_ingest.pipeline:write_stage",
        "eval_ingest.pipeline:_belonging_together",
    ),
    "splits": ("eval_ingest.pipeline:assign_splits",),
    "norm": ("eval_ingest.pipeline:norm_stats",),
    "copy, in the parent": ("eval_ingest.pipeline:transfer",),
    "manifest": ("eval_ingest.store.manifest:Manifest.add",),
    "split indexes": ("eval_ingest.copying.transfer:_write_split_indexes",),
    "rslearn's indexes": ("eval_ingest.pipeline:write_copy_files",),
    "copy, in a worker": ("eval_ingest.copying.worker:TransferTask.__call__",),
    "folders, renames": (
        "eval_ingest.store.window_files:Windows.write",
        "eval_ingest.store.ahead:WindowsAhead.write",
        "eval_ingest.store.ahead:WindowsAhead.move",
    ),
    "writing files": (
        "eval_ingest.store.window_files:write_checked",
        "eval_ingest.store.ahead:write_checked",
    ),
    "CRC32C": ("google_crc32c:value",),
    "split into metadata.json": ("eval_ingest.store.window_files:with_split",),
    "registry": ("eval_ingest.pipeline:registry_entry", "eval_ingest.pipeline:publish"),
    "tidying": ("eval_ingest.pipeline:tidy", "eval_ingest.pipeline:dataset_lock"),
}
"""Where the clocks stand: module:attribute, in the module that looks the function up."""

_NAMES = list(PARTS)
_FLOOR_WINDOWS = 200


class Clocks:
    """CPU seconds of a process by part, in a file that outlives it: a worker is killed at the end.

    Its last number is the CPU time of the whole process, when a clock stopped last.
    """

    def __init__(self, path: Path) -> None:
        self.begin(path)
        self._here = threading.local()

    def begin(self, path: Path) -> None:
        """Count from now on in this file: a forked worker has the clocks of its parent."""
        path.write_bytes(bytes(8 * (len(_NAMES) + 1)))
        with open(path, "r+b") as stream:
            self.seconds = memoryview(mmap(stream.fileno(), 0)).cast("d")

    def around(self, part: int, call: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with a clock around it."""
        here, now = self._here, time.thread_time

        @functools.wraps(call)
        def run(*args: Any, **options: Any) -> Any:
            seconds, running = self.seconds, here.__dict__.setdefault("running", [])
            started = now()
            if running:
                seconds[running[-1]] += started - here.since
            running.append(part)
            here.since = started
            try:
                return call(*args, **options)
            finally:
                ended = now()
                seconds[part] += ended - here.since
                here.since = ended
                running.pop()
                if not running:
                    self.note_all()

        return run

    def note_all(self) -> None:
        """Note the CPU time of the whole process."""
        self.seconds[len(_NAMES)] = time.process_time()

    def install(self) -> None:
        """Put the clocks around the parts of all modules that are imported."""
        for part, places in enumerate(PARTS.values()):
            for place in places:
                module, _, path = place.partition(":")
                owner: Any = sys.modules.get(module)
                if owner is None:
                    continue
                *outer, name = path.split(".")
                owner = attrgetter(".".join(outer))(owner) if outer else owner
                plain = vars(owner)[name]
                if isinstance(plain, classmethod):
                    setattr(owner, name, classmethod(self.around(part, plain.__func__)))
                else:
                    setattr(owner, name, self.around(part, plain))


# ------------------------------------------------------------------- in the processes of an ingest


def ingest(source: str, folder: str, before: float) -> None:
    """`eval-ingest ingest` in this process, its parts clocked; `before` it had used so much."""
    clocks = Clocks(Path(folder) / "parent")
    imported = clocks.around(_NAMES.index("imports"), importlib.import_module)

    def run(*arguments: Any) -> Any:
        """The command, when what it would import is imported."""
        imported("eval_ingest.commands"), imported("eval_ingest.pipeline")
        engine = sys.modules["eval_ingest.engine"]
        _FORKED.append((clocks, engine.prepare_worker))
        engine.prepare_worker = functools.partial(_begin_worker, folder)
        clocks.install()
        return plain(*arguments)

    cli = imported("eval_ingest.cli")
    plain, cli._run = cli._run, run
    sys.argv[1:] = ["ingest", "profiled", "--source", source]
    if code := cli.main():
        sys.exit(code)
    clocks.note_all()
    facts = {"before": before, "server": _cpu_of_server()}
    (Path(folder) / "facts.json").write_text(json.dumps(facts))


_FORKED: list[tuple[Clocks, Callable[[dict[str, str]], None]]] = []
"""In a worker that was forked from the parent: its clocks, and the engine's own preparation."""


def _begin_worker(folder: str, environment: dict[str, str]) -> None:
    """Runs in every worker, before the engine's own preparation."""
    from eval_ingest.engine import prepare_worker

    path = Path(folder) / f"worker_{os.getpid()}"
    for clocks, prepare in _FORKED:
        clocks.begin(path)
        prepare(environment)
        return
    Clocks(path).install()
    prepare_worker(environment)


def _cpu_of_server() -> float:
    """CPU seconds of the process that workers are forked from, with what it has imported."""
    from multiprocessing import forkserver

    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---------------------------------------------------------------------------------------- beside it


class Profile(NamedTuple):
    """CPU milliseconds a window."""

    windows: int
    seconds: float
    """From start to end, on the clock on the wall."""
    total: float
    parts: dict[str, tuple[float, float]]
    """By name, of the parent and of its workers."""
    floor: dict[str, float]
    """By name, done alone."""


def measured(source: Path, base: Path) -> Profile:
    """The profile of an ingest into a new folder, in processes of its own."""
    from benchmarks.bench import open_job
    from benchmarks.bench_peers import timed, warm

    base.mkdir(parents=True)
    warm(source)
    job = open_job(source, base / "none")
    names = list(job.source.names(job.source.groups()))
    floor = floor_alone(job, names[:_FLOOR_WINDOWS], base)
    os.sync()
    code = (
        "import time; before = time.process_time(); from benchmarks import profile;"
        f"profile.ingest({str(source)!r}, {str(base)!r}, before)"
    )
    root = str(base / "root")
    seconds, used, _ = timed([sys.executable, "-c", code], OLMOEARTH_EVAL_DATASETS=root)
    facts = json.loads((base / "facts.json").read_text())
    parent = _read(base / "parent")
    workers = [sum(one) for one in zip(*map(_read, base.glob("worker_*")), strict=True)]
    workers = workers or [0.0] * len(parent)
    parts = dict(zip(_NAMES, zip(parent, workers, strict=True), strict=False)) | {
        "python, before any import": (facts["before"], 0.0),
        "server that workers are forked from": (facts["server"], 0.0),
        "in no part": (
            parent[-1] - facts["before"] - sum(parent[:-1]),
            workers[-1] - sum(workers[:-1]),
        ),
        "exits, multiprocessing's helpers": (
            used - parent[-1] - workers[-1] - facts["server"],
            0.0,
        ),
    }
    each = 1e3 / len(names)
    ms = {name: (one * each, more * each) for name, (one, more) in parts.items()}
    return Profile(len(names), seconds, used * each, ms, floor)


@contextmanager
def _scratch(at: Path) -> Iterator[Path]:
    """A new folder there, which is removed in the end."""
    from benchmarks.bench import remove

    base = at.absolute() / f"profile_{os.getpid()}"
    try:
        yield base
    finally:
        remove(base)


def _read(path: Path) -> list[float]:
    return list(memoryview(path.read_bytes()).cast("d"))


def floor_alone(job: Any, windows: Sequence[Any], scratch: Path) -> dict[str, float]:
    """CPU milliseconds a window of what can't be left out, with nothing around it."""
    import numpy as np

    from eval_ingest.core import kernels
    from eval_ingest.core.digest import pixel_digest
    from eval_ingest.core.norm import measure
    from eval_ingest.decoding.geotiff_header import read_header
    from eval_ingest.store.window_files import write_checked

    spent: dict[str, float] = {}

    def clocked(name: str, call: Callable[..., Any], *args: Any) -> Any:
        started = time.thread_time()
        found = call(*args)
        spent[name] = spent.get(name, 0.0) + time.thread_time() - started
        return found

    pack = os.open(scratch / "pack", os.O_WRONLY | os.O_CREAT)
    for number, listed in enumerate(windows):
        files = job.source.window(listed.group, listed.name, job.config.layer_names)
        had = clocked("reading files", job.source.fetch, files, files.files)
        images: dict[Any, list[Any]] = {}
        for data in (had[path].data for path in files.by_path if path.endswith(".tif")):
            header = read_header(data)
            pixels = np.empty((header.height, header.width, 1, header.bands), header.dtype)
            clocked("decoding", kernels.decode_lzw, data, header.blocks, pixels)
            images.setdefault(pixels.shape, []).append(pixels)
        for (height, width, _, bands), steps in images.items():
            sample = np.empty((height, width, len(steps), bands), steps[0].dtype)
            clocked("decoding", kernels.interleave, steps, range(bands), sample)
            moments = clocked("moments, digests", measure, sample)
            clocked("moments, digests", pixel_digest, {"": sample}, {"": moments})
            clocked("packing", os.pwrite, pack, sample.data, number * sample.nbytes)
        (scratch / f"{number}").mkdir()
        plain = [(file.path, had[file.path].data, 0o644) for file in files.files]
        clocked("writing files", write_checked, str(scratch / f"{number}"), plain)
    os.close(pack)
    return {name: seconds / len(windows) * 1e3 for name, seconds in spent.items()}


def lines(profile: Profile) -> list[str]:
    """The profile as tables in Markdown, the largest parts first."""
    found = [
        f"| {profile.windows} windows: CPU ms a window | parent | workers | share |",
        "|---|---|---|---|",
    ]
    for name, (parent, workers) in sorted(profile.parts.items(), key=lambda part: -sum(part[1])):
        if parent + workers >= 0.0005:
            share = (parent + workers) / profile.total
            found.append(f"| {name} | {parent:.3f} | {workers:.3f} | {share:.1%} |")
    floor = sum(profile.floor.values())
    of_it = ", ".join(f"{name} {ms:.2f}" for name, ms in profile.floor.items())
    return [
        *found,
        f"| all, in {profile.seconds:.1f} s | {profile.total:.2f} | | |",
        "",
        f"The floor: {floor:.2f} ms ({of_it}); used: {profile.total / floor:.2f} of it.",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    from benchmarks.bench import CACHE, dataset, machine

    parser = argparse.ArgumentParser(prog="make profile", description=__doc__)
    parser.add_argument("--windows", type=int, nargs="*", default=[1000])
    parser.add_argument("--repeat", type=int, default=3, help="the one of median CPU time is shown")
    parser.add_argument("--at", type=Path, default=CACHE, help="where the ingest writes")
    parser.add_argument("--source", type=Path, help="a dataset, instead of generated ones")
    options = parser.parse_args(arguments)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    print(f"{machine()}; load {os.getloadavg()[0]:.1f} at the start")
    sources = [options.source] if options.source else map(dataset, options.windows)
    for source in sources:
        found = []
        for _ in range(options.repeat):
            with _scratch(options.at) as base:
                found.append(measured(source.absolute(), base))
        found.sort(key=lambda profile: profile.total)
        print("", *lines(found[len(found) // 2]), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
