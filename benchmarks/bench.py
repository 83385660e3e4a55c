"""`make bench`: how fast, beside rslearn and a plain numpy memory map, all in one run.

    make bench                        250 windows, a minute
    make bench WINDOWS=1000           a larger dataset
    make bench GROWTH="250 1000 4000" how time and memory grow with the number of windows
    make bench MANY=100000            the same small windows again and again: time and memory
    make bench PLACES=1               slow mounts, a bucket, other GeoTIFFs, other storages

Times on shared machines are noisy: ratios between neighbours in one run are what to compare.
Every figure is a median of several repetitions, and what is compared takes turns.
"""

import argparse
import json
import logging
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

CACHE = Path(".cache/bench")
GROUP = "20251210"
WORKERS = len(os.sched_getaffinity(0))
_TURNS = 3
_DIFFERENT = 1000
"""Windows that are generated; larger datasets have the same ones again."""


class Row(NamedTuple):
    """A line of the table."""

    what: str
    ours: str
    reference: str = ""
    ratio: str = ""


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=250)
    parser.add_argument("--growth", type=int, nargs="*", default=[])
    parser.add_argument("--many", type=int, default=0)
    parser.add_argument("--places", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument("--one-ingest", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if options.one_ingest:
        print(json.dumps(_one_ingest(*options.one_ingest)))
        return 0
    print(f"{machine()}; {kernels_text()}")
    parts: list[Callable[[], list[Row]]] = []
    if options.many:
        parts = [partial(many_rows, options.many)]
    elif options.growth:
        parts = [partial(growth_rows, options.growth)]
    elif options.places:
        from benchmarks.places import bucket_rows, latency_rows, stored_rows

        source = dataset(options.windows)
        parts = [
            partial(latency_rows, source),
            partial(stored_rows, source, min(options.windows, 48)),
            partial(bucket_rows, source, min(options.windows, 24)),
        ]
    else:
        source = dataset(options.windows)
        print(f"{options.windows} windows of 64 x 64 pixels, 12 timesteps, 12 bands")
        parts = [
            partial(decode_rows, source),
            partial(ingest_rows, source, options.windows),
            partial(load_rows, source, CACHE / "root"),
        ]
    rows = []
    for part in parts:
        for row in part():
            print(f"{row.what:<38}  {row.ours:>20}  {row.reference:>38}  {row.ratio}", flush=True)
            rows.append(row._asdict())
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))
    return 0


def machine() -> str:
    """The machine's size and the date, for the record."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    today = datetime.now(UTC).date()
    return f"{WORKERS} cores, {memory:.0f} GiB, Python {platform.python_version()}, {today}"


def kernels_text() -> str:
    """Whether the fast loops are there."""
    from eval_ingest.core.kernels import are_compiled

    return "compiled loops" if are_compiled() else "NO compiled loops: no C compiler was found"


def dataset(windows: int, size: int = 64, timesteps: int = 12) -> Path:
    """A tolbi-like source dataset of that many windows, written once."""
    root = CACHE / f"source_{windows}_{size}_{timesteps}"
    if not (root / ".complete").exists():
        from eval_ingest.testing.demo import write_tolbi_like

        print(f"writing {windows} windows through rslearn (once) ...", file=sys.stderr)
        shutil.rmtree(root, ignore_errors=True)
        if windows > _DIFFERENT:
            _repeated(dataset(_DIFFERENT, size, timesteps), root / "tolbi", windows)
        else:
            write_tolbi_like(
                root, "tolbi", windows=windows, size=size, timesteps=timesteps, seed=1,
                broken=False, workers=WORKERS,
            )  # fmt: skip
        (root / ".complete").touch()
    return root / "tolbi"


def _repeated(source: Path, target: Path, windows: int) -> None:
    """A dataset of so many windows, which are links to the files of one with fewer."""
    shutil.copytree(source, target, ignore=lambda path, names: {"windows"} & set(names))
    given = sorted((source / "windows" / GROUP).iterdir())
    for k in range(windows):
        window = target / "windows" / GROUP / f"tolbi_{k:06d}"
        shutil.copytree(given[k % len(given)], window, copy_function=os.link)


def median_seconds(work: Callable[[], Any], repeat: int = 5) -> float:
    """Median time of a call."""
    return compare([work], repeat)[0]


def compare(works: Sequence[Callable[[], Any]], repeat: int = 5) -> list[float]:
    """Median time of each of several calls, which take turns."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeat):
        for work, found in zip(works, times, strict=True):
            started = time.perf_counter()
            work()
            found.append(time.perf_counter() - started)
    return [statistics.median(found) for found in times]


# ------------------------------------------------------------------------------------- decode


def decode_rows(source: Path, count: int = 64) -> list[Row]:
    """Decode, judge and measure a window, beside rslearn's own sample."""
    from concurrent.futures import ProcessPoolExecutor

    from eval_ingest.engine import _Workers
    from eval_ingest.indexing.filters import WindowFilter
    from eval_ingest.indexing.work import IndexTask

    job = open_job(source, CACHE / "none")
    items = list(enumerate(job.source.names([GROUP])))[:count]
    task = IndexTask(job.source, job.config, WindowFilter())
    reference = model_dataset(source)
    step = max(len(reference) // 20, 1)

    def theirs() -> None:
        for i in range(20):
            reference[i * step % len(reference)]

    task(items)  # the files are in the page cache from now on, for rslearn as well
    one, other = compare([lambda: task(items), theirs])
    one, other = one / len(items), other / 20
    rows = [
        Row(
            "decode, judge, measure a window",
            f"{one * 1e3:.2f} ms",
            f"rslearn ModelDataset {other * 1e3:.1f} ms",
            f"{other / one:.1f}x faster",
        )
    ]
    with ProcessPoolExecutor(WORKERS, _Workers()) as pool:
        shards = [items[k::WORKERS] for k in range(WORKERS)]
        list(pool.map(task, shards))
        alone, together = compare([lambda: task(items), lambda: list(pool.map(task, shards))])
    rows.append(
        Row(
            f"  in {WORKERS} processes",
            f"{together / len(items) * 1e3:.2f} ms",
            f"in one {alone / len(items) * 1e3:.2f} ms",
            f"{alone / together:.2f}x faster",
        )
    )
    return rows


def model_dataset(source: Path, index_mode: str = "off", tags: dict[str, str] | None = None) -> Any:
    """rslearn's ModelDataset over the same samples."""
    # rslearn's tasks import wandb to draw confusion matrices, but don't depend on it.
    sys.modules.setdefault("wandb", types.ModuleType("wandb"))
    from rslearn.config import DType
    from rslearn.dataset import Dataset
    from rslearn.train.dataset import DataInput, IndexMode, ModelDataset, SplitConfig
    from rslearn.train.tasks.segmentation import SegmentationTask
    from upath import UPath

    from eval_ingest.core.modality import MODALITIES

    inputs = {
        "sentinel2_l2a": DataInput(
            "raster",
            ["sentinel2"],
            bands=list(MODALITIES["sentinel2_l2a"].bands),
            passthrough=True,
            load_all_layers=True,
            load_all_item_groups=True,
        ),
        "targets": DataInput(
            "raster", ["label_raster"], bands=["label"], is_target=True, dtype=DType.INT32
        ),
    }
    return ModelDataset(
        Dataset(UPath(source)),
        SplitConfig(groups=[GROUP], tags=tags),
        inputs,
        SegmentationTask(num_classes=7, zero_is_invalid=True),
        workers=0,
        index_mode=IndexMode(index_mode),
    )


# ------------------------------------------------------------------------------------- ingest


def open_job(source: Path | str, root: Path, **spec: Any) -> Any:
    """The job of ingesting a source into a root."""
    from eval_ingest.core.spec import DatasetSpec
    from eval_ingest.job import open_job
    from eval_ingest.settings import Settings

    environ = {"OLMOEARTH_EVAL_DATASETS": str(root), **os.environ}
    settings = Settings.load(environ, Path("none"))
    return open_job(DatasetSpec(name="tolbi_crops", source=str(source), **spec), settings, root)


def _one_ingest(source: str, root: str, spec: str) -> dict[str, float]:
    """Ingest in this process; seconds, peak memory, seconds per stage."""
    from eval_ingest import pipeline

    started = time.perf_counter()
    with peak_memory() as peak:
        outcomes = pipeline.ingest(open_job(source, Path(root), **json.loads(spec)))
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak": peak[0], **{o.stage: o.seconds for o in outcomes}}


@contextmanager
def peak_memory(every_s: float = 0.25) -> Iterator[list[int]]:
    """The most memory in bytes that this process and its workers took together.

    More looks would take the time of what is measured: each asks after every thread.
    """
    peak, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(every_s):
            peak[0] = max(peak[0], sum(map(_private_bytes, family(os.getpid()))))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def family(pid: int) -> list[int]:
    """A process, its children, and theirs."""
    found = [pid]
    for parent in found:
        for tasks in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(FileNotFoundError):  # a thread that has ended
                found += map(int, tasks.read_text().split())
    return found


def _private_bytes(pid: int) -> int:
    """Memory of a process, what it shares with others divided among them."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return int(text.split("Pss:")[1].split()[0]) * 1024


def run_ingest(
    source: Path | str, root: Path, environment: dict[str, str] | None = None, **spec: Any
) -> dict[str, float]:
    """Ingest in a process of its own, so that its memory is its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench", "--one-ingest", source, root, json.dumps(spec)],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"the ingest of {source} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def ingest_rows(source: Path, windows: int) -> list[Row]:
    """A first ingest, one with nothing to do, one with another split, one with new windows."""
    root, copied = CACHE / "root", CACHE / "copied"
    first, again, against_tar = [], [], []
    for _ in range(_TURNS):
        remove(root, copied)
        first.append(run_ingest(source, root))
        again.append(run_ingest(source, root))
        # The disk's mood changes within minutes: each beside the copy by tar just after it.
        against_tar.append(first[-1]["seconds"] / median_seconds(lambda: tar(source, copied), 1))
    remove(copied)
    whole = sorted(first, key=lambda found: found["seconds"])[_TURNS // 2]
    unchanged = statistics.median(found["seconds"] for found in again)
    split = run_ingest(source, root, splits={"strategy": "random", "seed": 7})["seconds"]
    listing = median_seconds(partial(list_files, source), 3)
    grown, new = with_new_windows(source, max(windows // 100, 1))
    run_ingest(source, root)
    added = run_ingest(grown, root)["seconds"]
    shutil.rmtree(grown)
    return [
        Row(
            "whole ingest, windows copied and packed",
            f"{whole['seconds']:.2f} s",
            f"{whole['seconds'] / windows * 1e3:.1f} ms a window, its peak "
            f"{whole['peak'] / 2**20:.0f} MiB",
            f"{statistics.median(against_tar):.2f} of the time of tar | tar, which copies alone",
        ),
        Row(
            "again, nothing changed",
            f"{unchanged * 1e3:.0f} ms",
            f"listing the files by find: {listing * 1e3:.0f} ms",
            f"{unchanged / whole['seconds']:.1%} of the first",
        ),
        Row(
            "again, another split",
            f"{split * 1e3:.0f} ms",
            "metadata.json of moved windows rewritten",
            f"{split / whole['seconds']:.1%} of the first",
        ),
        Row(
            f"again, {new} windows more",
            f"{added * 1e3:.0f} ms",
            f"{new / windows:.1%} of the windows",
            f"{added / whole['seconds']:.1%} of the first",
        ),
    ]


def remove(*folders: Path) -> None:
    """Remove folders, and wait until nobody pays for that: none of it is part of a figure."""
    there = [folder for folder in folders if folder.exists()]
    for folder in there:
        shutil.rmtree(folder)
    os.sync()  # nobody pays either for what was written
    if there and _holds_numbers_back(there[0].parent):
        time.sleep(_HELD_BACK_S)


_HELD_BACK_S = 61.0
"""An ext4 without a journal gives a removed file's number to no other for a minute. Until then it
looks at all of these before it makes a file, which takes up to sixteen times as long."""


def _holds_numbers_back(folder: Path) -> bool:
    device = os.stat(folder).st_dev
    disk = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
    return Path("/proc/fs/ext4", disk).exists() and not Path("/proc/fs/jbd2", f"{disk}-8").exists()


def list_files(source: Path) -> None:
    """List every file of the windows with its size and time, by `find`."""
    command = ["find", source / "windows", "-printf", "%s %T@ %p\n"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def tar(source: Path, target: Path) -> None:
    """Copy the windows by `tar | tar`."""
    target.mkdir(parents=True)
    with subprocess.Popen(
        ["tar", "-C", source, "-cf", "-", "windows"], stdout=subprocess.PIPE
    ) as packing:
        subprocess.run(["tar", "-C", target, "-xf", "-"], stdin=packing.stdout, check=True)


def with_new_windows(source: Path, count: int) -> tuple[Path, int]:
    """The source, by hard links, with some windows more: the first ones under other names."""
    grown = CACHE / "grown"
    shutil.rmtree(grown, ignore_errors=True)
    shutil.copytree(source, grown, copy_function=os.link)
    for window in sorted((source / "windows" / GROUP).iterdir())[:count]:
        shutil.copytree(window, grown / "windows" / GROUP / f"{window.name}_new")
    return grown, count


def growth_rows(sizes: list[int]) -> list[Row]:
    """How time and memory grow with the number of windows."""
    rows = []
    for windows in sizes:
        root = CACHE / "growth"
        remove(root)
        found = run_ingest(dataset(windows), root)
        again = run_ingest(dataset(windows), root)["seconds"]
        remove(root)
        rows.append(
            Row(
                f"ingest of {windows} windows",
                f"{found['seconds']:.1f} s",
                f"{found['seconds'] / windows * 1e3:.1f} ms a window, again {again:.2f} s",
                f"peak {found['peak'] / 2**20:.0f} MiB",
            )
        )
    return rows


def many_rows(windows: int, real: int = 1000) -> list[Row]:
    """So many windows that rows and names fill memory if anything does; small ones, many alike."""
    source = dataset(real, size=16, timesteps=4)
    many = CACHE / f"many_{windows}"
    if not many.exists():
        aside = many.with_suffix(".tmp")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(source, aside)
        group = aside / "windows" / GROUP
        names = sorted(window.name for window in group.iterdir())
        for k in range(windows - len(names)):
            (group / f"window_{k:06d}").symlink_to(names[k % real])
        aside.rename(many)
    root = CACHE / "many"
    shutil.rmtree(root, ignore_errors=True)
    first = run_ingest(many, root, copy="stream")
    again = run_ingest(many, root, copy="stream")
    shutil.rmtree(root)
    return [
        Row(
            f"{windows} windows {what}",
            f"{found['seconds']:.0f} s",
            f"index {found['window_index']:.0f} s, {found['seconds'] / windows * 1e3:.2f} ms each",
            f"peak {found['peak'] / 2**20:.0f} MiB",
        )
        for what, found in (("(16 x 16 x 4)", first), ("again", again))
    ]


# --------------------------------------------------------------------------------------- load


def load_rows(source: Path, root: Path) -> list[Row]:
    """Open a split, random samples, batches."""
    from eval_ingest.loading import EvalDataset

    def ours(**options: Any) -> EvalDataset:
        return EvalDataset("tolbi_crops", "train", root=root, crop=None, **options)

    tags = {"split": "train"}
    model_dataset(source, "use", tags)  # writes rslearn's index
    opened, theirs = compare(
        [lambda: ours()[0], lambda: model_dataset(source, "use", tags)[0]], repeat=7
    )
    shutil.rmtree(source / ".rslearn_dataset_index", ignore_errors=True)

    plain, normal = ours(normalize=None), ours()
    reference = model_dataset(source)
    order = np.random.default_rng(0).integers(0, len(plain), 300).tolist()
    for i in range(len(plain)):
        plain[i]

    def take(which: Any, indices: Sequence[int]) -> None:
        for i in indices:
            which[i]

    random, normal_random, rslearn = compare(
        [
            partial(take, plain, order),
            partial(take, normal, order),
            partial(take, reference, range(20)),
        ]
    )
    random, normal_random, rslearn = 300 / random, 300 / normal_random, 20 / rslearn

    def run(batches: Any) -> None:
        for batch in batches:
            del batch

    index = plain._index
    shards = {n: plain._samples._map(n, "sentinel2_l2a").array for n in set(index.shards.tolist())}
    rows = [plain._row(i) for i in range(len(plain))]
    places = [(shards[int(index.shards[row])], int(index.rows[row])) for row in rows]
    out = np.empty((32, *places[0][0].shape[1:]), np.float32)

    def memmap() -> None:
        """The same samples out of a plain numpy memory map, into memory that is used again."""
        for start in range(0, len(places), 32):
            for k, (stored, place) in enumerate(places[start : start + 32]):
                np.copyto(out[k], stored[place])

    batches, normalised, loader, copied = (
        len(plain) / seconds
        for seconds in compare(
            [
                lambda: run(plain.batches(32)),
                lambda: run(normal.batches(32)),
                lambda: run(normal.loader(batch_size=32)),
                memmap,
            ]
        )
    )
    return [
        Row(
            "open a split, first sample",
            f"{opened * 1e3:.1f} ms",
            f"bare ModelDataset, index USE {theirs * 1e3:.0f} ms",
            f"{theirs / opened:.0f}x faster",
        ),
        Row(
            "random samples a second",
            f"{random:,.0f}",
            f"ModelDataset {rslearn:.0f}",
            f"{random / rslearn:.0f}x",
        ),
        Row("  normalised", f"{normal_random:,.0f}", "", f"{normal_random / rslearn:.0f}x"),
        Row(
            "batches of 32, samples a second",
            f"{batches:,.0f}",
            f"numpy memmap to float32 {copied:,.0f}",
            f"{batches / copied:.2f}",
        ),
        Row("  normalised", f"{normalised:,.0f}", "", f"{normalised / copied:.2f}"),
        Row("  loader(), shuffled, normalised", f"{loader:,.0f}", "", f"{loader / copied:.2f}"),
    ]


if __name__ == "__main__":
    sys.exit(main())
